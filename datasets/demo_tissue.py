"""The two tissues of the demo: lung (alveoli and septa) and brain (cortex), drawn with known factors."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from datasets.demo_paint import Canvas, enlarge, outline, parameters, scatter, soft, stamp_nuclei

ALVEOLUS = 46.0  # um between neighbouring alveoli; small, so that a 64 um tile shows septa and lumen


def draw_tissue(
    tissue: str, factors: dict[str, float], px: int, mpp: float, seed: int, blank_half: bool = False
) -> np.ndarray:
    """Return one slide's field: uint8 (px, px, 3), RGB.

    tissue: "lung" or "brain"; factors: the four of FACTORS, standard normal; mpp: micrometres per pixel;
    blank_half: the right half is empty glass. The same arguments give the same picture.
    """
    canvas = Canvas(px, mpp, np.random.default_rng(seed))
    DRAW[tissue](canvas, parameters(tissue, factors), outline(canvas, blank_half))
    return canvas.image()


def _lung(canvas: Canvas, look: dict[str, float], depth: np.ndarray) -> None:
    """Alveoli parted by thin septa with nuclei like beads, red cells, a few vessels, macrophages in the lumen."""
    rng = canvas.rng
    wall, lumen_only, vessels = _septa(canvas, depth)
    inside = depth > 0
    area_mm2 = float(inside.mean()) * canvas.side**2 / 1e6
    step = canvas.side / depth.shape[0]

    # Nuclei sit in the septa; where a septum is thinner than its nucleus, it bulges.
    room = np.quantile(wall[inside], max(0.12, 1 - look["white_space"]))
    count = max(1, round(look["nuclear_density"] * area_mm2 * rng.normal(1, 0.02)))
    radius = look["nuclear_size"] * np.exp(rng.normal(0, 0.10, count) - 0.01).astype(np.float32)
    weight = np.where(inside & ~lumen_only, np.clip((room + 1.0 - wall) / 2, 0, 1), 0)
    centres = scatter(canvas, weight, count, radius * 2.15)
    radius = radius[: len(centres)]
    angle, aspect = _along(wall, centres, step, rng)

    # The septa's thickness is set so that the white share of the tissue is the one asked for.
    mound = _mounds(depth.shape, centres, radius + 0.8, step)
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
    darkness = rng.normal(1.5, 0.13, len(centres)).clip(1.1, 2.0).astype(np.float32)
    stamp_nuclei(canvas, centres, radius, aspect, angle, darkness, canvas.noise(1.5))


def _septa(canvas: Canvas, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (um to the middle of the nearest septum, lumen of vessels, vessels (n, 3): y, x, radius)."""
    rng = canvas.rng
    y, x = np.broadcast_arrays(*canvas.grid(canvas.side / depth.shape[0]))
    warp = [3.5 * enlarge(rng.standard_normal((n := round(canvas.side / 22) + 3, n), np.float32), len(y)) for _ in "yx"]
    y, x = y + warp[0], x + warp[1]
    rows = np.arange(-ALVEOLUS, canvas.side + ALVEOLUS, ALVEOLUS * 0.87)
    lattice = [
        (r, c + (i % 2) * ALVEOLUS / 2) for i, r in enumerate(rows) for c in np.arange(-60, canvas.side + 60, ALVEOLUS)
    ]
    cells = np.array(lattice) + rng.normal(0, 0.2 * ALVEOLUS, (len(lattice), 2))
    vessels = np.column_stack([rng.uniform(0.2, 0.8, (2, 2)) * canvas.side, rng.uniform(13, 20, 2)])
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
    for k in (1, 2, 3):
        between = np.linalg.norm(cells[index[:, k]] - first, axis=1)
        edge = (far[:, k] ** 2 - far[:, 0] ** 2) / (2 * between)
        edge[group[index[:, k]] == group[index[:, 0]]] += 26.0  # um: the wall is open but for what this leaves
        wall = np.minimum(wall, edge)
    wall = wall.reshape(depth.shape)
    wall = np.minimum(wall, np.abs(depth - 2.5))  # the pleura
    lumen = np.zeros(depth.shape, bool)
    for row, column, radius in vessels:
        off = np.hypot(y - row, (x - column) * 0.8)
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


def _mounds(shape: tuple[int, int], centres: np.ndarray, radius: np.ndarray, step: float) -> np.ndarray:
    """Return, per grid point, the um that it lies inside the nearest of the discs (negative outside)."""
    points = (np.indices(shape).reshape(2, -1).T + 0.5) * step
    far, index = cKDTree(centres).query(points, distance_upper_bound=12.0)
    index = np.minimum(index, len(centres) - 1)
    return np.where(np.isfinite(far), radius[index] - far, -12.0).reshape(shape).astype(np.float32)


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
        canvas, np.concatenate([spots, *heaps]), rng.uniform(2.0, 2.9, len(spots) + sum(map(len, heaps))), "red", 0.85
    )


