"""Tiles as they might as well have been cut: tissue on a slide has no up and no left."""

import torch

TURNS = 8  # the symmetries of a square: 4 quarter turns, each with or without a mirror


def turned(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return images (n, c, s, s), each after symmetry `which` (n,) of 0 .. 7: pixels change their places only.

    k % 4 quarter turns counter-clockwise, then from 4 on a left-right mirror; 0 changes nothing.
    """
    out = torch.empty_like(images)
    for k in range(TURNS):
        chosen = which == k
        turn = torch.rot90(images[chosen], k % 4, (2, 3))
        out[chosen] = turn.flip(3) if k >= 4 else turn
    return out
