"""Do a measure's values on generated tiles follow those on real tiles, and does it follow a shift of expression?"""

from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr, wasserstein_distance

from common.errors import InputError
from metrics.pairing import null_of

ENTRIES = 1 << 21  # of a table of re-paired values held at a time: 16 MiB
FLAT = 1e-12  # a column whose sd is below this share of its size is constant


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each column of x (n, k) with that of y (n, k) -> (k,); shapes may be broadcast.

    Rows where either is NaN or infinite are left out, column by column. NaN where fewer than 3 rows are left or
    where a column is constant.
    """
    x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    used = np.isfinite(x) & np.isfinite(y)
    n = used.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = [np.max(np.abs(v), axis=0, where=used, initial=0) for v in (x, y)]
        x, y = (np.where(used, v - np.sum(v, axis=0, where=used) / n, 0.0) for v in (x, y))
        xx, yy, xy = (x * x).sum(0), (y * y).sum(0), (x * y).sum(0)
        r = np.clip(xy / np.sqrt(xx * yy), -1, 1)
    flat = [np.sqrt(v) <= FLAT * s * np.sqrt(np.maximum(n, 1)) for v, s in zip((xx, yy), size, strict=True)]
    return np.where((n < 3) | flat[0] | flat[1], np.nan, r)


def agreement(real: Any, generated: Any, pairings: np.ndarray) -> dict[str, float | int | None]:
    """Return how a measure of the tiles generated for P patients, (P,), follows that of their real tiles, (P,).

    pearson, spearman; wasserstein, the W1 distance between the two sets of values, in the measure's unit; n, the
    patients with both values; and, from `pairings` (count, P), shuffled_pearson (the mean of |r|), null_q99 and the
    one-sided p_value of pearson. NaN and infinity are left out pairwise. A number that is undefined (fewer than 3
    patients, or a constant) is None.
    """
    real, generated = (np.asarray(v, dtype=np.float64) for v in (real, generated))
    pairings = np.asarray(pairings)
    if real.ndim != 1 or real.shape != generated.shape or pairings.shape[1:] != real.shape:
        shapes = f"{real.shape}, {generated.shape} and {pairings.shape}"
        raise InputError(f"agreement: expected (P,), (P,) and (count, P), found {shapes}")
    used = np.isfinite(real) & np.isfinite(generated)
    x, y = real[used], generated[used]
    strips = np.array_split(pairings, -(-max(1, pairings.size) // ENTRIES))
    null = np.concatenate([correlations(real[:, None], generated[strip].T) for strip in strips])
    pearson = float(correlations(x[:, None], y[:, None])[0])
    ranks = [rankdata(v)[:, None] for v in (x, y)]
    tested = null_of(pearson, null)
    return {
        "pearson": tested["value"],
        "spearman": _or_none(correlations(*ranks)[0]) if tested["value"] is not None else None,
        "wasserstein": float(wasserstein_distance(x, y)) if len(x) else None,
        "n": len(x),
        "shuffled_pearson": tested["null_mean_abs"],
        "null_q99": tested["null_q99"],
        "p_value": tested["p_value"],
        "count": tested["count"],
    }


def dose_response(alphas: Any, values: Any) -> dict[str, float | int | None]:
    """Return how a measure follows steps `alphas` (s,) along a shift; values (s,), or (r, s) with r repeats a step.

    spearman: of the steps' means with the step; spearman_repeats: the mean over repeats of each one's own; sign: of
    spearman, -1, 0 or 1; change: last minus first step's mean, by alpha, in the measure's unit; change_sd: the same
    in units of the sd within a step (root mean variance over steps, n - 1). NaN is left out. None where undefined:
    fewer than 3 steps, a constant, no repeats.
    """
    alphas, values = np.asarray(alphas, dtype=np.float64), np.atleast_2d(np.asarray(values, dtype=np.float64))
    if alphas.ndim != 1 or values.ndim != 2 or values.shape[1] != len(alphas) or not len(alphas):
        raise InputError(f"dose-response: expected steps (s,) and values (r, s), found {alphas.shape}, {values.shape}")
    order = np.argsort(alphas, kind="stable")
    alphas, values = alphas[order], np.where(np.isfinite(values[:, order]), values[:, order], np.nan)
    n = np.isfinite(values).sum(0)  # repeats of each step
    means = np.divide(np.nansum(values, axis=0), n, out=np.full(len(n), np.nan), where=n > 0)
    spearman = _spearman(alphas, means)
    own = [r for row in values if (r := _spearman(alphas, row)) is not None]
    variances = np.nansum(np.square(values - means), axis=0)[n > 1] / (n[n > 1] - 1)
    sd = float(np.sqrt(variances.mean())) if len(variances) else 0.0
    change = _or_none(means[-1] - means[0])
    return {
        "spearman": spearman,
        "spearman_repeats": float(np.mean(own)) if own and len(values) > 1 else None,
        "sign": int(np.sign(spearman)) if spearman is not None else None,
        "change": change,
        "change_sd": change / sd if change is not None and sd > 0 else None,
        "steps": len(alphas),
        "repeats": len(values),
    }


def _spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rho of x and y (n,) over finite pairs; None for fewer than 3 or a constant."""
    used = np.isfinite(x) & np.isfinite(y)
    x, y = x[used], y[used]
    return float(spearmanr(x, y).statistic) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else None


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
