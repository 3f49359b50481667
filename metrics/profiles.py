"""Real against synthetic or moved profiles: calls of a group, distances, moments, real-or-synthetic AUC.

All profiles here are z-scores (rows, genes) float32, scaled by a beta-VAE's scaler. Arrays in, numbers out.
"""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
OWN_ROWS = 200  # training rows whose distance to the nearest other one is measured
MAX_ROWS = 1000  # rows of each kind in the real-or-synthetic classifier: minutes, not hours, with 19,198 genes


class GroupClassifier:
    """Logistic regression (L2, C = 1) from profiles to the name of their group, fitted on real training profiles."""

    def __init__(self, profiles: np.ndarray, groups: np.ndarray) -> None:
        """Fit on `profiles` (rows, genes) and `groups` (rows,) of at least two names."""
        self._model = LogisticRegression(max_iter=1000).fit(profiles, groups)

    def call(self, profiles: np.ndarray) -> np.ndarray:
        """Return the group of each of `profiles` (rows, genes) -> (rows,)."""
        return self._model.predict(profiles)

    def probability(self, profiles: np.ndarray, group: str) -> np.ndarray:
        """Return the probability of `group` for each of `profiles` (rows, genes) -> (rows,)."""
        return self._model.predict_proba(profiles)[:, list(self._model.classes_).index(group)]


def nearest_distance(x: np.ndarray, reference: np.ndarray, same_rows: bool = False) -> np.ndarray:
    """Return for each row of `x` the root mean squared difference to the nearest row of `reference`, (rows,).

    `same_rows`: `x` holds the first rows of `reference`, and none of them is its own nearest.
    """
    x, reference = x.astype(np.float64), reference.astype(np.float64)
    squared = (x * x).sum(1)[:, None] + (reference * reference).sum(1) - 2 * x @ reference.T
    if same_rows:
        np.fill_diagonal(squared, np.inf)
    return np.sqrt(squared.min(1).clip(min=0) / x.shape[1])


def compare_profiles(
    synthetic: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    held_out_donors: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Compare `synthetic` with real profiles of the same tissues, training (`train`) and held out.

    nearest: median distance of a synthetic profile to the nearest training profile, of a held-out real one, and of a
    training one to another: well below the second means copies. means and spreads (sd) per gene against all real rows:
    Pearson's r over genes in log units (`mean` and `std`, (genes,): the scaler's), the root mean square difference of
    means in z-scores, and the median ratio of spreads. auc: of a logistic regression that tells real held-out from
    synthetic, cross-validated by donor, 0.5 where it cannot, with its 95 % interval.
    """
    real = np.concatenate([train, held_out])
    own = nearest_distance(train[:OWN_ROWS], train, same_rows=True) if len(train) > 1 else None
    report: dict[str, Any] = {
        "n": {"synthetic": len(synthetic), "train": len(train), "held_out": len(held_out)},
        "nearest": {
            "synthetic_to_train": float(np.median(nearest_distance(synthetic, train))),
            "held_out_to_train": float(np.median(nearest_distance(held_out, train))) if len(held_out) else None,
            "train_to_train": float(np.median(own)) if own is not None else None,
        },
    }
    if len(synthetic) > 1 and len(real) > 1:
        (m, sd), (m_real, sd_real) = ((x.mean(0), x.std(0)) for x in (synthetic, real))
        difference = float(np.sqrt(((m - m_real) ** 2).mean()))
        ratio = float(np.median(sd[sd_real > 0] / sd_real[sd_real > 0])) if (sd_real > 0).any() else None
        report["means"] = {"r": _correlation(m * std + mean, m_real * std + mean), "rms_difference": difference}
        report["spreads"] = {"r": _correlation(sd * std, sd_real * std), "median_ratio": ratio}
    report["auc"] = real_or_synthetic(held_out, held_out_donors, synthetic, seed)
    return report


def real_or_synthetic(real: np.ndarray, donors: np.ndarray, synthetic: np.ndarray, seed: int) -> dict[str, Any] | None:
    """Return AUC, its interval (Hanley & McNeil 1982) and counts of a cross-validated real-or-synthetic classifier.

    Folds keep the profiles of one donor together; each synthetic profile is its own donor. As many of each kind as
    there are of the rarer, at most MAX_ROWS. None below FOLDS donors or synthetic profiles.
    """
    n = min(len(real), len(synthetic), MAX_ROWS)
    rng = np.random.default_rng(seed)
    mine, theirs = (np.sort(rng.permutation(len(a))[:n]) for a in (real, synthetic))
    groups = np.concatenate([donors[mine].astype(str), [f"synthetic {i}" for i in theirs]])
    if len(set(groups[:n])) < FOLDS:
        return None
    x, y = np.concatenate([real[mine], synthetic[theirs]]), np.repeat([1, 0], n)
    score = np.zeros(2 * n)
    for fit, rest in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(x, y, groups):
        score[rest] = LogisticRegression(max_iter=1000).fit(x[fit], y[fit]).decision_function(x[rest])
    auc = float(roc_auc_score(y, score))
    q1, q2 = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (auc * (1 - auc) + (n - 1) * (q1 + q2 - 2 * auc * auc)) / (n * n)
    half = 1.96 * float(np.sqrt(max(variance, 0.0)))
    return {"value": auc, "low": max(0.0, auc - half), "high": min(1.0, auc + half), "n_each": n}


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None
