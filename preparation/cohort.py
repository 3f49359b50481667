"""prepare_data.py cohort: tables, tile stores and phenotypes joined into one table of slides."""

import argparse
from pathlib import Path

from common.config import DataSettings, load_config
from common.errors import InputError, warn
from common.files import write_json, write_text
from datasets.coverage import Expected
from datasets.gene_lists import read_gene_list
from datasets.leaks import TrainedOn
from preparation.parts import Commands, add_command

MANUAL = """Join expression tables, tile stores and phenotypes into one table: who is there, held out, or missing.

Reads --table and --tiles (a tile folder per table, or one for all), or those of a --config, with whose flags a later
stage would see the same cohort. Writes --out, a CSV with a row per slide that has tiles and expression: slide, sample,
donor, tissue, sex (of --phenotypes, else the table's), split (by donor), tiles, coverage (share of the genes of
--checkpoint, else of --genes, that the table has). Writes <name>.report.json beside it: counts by tissue and split,
slides without expression, expression without slide, donors in several tissues.
Refuses a donor with rows in several splits, and with --checkpoint a donor of split val or test whom that beta-VAE or
GAN was trained on: every later stage would refuse them too. With --checkpoint its split_seed is used.

    python prepare_data.py cohort --table data/lung.csv data/brain.csv --tiles tiles/lung tiles/brain \\
        --phenotypes SubjectPhenotypesDS.txt --checkpoint checkpoints/betavae_tissues.pt --out data/cohort.csv
"""


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    add = add_command(commands, "cohort", "join tables, tiles and phenotypes; find leaks", MANUAL, run)
    add("--config", help="JSON settings that name the tables, tile folders and phenotypes; flags win")
    add("--table", nargs="+", dest="path_csv", help="expression tables, .csv or .h5ad")
    add("--tiles", nargs="+", dest="patch_data_path", help="tile folders, one per table in the same order, or one")
    add("--tissues", nargs="+", help="a name per table; without it, the column tissue, else the file's stem")
    add("--phenotypes", help="GTEx subject phenotypes: SUBJID, SEX")
    add("--checkpoint", help="a beta-VAE or GAN: its genes, its split_seed, its training donors")
    add(
        "--genes",
        help="without a --checkpoint that has genes: CSV with a column Gene, one id a line, or a GTF",
    )
    add("--split_seed", type=int, help="of the split by donor (default: the config's, else 99)")
    add("--out", required=True, help="the table to write, .csv")


def run(args: argparse.Namespace) -> None:
    """Write the table and its report; print what was found."""
    from datasets.cohort_table import make_cohort_table

    out = Path(args.out)
    if out.suffix != ".csv":
        raise InputError(f"{out}: the cohort is written as .csv; name the output accordingly")
    settings, genes, models = settings_of(args), None, []
    if args.checkpoint:
        genes, models, seed = read_models(args.checkpoint)
        if settings.split_seed != seed:
            warn(f"split_seed = {settings.split_seed}; {args.checkpoint} was trained under {seed}: that is used")
            settings.split_seed = seed
    if genes is not None and args.genes:
        raise InputError(f"--genes {args.genes}: {args.checkpoint} brings its genes; leave one of the two out")
    source = args.checkpoint if genes is not None else args.genes
    if args.genes:
        genes = read_gene_list(args.genes).genes
    cohort = make_cohort_table(settings, Expected(source, genes) if genes else None)
    for model in models:
        model.refuse_held_out(cohort.obs, str(out))
    write_text(out, cohort.slides.to_csv(index=False))
    report = out.with_name(f"{out.stem}.report.json")
    about = {"tables": settings.path_csv, "tile_folders": settings.patch_data_path, "split_seed": settings.split_seed}
    write_json(report, about | {"checkpoint": args.checkpoint} | cohort.report())
    for line in cohort.lines():
        print(line)
    print(f"{out}; {report}")


def settings_of(args: argparse.Namespace) -> DataSettings:
    """Return the settings of --config with the flags on top. InputError where neither names tables and tiles."""
    names = ("path_csv", "patch_data_path", "tissues", "phenotypes", "split_seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = load_config(DataSettings, args.config, **given) if args.config else DataSettings(**given)
    for flag, value in (("--table", settings.path_csv), ("--tiles", settings.patch_data_path)):
        if not value:
            raise InputError(f"{flag}: name it, or a --config that does: the cohort is joined from tables and tiles")
    return settings


def read_models(path: str) -> tuple[list[str] | None, list[TrainedOn], int]:
    """Return the genes of a beta-VAE, or of a GAN's (None: it has none), who trained them, and their split_seed."""
    from common.checkpoint import load_checkpoint, resolve_checkpoint
    from common.torch_files import is_foreign

    path = resolve_checkpoint(path)
    if is_foreign(path):
        raise InputError(f"{path}: a published file, which tells neither genes nor donors; leave --checkpoint out")
    state, _ = load_checkpoint(path)
    if "split_seed" not in state:
        raise InputError(f"{path}: a beta-VAE's best.pt or a GAN's .model was expected; name one, or its run folder")
    models = [TrainedOn(path, state)]
    if not state.get("vae_digest"):
        return state.get("genes"), models, state["split_seed"]
    vae_path = resolve_checkpoint(state["settings"]["vae_checkpoint"])
    vae, digest = load_checkpoint(vae_path, "betavae")
    if digest != state["vae_digest"]:
        raise InputError(f"{vae_path}: is another beta-VAE than the one {path} was trained with; put that one back")
    return vae["genes"], [*models, TrainedOn(vae_path, vae)], state["split_seed"]
