"""Cortex of the brain for the demo: neuropil, neurons and glia with halos, vessels in clear sleeves."""

import numpy as np

from datasets.demo_paint import Canvas, discs_depth, enlarge, scatter, soft, stamp_nuclei, waves

NEURONS = 0.24  # share of the cells
SOMA = 2.6  # um of cell body around a neuron's nucleus


def draw_brain(canvas: Canvas, look: dict[str, float], depth: np.ndarray) -> None:
    """Draw cortex. look: see demo_paint.parameters; depth: um inside the tissue, on a coarse grid."""
    rng = canvas.rng
    inside = depth > 0
    step = canvas.side / depth.shape[0]
    area_mm2 = float(inside.mean()) * canvas.side**2 / 1e6

    vessels = _vessels(canvas, depth > 14)
    vessel = _tubes(canvas, vessels, depth.shape)
    centres, radius, angle, kind = _cells(canvas, look, depth, vessel, vessels, area_mm2)
    neuron, lining = kind == 0, kind == 2

    # White: the vessels' lumens, then halos and vacuoles, widened together until the share asked for is reached.
    around = radius + np.where(neuron, SOMA, 0.4) + rng.normal(0, 0.7, len(radius)).astype(np.float32)
    soma = discs_depth(depth.shape, centres[~lining], around[~lining], step)
    rough = 1.3 * waves(rng, canvas.side, len(depth), 8) + 0.7 * waves(rng, canvas.side, len(depth), 40)
    holes = scatter(canvas, np.where(inside, 1.0, 0.0), m := round(area_mm2 * 900), np.full(m, 5.0))
    vacuole = discs_depth(depth.shape, holes, rng.uniform(-2.5, -0.5, len(holes)).astype(np.float32), step)
    closeness = np.maximum(np.maximum(soma, vacuole), np.minimum(vessel + 1.0, 0)) + rough
    lumen = vessel > _wall(vessels).mean()
    free = inside & (soma <= 0) & (vessel < 0)
    wanted = look["white_space"] * inside.sum() - (lumen & inside).sum()
    limit = np.quantile(closeness[free], 1 - np.clip(wanted / free.sum(), 0.002, 0.9))
    solid = np.where(vessel > 0, vessel + 1, np.where(soma > 0, soma + 1, limit - closeness))
    tissue = soft(enlarge(np.minimum(solid, depth).astype(np.float32), canvas.px) + 0.25 * canvas.noise(2.5), 1.0)

    # Neuropil: a felt of fine fibres, denser and paler in patches.
    felt = np.exp(-((canvas.noise(3.4) / 0.45) ** 2)) + 0.6 * np.exp(-((canvas.noise(2.2) / 0.4) ** 2)) - 0.55
    patches = 0.10 * canvas.noise(26.0) + 0.07 * canvas.noise(90.0)
    canvas.eosin = tissue * look["eosin_od"] * np.clip(1 + 0.22 * felt + patches, 0.5, 1.8)
    canvas.haematoxylin = tissue * np.clip(0.13 + 0.03 * felt, 0, 1)
    _draw_vessels(canvas, vessels, look)
    _draw_somata(canvas, centres[neuron], radius[neuron], look)
    n = len(centres)
    darkness = np.where(neuron, rng.normal(1.30, 0.09, n), rng.normal(1.85, 0.13, n)).astype(np.float32)
    aspect = np.where(neuron, 1.12, np.where(lining, 2.2, rng.choice([1.05, 1.15, 1.5], n))).astype(np.float32)
    stamp_nuclei(canvas, centres, radius, aspect, angle, darkness, canvas.noise(1.5), neuron.astype(np.float32))


