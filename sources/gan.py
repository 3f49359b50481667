"""Tiles from a trained GAN, with or without expression profiles."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import content_digest, load_checkpoint, resolve_checkpoint
from common.config import PRECISIONS
from common.errors import InputError, warn
from common.run import seed_for
from datasets.cohort import Cohort
from datasets.expression import ExpressionTable
from datasets.leaks import TrainedOn
from datasets.tiles import to_uint8
from models.betavae import TrainedVAE
from models.conditioning import ConditionedGenerator
from models.generate import generate_tiles, whole_chunks
from models.networks import build_generator
from models.published import open_published, weights_mark
from sources.profiles import Profiles
from sources.vae import NOTHING, Fit

EXPORTED_VAE = "betavae"  # folder beside an exported RNA-GAN with its VAE
BEST = "best.model"  # beside <run>.model: the generator that was best in training (sources/watching.py)


@dataclass
class GAN:
    """A generator (EMA weights, eval mode) and what its checkpoint says of it."""

    path: Path
    digest: str
    generator: ConditionedGenerator
    state: dict[str, Any]
    device: torch.device
    precision: str = "fp32"
    vae_origin: dict[str, Any] | None = None  # of a published beta-VAE that `profiles` opened: how its scaler was made

    @property
    def conditional(self) -> bool:
        """Whether it takes expression."""
        return self.state["conditional"]

    @property
    def what(self) -> str:
        """What a label calls it: "GAN", "RNA-GAN", "published RNA-GAN"."""
        return ("published " if "published" in self.state else "") + ("RNA-GAN" if self.conditional else "GAN")

    @property
    def run(self) -> str:
        """The run's name, or the folder that it was exported to."""
        return run_name(self.path)

    @property
    def tissues(self) -> list[str]:
        """What it was trained on; empty where its file, a published one, does not say."""
        return list(self.state["tissues"])

    @cached_property
    def trained_on(self) -> TrainedOn:
        """Who trained it: the donors of its tiles and those of its VAE."""
        return TrainedOn(self.path, self.state)

    def refuse_trained(self, cohort: Cohort) -> None:
        """InputError where a slide that the cohort has in a held-out split is of a donor whom the GAN has seen."""
        refuse_trained(self.trained_on, cohort)

    def profiles(self, vae_path: str | Path | None, table: ExpressionTable, fit: Fit = NOTHING) -> Profiles:
        """Return the profiles of `table` as this GAN takes them, encoded with the VAE at `vae_path`.

        None: the VAE beside an exported GAN, else the one that the run's settings name. `fit`: what a published VAE
        gets its scaler from; what the run's settings say of it, and their split, goes before. InputError where the VAE
        is not the one the GAN was trained with.
        """
        vae_path = vae_path or self.own_vae()
        if self.state["split_seed"] is not None:
            fit = replace(fit, split_seed=self.state["split_seed"])
        fit = replace(fit, tables=fit.tables or tuple(self.state["settings"].get("fit_scaler", ())))
        profiles = Profiles(vae_path, table, self.device, self.generator.rule, fit)
        self.refuse_other_vae(profiles.vae, profiles.vae_digest, vae_path)
        self.vae_origin = profiles.vae.state.get("published")
        profiles.trained_on.append(self.trained_on)
        return profiles

    def refuse_other_vae(self, vae: TrainedVAE, digest: str, vae_path: str | Path) -> None:
        """InputError where the VAE, opened from `vae_path`, is not the one the GAN was trained with."""
        found, expected = digest, self.state["vae_digest"]
        if "vae_mark" in self.state:  # a published GAN, which has its VAE's weights in it
            found, expected = weights_mark(vae.state["model"]), self.state["vae_mark"]
        if found != expected and not ("vae_mark" in self.state and expected is None):
            raise InputError(
                f"{vae_path}: is another VAE ({found[:12]}) than the one {self.path} was trained with "
                f"({expected[:12]}); name that one with --vae_checkpoint"
                + (", or none: the GAN's file holds it" if "vae_mark" in self.state else ", or train the GAN again")
            )

    def own_vae(self) -> str | Path:
        """Return where the GAN's VAE is, by its settings or beside it. InputError where a published file tells none."""
        if self.path.suffix == ".safetensors" and (beside := self.path.parent / EXPORTED_VAE).is_dir():
            return beside
        if path := self.state["settings"]["vae_checkpoint"]:
            return path
        if self.state.get("vae_mark"):
            return self.path  # a published RNA-GAN's file has it in it
        raise InputError(f"{self.path}: does not name its beta-VAE's file; name it with --vae_checkpoint")

    def warn_of_tissue(self, profile: str, tissue: str) -> None:
        """Tell the user where a profile's tissue (a slug, or a table's stem) is none of the GAN's; it is allowed."""
        if tissue and self.tissues and not any(own in tissue or tissue in own for own in self.tissues):
            warn(f"{profile} is of {tissue}, {self.run} was trained on {', '.join(self.tissues)}: going on")

    def describe(self) -> dict[str, Any]:
        """Return what a result needs to name this model."""
        return {
            "run": self.run,
            "checkpoint": str(self.path),
            "digest": self.digest,
            "conditional": self.conditional,
            "vae_digest": self.state["vae_digest"],
            "tissues": self.tissues,
            "img_size": self.state["img_size"],
            "mpp": self.state["mpp"],
            "epoch": self.state["epoch"],
            "loss_type": self.state["settings"]["loss_type"],
            **({} if self.precision == "fp32" else {"precision": self.precision}),
            **({"published": self.state["published"]} if "published" in self.state else {}),
            **({"vae_published": self.vae_origin} if self.vae_origin else {}),
        }


