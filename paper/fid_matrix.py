"""fid_matrix  The table of distances between real, GAN and RNA-GAN tiles of both tissues, with floors.

    python paper_figures.py fid_matrix --study demo

Reads   <study>/fid/**/metrics.json of fid.py --matrix: the one with most sources, the first by name of several.
Writes  fid_matrix.*: Fréchet and kernel distance, mean and sd over the draws; on the diagonal two halves of real tiles
"""

from typing import Any

import pandas as pd

from figures.paper_matrix import matrix_figure
from figures.results import short
from paper.parts import Ask, Drawn, made_by

NAME, WHAT = "fid_matrix", "distances between real, GAN and RNA-GAN tiles"
MEASURES = ("fid", "kid")
EXPECTED = [f"{kind}_{tissue}" for tissue in ("lung", "brain") for kind in ("real", "gan", "rna-gan")]


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw the table."""
    with made_by(ask, "fid"):
        found = ask.metrics("fid", "matrix")
    name, m = max(found.items(), key=lambda item: len(item[1]["sources"]))
    table = table_of(m)
    names = list(m["sources"])
    ordered = [name for name in EXPECTED if name in names] + [name for name in names if name not in EXPECTED]
    cells = {
        measure: {(r.a, r.b): (r.mean, r.sd) for r in table[table["measure"] == measure].itertuples()}
        for measure in MEASURES
    }
    extractor, side = m["extractor"], m["extractor"]["input_side"]
    sizes = sorted({s["n"] for s in m["sources"].values()})
    halves = sorted({f["n"] for f in m["floors"]})
    lacking = [name for name in EXPECTED if name not in names]
    caption = (
        f"Distances between sets of tiles, mean ± sd over {m['iterations']} draws (fid/{name}). (a) Fréchet distance; "
        f"(b) kernel distance (KID, unbiased: it may be below 0). Deeper blue is closer, grey not measured. Diagonal: "
        f"two disjoint halves of the real tiles, n = {', '.join(map(str, halves))} each, the floor that no generator "
        f"can be expected to pass; a Fréchet distance grows as n falls. n = {', '.join(map(str, sizes))} tiles per set "
        f"and draw. Seed {m['seed']}; extractor {extractor['name']} at {side} px ({m['img_size']} px tiles), weights "
        f"{short(extractor['weights_digest'])}. Loaded: {loaded(m)}."
    )
    caption += f" Not among the sources: {', '.join(lacking)}." if lacking else ""
    return {NAME: Drawn(matrix_figure(ordered, cells), table, caption)}


def table_of(m: dict[str, Any]) -> pd.DataFrame:
    """Return one line per pair and measure, floors as pairs of a source with itself."""
    lines = []
    of_pairs = [(p["a"], p["b"], p, p["n_a"], p["n_b"]) for p in m["pairs"]]
    floors = [(f["source"], f["source"], f, f["n"], f["n"]) for f in m["floors"]]
    for a, b, values, n_a, n_b in [*of_pairs, *floors]:
        for measure in ("fid", "kid", "precision", "recall"):
            if v := values.get(measure):
                lines.append((measure, a, b, v["mean"], v["sd"], v["low"], v["high"], n_a, n_b))
    return pd.DataFrame(lines, columns=["measure", "a", "b", "mean", "sd", "low", "high", "n_a", "n_b"])


def loaded(m: dict[str, Any]) -> str:
    """Return each source with what was loaded and its digest."""
    parts = []
    for key, source in m["sources"].items():
        digest = f", digest {short(source['digest'])}" if source.get("digest") else ""
        parts.append(f"{key}: {source['label']}{digest}")
    return "; ".join(parts)