def _macrophages(canvas: Canvas, wall: np.ndarray, inside: np.ndarray, room: float, look: dict[str, float]) -> None:
    """Draw a few foamy cells in the air spaces."""
    n = max(2, round(float(inside.mean()) * canvas.side**2 / 1e6 * 30))
    spots = scatter(canvas, np.where(inside & (wall > room + 7) & (wall < 30), 1.0, 0.0) + 1e-12, n, np.full(n, 30.0))
    size = canvas.rng.uniform(5.5, 7.5, len(spots))
    _discs(canvas, spots, size, "eosin", 0.8 * look["eosin_od"])
    radius = np.full(len(spots), 0.85 * look["nuclear_size"], np.float32)
    angle = canvas.rng.uniform(0, 3, len(spots)).astype(np.float32)
    stamp_nuclei(canvas, spots + 1.2, radius, radius * 0 + 1.3, angle, radius * 0 + 1.3, canvas.noise(1.5))


def _discs(canvas: Canvas, centres: np.ndarray, radius: np.ndarray, stain: str, amount: float) -> None:
    """Draw soft discs of one stain; they replace what lay beneath."""
    for (row, column), r in zip(centres.tolist(), radius.tolist(), strict=True):
        reach = int(r / canvas.mpp) + 2
        top, left = int(row / canvas.mpp) - reach, int(column / canvas.mpp) - reach
        rows = np.arange(max(top, 0), min(top + 2 * reach, canvas.px))
        columns = np.arange(max(left, 0), min(left + 2 * reach, canvas.px))
        if not len(rows) or not len(columns):
            continue
        off = np.hypot(((rows + 0.5) * canvas.mpp - row)[:, None], ((columns + 0.5) * canvas.mpp - column)[None, :])
        cover = soft(r - off, 0.8).astype(np.float32)
        where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        canvas.eosin[where] *= 1 - cover
        canvas.haematoxylin[where] *= 1 - cover
        dimple = 1 - 0.25 * np.exp(-((off / (0.5 * r)) ** 2)) if stain == "red" else 1
        getattr(canvas, stain)[where] += (amount * cover * dimple).astype(np.float32)


def _brain(canvas: Canvas, look: dict[str, float], depth: np.ndarray) -> None:
    """Cortex: fibrillary neuropil, neurons and glia with halos, capillaries in clear sleeves."""
    rng = canvas.rng
    inside = depth > 0
    step = canvas.side / depth.shape[0]
    area_mm2 = float(inside.mean()) * canvas.side**2 / 1e6
    y, _ = canvas.grid(step)

    # Cells: fewer near the pia (the top), as in the molecular layer; a quarter are neurons.
    count = max(1, round(look["nuclear_density"] * area_mm2 * rng.normal(1, 0.02)))
    neuron = np.zeros(count, bool)
    neuron[: round(0.24 * count)] = True
    kind = np.where(neuron, 1.38, 0.86)
    kind *= look["nuclear_size"] / np.sqrt((kind**2).mean())
    radius = (kind * np.exp(rng.normal(0, 0.08, count))).astype(np.float32)
    vessels = _vessels(canvas, inside)
    vessel = _tubes(canvas, vessels, depth.shape)
    weight = np.where((depth > 5) & (vessel < -5), 0.75 + 0.25 * np.clip(y / canvas.side * 3, 0, 1), 0)
    centres = scatter(canvas, weight, count, np.where(neuron, radius * 2 + 5.0, radius * 2 + 1.6))
    neuron, radius = neuron[: len(centres)], radius[: len(centres)]

    # White: vessels' lumens, then halos and vacuoles, widened together until the share asked for is reached.
    soma = np.maximum(_mounds(depth.shape, centres, radius + np.where(neuron, 2.6, 0.5), step), -12)
    rough = 1.1 * enlarge(rng.standard_normal((n := round(canvas.side / 9) + 3, n), np.float32), len(depth))
    holes = scatter(canvas, np.where(inside, 1.0, 0.0), m := round(area_mm2 * 900), np.full(m, 5.0))
    vacuole = _mounds(depth.shape, holes, rng.uniform(-2.5, -0.5, len(holes)).astype(np.float32), step)
    closeness = np.maximum(np.maximum(soma, vacuole), np.minimum(vessel + 2.0, 0)) + rough
    lumen = vessel > 1.6
    open_to_white = inside & (soma <= 0) & ~lumen & (vessel < 0)
    wanted = look["white_space"] * inside.sum() - (lumen & inside).sum()
    limit = np.quantile(closeness[open_to_white], 1 - np.clip(wanted / open_to_white.sum(), 0.002, 0.9))
    white = np.where(vessel > 0, vessel - 1.6, np.where(soma > 0, -soma - 1, closeness - limit))
    tissue = soft(enlarge(np.minimum(-white, depth), canvas.px) + 0.25 * canvas.noise(2.5), 1.0)

    # Neuropil: a felt of fine fibres, denser and paler in patches.
    felt = 0.5 - np.abs(canvas.noise(1.6)) * 0.75 + 0.16 * canvas.noise(4.5)
    canvas.eosin = tissue * look["eosin_od"] * np.clip(1 + 0.34 * felt + 0.10 * canvas.noise(26.0), 0.45, 1.8)
    canvas.haematoxylin = tissue * np.clip(0.13 + 0.04 * felt, 0, 1)
    _somata(canvas, centres[neuron], radius[neuron], look)
    darkness = np.where(neuron, rng.normal(1.15, 0.08, len(centres)), rng.normal(1.6, 0.12, len(centres)))
    aspect = np.where(neuron, 1.1, rng.choice([1.05, 1.15, 1.5], len(centres))).astype(np.float32)
    angle = rng.uniform(0, np.pi, len(centres)).astype(np.float32)
    chromatin = canvas.noise(1.5)
    stamp_nuclei(
        canvas, centres, radius, aspect, angle, darkness.astype(np.float32), chromatin, neuron.astype(np.float32)
    )


