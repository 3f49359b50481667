"""Convolutions of stride 1 with fewer multiplications: Winograd's algorithm, for frozen networks in fp32 on a CPU.

Lavin and Gray 2016, arXiv:1509.09308, section 4: an m x m tile of a convolution with an r x r filter is
A^T [(G g G^T) * (B^T d B)] A, with d its m + r - 1 pixels a side, * element by element and summed over channels. That
sum is a matrix product for each of the (m + r - 1)^2 elements: (m + r - 1)^2 multiplications in place of (m r)^2, 36 of
144 for m = 4, r = 3. A filter of one row or column has that transform along its length only.

The matrices are Toom and Cook's: polynomials are multiplied by their values at POINTS and at infinity, and
interpolated. Values differ from the plain convolution's by rounding, more of it the more points there are: up to 2e-5
of the largest value with TILES. A pixel that is NaN or infinite can make NaN of every value of the tiles it goes into,
and of those at the other edge.
The transforms are compiled loops over channels, pixels being NHWC (channels last).
"""

import threading
from typing import NamedTuple

import numpy as np
import torch
from numba import njit, types
from torch import nn

from common.compiled import compiled

# The points that are not 0 or infinity, by the number of all; each with its negative, so that every second coefficient
# is 0. The least rounding among some hundred sets of quotients below 9, then of few bits; ours.
POINTS = {1: (), 6: (3 / 4, 3 / 2), 8: (1 / 2, 1, 2), 12: (3 / 8, 5 / 8, 1, 13 / 8, 5 / 2)}
# Sides of a filter -> of a tile, m. The fastest of 2 to 8 on an AMD EPYC with AVX-512; ours.
TILES = {(3, 3): (4, 4), (5, 5): (4, 4), (1, 7): (1, 6), (7, 1): (6, 1), (1, 3): (1, 4), (3, 1): (4, 1)}
WORK = 2 * 2**20  # bytes of transformed tiles at a time, some twice the second-level cache; ours, the fastest of 1 to 8


class Terms(NamedTuple):
    """A matrix without its zeros: what each row adds up."""

    counts: np.ndarray  # (rows,) int64: how many terms
    sources: np.ndarray  # (rows, a multiple of 4) int64: columns of the matrix
    factors: np.ndarray  # the same float32: its values there


class Tiling(NamedTuple):
    """An image of height x width pixels cut into down x across tiles of m_y x m_x outputs."""

    height: int
    width: int
    channels: int
    down: int
    across: int
    m_y: int
    m_x: int
    pad_y: int
    pad_x: int


# ---------------------------------------------------------------- The matrices


