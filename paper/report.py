"""report  one self-contained HTML page (pictures inline) on a folder with the commands' layout: sample tiles, the
        beta-VAE, the latent space, the shifts, the GANs' training, tiles of held-out patients, the conditioning,
        distances, morphology per patient, the classifier, and every setting and digest.

    python paper_figures.py report --demo demo

Reads   <demo>/configs/*.json and the tables and tiles that they name, <demo>/checkpoints/*/ (runs),
        <demo>/fid/ and <demo>/classifier/ (metrics.json), <demo>/truth.csv where there is one.
Writes  <demo>/report.html, or --out. What is not there yet is named with the command that makes it.
The repository's own folder has this layout too: --demo . --out report.html
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.errors import InputError, warn
from common.files import read_json, write_text
from common.run import pick_device
from datasets.cohort import Cohort
from figures import expression_sections, measure, tile_sections
from figures.distance_section import distance_section
from figures.matching_section import matching_section
from figures.page import Section, missing, render
from figures.results import metrics_under, read_log
from figures.settings_section import settings_section
from figures.shift_section import shift_section
from metrics.morphology import UNITS, morphology
from paper.latent import latent_points
from paper.parts import Commands, command_of, model_line
from paper.patients import counted
from sources.study import Study

FACTORS = ("nuclear_density", "nuclear_size", "eosin_od", "white_space")  # those that the demo's expression drives
STAGES = {  # what makes a section's inputs, where it is not a GAN
    "cohort": "tiles",
    "vae": "vae",
    "latent": "samples",
    "shift": "shift",
    "distances": "fid",
    "match": "conditioning",
    "classifier": "classifier",
}
SHOWN = 6  # tiles per patient in the grids
GRID_PATIENTS = 3


def add_to(commands: Commands) -> None:
    """Add the sub-command and its flags."""
    parser = commands.add_parser(
        "report", help="the demo's page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    add("--demo", default="demo", help="folder with configs/, checkpoints/, fid/, classifier/")
    add("--out", help="the page; default <demo>/report.html")
    add("--seed", type=int, default=99)
    add("--tiles", type=int, default=16, help="generated tiles per patient for morphology (%(default)s)")
    add("--device", default="0", help="a GPU's index (else the CPU), cuda (insists) or cpu")
    parser.set_defaults(run=report_page)


def report_page(args: argparse.Namespace) -> None:
    """Write the page: each section from what is on disk, or a box that says what is missing."""
    demo = Path(args.demo)
    study = Study(demo, pick_device(args.device))
    facts: list[tuple[str, str]] = []
    parts: dict[tuple[str, str], Callable[[], Section]] = {
        ("cohort", "The cohort"): lambda: cohort_part(study, facts),
        ("vae", "The beta-VAE of expression"): lambda: vae_part(study, facts),
        ("latent", "The latent space"): lambda: latent_part(study, args.seed),
        ("shift", "Shifts in the latent space"): lambda: shift_part(study),
        ("gan", "Training of the GANs"): lambda: training_part(study),
        ("tiles", "Real, GAN and RNA-GAN tiles"): lambda: grid_part(study, args.seed),
        ("conditioning", "The conditioning is alive"): lambda: conditioning_part(study, args.seed),
        ("distances", "Distances between sets of tiles"): lambda: distance_part(demo / "fid"),
        ("match", "Do the tiles match the patient?"): lambda: matching_part(demo / "conditioning", facts),
        ("morphology", "Morphology per patient"): lambda: morphology_part(study, args.seed, args.tiles),
        ("classifier", "The classifier"): lambda: classifier_part(demo / "classifier", facts),
        ("settings", "Every setting, n and digest"): lambda: settings_part(study),
    }
    sections = []
    for (key, title), draw in tqdm(parts.items(), desc="report", unit="section", disable=None):
        try:
            sections.append(draw())
        except InputError as error:
            warn(f"section {key} is left open: {error}")
            sections.append(
                Section(key, title, "", [missing(f"Not there yet: {error}.", command_of(STAGES.get(key, "gan"), demo))])
            )
    out = Path(args.out) if args.out else demo / "report.html"
    lead = (
        "From slides and bulk expression to synthetic tiles: what each stage made of this cohort. "
        "Every number has its n, seed, extractor and digest beside it."
    )
    footer = f"Made by paper_figures.py report, seed {args.seed}. Synthetic tiles are not for diagnosis."
    write_text(out, render(f"RNA-GAN on the cohort in {demo}/", lead, facts, sections, footer))
    print(out)


def cohort_part(study: Study, facts: list[tuple[str, str]]) -> Section:
    """Count slides and donors; show two donors per tissue, at the extremes of the known factors where there are any."""
    counts, rows, sides = [], {}, set()
    for tissue, cohort in study.cohorts.items():
        slides, tiles = cohort.slides, cohort.tiles
        splits = [int((slides["split"] == s).sum()) for s in ("train", "val", "test")]
        genes = len(cohort.table.genes) if cohort.table is not None else "none"
        tile = f"{tiles.img_size} px at {tiles.mpp:.3g} µm/px"
        counts.append([tissue, len(slides), slides["donor"].nunique(), *splits, len(tiles), tile, genes])
        sides.add(tile)
        rows[tissue] = extreme_rows(cohort, study.truth)
    donors = len(set().union(*(c.slides["donor"] for c in study.cohorts.values())))
    n_tiles = sum(len(c.tiles) for c in study.cohorts.values())
    facts.append((str(donors), f"donors; {n_tiles} tiles of {' and '.join(study.cohorts)}"))
    about = f"Real tiles, {', '.join(sorted(sides))}; the first {SHOWN} of each donor."
    titles: tuple[str, ...] = ()
    if study.truth is not None:
        titles = ("the donor with the lowest value", "the donor with the highest value")
        about += " One row per factor of truth.csv, which expression and morphology share."
    return tile_sections.cohort_section(counts, rows, titles, SHOWN, about)


def extreme_rows(cohort: Cohort, truth: pd.DataFrame | None) -> list[tuple[str, np.ndarray]]:
    """Return a row per known factor: tiles of the slides with its lowest and highest value; else two slides' tiles."""
    slides = cohort.slides
    enough = slides["slide"][slides["n_tiles"] >= min(SHOWN, slides["n_tiles"].max())]

    def first(slide: str) -> np.ndarray:
        return cohort.tiles.read(cohort.tiles.of_slide(slide)[:SHOWN])

    known = truth[truth.index.isin(enough)] if truth is not None else None
    if known is None or known.empty:
        return [(slide, first(slide)) for slide in sorted(enough)[:2]]
    ends = {f: (known[f].idxmin(), known[f].idxmax()) for f in FACTORS if f in known.columns}
    return [(f.replace("_", " "), np.concatenate([first(low), first(high)])) for f, (low, high) in ends.items()]


