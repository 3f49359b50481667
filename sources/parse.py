"""What a source is called on the command line, and opening it.

real:CONFIG[:PATIENT]   real tiles of the config's cohort: all, or one patient's
RUN[:PATIENT]           a GAN's run folder or checkpoint file; PATIENT names the profile of an RNA-GAN
FOLDER                  PNG or JPEG pictures
FILE.npz                statistics that fid.py --save_statistics wrote
"""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from common.checkpoint import resolve_checkpoint
from common.config import GANSettings, load_config
from common.errors import InputError, shorten, warn
from common.run import pick_device
from datasets.cohort import open_cohort
from datasets.expression import ExpressionTable, read_cohort_tables
from datasets.keys import slide_key
from datasets.leaks import HELD_OUT
from sources.gan import GAN, GANSource, open_gan, refuse_trained, run_name
from sources.real import FolderSource, RealSource
from sources.statistics import StatisticsSource
from sources.tile_folder import makers_of
from sources.vae import Fit


@dataclass(frozen=True)
class SourceSpec:
    """One source as asked for. kind: real, run, folder or statistics; path: its file or folder (real: the config)."""

    kind: str
    path: str
    patient: str | None = None  # real: whose tiles; run: whose profile
    config: str | None = None  # run: the config with the profile's tables; None: those it was trained with

    @property
    def short_name(self) -> str:
        """A name for files and folders: "rna-gan_lung_GTEX-15RJ7-0625", "real_gan_run_lung"."""
        stem = (
            run_name(Path(self.path))
            if Path(self.path).suffix in (".json", ".npz", ".model", ".pt")
            else Path(self.path).name
        )
        whose = f"_{slide_key(self.patient)}" if self.patient else ""
        return f"{'real_' if self.kind == 'real' else ''}{stem}{whose}".replace("/", "_")


def parse_source(text: str) -> SourceSpec:
    """Return what `text` names (see above); InputError where it is nothing of the kind."""
    if text.startswith("real:"):
        config, _, patient = text.removeprefix("real:").partition(":")
        return SourceSpec("real", config, patient or None)
    if text.endswith(".npz"):
        return SourceSpec("statistics", text)
    try:
        resolve_checkpoint(text)
        return SourceSpec("run", text)
    except InputError as error:
        path, colon, patient = text.rpartition(":")
        if colon and not Path(text).exists() and parse_source(path).kind == "run":
            return SourceSpec("run", path, patient)
        if Path(text).is_dir() and not any((Path(text) / name).exists() for name in ("config.json", "last.pt")):
            return SourceSpec("folder", text)
        raise InputError(
            f"{error}; a source is real:CONFIG[:PATIENT], a run, a folder of pictures or an .npz"
        ) from None


