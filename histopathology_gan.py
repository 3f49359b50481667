"""Train a GAN, or an RNA-GAN, on the tiles of the training donors.

    python histopathology_gan.py --config configs/gan_run_lung.json --model_dir checkpoints/gan_lung \\
        --image_dir gan_generated_images/gan_lung --num_epochs 91 --loss_type wgan
    python histopathology_gan.py --config configs/gan_run_lung.json --model_dir checkpoints/rna-gan_lung \\
        --num_epochs 11 --loss_type wganvae --vae_checkpoint checkpoints/betavae_tissues.pt

Reads the config's tile folders and tables; a loss that ends in `vae` also reads the beta-VAE that encodes them.
Writes into the run folder (--model_dir): config.json, log.jsonl, <run>.model (the averaged generator: enough to make
tiles) and last.pt (everything, to go on); and a grid of tiles from fixed noise after each epoch into --image_dir. The
rows of an RNA-GAN's grid are held-out profiles (validation donors), the columns the same noise.
Typing the same command again goes on where the run stopped; on the CPU the result is the same to the bit. last.pt is
written at the end of an epoch and every --save_every seconds (600), but no more often than costs a twentieth of the
time; the one before it stays as previous.pt, in case the disk damages it. SIGTERM, SIGINT and SIGUSR1 end the run after
the current step, saved, with status 75. Where a loss or weight is not finite, the run goes back to last.pt and leaves
that batch out; the third time it ends.
With --eval_every the generator is measured in training, on tiles of validation donors, and the best is kept: with the
next last.pt it is written as best.model.
Each step is one or more updates of the critic, then one of the generator through the last fake batch.

Which loss: rpganvae with --gan_type residual makes tiles that match the patient: its critic sees the expression.
wganvae is the paper's form, whose critic does not; wgangpvae is the same with a critic that does. wgan, wgangp, rpgan,
minimax and lsgan take no expression. The README says when to use which.
"""

import argparse
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.config import (
    PRECISIONS,
    GANSettings,
    add_fit_scaler,
    add_scale,
    add_tile_limits,
    load_config,
    settings_dict,
)
from common.distributed import joined, launch, under_torchrun
from common.errors import InputError, command_parser, run_command
from common.memory import keep_freed_memory
from common.progress import Progress
from common.rehearsal import rehearse
from common.run import Run, pick_device
from common.skips import Skips
from common.together import together
from datasets.cohort import Cohort, open_cohort, write_left_out
from models.average import average_decay, update_average
from models.compiling import MODES, compile_networks
from models.conditioning import CONDITIONS, CRITIC_CONDITIONS
from models.gan_losses import LOSSES, Shown
from models.gan_settings import (
    CACHES,
    check_gan_settings,
    for_rehearsal,
    free_settings,
    least_rows,
    older_settings,
    resolve_gan_settings,
)
from models.gan_steps import critic_step, generator_step
from models.gan_training import GANTraining
from models.memory import gan_need, moments_to_come, size_of, tell
from models.networks import GAN_TYPES
from models.passes import Passes
from models.played_step import gan_step, unchanged
from models.schedules import eased, side_at, sides_of
from models.step_draws import StepDraws
from sources.batches import Batches, place_of
from sources.gan import open_gan
from sources.gan_expression import Expression, open_profiles
from sources.gan_record import cohort_digest, describe_model
from sources.gan_saves import Saves, resume
from sources.watching import Watch, is_due, open_watch

