"""What a GAN in training leaves in its run folder: last.pt, the model, grids of tiles; and the way back to last.pt."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import NonFiniteError, load_checkpoint
from common.distributed import alone
from common.errors import InputError
from common.progress import Progress
from common.run import LAST, Run
from common.skips import Skips
from datasets.tiles import to_uint8
from models.average import calibrate_batch_norm, calibration_inputs
from models.gan_training import GANTraining
from models.generate import sample_tiles
from sources.batches import Batches
from sources.gan_expression import Expression
from sources.pictures import grid_of, write_png
from sources.watching import Watch

KIND = "gan_training"  # of last.pt


def resume(run: Run, gan: GANTraining, skips: Skips) -> tuple[int, dict[str, torch.Tensor]]:
    """Load last.pt into `gan` and `skips`; return its step and the losses logged last. In a new run 0, and none."""
    saved = run.restore(KIND)
    if saved is None:
        return 0, {}
    if saved["critic"].keys() != gan.critic.state_dict().keys():
        raise InputError(
            f"{run.folder}: its critic has other layers, as networks that grow had until 2026-11-26; go on with the "
            "version that began it, with another save_dir, or anew with --restart"
        )
    gan.load(saved)
    skips.load(saved)
    return saved["step"], _on_device(saved["losses"], gan.device)


@dataclass(frozen=True)
class Saves:
    """Writes and reads back what changes in a training: `gan`, `skips`, and `losses`, the latest of each part.

    `watch`: has the best generator so far (None: nothing is measured).
    `about(step)`: what the model's file says besides its weights. Of several ranks the first writes.
    """

    run: Run
    gan: GANTraining
    skips: Skips
    losses: dict[str, torch.Tensor]
    batches: Batches
    progress: Progress
    expression: Expression
    about: Callable[[int], dict[str, Any]]
    watch: Watch | None = None

    @property
    def model(self) -> Path:
        """The averaged generator's file."""
        return self.run.folder / f"{self.run.name}.model"

    @property
    def pictures(self) -> Path:
        """The folder of the grids."""
        return Path(self.gan.cfg.image_dir) if self.gan.cfg.image_dir else self.run.folder / "samples"

    def complete(self, step: int, epoch: int) -> None:
        """Write model and grid of the last step where they are not there: a crash may have come after last.pt."""
        with suppress(InputError):
            if load_checkpoint(self.model, "gan")[0]["images_seen"] == step * self.gan.per_step:
                return
        self.calibrate()
        self.save(step, model=True)
        self.draw_grid(epoch)

    def calibrate(self) -> None:
        """Measure the average's batch norm: before last.pt, so that it is the same however often the run was cut."""
        if self.run.ranks.main:
            average, seed = self.gan.average, self.gan.cfg.seed
            with alone():  # the other ranks take no part in this
                calibrate_batch_norm(average, calibration_inputs(average, seed, self.expression.conditions))

    def save(self, step: int, model: bool) -> bool:
        """Save, best.model too where a better one was found; return False where a weight is not finite.

        Then a file with such a weight stays as it was.
        """
        bad = False
        try:
            if self.run.ranks.main:
                with self.run.saving():
                    if self.watch is not None:
                        self.watch.save(self.run)
                    state = {"step": step, "losses": {k: v.item() for k, v in self.losses.items()}}
                    self.run.save(LAST, KIND, state | self.gan.state() | self.skips.state())
                    if model:
                        weights = {"generator": self.gan.average.state_dict()}
                        self.run.save(self.model.name, "gan", self.about(step) | weights)
        except NonFiniteError:
            bad = True
        return not self.run.ranks.any(bad)

    def draw_grid(self, epoch: int) -> None:
        """Write a grid of tiles from fixed noise."""
        if not self.run.ranks.main:
            return
        cfg = self.gan.cfg
        with alone():
            tiles, columns = sample_tiles(self.gan.average, cfg.num_grid, cfg.seed, self.expression.held_out)
        write_png(self.pictures / f"epoch_{epoch:04d}.png", grid_of(to_uint8(tiles), columns))

    def go_back(self, step: int, what: str) -> int:
        """Leave out `step` from now on and go back to last.pt, or to the start; return the step that stands there."""
        remedy = "lower lr_generator or lr_critic, use --precision fp32, or check the tiles; then --restart"
        self.skips.blame(step, what, remedy)
        saved = self.run.restore(KIND) or {"step": 0, "losses": {}} | self.gan.fresh_state()
        self.gan.load(saved)
        if self.watch is not None:
            self.watch.resume(self.run, saved["step"] * self.gan.per_step)
        self.losses.clear()
        self.losses.update(_on_device(saved["losses"], self.gan.device))
        self.batches.go_to(saved["step"])
        self.progress.go_to(saved["step"] * self.gan.per_step)
        return saved["step"]


def _on_device(losses: dict[str, float], device: torch.device) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v, device=device) for k, v in losses.items()}
