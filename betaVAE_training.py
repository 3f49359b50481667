"""Train the beta-VAE on gene expression (paper, STAR Methods; differences from the published code: README).

    python betaVAE_training.py --config configs/betavae_tissues.json --seed 99 --log 0 --parallel 0

Reads the expression tables that the config's path_csv names, .h5ad or the reference's CSV, any number of tissues.
Donors are split 64/16/20 % into train, val and test by a hash of (split_seed, donor), unless a table's column
assigned_split says more; logarithm and z-score are fitted on the training donors.

Writes into the run folder, the config's save_dir:
    config.json     the resolved settings
    log.jsonl       one line per epoch: total, reconstruction and kl of train and val; batch_* every log_interval steps
                    with an epoch's also profiles per second, seconds left and memory
    last.pt         everything that changes; typing the same command again goes on from it, exactly
    best.pt         the model of the best validation epoch (best_by), with gene order, scaler and latent statistics
    metrics.json    errors on test donors, all and per tissue, beside tissue mean and PCA; test_genes.csv: per gene
    previous.pt     the last.pt before it: where the disk damages last.pt, the run goes on from there
last.pt is written at the end of an epoch and every --save_every seconds (600), but no more often than costs a
twentieth of the time. SIGTERM, SIGINT and SIGUSR1 end the run after the current step, saved, with status 75. Where a
loss or weight is not finite, the run goes back to last.pt and leaves that batch out; the third time it ends.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from common.config import PRECISIONS, BetaVAESettings, add_scale, load_config, settings_dict
from common.distributed import joined, launch, under_torchrun
from common.errors import InputError, command_parser, run_command
from common.joint_sums import sum_gradients
from common.memory import keep_freed_memory
from common.progress import Progress
from common.rehearsal import rehearse
from common.run import Run, pick_device, seed_for
from common.skips import Skips
from common.together import together
from datasets.epochs import Epochs
from datasets.expression import ExpressionTable, read_cohort_tables
from datasets.fingerprint import fingerprints
from models.betavae import beta_vae_loss
from models.betavae_settings import check_vae_settings
from models.betavae_training import PARTS, BetaVAETraining, evaluate, network_args
from models.expression_scaler import ExpressionScaler
from models.memory import moments_to_come, tell, vae_need
from models.passes import Passes
from models.played_step import unchanged, vae_step
from models.schedules import learning_rate
from sources.vae_report import measure_best
from sources.vae_saves import Saves

FEWEST_DONORS = {"train": 2, "val": 1, "test": 1}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags without a value here leave the config's."""
    parser = command_parser(__doc__)
    parser.add_argument("--config", required=True, help="JSON settings, e.g. configs/betavae_tissues.json")
    parser.add_argument("--seed", type=int, help="of weights, batches and noise; never moves a donor (split_seed does)")
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: log to wandb too (offline if need be)")
    add_scale(parser.add_argument)
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    parser.add_argument("--save_dir", help="the run folder")
    parser.add_argument("--num_epochs", type=int)
    parser.add_argument("--max_steps", type=int, help="stop after so many steps in all; 0: no such limit")
    parser.add_argument("--save_every", type=int, help="seconds between saves (600); 0: at the end of an epoch only")
    parser.add_argument("--precision", choices=PRECISIONS, help="bf16: autocast; the loss stays fp32")
    parser.add_argument("--dry_run", action="store_true", help="two steps of everything in a temporary place, then end")
    parser.add_argument("--restart", action="store_true", help="move an earlier run in the folder aside")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Settings, data, run; then `fit`, network and loop, and the test."""
    # Settings.
    if args.parallel and not under_torchrun():
        return launch(args.parallel, [__file__, *args.words])
    cfg = load_config(BetaVAESettings, args.config, args)
    check_vae_settings(cfg, args.config)
    device = pick_device(cfg.device)

    with joined(device) as ranks:
        # Data. The first process is done before the others begin, who then find its tables parsed.
        if cfg.batch_size < ranks.world:
            raise InputError(
                f"{args.config}: batch_size {cfg.batch_size} is under {ranks.world}, the processes; raise it"
            )
        with together(main_first=True):
            table = read_cohort_tables(cfg)
            check_splits(table, cfg)
            part = {s: table.rows((table.obs["split"] == s).to_numpy()) for s in FEWEST_DONORS}
        counts = ", ".join(f"{s} {len(p)} profiles of {p.obs['donor'].nunique()} donors" for s, p in part.items())

        # Run: a folder that holds these settings; or, of a dry run, two in a temporary place.
        before = settings_dict(BetaVAESettings())  # what an older config.json does not say was so

        def train(cfg: BetaVAESettings, restart: bool = False, batches: int | None = None) -> None:
            with Run(cfg.save_dir, settings_dict(cfg), restart, before, ranks) as run:
                if args.log and not args.dry_run:
                    run.start_wandb(settings_dict(cfg))
                where = f"{device}" if ranks.world == 1 else f"{ranks.world} processes, {device.type}"
                print(f"{run.folder}: {len(table.genes)} genes; {counts}; {where}", flush=True)
                fit(run, table, part, cfg, device, batches)
                if ranks.main:
                    measure_best(run, part, cfg, device)

        def rehearsed(folder: Path, steps: int) -> None:
            train(replace(cfg, save_dir=str(folder), num_epochs=steps, max_steps=0), batches=1)  # an epoch is one step

        kept = sum(part[s].values.nbytes for s in ("train", "val"))
        need = vae_need(cfg, network_args(cfg, len(table.genes)), len(part["train"]), kept)
        tell(need, device)
        if args.dry_run:
            what = "data, two steps, validation, test, saving and loading"
            rehearse(rehearsed, cfg.save_dir, device, need.total, what)
        else:
            train(cfg, args.restart)
    return None


def fit(
    run: Run,
    table: ExpressionTable,
    part: dict[str, ExpressionTable],
    cfg: BetaVAESettings,
    device: torch.device,
    batches: int | None = None,
) -> None:
    """Train from where last.pt stands to num_epochs or max_steps; leave last.pt and best.pt in the run folder.

    `batches`: of each epoch; None: all.
    """
    # Logarithm and z-score, fitted on the training donors.
    values = {s: torch.from_numpy(part[s].values) for s in ("train", "val")}
    scaler, train = ExpressionScaler.fit_transform(values["train"], cfg.transform, cfg.missing_genes)
    train, val = train.to(device), scaler.transform(values["val"]).to(device)

    # The network, its optimiser, and where an earlier call of this command left them.
    vae = BetaVAETraining(cfg, len(table.genes), device)
    model, optimizer = vae.model, vae.optimizer
    if device.type == "cpu":
        keep_freed_memory()
    epochs = Epochs(len(train), cfg.batch_size, cfg.seed, batches)
    names = part["train"].obs.index
    skips = Skips(run.folder, lambda step: [str(name) for name in names[epochs.of_step(step).numpy()]])
    saves = Saves(run, vae, skips, table, part, scaler, fingerprints(table))
    place = saves.place  # step, epoch, batch, the sums of the epoch's losses, the best epoch
    if saves.resume():
        print(f"{run.folder}: going on after step {place['step']}, epoch {place['epoch']} of {cfg.num_epochs}")

    # Of each batch this rank has a share, which passes through the network at once, or a part after another.
    ranks, passes = run.ranks, Passes(cfg.micro_batch, least=2)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16")
    enough = bool(cfg.max_steps) and place["step"] >= cfg.max_steps
    if place["epoch"] < cfg.num_epochs and not enough:
        largest = max(map(len, epochs.batches(0)))
        with unchanged(model):
            play = vae_step(cfg, model, largest, device, autocast)
            passes.settle(largest, play, device, moments_to_come(optimizer))
    total, shown = cfg.num_epochs * len(train), epochs.shown(place["epoch"], place["batch"])
    progress = Progress(run.name, "profiles", total, shown, device, quiet=not ranks.main)

    def go_back(step: int, what: str) -> None:
        saves.go_back(step, what)
        progress.go_to(epochs.shown(place["epoch"], place["batch"]))

    run.hold_signals()  # until the last step is saved
    while place["epoch"] < cfg.num_epochs and not enough:
        # One epoch over the training donors, or what is left of it.
        model.train()
        stopping, bad = False, None
        for batch in epochs.batches(place["epoch"])[place["batch"] :]:
            # What a step has of its number alone: dropout and noise, the rate.
            torch.manual_seed(seed_for(cfg.seed, "step", place["step"]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(place["step"], cfg)
            number, finite, parts = place["step"] + 1, True, dict.fromkeys(PARTS, 0.0)
            noise, kept = model.draw(len(batch), device)  # for all of it; of several ranks each takes its rows

            # Update the weights, through a part of the batch after another where memory is small.
            for trial in passes.trials(len(batch)) if number not in skips else ():
                with trial:
                    optimizer.zero_grad(set_to_none=True)
                    sums = torch.zeros(len(PARTS), device=device)
                    for rows in passes.of(len(batch)):
                        x = train[batch[rows].to(device)]  # (rows, genes), z-scores
                        with autocast:
                            outputs = model(x, noise[rows], kept[rows])
                        losses = beta_vae_loss(x, *outputs, beta=cfg.beta)
                        share = len(x) / len(batch)
                        (share * losses["total"]).backward()
                        if share:  # the mean of no row is NaN: a last batch may be smaller than the ranks are many
                            sums += share * torch.stack([losses[name].detach() for name in PARTS])
                    sum_gradients(optimizer)
                    parts = dict(zip(PARTS, ranks.sum(sums).tolist(), strict=True))
                    if finite := all(map(math.isfinite, parts.values())):
                        optimizer.step()
            if bad := skips.first_bad({number: finite}, number, saves.state):
                break

            # Count, report, leave where a signal or max_steps says so.
            place["step"] += 1
            place["batch"] += 1
            for name in PARTS:
                place["sums"][name] += parts[name] * len(batch) / len(train)
            progress.add(len(batch))
            if number in skips:
                run.log(number, {"skipped": skips[number]})
            elif cfg.log_interval and number % cfg.log_interval == 0:
                run.log(number, {f"batch_{k}": v for k, v in parts.items()})
            passes.tell(run, number)
            enough = bool(cfg.max_steps) and place["step"] >= cfg.max_steps
            stopping, due = run.after_step(every=cfg.save_every)
            if (stopping or enough or due) and not saves.save():
                bad = number
            if stopping or enough or bad:
                break

        # Go back where something is not finite; stop, or end inside an epoch.
        optimizer.zero_grad(set_to_none=True)
        if bad:
            go_back(bad, "the loss is not finite" if not finite else "a weight is not finite")
            enough = False
            continue
        if stopping:
            run.stop(place["step"])
        if place["batch"] < epochs.steps:
            break  # max_steps, within an epoch

        # Validate, and keep the best.
        validation = evaluate(model, val, cfg)
        if not all(map(math.isfinite, validation.values())):
            go_back(place["step"], "the validation loss is not finite")
            enough = False
            continue
        if place["best"] is None or validation[cfg.best_by] < place["best"][cfg.best_by]:
            place["best"] = {"epoch": place["epoch"] + 1, **validation}
            saves.keep_best()

        # Report, and save.
        epoch_steps = range(place["step"] - epochs.steps + 1, place["step"] + 1)
        seen = 1 - sum(len(skips[step]) for step in epoch_steps if step in skips) / len(train)
        report = {f"train_{k}": v / (seen or 1) for k, v in place["sums"].items()}
        report |= {f"val_{k}": v for k, v in validation.items()}
        place |= {"epoch": place["epoch"] + 1, "batch": 0, "sums": dict.fromkeys(PARTS, 0.0)}
        report |= {"lr": optimizer.param_groups[0]["lr"]}
        run.log(place["step"], {"epoch": place["epoch"], **report, **progress.report()})
        progress.show(f"train {report['train_total']:.4f} val {report['val_total']:.4f}")
        stopping, due = run.after_step(epoch_ends=True, every=cfg.save_every)
        if (due or stopping or enough or place["epoch"] == cfg.num_epochs) and not saves.save():
            go_back(place["step"], "a weight is not finite")
            enough = False
            continue
        if stopping and not enough and place["epoch"] < cfg.num_epochs:
            run.stop(place["step"])
    progress.close()
    run.release_signals()
    if place["best"] is None and ranks.main:  # max_steps ended the run inside its first epoch
        saves.write_best(model.state_dict(), place["epoch"], None)


def check_splits(table: ExpressionTable, cfg: BetaVAESettings) -> None:
    """InputError, with the donors per split, where the cohort is too small to split."""
    donors = {s: int(table.obs["donor"][table.obs["split"] == s].nunique()) for s in FEWEST_DONORS}
    if any(donors[s] < fewest for s, fewest in FEWEST_DONORS.items()):
        have = ", ".join(f"{s} {n}" for s, n in donors.items())
        need = ", ".join(f"{s} {n}" for s, n in FEWEST_DONORS.items())
        raise InputError(
            f"{table.source}: too few donors to split by split_seed {cfg.split_seed}: {have}; at least {need} are "
            "needed; add donors, or choose another split_seed"
        )


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
