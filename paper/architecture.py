"""architecture  Figure 1: beta-VAE, generator and critic as they are built, with shapes, parameters and FLOPs.

    python paper_figures.py architecture --study demo

Reads   <study>/configs/*.json; where there is a finished RNA-GAN, its checkpoint's settings. No weights are needed: the
        networks are built without memory for them, and run once for one profile and one tile.
Writes  architecture.pdf, .png, .csv (a line per stage), .txt
"""

from dataclasses import fields
from typing import Any

import pandas as pd
import torch

from common.checkpoint import load_checkpoint, resolve_checkpoint
from common.config import GANSettings
from common.errors import InputError
from common.files import read_json
from datasets.expression import read_cohort_tables
from figures.paper_architecture import architecture
from figures.results import short
from figures.trace import Stage, trace_critic, trace_generator, trace_vae
from models.betavae import BetaVAE
from models.betavae_training import network_args
from models.gan_losses import is_conditional
from models.gan_settings import older_settings, resolve_gan_settings
from models.networks import build_critic, build_generator, generator_args
from paper.parts import Ask, Drawn, made_by

NAME, WHAT = "architecture", "Figure 1: the three networks, from the live modules"
DEFAULT_LOSS = {"dcgan": "wganvae", "residual": "rpganvae"}  # where no run says another; wganvae: the paper's


def draw(ask: Ask) -> dict[str, Drawn]:
    """Build the networks on the meta device and draw what they are."""
    with made_by(ask, "configs"):
        settings, of_gan = gan_settings(ask)
    args, of_vae = vae_args(ask)
    z = args["latent_dim"] if is_conditional(settings.loss_type) else 0
    with torch.device("meta"):
        vae, generator = BetaVAE(**args), build_generator(generator_args(settings, z))
        critic = build_critic(settings, z)
    traced = {
        "beta-VAE": trace_vae(vae),
        "Generator": trace_generator(generator, z),
        "Critic": trace_critic(critic, settings.img_size, z),
    }
    noise = f"noise, {generator.noise_dims} numbers" + (f"; expression, {z}" if z else "")
    inputs = {
        "beta-VAE": f"profile, {args['n_genes']} genes: z-scores of log1p TPM",
        "Generator": noise,
        "Critic": f"tile, 3 x {settings.img_size} x {settings.img_size}" + (f"; expression, {z}" if z else ""),
    }
    mean = next(i for i, stage in enumerate(traced["beta-VAE"]) if stage.name == "mean")
    joints = [("beta-VAE", mean, "Generator", -1, "latent")] if z else []
    joints.append(("Generator", len(traced["Generator"]) - 1, "Critic", -1, "tile"))
    caption = (
        f"Figure 1. The networks, built from their settings and run once: shape of each stage's output for one profile "
        f"or tile (channels x height x width), parameters, and FLOPs of matrix products and convolutions (two per "
        f"multiplication and addition, torch.utils.flop_counter; norms and activations are not counted), forward, in "
        f"evaluation mode. Mean and log variance are a linear layer each; the decoder takes the latent that they give, "
        f"the generator the mean alone, standardised over the training donors. {of_vae} {of_gan} n = 1 profile, 1 "
        f"tile; no seed and no extractor: nothing here is random."
    )
    return {NAME: Drawn(architecture(traced, inputs, joints), table_of(traced), caption, measured=False)}


def gan_settings(ask: Ask) -> tuple[GANSettings, str]:
    """Return the settings of the first finished RNA-GAN, else of the first GAN config, and which that is."""
    for folder in sorted((ask.folder / "checkpoints").glob("*")):
        if (folder / f"{folder.name}.model").is_file() and (folder / "config.json").is_file():
            said = read_json(folder / "config.json")
            if is_conditional(said.get("loss_type", "")):
                begun = GANSettings(**_known(said))
                settings = GANSettings(**older_settings(begun) | _known(said))
                digest = load_checkpoint(folder / f"{folder.name}.model", "gan")[1]
                return settings, f"RNA-GAN: run {folder.name}, loss {settings.loss_type}, digest {short(digest)}."
    path, settings = ask.study.gan_settings[0]
    settings.loss_type = settings.loss_type if is_conditional(settings.loss_type) else DEFAULT_LOSS[settings.gan_type]
    resolve_gan_settings(settings)
    return settings, f"RNA-GAN: {path.name}, loss {settings.loss_type}, not trained: no digest."


def vae_args(ask: Ask) -> tuple[dict[str, Any], str]:
    """Return the arguments of the beta-VAE, trained or of the config, and which that is."""
    settings = ask.study.vae_settings
    try:
        state, digest = load_checkpoint(resolve_checkpoint(settings.save_dir), "betavae")
        return state["model_args"], f"beta-VAE: digest {short(digest)}."
    except InputError:
        genes = settings.rna_features or len(read_cohort_tables(settings).genes)
    return network_args(settings, genes), "beta-VAE: its config, not trained: no digest."


def table_of(traced: dict[str, list[Stage]]) -> pd.DataFrame:
    """Return one line per stage."""
    lines = []
    for network, stages in traced.items():
        for number, stage in enumerate(stages, 1):
            shape = " x ".join(map(str, stage.shape))
            lines.append((network, number, stage.name, shape, stage.parameters, stage.flops))
    return pd.DataFrame(lines, columns=["network", "stage", "what", "output", "parameters", "flops"])


def _known(values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(GANSettings)}
    return {key: value for key, value in values.items() if key in names}
