"""Batches of a GAN's training: real tiles on the device, whose they are, and the expression they are judged with.

Batch b of a run is the same wherever its tiles lie: read when needed, ahead by threads, kept in memory, or on the GPU.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from common.config import GANSettings
from common.distributed import current, on_this_machine
from common.errors import InputError
from common.memory import free_memory
from common.run import generator_for
from datasets.cohort import Cohort, PatientBatches
from datasets.feed import PATIENCE, tile_batches
from datasets.tiles import to_model
from models.augment import TURNS, turned
from models.gan_losses import NOTHING_SHOWN, Shown

GPU_SHARE, RAM_SHARE = 0.4, 0.25  # of the memory that is free: what tiles may take with cache = auto; ours
STRIP = 512  # tiles that are read at a time on their way to the GPU


class Batches:
    """Takes the batches of steps in order, from step `done` + 1 on; `where` says where the tiles are kept.

    All that is drawn is drawn for the whole batch; of several ranks each takes its `rows`, `share` of the batch.
    `conditions` (rows of the cohort, z): what each profile brings to the generator, None in a run without expression.
    """

    def __init__(
        self,
        cohort: Cohort,
        conditions: torch.Tensor | None,
        cfg: GANSettings,
        device: torch.device,
        done: int,
        last: int,
    ) -> None:
        self.cohort, self.conditions, self.cfg, self.device = cohort, conditions, cfg, device
        self.rows = current().share(cfg.batch_size)
        self.share = (self.rows.stop - self.rows.start) / cfg.batch_size
        self.where = place_of(cfg.cache, len(cohort.tiles), cfg.img_size, device)
        self._patients = PatientBatches(cohort.patient_of_tile, cfg.batch_size, cfg.seed)
        self._active = None if conditions is None else conditions.ne(0).any(0)  # (z,)
        self._last, self._read = last, iter(())
        if self.where == "gpu" and last > done:
            self._resident = resident(cohort, device, cfg.n_workers, cfg.read_timeout)
            levels = torch.arange(256).float().div_(127.5).sub_(1.0)  # as to_model; a GPU rounds the division otherwise
            self._levels = levels.to(device)
        elif self.where == "ram":
            cohort.tiles.keep()
        self.go_to(done)

    def go_to(self, done: int) -> None:
        """Let the next batch be the first of step `done` + 1."""
        first, stop = done * self.cfg.critic_steps, self._last * self.cfg.critic_steps
        if self.where == "gpu":
            self._feed: Iterator[tuple[np.ndarray, torch.Tensor]] = map(self._pick, range(first, stop))
            return
        if hasattr(self._read, "close"):
            self._read.close()  # its threads end
        workers, patience = self.cfg.n_workers, self.cfg.read_timeout
        self._read = tile_batches(self.cohort.tiles, self._mine, first, stop, workers, patience)
        self._feed = ((indices, to_model(images).contiguous().to(self.device)) for indices, images in self._read)

    def named(self, step: int) -> list[str]:
        """Return in words which tiles the batches of a step hold: slides, and the tiles' numbers there."""
        numbers = range((step - 1) * self.cfg.critic_steps, step * self.cfg.critic_steps)
        return self.cohort.tiles.named(np.concatenate([self.indices(batch) for batch in numbers]))

    def take(self, step: int, turn: int, side: int) -> tuple[torch.Tensor, Shown]:
        """Return the next batch: real tiles (n, 3, side, side) in [-1, 1] and what they are judged with, on the device.

        `side`: img_size, or a part of it: tiles are then averaged over squares of pixels.
        """
        indices, real = next(self._feed)
        if self.share < 1:
            indices = self.indices((step - 1) * self.cfg.critic_steps + turn)  # of the whole batch
        if side != self.cfg.img_size:
            real = F.avg_pool2d(real, self.cfg.img_size // side)
        if self.cfg.turns:
            source = generator_for(self.cfg.seed, "turns", step, turn)
            which = torch.randint(TURNS, (self.cfg.batch_size,), generator=source)
            real = turned(real, which[self.rows].to(self.device))
        return real, self._shown(indices, step, turn)

    def indices(self, batch: int) -> np.ndarray:
        """Return the tiles of a batch by its number: patient-balanced and shuffled, or slide by slide (published)."""
        n, size = len(self.cohort.tiles), self.cfg.batch_size
        if self.cfg.shuffle == "slides":
            return np.arange(batch * size, (batch + 1) * size) % n
        return self._patients.of(batch)

    def _mine(self, batch: int) -> np.ndarray:
        return self.indices(batch)[self.rows]

    def _pick(self, batch: int) -> tuple[np.ndarray, torch.Tensor]:
        indices = self._mine(batch)
        chosen = torch.from_numpy(indices).to(self.device)
        return indices, self._levels[self._resident[chosen].permute(0, 3, 1, 2).int()].contiguous()

    def _shown(self, indices: np.ndarray, step: int, turn: int) -> Shown:
        """Return the expression of a batch's tiles, this rank's of them: jittered, and some of it left out."""
        if self.conditions is None:
            return NOTHING_SHOWN
        cfg = self.cfg
        c = self.conditions[self.cohort.row_of_tile[indices]]  # (n, z)
        if cfg.cond_jitter:
            jitter = torch.randn(c.shape, generator=generator_for(cfg.seed, "jitter", step, turn))
            c = c + cfg.cond_jitter * jitter * self._active  # inactive dimensions stay 0
        keep = None
        if cfg.cond_dropout:
            chance = torch.rand(len(c), generator=generator_for(cfg.seed, "dropout", step, turn))
            keep = (chance >= cfg.cond_dropout).to(self.device)
        patients = torch.from_numpy(self.cohort.patient_of_tile[indices]).to(self.device)
        whole = Shown(c.to(self.device), keep, patients)
        return whole if self.share == 1 else whole.part(self.rows)


def place_of(cache: str, tiles: int, img_size: int, device: torch.device) -> str:
    """Return gpu, ram or none: where `tiles` of `img_size` pixels are kept under the setting `cache`.

    auto: on the GPU where they take at most GPU_SHARE of its free memory, else in memory where they take RAM_SHARE of
    what is free there, else nowhere. InputError for gpu without one, or for more than its free memory holds.
    """
    size = tiles * img_size**2 * 3  # bytes
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if cache == "gpu":
        if device.type != "cuda":
            raise InputError(f"cache = gpu, but the run is on {device}; use cache = auto, ram or none")
        if size > free:
            raise InputError(
                f"cache = gpu: {tiles} tiles of {img_size} px take {size / 1e9:.1f} GB, of {device} "
                f"{free / 1e9:.1f} GB are free; use cache = auto, or fewer tiles (max_patch_per_wsi)"
            )
    if cache != "auto":
        return cache
    if size <= GPU_SHARE * free:
        return "gpu"
    return "ram" if size <= RAM_SHARE * free_memory() / on_this_machine() else "none"


def resident(cohort: Cohort, device: torch.device, workers: int = 0, patience: float = PATIENCE) -> torch.Tensor:
    """Return all tiles as uint8 (N, H, W, 3) on `device`; they pass through memory a strip at a time."""
    tiles, n = cohort.tiles, len(cohort.tiles)
    whole = torch.empty((n, tiles.img_size, tiles.img_size, 3), dtype=torch.uint8, device=device)
    strips = np.array_split(np.arange(n), max(1, -(-n // STRIP)))
    for indices, images in tile_batches(tiles, lambda k: strips[k], 0, len(strips), workers, patience):
        whole[int(indices[0]) : int(indices[-1]) + 1] = torch.from_numpy(images).to(device)
    return whole
