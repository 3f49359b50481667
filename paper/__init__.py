"""What paper_figures.py does: a module per figure, which reads runs and stores and hands arrays to `figures`."""