def vae_part(study: Study, facts: list[tuple[str, str]]) -> Section:
    """Training curves and test errors of the beta-VAE."""
    folder = Path(study.vae_settings.save_dir)
    metrics = read_json(folder / "metrics.json")
    section = expression_sections.vae_section(read_log(folder), metrics, read_json(folder / "config.json"))
    test = metrics["test"]["all"]
    mean = test["tissue_mean"]["mse"]
    facts.append(
        (f"{test['vae']['mse']:.2f}", f"VAE's MSE on {test['donors']} held-out donors; tissue mean {mean:.2f}")
    )
    return section


def latent_part(study: Study, seed: int) -> Section:
    """Map real, reconstructed and generated profiles."""
    latents, tissue, kind, held_out = latent_points(study)
    points = measure.latent_map_points(latents, seed)
    return expression_sections.latent_section(points, tissue, kind, held_out, seed, study.vae[1])


def shift_part(study: Study) -> Section:
    """Calls along the shifts between tissues, and sexes."""
    return shift_section(Path(study.vae_settings.save_dir))


def training_part(study: Study) -> Section:
    """Loss curves of every GAN run; a published file has none."""
    if not study.runs:
        raise InputError(f"{study.folder / 'checkpoints'}: no finished GAN run in it")
    ours = [name for name, gan in study.runs.items() if "published" not in gan.state]
    logs = {name: read_log(study.folder / "checkpoints" / name) for name in ours}
    return tile_sections.training_section(logs, {name: model_line(gan) for name, gan in study.runs.items()})


def grid_part(study: Study, seed: int) -> Section:
    """Real, GAN and RNA-GAN tiles of the first held-out patients of each tissue."""
    grids, names, about = {}, {}, {}
    for tissue, patients in study.held_out.items():
        patients = patients.first(GRID_PATIENTS)
        real = patients.real(SHOWN)
        kept = min(map(len, real))
        grids[tissue] = [("real", np.concatenate([tiles[:kept] for tiles in real]))]
        for kind, gan in patients.gans.items():
            grids[tissue].append((kind, np.concatenate(study.generated(gan, patients, kept, seed))))
        names[tissue] = patients.slides
        about[tissue] = (
            f"The first {len(real)} held-out patients of the table and the first {kept} tiles of each, none picked "
            f"by hand; generated with seed {seed}, tiles 0 on. The plain GAN knows no patient. "
            f"{model_line(*patients.gans.values())}"
        )
    return tile_sections.grid_section(grids, names, about)


