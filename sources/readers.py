"""What expression says of tiles, and tiles of expression: components, ridges, directions, shifts."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from common.archives import read_npz
from common.errors import InputError
from metrics.comparison import Measured
from metrics.morphology import MEASURES
from metrics.prediction import RidgeModel, fit_ridge
from sources.division import divided
from sources.evaluation import LEAST, STRIP, Patients, Ruler, View
from sources.profiles import Profiles

COMPONENTS, PREDICTORS = 16, 32  # principal components of c: read back from tiles; used to predict morphology
BANDS = 5  # that a lone section is cut into, across its longer side


@dataclass
class Look:
    """A way to look at tiles, and what ridges fitted on training tiles read off what it sees.

    train: its features (m, d) of Readers.train_tiles; to_components: features -> the first COMPONENTS of expression;
    to_morphology: features -> the MEASURES of the same tile.
    """

    view: View
    train: np.ndarray
    to_components: RidgeModel
    to_morphology: RidgeModel

    def morphology(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Return measure -> (n,) as the ridge reads it off features (n, d)."""
        values = self.to_morphology.predict(features)
        return {name: values[:, k] for k, name in enumerate(MEASURES)}


@dataclass
class Readers:
    """Fitted on training patients of a tissue: expression components, ridges from them to tiles, directions.

    `axes` (k, z) and `spread` (k,): principal components of c and their sd; scores (rows, k): the patients' components;
    to_morphology: components -> a patient's mean MEASURES, over all of patients.tiles. train_tiles (m,): the numbers
    of patients.featured in cohort.tiles, tile_morphology (m, measures) of each, the mean where a tile has none.
    """

    patients: Patients
    centre: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    to_morphology: RidgeModel
    train_tiles: np.ndarray
    tile_morphology: np.ndarray

    @classmethod
    def fit(cls, patients: Patients, ruler: Ruler, mpp: float) -> "Readers":
        """Measure the training tiles and fit. InputError for fewer than LEAST patients."""
        if len(patients.rows) < LEAST:
            raise InputError(
                f"{patients.cohort.table.source}: {len(patients.rows)} training patients with tiles, at least {LEAST} "
                "were expected for the round trip; add donors"
            )
        c = patients.c.double().numpy()
        centre = c.mean(0)
        _, singular, axes = np.linalg.svd(c - centre, full_matrices=False)
        kept = min(PREDICTORS, int((singular > 1e-6 * max(singular[0], 1e-12)).sum()), len(c) - 1)
        if not kept:
            raise InputError(f"{patients.cohort.table.source}: all training patients have the same expression")
        axes, scores = axes[:kept], (c - centre) @ axes[:kept].T
        groups = _groups(patients)
        numbers = np.concatenate(patients.tiles)
        values = _seen(patients, numbers, lambda images: ruler.table(images, mpp))  # (n, measures)
        ends = np.cumsum([len(x) for x in patients.tiles])[:-1]
        each = Measured([], {name: np.split(values[:, k], ends) for k, name in enumerate(MEASURES)})
        means = _filled(np.stack([each.mean_of(name) for name in MEASURES], 1))  # (rows, measures)
        featured = np.concatenate(patients.featured)
        order = np.argsort(numbers)
        of_tile = _filled(values[order[np.searchsorted(numbers[order], featured)]])
        to_morphology = fit_ridge(scores, means, groups)
        return cls(patients, centre, axes, scores.std(0), scores, groups, to_morphology, featured, of_tile)

    def look(self, view: View, most: int | None = None) -> Look:
        """Return `view` of the training tiles, of at most about `most`, evenly spaced, and its ridges."""
        rows = np.arange(len(self.train_tiles))[:: max(1, -(-len(self.train_tiles) // (most or len(self.train_tiles))))]
        train = _seen(self.patients, self.train_tiles[rows], view)
        whose = np.repeat(np.arange(len(self.scores)), [len(x) for x in self.patients.featured])[rows]
        groups = self.groups[whose]
        to_components = fit_ridge(train, self.scores[whose][:, :COMPONENTS], groups)
        return Look(view, train, to_components, fit_ridge(train, self.tile_morphology[rows], groups))

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
        file = read_npz(path)
        shift, digest = np.asarray(file["shift"], np.float32), str(file["vae_digest"])
    except (KeyError, ValueError, OSError, EOFError, TypeError, BadZipFile, zlib.error) as error:
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


def _seen(patients: Patients, numbers: np.ndarray, view: View) -> np.ndarray:
    """Return a view (n, d) of the tiles of these numbers, STRIP in memory at a time; the ranks divide the strips."""
    strips = np.split(numbers, range(STRIP, len(numbers), STRIP))
    read = patients.cohort.tiles.read
    return divided(["seen"], strips, lambda mine: ({"seen": view(read(strip))} for strip in mine))["seen"]


def _filled(values: np.ndarray) -> np.ndarray:
    """Return values (n, k) with the column's mean in place of what is not finite."""
    fine = np.isfinite(values)
    return np.where(fine, values, np.where(fine, values, 0).sum(0) / np.maximum(fine.sum(0), 1))


def _groups(patients: Patients) -> np.ndarray:
    """What cross-validation keeps apart (P,): donors; where there is one only, sections; else bands of one section's
    array, because neighbouring spots are alike; else rows."""
    donors = patients.cohort.slides["donor"].astype(str).to_numpy()[patients.rows]
    sections = patients.column("section")
    for words in (donors, sections):
        if words is not None and len(set(words)) > 1:
            return np.unique(words, return_inverse=True)[1]
    if (xy := patients.array_xy()) is not None:
        along = xy[:, np.ptp(xy, axis=0).argmax()]
        return (along - along.min()) * BANDS // (np.ptp(along) + 1)
    return np.arange(len(patients.rows))
