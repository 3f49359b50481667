"""Networks, losses and the conditioning. Tensors in, tensors out: nothing here reads a table or a tile."""
