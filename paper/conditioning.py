"""conditioning  Whether tiles follow the expression: the numbers of evaluate_conditioning.py on one page.

    python paper_figures.py conditioning --study demo

Reads   <study>/conditioning/**/metrics.json; the tiles themselves are on the report.html beside each.
Writes  conditioning.*: a column per tissue; values with intervals, chance, random pairings, ceiling and control above,
        the response along directions of the expression below
"""

from typing import Any

import pandas as pd

from figures.paper_conditioning import COLUMNS, conditioning_figure
from figures.results import short
from paper.parts import Ask, Drawn, listed, made_by

NAME, WHAT = "conditioning", "whether tiles follow the expression"
RETRIEVAL = {"top1": "top-1", "mrr": "mean reciprocal rank"}


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw the page of every evaluation that there is."""
    with made_by(ask, "conditioning"):
        found = ask.metrics("conditioning", "verdict")
    columns, about = {}, []
    for folder, m in found.items():
        for tissue, own in m.get("tissues", {folder: m}).items():
            title = tissue if tissue not in columns else f"{tissue}, {m['gan']['run']}"
            columns[title] = (rows_of(own), doses_of(own))
            n = own["ceiling_tiles"]
            live, copies = own["liveness"]["pixel_difference"], own["memorisation"]["value"]
            spread = own["diversity"]["value"] if own["diversity"] else None
            about.append(
                f"{title}: {own['patients']} held-out {own['who']}, {n['generated']} generated tiles each, "
                f"{len(m['sampling_seeds'])} sampling seeds; the same noise with another's expression changes a tile "
                f"by {live['value']:.1f} of 255 grey levels; spread within a patient, of the real one, "
                f"{number(spread)}; {number(copies)} of the tiles are nearer to a training tile than to a held-out one "
                f"(0.5 is ideal); GAN {m['gan']['run']} {short(m['gan']['digest'])}, control: {m['control']}"
            )
    tables = [part.assign(tissue=title) for title, parts in columns.items() for part in parts]
    table = pd.concat(tables, ignore_index=True)
    seeds = listed(m["seed"] for m in found.values())
    extractors = listed(
        f"{m['extractor']['name']} (weights {short(m['extractor']['weights_digest'])})" for m in found.values()
    )
    caption = (
        "Do the tiles of held-out patients follow their expression? (Top) Value with its 95 % interval over patients "
        "(blue), chance (dotted tick), the range up to the 99 % quantile of random pairings of patients (grey bar), "
        "what real tiles reach against themselves (open diamond) and the same generator or control without expression "
        "(orange cross). r: Pearson's, over patients, between the means of generated and of real tiles. (Bottom) "
        "Spearman's r of each measure with the step along a direction of the expression, at the same noise; bold: p < "
        "0.05 with steps shuffled, not corrected for their number. "
        + "; ".join(about)
        + f". Seed {seeds}; extractor {extractors}."
    )
    return {NAME: Drawn(conditioning_figure(columns), table, caption)}


def rows_of(m: dict[str, Any]) -> pd.DataFrame:
    """Return one line per number of a tissue's metrics, in the order of the page: group, what, COLUMNS, n, p."""
    control, lines = m["controls"]["unconditional"], []

    def add(group: str, what: str, block: dict[str, Any], other: dict[str, Any] | None, key: str = "value") -> None:
        said = {"value": block.get(key)} | {c: block.get(c) for c in COLUMNS if c not in ("value", "control")}
        said |= {"control": None if other is None else other.get(key), "n": block.get("n"), "p": block.get("p_value")}
        lines.append({"group": group, "what": what, **said})

    explained = m["liveness"]["variance_explained"]
    add("features", "variance explained", explained, control.get("variance_explained"))
    for way, suffix in (("plain", ""), ("centred", ", centred")):
        for key, words in RETRIEVAL.items():
            other = control["retrieval"][way][key]
            add("retrieval", words + suffix, m["retrieval"][way][key], other)
    add("retrieval", "distances, AUC", m["distance"]["auc"], control["distance"]["auc"])
    add("expression", "read back, mean r", m["round_trip"], control["round_trip"])
    for name, block in m["morphology"].items():
        other = control.get("morphology", {}).get(name)
        add("morphology", f"{words_of(name)}, r", block, other, "pearson")
    return pd.DataFrame(lines).assign(panel="values")


def doses_of(m: dict[str, Any]) -> pd.DataFrame:
    """Return one line per direction and measure: value (Spearman) and p."""
    lines = []
    for direction, found in m["dose_response"].items():
        for name in m["morphology"]:
            words = {"group": words_of(direction), "what": words_of(name)}
            lines.append(words | {"value": found[name]["spearman_repeats"], "p": found[name]["p_value"]})
    return pd.DataFrame(lines, columns=["group", "what", "value", "p"]).assign(panel="doses")


def words_of(name: str) -> str:
    """Return "eosin_od" as "eosin OD"."""
    return " ".join("OD" if word == "od" else word for word in name.split("_"))


def number(value: float | None) -> str:
    """Return a number with two digits, or a dash where it is undefined."""
    return "–" if value is None else f"{value:.2f}"
