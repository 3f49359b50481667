"""The report's section on distances: the matrices of fid.py --matrix as tables."""

from collections.abc import Mapping
from typing import Any

from figures.page import Cell, Section, heading, note, table
from figures.results import short

TITLES = {"fid": "Fréchet distance", "kid": "Kernel distance (KID)", "precision": "Precision", "recall": "Recall"}


def distance_section(found: Mapping[str, dict[str, Any]]) -> Section:
    """Return the tables of each matrix; name -> metrics.json of fid.py --matrix."""
    blocks = []
    for name, metrics in found.items():
        names, about = list(metrics["sources"]), _about(metrics)
        if len(found) > 1:
            blocks.append(heading(name))
        for measure in ("fid", "kid"):
            cells = {(p["a"], p["b"]): p[measure] for p in metrics["pairs"]}
            cells |= {(f["source"], f["source"]): f[measure] for f in metrics["floors"]}
            halves = sorted({f["n"] for f in metrics["floors"]})
            floor = (
                f" Diagonal: two disjoint halves of the real tiles, n = {', '.join(map(str, halves))} each: the floor."
            )
            caption = f"{TITLES[measure]}, mean ± sd over the draws.{floor if halves else ''} {about}"
            blocks += [heading(TITLES[measure]), table(["", *names], _rows(names, cells, measure), caption)]
        pairs = [
            [
                p["a"],
                p["b"],
                *(_text(p[m], m) for m in ("precision", "recall")),
                p["reference"],
                f"{p['n_a']} / {p['n_b']}",
            ]
            for p in metrics["pairs"]
        ]
        headers = ["a", "b", "precision", "recall", "reference", "n"]
        caption = f"Precision: share of the other side inside the reference's manifold; recall: the reverse. {about}"
        blocks += [heading("Precision and recall"), table(headers, pairs, caption)]
        sources = [[key, s["label"], s["n"], short(s.get("digest"))] for key, s in metrics["sources"].items()]
        blocks += [table(["name", "what was loaded", "n", "digest"], sources, "The sets of tiles.", settings=True)]
        blocks += [note(f"{', '.join(who)}: {text}.") for text, who in _merged(metrics["warnings"]).items()]
    text = "Deeper blue is closer. A number from another extractor, or at another n, is not comparable with these."
    return Section("distances", "Distances between sets of tiles", text, blocks)


def _about(metrics: dict[str, Any]) -> str:
    extractor = metrics["extractor"]
    n = sorted({s["n"] for s in metrics["sources"].values()})
    side = extractor["input_side"]
    own = side == metrics["img_size"]
    at = f"{side} px" + (", the tiles' own side" if own else f" (tiles: {metrics['img_size']} px)")
    weights = short(extractor["weights_digest"])
    return (
        f"n = {', '.join(map(str, n))} tiles per set and draw, {metrics['iterations']} draws, seed {metrics['seed']}; "
        f"extractor {extractor['name']} at {at}, {extractor['dim']} features, weights {weights}."
    )


def _merged(warnings: list[str]) -> dict[str, list[str]]:
    """Return what is warned of -> whom it concerns; a warning reads "label: what"."""
    found: dict[str, list[str]] = {}
    for warning in warnings:
        who, _, what = warning.partition(": ")
        found.setdefault(what, []).append(who)
    return found


def _rows(names: list[str], cells: dict[tuple[str, str], dict[str, float] | None], measure: str) -> list[list[Any]]:
    means = [v["mean"] for v in cells.values() if v]
    low, high = min(means, default=0.0), max(means, default=1.0)
    rows = []
    for a in names:
        row: list[Any] = [a]
        for b in names:
            value = cells.get((a, b)) or cells.get((b, a))
            tint = (high - value["mean"]) / (high - low or 1.0) if value else 0.0
            row.append(Cell(_text(value, measure), tint) if value else "")
        rows.append(row)
    return rows


def _text(value: dict[str, float] | None, measure: str) -> str:
    if value is None:
        return "–"
    digits = {"fid": 1, "kid": 3}.get(measure, 2)
    if abs(value["mean"]) >= 100:
        digits = 0
    return f"{value['mean']:,.{digits}f} ± {value['sd']:,.{digits}f}".replace("-", "−")
