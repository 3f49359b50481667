"""Train a GAN, or an RNA-GAN, on the tiles of the training donors.

    python histopathology_gan.py --config configs/gan_run_lung.json --model_dir checkpoints/gan_lung \\
        --image_dir gan_generated_images/gan_lung --num_epochs 91 --loss_type wgan
    python histopathology_gan.py --config configs/gan_run_lung.json --model_dir checkpoints/rna-gan_lung \\
        --num_epochs 11 --loss_type wganvae --vae_checkpoint checkpoints/betavae_tissues.pt

Reads the config's tile folders and tables; a loss that ends in `vae` also reads the beta-VAE that encodes them.
Writes into the run folder (--model_dir): config.json, log.jsonl, <run>.model (the averaged generator: enough to make
tiles) and last.pt (everything, to go on); and a grid of tiles from fixed noise after each epoch into --image_dir. The
rows of an RNA-GAN's grid are held-out profiles (validation donors), the columns the same noise.
Typing the same command again goes on where the run stopped; on the CPU the result is the same to the bit.
Each step is one or more updates of the critic, then one of the generator through the last fake batch.

Which loss: rpganvae with --gan_type residual makes tiles that match the patient: its critic sees the expression.
wganvae is the paper's form, whose critic does not; wgangpvae is the same with a critic that does. wgan, wgangp, rpgan,
minimax and lsgan take no expression. The README says when to use which.
"""

import argparse
import math
import sys
import time
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.checkpoint import NonFiniteError, content_digest, load_checkpoint, resolve_checkpoint
from common.config import PRECISIONS, GANSettings, add_fit_scaler, add_tile_limits, load_config, settings_dict
from common.errors import InputError, command_parser, run_command, warn
from common.memory import keep_freed_memory
from common.run import FREE_TO_CHANGE, Run, generator_for, pick_device, seed_for
from datasets.cohort import Cohort, open_cohort, write_left_out
from datasets.expression import read_cohort_tables
from datasets.leaks import HELD_OUT, trained_by
from datasets.tiles import to_uint8
from models.augment import augmented
from models.average import average_decay, calibrate_batch_norm, calibration_inputs, update_average
from models.compiling import MODES, compile_networks
from models.conditioning import CONDITIONS, CRITIC_CONDITIONS, InputRule
from models.gan_losses import LOSSES, critic_step, generator_step, is_conditional
from models.gan_settings import CACHES, OPTIMIZERS, check_gan_settings, resolve_gan_settings
from models.generate import sample_tiles
from models.networks import GAN_TYPES, align_moments, build_critic, build_generator, generator_args
from models.published import open_published
from models.schedules import eased, rate_groups, set_rate, side_at
from sources.batches import Batches, place_of
from sources.pictures import grid_of, write_png
from sources.profiles import Profiles
from sources.vae import Fit

