"""Do generated tiles match the patient whose expression they were made from? Retrieval and distances between patients.

P patients (or spots of a section). In every (P, P) matrix row p stands for the tiles generated for p, column q for the
real tiles of q, and smaller means nearer: a generator that listens to expression has its least entries on the diagonal.
"""

from typing import Any

import numpy as np

from common.errors import InputError
from metrics.frechet import feature_matrix

DEAD = (
    1e-6  # a dimension whose sd between real patients is below this share of its own size is constant but for rounding
)
FAR = 5.0  # no dimension counts for more than this many sd


def retrieval(distance: np.ndarray) -> dict[str, float]:
    """Return how well row p of `distance` (P, P) finds column p among all P columns.

    With rank r = 1 for the nearest (the mean rank among ties): top1 and top5, the shares of rows with r <= 1 and
    r <= 5; mrr, the mean of 1 / r; median_percentile, the median of 1 - (r - 1) / (P - 1): 1 best, 0.5 chance, 0
    worst. A tie at the border is a miss. InputError for another shape, P < 2, NaN or infinity.
    """
    return summary_of(retrieval_rows(distance))


def retrieval_rows(distance: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each row contributes to the numbers of `retrieval`, (P,) each."""
    distance = _square(distance)
    own = distance.diagonal()[:, None]
    rank = 1 + (distance < own).sum(1) + ((distance == own).sum(1) - 1) / 2
    percentile = 1 - (rank - 1) / (len(distance) - 1)
    return {"top1": rank <= 1, "top5": rank <= 5, "mrr": 1 / rank, "median_percentile": percentile}


def summary_of(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of each entry's rows; the median of one named so."""
    return {k: float(np.median(v) if k.startswith("median") else np.mean(v)) for k, v in rows.items()}


def retrieval_chance(patients: int) -> dict[str, float]:
    """Return the expectation of each number of `retrieval` where each rank 1..P is equally likely and without ties.

    top1 = 1 / P, top5 = min(5, P) / P, mrr = (1 + 1/2 + ... + 1/P) / P, and median_percentile 1/2 by symmetry.
    """
    if patients < 2:
        raise InputError(f"retrieval among {patients} patient(s): expected at least 2")
    mrr = float((1 / np.arange(1, patients + 1)).mean())
    return {"top1": 1 / patients, "top5": min(5, patients) / patients, "mrr": mrr, "median_percentile": 0.5}


def relative(value: float | None, chance: float, ceiling: float | None) -> float | None:
    """Return (value - chance) / (ceiling - chance): 0 at chance, 1 at the ceiling that real tiles reach, not clipped.

    None where the ceiling is not above chance, or where one of them is missing (None or not finite).
    """
    known = all(v is not None and np.isfinite(v) for v in (value, chance, ceiling))
    return float((value - chance) / (ceiling - chance)) if known and ceiling > chance else None


def feature_distances(generated: Any, real: Any, centre: bool = False) -> np.ndarray:
    """Return the cosine distances, in [0, 2], between mean features generated (P, d) and real (Q, d) -> (P, Q).

    Both are z-scored per dimension with mean and sd of the real means over patients, so that what all patients share
    (the tissue) and the unit of a dimension count for nothing; dimensions that are constant in real patients are left
    out, and z is clipped to +-5, or else one that is nearly so would decide alone wherever a generator leaves its
    narrow range. Cosine, not Euclidean: a Euclidean distance ranks patients near the cohort's mean first whenever the
    generator varies less, or is noisier, than reality; the angle asks only whether a patient deviates from the cohort
    in the right direction. A row or column at the mean itself has no direction: its distances are 1. With `centre` the
    generated means lose their own mean instead of the real one: what is wrong with all generated tiles alike
    (artefacts, a stain) no longer hides what tells them apart.
    """
    generated, real = feature_matrix(generated, "generated").numpy(), feature_matrix(real, "real").numpy()
    if generated.shape[1] != real.shape[1]:
        raise InputError(f"features of {generated.shape[1]} (generated) and of {real.shape[1]} (real) dimensions")
    mean, sd = real.mean(0), real.std(0)
    alive = sd > DEAD * np.abs(real).max(0)
    own_mean = generated.mean(0) if centre else mean
    sides = ((generated, own_mean), (real, mean))
    a, b = (_unit(np.clip((x - m)[:, alive] / sd[alive], -FAR, FAR)) for x, m in sides)
    return 1 - np.clip(a @ b.T, -1, 1)


def diagonal_dominance(distance: np.ndarray) -> dict[str, float]:
    """Return how clearly the diagonal of `distance` (P, P) is the least entry of each row.

    rows: share of rows whose least entry is the diagonal (a tie of k entries counts 1 / k; chance 1 / P). auc:
    probability that the diagonal entry is smaller than another of its row, ties half, averaged over rows (chance 0.5).
    """
    return summary_of(diagonal_rows(distance))


def diagonal_rows(distance: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each row contributes to the numbers of `diagonal_dominance`, (P,) each."""
    distance = _square(distance)
    own = distance.diagonal()[:, None]
    less, ties = (distance < own).sum(1), (distance == own).sum(1)  # ties with itself: at least 1
    others = len(distance) - 1
    auc = ((distance > own).sum(1) + (ties - 1) / 2) / others
    return {"rows": np.where(less == 0, 1 / ties, 0), "auc": auc}


def _square(distance: Any) -> np.ndarray:
    distance = np.asarray(distance, dtype=np.float64)
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1] or len(distance) < 2:
        raise InputError(f"distances: expected a square matrix of at least 2 patients, found shape {distance.shape}")
    if not np.isfinite(distance).all():
        row = int(np.argmin(np.isfinite(distance).all(1)))
        raise InputError(f"distances: row {row} holds NaN or infinity; check the features of that patient")
    return distance


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of x (n, d) at length 1; rows of length 0 stay 0."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 1e-12)
