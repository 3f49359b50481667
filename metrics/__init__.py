"""Numbers about sets of tiles or features: arrays in, numbers out."""
