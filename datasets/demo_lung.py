"""Lung for the demo: alveoli parted by septa, with vessels, red cells and macrophages."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from datasets.demo_paint import Canvas, discs_depth, enlarge, scatter, soft, stamp_nuclei, waves

ALVEOLUS = 41.0  # um between neighbouring alveoli; small, so that a 64 um tile shows septa and lumen


def draw_lung(canvas: Canvas, look: dict[str, float], depth: np.ndarray) -> None:
    """Draw lung. look: see demo_paint.parameters; depth: um inside the tissue, on a coarse grid."""
    rng = canvas.rng
    wall, lumen_only, vessels = _septa(canvas, depth)
    inside = depth > 0
    area_mm2 = float(inside.mean()) * canvas.side**2 / 1e6
    step = canvas.side / depth.shape[0]

    # Nuclei sit in the septa; where a septum is thinner than its nucleus, it bulges.
    room = np.quantile(wall[inside], max(0.12, 1 - look["white_space"]))
    count = max(1, round(look["nuclear_density"] * area_mm2 * rng.normal(1, 0.02)))
    radius = look["nuclear_size"] * np.exp(rng.normal(0, 0.10, count) - 0.01).astype(np.float32)
    weight = np.where((depth > 3) & ~lumen_only, np.clip((room + 1.0 - wall) / 2, 0, 1), 0)
    centres = scatter(canvas, weight, count, radius * 2.15)
    radius = radius[: len(centres)]
    angle, aspect = _along(wall, centres, step, rng)

    # The septa's thickness is set so that the white share of the tissue is the one asked for.
    mound = discs_depth(depth.shape, centres, radius + 0.8, step)
    bulged = inside & (mound > 0)
    stroma_share = 1 - look["white_space"]
    missing = stroma_share * inside.sum() - bulged.sum()
    free = wall[inside & ~bulged]
    thickness = np.quantile(free, np.clip(missing / max(len(free), 1), 0.02, 0.98))
    level = np.minimum(np.maximum(thickness - wall, mound), depth)
    level = enlarge(level, canvas.px) + 0.35 * canvas.noise(3.0)
    tissue = soft(level, 1.0)

    # Stroma, red cells in capillaries and vessels, then the nuclei on top.
    fibres = 0.13 * canvas.noise(2.2) + 0.16 * canvas.noise(14.0)
    canvas.eosin = tissue * look["eosin_od"] * np.clip(1 + fibres, 0.5, 1.7)
    canvas.haematoxylin = tissue * np.clip(0.10 + 0.03 * canvas.noise(9.0), 0, 1)
    _red_cells(canvas, wall, inside, room, vessels)
    _macrophages(canvas, wall, inside, room, look)
    darkness = rng.normal(1.75, 0.15, len(centres)).clip(1.3, 2.3).astype(np.float32)
    stamp_nuclei(canvas, centres, radius, aspect, angle, darkness, canvas.noise(1.5))


def _septa(canvas: Canvas, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (um to the middle of the nearest septum, lumen of vessels, vessels (n, 3): y, x, radius)."""
    rng = canvas.rng
    y, x = np.broadcast_arrays(*canvas.grid(canvas.side / depth.shape[0]))
    warp = [4.5 * waves(rng, canvas.side, len(y), 30) + 1.4 * waves(rng, canvas.side, len(y), 9) for _ in "yx"]
    straight_y, straight_x = y, x
    y, x = y + warp[0], x + warp[1]
    rows = np.arange(-ALVEOLUS, canvas.side + ALVEOLUS, ALVEOLUS * 0.87)
    columns = np.arange(-60, canvas.side + 60, ALVEOLUS)
    lattice = [(r, c + (i % 2) * ALVEOLUS / 2) for i, r in enumerate(rows) for c in columns]
    cells = np.array(lattice) + rng.normal(0, 0.25 * ALVEOLUS, (len(lattice), 2))
    spots = scatter(canvas, np.where(depth > 26, 1.0, 0.0), n := max(1, round(canvas.side / 230)), np.full(n, 90.0))
    vessels = np.column_stack([spots, rng.uniform(13, 20, len(spots))])
    cells = cells[np.all(np.hypot(*(cells[:, None] - vessels[None, :, :2]).T) > vessels[:, 2, None] + 14, axis=0)]
    tree = cKDTree(cells)

    # Every third alveolus opens into its neighbour: sacs and ducts, with the tips of the septa left between them.
    group = np.arange(len(cells))
    _, nearest = tree.query(cells, k=3)
    for i in np.flatnonzero(rng.random(len(cells)) < 0.34):
        group[i] = group[nearest[i, rng.integers(1, 3)]]
    far, index = tree.query(np.stack([y.ravel(), x.ravel()], 1), k=4)
    first = cells[index[:, 0]]
    wall = np.full(len(far), 1e3)
    opening = np.clip(9 + 10 * waves(rng, canvas.side, len(y), 26), 0, 30).ravel()  # um by which a wall is withdrawn
    for k in (1, 2, 3):
        between = np.linalg.norm(cells[index[:, k]] - first, axis=1)
        edge = (far[:, k] ** 2 - far[:, 0] ** 2) / (2 * between)
        edge += np.where(group[index[:, k]] == group[index[:, 0]], opening, 0)
        wall = np.minimum(wall, edge)
    wall = wall.reshape(depth.shape) * np.exp(0.3 * waves(rng, canvas.side, len(y), 40))  # thick here, thin there
    wall = np.minimum(wall, 1.3 * np.abs(depth - 2.5))  # the pleura
    wall = ndimage.gaussian_filter(wall, 1.1)  # rounds the corners
    lumen = np.zeros(depth.shape, bool)
    for row, column, radius in vessels:
        off = np.hypot(straight_y - row, (straight_x - column) * 0.8) + 0.35 * (warp[0] + warp[1])
        wall = np.where(off < radius + 3.0, np.maximum(0, np.abs(off - radius - 1) - 3.5), wall)
        lumen |= off < radius - 3.5
    return wall.astype(np.float32), lumen, vessels


