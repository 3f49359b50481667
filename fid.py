"""Distance between two sets of tiles, or between all pairs of several: FID, KID, precision and recall.

    python fid.py --checkpoint checkpoints/rna-gan_lung.model --config configs/gan_run_lung.json \\
        --sample_size 600 --vae --vae_checkpoint checkpoints/betavae_tissues.pt --patient1 GTEX-15RJ7-0625.svs
    python fid.py --matrix real=real:configs/gan_run_lung.json gan=checkpoints/gan_lung drawn=generated/gan_lung

Side A is --checkpoint, else real tiles; side B is --checkpoint2, else real tiles. A checkpoint may also be a folder of
pictures or an .npz of saved statistics. Real tiles are those of --patient1 where given, else of all slides of --config;
with --config2 or --patient2 a real side B takes those. An RNA-GAN on side A draws for --patient1, on side B for
--patient2, else --patient1; with none named, each tile is drawn for a seeded held-out donor. What a model is, its file
says; --vae is accepted and not needed.

Reads tile stores, tables, checkpoints; writes metrics.json (--out) with every draw, n, the extractor and the digest of
its weights. Values are comparable only at equal extractor, weights, precision and, for FID, n. Features are kept by the
content of the tiles (--feature_cache; at most 4 GB), so that a set passes the network once. --precision bf16 is 1.2
to 2 times as fast on a processor that has it (AVX512-BF16, AMX; much slower elsewhere). It moved Inception's FID by
less than 0.1 % (random weights), as its layers at 35 x 35 and more stay fp32, another extractor's by 0 to 1.8 %.
--matrix takes NAME=SOURCE with SOURCE = real:CONFIG[:PATIENT], RUN[:PATIENT], a folder or an .npz, and adds on its
diagonal the distance between two disjoint halves of each real source: the floor that no generator can be expected to
pass.
With torchrun, or --parallel, several processes divide the tiles; the result is that of one.
"""

import argparse
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config import PRECISIONS, add_fit_scaler, add_parallel, add_tile_limits
from common.distributed import joined, launch, under_torchrun
from common.errors import InputError, command_parser, run_command, warn
from common.files import make_folder, write_json
from common.together import together
from metrics.frechet import small_sample_note
from models.features import Extractor, load_extractor
from sources.distances import MEASURES, compare, matrix_of, split_half
from sources.division import agree_on
from sources.draws import Draws, tiles_at_a_time
from sources.feature_cache import FeatureCache, cache_folder
from sources.parse import Opener, SourceSpec, parse_source
from sources.statistics import save_statistics


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(__doc__)
    sides = parser.add_argument_group("sides")
    sides.add_argument("--checkpoint", help="side A: a GAN, a folder of pictures or an .npz; default: real tiles")
    sides.add_argument("--checkpoint2", help="side B, likewise")
    sides.add_argument("--config", help="settings of the GAN and its data: real tiles and profiles come from here")
    sides.add_argument("--config2", help="settings for side B; default: --config")
    sides.add_argument("--patient1", help="slide (or sample, or donor) of the first patient")
    sides.add_argument("--patient2", help="slide (or sample, or donor) of the second patient")
    sides.add_argument("--vae", action="store_true", help="accepted for the published command lines; the file decides")
    sides.add_argument("--vae_checkpoint", help="the VAE that encodes profiles; default: the one that the run names")
    add_fit_scaler(sides.add_argument)
    sides.add_argument("--matrix", nargs="+", metavar="NAME=SOURCE", help="all pairs of these sources in one table")
    add_tile_limits(sides.add_argument)
    how = parser.add_argument_group("how")
    how.add_argument("--guidance", type=float, default=1.0, help="strength of an RNA-GAN's expression (default 1)")
    how.add_argument(
        "--split", choices=("all", "train", "val", "test"), default="all", help="whose real tiles (default all slides)"
    )
    how.add_argument("--sample_size", type=int, default=600, help="tiles of each side in each draw (default 600)")
    how.add_argument("--iterations", type=int, default=5, help="draws (default 5)")
    how.add_argument(
        "--extractor", help="efficientnet_lite0 (default), inception (default with --weights), resnet50, ..."
    )
    how.add_argument("--weights", help="the extractor's weights file (pt_inception-2015-12-05-6726825d.pth, ...)")
    how.add_argument("--extractor_side", help="pixels at which the extractor sees tiles, or 'tiles': as they are")
    how.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the extractor (default fp32)")
    how.add_argument("--save_statistics", nargs="?", const="", metavar="FOLDER", help="write each source's NAME.npz")
    how.add_argument("--seed", type=int, default=None, help="of the draws (default: the config's, else 99)")
    how.add_argument("--device", default=None, help="cpu, cuda, or a GPU's index (default: the config's, else 0)")
    add_parallel(how.add_argument)
    how.add_argument(
        "--batch_size", dest="tiles_at_a_time", type=int, help="tiles at a time (default: by the free memory)"
    )
    how.add_argument(
        "--feature_cache",
        metavar="FOLDER",
        help="where features are kept, or 'none' (default $RNAGAN_FEATURE_CACHE, else ~/.cache/rna-gan/features)",
    )
    how.add_argument("--out", help="metrics.json or its folder; default fid/<a>_vs_<b>/metrics.json")
    return parser


