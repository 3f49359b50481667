"""What the answers say: one row per answer, and accuracy, d', difficulty and quality with their intervals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from metrics.discrimination import (
    FEW,
    RESAMPLES,
    compared_ratings,
    criterion,
    d_prime,
    drawn_counts,
    percentiles,
    roc_area,
    wilson,
)
from quiz.deck import Deck
from quiz.store import Store

COLUMNS = [
    "visitor", "visit", "code", "experience", "finished", "position", "tile", "tissue", "model", "truth", "answer",
    "correct", "sure", "quality", "seconds", "changes", "answered", "source",
]  # fmt: skip
RATINGS = 6  # certainly real ... certainly synthetic


def answer_table(store: Store, deck: Deck) -> pd.DataFrame:
    """Return one row per answer with COLUMNS; seconds: since the visit's previous answer, or its start."""
    rows = []
    for row in store.export():
        card = deck.cards[row["tile"]]
        answer = "real" if row["says_real"] else "synthetic"
        truth = "real" if card.real else "synthetic"
        rows.append(
            {
                name: row[name]
                for name in ("visitor", "visit", "code", "experience", "position", "tile", "sure", "quality")
            }
            | {"finished": bool(row["finished"]), "tissue": card.tissue, "model": card.model, "source": card.source}
            | {"truth": truth, "answer": answer, "correct": truth == answer, "seconds": round(row["seconds"], 3)}
            | {"changes": row["revision"] - 1}
            | {"answered": pd.Timestamp(row["answered"], unit="s", tz="UTC").isoformat(timespec="milliseconds")}
        )
    return pd.DataFrame(rows, columns=COLUMNS).astype({"quality": "Int64"})