def _along(
    wall: np.ndarray, centres: np.ndarray, step: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (angle, aspect) of nuclei that lie along the septa: most are ovals, some round."""
    smooth = ndimage.gaussian_filter(wall, 1.5)
    dy, dx = np.gradient(smooth)
    at = tuple((centres / step).astype(int).clip(0, len(wall) - 1).T)
    angle = np.arctan2(dx[at], -dy[at]) + rng.normal(0, 0.3, len(centres))  # at a right angle to the gradient
    aspect = np.where(rng.random(len(centres)) < 0.7, rng.uniform(1.25, 1.9, len(centres)), 1.08)
    return angle.astype(np.float32), aspect.astype(np.float32)


def _red_cells(canvas: Canvas, wall: np.ndarray, inside: np.ndarray, room: float, vessels: np.ndarray) -> None:
    """Draw red cells: rows of them in the septa's capillaries, loose heaps in the vessels."""
    rng = canvas.rng
    n = round(float(inside.mean()) * canvas.side**2 / 1e6 * 520)
    spots = scatter(canvas, np.where(inside & (wall < room * 0.8), 1.0, 0.0), n, np.full(n, 4.5))
    heaps = []
    for row, column, radius in vessels:
        m = round((radius / 3.4) ** 2 * rng.uniform(0.25, 0.8))
        r, a = (radius - 5) * np.sqrt(rng.random(m)), rng.uniform(0, 2 * np.pi, m)
        heaps.append(np.stack([row + r * np.sin(a), column + r * np.cos(a) / 0.8], 1))
    _discs(
        canvas, np.concatenate([spots, *heaps]), rng.uniform(2.0, 2.9, len(spots) + sum(map(len, heaps))), "red", 1.15
    )


def _macrophages(canvas: Canvas, wall: np.ndarray, inside: np.ndarray, room: float, look: dict[str, float]) -> None:
    """Draw a few foamy cells in the air spaces."""
    n = max(2, round(float(inside.mean()) * canvas.side**2 / 1e6 * 18))
    spots = scatter(canvas, np.where(inside & (wall > room + 7) & (wall < 30), 1.0, 0.0), n, np.full(n, 30.0))
    size = canvas.rng.uniform(5.5, 7.5, len(spots))
    _discs(canvas, spots, size, "eosin", 0.8 * look["eosin_od"])
    radius = np.full(len(spots), 0.85 * look["nuclear_size"], np.float32)
    angle = canvas.rng.uniform(0, 3, len(spots)).astype(np.float32)
    stamp_nuclei(canvas, spots + 1.2, radius, radius * 0 + 1.3, angle, radius * 0 + 1.3, canvas.noise(1.5))


def _discs(canvas: Canvas, centres: np.ndarray, radius: np.ndarray, stain: str, amount: float) -> None:
    """Draw soft discs of one stain; they replace what lay beneath."""
    for (row, column), r in zip(centres.tolist(), radius.tolist(), strict=True):
        where, y, x = canvas.window(row, column, r + 1)
        off = np.hypot(y - row, x - column)
        cover = soft(r - off, 0.8).astype(np.float32)
        canvas.eosin[where] *= 1 - cover
        canvas.haematoxylin[where] *= 1 - cover
        dimple = 1 - 0.25 * np.exp(-((off / (0.5 * r)) ** 2)) if stain == "red" else 1
        canvas.red[where] *= 1 - cover
        getattr(canvas, stain)[where] += (amount * cover * dimple).astype(np.float32)