CHECKED_EACH_STEP = ("cpu",)  # devices on which looking at a loss stops nothing


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
    parser.add_argument("--save_every", type=int, help="seconds between saves (600); 0: at the end of an epoch only")
    parser.add_argument("--batch_size", type=int, help="tiles in a step, of all processes together")
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
    parser.add_argument(
        "--eval_every", type=int, help="images shown between measurements of KID on validation donors; 0: none"
    )
    parser.add_argument("--seed", type=int, help="of weights, batches and noise; never moves a donor (split_seed does)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: log to wandb too (offline if need be)")
    add_scale(parser.add_argument)
    parser.add_argument("--dry_run", action="store_true", help="two steps of everything in a temporary place, then end")
    parser.add_argument("--restart", action="store_true", help="move an earlier run in the folder aside")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Settings, data, run; then `fit`: networks and loop."""
    # Settings.
    if args.parallel and not under_torchrun():
        return launch(args.parallel, [__file__, *args.words])
    cfg = load_config(GANSettings, args.config, args)
    resolve_gan_settings(cfg)
    check_gan_settings(cfg, args.config)
    if args.dry_run:
        cfg = for_rehearsal(cfg)
    device = pick_device(cfg.device)

    with joined(device) as ranks:
        # Data. Expression first: it is read in seconds, and its VAE says which donors are held out. The first process
        # is done before the others begin, who then find its tables parsed.
        size = f"{args.config}: batch_size {cfg.batch_size}"
        if cfg.batch_size < ranks.world:
            raise InputError(f"{size}: under {ranks.world}, the processes; raise it")
        with together(main_first=True):
            profiles = open_profiles(cfg, args.config, device)  # None in a run without expression
            cohort = open_cohort(cfg, ("train",), need_expression=profiles is not None)
            if len(cohort.tiles) < cfg.batch_size:
                raise InputError(f"{size}, but only {len(cohort.tiles)} training tiles")
            cache = place_of(cfg.cache, len(cohort.tiles), cfg.img_size, device)  # what does not fit is refused here
            expression = Expression.of(profiles, cohort)
        watch = open_watch(cfg, profiles, device)
        del profiles  # the VAE is not needed any more, and large

        # Run: a folder that holds these settings; or, of a dry run, two in a temporary place.
        settings = settings_dict(cfg) | {"vae_digest": expression.vae["digest"], "cohort_digest": cohort_digest(cohort)}

        def train(cfg: GANSettings, settings: dict[str, Any], restart: bool = False) -> None:
            with Run(cfg.save_dir, settings, restart, older_settings(cfg), ranks, free_settings(cfg)) as run:
                if args.log and not args.dry_run:
                    run.start_wandb(settings_dict(cfg))
                if ranks.main:
                    write_left_out(cohort, run.folder)
                where = f"{device}" if ranks.world == 1 else f"{ranks.world} processes, {device.type}"
                print(f"{run.folder}: {cfg.loss_type}, {cohort.summary()}; {where}", flush=True)
                fit(run, cohort, expression, cfg, device, watch)

        def rehearsed(folder: Path, steps: int) -> None:
            small = {"save_dir": str(folder), "max_steps": steps}
            train(replace(cfg, **small), settings | small)
            if ranks.main:
                open_gan(folder, device)

        kept = cohort.tiles.nbytes if cache == ("gpu" if device.type == "cuda" else "ram") else 0
        need = gan_need(cfg, expression.latent_dim, kept, watch.memory if watch else 0)
        tell(need, device)
        if args.dry_run:
            what = "data, two steps, " + ("a measurement, " if watch else "") + "a grid, saving and loading"
            rehearse(rehearsed, cfg.save_dir, device, need.total, what)
        else:
            train(cfg, settings, args.restart)
    return None


def fit(
    run: Run, cohort: Cohort, expression: Expression, cfg: GANSettings, device: torch.device, watch: Watch | None
) -> None:
    """Train from where last.pt stands to num_epochs or max_steps, measured by `watch`; leave last.pt and the model."""
    # Networks, their optimisers, and where an earlier call of this command left them.
    gan = GANTraining(cfg, expression.latent_dim, device)
    generator, critic, average = gan.generator, gan.critic, gan.average
    skips = Skips(run.folder, lambda step: batches.named(step))
    done, losses = resume(run, gan, skips)  # the latest of each part: not all are computed in every step

    # One unit of time: the step. An epoch is as many steps as it takes to show as many tiles as there are.
    per_step = gan.per_step  # images
    epoch_steps = max(len(cohort.tiles) // per_step, 1)
    last = min(cfg.num_epochs * epoch_steps, cfg.max_steps or sys.maxsize)

    # Of each batch this rank has a share, which passes through the networks at once, or a part after another.
    batches = Batches(cohort, expression.conditions, cfg, device, done, last)
    draws = StepDraws(cfg, batches.rows, device)
    passes = Passes(cfg.micro_batch, generator, critic, least=least_rows(cfg))
    autocast = torch.autocast(device.type, torch.bfloat16) if cfg.precision == "bf16" else nullcontext()
    if last > done:
        held = moments_to_come(gan.optimizer_g, gan.optimizer_c) + (2 * size_of(generator) if watch else 0)
        with unchanged(generator, critic):
            play = gan_step(cfg, generator, critic, expression.latent_dim, device, autocast)
            passes.settle(cfg.batch_size, play, device, held)

    # The loss, and what both updates are given at every step.
    loss = LOSSES[cfg.loss_type]
    options: dict = {k: getattr(cfg, k) for k in ("penalty_weight", "penalty_per", "mismatched_weight", "clip")}
    both = {"autocast": autocast, "share": batches.share}
    if cfg.compile and last > done:
        sides = sides_of(cfg, range(done * per_step, last * per_step, per_step))
        why = compile_networks(generator, critic, cfg.compile, sides, passes.rows(cfg.batch_size), autocast)
        print(f"{run.folder}: " + (f"not compiled: {why}" if why else f"compiled, {cfg.compile}"), flush=True)
    if done:
        print(f"{run.folder}: going on after step {done} of {last}", flush=True)

    def draw(noise: torch.Tensor, shown: Shown, strength: float, *place: int) -> torch.Tensor:
        with autocast:
            tiles = generator(noise, shown.c, shown.keep).float()  # (n, 3, side, side)
        return draws.augmented(tiles, strength, "fake", *place)

    # What is left on the disk on the way.
    if watch is not None:
        watch.resume(run, done * per_step)
    progress = Progress(run.name, "images", last * per_step, done * per_step, device, quiet=not run.ranks.main)
    about_model = partial(describe_model, gan, cohort, expression.vae, epoch_steps)
    saves = Saves(run, gan, skips, losses, batches, progress, expression, about_model, watch)
    if done >= last:
        saves.complete(done, math.ceil(done / epoch_steps))

    if device.type == "cpu":
        keep_freed_memory()
    unchecked: dict[int, torch.Tensor] = {}  # step: whether its losses are finite
    run.hold_signals()  # until the last step is saved
    step = done
    while step < last:
        step += 1

        # What the images shown so far ask for.
        if cfg.compile == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        images = (step - 1) * per_step
        gamma_final = cfg.gamma if cfg.gamma_final is None else cfg.gamma_final
        options["gamma"] = eased(cfg.gamma, gamma_final, images, cfg.schedule_images)
        options["penalise"] = cfg.penalty_every if step % cfg.penalty_every == 0 else 0
        strength = eased(0.0, cfg.augment, images, cfg.augment_images)
        gan.set_rates(images)
        generator.network.side = side = side_at(images, cfg.first_side, cfg.img_size, cfg.grow_images)

        # Update the critic.
        for turn in range(cfg.critic_steps):
            real, shown = batches.take(step, turn, side)
            if step in skips:
                continue
            real = draws.augmented(real, strength, "real", step, turn)
            noise, epsilon = draws.noise(generator, step, turn), draws.epsilon(step, turn)
            options["signs"] = None
            if cfg.penalty_form == "difference" and options["penalise"]:
                options["signs"] = draws.signs(real, step, turn)
            for trial in passes.trials(cfg.batch_size):
                with trial:
                    fake = draw(noise, shown, strength, step, turn)
                    losses |= critic_step(critic, gan.optimizer_c, loss, real, fake, epsilon, shown, **options, **both)

        # Update the generator, and its moving average.
        for trial in passes.trials(cfg.batch_size) if step not in skips else ():
            with trial:
                if trial.again:
                    fake = draw(noise, shown, strength, step, turn)
                losses |= generator_step(critic, gan.optimizer_g, loss, fake, shown, real, **both)
        if step in skips:
            run.log(step, {"skipped": skips[step]})
        else:
            update_average(average, generator, average_decay(per_step, cfg.ema_images, step * per_step))
            unchecked[step] = torch.stack(list(losses.values())).isfinite().all()
        progress.add(per_step)

        # What is due: a report, a measurement, a save.
        epoch_ends = step % epoch_steps == 0 or step == last
        stopping, due = run.after_step(epoch_ends, cfg.save_every)
        save_now = due or stopping or step == last
        measure = is_due(cfg, step * per_step, per_step, step == cfg.num_epochs * epoch_steps)

        # Go back where something is not finite. It is looked at in bulk, so that a GPU is not stopped at every step.
        looked = device.type in CHECKED_EACH_STEP or skips.careful(step)
        if looked or step % cfg.log_interval == 0 or epoch_ends or save_now or measure:
            bad = skips.first_bad({k: bool(v) for k, v in unchecked.items()}, step, gan.state)
            unchecked.clear()
            if bad:
                step = saves.go_back(bad, "a loss or weight is NaN or infinite")
                continue

        # Report and measure.
        passes.tell(run, step)
        if losses and (step % cfg.log_interval == 0 or step == last):
            run.log(step, {"epoch": step / epoch_steps, **losses, **progress.report()})
            progress.show(", ".join(f"{name} {value.item():.3g}" for name, value in losses.items()))
        if measure and watch is not None:
            given = expression.conditions, expression.held_out
            watch.look(run, step, average, about_model(step), *given, saves.pictures)

        # Save: at the end of an epoch, or of this call, also the model and a grid of tiles.
        if epoch_ends or stopping:
            saves.calibrate()
        if save_now and not saves.save(step, model=epoch_ends or stopping):
            step = saves.go_back(step, "a weight is NaN or infinite")
            continue
        if epoch_ends or stopping:
            saves.draw_grid(math.ceil(step / epoch_steps))
        if stopping and step < last:
            run.stop(step)
    progress.close()
    print(f"{saves.model}: {step} steps, {step / epoch_steps:.4g} epochs", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
