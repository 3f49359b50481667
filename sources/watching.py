"""How good the tiles of a GAN in training are: the kernel distance (KID) of its averaged generator from real tiles.

The real tiles are those of validation donors, whom neither this GAN nor its VAE is trained on; test donors are never
looked at here. Of an RNA-GAN, drawn tile k has the profile of the donor whose tile real tile k is. Lower is better; 0
is what two sets of real tiles have. Nothing of the training is touched: what is measured is a copy of the average, and
each random number has its own seed. Of several ranks each draws and looks at its share of the tiles; the first computes
the distance, and it alone writes.

The best one waits in memory for the training's next save, so that best.model and last.pt are of one moment, and what
both cost is known to the run. Where best.model is of a later one all the same (a crash came between the two, or the run
went back to previous.pt), log.jsonl tells what the best was, and the steps that are done again make it again.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import DamagedCheckpoint, content_digest, load_checkpoint
from common.config import GANSettings
from common.distributed import alone, current
from common.errors import InputError, warn
from common.run import Run
from common.together import together
from datasets.cohort import Cohort, open_cohort
from datasets.tiles import to_uint8
from metrics.kernel import kernel_distance
from models.average import calibrate_batch_norm, calibration_inputs
from models.conditioning import ConditionedGenerator
from models.features import Extractor, load_extractor
from models.generate import CHUNK, generate_tiles, sample_tiles
from sources.division import agree_on, divided
from sources.draws import BYTES_PER_PIXEL, Draws
from sources.feature_cache import FeatureCache, cache_folder
from sources.gan import BEST
from sources.pictures import grid_of, write_png
from sources.profiles import Profiles
from sources.real import RealSource

MEASURED_ON = "val"  # the split; test donors are for the final numbers


def is_due(cfg: GANSettings, images: int, new: int, ends: bool) -> bool:
    """Say whether to measure after `images`, of which `new` in the latest step: where they passed a multiple of
    eval_every, or the training `ends`. The same for all ranks."""
    return bool(cfg.eval_every) and (ends or images // cfg.eval_every > (images - new) // cfg.eval_every)


class Watch:
    """Measures a generator in training, every `eval_every` images, and keeps the best one: at a save, as best.model."""

    def __init__(self, cfg: GANSettings, cohort: Cohort, conditions: torch.Tensor | None, extractor: Extractor) -> None:
        """Compute the real tiles' features. `conditions` (rows of the validation cohort, z); None: a plain GAN."""
        self.cfg, self.extractor = cfg, extractor
        source = RealSource(cohort)
        cache = FeatureCache(cache_folder(None))
        draws = Draws("held out", source, extractor, cfg.eval_tiles, 1, cfg.seed, CHUNK, None, cache)
        draws.extract()
        self.real = draws.features(0) if current().main else None  # (n, d)
        self.conditions = None
        if conditions is not None:
            rows = cohort.row_of_tile[draws.chosen(0)]
            self.conditions = conditions[torch.from_numpy(rows[np.arange(cfg.eval_tiles) % len(rows)])]  # (n, z)
        self.about = {
            "kid_n": cfg.eval_tiles,
            "kid_n_real": draws.n,
            "kid_extractor": extractor.name,
            "kid_weights": extractor.digest,
        }
        self._of = content_digest([self.about, source.digest(), extractor.preprocessing])  # what may be compared
        self.best: float | None = None
        self._unsaved: dict[str, Any] | None = None  # the best so far, where best.model is not yet it
        self._generator: ConditionedGenerator | None = None

    @property
    def memory(self) -> int:
        """Bytes that a measurement takes, about, beside a generator."""
        return CHUNK * BYTES_PER_PIXEL * max(self.extractor.input_side, self.cfg.img_size) ** 2

    def resume(self, run: Run, images: int) -> None:
        """Take up the best of the first `images`: best.model's, or, where that is of a later moment, the log's.

        A run at 0 images, or measured otherwise, has none; nor has one whose best.model is damaged, with a warning.
        """
        self.best, self._unsaved = None, None
        path = run.folder / BEST
        if not run.ranks.main or not images or not path.is_file():
            return
        try:
            state = load_checkpoint(path, "gan")[0]
        except DamagedCheckpoint as error:
            warn(f"{error}. Going on without a best so far: the next measurement makes {path} again")
            return
        found = state.get("validation", {})
        if found.get("of") != self._of:
            warn(f"{path}: was chosen by other tiles or another extractor; the next measurement replaces it")
        elif state["images_seen"] <= images:
            self.best = found["kid"]
        else:
            self.best = self._told(run.folder / "log.jsonl")

    def look(
        self,
        run: Run,
        step: int,
        average: ConditionedGenerator,
        state: dict[str, Any],
        conditions: torch.Tensor | None,
        profiles: torch.Tensor | None,
        pictures: Path,
    ) -> dict[str, Any]:
        """Measure `average`, log and return what was found; leave a grid; keep the best so far for `save`.

        `state`: what a GAN's checkpoint says but for the weights; `conditions`: the training's, for batch norm;
        `profiles`: the grid's rows; `pictures`: the grid's folder. All ranks look; those but the first return {}.
        """
        if run.ranks.any(not all(bool(weight.isfinite().all()) for weight in average.parameters())):
            return {}  # the next save will say so
        generator = self._copy(average)
        with alone():  # each rank has the same weights
            calibrate_batch_norm(generator, calibration_inputs(generator, self.cfg.seed, conditions))
        features = self.drawn(generator)
        if not run.ranks.main:
            return {}
        report = self.about | {"kid": kernel_distance(features, self.real, seed=self.cfg.seed)}
        with alone():
            tiles, columns = sample_tiles(generator, self.cfg.num_grid, self.cfg.seed, profiles)
        write_png(pictures / f"images_{state['images_seen']:010d}.png", grid_of(to_uint8(tiles), columns))
        if self.best is None or report["kid"] < self.best:
            self.best = report["kid"]
            validation = report | {"of": self._of, "split": MEASURED_ON}
            weights = {k: v.detach().clone() for k, v in generator.state_dict().items()}
            self._unsaved = state | {"generator": weights, "validation": validation}
        report = {"epoch": state["epoch"], "images": state["images_seen"], **report, "kid_best": self.best}
        run.log(step, report)
        return report

    def save(self, run: Run) -> None:
        """Write best.model where it is not yet the best so far: as a part of the training's save, before last.pt."""
        if self._unsaved is not None:
            run.save(BEST, "gan", self._unsaved)
            self._unsaved = None

    def drawn(self, generator: ConditionedGenerator) -> np.ndarray:
        """Return the features (n, d) of the generator's tiles, of which every rank draws some chunks."""
        n, device = self.cfg.eval_tiles, self.extractor.device

        def work(mine: Sequence[int]) -> Iterator[dict[str, np.ndarray]]:
            for first in mine:
                part = {"start": first, "first_row": 0, "batch_size": CHUNK, "device": device}
                tiles = generate_tiles(generator, min(CHUNK, n - first), self.cfg.seed, self.conditions, **part)
                yield {"features": np.concatenate([self.extractor(to_uint8(batch)) for batch in tiles])}

        return divided(["features"], range(0, n, CHUNK), work)["features"]

    def _told(self, log: Path) -> float | None:
        """Return the best so far that the latest measurement in `log` tells of; None where there is none like this."""
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
        told = [line["kid_best"] for line in lines if self.about.items() <= line.items()]
        return told[-1] if told else None

    def _copy(self, average: ConditionedGenerator) -> ConditionedGenerator:
        """Return a generator with the weights of `average`: always the same one, so that a GPU records it once."""
        if self._generator is None:
            self._generator = deepcopy(average)
        self._generator.load_state_dict(average.state_dict())
        return self._generator


