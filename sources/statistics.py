"""Saved statistics of a set of tiles: mean and covariance of its features, with the extractor that made them.

One .npz: mu (d,) and sigma (d, d) float64, as pytorch-fid writes them, and n, extractor, weights_digest, label; the
features (n, d) float32 themselves where they were kept, which KID, precision and recall need. Nothing is pickled.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from common.archives import read_npz
from common.errors import InputError
from common.files import atomic_path
from metrics.frechet import statistics_of


class StatisticsSource:
    """Statistics in place of tiles: mu (d,), sigma (d, d), features (n, d) or None, n, and whose they are."""

    def __init__(self, path: str | Path) -> None:
        """Read an .npz. InputError: missing, damaged, not statistics, NaN, or no word on the extractor."""
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(
                f"{path}: no such statistics file; write it with fid.py --save_statistics, or check the path"
            )
        try:
            values = read_npz(self.path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: not a readable .npz ({str(error)[:80]}); write it again with --save_statistics"
            ) from None
        if missing := sorted({"mu", "sigma"} - set(values)):
            raise InputError(
                f"{path}: no array {' or '.join(missing)}; statistics of fid.py --save_statistics were expected"
            )
        if missing := sorted({"extractor", "weights_digest", "n"} - set(values)):
            raise InputError(
                f"{path}: does not say {', '.join(missing)}: statistics of another tool cannot be checked against this "
                "extractor; give its folder of images instead"
            )
        self.mu, self.sigma = values["mu"].astype(np.float64), values["sigma"].astype(np.float64)
        self.features = values.get("features")
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            raise InputError(f"{path}: mu {self.mu.shape} and sigma {self.sigma.shape}; expected (d,) and (d, d)")
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise InputError(f"{path}: mu or sigma holds NaN or infinity; write the statistics again")
        self.n, self.extractor, self.digest = int(values["n"]), str(values["extractor"]), str(values["weights_digest"])
        self.saved_label = str(values["label"]) if "label" in values else self.path.stem
        self.label = f"statistics of {self.saved_label} (n = {self.n})"

    def check(self, extractor: str, digest: str) -> None:
        """Raise InputError unless the statistics were made by the extractor of this name and weights digest."""
        if (self.extractor, self.digest) != (extractor, digest):
            raise InputError(
                f"{self.path}: made with {self.extractor} (weights {self.digest[:8]}), the features here are of "
                f"{extractor} (weights {digest[:8]}): not comparable; choose that --extractor, or write the file again"
            )

    def count(self) -> int:
        """Return how many tiles the statistics are of."""
        return self.n

    def describe(self) -> dict[str, Any]:
        """Return what was loaded."""
        return {
            "kind": "statistics",
            "label": self.label,
            "path": str(self.path),
            "tiles": self.n,
            "extractor": self.extractor,
            "weights_digest": self.digest,
        }


def save_statistics(path: str | Path, features: np.ndarray, extractor: str, digest: str, label: str) -> None:
    """Write the statistics of features (n, d), and the features themselves, as a whole or not at all."""
    mu, sigma = statistics_of(features)
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            mu=mu,
            sigma=sigma,
            n=np.int64(len(features)),
            features=np.asarray(features, np.float32),
            extractor=np.str_(extractor),
            weights_digest=np.str_(digest),
            label=np.str_(label),
        )
