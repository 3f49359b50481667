"""One tissue's evaluation: tiles are drawn and measured once, then every number and picture is made of them.

Several ranks divide the drawing and measuring; what they measured all have, and each computes every number of it.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import InputError
from common.run import generator_for, seed_for
from metrics import evaluation
from metrics.colour import colour_histogram, greyscale
from metrics.comparison import Comparison, Measured, halve
from metrics.diversity import nearest_pairs
from metrics.morphology import MEASURES
from metrics.pairing import re_pairings, torus_shifts
from metrics.verdict import verdict
from sources.evaluation import Generated, Patients, Ruler, Tiles, View, half_of, seeds_of, viewed
from sources.gan import GAN
from sources.readers import Look, Readers

HALVINGS = 10
CONTROL_TILES = 24  # of a patient, at most, for the controls
LOOK_TILES = 800  # training tiles, about, that greyscale and colours alone are fitted on
LIVE_PATIENTS, LIVE_NOISES = 8, 8
DOSE_PATIENTS, DOSE_NOISES = 5, 4
ALPHAS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # sd of training patients
SHIFT_ALPHAS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the whole shift between two groups
SHOWN_PATIENTS, SHOWN_TILES, PAIRS = 4, 6, 10


class Job:
    """One tissue: tiles drawn and measured once, then every number of them."""

    def __init__(
        self,
        args: argparse.Namespace,
        seed: int,
        gan: GAN,
        control: tuple[GAN, str],
        ruler: Ruler,
        patients: Patients,
        train: Patients,
        shifts: dict[str, torch.Tensor],
        tissue: str,
    ) -> None:
        self.args, self.seed, self.gan, self.control = args, seed, gan, control[0]
        self.ruler, self.patients, self.shifts, self.tissue = ruler, patients, shifts, tissue
        self.train, self.seeds = train, seeds_of(seed, args.sampling_seeds)
        self.n = len(patients.rows)
        self.mpp = patients.cohort.tiles.mpp
        self.source = self._generated(gan, patients.c, args.tiles)

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the blocks and what the page draws."""
        with tqdm(total=5 + len(self.seeds), desc=self.tissue, unit="part", disable=None) as bar:
            real = self.ruler.measure(self.real(), self.mpp)
            ceiling, splits = self.splits()
            halves = self.halved(splits, real)
            nulls, kind = self.pairings()
            spots = self.patients.array_xy() is not None
            compared = Comparison(real, halves, nulls, self.chosen(), independent=not spots)
            bar.update()
            readers = Readers.fit(self.train, self.ruler, self.mpp)
            look = readers.look(self.ruler.features)
            bar.update()
            generated = []
            for seed in self.seeds:
                generated.append(self.source.measure(seed, self.ruler, self._mpp_of(self.gan)))
                bar.update()
            live, strip = self.liveness(generated, real)
            ridge = readers.predicted_morphology(self.patients.c)
            blocks, matrix = self.judge(compared, generated, readers, look, ridge)
            bar.update()
            doses, dose_strip = self.doses(readers)
            bar.update()
            controls = self.controls(compared, readers, look, splits)
            bar.update()
        found = {
            "patients": self.n,
            "who": "spots" if spots else "patients",
            "turned": bool(self.gan.state["settings"].get("turns") or self.gan.state["settings"].get("augment")),
            "left_out": self.patients.left_out,
            "patients_compared": len(compared.chosen),
            "real_tiles": sum(map(len, real.features)),
            "training_patients": len(self.train.rows),
            "training_tiles": len(readers.train_tiles),
            "training_tiles_morphology": sum(map(len, self.train.tiles)),
            "ridge_components": len(readers.axes),
            "mpp": self.mpp,
            "ceiling": ceiling,
            "ceiling_tiles": {
                "each_side": _range(len(x) for pair in halves for side in pair for x in side.features),
                "generated": self.args.tiles,
                "real": _range(map(len, self.patients.tiles)),
            },
            "nulls": f"{len(nulls)} {kind}",
            "liveness": live,
            **blocks,
            "dose_response": doses,
            "controls": controls,
        }
        found["verdict"] = verdict(found)
        shown = np.linspace(0, self.n - 1, min(SHOWN_PATIENTS, self.n)).astype(int)
        first = self.source.tiles_of(self.seeds[0], shown, SHOWN_TILES)
        pictures = {
            "names": [self.patients.names[p] for p in shown],
            "real": [self.patients.read(p, slice(SHOWN_TILES)) for p in shown],
            "generated": first,
            "live": strip,
            "matrix": matrix,
            "morphology": {m: (real.mean_of(m), np.mean([g.mean_of(m) for g in generated], 0)) for m in MEASURES},
            "dose": dose_strip,
            "pairs": self.pairs(generated[0], readers, look),
        }
        return found, pictures

    # ---- What is compared with what ----

    def chosen(self) -> np.ndarray:
        """Return the patients among whom retrieval and distances look: all, or --patients seeded ones."""
        wanted = self.args.patients
        if not wanted or wanted >= self.n:
            return np.arange(self.n)
        if wanted < 2:
            raise InputError(f"--patients {wanted}: at least 2 were expected")
        order = torch.randperm(self.n, generator=generator_for(self.seed, "chosen patients")).numpy()
        return np.sort(order[:wanted])

    def pairings(self) -> tuple[np.ndarray, str]:
        """Return the null's pairings (count, P) and what they are."""
        xy, wanted = self.patients.array_xy(), self.args.nulls
        if wanted == "torus" and xy is None:
            raise InputError(
                f"{self.patients.cohort.table.source}: --nulls torus needs columns array_x and array_y; make the table "
                "with prepare_data.py spots, or use --nulls shuffle"
            )
        if wanted == "shuffle" or xy is None:
            return re_pairings(self.n, self.args.re_pairings, self.seed), "random re-pairings of patients"
        groups = self.patients.column("section")
        shifts = torus_shifts(xy, self.args.re_pairings, self.seed, groups, mirrored=True)
        return shifts, "torus shifts of the array of spots, mirrored ones among them"

    def real(self) -> Tiles:
        """Return each patient's real tiles, read anew."""
        sizes = [len(x) for x in self.patients.tiles]
        return Tiles(sizes, lambda some: (self.patients.read(p) for p in some))

    def splits(self) -> tuple[str, list[tuple[list[np.ndarray], list[np.ndarray]]] | None]:
        """Return what the ceiling is, and how each patient's tiles are halved (None: each tile left from right)."""
        sizes = [len(x) for x in self.patients.tiles]
        wanted = self.args.ceiling or ("halves" if min(sizes) >= 2 else "sides")
        if wanted == "sides":
            return "left half of each real tile against its right half", None
        if min(sizes) < 2:
            name = self.patients.names[int(np.argmin(sizes))]
            raise InputError(f"{name}: 1 real tile cannot be halved; use --ceiling sides")
        splits = halve(sizes, HALVINGS, seed_for(self.seed, "halves"))
        return f"random halves of each patient's {min(sizes)} to {max(sizes)} real tiles, {HALVINGS} times", splits

    def halved(self, splits: Any, measured: Measured) -> list[tuple[Measured, Measured]]:
        """Return the halves of real tiles (measured already, or each tile's sides)."""
        if splits is None:
            left, right = (self.ruler.side(self.real(), self.mpp, right) for right in (False, True))
            return [(left, right)]
        return [(measured.take(a), measured.take(b)) for a, b in splits]

    # ---- The parts ----

    def liveness(self, generated: list[Measured], real: Measured) -> tuple[dict[str, Any], np.ndarray]:
        """Return part 1 and its tiles (patients, noises, H, W, 3)."""
        order = torch.randperm(self.n, generator=generator_for(self.seed, "live patients"))[:LIVE_PATIENTS]
        noise = seed_for(self.seed, "live")
        tiles = self.source.same_noise(noise, self.patients.c[order], LIVE_NOISES)
        flat = self.ruler.features(tiles.reshape(-1, *tiles.shape[2:]))
        features = flat.reshape(*tiles.shape[:2], -1)
        count = self.args.re_pairings
        return evaluation.liveness(tiles, features, generated, real, count, seed_for(self.seed, "labels")), tiles

    def judge(
        self,
        c: Comparison,
        generated: list[Measured],
        readers: Readers,
        look: Look,
        ridge: dict[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Return the blocks that hold generated against real tiles, as `look` sees both, and the matrix of distances.

        `ridge`: measure -> (P,), what expression alone says of the real tiles' morphology.
        """
        distance, matrix, kind = evaluation.distance_blocks(c, generated)
        k = look.to_components.coef.shape[1]
        truth = readers.components(self.patients.c)[:, :k]
        predict = look.to_components.predict  # tile by tile: its bound is for tiles
        read = [np.stack([predict(x).mean(0) for x in m.features]) for m in (*generated, c.real)]
        spread = evaluation.diversity_block(c, generated)
        blocks = {
            "retrieval": {
                "plain": evaluation.retrieval_blocks(c, generated, False),
                "centred": evaluation.retrieval_blocks(c, generated, True),
            },
            "distance": {"kind": kind, **distance},
            "round_trip": evaluation.round_trip_block(c, truth, read[:-1], read[-1]),
            "morphology": evaluation.morphology_blocks(c, generated, ridge),
            "diversity": spread,
            "memorisation": evaluation.memorisation_block(c, generated, look.train, self.seed, self.train.available),
        }
        return blocks, matrix

    def doses(self, readers: Readers) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return part 6: direction -> measure -> numbers; and its curves and strips."""
        order = torch.randperm(self.n, generator=generator_for(self.seed, "dose patients"))[:DOSE_PATIENTS]
        c, noise = self.patients.c[order], seed_for(self.seed, "dose")
        steps = {name: (ALPHAS, step, "sd of training patients") for name, step in readers.directions().items()}
        steps |= {name: (SHIFT_ALPHAS, shift, "whole shifts") for name, shift in self.shifts.items()}
        still = self.source.same_noise(noise, c, DOSE_NOISES)
        blocks, drawn = {}, {}
        for name, (alphas, step, unit) in steps.items():
            moved = [still if a == 0 else self.source.same_noise(noise, c + a * step, DOSE_NOISES) for a in alphas]
            tiles = np.stack(moved, 1)  # (patients, steps, noises, H, W, 3)
            shape = tiles.shape[:3]
            measured = self.ruler.morphology(tiles.reshape(-1, *tiles.shape[3:]), self._mpp_of(self.gan))
            values = {m: _tile_mean(v.reshape(shape)) for m, v in measured.items()}  # (patients, steps)
            seed = seed_for(self.seed, "steps", name)
            of_measure = {
                m: evaluation.dose_block(np.array(alphas), v, self.args.re_pairings, seed) for m, v in values.items()
            }
            blocks[name] = {
                "alphas": list(alphas),
                "unit": unit,
                "patients": len(c),
                "noises": DOSE_NOISES,
                **of_measure,
            }
            drawn[name] = (np.array(alphas), values, tiles[:2, :, 0])
        return blocks, drawn

    def controls(self, c: Comparison, readers: Readers, look: Look, splits: Any) -> dict[str, Any]:
        """Return part 8, on one sampling seed and at most CONTROL_TILES tiles a patient.

        Greyscale and colours alone are judged as everything is, but that morphology is what a ridge, fitted on
        training tiles, reads off what they see; their ceiling reads it off half of the real tiles, against the other.
        """
        each, seed, count = min(self.args.tiles, CONTROL_TILES), self.seeds[0], self.args.re_pairings
        plain = self._generated(self.control, None, each).measure(seed, self.ruler, self._mpp_of(self.control))
        found = {"unconditional": self.judge(c, [plain], readers, look)[0]}
        explained = {"unconditional": ([plain], c.real)}
        views = {"greyscale": self._grey, "colour_histogram": colour_histogram}
        of_real = viewed(views, self.real())
        of_made = viewed(views, self._generated(self.gan, self.patients.c, each).tiles(seed))
        if splits is None:
            sides = [viewed(self._halves(right), self.real()) for right in (False, True)]
        for name, view in views.items():
            seen = readers.look(view, LOOK_TILES)
            real, made = Measured(of_real[name], c.real.morphology), _read(seen, Measured(of_made[name]))
            if splits is None:
                left, right = (Measured(side[name]) for side in sides)
                halves = [(_read(seen, left), Measured(right.features, c.halves[0][1].morphology))]
            else:
                halves = [(_read(seen, real.take(a)), real.take(b)) for a, b in splits]
            found[name] = self.judge(replace(c, real=real, halves=halves), [made], readers, seen)[0]
            explained[name] = ([made], real)
        for name, (generated, real) in explained.items():
            block = evaluation.explained_block(generated, real, count, seed_for(self.seed, "labels"))
            found[name] |= {"variance_explained": block, "tiles": each}
        return found

    def pairs(
        self, generated: Measured, readers: Readers, look: Look
    ) -> list[tuple[np.ndarray, np.ndarray, float, str]]:
        """Return the nearest (generated tile, training tile, distance, whose) of the first sampling seed."""
        found = []
        for i, j, distance in nearest_pairs(np.concatenate(generated.features), look.train, PAIRS):
            tile = self.source.tile(self.seeds[0], i)
            number = int(readers.train_tiles[j])
            cohort = self.train.cohort
            slide = cohort.slides["slide"].iloc[int(cohort.tiles.slide_index[number])]
            found.append((tile, cohort.tiles.read([number])[0], distance, str(slide)))
        return found

    def _mpp_of(self, gan: GAN) -> float:
        """Return the um per pixel of a generator's tiles; where a published file does not say, the real tiles'."""
        return gan.state["mpp"] or self.mpp

    def _generated(self, gan: GAN, c: torch.Tensor | None, each: int) -> Generated:
        return Generated(gan.generator, c, self.n, each, gan.device, self.args.guidance)

    def _halves(self, right: bool) -> dict[str, View]:
        return {
            "greyscale": lambda x: self._grey(half_of(x, right, mirror=True)),
            "colour_histogram": lambda x: colour_histogram(half_of(x, right)),
        }

    def _grey(self, tiles: np.ndarray) -> np.ndarray:
        return self.ruler.features(greyscale(tiles))


def _read(look: Look, measured: Measured) -> Measured:
    """The same features, with the morphology that `look` reads off them."""
    ends = np.cumsum([len(x) for x in measured.features])[:-1]
    values = look.morphology(np.concatenate(measured.features))
    return Measured(measured.features, {name: np.split(v, ends) for name, v in values.items()})


def _range(sizes: Iterable[int]) -> list[int]:
    sizes = list(sizes)
    return [min(sizes), max(sizes)]


def _tile_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is finite; NaN where nothing is."""
    fine = np.isfinite(values)
    total, n = np.where(fine, values, 0).sum(-1), fine.sum(-1)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)