def run_name(path: Path) -> str:
    """Return a checkpoint's name: its file's stem, or the folder that it was exported to.

    That of gan_lung/best.model is gan_lung_best.
    """
    folder = path.resolve().parent.name
    if path.suffix == ".safetensors":
        return folder
    return path.stem if path.name != BEST else f"{folder}_{path.stem}"


def refuse_trained(model: TrainedOn, cohort: Cohort) -> None:
    """InputError where a slide that the cohort has in a held-out split is of a donor whom the model has seen."""
    slides = cohort.slides.set_index("slide")
    if cohort.table is not None and "array_x" in cohort.table.obs:
        slides["array_x"] = cohort.table.obs["array_x"].to_numpy()
    where = ", ".join(dict.fromkeys(str(store.path.parent) for store in cohort.tiles.stores))
    model.refuse_held_out(slides, where)


def open_gan(
    path: str | Path, device: torch.device | str = "cpu", precision: str = "fp32", expression: bool = False
) -> GAN:
    """Open a GAN: a .model file, a run folder, or the folder with .model appended; ours, or the published code's.

    The checkpoint's architecture is used, whatever a config says. `expression`: what a published file is that does not
    say itself whether it takes any (models/published.py). `precision` "bf16" draws with bf16 weights, which
    moves pixels a little: in trained GANs of 64 px by 0.2 to 0.4 grey levels in the mean, at most 8. InputError where
    the file cannot be read, is another kind of checkpoint, or its weights do not fit its architecture.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision = {precision!r}: expected {' or '.join(PRECISIONS)}")
    path = resolve_checkpoint(path)
    if published := open_published(path):
        state = published.of_kind("gan", "name it with --vae_checkpoint").gan(expression)
        digest = content_digest(state)
        warn(about_published(path, state))
    else:
        state, digest = load_checkpoint(path, "gan")
    try:
        with torch.device("meta"):
            generator = build_generator(state["generator_args"])
        generator.load_state_dict(state["generator"], assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise InputError(f"{path}: weights of another architecture than it states ({reason}); train it again") from None
    generator = generator.to(device).eval().requires_grad_(False)
    if state["generator_args"]["gan_type"] == "dcgan":
        generator.network.fold()
    if precision == "bf16":
        generator.to_bf16()
    return GAN(path, digest, generator, state, torch.device(device), precision)


def about_published(path: Path, state: dict[str, Any]) -> str:
    """Return what a user must know of a published GAN."""
    evidence = state["published"]["loss_objects"]
    said = f"loss objects: {', '.join(evidence)}" if evidence else "no loss objects: with --vae an RNA-GAN, else not"
    if not state["conditional"]:
        return f"{path}: a GAN of the published code, without expression ({said})"
    return (
        f"{path}: an RNA-GAN of the published code ({said}). Its rule standardises noise + z over the tiles drawn "
        "together: of one profile z cancels exactly, so these tiles cannot depend on the profile (README: What differs)"
    )


class GANSource:
    """As many tiles as asked for from a GAN; tile k depends on (seed, k) and its profile only."""

    def __init__(
        self,
        gan: GAN,
        conditions: torch.Tensor | None = None,
        label: str | None = None,
        names: Sequence[str] | None = None,
        guidance: float = 1.0,
    ) -> None:
        """`conditions`: from gan.profiles(...): (z,) one profile for all tiles, or (m, z) one drawn per tile by seed.

        `names` are the profiles', for the record; `guidance` as in ConditionedGenerator.enter. InputError where a
        conditional GAN is given no profile.
        """
        if gan.conditional and conditions is None:
            raise InputError(f"{gan.path}: is an RNA-GAN and needs a profile: --patient1, or a config with tables")
        self.gan, self.guidance = gan, guidance
        self.conditions = conditions if gan.conditional else None
        self.names = list(names or []) if gan.conditional else []
        tissues = "+".join(gan.tissues)
        plain = f"{gan.what} {tissues or gan.run}"
        self.label = label or plain + (f", {self.names[0]}" if len(self.names) == 1 else "")

    def count(self) -> None:
        """Return None: as many as asked for."""
        return None

    def describe(self) -> dict[str, Any]:
        """Return what was loaded: the model's digests, and the profiles by name."""
        kind = "rna-gan" if self.gan.conditional else "gan"
        return {"kind": kind, "label": self.label, **self.gan.describe(), "profiles": self.names} | (
            {"guidance": self.guidance} if self.gan.conditional else {}
        )

    def digest(self) -> str:
        """Return a SHA-256 over the checkpoint's digest, the profiles and the guidance: with a seed, the tiles."""
        digest = hashlib.sha256(f"GAN {self.gan.digest}, {self.gan.precision}, guidance {self.guidance}".encode())
        if self.conditions is not None:
            values = self.conditions.detach().cpu().numpy()
            digest.update(f"{values.shape}".encode() + values.astype("<f4").tobytes())
        return digest.hexdigest()

    def profile_of_tiles(self, n: int, seed: int, start: int = 0) -> np.ndarray | None:
        """Return which profile (row of `conditions`) tiles start..start + n - 1 have, (n,); None where there is one."""
        if self.conditions is None or self.conditions.ndim == 1:
            return None
        return np.array([seed_for(seed, "profile", k) % len(self.conditions) for k in range(start, start + n)], int)

    def batches(self, n: int, seed: int, batch_size: int = 64, start: int = 0) -> Iterator[np.ndarray]:
        """Yield uint8 RGB (b, H, W, 3), tiles start..start + n - 1, b <= `batch_size`."""
        drawn, conditions = whole_chunks(start, n), self.conditions
        chosen = self.profile_of_tiles(len(drawn), seed, drawn.start)
        if chosen is not None:
            conditions = self.conditions[torch.from_numpy(chosen)]
        tiles = generate_tiles(
            self.gan.generator,
            n,
            seed,
            conditions,
            start=start,
            batch_size=batch_size,
            device=self.gan.device,
            guidance=self.guidance,
            first_row=drawn.start,
        )
        for batch in tiles:
            yield to_uint8(batch)