def main(args: argparse.Namespace) -> int | None:
    """Measure the two sides, or the matrix, print the table and write metrics.json."""
    if args.parallel and not under_torchrun():
        return launch(args.parallel, [__file__, *args.words])
    for name in ("sample_size", "iterations", "tiles_at_a_time"):
        least = 2 if name == "sample_size" else 1
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(
                f"--{name.replace('tiles_at_a_time', 'batch_size')} {getattr(args, name)}: at least {least}"
            )
    specs = matrix_specs(args.matrix) if args.matrix else side_specs(args)

    opener = Opener(args, specs, args.vae_checkpoint)
    with joined(opener.device) as ranks:
        # Open everything: what may fail does so before the first tile is drawn.
        with together(main_first=True):
            sources = opener.open_all()
            extractor = open_extractor(args, opener)
            for name, source in sources.items():
                if source.describe()["kind"] == "gan":  # the patient was named for the other side: not this one's
                    specs[name] = replace(specs[name], patient=None)
            out = check_output(args, specs) if ranks.main else None
        cache = FeatureCache(cache_folder(args.feature_cache))
        draws = open_draws(args, opener, sources, extractor, cache)
        for name, d in draws.items():
            agree_on(f"{name}: {d.label}", [d.source.describe(), extractor.describe(), d.n])
        warnings = [f"{d.label}: {note}" for d in draws.values() if (note := small_sample_note(d.n, extractor.dim))]
        if args.vae and not opener.conditional:
            print("--vae: no side is an RNA-GAN, ignored")
        about = f"weights {extractor.digest[:8]}, {extractor.dim} features; seed {opener.seed}"
        print(f"extractor {extractor.name}, {about}")
        for name, d in draws.items():
            fewer = f" (of {args.sample_size} asked for: all there are)" if d.n < args.sample_size else ""
            print(f"{name}: {d.label}; n = {d.n}{fewer}")

        # Features, each tile once, by one of the ranks.
        for name, d in draws.items():
            d.extract(with_halves=bool(args.matrix) and specs[name].kind == "real")
            if d.found:
                print(f"{name}: features of {d.found} tiles from {cache.folder}")
        if not ranks.main:
            return None

        # Distances.
        pairs = [compare(a, b) for a, b in itertools.combinations(draws.values(), 2)]
        floors = [split_half(d) for name, d in draws.items() if args.matrix and specs[name].kind == "real"]
        for message in warnings:
            warn(message)

        # Report.
        result = {
            "extractor": extractor.describe(),
            "seed": opener.seed,
            "sample_size": args.sample_size,
            "iterations": args.iterations,
            "img_size": opener.img_size,
            "sources": {name: {**d.source.describe(), "n": d.n} for name, d in draws.items()},
            "pairs": pairs,
            "floors": floors,
            "warnings": warnings,
        }
        if args.matrix:
            result["matrix"] = {m: matrix_of(list(draws), pairs, floors, m) for m in ("fid", "kid")}
            print_matrices(list(draws), result["matrix"])
        else:
            result |= {measure: pairs[0][measure] for measure in MEASURES}
            print_pair(pairs[0])
        if args.save_statistics is not None:
            save_all(Path(args.save_statistics or out.parent), specs, draws, extractor)
        write_json(out, result)
        print(f"{out}")
    return None


def open_draws(
    args: argparse.Namespace, opener: Opener, sources: dict[str, Any], extractor: Extractor, cache: FeatureCache
) -> dict[str, Draws]:
    """Return the draws of each source, by name."""
    size = args.tiles_at_a_time or tiles_at_a_time(extractor, opener.img_size)
    how = (extractor, args.sample_size, args.iterations, opener.seed, size, opener.img_size, cache)
    with together():
        return {name: Draws(name, source, *how) for name, source in sources.items()}


def side_specs(args: argparse.Namespace) -> dict[str, SourceSpec]:
    """Return sides A and B of the flags, by the rules in the manual above."""
    if not args.checkpoint and not args.checkpoint2 and not (args.config2 or args.patient2):
        raise InputError(
            "both sides would be the same real tiles: give --checkpoint or --checkpoint2, or --config2 or --patient2"
        )
    config_b = args.config2 or args.config
    if args.config2 or args.patient2:
        real_b = (config_b, args.patient2)
    else:
        real_b = (args.config, args.patient1)
    return {
        "A": _side(args.checkpoint, (args.config, args.patient1), args.config, args.patient1),
        "B": _side(args.checkpoint2, real_b, config_b, args.patient2 or args.patient1),
    }


