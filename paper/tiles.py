"""tiles  Real, GAN and RNA-GAN tiles of the same held-out patients, a page per tissue, at 300 dpi.

    python paper_figures.py tiles --study demo

Reads   the tile stores, tables, beta-VAE and GANs of the study.
Writes  tiles_<tissue>.*: three patients, eight tiles of each kind; the first of the table and of the slide, none picked
"""

import hashlib

import numpy as np
import pandas as pd

from figures.paper_tiles import tile_page
from paper.parts import Ask, Drawn, made_by, model_line

NAME, WHAT = "tiles", "grids of real, GAN and RNA-GAN tiles"
PATIENTS, SHOWN = 3, 8


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw a page per tissue."""
    found = {}
    with made_by(ask, "gan"):
        held_out = ask.study.held_out
    for tissue, patients in held_out.items():
        patients = patients.first(PATIENTS)
        real = patients.real(SHOWN)
        n = min(map(len, real))
        rows = {name: {"real": tiles[:n]} for name, tiles in zip(patients.slides, real, strict=True)}
        for kind, gan in patients.gans.items():
            for name, tiles in zip(patients.slides, ask.study.generated(gan, patients, n, ask.seed), strict=True):
                rows[name][kind] = tiles
        lacking = [kind for kind in ("GAN", "RNA-GAN") if kind not in patients.gans]
        caption = (
            f"{tissue}: tiles of {len(rows)} held-out patients, the first of the table, and the first {n} of each "
            f"slide, none picked by hand; {patients.cohort.tiles.img_size} px at {patients.cohort.tiles.mpp:.3g} "
            f"µm/px. Generated tiles: seed {ask.seed}, the first {n} of each patient's. The plain GAN knows no "
            f"patient. {model_line(*patients.gans.values())} No extractor."
        )
        caption += f" No finished {', '.join(lacking)} of this tissue." if lacking else ""
        found[f"tiles_{tissue}"] = Drawn(tile_page(rows), table_of(rows), caption)
    return found


def table_of(rows: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Return one line per tile: patient, kind, number, SHA-256 of its pixels, mean red, green and blue."""
    lines = []
    for patient, kinds in rows.items():
        for kind, tiles in kinds.items():
            for number, tile in enumerate(tiles):
                digest = hashlib.sha256(np.ascontiguousarray(tile).tobytes()).hexdigest()
                lines.append((patient, kind, number, digest, *tile.reshape(-1, 3).mean(0)))
    return pd.DataFrame(lines, columns=["patient", "kind", "tile", "sha256", "red", "green", "blue"])