GRID_PROFILES = 8  # held-out profiles in an RNA-GAN's grid


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. A flag that is given wins over the config."""
    parser = command_parser(__doc__)
    parser.add_argument("--config", required=True, help="JSON settings, e.g. configs/gan_run_lung.json")
    parser.add_argument("--model_dir", "--save_dir", dest="save_dir", help="the run folder")
    parser.add_argument("--image_dir", help="folder of the sample grids; default <model_dir>/samples")
    parser.add_argument("--gan_type", choices=GAN_TYPES, help="architecture")
    parser.add_argument("--loss_type", choices=LOSSES, help="a run is conditional where the name ends in vae")
    parser.add_argument("--num_epochs", type=int)
    parser.add_argument("--num_patches", type=int, dest="max_patch_per_wsi", help="tiles used per slide")
    add_tile_limits(parser.add_argument)
    parser.add_argument("--max_steps", type=int, help="stop after so many steps in all; 0: no such limit")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--img_size", type=int, help="pixels; a power of two from 16")
    parser.add_argument("--condition", choices=CONDITIONS, help="how expression enters: added to noise, or beside it")
    parser.add_argument("--condition_share", type=float, help="add: a in input = sqrt(1 - a^2) noise + a c")
    parser.add_argument("--cond_dim", type=int, help="concat, projection: numbers that the expression is projected to")
    parser.add_argument("--cond_jitter", type=float, help="sd of the noise on the expression in training")
    parser.add_argument("--cond_dropout", type=float, help="share of tiles trained without expression")
    parser.add_argument("--critic_condition", choices=CRITIC_CONDITIONS, help="projection: the critic sees expression")
    parser.add_argument("--mismatched_weight", type=float, help="of real tiles with another patient's expression")
    parser.add_argument("--vae_checkpoint", help="the beta-VAE of an RNA-GAN: a file or its run folder")
    add_fit_scaler(parser.add_argument)
    parser.add_argument("--precision", choices=PRECISIONS, help="bf16: autocast; penalties stay fp32")
    parser.add_argument(
        "--compile", nargs="?", const="default", choices=MODES, help="torch.compile; reduce-overhead: with CUDA graphs"
    )
    parser.add_argument("--cache", choices=CACHES, help="where decoded tiles are kept; auto: on the GPU where they fit")
    parser.add_argument("--n_workers", type=int, help="threads that read tiles ahead")
    parser.add_argument("--seed", type=int, help="of weights, batches and noise; never moves a donor (split_seed does)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: log to wandb too (offline if need be)")
    parser.add_argument("--parallel", type=int, choices=(0, 1), default=0, help="1: several processes")
    parser.add_argument("--restart", action="store_true", help="move an earlier run in the folder aside")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Settings, profiles, tiles, run, training."""
    if args.parallel:
        raise InputError("--parallel 1: several processes are not supported yet; use --parallel 0")
    cfg = load_config(GANSettings, args.config, args)
    resolve_gan_settings(cfg)
    check_gan_settings(cfg, args.config)
    device = pick_device(cfg.device)

    # Expression first: it is read in seconds, and its VAE says which donors are held out.
    vae: dict[str, Any] = {"digest": None, "latent": None, "coverage": None, "trained_on": []}
    conditions = held_out = None
    if is_conditional(cfg.loss_type):
        rule, table = InputRule.of(settings_dict(cfg)), read_cohort_tables(cfg)
        profiles = Profiles(cfg.vae_checkpoint, table, device, rule, Fit.of(cfg))
        adopt(cfg, profiles, args.config)
        vae = {"digest": profiles.vae_digest, "latent": {"mean": profiles.mean, "std": profiles.std}}
        vae["coverage"], vae["trained_on"] = profiles.coverage, profiles.trained_on
        for split in HELD_OUT:
            profiles.refuse_trained(split)  # donors whom the VAE has seen cannot be held out from the GAN
    else:
        adopt_split(cfg, args.config)
    cohort = open_cohort(cfg, ("train",), need_expression=is_conditional(cfg.loss_type))
    if len(cohort.tiles) < cfg.batch_size:
        raise InputError(f"{args.config}: batch_size {cfg.batch_size}, but only {len(cohort.tiles)} training tiles")
    place_of(cfg.cache, len(cohort.tiles), cfg.img_size, device)  # what does not fit is refused here
    if is_conditional(cfg.loss_type):
        conditions = profiles.conditions([str(name) for name in cohort.table.obs.index])  # (rows, z)
        held_out = profiles.conditions(profiles.held_out("val", GRID_PROFILES))  # (8, z)
        del profiles  # the VAE is not needed any more, and large

    digests = {"vae_digest": vae["digest"], "cohort_digest": cohort_digest(cohort)}
    before = GANSettings(loss_type=cfg.loss_type)  # what an older config.json does not say was so
    resolve_gan_settings(before)
    with Run(cfg.save_dir, settings_dict(cfg) | digests, args.restart, settings_dict(before)) as run:
        if args.log:
            run.start_wandb(settings_dict(cfg))
        write_left_out(cohort, run.folder)
        print(f"{run.folder}: {cfg.loss_type}, {cohort.summary()}; {device}", flush=True)
        fit(run, cohort, conditions, held_out, vae, cfg, device)
    return None


