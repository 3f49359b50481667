"""What evaluate_conditioning.py looks at: held-out patients of a tissue, their real and generated tiles, measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from common.config import GANSettings
from common.errors import InputError, warn
from common.run import generator_for, seed_for
from datasets.cohort import Cohort, open_cohort
from datasets.tiles import to_uint8
from metrics.evaluation import Measured
from metrics.morphology import MEASURES, morphology
from metrics.prediction import RidgeModel, fit_ridge
from models.conditioning import ConditionedGenerator
from models.features import Extractor
from models.generate import generate_tiles
from sources.gan import GAN
from sources.profiles import Profiles

LEAST = 5  # held-out patients; with fewer, 1 in 24 or more of all pairings is the true one
REAL_TILES = 64  # of a patient that are looked at, at most (or --tiles, where that is more)
TRAIN_TILES = 1200  # of all training patients together, at most: for the round trip and memorisation
COMPONENTS, PREDICTORS = 16, 32  # principal components of c: read back from tiles; used to predict morphology
BATCH = 64


@dataclass
class Patients:
    """Rows of a cohort's table with tiles, of one tissue: P patients, or spots, in the table's order."""

    cohort: Cohort
    rows: np.ndarray  # (P,) row numbers in cohort.slides and cohort.table
    c: torch.Tensor  # (P, z), what their profiles bring to the generator
    tiles: list[np.ndarray]  # numbers in cohort.tiles, for each patient

    @property
    def names(self) -> list[str]:
        """The patients' slides."""
        return self.cohort.slides["slide"].iloc[self.rows].tolist()

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

    `total`: at most so many tiles of a tissue's patients together (0: no limit). The split is the one the GAN was
    trained under, the pixels those of its tiles. InputError where a table or tiles are missing.
    """
    seen = gan.state["split_seed"]
    if cfg.split_seed != seen:
        warn(f"split_seed = {cfg.split_seed} in the config; {gan.run} was trained under {seen}: that is used")
    cohort = open_cohort(replace(cfg, split_seed=seen, img_size=gan.state["img_size"], cache="none"), (split,))
    profiles = gan.profiles(vae_path, cohort.table)
    c = profiles.conditions()
    found = {}
    for tissue, slides in cohort.slides[cohort.slides["n_tiles"] > 0].groupby("tissue", sort=False):
        rows = slides.index.to_numpy()
        limit = min(most, max(2, total // len(rows))) if total else most
        tiles = [_some(np.flatnonzero(cohort.tiles.slide_index == row), limit, seed, int(row)) for row in rows]
        found[str(tissue)] = Patients(cohort, rows, c[torch.from_numpy(rows)], tiles)
        gan.warn_of_tissue(f"{split} split", str(tissue))
    return found, profiles


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

    def measure(self, images: Sequence[np.ndarray], mpp: float) -> Measured:
        """Return Measured of each patient's tiles, uint8 (n_p, H, W, 3)."""
        ends, flat = np.cumsum([len(x) for x in images])[:-1], np.concatenate(images)
        values = self.morphology(flat, mpp)
        return Measured(np.split(self.features(flat), ends), {k: np.split(v, ends) for k, v in values.items()})

    def sides(self, images: Sequence[np.ndarray], mpp: float) -> tuple[Measured, Measured]:
        """Return the left and the right halves of tiles, measured: morphology of the half, features of the half beside
        its mirror image, so that the extractor sees a tile of the usual shape and scale."""
        found = []
        for half in (lambda x: x[:, :, : x.shape[2] // 2], lambda x: x[:, :, -(x.shape[2] // 2) :]):
            halves = [half(x) for x in images]
            whole = [np.concatenate([x, x[:, :, ::-1]], axis=2) for x in halves]
            ends = np.cumsum([len(x) for x in images])[:-1]
            values = self.morphology(np.ascontiguousarray(np.concatenate(halves)), mpp)
            features = np.split(self.features(np.concatenate(whole)), ends)
            found.append(Measured(features, {k: np.split(values[k], ends) for k in MEASURES}))
        return found[0], found[1]


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

    def tiles(self, seed: int) -> list[np.ndarray]:
        """Return each patient's tiles, P of uint8 (each, H, W, 3)."""
        return np.split(np.concatenate(list(self.batches(seed))), self.patients)

    def tiles_of(self, seed: int, patients: Sequence[int], n: int) -> list[np.ndarray]:
        """Return the first n tiles of some patients."""
        return [np.concatenate(list(self.batches(seed, p * self.each, min(n, self.each)))) for p in patients]

    def tile(self, seed: int, number: int) -> np.ndarray:
        """Return one tile (H, W, 3) by its number."""
        return next(self.batches(seed, number, 1))[0]

    def measure(self, seed: int, ruler: Ruler, mpp: float) -> Measured:
        """Return Measured of all patients' tiles, which are not kept."""
        parts = [ruler.measure([batch], mpp) for batch in self.batches(seed)]
        features = np.concatenate([part.features[0] for part in parts])
        values = {name: np.concatenate([part.morphology[name][0] for part in parts]) for name in MEASURES}
        split = [np.split(v, self.patients) for v in (features, *values.values())]
        return Measured(split[0], dict(zip(values, split[1:], strict=True)))

    def same_noise(self, seed: int, c: torch.Tensor, noises: int) -> np.ndarray:
        """Return tiles of each input c (m, z) with the same `noises` noise vectors, uint8 (m, noises, H, W, 3)."""
        options = {"batch_size": noises, "device": self.device, "guidance": self.guidance}
        rows = [torch.cat(list(generate_tiles(self.generator, noises, seed, one, **options))) for one in c]
        return np.stack([to_uint8(row) for row in rows])


# ---- What expression says: components, ridges, directions ----


@dataclass
class Readers:
    """Fitted on training patients of a tissue: expression components, ridges between them and tiles, directions.

    `axes` (k, z) and `spread` (k,): principal components of c and their sd; from_tiles: features -> the first
    COMPONENTS of them; to_morphology: components -> a patient's mean MEASURES. train: features (m, d) of the training
    tiles looked at, train_tiles (m,) their numbers in cohort.tiles; n_train: patients.
    """

    patients: Patients
    centre: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    from_tiles: RidgeModel
    to_morphology: RidgeModel
    train: np.ndarray
    train_tiles: np.ndarray

    @classmethod
    def fit(cls, patients: Patients, ruler: Ruler, mpp: float) -> "Readers":
        """Measure the training tiles and fit. InputError for fewer than LEAST patients."""
        if len(patients.rows) < LEAST:
            raise InputError(
                f"{patients.cohort.table.source}: {len(patients.rows)} training patients with tiles, at least {LEAST} "
                "were expected for the round trip; add donors"
            )
        measured = ruler.measure([patients.read(p) for p in range(len(patients.rows))], mpp)
        c = patients.c.double().numpy()
        centre = c.mean(0)
        _, singular, axes = np.linalg.svd(c - centre, full_matrices=False)
        kept = min(PREDICTORS, int((singular > 1e-6 * max(singular[0], 1e-12)).sum()), len(c) - 1)
        if not kept:
            raise InputError(f"{patients.cohort.table.source}: all training patients have the same expression")
        axes, scores = axes[:kept], (c - centre) @ axes[:kept].T
        groups = _groups(patients)
        whose = np.repeat(np.arange(len(c)), [len(x) for x in measured.features])
        features = np.concatenate(measured.features)
        means = np.stack([measured.mean_of(name) for name in MEASURES], 1)  # (rows, measures)
        means = np.where(np.isfinite(means), means, np.nan_to_num(np.nanmean(means, 0)))
        from_tiles = fit_ridge(features, scores[whose][:, :COMPONENTS], groups[whose])
        to_morphology = fit_ridge(scores, means, groups)
        numbers = np.concatenate(patients.tiles)
        return cls(patients, centre, axes, scores.std(0), from_tiles, to_morphology, features, numbers)

    def components(self, c: torch.Tensor) -> np.ndarray:
        """Return the principal components (n, k) of c (n, z)."""
        return (c.double().numpy() - self.centre) @ self.axes.T

    def predicted_morphology(self, c: torch.Tensor) -> dict[str, np.ndarray]:
        """Return measure -> (n,) as the ridge predicts it from expression alone."""
        values = self.to_morphology.predict(self.components(c))
        return {name: values[:, k] for k, name in enumerate(MEASURES)}

    def directions(self) -> dict[str, torch.Tensor]:
        """Return steps in c, (z,) each: "component 1", one sd of it, and for each measure its ridge's direction.

        The latter is the mean change of c over training patients that goes with one sd of the ridge's prediction:
        cov(c) w / sd (the pattern of a linear model: Haufe et al. 2014, eq. 6), so that a step stays among profiles
        that occur, which w itself need not. Measures that the ridge cannot predict have none.
        """
        variance = np.square(self.spread)
        found = {"component 1": self.axes[0] * self.spread[0]}
        weights = self.to_morphology.coef / self.to_morphology.scale[:, None]  # (k, measures)
        for k, name in enumerate(MEASURES):
            sd = float(np.sqrt((variance * np.square(weights[:, k])).sum()))
            if sd > 0 and self.to_morphology.cv_r[k] > 0:
                found[name] = (variance * weights[:, k] / sd) @ self.axes
        return {name: torch.from_numpy(step).float() for name, step in found.items()}


def read_shift(path: str | Path, profiles: Profiles) -> torch.Tensor:
    """Return the whole shift (z,) in units of the generator's input, from an .npz of betaVAE_interpolation.py.

    InputError where the file is none, has another length, or was made with another VAE.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; make shifts with betaVAE_interpolation.py")
    try:
        with np.load(path, allow_pickle=False) as file:
            shift, digest = np.asarray(file["shift"], np.float32), str(file["vae_digest"])
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a shift of betaVAE_interpolation.py ({error}); an .npz was expected") from None
    if shift.shape != profiles.mean.shape:
        raise InputError(
            f"{path}: a shift of {shift.size} latent dimensions, the VAE {profiles.path} has {len(profiles.mean)}; "
            "make it again with betaVAE_interpolation.py"
        )
    if digest != profiles.vae_digest:
        raise InputError(
            f"{path}: made with another VAE ({digest[:12]}) than {profiles.path} ({profiles.vae_digest[:12]}); make it "
            "again with betaVAE_interpolation.py"
        )
    mean, std, rule = profiles.mean, profiles.std, profiles.rule
    shift = torch.from_numpy(shift)
    return rule.condition(mean + shift, mean, std) - rule.condition(mean, mean, std)


def _groups(patients: Patients) -> np.ndarray:
    """What cross-validation keeps apart: donors; sections where there are too few donors; else rows. (P,)"""
    donors = patients.cohort.slides["donor"].astype(str).to_numpy()[patients.rows]
    sections = patients.column("section")
    for words in (donors, sections):
        if words is not None and len(set(words)) > 1:
            return np.unique(words, return_inverse=True)[1]
    return np.arange(len(patients.rows))


def _some(numbers: np.ndarray, most: int, seed: int, row: int) -> np.ndarray:
    if len(numbers) <= most:
        return numbers
    order = torch.randperm(len(numbers), generator=generator_for(seed, "evaluated", row)).numpy()
    return np.sort(numbers[order[:most]])


def seeds_of(seed: int, count: int) -> list[int]:
    """Return the sampling seeds."""
    return [seed_for(seed, "sampling", s) for s in range(count)]
