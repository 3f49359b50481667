"""Round trip: what a ridge that reads expression off real tiles still finds in generated ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold

from common.errors import InputError
from metrics.agreement import correlations
from metrics.frechet import feature_matrix
from metrics.pairing import null_of

ALPHAS = tuple(np.logspace(-1, 6, 15))
FOLDS = 5
FAR = 5.0  # sd of the training rows beyond which a feature is taken as that far; ours
FLOOR = 0.2  # r on real tiles below which a component is not predicted: chance (1 sd) for 25 patients


@dataclass
class RidgeModel:
    """A fitted ridge, one penalty per target: prediction = z @ coef + intercept, z = (x - mean) / scale within +-FAR.

    Without that bound a feature that hardly varies in training (a colour few tiles have) would decide alone wherever a
    generator leaves its narrow range.
    """

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,), infinite for a constant feature
    coef: np.ndarray  # (d, k)
    intercept: np.ndarray  # (k,)
    alphas: np.ndarray  # (k,), chosen for each target
    cv_r: np.ndarray  # (k,), r of the out-of-fold predictions at that alpha; NaN for a constant target

    def predict(self, x: Any) -> np.ndarray:
        """Return predictions (n, k) for features x (n, d)."""
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise InputError(f"ridge: fitted on {len(self.mean)} features, found a table of shape {x.shape}")
        return _scaled(x, self.mean, self.scale) @ self.coef + self.intercept


def fit_ridge(x: Any, y: Any, groups: Any, alphas: Any = ALPHAS) -> RidgeModel:
    """Return the ridge from features x (n, d) to targets y (n, k), its penalty by leave-groups-out cross-validation.

    Features are standardised on the rows that are fitted. `alphas` (a,) > 0 weigh |coef|^2 against the sum of squared
    errors, as in scikit-learn; each target takes the one of least squared error over min(5, groups) folds that share
    no group (n,). One eigendecomposition per fold serves all penalties and targets (Hastie et al. 2009, eq. 3.47).
    InputError for fewer than 2 groups, other shapes, NaN or infinity.
    """
    x, y = feature_matrix(x, "ridge: features, first").numpy(), feature_matrix(y, "ridge: targets, second").numpy()
    groups, alphas = np.asarray(groups), np.asarray(alphas, dtype=np.float64)
    if len(y) != len(x) or groups.shape != (len(x),):
        raise InputError(f"ridge: {len(x)} rows of features, {len(y)} of targets, groups of shape {groups.shape}")
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2 or alphas.ndim != 1 or not (alphas > 0).all():
        raise InputError(f"ridge: expected at least 2 groups (found {folds}) and a list of penalties above 0")
    out_of_fold = np.empty((len(alphas), *y.shape))
    for train, test in GroupKFold(folds).split(x, groups=groups):
        fitted = _Decomposed(x[train], y[train])
        rotated = fitted.rotate(x[test])
        for a, alpha in enumerate(alphas):
            out_of_fold[a, test] = fitted.intercept + rotated @ fitted.shrunk(alpha)
    best = np.square(out_of_fold - y).sum(1).argmin(0)  # (k,)
    chosen, whole = alphas[best], _Decomposed(x, y)
    cv_r = correlations(np.take_along_axis(out_of_fold, best[None, None], 0)[0], y)
    coef = whole.axes @ whole.shrunk(chosen)
    return RidgeModel(whole.mean, whole.scale, coef, whole.intercept - whole.shift @ coef, chosen, cv_r)


def round_trip(
    truth: Any, from_generated: Any, from_real: Any, pairings: np.ndarray, floor: float = FLOOR
) -> dict[str, Any]:
    """Return how well expression components are read off generated tiles, as a share of what real tiles reach.

    truth: (P, k) components of held-out patients; from_generated, from_real: (P, k) a ridge's predictions from their
    generated and real tiles; pairings: (count, P). r_generated and r_real are means of Pearson's r over the kept
    components, those with r >= `floor` on real tiles; ratio is the one over the other. The others say nothing about
    the generator: they are counted in `left_out`, and enter r_generated_all and r_real_all (all k) only. A constant
    prediction has r = 0; a component whose truth is constant is left out. p_value, null_mean, null_mean_abs and
    null_q99 are those of r_generated. Where nothing is kept these numbers are None.
    """
    truth, from_generated, from_real = (np.asarray(v, dtype=np.float64) for v in (truth, from_generated, from_real))
    if truth.ndim != 2 or not truth.shape == from_generated.shape == from_real.shape:
        shapes = ", ".join(str(v.shape) for v in (truth, from_generated, from_real))
        raise InputError(f"round trip: expected three tables of one shape (P, k), found {shapes}")
    generated, real = (np.nan_to_num(correlations(truth, v)) for v in (from_generated, from_real))
    kept = real >= floor
    value, null = None, []
    if kept.any():
        value = generated[kept].mean()
        t, g = truth[:, kept], from_generated[:, kept]
        null = [np.nan_to_num(correlations(t, g[p])).mean() for p in np.asarray(pairings)]
    tested = null_of(value, null)
    r_real = float(real[kept].mean()) if kept.any() else None
    return {
        "r_generated": tested.pop("value"),
        "r_real": r_real,
        "ratio": float(value / r_real) if kept.any() and r_real > 0 else None,
        "components": int(kept.size),
        "kept": int(kept.sum()),
        "left_out": int((~kept).sum()),
        "floor": floor,
        "r_generated_all": float(generated.mean()) if kept.size else None,
        "r_real_all": float(real.mean()) if kept.size else None,
        "per_component": {"generated": generated.tolist(), "real": real.tolist(), "kept": kept.tolist()},
        **tested,
    }


def _scaled(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((x - mean) / scale, -FAR, FAR)


class _Decomposed:
    """Standardised features by their principal axes: coef(alpha) = axes @ diag(1 / (s^2 + alpha)) @ projections."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        """Decompose x (n, d), standardised here, with the smaller of its two Gram matrices; project y (n, k)."""
        self.mean, sd = x.mean(0), x.std(0)
        self.scale = np.where(sd > 1e-7 * np.abs(x).max(0, initial=0), sd, np.inf)  # a constant counts for nothing
        self.intercept = y.mean(0)
        z = _scaled(x, self.mean, self.scale)
        self.shift = z.mean(0)  # not quite 0 where something was bounded
        z = z - self.shift
        wide = len(z) < z.shape[1]
        values, vectors = np.linalg.eigh(z @ z.T if wide else z.T @ z)
        used = values > 1e-10 * max(values[-1], 0.0)
        self.squares, vectors = values[used], vectors[:, used]  # s^2 (r,)
        self.axes = z.T @ vectors / np.sqrt(self.squares) if wide else vectors  # (d, r)
        self.projections = self.rotate(x).T @ (y - self.intercept)  # (r, k)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """Features (n, d) -> coordinates on the axes (n, r)."""
        return (_scaled(x, self.mean, self.scale) - self.shift) @ self.axes

    def shrunk(self, alpha: float | np.ndarray) -> np.ndarray:
        """Coefficients on the axes (r, k), for one penalty or one per target (k,)."""
        return self.projections / (self.squares[:, None] + alpha)
