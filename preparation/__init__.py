"""What prepare_data.py does: one module per sub-command, each its manual, its flags and its run."""
