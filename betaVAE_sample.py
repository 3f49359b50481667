"""Draw synthetic expression profiles from a trained beta-VAE, and compare them with real ones.

    python betaVAE_sample.py --config configs/betavae_tissues.json --num_samples 64 --tissue lung

--source posterior (default)   the Gaussian fitted to the training latents of --tissue, or of each tissue in turn
         prior                 N(0, I); these decode badly where beta is small (5e-4), since latents then leave N(0, I)
         shift                 posterior draws of the group that --shift (a file of betaVAE_interpolation.py) starts
                               from, moved by --alpha times the shift
Sample k depends on (seed, k) only. The decoder gives a profile's expected value; --noise 1 (default) adds what it
cannot explain, gene by gene: normal noise with the sd of its error on validation donors; --noise 0 leaves it out.

Reads the trained model in the config's save_dir (or --vae_checkpoint) and, for the comparison, the tables of path_csv
(--no_check: without).

Writes --out, by default <save_dir>/samples.h5ad, in the tables' unit (.csv: the reference's form), and beside it
<stem>.metrics.json: n, seed, distance to the nearest real profile, per-gene means and spreads, AUC of a
real-or-synthetic classifier, for the samples as written (as_written) and as the other --noise would be. Held out are
the profiles of test donors alone (held_out_split); validation donors take no part. Samples moved to another tissue are
compared with that tissue, draws from the prior, which have none, with all.
"""

import argparse
import sys
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pandas as pd
import torch
from torch import Tensor

from common.archives import read_npz
from common.checkpoint import resolve_checkpoint
from common.config import BetaVAESettings, add_fit_scaler, load_config
from common.errors import InputError, command_parser, did_you_mean, run_command, shorten
from common.files import write_json
from common.run import generator_for, pick_device
from datasets.expression import ExpressionTable, read_cohort_tables, write_expression
from datasets.keys import slug
from datasets.leaks import TrainedOn
from metrics.profiles import compare_profiles
from models.betavae import TrainedVAE
from models.latents import draw_gaussian
from sources.vae import Fit, open_vae, origin_of

COMPARED_WITH = "test"  # validation donors chose the epoch and gave --noise its size: they are not held out
SOURCES = ("posterior", "prior", "shift")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags without a value here leave the config's."""
    parser = command_parser(__doc__)
    parser.add_argument("--config", required=True, help="the JSON settings that the model was trained with")
    parser.add_argument("--source", choices=SOURCES, help="default: posterior, or shift where --shift is given")
    parser.add_argument("--num_samples", type=int, default=64)
    parser.add_argument("--tissue", help="draw profiles of this tissue only")
    parser.add_argument("--shift", help="shift_<a>_to_<b>.npz, for --source shift")
    parser.add_argument("--alpha", type=float, default=1.0, help="how far along the shift; 1: all the way")
    parser.add_argument("--noise", type=float, default=1.0, help="share of the unexplained sd to add; 0: none")
    parser.add_argument("--no_check", action="store_true", help="do not read the tables, do not compare")
    parser.add_argument("--vae_checkpoint", help="the trained model; default: the config's save_dir")
    add_fit_scaler(parser.add_argument)
    parser.add_argument("--out", help="the table to write; default: <save_dir>/samples.h5ad")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="nothing to log: see the metrics file")
    parser.add_argument("--parallel", type=int, choices=(0, 1), default=0, help="1: several processes")
    parser.add_argument("--device", help="cpu, cuda, cuda:N, or a GPU's index with the CPU as fallback")
    parser.add_argument("--save_dir", help="the model's run folder")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Model, latents, profiles, table, comparison."""
    if args.parallel:
        raise InputError("--parallel 1: several processes are not supported yet; use --parallel 0")
    if args.num_samples < 1 or args.noise < 0:
        raise InputError("--num_samples: at least 1 was expected, and --noise 0 or more")
    source = args.source or ("shift" if args.shift else "posterior")
    if (source == "shift") != bool(args.shift):
        raise InputError("--source shift and --shift FILE belong together; give both, or --shift alone")
    cfg = load_config(BetaVAESettings, args.config, args)
    out = Path(args.out or Path(cfg.save_dir) / "samples.h5ad")
    if out.suffix not in (".h5ad", ".csv"):
        raise InputError(f"--out {out}: a name ending in .h5ad or .csv was expected")
    vae, digest = open_vae(args.vae_checkpoint or cfg.save_dir, pick_device(cfg.device), Fit.of(cfg))
    cfg.split_seed = vae.split_seed
    shift = read_shift(args.shift, digest) if args.shift else None

    # Latents, then profiles with and without the noise that the decoder cannot explain.
    tissues = tissue_of_each(vae, args, shift)
    z = torch.stack([draw(vae, source, tissues[k], cfg.seed, k) for k in range(args.num_samples)])  # (n, z)
    if shift is not None:
        z = z + shift["offset"] + args.alpha * shift["shift"]
    expected = vae.decode_scaled(z)  # (n, genes), z-scores
    rng = [generator_for(cfg.seed, "observation", k) for k in range(args.num_samples)]
    noise = torch.stack([torch.randn(len(vae.genes), generator=g) for g in rng]).to(expected.device)
    noise = noise * vae.residual_std.to(expected.device)
    scaled = vae.scale(vae.scaler.inverse(expected + args.noise * noise))  # what a reader of the table will see
    moved = shift is not None and shift["type"] == "tissue"
    label = f"{shift['from']}_to_{shift['to']}" if moved else "prior"
    labels = [label] * len(z) if moved or source == "prior" else tissues
    write_samples(out, vae, vae.scaler.inverse(expected + args.noise * noise), labels, source, digest)

    # Compare with real profiles.
    about = {"vae_digest": digest, "seed": cfg.seed, "n": args.num_samples, "source": source, "noise": args.noise}
    about |= origin_of(vae) | {
        "tissue": args.tissue,
        "shift": args.shift,
        "alpha": args.alpha if shift is not None else None,
    }
    if not args.no_check:
        other = vae.scale(vae.scaler.inverse(expected + (0.0 if args.noise else noise)))
        name = "without_noise" if args.noise else "with_noise"
        seen = TrainedOn(resolve_checkpoint(args.vae_checkpoint or cfg.save_dir), vae.state)
        about |= check(vae, seen, cfg, {"as_written": scaled, name: other}, {shift["to"]} if moved else set(tissues))
        report = about["as_written"]
        auc, near = report["auc"], report["nearest"]
        print(
            f"nearest training profile: synthetic {near['synthetic_to_train']:.3f}, real held-out "
            f"{_number(near['held_out_to_train'])}; real-or-synthetic AUC {_number(auc and auc['value'])} "
            f"(n = {auc['n_each'] if auc else 0} each)"
        )
    write_json(out.with_name(f"{out.stem}.metrics.json"), about)
    print(f"{out}: {args.num_samples} profiles from the {source}, seed {cfg.seed}, model {digest[:12]}")
    return None


def tissue_of_each(vae: TrainedVAE, args: argparse.Namespace, shift: dict[str, Any] | None) -> list[str]:
    """Return the tissue that each sample is drawn from: --tissue, the shift's start, or all tissues in turn."""
    name = args.tissue
    if args.source == "prior" and name:
        raise InputError(f"--tissue {name}: the prior knows no tissue; leave it out, or use --source posterior")
    if shift is not None and shift["from"] in vae.by_tissue:
        if name and slug(name) != shift["from"]:
            raise InputError(f"--tissue {name}: the shift in {args.shift} starts from {shift['from']}; leave it out")
        name = shift["from"]
    elif shift is not None and shift["tissue"]:
        name = name or shift["tissue"]
    known = sorted(vae.by_tissue)
    if name and slug(name) not in known:
        near = did_you_mean(slug(name), known)
        raise InputError(f"--tissue {name}: the model was trained on {shorten(known)}{near}; choose one of these")
    chosen = [slug(name)] if name else known
    return [chosen[k % len(chosen)] for k in range(args.num_samples)]


