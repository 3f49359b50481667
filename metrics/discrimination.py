"""How well observers tell two kinds of things apart: proportions with intervals, d', ROC area, opinions compared.

A signal is what is to be found (in the quiz a synthetic tile), a hit a signal called one, a false alarm noise called
a signal. Intervals are of 95 %; a bootstrap's are percentiles.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit  # quantiles of the normal and of t; scipy.stats takes a second to import

LEVEL = 0.95
RESAMPLES = 2000
FEW = 10  # observers below which a bootstrap's percentiles are too narrow
Z = float(ndtri(1 - (1 - LEVEL) / 2))  # 1.96


def wilson(right: float, n: float) -> tuple[float, float]:
    """Return the score interval of `right` of `n` (Wilson 1927, J Am Stat Assoc 22:209); (0, 1) for n = 0."""
    if n <= 0:
        return 0.0, 1.0
    p = right / n
    middle = p + Z**2 / (2 * n)
    half = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = (middle - half) / (1 + Z**2 / n), (middle + half) / (1 + Z**2 / n)
    return float(min(max(low, 0.0), p)), float(max(min(high, 1.0), p))  # rounding moves the ends at 0 and 1


def rates(
    hits: np.ndarray | float, signals: np.ndarray | float, false_alarms: np.ndarray | float, noises: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Return hit and false-alarm rate under the log-linear correction: (x + 0.5) / (n + 1), always, so never 0 or 1.

    Counts of one shape, of numbers or arrays, which the rates have too. Hautus 1995, Behav Res Methods 27:46; less
    biased than correcting only rates of 0 and 1.
    """
    return (np.asarray(hits) + 0.5) / (np.asarray(signals) + 1), (np.asarray(false_alarms) + 0.5) / (
        np.asarray(noises) + 1
    )


def d_prime(
    hits: np.ndarray | float, signals: np.ndarray | float, false_alarms: np.ndarray | float, noises: np.ndarray | float
) -> np.ndarray:
    """Return z(hit rate) - z(false-alarm rate) of counts as `rates` takes them; 0 is chance (Green and Swets 1966)."""
    hit, false_alarm = rates(hits, signals, false_alarms, noises)
    return ndtri(hit) - ndtri(false_alarm)


def criterion(
    hits: np.ndarray | float, signals: np.ndarray | float, false_alarms: np.ndarray | float, noises: np.ndarray | float
) -> np.ndarray:
    """Return c = -(z(hit rate) + z(false-alarm rate)) / 2 of counts as `rates` takes them.

    Below 0: quick to call a signal (Macmillan 1993).
    """
    hit, false_alarm = rates(hits, signals, false_alarms, noises)
    return -(ndtri(hit) + ndtri(false_alarm)) / 2


def roc_area(signals: np.ndarray, noises: np.ndarray) -> np.ndarray:
    """Return P(a signal is rated higher than noise), ties counted half (Bamber 1975, J Math Psychol 12:387).

    `signals` and `noises`: how many got each rating, from the lowest to the highest, (..., ratings). NaN without any.
    """
    signals, noises = np.asarray(signals, float), np.asarray(noises, float)
    below = np.cumsum(noises, -1) - noises
    pairs = signals.sum(-1) * noises.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (signals * (below + noises / 2)).sum(-1) / pairs


def drawn_counts(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of n units is in each bootstrap sample, (resamples, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), resamples)


def percentiles(values: np.ndarray) -> tuple[float, float] | None:
    """Return the middle 95 % of bootstrap values (resamples,); None where fewer than half could be computed."""
    fine = values[np.isfinite(values)]
    if len(fine) <= len(values) // 2:
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(fine, [tail, 1 - tail])
    return float(low), float(high)


def compared_ratings(
    ratings: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    scale: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[Mapping[str, dict], list[dict]]:
    """Return each group's mean rating, and the differences of all pairs of groups, with intervals.

    `ratings` (visitors, tiles), NaN where not given; `groups` (tiles,) names. Visitors and tiles are resampled, each
    by themselves, so that the intervals allow for other visitors and for other tiles (Owen 2007, Ann Appl Stat 1:386).
    Groups without a rating are left out; of one visitor or one tile, which cannot say how others differ, there is no
    interval; nor where all resamples agree.

    Percentiles would be too narrow where visitors or tiles are few: resamples of n spread as n - 1 of n, and have no
    tails (Hesterberg 2015, Am Stat 69:371). So an interval is value +- t sqrt(v + w): v and w the variances of
    resamples of visitors alone and of tiles alone, times n / (n - 1), n those of the smaller group; degrees of freedom
    as of a sum of two variances (Satterthwaite 1946, Biometrics 2:110), which "method" says. `scale`: the least
    and the most that a rating may be; no interval goes beyond what is possible.
    """
    given = np.isfinite(ratings)
    values = np.where(given, ratings, 0.0)
    names = [str(g) for g in np.unique(groups) if given[:, groups == g].any()]
    visitors = drawn_counts(len(ratings), resamples, rng)
    tiles = drawn_counts(ratings.shape[1], resamples, rng)
    ways = {"visitors": (visitors, 1), "tiles": (np.ones((1, len(ratings))), tiles)}
    means, boots, counts = {}, {}, {}
    for name in names:
        own = groups == name
        n = int(given[:, own].sum())
        by = {"visitors": int(given[:, own].any(1).sum()), "tiles": int(given[:, own].any(0).sum())}
        counts[name], boots[name] = tuple(by.values()), {}
        for way, (of_visitors, of_tiles) in ways.items():
            total, weight = (
                (of_visitors @ x[:, own] * np.broadcast_to(of_tiles, tiles.shape)[:, own]).sum(1)
                for x in (values, given)
            )
            with np.errstate(invalid="ignore"):
                boots[name][way] = total / weight  # (resamples,)
        mean = float(values[:, own].sum() / n)
        means[name] = {"mean": mean, **_interval(mean, boots[name], counts[name], scale), "n": n} | by
    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            difference = means[a]["mean"] - means[b]["mean"]
            drawn = {way: boots[a][way] - boots[b][way] for way in ways}
            fewest = tuple(map(min, zip(counts[a], counts[b], strict=True)))
            most = scale[1] - scale[0]
            about = _interval(difference, drawn, fewest, (-most, most))
            pairs.append({"a": a, "b": b, "difference": difference, **about})
    return means, pairs


def _interval(
    value: float, boots: Mapping[str, np.ndarray], n: tuple[int, int], limits: tuple[float, float]
) -> dict[str, Any]:
    """Return the interval of a value, and how it was made, from resamples (resamples,) of visitors and of tiles.

    `n`: visitors and tiles; `limits`: what the value may be.
    """
    if min(n) < 2 or all(np.isnan(drawn).all() for drawn in boots.values()):
        return {"interval": None, "method": "none"}
    parts = [float(np.nanvar(boots[way])) * m / (m - 1) for way, m in zip(("visitors", "tiles"), n, strict=True)]
    if sum(parts) == 0:
        return {"interval": None, "method": "none"}
    freedom = sum(parts) ** 2 / sum(part**2 / (m - 1) for part, m in zip(parts, n, strict=True))
    away = float(stdtrit(freedom, (1 + LEVEL) / 2)) * sum(parts) ** 0.5
    interval = max(value - away, limits[0]), min(value + away, limits[1])
    return {"interval": interval, "method": f"t, {freedom:.1f} degrees of freedom"}
