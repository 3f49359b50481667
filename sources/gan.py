"""Tiles from a trained GAN, with or without expression profiles."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checkpoint import load_checkpoint, resolve_checkpoint
from common.config import PRECISIONS
from common.errors import InputError, warn
from common.run import seed_for
from datasets.cohort import Cohort
from datasets.expression import ExpressionTable
from datasets.leaks import TrainedOn
from datasets.tiles import to_uint8
from models.conditioning import ConditionedGenerator
from models.generate import generate_tiles, whole_chunks
from models.networks import build_generator
from sources.profiles import Profiles


@dataclass
class GAN:
    """A generator (EMA weights, eval mode) and what its checkpoint says of it."""

    path: Path
    digest: str
    generator: ConditionedGenerator
    state: dict[str, Any]
    device: torch.device
    precision: str = "fp32"

    @property
    def conditional(self) -> bool:
        """Whether it takes expression."""
        return self.state["conditional"]

    @property
    def run(self) -> str:
        """The run's name: its checkpoint's stem."""
        return self.path.stem

    @property
    def tissues(self) -> list[str]:
        """What it was trained on."""
        return list(self.state["tissues"])

    @cached_property
    def trained_on(self) -> TrainedOn:
        """Who trained it: the donors of its tiles and those of its VAE."""
        return TrainedOn(self.path, self.state)

    def refuse_trained(self, cohort: Cohort) -> None:
        """InputError where a slide that the cohort has in a held-out split is of a donor whom the GAN has seen."""
        refuse_trained(self.trained_on, cohort)

    def profiles(self, vae_path: str | Path | None, table: ExpressionTable) -> Profiles:
        """Return the profiles of `table` as this GAN takes them, encoded with the VAE at `vae_path`.

        None: the VAE that the run's settings name. InputError where it is not the one the GAN was trained with.
        """
        vae_path = vae_path or self.state["settings"]["vae_checkpoint"]
        profiles = Profiles(vae_path, table, self.device, self.generator.rule)
        if profiles.vae_digest != self.state["vae_digest"]:
            raise InputError(
                f"{vae_path}: is another VAE ({profiles.vae_digest[:12]}) than the one {self.path} was trained with "
                f"({self.state['vae_digest'][:12]}); name that one with --vae_checkpoint, or train the GAN again"
            )
        profiles.trained_on.append(self.trained_on)
        return profiles

    def warn_of_tissue(self, profile: str, tissue: str) -> None:
        """Tell the user where a profile's tissue (a slug, or a table's stem) is none of the GAN's; it is allowed."""
        if tissue and not any(own in tissue or tissue in own for own in self.tissues):
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
        } | ({} if self.precision == "fp32" else {"precision": self.precision})


def refuse_trained(model: TrainedOn, cohort: Cohort) -> None:
    """InputError where a slide that the cohort has in a held-out split is of a donor whom the model has seen."""
    slides = cohort.slides.set_index("slide")
    if cohort.table is not None and "array_x" in cohort.table.obs:
        slides["array_x"] = cohort.table.obs["array_x"].to_numpy()
    where = ", ".join(dict.fromkeys(str(store.path.parent) for store in cohort.tiles.stores))
    model.refuse_held_out(slides, where)


def open_gan(path: str | Path, device: torch.device | str = "cpu", precision: str = "fp32") -> GAN:
    """Open a GAN: a .model file, a run folder, or the folder with .model appended.

    The checkpoint's architecture is used, whatever a config says. `precision` "bf16" draws with bf16 weights, which
    moves pixels a little: in trained GANs of 64 px by 0.2 to 0.4 grey levels in the mean, at most 8. InputError where
    the file cannot be read, is another kind of checkpoint, or its weights do not fit its architecture.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision = {precision!r}: expected {' or '.join(PRECISIONS)}")
    path = resolve_checkpoint(path)
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
        plain = f"RNA-GAN {tissues}" if gan.conditional else f"GAN {tissues}"
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
