"""How well profiles are reconstructed, and how synthetic profiles compare with real ones. Arrays in, numbers out.

All profiles here are z-scores (rows, genes) float32, scaled by a beta-VAE's scaler.
"""

from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_path

DRAWS = 1000  # bootstrap over donors


def tissue_mean(train: np.ndarray, tissues: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return for each tissue name in `of` the mean of the training rows of that tissue (of all, where it has none)."""
    means = {t: train[tissues == t].mean(0) for t in np.unique(tissues)}
    overall = train.mean(0)
    return np.stack([means.get(t, overall) for t in of])


def pca_reconstruction(train: np.ndarray, test: np.ndarray, components: list[int]) -> list[np.ndarray]:
    """Return `test` projected on the leading principal components of `train`, for each number of components.

    Components beyond rows - 1 do not exist. Through the Gram matrix (rows, rows): no (genes, genes) matrix is made.
    """
    mean = train.mean(0)
    centred = (train - mean).astype(np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    order = np.argsort(values)[::-1]
    order = order[values[order] > values.max() * 1e-10]
    directions = (vectors[:, order] / np.sqrt(values[order])).T @ centred  # (k, genes), orthonormal rows
    scores = (test - mean) @ directions.T
    return [(mean + scores[:, :k] @ directions[:k]).astype(np.float32) for k in components]


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's r of each column of `x` with the same column of `y`, both (n, genes); NaN where one is flat."""
    x, y = x - x.mean(0, dtype=np.float64), y - y.mean(0, dtype=np.float64)
    bottom = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    flat = bottom <= 1e-9 * len(x)
    return np.where(flat, np.nan, (x * y).sum(0) / np.where(flat, 1.0, bottom))


def gene_errors(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return mse, mae and pearson of reconstruction `y` of `x`, each (genes,)."""
    return {"mse": ((y - x) ** 2).mean(0), "mae": np.abs(y - x).mean(0), "pearson": pearson(x, y)}


def mean_interval(per_row: np.ndarray, donors: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `per_row` (n,), bootstrapped over donors (rows of one stay together)."""
    _, group = np.unique(donors, return_inverse=True)
    sums, counts = np.bincount(group, per_row), np.bincount(group)
    picks = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def reconstruction_report(
    train: np.ndarray,
    test: np.ndarray,
    reconstruction: np.ndarray,
    train_tissues: np.ndarray,
    test_tissues: np.ndarray,
    test_donors: np.ndarray,
    latent_dim: int,
    seed: int,
) -> tuple[dict[str, Any], dict[tuple[str, str], dict[str, np.ndarray]]]:
    """Compare a VAE's `reconstruction` of `test` with the tissue's mean and with PCA fitted on `train`.

    PCA has min(latent_dim, rows - 1) and 50 components (fewer where there are fewer rows). Returns the report
    {group: {"profiles", "donors", method: {mse, mse_low, mse_high, mae, pearson_mean, pearson_median}}}, group "all" or
    a tissue, r over the group's profiles per gene (None where undefined), and {(group, method): gene_errors}.
    """
    most = len(train) - 1
    wide, narrow = min(latent_dim, most), min(50, most)
    pca = pca_reconstruction(train, test, [wide, narrow])
    methods = {
        "vae": reconstruction,
        "tissue_mean": tissue_mean(train, train_tissues, test_tissues),
        f"pca_{wide}": pca[0],
        f"pca_{narrow}": pca[1],
    }
    report: dict[str, Any] = {}
    per_gene: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for group in ["all", *np.unique(test_tissues)]:
        rows = np.ones(len(test), bool) if group == "all" else test_tissues == group
        report[group] = {"profiles": int(rows.sum()), "donors": len(np.unique(test_donors[rows]))}
        for name, y in methods.items():
            errors = gene_errors(test[rows], y[rows])
            low, high = mean_interval(((y[rows] - test[rows]) ** 2).mean(1), test_donors[rows], seed)
            r = errors["pearson"][np.isfinite(errors["pearson"])]
            report[group][name] = {
                "mse": float(errors["mse"].mean()),
                "mse_low": low,
                "mse_high": high,
                "mae": float(errors["mae"].mean()),
                "pearson_mean": float(r.mean()) if len(r) else None,
                "pearson_median": float(np.median(r)) if len(r) else None,
            }
            per_gene[group, name] = errors
    return report, per_gene


def write_gene_errors(
    path: str | Path, genes: list[str], per_gene: dict[tuple[str, str], dict[str, np.ndarray]]
) -> None:
    """Write one line per gene and group: gene, group, then mse, mae and pearson of every method (empty: undefined)."""
    import pandas as pd

    groups = list(dict.fromkeys(group for group, _ in per_gene))
    frames = []
    for group in groups:
        columns = {f"{m}_{k}": v for (g, m), errors in per_gene.items() if g == group for k, v in errors.items()}
        frames.append(pd.DataFrame({"gene": genes, "group": group, **columns}))
    with atomic_path(path) as partial:
        pd.concat(frames).to_csv(partial, index=False, float_format="%.5g")
