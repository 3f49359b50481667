"""Expression tables, slides, tile stores and the demo cohort: all that is read from or written to disk as data."""
