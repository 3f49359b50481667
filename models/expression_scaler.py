"""Expression to network input and back: logarithm and z-score, fitted once on training donors, kept in the checkpoint.

Every later stage uses the stored numbers; nothing is ever refitted on the table at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LOG_LIMIT = 25.0  # ours: exp(25) is 7e10, far above any TPM or count; keeps a decoded profile finite


def _ln_nonzero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0).log()


def _exp_nonzero(y: Tensor) -> Tensor:
    # A 0 may have been 0 or 1: the published transform cannot be inverted there; 0 is the common case.
    return torch.where(y == 0, 0.0, y.clamp(max=LOG_LIMIT).exp())


# name -> (forward, inverse), both elementwise; linear units >= 0 to log units and back
TRANSFORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "log1p": (torch.log1p, lambda y: y.clamp(max=LOG_LIMIT).expm1().clamp(min=0)),
    "ln_nonzero": (_ln_nonzero, _exp_nonzero),  # published: ln(x), zeros left at 0; not monotone
}
MISSING = ("mean", "zero")  # mean: 0 after scaling; zero: 0 before the logarithm (published)


@dataclass
class ExpressionScaler:
    """z = (log(x) - mean) / std per gene. `mean` and `std` are (genes,) float32, in log units."""

    transform_name: str
    mean: Tensor
    std: Tensor
    missing: str = "mean"

    @classmethod
    def fit(cls, values: Tensor, transform_name: str = "log1p", missing: str = "mean") -> "ExpressionScaler":
        """Fit on training rows: `values` (rows, genes), linear units, finite, >= 0. A constant gene gets std 1."""
        return cls.fit_transform(values, transform_name, missing)[0]

    @classmethod
    def fit_transform(
        cls, values: Tensor, transform_name: str = "log1p", missing: str = "mean", out: Tensor | None = None
    ) -> tuple["ExpressionScaler", Tensor]:
        """Fit as `fit` does and return the z-scores of `values` (rows, genes) too: fit and transform in two passes.

        Blocks of rows stay in the processor's cache, and each logarithm is taken once. Sums are of differences from the
        first block's mean, in float64, so that little is lost where a gene's spread is far below its level. `out` takes
        the z-scores; it may be `values` itself, which then needs no more memory.
        """
        forward, n = TRANSFORMS[transform_name][0], len(values)
        scaled = torch.empty_like(values) if out is None else out
        shift = forward(values[:64]).mean(0)
        total, squares = torch.zeros(2, values.shape[1], dtype=torch.float64)
        for block, part in zip(values.split(64), scaled.split(64), strict=True):
            torch.sub(forward(block), shift, out=part)
            total += part.sum(0)
            squares += part.square().sum(0)
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std > 1e-6, std, 1.0)
        rest, factor = mean.float(), (1 / std).float()
        for part in scaled.split(64):
            part.sub_(rest).mul_(factor)
        return cls(transform_name, (mean + shift).float(), std.float(), missing), scaled

    def transform(self, values: Tensor) -> Tensor:
        """Return z-scores (rows, genes) of `values` (rows, genes) in linear units; NaN marks a missing gene."""
        forward = TRANSFORMS[self.transform_name][0]
        if self.missing == "zero":
            values = values.nan_to_num(nan=0.0)
        scaled = (forward(values) - self.mean) / self.std
        return scaled.nan_to_num(nan=0.0)  # 0 is the training mean

    def inverse(self, scaled: Tensor) -> Tensor:
        """Return linear units >= 0 (rows, genes) of z-scores (rows, genes)."""
        return TRANSFORMS[self.transform_name][1](scaled * self.std + self.mean)

    def to(self, device: torch.device | str) -> "ExpressionScaler":
        """Return the same scaler with its arrays on `device`."""
        return ExpressionScaler(self.transform_name, self.mean.to(device), self.std.to(device), self.missing)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {
            "transform": self.transform_name,
            "mean": self.mean.cpu(),
            "std": self.std.cpu(),
            "missing": self.missing,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ExpressionScaler":
        """Return the scaler that `state` stored."""
        return cls(state["transform"], state["mean"], state["std"], state["missing"])
