"""Procedural H&E for the demo: the tissue of one slide, drawn so that four known factors are visible in it.

Everything is drawn as concentrations of stain (haematoxylin, eosin, red cells) and turned into colour by Beer and
Lambert's law, so that optical density means what it means on a real slide. Lengths are micrometres until the last step.
The drawing is ours; the stain vectors are near those of Ruifrok and Johnston 2001 (Anal Quant Cytol Histol 23:291).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

FACTORS = ("nuclear_density", "nuclear_size", "eosin_od", "white_space")

# What the factors move, per tissue: the value at factor 0 and the change per standard deviation. Ours; nuclei are about
# a fifth larger than in life, so that a tile shrunk to 32 pixels still shows them.
BASELINE = {
    "lung": {"nuclear_density": 1400.0, "nuclear_size": 3.7, "eosin_od": 0.58, "white_space": 0.61},
    "brain": {"nuclear_density": 1150.0, "nuclear_size": 3.8, "eosin_od": 0.50, "white_space": 0.18},
}  # nuclei per mm2 of tissue, mean radius in um, eosin concentration of the stroma, share of tissue that is white
EFFECT = {"nuclear_density": 0.34, "nuclear_size": 0.14, "eosin_od": 0.22}  # natural log per standard deviation
WHITE_EFFECT = {"lung": (0.07, 0.42, 0.80), "brain": (0.080, 0.03, 0.40)}  # share per sd, lowest, highest
LARGEST_FACTOR = 2.5  # beyond it the drawing saturates: nuclei would no longer fit

STAINS = np.array([[0.64, 0.72, 0.27], [0.14, 0.89, 0.40], [0.10, 0.88, 0.52]], np.float32)  # H, E, red cells; RGB
GLASS = np.array([243.0, 242.0, 244.0], np.float32)  # empty slide under the lamp


@dataclass
class Canvas:
    """One field being drawn: its geometry in micrometres, its random numbers, and the stain laid down so far."""

    px: int  # side in pixels
    mpp: float  # micrometres per pixel
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.side = self.px * self.mpp  # um
        self.haematoxylin = np.zeros((self.px, self.px), np.float32)
        self.eosin = np.zeros((self.px, self.px), np.float32)
        self.red = np.zeros((self.px, self.px), np.float32)
        self.nuclei = np.zeros((self.px, self.px), np.float32)  # coverage in [0, 1]

    def grid(self, step: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (y, x) in um of a coarse grid of the given step, as broadcastable columns and rows."""
        n = max(2, round(self.side / step))
        centres = (np.arange(n, dtype=np.float32) + 0.5) * (self.side / n)
        return centres[:, None], centres[None, :]

    def window(self, y: float, x: float, reach: float) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """Return (slices of the square around (y, x), its rows' y as a column, its columns' x as a row), in um."""
        edges = [(max(int((c - reach) / self.mpp), 0), min(int((c + reach) / self.mpp) + 1, self.px)) for c in (y, x)]
        rows, columns = (np.arange(a, max(a, b), dtype=np.float32) for a, b in edges)
        where = (slice(edges[0][0], max(edges[0])), slice(edges[1][0], max(edges[1])))
        return where, (rows[:, None] + 0.5) * self.mpp, (columns[None, :] + 0.5) * self.mpp

    def noise(self, period: float) -> np.ndarray:
        """Return smooth noise of unit spread, (px, px): features about `period` um wide. Read only.

        It is cut at random from a sheet that all slides of a size share: making one per slide would cost more than all
        the rest of the drawing.
        """
        sheet = _noise_sheet(self.px + self.px // 4, period / self.mpp)
        row, column = self.rng.integers(0, self.px // 4, 2)
        cut = sheet[row : row + self.px, column : column + self.px]
        turned = cut.T if self.rng.random() < 0.5 else cut
        return turned[::-1] if self.rng.random() < 0.5 else turned

    def image(self) -> np.ndarray:
        """Return the field as a camera sees it: uint8 (px, px, 3), RGB."""
        picture = np.empty((3, self.px, self.px), np.uint8)
        grain = self.noise(0.0) * np.float32(1.2)
        for c in range(3):
            density = self.haematoxylin * -STAINS[0, c]
            density -= self.eosin * STAINS[1, c]
            density -= self.red * STAINS[2, c]
            light = np.exp(density, out=density)
            light *= GLASS[c]
            light += grain
            picture[c] = np.clip(light, 0, 255, out=light)
        return np.ascontiguousarray(picture.transpose(1, 2, 0))


@lru_cache(maxsize=24)
def _noise_sheet(px: int, period_px: float) -> np.ndarray:
    """Return (px, px) float32 noise of unit spread; the same for every slide of a size."""
    rng = np.random.default_rng([px, round(period_px * 1000)])
    sigma = period_px / 3
    if sigma < 3:
        field = ndimage.gaussian_filter(rng.standard_normal((px, px), np.float32), sigma, mode="wrap", truncate=3)
    else:
        n = max(2, round(px / period_px * 1.5)) + 3
        field = enlarge(rng.standard_normal((n, n), np.float32), px)
    field /= field.std()
    field.flags.writeable = False
    return field


def enlarge(field: np.ndarray, px: int) -> np.ndarray:
    """Return `field` (n, m) enlarged to (px, px) by cubic B-splines: smooth, and two matrix products."""
    return _spline_matrix(field.shape[0], px) @ field @ _spline_matrix(field.shape[1], px).T


@lru_cache(maxsize=64)
def _spline_matrix(n: int, px: int) -> np.ndarray:
    position = (np.arange(px, dtype=np.float32) + 0.5) * (n / px) - 0.5
    distance = np.abs(position[:, None] - np.arange(n, dtype=np.float32)[None, :])
    near = 2 / 3 - distance**2 * (1 - distance / 2)
    far = np.maximum(2 - distance, 0) ** 3 / 6
    weights = np.where(distance < 1, near, far).astype(np.float32)
    return weights / weights.sum(1, keepdims=True)


def parameters(tissue: str, factors: dict[str, float]) -> dict[str, float]:
    """Return what a tissue with these factors looks like: nuclei/mm2, um, eosin concentration, white share."""
    z = {name: float(np.clip(factors[name], -LARGEST_FACTOR, LARGEST_FACTOR)) for name in FACTORS}
    values = {name: BASELINE[tissue][name] * float(np.exp(EFFECT[name] * z[name])) for name in EFFECT}
    per_sd, lowest, highest = WHITE_EFFECT[tissue]
    white = BASELINE[tissue]["white_space"] + per_sd * z["white_space"]
    return values | {"white_space": float(np.clip(white, lowest, highest))}


def outline(canvas: Canvas, blank_half: bool) -> np.ndarray:
    """Return the depth inside the tissue in um, on a grid of 2 um: negative on the glass around the irregular piece."""
    y, x = canvas.grid(2.0)
    half = canvas.side / 2
    shift = canvas.rng.uniform(-0.02, 0.02, 2) * canvas.side
    dy, dx = (y - half - shift[0]), (x - half - shift[1])
    radius = (np.abs(dx) ** 3.2 + np.abs(dy) ** 3.2) ** (1 / 3.2)  # between a disc and a square
    angle = np.arctan2(dy, dx)
    edge = np.full_like(radius, 0.445 * canvas.side)
    for k in range(1, 9):
        edge += (
            canvas.rng.normal(0, 0.016) * canvas.side / k**0.6 * np.cos(k * angle + canvas.rng.uniform(0, 2 * np.pi))
        )
    depth = edge - radius
    if blank_half:
        wave = 8 * np.sin(y / 31 + canvas.rng.uniform(0, 6)) + 4 * np.sin(y / 11)
        depth = np.minimum(depth, 0.48 * canvas.side - x + wave)
    return depth.astype(np.float32)


def soft(level: np.ndarray, width: float) -> np.ndarray:
    """Return coverage in [0, 1] of where `level` (um) is positive, with an edge `width` um wide."""
    return np.clip(level / np.float32(width) + np.float32(0.5), 0, 1)


def waves(rng: np.random.Generator, side: float, n: int, period: float) -> np.ndarray:
    """Return smooth noise (n, n) of about unit spread over a field of `side` um, with features of `period` um."""
    knots = round(side / period * 1.5) + 3
    return 1.6 * enlarge(rng.standard_normal((knots, knots), np.float32), n)


def discs_depth(shape: tuple[int, int], centres: np.ndarray, radius: np.ndarray, step: float) -> np.ndarray:
    """Return, per grid point, the um that it lies inside the nearest of the discs (negative outside)."""
    points = (np.indices(shape).reshape(2, -1).T + 0.5) * step
    far, index = cKDTree(centres).query(points, distance_upper_bound=12.0)
    index = np.minimum(index, len(centres) - 1)
    return np.where(np.isfinite(far), radius[index] - far, -12.0).reshape(shape).astype(np.float32)


def scatter(
    canvas: Canvas, weight: np.ndarray, count: int, gap: np.ndarray, taken: np.ndarray | None = None
) -> np.ndarray:
    """Return up to `count` points (n, 2) in um (y, x), drawn by `weight` on a coarse grid, none closer than their gaps.

    gap: (count,) um; two points keep the mean of their gaps apart. taken: (m, 3) points (y, x, gap) already there.
    Where the tissue is full the gaps shrink by up to a fifth, so that the number of points is kept.
    """
    flat = np.cumsum(weight.ravel(), dtype=np.float64)
    if not flat[-1] > 0 or not count:
        return np.zeros((0, 2), np.float32)
    step = canvas.side / weight.shape[0]
    points = [tuple(p) for p in taken] if taken is not None else []
    before = len(points)
    cell = max(float(gap.max()), *(p[2] for p in points), 1.0) if points else max(float(gap.max()), 1.0)
    buckets: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for p in points:
        buckets.setdefault((int(p[0] // cell), int(p[1] // cell)), []).append(p)
    for shrink in (1.0, 0.9, 0.8):
        draws = np.searchsorted(flat, canvas.rng.random(count * 8) * flat[-1]).clip(max=flat.size - 1)
        places = (np.stack(np.unravel_index(draws, weight.shape), 1) + canvas.rng.random((len(draws), 2))) * step
        for y, x in places.tolist():
            done = len(points) - before
            if done == count:
                break
            g = float(gap[done])
            row, column = int(y // cell), int(x // cell)
            near = (q for i in (-1, 0, 1) for j in (-1, 0, 1) for q in buckets.get((row + i, column + j), ()))
            if all((y - q[0]) ** 2 + (x - q[1]) ** 2 >= (shrink * (g + q[2]) / 2) ** 2 for q in near):
                points.append((y, x, g))
                buckets.setdefault((row, column), []).append((y, x, g))
        if len(points) - before == count:
            break
    return np.array([p[:2] for p in points[before:]], np.float32).reshape(-1, 2)


def stamp_nuclei(
    canvas: Canvas,
    centres: np.ndarray,
    radius: np.ndarray,
    aspect: np.ndarray,
    angle: np.ndarray,
    darkness: np.ndarray,
    chromatin: np.ndarray,
    nucleolus: np.ndarray | None = None,
) -> None:
    """Draw nuclei: ovals of equal area whatever their aspect, a dark rim, clumped chromatin, perhaps a nucleolus.

    centres: (n, 2) um; radius: (n,) um of the disc of equal area; aspect: (n,) long over short axis; angle: (n,) rad;
    darkness: (n,) haematoxylin concentration; chromatin: (px, px) unit noise; nucleolus: (n,) 0 or 1.
    """
    if not len(centres):
        return
    reach = int(np.ceil(1.15 * float((radius * np.sqrt(aspect)).max()) / canvas.mpp)) + 1
    offset = (np.arange(-reach, reach + 1, dtype=np.float32)) * canvas.mpp
    corner = np.floor(centres / canvas.mpp).astype(int)
    part = (corner + 0.5) * canvas.mpp - centres  # (n, 2)
    dy = offset[None, :, None] + part[:, 0, None, None]
    dx = offset[None, None, :] + part[:, 1, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    long, short = (radius * np.sqrt(aspect))[:, None, None], (radius / np.sqrt(aspect))[:, None, None]
    u, v = (dx * cos + dy * sin) / long, (dy * cos - dx * sin) / short
    phase = canvas.rng.uniform(0, 2 * np.pi, (2, len(centres), 1, 1)).astype(np.float32)
    theta = np.arctan2(v, u)
    bumps = 1 + 0.05 * np.cos(2 * theta + phase[0]) + 0.05 * np.cos(3 * theta + phase[1])
    rho = np.sqrt(u * u + v * v) / bumps  # 0 at the centre, 1 at the membrane
    cover = soft((1 - rho) * short, 0.9).astype(np.float32)
    body = 0.72 + 0.34 * np.clip((rho - 0.55) / 0.45, 0, 1) ** 2
    if nucleolus is not None:
        place = canvas.rng.uniform(-0.2, 0.2, (2, len(centres), 1, 1)).astype(np.float32)
        body = body + 0.7 * nucleolus[:, None, None] * soft(0.24 - np.hypot(u - place[0], v - place[1]), 0.12)
    body = body * darkness[:, None, None]
    for i, (row, column) in enumerate(corner.tolist()):
        top, left = row - reach, column - reach
        rows = slice(max(top, 0), min(row + reach + 1, canvas.px))
        columns = slice(max(left, 0), min(column + reach + 1, canvas.px))
        inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        cut = cover[i][inner]
        stain = body[i][inner] * (1 + 0.16 * chromatin[rows, columns])
        canvas.haematoxylin[rows, columns] = canvas.haematoxylin[rows, columns] * (1 - cut) + stain * cut
        canvas.eosin[rows, columns] *= 1 - 0.55 * cut
        canvas.red[rows, columns] *= 1 - cut
        canvas.nuclei[rows, columns] = np.maximum(canvas.nuclei[rows, columns], cut)
