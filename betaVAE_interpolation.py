"""Find the latent shift from one group of profiles to another, and see what it does to profiles of held-out donors.

    python betaVAE_interpolation.py --config configs/betavae_tissues.json --type tissue --from lung --to brain

Groups are tissues (default: all ordered pairs) or the sexes, from the phenotype file (columns SUBJID and SEX, 1 male,
2 female). Centroids are the means of the encoder's means over training donors; shift = mean(to) - mean(from).

Reads the tables of the config's path_csv and the trained model in its save_dir (or --vae_checkpoint).

Writes into --out, by default <save_dir>/shifts, for each pair:
    shift_<a>_to_<b>.npz            shift, mean_from, mean_to, mean_all (z,); names, counts, the model's digest
    profiles_<a>_to_<b>.h5ad        the centroid of a moved along alpha, decoded, in the tables' unit (--format csv)
    moved_<a>_to_<b>.h5ad           each held-out (test) profile of a moved to b (alpha 1), decoded
and calls.csv and metrics.json: how many held-out profiles of a are called b along alpha, with Wilson's 95 % interval,
by a logistic regression fitted on real training profiles of a and b (scaled log expression), and how often that
classifier is right on real held-out profiles. A shift of sexes goes to <save_dir>/shifts/sex (sex_<tissue> with
--tissue). Before the shift (alpha 0) profiles are already decoded ones: where many of them are called b although the
real ones are not, the model has not kept what tells a from b.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.checkpoint import resolve_checkpoint
from common.config import BetaVAESettings, add_fit_scaler, load_config
from common.errors import InputError, command_parser, did_you_mean, run_command, shorten, warn
from common.files import atomic_path, write_json
from common.run import pick_device
from datasets.expression import ExpressionTable, read_cohort_tables, write_expression
from datasets.keys import slug
from datasets.leaks import TrainedOn
from datasets.sample_sheets import sexes_of
from metrics.discrimination import wilson
from metrics.profiles import GroupClassifier
from models.betavae import TrainedVAE
from sources.vae import Fit, open_vae, origin_of

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags without a value here leave the config's."""
    parser = command_parser(__doc__)
    parser.add_argument("--config", required=True, help="the JSON settings that the model was trained with")
    parser.add_argument("--type", choices=("tissue", "sex"), default="tissue", help="what the groups are")
    parser.add_argument("--from", dest="source", help="shift from this group only (default: from each)")
    parser.add_argument("--to", dest="target", help="shift to this group only (default: to each)")
    parser.add_argument("--tissue", help="use profiles of this tissue only, e.g. with --type sex")
    parser.add_argument("--phenotypes", help="subject phenotypes file, for --type sex")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS, help="steps along the shift")
    parser.add_argument("--vae_checkpoint", help="the trained model; default: the config's save_dir")
    add_fit_scaler(parser.add_argument)
    parser.add_argument("--out", help="folder of the results; default: <save_dir>/shifts, for sexes shifts/sex")
    parser.add_argument("--format", choices=("h5ad", "csv"), default="h5ad", help="of the decoded profiles")
    parser.add_argument("--seed", type=int, help="accepted for the paper's command lines; nothing here is random")
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="nothing to log: see metrics.json")
    parser.add_argument("--parallel", type=int, choices=(0, 1), default=0, help="1: several processes")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    parser.add_argument("--save_dir", help="the model's run folder")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Model, tables, groups; then centroids, shift, decoding and calls for each pair."""
    if args.parallel:
        raise InputError("--parallel 1: several processes are not supported yet; use --parallel 0")
    cfg = load_config(BetaVAESettings, args.config, args)
    vae, digest = open_vae(args.vae_checkpoint or cfg.save_dir, pick_device(cfg.device), Fit.of(cfg))
    cfg.split_seed = vae.split_seed  # the model's donors stay the training donors
    table = read_cohort_tables(cfg)
    TrainedOn(resolve_checkpoint(args.vae_checkpoint or cfg.save_dir), vae.state).refuse_held_out(
        table.obs, table.source
    )
    table, group = grouped(table, cfg, args)
    pairs = chosen_pairs(group, args)
    split = table.obs["split"].to_numpy()
    values = torch.from_numpy(table.aligned(vae.genes, vae.min_gene_coverage, vae.unit)[0])
    scaled, mu = vae.scale(values).cpu().numpy(), vae.encode(values).cpu()  # (rows, genes), (rows, z)
    folder = "_".join(["sex", *([slug(args.tissue)] if args.tissue else [])]) if args.type == "sex" else ""
    out = Path(args.out or Path(cfg.save_dir) / "shifts" / folder)
    centroid = {}
    for name in sorted({name for pair in pairs for name in pair}):
        rows = np.flatnonzero((group == name) & (split == "train"))
        if not len(rows):
            raise InputError(f"{table.source}: no training donor has a profile of {name}; a shift needs at least one")
        centroid[name] = (mu[rows].mean(0), rows)
    mean_all = mu[torch.from_numpy(split == "train")].mean(0)
    classifiers: dict[frozenset[str], GroupClassifier] = {}
    calls, summary = [], []
    for a, b in pairs:
        # The shift, and what it makes of the centroid.
        (mean_a, rows_a), (mean_b, rows_b) = centroid[a], centroid[b]
        shift = mean_b - mean_a  # (z,)
        arrays = {"shift": shift, "mean_from": mean_a, "mean_to": mean_b, "mean_all": mean_all}
        words = {"from": a, "to": b, "n_from": len(rows_a), "n_to": len(rows_b), "type": args.type}
        about = words | {"tissue": args.tissue or "", "vae_digest": digest, "split_seed": vae.split_seed}
        write_npz(out / f"shift_{a}_to_{b}.npz", {k: v.numpy() for k, v in arrays.items()} | about)
        steps = torch.stack([mean_a + alpha * shift for alpha in args.alphas])
        names = [f"{a}_to_{b}_{alpha:g}" for alpha in args.alphas]
        obs = pd.DataFrame({"donor": names, "tissue": f"{a}_to_{b}", "alpha": [f"{x:g}" for x in args.alphas]}, names)
        write_profiles(out / f"profiles_{a}_to_{b}.{args.format}", vae, vae.decode(steps), obs, digest)

        # Held-out profiles of a, moved, and what a classifier of real profiles calls them.
        key = frozenset((a, b))
        if key not in classifiers:
            both = np.concatenate([rows_a, rows_b])
            classifiers[key] = GroupClassifier(scaled[both], group[both])
        held = {name: np.flatnonzero((group == name) & (split == "test")) for name in (a, b)}
        result = {"from": a, "to": b, "n_train_from": len(rows_a), "n_train_to": len(rows_b)}
        result |= {"n_held_out": len(held[a]), "latent_distance": float(shift.norm())}
        if len(held[a]):
            obs = table.obs.iloc[held[a]][["donor"]].assign(tissue=f"{a}_to_{b}", moved_from=a)
            moved = vae.decode(mu[held[a]] + shift)
            write_profiles(out / f"moved_{a}_to_{b}.{args.format}", vae, moved, obs, digest)
            real = np.concatenate([held[a], held[b]])
            right = int((classifiers[key].call(scaled[real]) == group[real]).sum())
            result["accuracy_on_real"] = share(right, len(real))
            real_called = int((classifiers[key].call(scaled[held[a]]) == b).sum())
            result["real_called_to"] = share(real_called, len(held[a]))
            for alpha in sorted({*args.alphas, 0.0, 1.0}):
                decoded = vae.decode_scaled(mu[held[a]] + alpha * shift).cpu().numpy()
                called = share(int((classifiers[key].call(decoded) == b).sum()), len(held[a]))
                calls.append({"from": a, "to": b, "alpha": alpha, **called})
                if alpha in (0.0, 1.0):
                    result["before_called_to" if alpha == 0 else "after_called_to"] = called
            before, after = result["before_called_to"], result["after_called_to"]
            print(
                f"{a} -> {b}: of {len(held[a])} held-out profiles {real_called} are called {b}, {before['count']} "
                f"decoded and {after['count']} moved; the classifier is right on {right} of {len(real)} real ones"
            )
        else:
            warn(f"{table.source}: no test donor has a profile of {a}: nothing held out to move to {b}")
        summary.append(result)
    with atomic_path(out / "calls.csv") as partial:
        pd.DataFrame(calls).to_csv(partial, index=False, float_format="%.6g")
    about = {"vae_digest": digest, "split_seed": vae.split_seed, "type": args.type, "tissue": args.tissue}
    about |= origin_of(vae)
    write_json(out / "metrics.json", about | {"pairs": summary})
    print(f"{out}: {len(pairs)} shifts")
    return None


def grouped(
    table: ExpressionTable, cfg: BetaVAESettings, args: argparse.Namespace
) -> tuple[ExpressionTable, np.ndarray]:
    """Return the rows that have a group, and the group of each: its tissue, or its donor's sex."""
    if args.tissue:
        tissues = sorted(set(table.obs["tissue"]))
        if slug(args.tissue) not in tissues:
            near = did_you_mean(slug(args.tissue), tissues)
            raise InputError(f"--tissue {args.tissue}: not in {table.source}, which has {shorten(tissues)}{near}")
        table = table.rows((table.obs["tissue"] == slug(args.tissue)).to_numpy())
    if args.type == "tissue":
        return table, table.obs["tissue"].to_numpy(dtype=str)
    sexes = sexes_of(table.obs, cfg.phenotypes)
    if sexes is None:
        raise InputError("--type sex needs the subject phenotypes (SUBJID, SEX): set phenotypes or give --phenotypes")
    known = np.isin(sexes, ("male", "female"))
    if not known.all():
        names = table.obs["donor"][~known].unique()
        warn(f"{cfg.phenotypes or table.source}: no sex for {len(names)} donors, left out: {shorten(names)}")
    return table.rows(known), sexes[known]


