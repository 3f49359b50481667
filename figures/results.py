"""Reading what the commands leave on disk for the report: logs and metrics. Nothing is computed here."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json

Series = dict[str, tuple[np.ndarray, np.ndarray]]


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log.jsonl; InputError where there is none. A line cut short is left out."""
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no log yet; train the run first")
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return lines


def series_of(lines: list[dict[str, Any]], key: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y) of a log's numbers under `key`, where a line has both."""
    pairs = [(line[x], line[key]) for line in lines if _number(line.get(key)) and _number(line.get(x))]
    return np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)


def metrics_under(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return relative folder name -> content of every metrics.json under `folder`, sorted by name."""
    folder = Path(folder)
    return {str(path.parent.relative_to(folder)): read_json(path) for path in sorted(folder.rglob("metrics.json"))}


def makers_said(found: Iterable[Mapping[str, Any]]) -> str:
    """Return who made the tiles of each table (or folder) that metrics of wsi_model.py name, in a sentence or two."""
    by: dict[Path, set[str]] = {}
    for metrics in found:
        for one in [*metrics["tables"], *([metrics["pretraining"]] if metrics.get("pretraining") else [])]:
            by.setdefault(Path(one.get("path") or one["source"]), set()).update(
                f"{Path(m['made_by']).stem} (digest {m['made_digest'][:12] or 'not known'}, seed "
                f"{m['made_seed'] or 'not known'})"
                for m in one.get("makers", ())
            )
    alone = len({path.name for path in by}) == len(by)  # else the folder tells which table is meant
    said = {path.name if alone else f"{path.parent.name}/{path.name}": ", ".join(sorted(by[path])) for path in by}
    made = "; ".join(f"{name} by {makers}" for name, makers in said.items() if makers)
    others = ", ".join(name for name, makers in said.items() if not makers)
    return " ".join(
        [f"Generated tiles: {made}."] * bool(made)
        + [f"No model is noted for {others}: real tiles, or of a model and seed that are not known."] * bool(others)
    )


def short(digest: str | None) -> str:
    """Return the first 12 hex digits of a digest: enough to tell files apart on a page."""
    return str(digest)[:12] if digest else "none"


def known(value: Any, form: str = "") -> str:
    """Return a value as text, or that it is not known: a file of the published code does not say everything."""
    return "not known" if value is None else format(value, form)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
