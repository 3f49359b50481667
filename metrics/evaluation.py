"""The numbers of a conditional generator on held-out patients, part by part: features in, blocks of numbers out.

Blocks are those of metrics.comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from common.run import seed_for
from metrics.agreement import agreement, correlations, dose_response
from metrics.comparison import Block, Comparison, Measured, block
from metrics.conditioning import (
    diagonal_rows,
    feature_distances,
    relative,
    retrieval_chance,
    retrieval_rows,
    summary_of,
)
from metrics.diversity import memorisation, spread_ratio, variance_explained
from metrics.kernel import kid_matrix
from metrics.pairing import null_of
from metrics.prediction import round_trip

KID_HALVINGS = 3
LEAST_CEILING = 0.2  # r of real halves under which nothing is said of a share of it; ours
LABELLINGS = 199  # at most: each takes a pass over all features


# ---- 1. Does the expression reach the tile? ----


def liveness(
    pixels: np.ndarray, features: np.ndarray, generated: Sequence[Measured], real: Measured, count: int, seed: int
) -> dict[str, Any]:
    """Return what changes in a tile when only the patient does.

    pixels: (A, K, H, W, 3) uint8, features: (A, K, d): K noises, the same for each of A patients. pixel_difference:
    mean |difference| between two patients at the same noise, in grey levels (sd over noises); feature_difference: mean
    Euclidean distance between patients at the same noise over that between noises of one patient;
    variance_explained: omega squared of the `generated` tiles by patient, its ceiling that of the real ones, its null
    with tiles dealt to patients at random, `count` or 199 times, for the first of the seeds.
    """
    a, k = pixels.shape[:2]
    pairs = [(i, j) for i in range(a) for j in range(i)]
    per_noise = np.zeros(k)
    for i, j in pairs:
        per_noise += np.abs(pixels[i].astype(np.int16) - pixels[j]).mean((1, 2, 3))
    per_noise /= len(pairs)
    between = np.mean([np.linalg.norm(features[i] - features[j], axis=1).mean() for i, j in pairs])
    noises = [(i, j) for i in range(k) for j in range(i)]
    within = np.mean([np.linalg.norm(features[:, i] - features[:, j], axis=1).mean() for i, j in noises])
    return {
        "pixel_difference": {
            "value": float(per_noise.mean()),
            "sd": float(per_noise.std(ddof=1)),
            "unit": "grey levels of 255",
            "chance": 0.0,
            "patients": a,
            "noises": k,
        },
        "feature_difference": {"value": float(between / within) if within > 0 else None, "patients": a, "noises": k},
        "variance_explained": explained_block(generated, real, count, seed),
    }


def explained_block(generated: Sequence[Measured], real: Measured, count: int, seed: int) -> Block:
    """Return the block of omega squared of features by patient; its null deals tiles to patients at random."""
    explained = [variance_explained(g.features) for g in generated]
    ceiling = variance_explained(real.features) if max(map(len, real.features)) > 1 else None
    null = _label_null(generated[0].features, min(count, LABELLINGS), seed)
    sizes = sum(map(len, generated[0].features))
    return block(explained, [null_of(explained[0], null)], 0.0, ceiling, sizes) | {"relative": None}


def _label_null(features: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Return omega squared (count,), as variance_explained, with tiles dealt to patients at random."""
    sizes = np.array([len(x) for x in features])
    x = np.concatenate(features).astype(np.float32)
    x -= x.mean(0)
    n, p, starts = len(x), len(sizes), np.append(0, sizes.cumsum()[:-1])
    total, rng = float(np.square(x, dtype=np.float64).sum()), np.random.default_rng(seed)
    found = np.empty(count)
    for i in range(count):
        sums = np.add.reduceat(x[rng.permutation(n)], starts, axis=0)
        between = float((np.square(sums, dtype=np.float64).sum(1) / sizes).sum())
        within = (total - between) / (n - p)
        found[i] = (between - (p - 1) * within) / (total + within) if total > 0 else 0.0
    return found


# ---- 2. and 3. Whose tiles are nearest? ----


def retrieval_blocks(c: Comparison, generated: Sequence[Measured], centre: bool) -> dict[str, Block]:
    """Return top1, top5, mrr and median_percentile: each patient's generated tiles look for his real ones."""
    real = c.real.means[c.chosen]
    matrices = [feature_distances(g.means, real, centre) for g in generated]
    ceilings = [feature_distances(a.means[c.chosen], b.means[c.chosen], centre) for a, b in c.halves]  # (Q, Q) each
    return matrix_blocks(matrices, c, retrieval_rows, retrieval_chance(len(c.chosen)), ceilings)