def conditioning_part(study: Study, seed: int) -> Section:
    """The same noise with two held-out patients' expression, in both forms."""
    found, names, about = {}, {}, {}
    for tissue, patients in study.held_out.items():
        if "RNA-GAN" not in patients.gans or len(patients.rows) < 2:
            continue
        gan = patients.gans["RNA-GAN"]
        profiles = gan.profiles(study.vae_settings.save_dir, patients.cohort.table)
        mu = study.latent_means(patients.cohort.table.rows(patients.rows))
        pair = measure.furthest_apart(mu)
        found[tissue] = measure.two_patients(gan.generator, mu[pair], profiles.mean, profiles.std, 8, seed)
        names[tissue] = tuple(patients.slides[i] for i in pair)
        about[tissue] = (
            f"Noise seed {seed}; the two of {len(mu)} held-out patients whose latents lie furthest apart. "
            f"{model_line(gan)}"
        )
    if not found:
        raise InputError(f"{study.folder / 'checkpoints'}: no finished RNA-GAN with two held-out patients")
    return tile_sections.conditioning_section(found, names, about)


def distance_part(folder: Path) -> Section:
    """Tables of fid.py --matrix."""
    found = {name: m for name, m in metrics_under(folder).items() if "matrix" in m}
    if not found:
        raise InputError(f"{folder}: no metrics.json of fid.py --matrix in it")
    return distance_section(found)


def matching_part(folder: Path, facts: list[tuple[str, str]]) -> Section:
    """What evaluate_conditioning.py found."""
    found = {name: m for name, m in metrics_under(folder).items() if "verdict" in m}
    if not found:
        raise InputError(f"{folder}: no metrics.json of evaluate_conditioning.py in it")
    for tissue, m in found.items():
        r = m["morphology"]["nuclear_density"]["pearson"]
        text = "–" if r is None else f"{r:.2f}".replace("-", "−")
        facts.append((text, f"r of nuclear density, RNA-GAN with real, {tissue}"))
    return matching_section(found)


def morphology_part(study: Study, seed: int, each: int) -> Section:
    """Compare generated with real tiles of every held-out patient."""
    real, made, matches, ceiling, known, lines = {}, {}, {}, {}, {}, []
    for tissue, patients in study.held_out.items():
        mpp, tiles = patients.cohort.tiles.mpp, patients.real()
        real[tissue], ceiling[tissue] = measure.real_means(tiles, mpp, morphology, seed)
        made[tissue] = {
            kind: measure.patient_means(list(study.generated(gan, patients, each, seed)), gan.state["mpp"], morphology)
            for kind, gan in patients.gans.items()
        }
        matches[tissue] = {
            kind: {name: measure.match(real[tissue][name], values[name], seed) for name in values}
            for kind, values in made[tissue].items()
        }
        if study.truth is not None and set(patients.slides) <= set(study.truth.index):
            rows = study.truth.loc[patients.slides]
            values = {f: rows[f].to_numpy(float) for f in FACTORS if f in rows.columns}
            known[tissue] = {f: measure.match(values[f], real[tissue][f], seed).r for f in values}
        counts = f"{counted(list(map(len, tiles)))} real and {each} generated tiles per patient"
        models = model_line(*patients.gans.values())
        lines.append(f"{tissue}: {len(tiles)} held-out patients, {counts}, {mpp:.3g} µm/px. {models}")
    about = f"Seed {seed}. No extractor: hand-made measures. " + " ".join(lines)
    return tile_sections.morphology_section(real, made, matches, ceiling, known, UNITS, FACTORS, about)


def classifier_part(folder: Path, facts: list[tuple[str, str]]) -> Section:
    """One row per run of wsi_model.py."""
    found = {name: m for name, m in metrics_under(folder).items() if "scores" in m}
    if not found:
        raise InputError(f"{folder}: no metrics.json of wsi_model.py in it")
    for name, m in found.items():
        if not m["shuffled_labels"]:
            facts.append((f"{m['scores']['accuracy']['value']:.3f}", f"accuracy, {name}, n = {m['n_test']} tiles"))
    return tile_sections.classifier_section(found)


def settings_part(study: Study) -> Section:
    """All settings and the digests of what is finished."""
    digests = {name: gan.digest for name, gan in study.runs.items()}
    try:
        digests[Path(study.vae_settings.save_dir).name] = study.vae[1]
    except InputError as error:
        warn(str(error))
    return settings_section(study.folder, digests)
