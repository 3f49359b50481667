"""What evaluate_conditioning.py looks at: held-out patients of a tissue, their real and generated tiles, measured."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from common.config import DataSettings, GANSettings
from common.distributed import alone
from common.errors import InputError, warn
from common.run import generator_for, seed_for
from datasets.cohort import Cohort, open_cohort
from datasets.tiles import to_uint8
from metrics.comparison import Measured
from metrics.morphology import MEASURES, morphology
from models.conditioning import ConditionedGenerator
from models.features import Extractor
from models.generate import generate_tiles
from sources.division import divided
from sources.gan import GAN
from sources.profiles import Profiles
from sources.vae import Fit

LEAST = 5  # held-out patients; with fewer, 1 in 24 or more of all pairings is the true one
LEAST_TILES = 4  # real tiles of a patient, where most have them: each half has a spread then
REAL_TILES = 64  # of a patient that are looked at, at most (or --tiles, where that is more)
TRAIN_TILES = 4000  # of all training patients together, about: features, for the round trip and memorisation
BATCH = 64
STRIP = 128  # tiles in memory at a time, and what a rank takes at a time
View = Callable[[np.ndarray], np.ndarray]  # uint8 (n, H, W, 3) -> (n, d)


@dataclass
class Patients:
    """Rows of a cohort's table with tiles, of one tissue: P patients, or spots, in the table's order."""

    cohort: Cohort
    rows: np.ndarray  # (P,) row numbers in cohort.slides and cohort.table
    c: torch.Tensor  # (P, z), what their profiles bring to the generator
    tiles: list[np.ndarray]  # numbers in cohort.tiles, for each patient
    featured: list[np.ndarray]  # those of them whose features are looked at
    available: int  # tiles of these patients in the cohort, looked at or not
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> slides, see `independent`

    @property
    def names(self) -> list[str]:
        """The patients' slides."""
        return self.cohort.slides["slide"].iloc[self.rows].tolist()

    def take(self, kept: np.ndarray, reason: str) -> "Patients":
        """Return the patients where `kept` (P,) bool says so; the others' slides are noted in left_out."""
        chosen = np.flatnonzero(kept)
        tiles, featured = ([x[p] for p in chosen] for x in (self.tiles, self.featured))
        left_out = self.left_out | {reason: [name for name, keep in zip(self.names, kept, strict=True) if not keep]}
        c = self.c[torch.from_numpy(chosen)]
        return replace(self, rows=self.rows[chosen], c=c, tiles=tiles, featured=featured, left_out=left_out)

    def column(self, name: str) -> np.ndarray | None:
        """Return a column of the table for these patients, (P,) text; None where it is missing or has gaps."""
        obs = self.cohort.table.obs
        values = obs[name].astype(str).to_numpy()[self.rows] if name in obs else np.array([""])
        return None if (values == "").any() else values

    def array_xy(self) -> np.ndarray | None:
        """Return the spots' places in their array (P, 2) int; None where the table has none."""
        columns = [self.column(name) for name in ("array_x", "array_y")]
        if any(column is None for column in columns):
            return None
        try:
            return np.stack([np.round(column.astype(float)) for column in columns], 1).astype(int)
        except ValueError:
            raise InputError(f"{self.cohort.table.source}: array_x, array_y: whole numbers were expected") from None

    def read(self, patient: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Return a patient's real tiles, uint8 (n, H, W, 3)."""
        return self.cohort.tiles.read(self.tiles[patient][rows])


def open_patients(
    gan: GAN, cfg: GANSettings, vae_path: str | None, split: str, seed: int, most: int, total: int = 0
) -> tuple[dict[str, Patients], Profiles]:
    """Return tissue -> the patients of `split` with at most `most` seeded tiles each, and the profiles of their table.

    `total`: features of at most about so many tiles of a tissue's patients together (0: of all). The split is
    the one the GAN was trained under, the pixels those of its tiles. InputError where a table or tiles are missing, or
    where a held-out donor trained the GAN or its VAE.
    """
    seen = cfg.split_seed if gan.state["split_seed"] is None else gan.state["split_seed"]  # None: a published GAN
    if cfg.split_seed != seen:
        warn(f"split_seed = {cfg.split_seed} in the config; {gan.run} was trained under {seen}: that is used")
    theirs = {"split_seed": seen, "img_size": gan.state["img_size"]}
    if split == "train":  # the tiles that it was shown
        keys = ("seed", "max_patch_per_wsi", "min_tissue", "min_sharpness", "max_pen")
        theirs |= {key: gan.state["settings"].get(key, getattr(DataSettings, key)) for key in keys}
    cohort = open_cohort(replace(cfg, **theirs), (split,))
    profiles = gan.profiles(vae_path, cohort.table, Fit.of(replace(cfg, split_seed=seen)))
    if split != "train":
        profiles.refuse_trained(split, range(len(cohort.table)))
    c = profiles.conditions()
    found = {}
    for tissue, slides in cohort.slides[cohort.slides["n_tiles"] > 0].groupby("tissue", sort=False):
        rows = slides.index.to_numpy()
        limit = min(most, max(2, total // len(rows))) if total else most
        own = [np.flatnonzero(cohort.tiles.slide_index == row) for row in rows]
        tiles, featured = (
            [_some(numbers, n, seed, int(row)) for numbers, row in zip(own, rows, strict=True)] for n in (most, limit)
        )
        found[str(tissue)] = Patients(cohort, rows, c[torch.from_numpy(rows)], tiles, featured, sum(map(len, own)))
        gan.warn_of_tissue(f"{split} split", str(tissue))
    return found, profiles


def independent(patients: Patients, tissue: str) -> Patients:
    """Return the patients that can be compared with each other; a warning and left_out name the others.

    few_tiles: patients with fewer than LEAST_TILES real tiles, where more than half (and at least LEAST) have them:
    one such patient would else decide for all what the ceiling and the distances are. same_donor: all but the first
    row of a donor: they are alike, n would count the donor more than once and every pairing would exchange them
    freely. Spots of an array (array_x) are kept: torus shifts are made for them.
    """
    enough = np.array([len(x) >= LEAST_TILES for x in patients.tiles])
    if not enough.all() and enough.sum() >= LEAST and enough.mean() > 0.5:
        patients = patients.take(enough, "few_tiles")
        names = patients.left_out["few_tiles"]
        warn(f"{tissue}: {len(names)} with fewer than {LEAST_TILES} real tiles left out: {', '.join(names)}")
    if patients.array_xy() is not None:
        return patients
    donors = patients.cohort.slides["donor"].astype(str).to_numpy()[patients.rows]
    first = np.zeros(len(donors), bool)
    first[np.unique(donors, return_index=True)[1]] = True
    if first.all():
        return patients
    warn(
        f"{tissue}: {len(donors)} rows of {first.sum()} donors, who are not independent: the first row of each is "
        f"evaluated, {(~first).sum()} are left out (left_out in metrics.json)"
    )
    return patients.take(first, "same_donor")


def refuse_few(patients: dict[str, Patients], split: str, source: str) -> None:
    """InputError with the counts where a tissue has fewer than LEAST patients: nothing could be significant."""
    for tissue, p in patients.items():
        if len(p.rows) < LEAST:
            counts = ", ".join(f"{len(q.rows)} {name}" for name, q in patients.items())
            raise InputError(
                f"{source}: {len(p.rows)} patients of {tissue} with tiles in split {split} ({counts}), at least "
                f"{LEAST} were expected; add donors, or use --split val"
            )


# ---- Measuring ----


class Tiles(NamedTuple):
    """Tiles of patients, in turn: how many each has, and `read`, a stretch of patients -> each one's uint8
    (n_p, H, W, 3), read or drawn when it is asked for."""

    sizes: Sequence[int]
    read: Callable[[range], Iterable[np.ndarray]]


class Ruler:
    """Features and morphology of tiles, in batches."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return features (n, d) of uint8 (n, H, W, 3)."""
        return np.concatenate([self.extractor(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])

    def morphology(self, images: np.ndarray, mpp: float) -> dict[str, np.ndarray]:
        """Return the MEASURES (n,) of uint8 (n, H, W, 3) at mpp um per pixel."""
        parts = [morphology(images[i : i + BATCH], mpp) for i in range(0, len(images), BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in MEASURES}

    def table(self, images: np.ndarray, mpp: float) -> np.ndarray:
        """Return the MEASURES as columns, (n, measures)."""
        return np.stack(list(self.morphology(images, mpp).values()), 1)

    def measure(self, tiles: Tiles, mpp: float) -> Measured:
        """Return Measured of each patient's tiles."""
        views = {"features": self.features, "morphology": lambda x: self.table(x, mpp)}
        return self._measured(viewed(views, tiles))

    def side(self, tiles: Tiles, mpp: float, right: bool) -> Measured:
        """Return the left or right halves of tiles, measured: morphology of the half, features of the half beside its
        mirror image, so that the extractor sees a tile of the usual shape and scale."""
        views = {
            "features": lambda x: self.features(half_of(x, right, mirror=True)),
            "morphology": lambda x: self.table(half_of(x, right), mpp),
        }
        return self._measured(viewed(views, tiles))

    def _measured(self, found: dict[str, list[np.ndarray]]) -> Measured:
        return Measured(found["features"], {m: [x[:, k] for x in found["morphology"]] for k, m in enumerate(MEASURES)})


def viewed(views: dict[str, View], tiles: Tiles) -> dict[str, list[np.ndarray]]:
    """Return each view of each patient's tiles; about STRIP tiles are in memory at a time, the ranks divide the strips.

    A strip is whole patients, as many as make STRIP tiles or more: the same whoever looks at it.
    """
    before = np.concatenate([[0], np.cumsum(tiles.sizes)])  # tiles before each patient
    cuts = [0]
    for p in range(1, len(before)):
        if before[p] - before[cuts[-1]] >= STRIP or p == len(tiles.sizes):
            cuts.append(p)
    strips = [range(first, stop) for first, stop in itertools.pairwise(cuts)]

    def work(mine: Sequence[range]) -> Iterator[dict[str, np.ndarray]]:
        images = iter(tiles.read(range(mine[0].start, mine[-1].stop)) if mine else ())
        for strip in mine:
            some = np.concatenate(list(itertools.islice(images, len(strip))))
            yield {name: view(some) for name, view in views.items()}

    return {name: np.split(rows, before[1:-1]) for name, rows in divided(list(views), strips, work).items()}


def half_of(tiles: np.ndarray, right: bool, mirror: bool = False) -> np.ndarray:
    """Return the left or right half of tiles (n, H, W, 3), with `mirror` beside its mirror image."""
    width = tiles.shape[2] // 2
    half = np.ascontiguousarray(tiles[:, :, -width:] if right else tiles[:, :, :width])
    return np.concatenate([half, half[:, :, ::-1]], axis=2) if mirror else half


@dataclass
class Generated:
    """Tiles of a generator for patients with input c (P, z), or without expression (c None); `each` a patient.

    Tile k of patient p has number p * each + k in the noise, so that no two patients share theirs.
    """

    generator: ConditionedGenerator
    c: torch.Tensor | None
    patients: int
    each: int
    device: torch.device
    guidance: float = 1.0

    def batches(self, seed: int, start: int = 0, n: int | None = None) -> Iterator[np.ndarray]:
        """Yield tiles start.. as uint8 (b, H, W, 3), all patients' unless `n` says fewer."""
        n = self.patients * self.each - start if n is None else n
        c = None if self.c is None else self.c[torch.arange(start, start + n) // self.each]
        options = {"batch_size": BATCH, "device": self.device, "guidance": self.guidance}
        if c is not None and self.generator.rule.standardise == "batch":  # published: one profile in a batch, as there
            for p in range(start // self.each, (start + n - 1) // self.each + 1):
                first, stop = max(start, p * self.each), min(start + n, (p + 1) * self.each)
                for tiles in generate_tiles(self.generator, stop - first, seed, self.c[p], start=first, **options):
                    yield to_uint8(tiles)
            return
        for tiles in generate_tiles(self.generator, n, seed, c, start=start, **options):
            yield to_uint8(tiles)

    def tiles(self, seed: int) -> Tiles:
        """Return each patient's tiles."""
        return Tiles([self.each] * self.patients, lambda some: self._tiles(seed, some))

    def _tiles(self, seed: int, some: range) -> Iterator[np.ndarray]:
        held = np.empty((0, 0, 0, 3), np.uint8)
        for batch in self.batches(seed, some.start * self.each, len(some) * self.each):
            held = np.concatenate([held, batch]) if len(held) else batch
            while len(held) >= self.each:
                yield held[: self.each]
                held = held[self.each :]

    def tiles_of(self, seed: int, patients: Sequence[int], n: int) -> list[np.ndarray]:
        """Return the first n tiles of some patients."""
        return [np.concatenate(list(self.batches(seed, p * self.each, min(n, self.each)))) for p in patients]

    def tile(self, seed: int, number: int) -> np.ndarray:
        """Return one tile (H, W, 3) by its number."""
        return next(self.batches(seed, number, 1))[0]

    def measure(self, seed: int, ruler: Ruler, mpp: float) -> Measured:
        """Return Measured of all patients' tiles, which are not kept."""
        return ruler.measure(self.tiles(seed), mpp)

    def same_noise(self, seed: int, c: torch.Tensor, noises: int) -> np.ndarray:
        """Return tiles of each input c (m, z) with the same `noises` noise vectors, uint8 (m, noises, H, W, 3)."""
        noise = torch.cat([self.generator.draw(1, generator_for(seed, "tile", k)) for k in range(noises)])
        at_once = 1 if self.generator.rule.standardise == "batch" else max(1, BATCH // noises)  # published: one profile
        tiles = []
        with torch.inference_mode(), alone():
            for some in c.split(at_once):
                inputs = noise.repeat(len(some), 1), some.repeat_interleave(noises, 0)
                tiles.append(self.generator(*(x.to(self.device) for x in inputs), guidance=self.guidance).float().cpu())
        return to_uint8(torch.cat(tiles)).reshape(len(c), noises, *tiles[0].shape[2:], 3)


def _some(numbers: np.ndarray, most: int, seed: int, row: int) -> np.ndarray:
    if len(numbers) <= most:
        return numbers
    order = torch.randperm(len(numbers), generator=generator_for(seed, "evaluated", row)).numpy()
    return np.sort(numbers[order[:most]])


def seeds_of(seed: int, count: int) -> list[int]:
    """Return the sampling seeds."""
    return [seed_for(seed, "sampling", s) for s in range(count)]
