"""What the report measures itself: a map of latents, both forms of conditioning, morphology per patient. Arrays in."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from common.run import generator_for, seed_for
from datasets.tiles import to_uint8
from figures.plots import correlation
from models.conditioning import ConditionedGenerator, published_infuse, standardise_latent

PERMUTATIONS = 1000
HALVES = 20
Morphology = Callable[[np.ndarray, float], dict[str, np.ndarray]]  # metrics.morphology.morphology


def latent_map_points(latents: np.ndarray, seed: int) -> np.ndarray:
    """Return a 2-d UMAP (n, 2) of latents (n, z), all fitted together; the first two principal axes below 10 rows."""
    if len(latents) < 10:
        centred = latents - latents.mean(0)
        return np.ascontiguousarray(np.linalg.svd(centred, full_matrices=False)[0][:, :2])
    import warnings

    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    k = min(15, len(latents) - 1)  # umap's default, itself included
    distances, neighbours = NearestNeighbors(n_neighbors=k).fit(latents).kneighbors(latents)
    known = (neighbours, distances.astype(np.float32), None)  # exact, and it spares umap's compiler half its time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that a seed means one thread: wanted here
        return UMAP(n_neighbors=k, random_state=seed % 2**31, precomputed_knn=known).fit_transform(latents)


@dataclass
class TwoPatients:
    """The same noise with two patients' expression, in our form and in the published one.

    tiles: form -> (2, n, H, W, 3) uint8; input_difference: form -> largest difference of generator inputs between the
    patients (inputs have unit spread); tile_difference: form -> (largest, mean) over tiles, of 255. A generator that
    takes the expression beside the noise has tiles in our form alone: the published sum has no place in it.
    """

    tiles: dict[str, np.ndarray]
    input_difference: dict[str, float]
    tile_difference: dict[str, tuple[int, float]]


@torch.no_grad()
def two_patients(
    generator: ConditionedGenerator, mu: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, n: int, seed: int
) -> TwoPatients:
    """Give the same `n` noise vectors to two patients with encoder means `mu` (2, z) and look what differs.

    `mean`, `std` (z,): the training donors' statistics that ours standardises with. The published inputs are computed
    in double precision, so that a difference of rounding is not taken for a signal.
    """
    generator.eval()
    noise = torch.cat([generator.draw(1, generator_for(seed, "tile", k)) for k in range(n)])
    device, dims = next(generator.parameters()).device, generator.encoding_dims
    mu, mean, std = mu.cpu(), mean.cpu(), std.cpu()
    both = [c.expand(n, -1) for c in standardise_latent(mu, mean, std)]
    inputs = {"ours": [generator.enter(noise[:, :dims].to(device), c.to(device)).double().cpu() for c in both]}
    added = torch.randn(n, mu.shape[1], generator=generator_for(seed, "published")).double()  # as long as the latent
    added = noise[:, :dims].double() if generator.rule.how == "add" else added
    inputs["published"] = [published_infuse(added, m) for m in mu.double()]
    found = TwoPatients({}, {}, {})
    for form, (a, b) in inputs.items():
        found.input_difference[form] = float((a - b).abs().max())
        if form == "published" and generator.rule.how != "add":
            continue
        pixels = noise[:, dims:].to(device)
        tiles = np.stack([to_uint8(generator.network(x.float().to(device), pixels)) for x in (a, b)])
        difference = np.abs(tiles[0].astype(int) - tiles[1].astype(int))
        found.tiles[form] = tiles
        found.tile_difference[form] = int(difference.max()), float(difference.mean())
    return found


def patient_means(tiles: list[np.ndarray], mpp: float, morphology: Morphology) -> dict[str, np.ndarray]:
    """Return property -> (patients,) mean over each patient's tiles, uint8 (n_i, H, W, 3); nan tiles are left out."""
    each = [morphology(t, mpp) for t in tiles]
    return {name: np.array([_mean(values[name]) for values in each]) for name in each[0]}


@dataclass
class Match:
    """How generated tiles follow real ones over patients: r, n; p and the middle 95 % of r with patients shuffled."""

    r: float
    n: int
    p: float
    shuffled: tuple[float, float, float]  # 2.5 %, mean, 97.5 %


def match(real: np.ndarray, generated: np.ndarray, seed: int) -> Match:
    """Correlate `generated` (patients,) with `real`, and again with the generated ones of other patients, 1,000 times.

    p: the share of shuffles, the true order counted among them, with an r at least as high (one-sided).
    """
    fine = np.isfinite(real) & np.isfinite(generated)
    real, generated = real[fine], generated[fine]
    r = correlation(real, generated)
    if not np.isfinite(r):
        return Match(r, len(real), float("nan"), (float("nan"),) * 3)
    random = np.random.default_rng(seed_for(seed, "shuffled patients"))
    others = np.array([correlation(real, random.permutation(generated)) for _ in range(PERMUTATIONS)])
    low, high = np.quantile(others, [0.025, 0.975])
    p = (1 + (others >= r).sum()) / (1 + PERMUTATIONS)
    return Match(r, len(real), float(p), (float(low), float(others.mean()), float(high)))


def real_means(
    tiles: list[np.ndarray], mpp: float, morphology: Morphology, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return patient_means of real tiles, and property -> r between the means of two halves of each patient's tiles.

    The second is the ceiling: about what a perfect match of generated tiles could reach; the mean over HALVES random
    halvings (tiles lie in the order of the slide, so every other one is no fair half). nan below two tiles each.
    """
    each = [morphology(t, mpp) for t in tiles]
    means = {name: np.array([_mean(values[name]) for values in each]) for name in each[0]}
    random = np.random.default_rng(seed_for(seed, "halves"))
    found: dict[str, list[float]] = {name: [] for name in means}
    for _ in range(HALVES):
        orders = [random.permutation(len(t)) for t in tiles]
        for name in means:
            pairs = zip(each, orders, strict=True)
            halves = np.array([[_mean(v[name][o[::2]]), _mean(v[name][o[1::2]])] for v, o in pairs])
            found[name].append(correlation(*halves[np.isfinite(halves).all(1)].T))
    return means, {name: float(np.mean(rs)) for name, rs in found.items()}


def furthest_apart(mu: torch.Tensor) -> list[int]:
    """Return the two rows of mu (n, z) that lie furthest apart."""
    far = int(torch.cdist(mu.double(), mu.double()).argmax())
    return sorted(divmod(far, len(mu)))


def _mean(values: np.ndarray) -> float:
    fine = np.asarray(values)[np.isfinite(values)]
    return float(fine.mean()) if len(fine) else float("nan")