def analyse(table: pd.DataFrame, seed: int = 99, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return what the answers of `answer_table` say, all of them, also of visits that were not finished.

    all, by_model, by_tissue, by_experience: see `group`; a model's d' and ROC area are of its tiles against the real
    ones. tiles: share of right answers of each, hardest first. quality: mean ratings of models (and real tiles) and
    their differences, over other visitors and other tiles.
    """
    rng = np.random.default_rng(seed)

    def judged(rows: pd.DataFrame, own: Callable[[pd.DataFrame], pd.Series] | None = None) -> dict[str, Any]:
        return group(rows, rows if own is None else rows[own(rows)], rng, resamples)

    found: dict[str, Any] = {"answers": len(table), "visits": int(table["visit"].nunique())}
    found["visitors"] = int(table["visitor"].nunique())
    found |= {"finished": int(table.loc[table["finished"], "visit"].nunique()), "seed": seed, "resamples": resamples}
    if table.empty:
        return found
    found["all"] = judged(table)
    models = sorted(set(table["model"]) - {"real"})
    against = {m: table[table["model"].isin([m, "real"])] for m in models}
    found["by_model"] = {
        m: judged(rows, lambda rows, m=m: rows["model"] == m) for m, rows in against.items() if len(rows)
    }
    found["by_tissue"] = {str(name): judged(rows) for name, rows in table.groupby("tissue")}
    experience = table["experience"].fillna("not given")
    found["by_experience"] = {str(name): judged(rows) for name, rows in table.groupby(experience)}
    found["tiles"] = _tiles(table)
    found["quality"] = _quality(table, rng, resamples)
    return found


def group(rows: pd.DataFrame, own: pd.DataFrame, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    """Return accuracy over the answers `own`, and sensitivity, specificity, d', criterion, ROC area over `rows`.

    Each is {value, low, high, interval}: by a bootstrap over visitors where FEW saw such tiles or more; of fewer, and
    where all did alike (its interval would have no width), shares have Wilson's, as if answers were independent, the
    others none. d' and criterion are of pooled answers.
    """
    visitors, place = np.unique(rows["visitor"], return_inverse=True)
    n = len(visitors)
    synthetic, says = (rows[c].to_numpy() == "synthetic" for c in ("truth", "answer"))
    mine = rows.index.isin(own.index)
    rating = np.where(says, 2 + rows["sure"].to_numpy(), 3 - rows["sure"].to_numpy()).astype(int)  # 0..5

    def per_visitor(mask: np.ndarray) -> np.ndarray:
        return np.bincount(place[mask], minlength=n).astype(float)

    columns = [mine & (synthetic == says), mine, synthetic & says, synthetic, ~synthetic & says, ~synthetic]
    columns += [kind & (rating == r) for kind in (synthetic, ~synthetic) for r in range(RATINGS)]
    counts = np.stack([per_visitor(mask) for mask in columns], 1)  # (visitors, 6 + 2 * RATINGS)
    total = counts.sum(0)
    boots = drawn_counts(n, resamples, rng) @ counts if n >= FEW else None
    seen_by = (counts > 0).sum(0)  # visitors with an answer that counts in each column

    def share(a: int, b: int) -> dict[str, Any]:
        plain = wilson(total[a], total[b]) if total[b] else None
        return block(lambda c: c[..., a] / c[..., b], plain, int(total[b]), seen_by[b])

    def block(what: Callable, plain: tuple[float, float] | None, size: int, visitors: int) -> dict[str, Any]:
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(what(total))
            drawn = percentiles(what(boots)) if visitors >= FEW else None
        drawn = drawn if drawn and drawn[0] < drawn[1] else None
        kind = "bootstrap over visitors" if drawn else "Wilson over answers" if plain else "none"
        low, high = drawn or plain or (None, None)
        return {"value": value if np.isfinite(value) else None, "low": low, "high": high, "interval": kind, "n": size}

    both, saw_both = bool(total[3] and total[5]), min(seen_by[3], seen_by[5])
    pooled = (lambda c: d_prime(c[..., 2], c[..., 3], c[..., 4], c[..., 5])) if both else _undefined
    bias = (lambda c: criterion(c[..., 2], c[..., 3], c[..., 4], c[..., 5])) if both else _undefined

    def area(c: np.ndarray) -> np.ndarray:
        return roc_area(c[..., 6 : 6 + RATINGS], c[..., 6 + RATINGS :])

    return {
        "visitors": n,
        "accuracy": share(0, 1),
        "sensitivity": share(2, 3),
        "specificity": block(
            lambda c: 1 - c[..., 4] / c[..., 5],
            wilson(total[5] - total[4], total[5]) if total[5] else None,
            int(total[5]),
            seen_by[5],
        ),
        "d_prime": block(pooled, None, len(rows), saw_both),
        "criterion": block(bias, None, len(rows), saw_both),
        "roc_area": block(area, None, len(rows), saw_both),
    }


def _undefined(c: np.ndarray) -> np.ndarray:
    return np.full(c.shape[:-1], np.nan)


def _tiles(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each tile's share of right answers, hardest first, with Wilson's interval."""
    rows = []
    for (tile, tissue, model, source), group_ in table.groupby(["tile", "tissue", "model", "source"]):
        right, n = int(group_["correct"].sum()), len(group_)
        low, high = wilson(right, n)
        about = {"tile": tile, "tissue": tissue, "model": model, "source": source}
        rows.append({**about, "n": n, "correct": right, "accuracy": right / n, "low": low, "high": high})
    return sorted(rows, key=lambda row: (row["accuracy"], -row["n"], row["tile"]))


def _quality(table: pd.DataFrame, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    rated = table.dropna(subset=["quality"])
    if rated.empty:
        return {"means": {}, "differences": []}
    ratings = rated.astype({"quality": float}).pivot_table("quality", "visitor", "tile")  # seen again: the mean
    model_of = rated.drop_duplicates("tile").set_index("tile")["model"]
    means, pairs = compared_ratings(ratings.to_numpy(), model_of[ratings.columns].to_numpy(), rng, resamples, (1, 5))
    return {"means": means, "differences": pairs}


def summary(found: dict[str, Any]) -> list[str]:
    """Return the analysis in lines of text."""
    visits = f"{found['visits']} visits ({found['finished']} finished) of {found['visitors']} visitors"
    lines = [f"{found['answers']} answers in {visits}"]
    for key in ("all", "by_model", "by_tissue", "by_experience"):
        groups = {"all": found[key]} if key == "all" and key in found else found.get(key, {})
        for name, block in groups.items():
            accuracy, d = block["accuracy"], block["d_prime"]
            text = f"{name}: right {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
            text += f", n = {accuracy['n']} answers of {block['visitors']} visitors"
            if d["value"] is not None:
                text += f"; d' {d['value']:.2f}" + (
                    f" ({d['low']:.2f} to {d['high']:.2f})" if d["low"] is not None else ""
                )
            lines.append(text)
    for pair in found.get("quality", {}).get("differences", []):
        interval = "no interval" if pair["interval"] is None else "{:.2f} to {:.2f}".format(*pair["interval"])
        how = f"; {pair['method']}" * (pair["interval"] is not None)
        lines.append(f"quality, {pair['a']} less {pair['b']}: {pair['difference']:+.2f} ({interval}{how})")
    return lines