def _vessels(canvas: Canvas, inside: np.ndarray) -> np.ndarray:
    """Return capillaries and arterioles (n, 5): y, x, half length, angle, radius of the wall, in um."""
    n = max(2, round(float(inside.mean()) * canvas.side**2 / 1e6 * 42))
    spots = scatter(canvas, np.where(inside, 1.0, 0.0), n, np.full(n, 40.0))
    rng, n = canvas.rng, len(spots)
    length = np.where(rng.random(n) < 0.5, rng.uniform(0, 3, n), rng.uniform(8, 22, n))
    radius = np.where(np.arange(n) < 1 + n // 9, rng.uniform(7, 9, n), rng.uniform(3.6, 4.8, n))
    return np.column_stack([spots, length, rng.uniform(0, np.pi, n), radius])


def _tubes(canvas: Canvas, vessels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return, per grid point, the um that it lies inside the outer wall of the nearest vessel (negative outside)."""
    y, x = canvas.grid(canvas.side / shape[0])
    inside = np.full(shape, -40.0, np.float32)
    for row, column, half, angle, radius in vessels:
        dy, dx = y - row, x - column
        along = np.clip(dy * np.sin(angle) + dx * np.cos(angle), -half, half)
        off = np.hypot(dy - along * np.sin(angle), dx - along * np.cos(angle))
        inside = np.maximum(inside, radius - off)
    return inside


def _somata(canvas: Canvas, centres: np.ndarray, radius: np.ndarray, look: dict[str, float]) -> None:
    """Draw the neurons' bodies: pyramids pointing to the pia, amphophilic, with an apical dendrite."""
    for (row, column), r in zip(centres.tolist(), radius.tolist(), strict=True):
        tilt, size = canvas.rng.normal(0, 0.25), r + 2.6
        reach = int(3.2 * size / canvas.mpp)
        top, left = int(row / canvas.mpp) - reach, int(column / canvas.mpp) - reach
        rows = np.arange(max(top, 0), min(top + 2 * reach, canvas.px))
        columns = np.arange(max(left, 0), min(left + 2 * reach, canvas.px))
        dy = ((rows + 0.5) * canvas.mpp - row)[:, None]
        dx = ((columns + 0.5) * canvas.mpp - column)[None, :]
        up, across = -dy * np.cos(tilt) + dx * np.sin(tilt), dx * np.cos(tilt) + dy * np.sin(tilt)
        width = np.interp(up / size, [-1.15, -0.9, 0, 0.9, 1.5, 3.0], [0, 0.8, 1.05, 0.6, 0.2, 0.05]) * size
        cover = (soft(width - np.abs(across), 1.0) * (width > 0)).astype(np.float32)
        where = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        canvas.eosin[where] = canvas.eosin[where] * (1 - cover) + cover * look["eosin_od"] * 1.0
        canvas.haematoxylin[where] = canvas.haematoxylin[where] * (1 - cover) + cover * 0.34


DRAW = {"lung": _lung, "brain": _brain}
