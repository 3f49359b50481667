"""A set of tiles, wherever it comes from: real tiles, a GAN with or without a profile, a folder, saved statistics."""
