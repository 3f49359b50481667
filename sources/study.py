"""A folder with the layout that the commands write, opened as a whole: configs, cohorts, VAE, GANs.

    configs/*.json     settings; a config of one table is a tissue's, betavae*.json is the VAE's
    checkpoints/*/     runs; their checkpoints say what they are (tissues, conditional or not)
The working directory itself has this layout, and so has demo/.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.checkpoint import resolve_checkpoint
from common.config import BetaVAESettings, DataSettings, GANSettings, load_config
from common.errors import InputError
from common.files import read_json
from datasets.cohort import Cohort, open_cohort
from datasets.expression import ExpressionTable, read_cohort_tables
from datasets.keys import slide_key
from datasets.leaks import TrainedOn
from datasets.tiles import to_uint8
from models.betavae import TrainedVAE
from models.generate import generate_tiles
from sources.gan import GAN, open_gan
from sources.vae import Fit, open_vae


@dataclass
class HeldOut:
    """The held-out (test) slides of a tissue: row numbers in the cohort's slides and table, and the tissue's GANs."""

    cohort: Cohort
    rows: np.ndarray  # (patients,)
    gans: dict[str, GAN]  # "GAN", "RNA-GAN"

    @property
    def slides(self) -> list[str]:
        """The slides' names."""
        return self.cohort.slides["slide"].iloc[self.rows].tolist()

    def real(self, most: int | None = None) -> list[np.ndarray]:
        """Return each patient's first `most` (None: all) real tiles, uint8 (n, H, W, 3)."""
        tiles = self.cohort.tiles
        return [tiles.read(np.flatnonzero(tiles.slide_index == row)[:most]) for row in self.rows]

    def first(self, n: int) -> "HeldOut":
        """Return the first `n` patients of the table."""
        return HeldOut(self.cohort, self.rows[:n], self.gans)


