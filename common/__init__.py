"""The ground that every package stands on: settings, runs, checkpoints, files, errors. Imports nothing of ours."""