def draw(vae: TrainedVAE, source: str, tissue: str, seed: int, k: int) -> Tensor:
    """Return sample k's latent (z,), before any shift; it depends on (source, tissue, seed, k) alone."""
    generator = generator_for(seed, "sample", k)
    if source == "prior":
        return torch.randn(vae.latent_dim, generator=generator)
    return draw_gaussian(vae.by_tissue[tissue], generator)


def read_shift(path: str, digest: str) -> dict[str, Any]:
    """Return shift (z,), offset (z,), from, to and tissue of a file of betaVAE_interpolation.py.

    offset: where the shift's group starts from, relative to what is drawn: nothing for tissues, which have their own
    Gaussian; mean_from - mean_all for sexes. InputError where the file is not one of those, or is of another model.
    """
    try:
        found = read_npz(path)
        if str(found["vae_digest"]) != digest:
            raise InputError(
                f"{path}: is of model {str(found['vae_digest'])[:12]}, this one is {digest[:12]}; "
                "make the shift again with betaVAE_interpolation.py"
            )
        words = {key: str(found[key]) for key in ("from", "to", "tissue", "type")}
        arrays = {key: torch.from_numpy(found[key]) for key in ("shift", "mean_from", "mean_all")}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make it with betaVAE_interpolation.py") from None
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a shift of betaVAE_interpolation.py ({reason}); make it again") from None
    offset = arrays["mean_from"] - arrays["mean_all"] if words["type"] == "sex" else 0.0
    return words | {"shift": arrays["shift"], "offset": offset}


def check(
    vae: TrainedVAE, seen: TrainedOn, cfg: BetaVAESettings, variants: dict[str, Tensor], tissues: set[str]
) -> dict[str, Any]:
    """Return the comparison of each of `variants` (n, genes), z-scores, with training and test rows of `tissues`."""
    table = read_cohort_tables(cfg)
    seen.refuse_held_out(table.obs, table.source)
    table = table.rows(table.obs["tissue"].isin(tissues).to_numpy())
    real = vae.scale(torch.from_numpy(table.aligned(vae.genes, vae.min_gene_coverage, vae.unit)[0])).cpu().numpy()
    mean, std = (a.cpu().numpy() for a in (vae.scaler.mean, vae.scaler.std))
    train, test = ((table.obs["split"] == s).to_numpy() for s in ("train", COMPARED_WITH))
    donors = table.obs["donor"].to_numpy()[test]
    if not train.any():
        raise InputError(
            f"{table.source or cfg.path_csv}: no training profile of {shorten(sorted(tissues))} to compare with; "
            "check path_csv, or use --no_check"
        )
    return {"held_out_split": COMPARED_WITH} | {
        name: compare_profiles(x.cpu().numpy(), real[train], real[test], donors, mean, std, cfg.seed)
        for name, x in variants.items()
    }


def write_samples(path: Path, vae: TrainedVAE, profiles: Tensor, tissues: list[str], source: str, digest: str) -> None:
    """Write `profiles` (n, genes), linear units, as an expression table; each sample is its own donor."""
    names = [f"synthetic_{k:05d}" for k in range(len(profiles))]
    obs = pd.DataFrame({"wsi_file_name": "", "donor": names, "tissue": tissues, "drawn_from": source}, index=names)
    words = f"betaVAE_sample.py, {source}, model {digest[:12]}"
    write_expression(ExpressionTable(profiles.cpu().numpy(), vae.genes, obs, vae.unit, words), path)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