class Study:
    """The parts are opened when first asked for; InputError says which is missing and where it was looked for."""

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        """Look at the configs of `folder`. InputError where there is none."""
        self.folder, self.device = Path(folder), device
        self.configs = {path: read_json(path) for path in sorted((self.folder / "configs").glob("*.json"))}
        if not self.configs:
            raise InputError(f"{self.folder / 'configs'}: no *.json in it; make the demo's with prepare_data.py demo")

    @cached_property
    def vae_settings(self) -> BetaVAESettings:
        """The beta-VAE's settings, from the first configs/betavae*.json."""
        paths = [path for path in self.configs if path.name.startswith("betavae")]
        if not paths:
            raise InputError(f"{self.folder / 'configs'}: no betavae*.json in it; the beta-VAE's config was expected")
        return load_config(BetaVAESettings, paths[0])

    @cached_property
    def gan_settings(self) -> list[tuple[Path, GANSettings]]:
        """Path and settings of each config with one tile folder."""
        found = []
        for path, values in self.configs.items():
            folders = values.get("patch_data_path") if isinstance(values, dict) else None
            if folders and not path.name.startswith("betavae") and (isinstance(folders, str) or len(folders) == 1):
                found.append((path, load_config(GANSettings, path)))
        if not found:
            raise InputError(f"{self.folder / 'configs'}: no GAN config with one tile folder in it")
        return found

    @cached_property
    def vae(self) -> tuple[TrainedVAE, str]:
        """The trained beta-VAE and its digest."""
        return open_vae(self.vae_settings.save_dir, self.device, Fit.of(self.vae_settings))

    def as_split(self, settings: DataSettings) -> DataSettings:
        """Return `settings` with the split seed that the VAE was trained with; unchanged where there is no VAE yet."""
        try:
            resolve_checkpoint(self.vae_settings.save_dir)
        except InputError:
            return settings
        return replace(settings, split_seed=self.vae[0].split_seed)

    @cached_property
    def table(self) -> ExpressionTable:
        """All tables of the VAE's config, with tissue and split. InputError where the VAE has seen a held-out donor."""
        table = read_cohort_tables(self.as_split(self.vae_settings))
        TrainedOn(resolve_checkpoint(self.vae_settings.save_dir), self.vae[0].state).refuse_held_out(
            table.obs, table.source
        )
        return table

    @cached_property
    def cohorts(self) -> dict[str, Cohort]:
        """Tissue -> its slides of all splits, joined with expression, tiles at the GAN's img_size."""
        found: dict[str, Cohort] = {}
        for _, settings in self.gan_settings:
            cohort = open_cohort(self.as_split(settings), None)
            found.setdefault("+".join(sorted(cohort.slides["tissue"].unique())), cohort)
        return found

    @cached_property
    def runs(self) -> dict[str, GAN]:
        """Run name -> GAN, for every finished GAN run under checkpoints/."""
        folders = sorted(p for p in (self.folder / "checkpoints").glob("*") if (p / f"{p.name}.model").is_file())
        return {folder.name: open_gan(folder, self.device) for folder in folders}

    def gans(self, tissue: str) -> dict[str, GAN]:
        """Return "GAN" and "RNA-GAN" of a tissue; the first run by name where there are several of a kind."""
        found: dict[str, GAN] = {}
        for gan in self.runs.values():
            if gan.tissues == [tissue]:
                found.setdefault("RNA-GAN" if gan.conditional else "GAN", gan)
        return dict(sorted(found.items()))

    @cached_property
    def held_out(self) -> dict[str, HeldOut]:
        """Tissue -> its held-out slides, where it has a finished GAN and such slides.

        InputError where none has, or where a GAN or its VAE was trained on one of their donors.
        """
        found = {}
        seeds = {self.as_split(settings).split_seed for _, settings in self.gan_settings}
        for gan in self.runs.values():
            if (seed := gan.state["split_seed"]) is not None and seed not in seeds:
                raise InputError(
                    f"{gan.path}: trained under split_seed {seed}, the donors here are split by "
                    f"{', '.join(map(str, sorted(seeds)))}: its training donors would count as held out; "
                    "train it again with the beta-VAE in its config"
                )
        for tissue, cohort in self.cohorts.items():
            rows = np.flatnonzero((cohort.slides["split"] == "test") & (cohort.slides["n_tiles"] > 0))
            gans = self.gans(tissue)
            if len(rows) and gans:
                for gan in gans.values():
                    gan.refuse_trained(cohort)
                found[tissue] = HeldOut(cohort, rows, gans)
        if not found:
            silent = [name for name, gan in self.runs.items() if not gan.tissues]
            more = f" ({', '.join(silent)}: of a published file the tissue is not known)" if silent else ""
            raise InputError(
                f"{self.folder / 'checkpoints'}: no finished GAN of one tissue with held-out patients{more}"
            )
        return found

    @cached_property
    def truth(self) -> pd.DataFrame | None:
        """The demo's truth.csv (donor, slide, tissue, factors) by slide key, or None where there is none."""
        path = self.folder / "truth.csv"
        if not path.is_file():
            return None
        table = pd.read_csv(path)
        return table.set_index(table["slide"].map(slide_key))

    def generated(self, gan: GAN, patients: HeldOut, each: int, seed: int) -> np.ndarray:
        """Return (patients, each, H, W, 3) uint8: an RNA-GAN's tiles with each one's expression, a GAN's with none.

        Tile numbers go on from patient to patient, so that no two patients share their noise.
        """
        conditions = None
        if gan.conditional:
            table = patients.cohort.table
            names = [str(table.obs.index[row]) for row in patients.rows]
            profiles = gan.profiles(self.vae_settings.save_dir, table)
            conditions = profiles.conditions(names).repeat_interleave(each, 0)  # (patients * each, z)
        n = len(patients.rows)
        tiles = generate_tiles(gan.generator, n * each, seed, conditions, device=gan.device)
        out = np.concatenate([to_uint8(batch) for batch in tiles])
        return out.reshape(n, each, *out.shape[1:])

    @torch.no_grad()
    def latent_means(self, table: ExpressionTable) -> torch.Tensor:
        """Return the encoder's means (samples, z) of a table's rows, on the CPU."""
        vae, _ = self.vae
        values, _ = table.aligned(vae.genes, vae.min_gene_coverage, vae.unit)
        return vae.encode(torch.from_numpy(values)).cpu()