def transforms(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A^T (m, t), G (t, r) and B^T (t, t), t = m + r - 1, of m outputs with r taps, float64.

    y = A^T [(G g) * (B^T d)] is y[i] = sum over k of g[k] d[i + k]. Column, row and row of a point p: its powers; its
    powers over the product of its distances to the other points; the coefficients of the polynomial with the other
    points as roots, that of Lagrange's interpolation.
    """
    pairs = POINTS[m + r - 1]
    points = np.array([0.0, *pairs, *(-p for p in pairs)][: m + r - 2])
    others = [np.delete(points, i) for i in range(len(points))]
    infinity = np.eye(max(m, r))
    a = np.vstack([np.vander(points, m, increasing=True), infinity[m - 1, :m]])
    distances = np.array([np.prod(p - rest) for p, rest in zip(points, others, strict=True)])
    g = np.vstack([np.vander(points, r, increasing=True) / distances[:, None], infinity[r - 1, :r]])
    b = [np.append(np.poly(rest)[::-1], 0) for rest in others] + [np.atleast_1d(np.poly(points))[::-1]]
    return a.T, g, np.array(b)


def terms(matrix: np.ndarray) -> Terms:
    """Return a matrix as sums; rows with fewer terms than others end in terms with the factor 0."""
    counts = (matrix != 0).sum(1)
    sources = np.zeros((len(matrix), -(-int(counts.max()) // 4) * 4), np.int64)
    factors = np.zeros(sources.shape, np.float32)
    for i, row in enumerate(matrix):
        present = np.flatnonzero(row)
        sources[i, : len(present)], factors[i, : len(present)] = present, row[present]
    return Terms(counts, sources, factors)


# ---------------------------------------------------------------- The compiled loops: arrays of values are flat

FAST = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
VALUES, WHOLE = types.float32[::1], types.int64
TERMS = types.NamedTuple((types.int64[::1], types.int64[:, ::1], types.float32[:, ::1]), Terms)
TILING = types.NamedUniTuple(types.int64, len(Tiling._fields), Tiling)


@njit(**FAST)
def add_up(out: np.ndarray, o: int, x: np.ndarray, starts: tuple, factors: tuple, n: int, more: bool) -> None:
    """Set n values from out[o], or where `more` add to them: the sum of 4 factors times n values from x[start]."""
    a, b, c, d = np.uint64(starts[0]), np.uint64(starts[1]), np.uint64(starts[2]), np.uint64(starts[3])
    fa, fb, fc, fd = factors
    o = np.uint64(o)  # unsigned, as no index counts from the end: else the loop is not vectorised
    if more:
        for i in range(np.uint64(n)):
            out[o + i] += fa * x[a + i] + fb * x[b + i] + fc * x[c + i] + fd * x[d + i]
    else:
        for i in range(np.uint64(n)):
            out[o + i] = fa * x[a + i] + fb * x[b + i] + fc * x[c + i] + fd * x[d + i]


@njit(**FAST)
def add_one(out: np.ndarray, o: int, x: np.ndarray, start: int, factor: float, n: int, more: bool) -> None:
    """Do as add_up does, with one factor."""
    o, a = np.uint64(o), np.uint64(start)
    if more:
        for i in range(np.uint64(n)):
            out[o + i] += factor * x[a + i]
    else:
        for i in range(np.uint64(n)):
            out[o + i] = factor * x[a + i]


@njit(**FAST)
def row_of(terms: Terms, i: int, out: np.ndarray, o: int, x: np.ndarray, base: int, step: int, n: int) -> None:
    """Set n values from out[o] to row i of a matrix times the vectors of n values from x[base + step * source]."""
    for g in range(0, terms.counts[i], 4):
        s, f = terms.sources[i, g : g + 4], terms.factors[i, g : g + 4]
        if g + 1 == terms.counts[i]:
            add_one(out, o, x, base + step * s[0], f[0], n, g > 0)
            continue
        starts = (base + step * s[0], base + step * s[1], base + step * s[2], base + step * s[3])
        add_up(out, o, x, starts, (f[0], f[1], f[2], f[3]), n, g > 0)


@njit(**FAST)
def image_rows(terms: Terms, i: int, out: np.ndarray, o: int, x: np.ndarray, image: int, top: int, t: Tiling) -> None:
    """Set a row of pixels from out[o] to row i of a matrix times an image's rows from `top`; those outside are 0."""
    n = t.width * t.channels
    s, f = np.empty(4, np.int64), np.empty(4, np.float32)
    for g in range(0, terms.counts[i], 4):
        for q in range(4):
            y = top + terms.sources[i, g + q]
            inside = 0 <= y < t.height
            s[q] = (image * t.height + (y if inside else 0)) * n
            f[q] = terms.factors[i, g + q] if inside else 0
        if g + 1 == terms.counts[i]:
            add_one(out, o, x, s[0], f[0], n, g > 0)
            continue
        add_up(out, o, x, (s[0], s[1], s[2], s[3]), (f[0], f[1], f[2], f[3]), n, g > 0)


@njit(**FAST)
def pixels_apart(t: Tiling, t_x: int) -> int:
    """Return of how many pixels a line has the first of each tile, or the second, ..., with what the last ones need."""
    return t.across + (t_x - 1) // t.m_x


def apart(by_column: Terms, t: Tiling) -> Terms:
    """Return a matrix for lines that have the first pixels of all tiles first, then the second, ..."""
    sources = by_column.sources
    each = pixels_apart.py_func(t, len(sources))  # as compiled it would be so in every process anew
    return by_column._replace(sources=sources % t.m_x * each + sources // t.m_x)


@compiled(VALUES, TERMS, TERMS, TILING, WHOLE, WHOLE, VALUES, VALUES, **FAST)
def into_tiles(
    x: np.ndarray, by_row: Terms, by_column: Terms, t: Tiling, first: int, last: int, lines: np.ndarray, out: np.ndarray
) -> None:
    """Write B^T d B of the tiles in rows first..last - 1 of all images' tiles to out (t_y * t_x, tiles, channels).

    x: (N, height, width, channels); by_column: as `apart` makes it; lines: scratch, a padded line of pixels, and again
    with the first pixel of all tiles first, then their second, so that the sums are over long stretches.
    """
    t_y, t_x = len(by_row.sources), len(by_column.sources)
    pixels = (t.across - 1) * t.m_x + t_x
    line, left, inner = pixels * t.channels, t.pad_x * t.channels, t.width * t.channels
    each = pixels_apart(t, t_x)
    tiles = (last - first) * t.across
    lines[:left] = 0  # what is outside the image
    lines[left + inner : line] = 0
    for k in range(first, last):
        image, top = k // t.down, (k % t.down) * t.m_y - t.pad_y
        for i in range(t_y):
            o = (i * t_x * tiles + (k - first) * t.across) * t.channels
            if t_x == 1:  # a pixel is a tile
                out[o : o + left] = 0
                out[o + left + inner : o + line] = 0
                image_rows(by_row, i, out, o + left, x, image, top, t)
                continue
            image_rows(by_row, i, lines, left, x, image, top, t)
            for pixel in range(pixels):
                a = np.uint64(pixel * t.channels)
                b = np.uint64(line + (pixel % t.m_x * each + pixel // t.m_x) * t.channels)
                for c in range(np.uint64(t.channels)):
                    lines[b + c] = lines[a + c]
            for j in range(t_x):
                row_of(by_column, j, out, o + j * tiles * t.channels, lines, line, t.channels, t.across * t.channels)


@compiled(VALUES, TERMS, TERMS, VALUES, WHOLE, TILING, WHOLE, WHOLE, VALUES, VALUES, **FAST)
def out_of_tiles(
    x: np.ndarray,
    by_row: Terms,
    by_column: Terms,
    bias: np.ndarray,
    t_x: int,
    t: Tiling,
    first: int,
    last: int,
    lines: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write max(A^T x A + bias, 0) to out (N, height, width, channels), of x (t_y * t_x, tiles, channels).

    lines: scratch, (t_x + m_x, across, channels): rows of tiles, then of their pixels, the first of all tiles first, so
    that the sums are over long stretches. NaN stays NaN.
    """
    line = t.across * t.channels
    pixels = t_x * line if t_x > 1 else 0  # where they begin
    plane = (last - first) * line
    for k in range(first, last):
        image, top = k // t.down, (k % t.down) * t.m_y
        for i in range(min(t.m_y, t.height - top)):
            for j in range(t_x):
                row_of(by_row, i, lines, j * line, x, j * plane + (k - first) * line, t_x * plane, line)
            for j in range(t.m_x if t_x > 1 else 0):
                row_of(by_column, j, lines, pixels + j * line, lines, 0, line, line)
            for tile in range(t.across):
                for j in range(min(t.m_x, t.width - tile * t.m_x)):
                    o = np.uint64(((image * t.height + top + i) * t.width + tile * t.m_x + j) * t.channels)
                    a = np.uint64(pixels + j * line + tile * t.channels)
                    for c in range(np.uint64(t.channels)):
                        value = lines[a + c] + bias[c]
                        out[o + c] = np.float32(0) if value < 0 else value


# ---------------------------------------------------------------- The layer


class WinogradConvolution(nn.Module):
    """A frozen convolution of stride 1 with its bias and a rectifier, fp32 on the CPU, for inference alone."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """`conv` has a filter of TILES, zeros around the image, one group and a bias."""
        super().__init__()
        self.filter, self.padding = conv.kernel_size, conv.padding
        self.tile = TILES[self.filter]
        matrices = [transforms(m, r) for m, r in zip(self.tile, self.filter, strict=True)]
        self.outputs, self.inputs = ([terms(matrix[i]) for matrix in matrices] for i in (0, 2))
        both = torch.from_numpy(np.kron(matrices[0][1], matrices[1][1]))  # (t_y * t_x, r_y * r_x)
        pixels = conv.weight.detach().permute(2, 3, 1, 0).double()  # (r_y, r_x, c_in, c_out)
        filters = (both @ pixels.flatten(2).flatten(0, 1)).float()
        self.register_buffer("filters", filters.unflatten(1, pixels.shape[2:]))  # (t_y * t_x, c_in, c_out)
        self.register_buffer("bias", conv.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H', W'), channels last; RuntimeError, as of torch, where no pixel is left."""
        x = x.permute(0, 2, 3, 1).contiguous()
        n, height, width, _ = x.shape
        (r_y, r_x), (m_y, m_x), (pad_y, pad_x) = self.filter, self.tile, self.padding
        t_x = m_x + r_x - 1
        elements, c_in, c_out = self.filters.shape
        h_out, w_out = height + 2 * pad_y - r_y + 1, width + 2 * pad_x - r_x + 1
        if min(height, width, h_out, w_out) < 1:
            raise RuntimeError(f"an image of {height} x {width} is too small for a filter of {r_y} x {r_x}")
        down, across = -(-h_out // m_y), -(-w_out // m_x)
        of_x = Tiling(height, width, c_in, down, across, m_y, m_x, pad_y, pad_x)
        of_y = Tiling(h_out, w_out, c_out, down, across, m_y, m_x, 0, 0)
        y = torch.empty((n, h_out, w_out, c_out))
        flat_x, flat_y, bias = x.view(-1).numpy(), y.view(-1).numpy(), self.bias.numpy()
        lines = torch.empty(max((2 * across * m_x + 2 * t_x + m_x) * c_in, (t_x + m_x) * across * c_out)).numpy()
        into = self.inputs[0], apart(self.inputs[1], of_x)

        at_a_time = max(1, WORK // (elements * across * (c_in + c_out) * 4))  # rows of tiles
        for first in range(0, n * down, at_a_time):
            last = min(first + at_a_time, n * down)
            tiles = (last - first) * across
            work = _space(elements * tiles * (c_in + c_out))
            before = work[: elements * tiles * c_in].view(elements, tiles, c_in)
            after = work[elements * tiles * c_in :].view(elements, tiles, c_out)
            into_tiles(flat_x, *into, of_x, first, last, lines, before.view(-1).numpy())
            torch.bmm(before, self.filters, out=after)
            out_of_tiles(after.view(-1).numpy(), *self.outputs, bias, t_x, of_y, first, last, lines, flat_y)
        return y.permute(0, 3, 1, 2)


_spaces = threading.local()


def _space(n: int) -> torch.Tensor:
    """Return n floats that the next call in this thread overwrites: new memory costs as much as a transform.

    Kept as long as the thread lives, as an array: a tensor made in inference mode could not be written to outside it.
    """
    if getattr(_spaces, "all", np.empty(0)).size < n:
        _spaces.all = torch.empty(n).numpy()
    return torch.from_numpy(_spaces.all[:n])


def pays(conv: nn.Conv2d) -> bool:
    """Return whether a convolution has the form that is meant here, with a filter for which it is faster."""
    plain = conv.stride == conv.dilation == (1, 1) and conv.groups == 1 and conv.bias is not None
    return plain and conv.weight.dtype == torch.float32 and conv.kernel_size in TILES and conv.padding_mode == "zeros"
