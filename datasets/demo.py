"""The demo cohort: slides and expression in the archives' own formats, small, with a known link between them.

    make_demo("demo", seed=99)

Four factors per donor (FACTORS), standard normal and independent, are drawn into the slides (datasets/demo_tissue.py)
and move a module of genes each (datasets/demo_genes.py); truth.csv says what they were.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from common.errors import InputError
from common.files import read_json, write_json, write_text
from datasets.demo_cohort import Cohort, plan_cohort
from datasets.demo_configs import demo_configs
from datasets.demo_expression import write_expression_files
from datasets.demo_paint import FACTORS
from datasets.demo_slides import BASE_MPP, SlidePlan, write_slide
from datasets.workers import start_worker

STATE = "demo.json"  # what was asked for, and whether all of it is there
DEMO_MPP_TABLE = "mpp_table.csv"
VERSION = 4  # of the drawing and the expression: a cohort of another version is not mixed with this one
TABLES = (
    "rna/gene_tpm.gct.gz",
    "rna/SampleAttributesDS.txt",
    "rna/SubjectPhenotypesDS.txt",
    "rna/protein_coding_genes.csv",
    "geo/GSE120795_lung_proteincoding.csv",
    "geo/GSE120795_brain_proteincoding.csv",
    "truth.csv",
    DEMO_MPP_TABLE,
)
SMALLEST = (12, 256)  # donors, pixels


def make_demo(
    out: str | Path,
    seed: int = 99,
    n_donors: int = 130,
    slide_px: int = 1024,
    workers: int = 2,
    specials: bool = True,
    progress: bool = True,
) -> Path:
    """Write the demo cohort into the folder `out` and return it. The same arguments give the same bytes.

    slide_px: side of a slide in pixels at 0.5 um per pixel. workers: processes that draw. specials: one slide each
    without mpp, at 40x, half blank, and cut short. A finished cohort is left as it is; an interrupted one goes on with
    the slides that are missing. InputError where `out` holds another cohort.
    """
    if n_donors < SMALLEST[0]:
        raise InputError(f"--donors {n_donors}: at least {SMALLEST[0]} donors are needed, for a split by donor")
    if slide_px < SMALLEST[1]:
        raise InputError(f"--slide_px {slide_px}: at least {SMALLEST[1]} pixels are needed, for a few tiles of a slide")
    if workers < 0:
        raise InputError(f"--workers {workers}: a number of processes was expected, 0 or 1: draw in this one")
    root = Path(out)
    asked = {"version": VERSION, "seed": seed, "n_donors": n_donors, "slide_px": slide_px, "specials": specials}
    before = _earlier(root, asked)
    cohort = plan_cohort(seed, n_donors, specials)
    paths = {plan.name: root / "slides" / plan.tissue / plan.name for plan in cohort.slides}
    missing = [plan for plan in cohort.slides if not paths[plan.name].exists()]
    tables = [root / name for name in TABLES]
    if before.get("complete") and not missing and all(path.exists() for path in tables):
        return root

    write_json(root / STATE, asked | {"complete": False})
    if not all(path.exists() for path in tables):
        write_expression_files(root / "rna", root / "geo", cohort, seed)
        _write_truth(root, cohort)
    for name, settings in demo_configs(Path(out).as_posix()).items():
        if not (root / "configs" / name).exists():  # a user's own changes are kept
            write_json(root / "configs" / name, settings)
    _draw_all([(plan, paths[plan.name], slide_px) for plan in missing], workers, progress)
    write_json(root / STATE, asked | {"complete": True})
    return root


def _earlier(root: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what the folder says of itself; InputError where it is another cohort, or not ours."""
    if not (root / STATE).exists():
        if ours := [name for name in ("slides", "rna", "geo", "truth.csv") if (root / name).exists()]:
            raise InputError(f"{root / ours[0]}: is there already, but not from this command; choose another --out")
        return {}
    state = read_json(root / STATE)
    if other := [f"{k} {state.get(k)} there, {v} now" for k, v in asked.items() if state.get(k) != v]:
        raise InputError(f"{root}: holds another demo cohort ({', '.join(other)}); choose another --out or delete it")
    return state


def _write_truth(root: Path, cohort: Cohort) -> None:
    rows = [{"donor": s.donor, "slide": s.name, "tissue": s.tissue} | s.factors for s in cohort.slides]
    truth = pd.DataFrame(rows, columns=["donor", "slide", "tissue", *FACTORS])
    write_text(root / "truth.csv", truth.to_csv(index=False))
    silent = [s.name for s in cohort.slides if s.kind == "no_mpp"]
    write_text(root / DEMO_MPP_TABLE, "slide,mpp\n" + "".join(f"{name},{BASE_MPP}\n" for name in silent))


def _draw_all(jobs: list[tuple[SlidePlan, Path, int]], workers: int, progress: bool) -> None:
    """Draw the slides, in so many processes; each is written as a whole, so a stop loses only those being drawn."""
    bar = tqdm(total=len(jobs), desc="drawing slides", unit="slide", disable=not progress or not jobs)
    with bar:
        if workers <= 1 or len(jobs) < 4:
            for job in jobs:
                write_slide(*job)
                bar.update()
            return
        # Forked where that is safe: only numpy runs in the children, and imports need not be repeated.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=start_worker)
        try:
            for done in as_completed([pool.submit(write_slide, *job) for job in jobs]):
                done.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
