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
time; the one before it stays as previous.pt, in case the disk damages it. SIGTERM, SIGINT and SIGUSR1 end the run after the
current step, saved, with status 75. Where a loss or weight is not finite, the run goes back to last.pt and leaves that
batch out; the third time it ends.
With --eval_every the generator is measured in training, on tiles of validation donors, and the best kept as best.model.
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
from pathlib import Path
from typing import Any

import torch

from common.checkpoint import NonFiniteError, load_checkpoint
from common.config import (
    PRECISIONS,
    GANSettings,
    add_fit_scaler,
    add_scale,
    add_tile_limits,
    load_config,
    settings_dict,
)
from common.distributed import alone, joined, launch, under_torchrun
from common.errors import InputError, command_parser, run_command
from common.memory import keep_freed_memory
from common.progress import Progress
from common.rehearsal import rehearse
from common.run import Run, pick_device
from common.skips import Skips
from datasets.cohort import Cohort, open_cohort, write_left_out
from datasets.expression import read_cohort_tables
from datasets.leaks import HELD_OUT
from datasets.tiles import to_uint8
from models.average import average_decay, calibrate_batch_norm, calibration_inputs, update_average
from models.compiling import MODES, compile_networks
from models.conditioning import CONDITIONS, CRITIC_CONDITIONS, InputRule
from models.gan_losses import LOSSES, Shown, critic_step, generator_step, is_conditional
from models.gan_settings import (
    CACHES,
    check_gan_settings,
    for_rehearsal,
    free_settings,
    least_rows,
    resolve_gan_settings,
)
from models.gan_training import GANTraining
from models.generate import sample_tiles
from models.memory import gan_need, tell
from models.networks import GAN_TYPES
from models.passes import Passes
from models.schedules import eased, side_at
from models.step_draws import StepDraws
from sources.batches import Batches, place_of
from sources.gan import open_gan
from sources.gan_record import adopt, adopt_split, cohort_digest, describe_model
from sources.pictures import grid_of, write_png
from sources.profiles import Profiles
from sources.vae import Fit
from sources.watching import Watch, is_due, open_watch

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
    """Settings, profiles, tiles, run, training."""
    if args.parallel and not under_torchrun():
        return launch(args.parallel, [__file__, *args.words])
    cfg = load_config(GANSettings, args.config, args)
    resolve_gan_settings(cfg)
    check_gan_settings(cfg, args.config)
    if args.dry_run:
        cfg = for_rehearsal(cfg)
    device = pick_device(cfg.device)

    # Expression first: it is read in seconds, and its VAE says which donors are held out.
    vae: dict[str, Any] = {"digest": None, "latent": None, "coverage": None, "trained_on": []}
    conditions = held_out = profiles = None
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
    cache = place_of(cfg.cache, len(cohort.tiles), cfg.img_size, device)  # what does not fit is refused here
    watch = open_watch(cfg, profiles, device)
    if is_conditional(cfg.loss_type):
        conditions = profiles.conditions([str(name) for name in cohort.table.obs.index])  # (rows, z)
        held_out = profiles.conditions(profiles.held_out("val", GRID_PROFILES))  # (8, z)
        del profiles  # the VAE is not needed any more, and large

    settings = settings_dict(cfg) | {"vae_digest": vae["digest"], "cohort_digest": cohort_digest(cohort)}
    before = GANSettings(loss_type=cfg.loss_type)  # what an older config.json does not say was so
    resolve_gan_settings(before)
    old = settings_dict(before)

    def train(cfg: GANSettings, settings: dict[str, Any], restart: bool = False) -> None:
        with Run(cfg.save_dir, settings, restart, old, ranks, free_settings(cfg)) as run:
            if args.log and not args.dry_run:
                run.start_wandb(settings_dict(cfg))
            if ranks.main:
                write_left_out(cohort, run.folder)
            where = f"{device}" if ranks.world == 1 else f"{ranks.world} processes, {device.type}"
            print(f"{run.folder}: {cfg.loss_type}, {cohort.summary()}; {where}", flush=True)
            fit(run, cohort, conditions, held_out, vae, cfg, device, watch)

    def rehearsed(folder: Path, steps: int) -> None:
        small = {"save_dir": str(folder), "max_steps": steps}
        train(replace(cfg, **small), settings | small)
        if ranks.main:
            open_gan(folder, device)

    with joined(device) as ranks:
        if cfg.batch_size < ranks.world:
            raise InputError(
                f"{args.config}: batch_size {cfg.batch_size}: under {ranks.world}, the processes; raise it"
            )
        kept = cohort.tiles.nbytes if cache == ("gpu" if device.type == "cuda" else "ram") else 0
        latent_dim = 0 if conditions is None else conditions.shape[1]
        need = gan_need(cfg, latent_dim, kept, watch.memory if watch else 0)
        tell(need, device)
        if args.dry_run:
            what = "data, two steps, " + ("a measurement, " if watch else "") + "a grid, saving and loading"
            rehearse(rehearsed, cfg.save_dir, device, need.total, what)
        else:
            train(cfg, settings, args.restart)
    return None


