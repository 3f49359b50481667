"""Tiles shown otherwise than they were cut: turned, and, where they are few, moved and cut out, lest the critic learn
them by heart (Karras et al. 2020b, Zhao et al. 2020). No colour: it is part of a patient.
"""

import torch

TURNS = 8  # the symmetries of a square
REACH = 1 / 8  # of the side, up to which tiles are moved; Karras et al. 2020b, appendix B
HOLE = 1 / 2  # side of the square that is cut out, of the tile's; the same


def turned(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Return images (n, c, s, s), each after symmetry `which` (n,) of 0 .. 7 of the square: pixels change places only.

    Of the number's bits 4 transposes, 2 swaps top and bottom, 1 left and right; 0 changes nothing.
    """
    which = which[:, None, None, None]
    images = torch.where(which & 4 > 0, images.transpose(2, 3), images)
    images = torch.where(which & 2 > 0, images.flip(2), images)
    return torch.where(which & 1 > 0, images.flip(3), images)


def moved(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return images (n, c, s, s) moved by `shift` (n, 2) whole pixels, down and right; what enters is a reflection."""
    side = images.shape[-1]
    for axis in (2, 3):
        place = torch.arange(side, device=images.device) - shift[:, axis - 2, None]  # (n, s)
        place = (side - 1 - (side - 1 - place.abs()).abs()).unsqueeze(1).unsqueeze(5 - axis)
        images = images.gather(axis, place.expand_as(images))
    return images


def cut_out(images: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return images (n, c, s, s) with a grey square (0) of half their side around `centre` (n, 2) in 0 .. 1."""
    side = images.shape[-1]
    line = (torch.arange(side, device=images.device) + 0.5) / side
    far = (line - centre[:, :, None]).abs() > HOLE / 2  # (n, 2, s): outside the square's rows, columns
    return images * (far[:, 0, :, None] | far[:, 1, None, :])[:, None]


def augmented(
    images: torch.Tensor, strength: float, source: torch.Generator, batch: int = 0, rows: slice = slice(None)
) -> torch.Tensor:
    """Return images (n, c, s, s), each turned, moved, cut out, with probability `strength` of each, as `source` draws.

    It draws for a `batch` of so many, of which `images` are the `rows`; 0: they are all of it.

    Differentiable in the images, twice. Real and generated tiles alike are shown so, that the generator is not asked
    for what the changes put in: while `strength` is under 1 they can be undone (Karras et al. 2020b, section 2.2).
    """
    n, side = batch or len(images), images.shape[-1]
    chosen = torch.rand(3, n, generator=source) < strength
    which = torch.randint(TURNS, (n,), generator=source) * chosen[0]
    reach = int(REACH * side)
    shift = torch.randint(-reach, reach + 1, (n, 2), generator=source) * chosen[1, :, None]
    centre = torch.rand(n, 2, generator=source)
    which, shift, centre, holed = (x[rows].to(images.device) for x in (which, shift, centre, chosen[2]))
    images = moved(turned(images, which), shift)
    return torch.where(holed[:, None, None, None], cut_out(images, centre), images)
