"""The report's section on whether tiles match the patient: what evaluate_conditioning.py found, tissue by tissue."""

from collections.abc import Callable, Mapping
from typing import Any

from figures.page import Cell, Section, note, table
from figures.results import short

RETRIEVAL = (("plain", "top1", "retrieval, top-1"), ("centred", "mrr", "retrieval, mean reciprocal rank, centred"))
HEADERS = ["tissue", "measure", "generated", "without expression", "re-paired, 99 %", "p", "real tiles", "ridge", "n"]


def matching_section(found: Mapping[str, dict[str, Any]]) -> Section:
    """Return the verdicts and one table; `found`: tissue -> metrics.json of evaluate_conditioning.py."""
    rows: list[list[Cell | str]] = []
    notes = []
    for tissue, m in found.items():
        notes.append(note(f"{tissue}: {m['summary']}"))
        without = m["controls"]["unconditional"]
        for kind, key, label in RETRIEVAL:
            block = m["retrieval"][kind][key]
            rows.append(_row(tissue, label, block, without["retrieval"][kind][key]["value"]))
        for measure, block in m["morphology"].items():
            plain = without.get("morphology", {}).get(measure, {}).get("pearson")
            rows.append(_row(tissue, f"r, {measure.replace('_', ' ')}", block, plain))
    first = next(iter(found.values()))
    extractor = first["extractor"]
    seeds = len(first["sampling_seeds"])
    caption = (
        f"{first['tiles']} generated tiles per held-out patient, mean of {seeds} sampling seeds, seed {first['seed']}. "
        f"Re-paired: 99 % quantile over {_each(found, _nulls)}; p is their one-sided share. Without expression: "
        f"{_each(found, _control)}. Real tiles: {_each(found, _ceiling)}. Ridge: from {_each(found, _components)} of "
        "the expression to the measure, without any tile. "
        f"Extractor {extractor['name']}, weights {short(extractor['weights_digest'])}. GANs: "
        + ", ".join(f"{m['gan']['run']} {short(m['gan']['digest'])}" for m in found.values())
        + ". More, with pictures: report.html beside each metrics.json."
    )
    text = "Held-out donors, within the tissue. A match must beat both chance and a generator without expression."
    return Section("match", "Do the tiles match the patient?", text, [*notes, table(HEADERS, rows, caption)])


def _each(found: Mapping[str, dict[str, Any]], say: Callable[[dict[str, Any]], str]) -> str:
    """What `say` says of each tissue; once, where it is the same for all."""
    said = {tissue: say(m) for tissue, m in found.items()}
    same = len(set(said.values())) == 1
    return next(iter(said.values())) if same else "; ".join(f"{tissue}: {words}" for tissue, words in said.items())


def _nulls(m: dict[str, Any]) -> str:
    return m["nulls"]


def _control(m: dict[str, Any]) -> str:
    return m["control"]


def _components(m: dict[str, Any]) -> str:
    return f"{m['ridge_components']} components" if "ridge_components" in m else "components"


def _ceiling(m: dict[str, Any]) -> str:
    if "ceiling_tiles" not in m:
        return m["ceiling"]
    n = m["ceiling_tiles"]
    side, real = (f"{low}" if low == high else f"{low} to {high}" for low, high in (n["each_side"], n["real"]))
    return f"{m['ceiling']}, {side} on each side (generated tiles are held against all {real})"


def _row(tissue: str, label: str, block: dict[str, Any], without: float | None) -> list[Cell | str]:
    numbers = (block["pearson"] if "pearson" in block else block["value"], without, block["null_q99"])
    p = "–" if block["p_value"] is None else f"{block['p_value']:.3f}"
    return [tissue, label, *map(_text, numbers), p, _text(block["ceiling"]), _text(block.get("ridge")), str(block["n"])]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