def _side(
    source: str | None, real: tuple[str | None, str | None], config: str | None, patient: str | None
) -> SourceSpec:
    if source is None:
        if not real[0]:
            raise InputError("a side without a checkpoint is real tiles: name their cohort with --config")
        return SourceSpec("real", real[0], real[1])
    spec = parse_source(source)
    return SourceSpec("run", spec.path, spec.patient or patient, config) if spec.kind == "run" else spec


def matrix_specs(items: list[str]) -> dict[str, SourceSpec]:
    """Return the sources of --matrix NAME=SOURCE ... by name."""
    specs: dict[str, SourceSpec] = {}
    for item in items:
        name, equals, source = item.partition("=")
        if not (name and equals and source):
            raise InputError(f"--matrix {item}: expected NAME=SOURCE, as in real=real:configs/gan_run_lung.json")
        if name in specs:
            raise InputError(f"--matrix {item}: the name {name} is given twice; choose another")
        specs[name] = parse_source(source)
    if len(specs) < 2:
        raise InputError("--matrix: at least two NAME=SOURCE were expected")
    return specs


def open_extractor(args: argparse.Namespace, opener: Opener) -> Extractor:
    """Return the extractor that the flags (or the config's feature_side) ask for."""
    name = args.extractor or ("inception" if args.weights else "efficientnet_lite0")
    side: int | None = opener.feature_side or None
    if args.extractor_side == "tiles":
        if opener.img_size is None:
            raise InputError("--extractor_side tiles: no side has tiles, only statistics; give a number of pixels")
        side = opener.img_size
    elif args.extractor_side is not None:
        if not args.extractor_side.isdigit() or int(args.extractor_side) < 1:
            raise InputError(f"--extractor_side {args.extractor_side}: expected a number of pixels, or 'tiles'")
        side = int(args.extractor_side)
    return load_extractor(name, args.weights, opener.device, side, args.precision)


def print_pair(pair: dict[str, Any]) -> None:
    """Print the measures of one pair, with their spread over the draws."""
    print(f"{'':10} {'mean':>11} {'sd':>10} {'low':>11} {'high':>11}   ({len(pair['draws'])} draws)")
    for measure in MEASURES:
        v = pair[measure]
        row = (
            " ".join(f"{v[k]:>{w}.5g}" for k, w in (("mean", 11), ("sd", 10), ("low", 11), ("high", 11))) if v else "-"
        )
        print(f"{measure:10} {row}")


def print_matrices(names: list[str], matrices: dict[str, list[list[float | None]]]) -> None:
    """Print the symmetric tables; on the diagonal the split-half floor of real sources."""
    width = max(11, *(len(name) + 1 for name in names))
    for measure, rows in matrices.items():
        print(f"\n{measure:{width}}" + "".join(f"{name:>{width}}" for name in names))
        for name, row in zip(names, rows, strict=True):
            print(f"{name:{width}}" + "".join(f"{'-' if v is None else f'{v:.5g}':>{width}}" for v in row))
    print("\ndiagonal: two disjoint halves of the real tiles")


def save_all(folder: Path, specs: dict[str, SourceSpec], draws: dict[str, Draws], extractor: Extractor) -> None:
    """Write the statistics of each source's first draw as <folder>/<name>.npz."""
    for name, d in draws.items():
        if not d.is_statistics:
            names = [spec.short_name for spec in specs.values()]
            own = name if len(specs) > 2 or names[0] == names[1] else specs[name].short_name
            path = folder / f"{own}.npz"
            save_statistics(path, d.features(0), extractor.name, extractor.digest, d.label)
            print(f"{path}")


def check_output(args: argparse.Namespace, specs: dict[str, SourceSpec]) -> Path:
    """Return where metrics.json goes, its folder made; OSError or InputError where nothing can be written there."""
    out = out_path(args, specs)
    make_folder(out.parent)
    if out.is_dir():
        raise InputError(f"{out}: is a folder, the metrics are a file; choose another --out, or remove the folder")
    if args.save_statistics:
        make_folder(args.save_statistics)
    return out


def out_path(args: argparse.Namespace, specs: dict[str, SourceSpec]) -> Path:
    """Return where metrics.json goes."""
    if args.out:
        return Path(args.out) if args.out.endswith(".json") else Path(args.out) / "metrics.json"
    name = "matrix" if args.matrix else "_vs_".join(spec.short_name for spec in specs.values())
    return Path("fid") / name / "metrics.json"


if __name__ == "__main__":
    sys.exit(run_command(main, build_parser()))
