"""geo  Tiles for profiles of another study, with each profile's distance to the training cloud.

    python paper_figures.py geo --study demo

Reads   <study>/generated/**/manifest.json of generate_tissue_images.py --rna_data, and the tiles beside them.
Writes  geo.*
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError
from common.files import read_json
from datasets.image_folder import read_image
from figures.paper_tiles import foreign_page
from figures.results import known, short
from models.cloud import KINDS
from paper.parts import Ask, Drawn, listed, made_by

NAME, WHAT = "geo", "tiles for profiles of another study"
SHOWN = 6
ELSEWHERE = "another study"  # generate_tissue_images.py's word for the split of such a profile


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw a row per folder of tiles of such a profile."""
    with made_by(ask, "geo"):
        found = foreign(ask.folder / "generated")
    rows, lines = [], []
    for folder, manifest in found.items():
        made = manifest["made_from"]
        name, (report,) = made["profile"], made["distance"]["profiles"].values()
        files = [folder / tile["file"] for tile in manifest["tiles"][:SHOWN]]
        title = (
            f"{name}\n{made['run']}\nnearest: {report['nearest'].replace('_', ' ')}{', far' if report['far'] else ''}"
        )
        rows.append((title, np.stack([read_image(file) for file in files]), report))
        about = {"folder": str(folder.relative_to(ask.folder)), "profile": name, "run": made["run"]}
        about |= {"gan_digest": made["digest"], "vae_digest": made["vae_digest"], "seed": made["seed"]}
        lines.append(about | {"gene_coverage": made["gene_coverage"], "tiles": manifest["n"]} | report)
    table = pd.DataFrame(lines)
    distance = next(iter(found.values()))["made_from"]["distance"]
    runs = listed(f"{line['run']} {short(line['gan_digest'])}" for line in lines)
    sizes = listed(m["made_from"]["distance"]["held_out"] for m in found.values())
    caption = (
        f"Tiles drawn for profiles of another study, the first {SHOWN} of each, none picked by hand, and how far each "
        f"profile is from the training cloud: along what the beta-VAE knows (latent) and off it (misfit), times the "
        f"geometric mean of {sizes} held-out (validation) donors' own distance, and as percentile of theirs. Beyond "
        f"{distance['far_beyond_percentile']:g} (dotted; orange) a profile is called far: the model has seen nothing "
        f"like it, and its tiles mean nothing. n = {len(rows)} profiles. Seed {listed(t['seed'] for t in lines)}; no "
        f"extractor; RNA-GANs: {runs}; beta-VAE {listed(known(t['vae_digest'], '.12') for t in lines)}."
    )
    return {NAME: Drawn(foreign_page(rows, distance["far_beyond_percentile"], KINDS), table, caption)}


def foreign(folder: Path) -> dict[Path, dict[str, Any]]:
    """Return folder -> manifest of finished tiles for one profile of another study; InputError where there are none."""
    found = {}
    for path in sorted(folder.rglob("manifest.json")):
        manifest = read_json(path)
        made = manifest.get("made_from", {})
        if manifest.get("finished") and made.get("split") == ELSEWHERE and "distance" in made:
            found[path.parent] = manifest
    if not found:
        raise InputError(f"{folder}: no tiles for a profile of another study, with its distance, in it")
    return found
