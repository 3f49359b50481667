"""Plots and pages drawn from results on disk."""
