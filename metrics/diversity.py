"""How much tiles vary between patients and within one, and whether they are copies of training tiles."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.run import seed_for
from metrics.frechet import feature_matrix

ENTRIES = 1 << 21  # of a distance matrix held at a time: 16 MiB
SUBSAMPLES = 20


def variance_explained(features: Sequence[Any]) -> float:
    """Return omega squared: the share of the features' total variance that lies between patients, P tables (n_p, d).

    Sums of squares are added over dimensions. With N tiles, E[SS_between] = sum n_p |a_p|^2 + (P - 1) v, where a_p is
    patient p's true deviation from the mean and v the variance within, estimated by MS_within = SS_within / (N - P).
    The between part is therefore (SS_between - (P - 1) MS_within) / N, the total that plus MS_within, their ratio

        omega^2 = (SS_between - (P - 1) MS_within) / (SS_total + MS_within)        (Hays 1963)

    1 where tiles vary by patient only; about 0, either side of it, where patients do not differ; 0 where nothing
    varies. InputError for fewer than 2 patients or no patient with 2 tiles.
    """
    tables = [np.asarray(x, dtype=np.float64) for x in features]
    shapes = {x.shape[1:] for x in tables}
    if len(tables) < 2 or len(shapes) != 1 or any(x.ndim != 2 or not len(x) for x in tables):
        raise InputError("variance between patients: expected at least 2 patients, tables (n, d) of one d, none empty")
    n, patients = sum(map(len, tables)), len(tables)
    if n == patients:
        raise InputError("variance between patients: every patient has one tile; at least one needs 2")
    mean = sum(x.sum(0) for x in tables) / n
    between = sum(len(x) * np.square(x.mean(0) - mean).sum() for x in tables)
    within = sum(np.square(x - x.mean(0)).sum() for x in tables)
    if not np.isfinite(between + within):
        raise InputError("variance between patients: a feature is NaN or infinite; check the extractor")
    ms_within = within / (n - patients)
    total = between + within + ms_within
    return float((between - (patients - 1) * ms_within) / total) if total > 0 else 0.0


def spread_ratio(generated: Sequence[Any], real: Sequence[Any]) -> dict[str, Any]:
    """Return the spread of features within a patient, generated (n_p, d) over real (m_p, d), n_p and m_p >= 2.

    Spread = root of the variance (n - 1) averaged over dimensions. median, lowest and highest over patients; ratios
    (P,), None for a patient whose real tiles do not vary, who is left out; n, the patients used. 1 is ideal.
    """
    if len(generated) != len(real):
        raise InputError(f"spread: {len(generated)} patients generated, {len(real)} real; expected the same ones")
    ratios = []
    for p, (a, b) in enumerate(zip(generated, real, strict=True)):
        a, b = (_spread(feature_matrix(x, f"patient {p}'s {kind}")) for x, kind in ((a, "generated"), (b, "real")))
        ratios.append(a / b if b > 0 else None)
    used = [r for r in ratios if r is not None]
    return {
        "median": float(np.median(used)) if used else None,
        "lowest": min(used, default=None),
        "highest": max(used, default=None),
        "n": len(used),
        "ratios": ratios,
    }


def memorisation(
    generated: Any, train: Any, held_out: Any, seed: int = 99, subsamples: int = SUBSAMPLES
) -> dict[str, float | int]:
    """Return the share of generated tiles (n, d) nearer to a training (m, d) than to a held-out tile (k, d).

    Euclidean; ties count half. Both sides are random subsamples of min(m, k) tiles, `subsamples` times: mean, sd (over
    subsamples, 0 where m = k), size. 0.5 is ideal, 1 says copies; tiles made for held-out patients may well lie below.
    With m above k a share of k / m of the copies at most can be seen: read nearest_pairs as well.
    """
    x = feature_matrix(generated, "generated")
    sides = [feature_matrix(train, "training"), feature_matrix(held_out, "held-out")]
    size = min(map(len, sides))
    rng = np.random.default_rng(seed_for(seed, "memorisation"))
    draws = [[_subsample(rng, len(s), size) for s in sides] for _ in range(subsamples)]
    shares = np.zeros(subsamples)
    for rows in x.split(max(1, ENTRIES // sum(map(len, sides)))):
        near, far = (_squares(rows, s) for s in sides)
        for k, (a, b) in enumerate(draws):
            least, other = near[:, a].amin(1), far[:, b].amin(1)
            shares[k] += float((least < other).sum() + 0.5 * (least == other).sum())
    shares /= len(x)
    sd = float(shares.std(ddof=1)) if subsamples > 1 else 0.0
    return {"mean": float(shares.mean()), "sd": sd, "size": size, "subsamples": subsamples}


def nearest_pairs(generated: Any, train: Any, count: int = 10) -> list[tuple[int, int, float]]:
    """Return the `count` nearest (generated row, training row, Euclidean distance), each training tile at most once.

    Nearest first. generated: (n, d), train: (m, d); fewer pairs where m < count.
    """
    x, y = feature_matrix(generated, "generated"), feature_matrix(train, "training")
    found = []
    for start in range(0, len(y), step := max(1, ENTRIES // len(x))):
        least = _squares(y[start : start + step], x).min(1)
        found += zip(least.values.tolist(), least.indices.tolist(), range(start, len(y)), strict=False)
    pairs = [(i, j, float((x[i] - y[j]).norm())) for _, i, j in sorted(found)[:count]]
    return sorted(pairs, key=lambda pair: pair[2])


def _subsample(rng: np.random.Generator, n: int, size: int) -> slice | torch.Tensor:
    """Random `size` of n rows; all of them as they are where that is all."""
    return slice(None) if size == n else torch.from_numpy(rng.permutation(n)[:size])


def _spread(x: torch.Tensor) -> float:
    return float(x.var(0).mean().sqrt())


def _squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances (n, m) of rows of x (n, d) and y (m, d), float64."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
