"""patients  Mean features of each held-out patient's tiles, real, GAN and RNA-GAN, and the distances between them.

    python paper_figures.py patients --study demo

Reads   the tile stores, tables, beta-VAE and GANs of the study; draws 16 tiles per patient with each GAN.
Writes  patients.*; features are kept beside the figures, so that a second call computes nothing
"""

import numpy as np
import pandas as pd
import torch

from common.checkpoint import content_digest
from common.run import seed_for
from figures.paper_patients import Whose, patients_figure
from figures.results import short
from models.features import Extractor, load_extractor
from paper.latent import principal
from paper.parts import Ask, Drawn, made_by, model_line
from sources.study import HeldOut

NAME, WHAT = "patients", "mean features of each patient's tiles, and distances"
EACH = 16  # tiles that a GAN draws for a patient
REAL = 32  # real tiles of a patient that are looked at, at most
EXTRACTOR, LEAST_SIDE = "efficientnet_lite0", 32  # pixels: of less, its last features are all alike


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw a row per tissue."""
    with made_by(ask, "gan"):
        held_out = ask.study.held_out
    found, tables, about = {}, [], []
    for tissue, patients in held_out.items():
        side = max(patients.cohort.tiles.img_size, LEAST_SIDE)
        extractor = load_extractor(EXTRACTOR, None, ask.study.device, side)
        means = features_of(ask, extractor, patients)
        real = means.pop("real")
        whose = compare(real.mean(1), means, real)
        found[tissue] = whose
        tables += [table.assign(tissue=tissue) for table in tables_of(patients.slides, whose)]
        sizes = patients.cohort.slides["n_tiles"].iloc[patients.rows].clip(upper=REAL).tolist()
        own = "; ".join(f"{kind} {whose.nearest[kind]} of {len(sizes)}" for kind in whose.nearest)
        about.append(
            f"{tissue}: n = {len(sizes)} patients, {counted(sizes)} real and {EACH} generated tiles each; "
            f"nearest to their own patient: {own}. {model_line(*patients.gans.values())}"
        )
    caption = (
        "Mean features of each held-out patient's tiles. (Left) In the first two principal components of the real "
        "ones; a line joins a patient's real and RNA-GAN tiles. The plain GAN knows no patient. (Right) Distance of a "
        "patient's generated tiles from the real tiles of the same and of the other patients (Euclidean, between mean "
        "features, over the mean distance between two real patients); real: one half of a patient's tiles against the "
        "other half, and against the others' halves, which is what a perfect match could reach. Boxes: quartiles; "
        f"whiskers: 1.5 times their range. {' '.join(about)} Seed {ask.seed}; extractor {extractor.name}, weights "
        f"{short(extractor.digest)}."
    )
    return {NAME: Drawn(patients_figure(found), pd.concat(tables, ignore_index=True), caption)}


def features_of(ask: Ask, extractor: Extractor, patients: HeldOut) -> dict[str, np.ndarray]:
    """Return kind -> mean features: "real" (patients, 2, d) of two halves of the tiles, of GANs (patients, d).

    Halves: every patient's tiles in a seeded order, first and second half.
    """
    tiles, vae = patients.cohort.tiles, ask.study.vae[1]
    stores = [tiles.stores[row].digest for row in patients.rows]
    of = {"figure": "patients", "extractor": extractor.name, "weights": extractor.digest, "seed": ask.seed}
    of |= {"slides": patients.slides, "stores": stores, "side": tiles.img_size, "tiles": [EACH, REAL], "vae": vae}
    of |= {"gans": {kind: gan.digest for kind, gan in patients.gans.items()}}
    if patients.cohort.table is not None:
        of["profiles"] = content_digest(torch.from_numpy(patients.cohort.table.values[patients.rows]))

    def make() -> dict[str, np.ndarray]:
        found = {"real": np.stack([halves(extractor(x), seed_for(ask.seed, "halves")) for x in patients.real(REAL)])}
        for kind, gan in patients.gans.items():
            drawn = ask.study.generated(gan, patients, EACH, ask.seed)
            found[kind] = np.stack([extractor(x).mean(0) for x in drawn])
        return found

    return ask.kept.arrays(of, make)


def halves(features: np.ndarray, seed: int) -> np.ndarray:
    """Return the mean features (2, d) of two random halves of a patient's tiles (n, d); of one tile twice itself."""
    order = np.random.default_rng(seed).permutation(len(features))
    first, second = order[: max(1, len(order) // 2)], order[len(order) // 2 :]
    return np.stack([features[first].mean(0), features[second].mean(0)])


def compare(real: np.ndarray, made: dict[str, np.ndarray], half: np.ndarray) -> Whose:
    """Return places in two dimensions and distances: real (P, d), made kind -> (P, d), half (P, 2, d)."""
    everything = np.concatenate([real, *made.values()])
    points, share = principal(everything, np.arange(len(everything)) < len(real))
    places = dict(zip(("real", *made), np.split(points, 1 + len(made)), strict=True))
    other = ~np.eye(len(real), dtype=bool)
    unit = distances(real, real)[other].mean() or 1.0  # tiles that are all alike have no distance
    matrices = {"real": distances(half[:, 0], half[:, 1]) / unit}
    matrices |= {kind: distances(x, real) / unit for kind, x in made.items()}
    nearest = {kind: int((m.argmin(1) == np.arange(len(m))).sum()) for kind, m in matrices.items()}
    return Whose(
        places=places,
        share=share,
        same={kind: m.diagonal() for kind, m in matrices.items()},
        others={kind: m[other] for kind, m in matrices.items()},
        nearest=nearest,
    )


def counted(sizes: list[int]) -> str:
    """Return "14 to 32", or "32" where all are equal."""
    return f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Euclidean distances (n, m) between rows of x (n, d) and y (m, d)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.linalg.norm(x[:, None] - y[None], axis=2)


def tables_of(slides: list[str], whose: Whose) -> list[pd.DataFrame]:
    """Return the places and the distances from one's own patient, a line each, and the mean over the others."""
    tables = []
    for kind, points in whose.places.items():
        others = whose.others[kind].reshape(len(slides), -1).mean(1)
        columns = {"patient": slides, "kind": kind, "pc_1": points[:, 0], "pc_2": points[:, 1]}
        tables.append(pd.DataFrame(columns | {"to_own": whose.same[kind], "to_others_mean": others}))
    return tables