def chosen_pairs(group: np.ndarray, args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the ordered pairs to shift between. InputError with the groups there are for one that is not there."""
    groups = list(dict.fromkeys(group))
    for flag, name in (("--from", args.source), ("--to", args.target)):
        if name and slug(name) not in groups:
            near = did_you_mean(slug(name), groups)
            raise InputError(f"{flag} {name}: no such {args.type} in the tables; there are {shorten(groups)}{near}")
    sources = [slug(args.source)] if args.source else groups
    targets = [slug(args.target)] if args.target else groups
    pairs = [(a, b) for a in sources for b in targets if a != b]
    if not pairs:
        raise InputError(f"a shift needs two different groups; the tables have {shorten(groups)} (--type {args.type})")
    return pairs


def share(count: int, n: int) -> dict[str, float]:
    """Return count, n, their share and its 95 % interval (Wilson 1927)."""
    low, high = wilson(count, n)
    return {"count": count, "n": n, "share": count / n, "low": low, "high": high}


def write_profiles(path: Path, vae: TrainedVAE, profiles: torch.Tensor, obs: pd.DataFrame, digest: str) -> None:
    """Write decoded `profiles` (rows, genes), linear units, as an expression table."""
    obs = obs.assign(wsi_file_name="")
    obs.index = obs.index.astype(str)
    source = f"betaVAE_interpolation.py, model {digest[:12]}"
    write_expression(ExpressionTable(profiles.cpu().numpy(), vae.genes, obs, vae.unit, source), path)


def write_npz(path: Path, arrays: dict[str, object]) -> None:
    """Write arrays, numbers and words as one .npz, whole or not at all."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