class Opener:
    """Opens the sources of one call: settings and flags, the device, one common size of the tiles."""

    def __init__(
        self, args: argparse.Namespace, specs: dict[str, SourceSpec], vae_checkpoint: str | None = None
    ) -> None:
        """Read the configs; what they say of device and seed is known then, and the sources are not opened.

        Flags in `args` win over every config's settings; `vae_checkpoint` over the configs' and the runs'.
        """
        self.args, self.specs, self.vae_checkpoint = args, specs, vae_checkpoint
        configs = [c for spec in specs.values() if (c := spec.path if spec.kind == "real" else spec.config)]
        settings = [self.settings(config) for config in dict.fromkeys(configs)]
        self.device = pick_device(settings[0].device if settings else getattr(args, "device", None) or "0")
        given = getattr(args, "seed", None)
        self.seed = given if given is not None else settings[0].seed if settings else 99
        self.feature_side = max((s.feature_side for s in settings), default=0)  # 0: the extractor's own side
        self.img_size: int | None = None  # pixels, of all tiles in this call; set by open_all
        self.conditional = False  # whether any generator takes a profile
        self._gans: dict[str, GAN] = {}
        self._tables: dict[str, ExpressionTable] = {}

    def settings(self, config: str) -> GANSettings:
        """Return the settings of a config file, flags applied."""
        return load_config(GANSettings, config, self.args)

    def open_all(self) -> dict[str, Any]:
        """Return the opened sources by name; what may fail cheaply is tried first.

        All tiles are brought to one size: the smallest that a generator makes or a folder holds; without any, the
        smallest `img_size` of the configs. InputError where real tiles of a held-out split are of donors whom a
        generator or its VAE was trained on, also one that made a folder's tiles, as the manifest there says.
        """
        specs = self.specs
        opened = {name: StatisticsSource(spec.path) for name, spec in specs.items() if spec.kind == "statistics"}
        folders = {name: FolderSource(spec.path) for name, spec in specs.items() if spec.kind == "folder"}
        made = [self._gan(spec.path).state["img_size"] for spec in specs.values() if spec.kind == "run"]
        made += [folder.side() for folder in folders.values()]
        asked = [self.settings(spec.path).img_size for spec in specs.values() if spec.kind == "real"]
        if made or asked:
            self.img_size = min(made or asked)
        if len(set(made)) > 1:
            warn(f"tiles of {', '.join(str(s) for s in sorted(set(made)))} px: all are compared at {self.img_size} px")
        for name, folder in folders.items():
            folder.img_size = self.img_size
            opened[name] = folder
        for name, spec in specs.items():
            if spec.kind == "real":
                opened[name] = self._real(spec)
            elif spec.kind == "run":
                opened[name] = self._run(spec)
        held_out = [s.cohort for s in opened.values() if isinstance(s, RealSource) and s.patient is None]
        if held_out and getattr(self.args, "split", "all") in HELD_OUT:
            models = [gan.trained_on for gan in self._gans.values()]
            models += [model for folder in folders.values() for model in makers_of(folder.path)]
            for cohort in held_out:
                for model in models:
                    refuse_trained(model, cohort)
        return {name: opened[name] for name in specs}

    def _real(self, spec: SourceSpec) -> RealSource:
        settings = replace(self.settings(spec.path), img_size=self.img_size)
        wanted = getattr(self.args, "split", "all")
        splits = None if wanted == "all" or spec.patient else (wanted,)
        if splits and self._gans:
            seeds = {gan.state["split_seed"] for gan in self._gans.values()} - {None}  # published: none of its own
            if len(seeds) > 1:
                raise InputError(
                    f"--split {wanted}: the GANs were trained under split_seed {shorten(sorted(seeds))}: a "
                    "donor held out for one is not for the other; compare them one by one"
                )
            settings = replace(settings, split_seed=seeds.pop()) if seeds else settings
        cohort = open_cohort(settings, splits, need_expression=False)
        if cohort.left_out:
            warn(f"{spec.path}: {cohort.summary()}")
        return RealSource(cohort, spec.patient, Path(spec.path).stem)

    def _gan(self, path: str) -> GAN:
        if path not in self._gans:
            self._gans[path] = open_gan(path, self.device, expression=getattr(self.args, "vae", False))
        return self._gans[path]

    def _run(self, spec: SourceSpec) -> GANSource:
        gan = self._gan(spec.path)
        if not gan.conditional:
            return GANSource(gan, None, f"{gan.what} {gan.run}")
        self.conditional = True
        guidance = getattr(self.args, "guidance", 1.0)
        settings = self.settings(spec.config) if spec.config else self._trained_with(gan)
        table = self._table(spec.config or spec.path, settings)
        profiles = gan.profiles(self.vae_checkpoint, table, Fit.of(settings))  # None: the VAE that the run names
        if spec.patient is None:
            names = profiles.held_out()
            label = f"{gan.what} {gan.run} ({len(names)} held-out profiles)"
            return GANSource(gan, profiles.conditions(names), label, names, guidance)
        row = table.find(spec.patient)
        gan.warn_of_tissue(spec.patient, str(table.obs["tissue"].iloc[row]))
        label = f"{gan.what} {gan.run}, profile {spec.patient} ({profiles.split(row)})"
        return GANSource(gan, profiles.conditions([row])[0], label, [str(table.obs.index[row])], guidance)

    def _table(self, key: str, settings: GANSettings) -> ExpressionTable:
        if key not in self._tables:
            if not settings.path_csv:
                raise InputError(
                    f"{key}: names no expression table (path_csv); an RNA-GAN needs profiles: give --config"
                )
            self._tables[key] = read_cohort_tables(settings)
        return self._tables[key]

    def _trained_with(self, gan: GAN) -> GANSettings:
        known = {f.name for f in fields(GANSettings)}
        return GANSettings(**{k: v for k, v in gan.state["settings"].items() if k in known})