def fit(
    run: Run,
    cohort: Cohort,
    conditions: torch.Tensor | None,
    held_out: torch.Tensor | None,
    vae: dict[str, Any],
    cfg: GANSettings,
    device: torch.device,
) -> None:
    """Train from where last.pt stands to num_epochs or max_steps; leave <run>.model and last.pt in the run folder.

    `conditions` (rows of the cohort, z) and `held_out` (profiles, z): None in a run without expression.
    """
    # Networks, their optimisers, and where an earlier call of this command left them.
    torch.manual_seed(seed_for(cfg.seed, "weights"))
    network = generator_args(cfg, latent_dim := 0 if conditions is None else conditions.shape[1])
    generator, critic = build_generator(network).to(device), build_critic(cfg, latent_dim).to(device)
    average = deepcopy(generator).requires_grad_(False)
    adam = partial(
        OPTIMIZERS[cfg.optimizer],
        betas=(cfg.adam_beta1, cfg.adam_beta2),
        weight_decay=cfg.weights_decay,
        fused=True,
    )
    optimizer_g = adam(rate_groups(generator, cfg.equalised), lr=cfg.lr_generator)
    optimizer_c = adam(rate_groups(critic, cfg.equalised), lr=cfg.lr_critic)
    tracked = {"generator": generator, "critic": critic, "average": average}
    tracked |= {"optimizer_g": optimizer_g, "optimizer_c": optimizer_c}
    done = 0
    losses: dict[str, torch.Tensor] = {}  # the latest of each part: not all are computed in every step
    if (saved := run.restore("gan_training")) is not None:
        done = saved["step"]
        losses = {k: torch.tensor(v, device=device) for k, v in saved["losses"].items()}
        for name, part in tracked.items():
            part.load_state_dict(saved[name])
        align_moments(optimizer_g)
        align_moments(optimizer_c)
    del saved  # gigabytes at the paper's size

    # One unit of time: the step. An epoch is as many steps as it takes to show as many tiles as there are.
    per_step = cfg.batch_size * cfg.critic_steps  # images
    epoch_steps = max(len(cohort.tiles) // per_step, 1)
    last = min(cfg.num_epochs * epoch_steps, cfg.max_steps or sys.maxsize)
    loss = LOSSES[cfg.loss_type]
    autocast = torch.autocast(device.type, torch.bfloat16) if cfg.precision == "bf16" else nullcontext()
    options = ("penalty_weight", "penalty_per", "mismatched_weight", "clip")
    options: dict[str, Any] = {key: getattr(cfg, key) for key in options} | {"autocast": autocast}
    if cfg.compile and last > done:
        sides = sorted(
            {side_at(step * per_step, cfg.first_side, cfg.img_size, cfg.grow_images) for step in range(done, last)}
        )
        why = compile_networks(generator, critic, cfg.compile, sides, cfg.batch_size, autocast)
        print(f"{run.folder}: " + (f"not compiled: {why}" if why else f"compiled, {cfg.compile}"), flush=True)
    if done:
        print(f"{run.folder}: going on after step {done} of {last}", flush=True)

    def save_model(step: int) -> None:
        state = describe_model(cfg, cohort, vae, step / epoch_steps, step * per_step)
        state |= {"generator_args": network, "generator": average.state_dict()}
        run.save(f"{run.name}.model", "gan", state)
        folder = Path(cfg.image_dir) if cfg.image_dir else run.folder / "samples"
        tiles, columns = sample_tiles(average, cfg.num_grid, cfg.seed, held_out)
        write_png(folder / f"epoch_{math.ceil(step / epoch_steps):04d}.png", grid_of(to_uint8(tiles), columns))

    def save(step: int, model: bool) -> None:
        try:
            if model:  # before last.pt, so that it is the same however often the run was cut
                calibrate_batch_norm(average, calibration_inputs(average, cfg.seed, conditions))
            state = {"step": step, "losses": {k: v.item() for k, v in losses.items()}}
            run.save("last.pt", "gan_training", state | {k: v.state_dict() for k, v in tracked.items()})
            if model:
                save_model(step)
        except NonFiniteError as error:  # a weight that is not finite: the files on disk stay as they were
            raise InputError(f"step {step}: {error}; lower lr_generator or lr_critic, and use --restart") from None

    model = run.folder / f"{run.name}.model"
    if done >= last and not (model.exists() and load_checkpoint(model)[0]["images_seen"] == done * per_step):
        save(done, model=True)  # last.pt is written first: the model may be missing after a crash
    batches = Batches(cohort, conditions, cfg, device, done, last)
    if device.type == "cpu":
        keep_freed_memory()
    saved_at = reported_at = time.monotonic()
    unchecked: list[tuple[int, torch.Tensor]] = []
    bar = tqdm(initial=done, total=max(last, done), unit="step", desc=run.name, mininterval=1, disable=None)
    for step in range(done + 1, last + 1):
        # What the images shown so far ask for.
        if cfg.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        images = (step - 1) * per_step
        gamma_final = cfg.gamma if cfg.gamma_final is None else cfg.gamma_final
        options["gamma"] = eased(cfg.gamma, gamma_final, images, cfg.schedule_images)
        for optimizer, rate in ((optimizer_g, cfg.lr_generator), (optimizer_c, cfg.lr_critic)):
            set_rate(optimizer, eased(rate, rate * cfg.lr_final, images, cfg.schedule_images))
        generator.network.side = side = side_at(images, cfg.first_side, cfg.img_size, cfg.grow_images)

        # Update the critic.
        for turn in range(cfg.critic_steps):
            real, shown = batches.take(step, turn, side)
            noise = generator.draw(len(real), generator_for(cfg.seed, "noise", step, turn), device)
            epsilon = torch.rand(len(real), generator=generator_for(cfg.seed, "epsilon", step, turn)).to(device)
            with autocast:
                fake = generator(noise, shown.c, shown.keep).float()
            if strength := eased(0.0, cfg.augment, images, cfg.augment_images):
                real = augmented(real, strength, generator_for(cfg.seed, "augment real", step, turn))
                fake = augmented(fake, strength, generator_for(cfg.seed, "augment fake", step, turn))
            options["penalise"] = cfg.penalty_every if step % cfg.penalty_every == 0 else 0
            options["signs"] = None
            if cfg.penalty_form == "difference" and options["penalise"]:
                source = generator_for(cfg.seed, "signs", step, turn)
                options["signs"] = torch.randint(2, (2, *real.shape), generator=source).to(device) * 2.0 - 1.0
            losses |= critic_step(critic, optimizer_c, loss, real, fake, epsilon, shown, **options)

        # Update the generator, and its moving average.
        losses |= generator_step(critic, optimizer_g, loss, fake, shown, real, autocast=autocast)
        update_average(average, generator, average_decay(per_step, cfg.ema_images, step * per_step))
        bar.update()

        # Report. Losses are looked at in bulk, so that a GPU is not stopped at every step.
        unchecked.append((step, torch.stack(list(losses.values())).isfinite().all()))
        epoch_ends, stopping = step % epoch_steps == 0 or step == last, run.should_stop()
        save_now = epoch_ends or stopping or (cfg.save_every and time.monotonic() - saved_at > cfg.save_every)
        if step % cfg.log_interval == 0 or save_now or device.type == "cpu":
            refuse_non_finite(run, unchecked)
        if step % cfg.log_interval == 0 or step == last:
            seconds, reported_at = time.monotonic() - reported_at, time.monotonic()
            run.log(step, {"epoch": step / epoch_steps, **losses, "seconds": seconds})
            bar.set_postfix({name: f"{value.item():.3g}" for name, value in losses.items()}, refresh=False)

        # Save: at the end of an epoch, or of this call, also the model and a grid of tiles.
        if save_now:
            save(step, model=epoch_ends or stopping)
            saved_at = time.monotonic()
        if stopping and step < last:
            run.stop(step)
    bar.close()
    print(
        f"{run.folder / run.name}.model: {max(last, done)} steps, {max(last, done) / epoch_steps:.4g} epochs",
        flush=True,
    )


def adopt(cfg: GANSettings, profiles: Profiles, config: str) -> None:
    """Change `cfg` to what the VAE says: its split of the donors, and where z is added its dimension."""
    asked = {"split_seed": profiles.split_seed}
    if cfg.condition == "add":
        asked["encoding_dims"] = profiles.vae.latent_dim
    for key, value in asked.items():
        if getattr(cfg, key) != value:
            warn(f"{config}: {key} = {getattr(cfg, key)}, the beta-VAE {profiles.path} has {value}: that is used")
            setattr(cfg, key, value)


def adopt_split(cfg: GANSettings, config: str) -> None:
    """Change `cfg.split_seed` to that of the VAE it names, if that is there: a plain GAN's held-out donors are its."""
    try:
        path = resolve_checkpoint(cfg.vae_checkpoint)
    except InputError:
        return  # a plain GAN needs no VAE
    if open_published(path):
        return  # and a published one says nothing of donors
    seed = load_checkpoint(path, "betavae")[0]["split_seed"]
    if cfg.split_seed != seed:
        warn(f"{config}: split_seed = {cfg.split_seed}, the beta-VAE {path} has {seed}: that is used")
        cfg.split_seed = seed


def cohort_digest(cohort: Cohort) -> str:
    """Return a digest of what is trained on: the slides, the pixels and numbers of their tiles, the profiles."""
    pixels = [store.digest for store in cohort.tiles.stores]
    profiles = None if cohort.table is None else [cohort.table.genes, torch.from_numpy(cohort.table.values)]
    return content_digest([cohort.slides["slide"].tolist(), pixels, cohort.tiles.tile_index.tolist(), profiles])


def refuse_non_finite(run: Run, unchecked: list[tuple[int, torch.Tensor]]) -> None:
    """Empty `unchecked`, (step, whether its losses are finite); InputError names the first step where they are not."""
    finite = torch.stack([fine for _, fine in unchecked]).tolist()
    for (step, _), good in zip(unchecked, finite, strict=True):
        if not good:
            raise InputError(
                f"{run.folder}: the loss is NaN or infinite at step {step}; nothing of it was saved. Lower "
                "lr_generator or lr_critic, or use --precision fp32, and start again with --restart"
            )
    unchecked.clear()


def describe_model(
    cfg: GANSettings, cohort: Cohort, vae: dict[str, Any], epoch: float, images_seen: int
) -> dict[str, Any]:
    """Return what a GAN checkpoint says besides its weights: enough to use them, and to know whose they are."""
    settings = {k: v for k, v in settings_dict(cfg).items() if k not in FREE_TO_CHANGE | {"num_epochs"}}
    return {
        "settings": settings,
        "conditional": is_conditional(cfg.loss_type),
        "vae_digest": vae["digest"],
        "latent": vae["latent"],
        "gene_coverage": vae["coverage"],
        "tissues": sorted(cohort.slides["tissue"].astype(str).unique()),
        "donors": int(cohort.slides["donor"].nunique()),
        "tiles": len(cohort.tiles),
        "img_size": cfg.img_size,
        "mpp": cohort.tiles.mpp,
        "epoch": epoch,
        "images_seen": images_seen,
        "split_seed": cfg.split_seed,
    } | trained_by(cohort.slides["donor"], cohort.slides["slide"], *vae["trained_on"])


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