def distance_blocks(c: Comparison, generated: Sequence[Measured]) -> tuple[dict[str, Block], np.ndarray, str]:
    """Return rows and auc of the distances between p's generated and q's real tiles, their mean matrix (Q, Q), a name.

    Kernel distances of single tiles' features; where a patient has one real tile only, which has no spread, cosine
    distances of mean features instead, each side around its own mean.
    """
    ours, halves = [c.real.features[q] for q in c.chosen], c.halves[:KID_HALVINGS]
    sizes = [len(x) for m in (*generated, *(side for pair in halves for side in pair)) for x in m.features]
    if min([*sizes, *map(len, ours)]) >= 2:
        kind = "kernel distance"
        matrices = [kid_matrix(g.features, ours) for g in generated]
        sides = [[[side.features[q] for q in c.chosen] for side in pair] for pair in halves]
        ceilings = [kid_matrix(a, b) for a, b in sides]
    else:
        kind = "cosine distance of mean features (one real tile each: no kernel distance)"
        matrices = [feature_distances(g.means, c.real.means[c.chosen], True) for g in generated]
        ceilings = [feature_distances(a.means[c.chosen], b.means[c.chosen], True) for a, b in c.halves]
    chance = {"rows": 1 / len(c.chosen), "auc": 0.5}
    blocks = matrix_blocks(matrices, c, diagonal_rows, chance, ceilings)
    return blocks, np.mean(matrices, 0)[c.chosen], kind


def matrix_blocks(
    matrices: Sequence[np.ndarray],
    c: Comparison,
    rows_of: Callable[[np.ndarray], dict[str, np.ndarray]],
    chance: Mapping[str, float],
    ceilings: Sequence[np.ndarray],
) -> dict[str, Block]:
    """Return a block of each number of `rows_of`; matrices: a (P, Q) per seed, ceilings: (Q, Q) of real halves."""
    rows = [rows_of(m[c.chosen]) for m in matrices]
    values = [summary_of(r) for r in rows]
    nulls = [[summary_of(rows_of(m[p])) for p in c.nulls[:, c.chosen]] for m in matrices]
    tops = [summary_of(rows_of(m)) for m in ceilings]
    found = {}
    for key in values[0]:
        tests = [null_of(v[key], [one[key] for one in null]) for v, null in zip(values, nulls, strict=True)]
        ceiling = float(np.mean([top[key] for top in tops])) if tops else None
        each = np.mean([r[key] for r in rows], 0)  # (Q,), over seeds
        interval = c.interval(len(each), lambda p, key=key, each=each: summary_of({key: each[p]})[key])
        found[key] = block([v[key] for v in values], tests, chance[key], ceiling, len(c.chosen), interval)
    return found


# ---- 4. and 5. Is what expression says still in the tile? ----


def round_trip_block(
    c: Comparison, truth: np.ndarray, from_generated: Sequence[np.ndarray], from_real: np.ndarray
) -> Block:
    """Return the block of r_generated (see metrics.prediction.round_trip), its ceiling r_real; tables (P, k)."""
    trips = [round_trip(truth, g, from_real, c.nulls) for g in from_generated]
    first, interval = trips[0], None
    if first["kept"]:
        kept = np.array(first["per_component"]["kept"])
        t, read = truth[:, kept], [g[:, kept] for g in from_generated]
        interval = c.interval(
            len(t), lambda p: float(np.mean([np.nan_to_num(correlations(t[p], g[p])).mean() for g in read]))
        )
    found = block([t["r_generated"] for t in trips], trips, 0.0, first["r_real"], len(truth), interval)
    components = [t["per_component"]["generated"] for t in trips]
    return found | {
        "components": first["components"],
        "kept": first["kept"],
        "r_generated_all": float(np.mean([t["r_generated_all"] for t in trips])),
        "r_real_all": first["r_real_all"],
        "per_component": first["per_component"] | {"generated": np.mean(components, 0).tolist()},
    }


def morphology_blocks(
    c: Comparison, generated: Sequence[Measured], from_expression: Mapping[str, np.ndarray] | None = None
) -> dict[str, Block]:
    """Return for each measure how generated tiles follow real ones: the block of pearson, and what else there is.

    from_expression: measure -> (P,), a ridge's predictions from expression alone; `ridge` is their r with real tiles.
    ceiling is r of two halves of the real tiles, attainable what r with all of them a faultless reading of the truth
    could then have, sqrt(2 r / (1 + r)) (Spearman-Brown); `relative` is held against that. Both None where the ceiling
    is in the noise, and without `from_expression`: what a ridge reads off half a tile's view is no half of a measure.
    """
    found = {}
    for name in c.real.morphology:
        real = c.real.mean_of(name)
        each = [agreement(real, g.mean_of(name), c.nulls) for g in generated]
        ceiling = np.mean([_r(a.mean_of(name), b.mean_of(name)) for a, b in c.halves]) if c.halves else None
        means = [g.mean_of(name) for g in generated]
        interval = c.interval(len(real), lambda p, m=means, real=real: float(np.mean([_r(x[p], real[p]) for x in m])))
        own = block([e["pearson"] for e in each], each, 0.0, ceiling, each[0]["n"], interval)
        alike = from_expression is not None and ceiling is not None and ceiling > LEAST_CEILING
        top = float(np.sqrt(2 * ceiling / (1 + ceiling))) if alike else None
        own |= {"attainable": top, "relative": relative(own["value"], 0.0, top)}
        ridge = _r(from_expression[name], real) if from_expression else np.nan
        found[name] = {
            "pearson": own.pop("value"),
            "spearman": _mean_of([e["spearman"] for e in each]),
            "shuffled_pearson": _mean_of([e["shuffled_pearson"] for e in each]),
            "p_value": own.pop("p_value"),
            "wasserstein": _mean_of([e["wasserstein"] for e in each]),
            "ridge": float(ridge) if np.isfinite(ridge) else None,
            **own,
        }
    return found


