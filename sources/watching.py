"""How good the tiles of a GAN in training are: the kernel distance (KID) of its averaged generator from real tiles.

The real tiles are those of validation donors, whom neither this GAN nor its VAE is trained on; test donors are never
looked at here. Of an RNA-GAN, drawn tile k has the profile of the donor whose tile real tile k is. Lower is better; 0
is what two sets of real tiles have. Nothing of the training is touched: what is measured is a copy of the average, and
each random number has its own seed.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import DamagedCheckpoint, content_digest, load_checkpoint
from common.config import GANSettings
from common.distributed import alone
from common.errors import InputError, another_rank, warn
from common.run import Run
from datasets.cohort import Cohort, open_cohort
from datasets.tiles import to_uint8
from metrics.kernel import kernel_distance
from models.average import calibrate_batch_norm, calibration_inputs
from models.conditioning import ConditionedGenerator
from models.features import Extractor, load_extractor
from models.generate import CHUNK, generate_tiles, sample_tiles
from sources.draws import BYTES_PER_PIXEL, Draws
from sources.feature_cache import FeatureCache, cache_folder
from sources.gan import BEST
from sources.pictures import grid_of, write_png
from sources.profiles import Profiles
from sources.real import RealSource

HELD_OUT = "val"  # the split; test donors are for the final numbers


def is_due(cfg: GANSettings, images: int, new: int, ends: bool) -> bool:
    """Say whether to measure after `images`, of which `new` in the latest step: where they passed a multiple of
    eval_every, or the training `ends`. The same for all ranks."""
    return bool(cfg.eval_every) and (ends or images // cfg.eval_every > (images - new) // cfg.eval_every)


class Watch:
    """Measures a generator in training, every `eval_every` images, and keeps the best one as best.model."""

    def __init__(self, cfg: GANSettings, cohort: Cohort, conditions: torch.Tensor | None, device: torch.device) -> None:
        """Compute the real tiles' features. `conditions` (rows of the validation cohort, z); None: a plain GAN."""
        self.cfg, self.device = cfg, device
        side = cfg.feature_side or None
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # networks are initialised
            self.extractor: Extractor = load_extractor(cfg.eval_extractor, cfg.eval_weights or None, device, side)
            source = RealSource(cohort)
            cache = FeatureCache(cache_folder(None))
            draws = Draws("held out", source, self.extractor, cfg.eval_tiles, 1, cfg.seed, CHUNK, None, cache)
            draws.extract()
        self.real = draws.features(0)  # (n, d)
        self.conditions = None
        if conditions is not None:
            rows = cohort.row_of_tile[draws.chosen(0)]
            self.conditions = conditions[torch.from_numpy(rows[np.arange(cfg.eval_tiles) % len(rows)])]  # (n, z)
        self.about = {
            "kid_n": cfg.eval_tiles,
            "kid_n_real": len(self.real),
            "kid_extractor": self.extractor.name,
            "kid_weights": self.extractor.digest,
        }
        self._of = content_digest([self.about, source.digest(), self.extractor.preprocessing])  # what may be compared
        self.best: float | None = None
        self._generator: ConditionedGenerator | None = None

    @property
    def memory(self) -> int:
        """Bytes that a measurement takes, about, beside a generator."""
        return CHUNK * BYTES_PER_PIXEL * max(self.extractor.input_side, self.cfg.img_size) ** 2

    def resume(self, run: Run, images: int) -> None:
        """Take the best so far from the run's best.model; a run at 0 `images`, or measured otherwise, has none.

        Nor has one whose best.model is damaged, with a warning.
        """
        path = run.folder / BEST
        if not images or not path.is_file():
            return
        try:
            found = load_checkpoint(path, "gan")[0].get("validation", {})
        except DamagedCheckpoint as error:
            warn(f"{error}. Going on without a best so far: the next measurement makes {path} again")
            return
        if found.get("of") == self._of:
            self.best = found["kid"]
        else:
            warn(f"{path}: was chosen by other tiles or another extractor; the next measurement replaces it")

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
        """Measure `average`, log and return what was found; leave a grid, and best.model where it is the best so far.

        `state`: what a GAN's checkpoint says but for the weights; `conditions`: the training's, for batch norm;
        `profiles`: the grid's rows; `pictures`: the grid's folder.
        """
        if not all(bool(weight.isfinite().all()) for weight in average.parameters()):
            return {}  # the next save will say so
        with alone():  # no other rank is asked
            generator = self._copy(average)
            calibrate_batch_norm(generator, calibration_inputs(generator, self.cfg.seed, conditions))
            report = self.about | {"kid": self.measure(generator)}
            tiles, columns = sample_tiles(generator, self.cfg.num_grid, self.cfg.seed, profiles)
        write_png(pictures / f"images_{state['images_seen']:010d}.png", grid_of(to_uint8(tiles), columns))
        if self.best is None or report["kid"] < self.best:
            self.best = report["kid"]
            validation = report | {"of": self._of, "split": HELD_OUT}
            run.save(BEST, "gan", state | {"generator": generator.state_dict(), "validation": validation})
        report = {"epoch": state["epoch"], "images": state["images_seen"], **report, "kid_best": self.best}
        run.log(step, report)
        return report

    def measure(self, generator: ConditionedGenerator) -> float:
        """Return the kernel distance of the generator's tiles from the real ones."""
        n, seed = self.cfg.eval_tiles, self.cfg.seed
        tiles = generate_tiles(generator, n, seed, self.conditions, batch_size=CHUNK, device=self.device)
        drawn = np.concatenate([self.extractor(to_uint8(batch)) for batch in tiles])
        return kernel_distance(drawn, self.real, seed=seed)

    def _copy(self, average: ConditionedGenerator) -> ConditionedGenerator:
        """Return a generator with the weights of `average`: always the same one, so that a GPU records it once."""
        if self._generator is None:
            self._generator = deepcopy(average)
        self._generator.load_state_dict(average.state_dict())
        return self._generator


def open_watch(cfg: GANSettings, profiles: Profiles | None, device: torch.device) -> Watch | None:
    """Return what measures the training of `cfg`; None without eval_every, or, said, where nothing is held out.

    Of several ranks the first alone measures. `profiles`: of an RNA-GAN. InputError as load_extractor raises it, or
    where a tile is damaged.
    """
    if not cfg.eval_every or another_rank():
        return None
    left_out = f"eval_every = {cfg.eval_every}: nothing is measured in training"
    try:
        cohort = open_cohort(cfg, (HELD_OUT,), need_expression=profiles is not None)
    except InputError as error:  # the folders are good: the training's cohort has just been read from them
        warn(f"{left_out}: {error}")
        return None
    if len(cohort.tiles) < 2:
        warn(f"{left_out}: validation donors have one tile, 2 or more are needed; cut more tiles, or add donors")
        return None
    names = None if profiles is None else [str(name) for name in cohort.table.obs.index]
    return Watch(cfg, cohort, None if names is None else profiles.conditions(names), device)
