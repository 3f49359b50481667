"""What a beta-VAE in training leaves in its run folder, last.pt and best.pt, and the way back to last.pt."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.checkpoint import NonFiniteError
from common.config import settings_dict
from common.errors import InputError
from common.run import FREE_TO_CHANGE, LAST, Run
from common.skips import Skips
from datasets.expression import ExpressionTable
from datasets.fingerprint import differences
from datasets.leaks import trained_by
from models.betavae import finished_state
from models.betavae_training import PARTS, BetaVAETraining
from models.expression_scaler import ExpressionScaler

KIND = "betavae_training"  # of last.pt


def no_place() -> dict[str, Any]:
    """Return where a training stands before its first step."""
    return {"step": 0, "epoch": 0, "batch": 0, "sums": dict.fromkeys(PARTS, 0.0), "best": None}


@dataclass
class Saves:
    """Writes and reads back what changes in a training: `vae`, `skips`, and `place`, where it stands.

    `place`: step, epoch, and batches and sums of the losses in it; best: the best epoch and its validation losses.
    `data`: the tables' fingerprints, `part` the table of each split. Of several ranks the first writes.
    """

    run: Run
    vae: BetaVAETraining
    skips: Skips
    table: ExpressionTable
    part: dict[str, ExpressionTable]
    scaler: ExpressionScaler
    data: dict[str, str]
    place: dict[str, Any] = field(default_factory=no_place)
    _best_weights: dict[str, Tensor] | None = None  # of an epoch whose best.pt is not yet written

    def resume(self) -> bool:
        """Load last.pt and return True; False in a new run. InputError, naming what differs, where its tables were
        others, or its best.pt is gone."""
        saved = self.run.restore(KIND)
        if saved is None:
            return False
        if differ := differences(saved["data"], self.data):
            raise InputError(
                f"{self.table.source}: not the tables that the run in {self.run.folder} was started on: other "
                f"{', '.join(differ)}; restore them, use another folder, or --restart to move the old run aside"
            )
        if saved["best"] is not None and not (self.run.folder / "best.pt").is_file():
            raise InputError(
                f"{self.run.folder}: best.pt, of epoch {saved['best']['epoch']}, is gone and last.pt does not hold it; "
                "put it back, or train again with --restart, which moves the old run aside"
            )
        self._take_up(saved)
        self.skips.load(saved)
        return True

    def state(self) -> dict[str, Any]:
        """Return what last.pt holds."""
        return self.vae.state() | {"data": self.data} | self.place | self.skips.state()

    def keep_best(self) -> None:
        """Keep the weights as they are for the next save: they are the best so far."""
        if self.run.ranks.main:
            self._best_weights = {k: v.detach().clone() for k, v in self.vae.model.state_dict().items()}

    def save(self) -> bool:
        """Save; return False where a weight is not finite: the files on disk stay as they were."""
        bad = False
        try:
            if self.run.ranks.main:
                with self.run.saving():
                    if self._best_weights is not None:
                        self.write_best(self._best_weights, self.place["best"]["epoch"], self.place["best"])
                        self._best_weights = None
                    self.run.save(LAST, KIND, self.state())
        except NonFiniteError:
            bad = True
        return not self.run.ranks.any(bad)

    def go_back(self, step: int, what: str) -> None:
        """Leave out `step` from now on and go back to last.pt, or to the start."""
        self.skips.blame(step, what, f"lower lr ({self.vae.cfg.lr:g}) or check the tables")
        self._take_up(self.run.restore(KIND) or self.vae.fresh_state() | no_place())

    def write_best(self, weights: dict[str, Tensor], epoch: int, validation: dict[str, float] | None) -> None:
        """Write best.pt: these weights with all that it takes to use them (models/betavae.py)."""
        cfg, train, val = self.vae.cfg, self.part["train"], self.part["val"]
        state = {
            "model_args": self.vae.args,
            "model": weights,
            "genes": self.table.genes,
            "unit": self.table.unit,
            "scaler": self.scaler.state(),
            "split_seed": cfg.split_seed,
            "min_gene_coverage": cfg.min_gene_coverage,
            "missing_genes": cfg.missing_genes,
            "settings": {k: v for k, v in settings_dict(cfg).items() if k not in FREE_TO_CHANGE | {"num_epochs"}},
            "epoch": epoch,
            "validation": validation,
        } | trained_by(train.obs["donor"], train.obs.index)
        values, tissues = torch.from_numpy(train.values), list(train.obs["tissue"])
        state = finished_state(state, values, tissues, torch.from_numpy(val.values), self.vae.device)
        self.run.save("best.pt", "betavae", state)

    def _take_up(self, saved: dict[str, Any]) -> None:
        self.vae.load(saved)
        self.place.update(deepcopy({key: saved[key] for key in self.place}))
        self._best_weights = None