# ---- 6. Along a shift ----


def dose_block(alphas: np.ndarray, values: np.ndarray, count: int, seed: int) -> dict[str, Any]:
    """Return dose_response of `values` (patients, steps), and a null: steps shuffled within each patient.

    spearman_repeats: the mean of the patients' own Spearman, over those whose row is complete and not constant
    (`patients_used`); p_value: share of shuffles of the same rows with as high an |mean| (two-sided). Both None where
    no row, or fewer than 3 steps, are left. It says that a measure responds along these steps, not that it would
    respond less along others.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    rows = values[np.isfinite(values).all(1) & (values.max(1) > values.min(1))]
    ranks, steps = rankdata(rows, axis=1), rankdata(alphas)
    rng = np.random.default_rng(seed)
    usable = len(rows) > 0 and len(steps) > 2 and np.ptp(steps) > 0
    observed = _mean_r(ranks, steps) if usable else None
    null = [abs(_mean_r(rng.permuted(ranks, axis=1), steps)) for _ in range(count)] if usable else []
    tested = null_of(None if observed is None else abs(observed), null)
    return dose_response(alphas, values) | {
        "spearman_repeats": observed,
        "patients_used": len(rows),
        "null_q99": tested["null_q99"],
        "p_value": tested["p_value"],
    }


# ---- 7. Diversity and memorisation ----


def diversity_block(c: Comparison, generated: Sequence[Measured]) -> Block | None:
    """Return the spread within a patient, generated over real (1 is ideal); None where patients have one real tile.

    `chance`, `p_value` and `null_q99` are left open: a re-pairing has no say in a spread. ceiling: real halves.
    """
    if min(map(len, c.real.features)) < 2 or min(len(x) for g in generated for x in g.features) < 2:
        return None
    ratios = [spread_ratio(g.features, c.real.features) for g in generated]
    large = [(a, b) for a, b in c.halves if min(len(x) for m in (a, b) for x in m.features) > 1]
    halves = [spread_ratio(a.features, b.features)["median"] for a, b in large]
    each = np.array([r["ratios"] for r in ratios], np.float64)  # (seeds, patients)
    each = each[:, np.isfinite(each).all(0)]
    interval = c.interval(each.shape[1], lambda p: float(np.median(each[:, p], 1).mean())) if each.size else None
    found = block([r["median"] for r in ratios], (), None, _mean_of(halves), ratios[0]["n"], interval)
    return found | {
        "lowest": _mean_of([r["lowest"] for r in ratios]),
        "highest": _mean_of([r["highest"] for r in ratios]),
    }


def memorisation_block(
    c: Comparison, generated: Sequence[Measured], train: np.ndarray, seed: int, available: int
) -> Block:
    """Return the share of generated tiles nearer to a training (m, d) than to a held-out tile; 0.5 is ideal.

    `available` >= m: the training tiles that there are; copies of those not looked at go unseen.
    ceiling: the same of a random half of the real held-out tiles, the other half standing for them.
    """
    held_out = np.concatenate(c.real.features)
    shares = [memorisation(np.concatenate(g.features), train, held_out, seed) for g in generated]
    a, b = np.array_split(np.random.default_rng(seed_for(seed, "memorised halves")).permutation(len(held_out)), 2)
    ceiling = memorisation(held_out[a], train, held_out[b], seed)["mean"]
    found = block([s["mean"] for s in shares], (), 0.5, ceiling, sum(map(len, generated[0].features)))
    return found | {
        "relative": None,
        "tiles_each_side": shares[0]["size"],
        "training_tiles": len(train),
        "training_tiles_available": available,
    }


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None and np.isfinite(v)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _r(x: np.ndarray, y: np.ndarray) -> float:
    return float(correlations(x[:, None], y[:, None])[0])


def _mean_r(ranks: np.ndarray, steps: np.ndarray) -> float:
    """Mean over rows of ranks (r, s) of their correlation with steps (s,)."""
    steps = steps - steps.mean()
    ranks = ranks - ranks.mean(1, keepdims=True)
    return float((ranks @ steps / (np.linalg.norm(ranks, axis=1) * np.linalg.norm(steps))).mean())
