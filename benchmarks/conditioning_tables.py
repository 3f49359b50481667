"""The tables of benchmarks/conditioning.py, drawn from its lines of JSON; and what other benchmarks' tables need."""

import fcntl
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.files import write_text

# With the networks of before 2026-11-25, when sides changed otherwise: no longer to be had, so not run.
EARLIER = ("earlier residual", "earlier residual+dropout", "earlier residual+dropout, guidance 1.5")
MEASURES = ("nuclear_density", "haematoxylin_od", "eosin_od", "white_space", "nuclear_size")
CONTROLS = {"unconditional": "without expression", "greyscale": "greyscale", "colour_histogram": "colours alone"}


def read(results: Path) -> list[dict[str, Any]]:
    """Return the lines of the results."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def draw(results: Path, out: Path, rows: Sequence[str]) -> None:
    """Put the tables of `rows` between the marks of `out`, one call at a time."""
    with open(results, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines, found = read(results), []
        for name, size in sorted({(line["set"], line["img_size"]) for line in lines}):
            ours = [line for line in lines if (line["set"], line["img_size"]) == (name, size)]
            found += [f"### {name}, {size} px", *tables(ours, rows)]
        put(out, "conditioning.py", found)


def put(out: Path, script: str, found: list[str]) -> None:
    """Put paragraphs between a script's marks in the file `out`; at its end where it has none."""
    begin, end = f"<!-- tables of {script} -->", "<!-- end -->"
    before, _, rest = (out.read_text() if out.exists() else "").partition(begin)
    write_text(out, before + begin + "\n\n" + "\n\n".join(found) + "\n\n" + end + (rest.partition(end)[2] or "\n"))


def tables(lines: list[dict[str, Any]], rows: Sequence[str]) -> list[str]:
    """Return a set's tables as text: how good and how alive, and how the tiles match."""
    heads = ["row", "seeds", "steps", "KID", "FID", "grey levels", "spread", "memorised", "top-1", "MRR centred"]
    heads += [f"top-1, {words}" for words in CONTROLS.values()]
    first, second = [], []
    for row in (*rows, *EARLIER):
        of_row = [line for line in lines if line["row"] == row]
        if not of_row and row in EARLIER:
            continue
        if not of_row:
            first.append([row, "not run"] + [""] * (len(heads) - 2))
            continue
        plain = [[line[key] for line in of_row] for key in ("kid", "fid", "grey_levels", "spread", "memorised")]
        plain += [[line["retrieval"][key]["value"] for line in of_row] for key in ("top1", "mrr_centred")]
        plain += [[line["top1_of_controls"][key] for line in of_row] for key in CONTROLS]
        steps = f"{np.mean([line['steps'] for line in of_row]):.0f}"
        first.append([row, ", ".join(map(str, sorted(line["seed"] for line in of_row))), steps, *map(mean_sd, plain)])
        match = [[line["morphology"][m] for line in of_row] for m in MEASURES]
        cells = [mean_sd([v["pearson"] for v in of_measure]) for of_measure in match]
        shuffled = max(v["shuffled_pearson"] or 0 for of_measure in match for v in of_measure)
        p = [max(1.0 if v["p_value"] is None else v["p_value"] for v in of_measure) for of_measure in match]
        without = mean_sd([line["largest_r_without_expression"] for line in of_row])
        second.append([row, *cells, ", ".join(f"{x:.3f}" for x in p), f"{shuffled:.2f}", without])
    last = lines[-1]
    chance = [f"{v['chance']:.2f}; {v['ceiling']:.2f}" for v in last["retrieval"].values()]
    first.append(["chance; real tiles", "", "", "", "", "0", "1", "0.5", *chance, "", "", ""])
    bounds = {"ridge": "ridge on the expression", "ceiling": "real tiles", "null_q99": "re-paired, 99 %"}
    for key, words in bounds.items():
        second.append([words, *(number(last["morphology"][m][key]) for m in MEASURES), "", "", ""])
    names = [f"r {m.replace('_', ' ').replace(' od', '')}" for m in MEASURES]
    names += ["largest p of each", "largest mean abs(r), re-paired", "abs(r) without expression"]
    shares = "; ".join(f"{row} {words}" for row in (*rows, *EARLIER) if (words := of_the_ridge(lines, row)))
    says = f"r as a share of the ridge's, nuclear density and haematoxylin, each seed's and the mean: {shares}."
    return [table(heads, first), table(["row", *names], second), says]


def of_the_ridge(lines: list[dict[str, Any]], row: str) -> str:
    """Return how far a row's r reaches the ridge's from the same expression, in words; "" where it was not run."""
    of_row = [line["morphology"] for line in lines if line["row"] == row]
    words = []
    for m in ("nuclear_density", "haematoxylin_od"):
        known = [line[m] for line in of_row if line[m]["pearson"] is not None and (line[m]["ridge"] or 0) > 0]
        each = [b["pearson"] / b["ridge"] for b in known]
        if each:
            words.append(f"{', '.join(f'{x:.0%}' for x in each)} ({np.mean(each):.0%})")
    return " and ".join(words)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


def mean_sd(values: list[float | None]) -> str:
    """Return mean and, of several, sd; a dash where there is none."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    digits = 2 if abs(np.mean(known)) < 10 else 1 if abs(np.mean(known)) < 100 else 0
    if 0 < abs(np.mean(known)) < 1e-3:
        return f"{np.mean(known):.1e}"
    return f"{np.mean(known):.{digits}f}" + (f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else "")


def number(value: float | None) -> str:
    """Return two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"