def fit(
    run: Run,
    cohort: Cohort,
    conditions: torch.Tensor | None,
    held_out: torch.Tensor | None,
    vae: dict[str, Any],
    cfg: GANSettings,
    device: torch.device,
    watch: Watch | None = None,
) -> None:
    """Train from where last.pt stands to num_epochs or max_steps; leave <run>.model and last.pt in the run folder.

    `conditions` (rows of the cohort, z) and `held_out` (profiles, z): None in a run without expression.
    `watch` measures the generator on the way.
    """
    # Networks, their optimisers, and where an earlier call of this command left them.
    gan = GANTraining(cfg, latent_dim := 0 if conditions is None else conditions.shape[1], device)
    generator, critic, average = gan.generator, gan.critic, gan.average
    done = 0
    losses: dict[str, torch.Tensor] = {}  # the latest of each part: not all are computed in every step
    skips = Skips(run.folder, lambda step: batches.named(step))
    if (saved := run.restore("gan_training")) is not None:
        done = saved["step"]
        losses = {k: torch.tensor(v, device=device) for k, v in saved["losses"].items()}
        gan.load(saved)
        skips.load(saved)
    del saved  # gigabytes at the paper's size

    # One unit of time: the step. An epoch is as many steps as it takes to show as many tiles as there are.
    per_step = cfg.batch_size * cfg.critic_steps  # images
    epoch_steps = max(len(cohort.tiles) // per_step, 1)
    last = min(cfg.num_epochs * epoch_steps, cfg.max_steps or sys.maxsize)
    loss = LOSSES[cfg.loss_type]
    autocast = torch.autocast(device.type, torch.bfloat16) if cfg.precision == "bf16" else nullcontext()

    # Of each batch this rank has a share, which passes through the networks at once, or a part after another.
    batches = Batches(cohort, conditions, cfg, device, done, last)
    draws = StepDraws(cfg, batches.rows, device)
    passes = Passes(cfg.micro_batch, generator, critic, least=least_rows(cfg))
    keys = ("penalty_weight", "penalty_per", "mismatched_weight", "clip")
    options: dict[str, Any] = {key: getattr(cfg, key) for key in keys}
    shared = {"autocast": autocast, "share": batches.share}
    if cfg.compile and last > done:
        sides = sorted(
            {side_at(step * per_step, cfg.first_side, cfg.img_size, cfg.grow_images) for step in range(done, last)}
        )
        rows = passes.of(cfg.batch_size)[0]
        why = compile_networks(generator, critic, cfg.compile, sides, rows.stop - rows.start, autocast)
        print(f"{run.folder}: " + (f"not compiled: {why}" if why else f"compiled, {cfg.compile}"), flush=True)
    if done:
        print(f"{run.folder}: going on after step {done} of {last}", flush=True)

    def draw(noise: torch.Tensor, shown: Shown, strength: float, *place: int) -> torch.Tensor:
        with autocast:
            tiles = generator(noise, shown.c, shown.keep).float()  # (n, 3, side, side)
        return draws.augmented(tiles, strength, "fake", *place)

    pictures = Path(cfg.image_dir) if cfg.image_dir else run.folder / "samples"
    if watch is not None:
        watch.resume(run, done * per_step)

    def about_model(step: int) -> dict[str, Any]:
        return describe_model(cfg, cohort, vae, step / epoch_steps, step * per_step) | {"generator_args": gan.args}

    def save_model(step: int) -> None:
        run.save(f"{run.name}.model", "gan", about_model(step) | {"generator": average.state_dict()})

    def draw_grid(step: int) -> None:
        if not run.ranks.main:
            return
        with alone():
            tiles, columns = sample_tiles(average, cfg.num_grid, cfg.seed, held_out)
        write_png(pictures / f"epoch_{math.ceil(step / epoch_steps):04d}.png", grid_of(to_uint8(tiles), columns))

    def save(step: int, model: bool) -> bool:
        """Save; return False where a weight is not finite: the files on disk stay as they were."""
        bad = False
        try:
            if run.ranks.main:
                with run.saving():
                    state = {"step": step, "losses": {k: v.item() for k, v in losses.items()}}
                    run.save("last.pt", "gan_training", state | gan.state() | skips.state())
                    if model:
                        save_model(step)
        except NonFiniteError:
            bad = True
        return not run.ranks.any(bad)

    def calibrate() -> None:  # before last.pt, so that it is the same however often the run was cut
        if run.ranks.main:
            with alone():  # the other ranks take no part in this
                calibrate_batch_norm(average, calibration_inputs(average, cfg.seed, conditions))

    def go_back(step: int, what: str) -> int:
        remedy = "lower lr_generator or lr_critic, use --precision fp32, or check the tiles; then --restart"
        skips.blame(step, what, remedy)
        state = run.restore("gan_training") or {"step": 0, "losses": {}} | GANTraining(cfg, latent_dim, device).state()
        gan.load(state)
        losses.clear()
        losses.update({k: torch.tensor(v, device=device) for k, v in state["losses"].items()})
        unchecked.clear()
        batches.go_to(state["step"])
        progress.go_to(state["step"] * per_step)
        return state["step"]

    model = run.folder / f"{run.name}.model"
    if done >= last and not is_model_of(model, done * per_step):  # last.pt is written first: a crash may be between
        calibrate()
        save(done, model=True)
        draw_grid(done)
    if device.type == "cpu":
        keep_freed_memory()
    unchecked: dict[int, torch.Tensor] = {}  # step: whether its losses are finite
    progress = Progress(run.name, "images", last * per_step, done * per_step, device, quiet=not run.ranks.main)
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
                    losses |= critic_step(
                        critic, gan.optimizer_c, loss, real, fake, epsilon, shown, **options, **shared
                    )

        # Update the generator, and its moving average.
        for trial in passes.trials(cfg.batch_size) if step not in skips else ():
            with trial:
                if trial.again:
                    fake = draw(noise, shown, strength, step, turn)
                losses |= generator_step(critic, gan.optimizer_g, loss, fake, shown, real, **shared)
        if step in skips:
            run.log(step, {"skipped": skips[step]})
        else:
            update_average(average, generator, average_decay(per_step, cfg.ema_images, step * per_step))
            unchecked[step] = torch.stack(list(losses.values())).isfinite().all()
        progress.add(per_step)

        # Report. Losses are looked at in bulk, so that a GPU is not stopped at every step.
        epoch_ends = step % epoch_steps == 0 or step == last
        stopping, due = run.after_step(epoch_ends, cfg.save_every)
        save_now = due or stopping or step == last
        measure = is_due(cfg, step * per_step, per_step, step == cfg.num_epochs * epoch_steps)
        if step % cfg.log_interval == 0 or epoch_ends or save_now or measure or device.type == "cpu":
            if bad := skips.first_bad({k: bool(v) for k, v in unchecked.items()}, step, gan.state):
                step = go_back(bad, "a loss or weight is NaN or infinite")
                continue
            unchecked.clear()
        if passes.changed:
            print(f"{run.folder}: step {step}: {passes.changed}", flush=True)
            run.log(step, {"micro_batch": passes.size})
            passes.changed = ""
        if losses and (step % cfg.log_interval == 0 or step == last):
            run.log(step, {"epoch": step / epoch_steps, **losses, **progress.report()})
            progress.show(", ".join(f"{name} {value.item():.3g}" for name, value in losses.items()))
        if measure and watch is not None:
            watch.look(run, step, average, about_model(step), conditions, held_out, pictures)

        # Save: at the end of an epoch, or of this call, also the model and a grid of tiles.
        if epoch_ends or stopping:
            calibrate()
        if save_now and not save(step, model=epoch_ends or stopping):
            step = go_back(step, "a weight is NaN or infinite")
            continue
        if epoch_ends or stopping:
            draw_grid(step)
        if stopping and step < last:
            run.stop(step)
    progress.close()
    print(
        f"{run.folder / run.name}.model: {max(last, done)} steps, {max(last, done) / epoch_steps:.4g} epochs",
        flush=True,
    )


def is_model_of(path: Path, images_seen: int) -> bool:
    """Return whether a whole model of after so many images is there."""
    try:
        return load_checkpoint(path, "gan")[0]["images_seen"] == images_seen
    except InputError:
        return False


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