def _cells(
    canvas: Canvas, look: dict[str, float], depth: np.ndarray, vessel: np.ndarray, vessels: np.ndarray, area_mm2: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (centres (n, 2) um, radius (n,) um, angle, kind: 0 neuron, 1 glia, 2 endothelium).

    There are hardly any neurons near the pia, which is at the top.
    """
    rng = canvas.rng
    count = max(8, round(look["nuclear_density"] * area_mm2 * rng.normal(1, 0.02)))
    n_neurons, n_lining = round(NEURONS * count), min(2 * len(vessels), count // 6)
    kind = np.repeat([1.38, 0.86, 0.80], [n_neurons, count - n_neurons - n_lining, n_lining])
    kind *= look["nuclear_size"] / np.sqrt((kind**2).mean())
    radius = (kind * np.exp(rng.normal(0, 0.09, count))).astype(np.float32)
    y, _ = canvas.grid(canvas.side / depth.shape[0])
    clear = np.where((depth > 6) & (vessel < -5), 1.0, 0.0)
    room = clear * ((depth > 20) & (vessel < -9)) * np.clip((y / canvas.side - 0.13) * 12, 0.02, 1)
    gaps = radius * 2 + np.repeat([6.0, 1.8], [n_neurons, count - n_neurons])
    big = scatter(canvas, room, n_neurons, gaps[:n_neurons])
    taken = np.column_stack([big, gaps[: len(big)]])
    small = scatter(canvas, clear, count - n_neurons - n_lining, gaps[n_neurons : count - n_lining], taken)
    on_wall = _lining(vessels, rng)[:n_lining]
    parts = [(big, radius[:n_neurons]), (small, radius[n_neurons:]), (on_wall[:, :2], radius[count - n_lining :])]
    sizes = [len(p) for p, _ in parts]
    kinds = np.repeat([0, 1, 2], sizes)
    radius = np.concatenate([r[: len(p)] for p, r in parts])
    angle = rng.uniform(0, np.pi, len(kinds)).astype(np.float32)
    angle[kinds == 2] = on_wall[:, 2]
    return np.concatenate([p for p, _ in parts]).astype(np.float32), radius, angle, kinds


def _vessels(canvas: Canvas, room: np.ndarray) -> np.ndarray:
    """Return capillaries and a few arterioles (n, 6): y, x, half length, angle, outer radius, bend, in um."""
    n = max(2, round(float(room.mean()) * canvas.side**2 / 1e6 * 46))
    spots = scatter(canvas, np.where(room, 1.0, 0.0), n, np.full(n, 45.0))
    rng, n = canvas.rng, len(spots)
    length = np.where(rng.random(n) < 0.45, rng.uniform(0, 3, n), rng.uniform(8, 24, n))
    radius = np.where(np.arange(n) < 1 + n // 7, rng.uniform(7.5, 11, n), rng.uniform(4.0, 5.2, n))
    return np.column_stack([spots, length, rng.uniform(0, np.pi, n), radius, 0.35 * length * rng.uniform(-1, 1, n)])


def _wall(vessels: np.ndarray) -> np.ndarray:
    """Return the thickness in um of each vessel's wall."""
    return 1.3 + 0.16 * vessels[:, 4]


def _lining(vessels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return two places on the wall of each vessel, (2 n, 3): y and x in um, angle; for endothelial nuclei."""
    y, x, half, angle, radius, bend = np.repeat(vessels, 2, axis=0).T
    along = rng.uniform(-0.7, 0.7, len(y))  # of the half length
    off = np.tile([1, -1], len(vessels)) * (radius - 0.9) + bend * along**2
    u = along * half
    tilt = angle + np.arctan2(2 * bend * along, np.maximum(half, 1))
    return np.column_stack(
        [y + u * np.sin(angle) + off * np.cos(angle), x + u * np.cos(angle) - off * np.sin(angle), tilt]
    )


def _tubes(canvas: Canvas, vessels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return, per grid point, the um that it lies inside the outer wall of the nearest vessel (negative outside)."""
    inside = np.full(shape, -40.0, np.float32)
    y, x = canvas.grid(canvas.side / shape[0])
    for vessel in vessels:
        inside = np.maximum(inside, _inside(vessel, y, x))
    return inside


def _inside(vessel: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    row, column, half, angle, radius, bend = vessel
    dy, dx = y - row, x - column
    u, v = dy * np.sin(angle) + dx * np.cos(angle), dy * np.cos(angle) - dx * np.sin(angle)
    along = np.clip(u, -half, half)
    return radius - np.hypot(u - along, v - bend * (along / max(half, 1e-6)) ** 2)


def _draw_vessels(canvas: Canvas, vessels: np.ndarray, look: dict[str, float]) -> None:
    """Draw the walls and clear the lumens; red cells in some."""
    for vessel, wall in zip(vessels, _wall(vessels), strict=True):
        where, y, x = canvas.window(vessel[0], vessel[1], vessel[2] + vessel[4] + abs(vessel[5]) + 2)
        depth = _inside(vessel, y, x)
        cover, open_ = soft(depth, 0.8).astype(np.float32), soft(depth - wall, 0.8).astype(np.float32)
        canvas.eosin[where] = canvas.eosin[where] * (1 - cover) + cover * (1 - open_) * 1.25 * look["eosin_od"]
        canvas.haematoxylin[where] = canvas.haematoxylin[where] * (1 - cover) + cover * (1 - open_) * 0.16
        if canvas.rng.random() < 0.35:
            canvas.red[where] += soft(depth - wall - 0.8, 1.0).astype(np.float32) * np.float32(0.75)


def _draw_somata(canvas: Canvas, centres: np.ndarray, radius: np.ndarray, look: dict[str, float]) -> None:
    """Draw the neurons' bodies: pyramids that point to the pia, amphophilic, with an apical dendrite that fades."""
    heights = [-1.25, -1.1, -0.8, -0.3, 0.2, 0.8, 1.3, 2.0, 3.4]
    for (row, column), r in zip(centres.tolist(), radius.tolist(), strict=True):
        tilt, size = canvas.rng.normal(0, 0.35), (r + SOMA) * canvas.rng.uniform(0.92, 1.08)
        lean, slim = canvas.rng.normal(0, 0.12), canvas.rng.uniform(0.85, 1.05)
        where, y, x = canvas.window(row, column, 3.2 * size)
        dy, dx = y - row, x - column
        up, across = (-dy * np.cos(tilt) + dx * np.sin(tilt)) / size, (dx * np.cos(tilt) + dy * np.sin(tilt)) / size
        across = across + lean * up**2 * 0.3
        width = np.interp(up, heights, [-0.2, 0.45, 0.92, 1.06, 0.98, 0.62, 0.3, 0.13, 0.05]) * slim
        cover = soft((width - np.abs(across)) * size, 1.2) * np.clip((3.3 - up) / 2, 0, 1)
        cover = cover.astype(np.float32)
        canvas.eosin[where] = canvas.eosin[where] * (1 - cover) + cover * np.float32(look["eosin_od"] * 1.05)
        clumps = 0.40 + 0.10 * canvas.noise(1.5)[where]  # Nissl substance
        canvas.haematoxylin[where] = canvas.haematoxylin[where] * (1 - cover) + cover * clumps
