"""Distances between sources over their draws: FID, KID, precision and recall, and a real source's own floor."""

import statistics
from typing import Any

from metrics.frechet import frechet_distance, frechet_from_statistics, frechet_to_statistics
from metrics.kernel import kernel_distance
from metrics.manifold import precision_recall
from sources.draws import Draws
from sources.real import RealSource

MEASURES = ("fid", "kid", "precision", "recall")
NEIGHBOURS = 3  # k of precision and recall; Kynkäänniemi et al. 2019


def compare(left: Draws, right: Draws) -> dict[str, Any]:
    """Return every measure between two sources over the draws: mean, sd, least and greatest value, and the draws.

    Precision and recall take as reference the side that is real; the right one where both or none are.
    """
    real = [isinstance(side.source, RealSource) for side in (left, right)]
    reference = left if real == [True, False] else right
    values: list[dict[str, float | None]] = []
    for i in range(left.iterations):
        x, y = left.features(i), right.features(i)
        if x is None or y is None:  # statistics without features: only the Fréchet distance is known
            values.append({**dict.fromkeys(MEASURES), "fid": _frechet(left, right, x, y)})
            continue
        of_reference, of_other = (x, y) if reference is left else (y, x)
        enough = min(len(x), len(y)) > NEIGHBOURS
        precision, recall = precision_recall(of_reference, of_other, NEIGHBOURS) if enough else (None, None)
        kid = kernel_distance(x, y, seed=left.seed)
        values.append({"fid": frechet_distance(x, y), "kid": kid, "precision": precision, "recall": recall})
    about = {"a": left.name, "b": right.name, "n_a": left.n, "n_b": right.n, "reference": reference.name}
    return {**about, **summaries(values), "draws": values}


def split_half(draws: Draws) -> dict[str, Any]:
    """Return the distance between disjoint halves of a real source, over the draws: n of each half stands beside it."""
    halves = [draws.halves(i) for i in range(draws.iterations)]
    values = [{"fid": frechet_distance(x, y), "kid": kernel_distance(x, y, seed=draws.seed)} for x, y in halves]
    return {"source": draws.name, "n": len(halves[0][0]), **summaries(values), "draws": values}


def summaries(values: list[dict[str, float | None]]) -> dict[str, Any]:
    """Return mean, sd (denominator n - 1; 0 for one draw), low and high of each measure; None where it is unknown."""
    result: dict[str, Any] = {}
    for measure in values[0]:
        v = [float(draw[measure]) for draw in values if draw[measure] is not None]
        sd = statistics.stdev(v) if len(v) > 1 else 0.0
        result[measure] = {"mean": statistics.fmean(v), "sd": sd, "low": min(v), "high": max(v)} if v else None
    return result


def matrix_of(names: list[str], pairs: list[dict], floors: list[dict], measure: str) -> list[list[float | None]]:
    """Return the symmetric table of means, rows and columns in the order of `names`; the diagonal holds the floors."""
    known = {(p["a"], p["b"]): p[measure] for p in pairs} | {(f["source"], f["source"]): f[measure] for f in floors}
    cells = [[known.get((a, b)) or known.get((b, a)) for b in names] for a in names]
    return [[cell and cell["mean"] for cell in row] for row in cells]


def _frechet(left: Draws, right: Draws, x: Any, y: Any) -> float:
    if x is None and y is None:
        return frechet_from_statistics(left.source.mu, left.source.sigma, right.source.mu, right.source.sigma)
    features, known = (y, left.source) if x is None else (x, right.source)
    return frechet_to_statistics(features, known.mu, known.sigma)