def open_watch(cfg: GANSettings, profiles: Profiles | None, device: torch.device) -> Watch | None:
    """Return what measures the training of `cfg`; None without eval_every, or, said, where nothing is held out.

    All ranks open it at once. `profiles`: of an RNA-GAN. InputError as load_extractor raises it, or where a tile is
    damaged.
    """
    if not cfg.eval_every:
        return None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # networks are initialised
        with together(main_first=True):
            cohort = _held_out(cfg, need_expression=profiles is not None)
            if cohort is not None:
                side = cfg.feature_side or None
                extractor = load_extractor(cfg.eval_extractor, cfg.eval_weights or None, device, side)
            conditions = None
            if cohort is not None and profiles is not None:
                conditions = profiles.conditions([str(name) for name in cohort.table.obs.index])
        measured = None if cohort is None else [RealSource(cohort).digest(), extractor.describe()]
        agree_on("what eval_every is measured with", measured)
        return None if cohort is None else Watch(cfg, cohort, conditions, extractor)


def _held_out(cfg: GANSettings, need_expression: bool) -> Cohort | None:
    """Return the validation donors' cohort; None, said, where there are too few tiles to measure with."""
    left_out = f"eval_every = {cfg.eval_every}: nothing is measured in training"
    try:
        cohort = open_cohort(cfg, (MEASURED_ON,), need_expression)
    except InputError as error:  # the folders are good: the training's cohort has just been read from them
        warn(f"{left_out}: {error}")
        return None
    if len(cohort.tiles) < 2:
        warn(f"{left_out}: validation donors have one tile, 2 or more are needed; cut more tiles, or add donors")
        return None
    return cohort
