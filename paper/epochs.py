"""epochs  Quality against images seen: GAN and RNA-GAN, with and without weight clipping.

    python paper_figures.py epochs --study demo

Reads   <study>/checkpoints/*/log.jsonl: its lines with `kid`, which histopathology_gan.py --eval_every N writes.
Writes  epochs.*: a panel per tissue (and per extractor, where runs were judged by several), a line per run
        The losses: wgan is penalty and clipping, wgangp penalty alone, wganvae (RNA-GAN) penalty alone. Published is
        wgan against wganvae, which differ in both: what clipping does alone, wgan against wgangp shows.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from common.checkpoint import load_checkpoint
from common.errors import InputError
from common.files import read_json
from datasets.keys import slug
from figures.paper_epochs import epochs_figure
from figures.results import read_log, short
from models.gan_losses import is_conditional
from paper.parts import Ask, Drawn, listed, made_by

NAME, WHAT = "epochs", "quality against images seen, with and without clipping"
CRITICS = {  # the ablation
    "wgan": "penalty and clipping",
    "wgangp": "penalty alone",
    "wganvae": "penalty alone",
}


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw the curves of every run that has them."""
    with made_by(ask, "kid"):
        found, without = kid_lines(ask.folder / "checkpoints")
    table = pd.concat(found, ignore_index=True)
    figure = epochs_figure(table)
    lacking = []
    for tissue in dict.fromkeys(table["tissue"]):
        missing = [loss for loss in CRITICS if loss not in set(table["loss"][table["tissue"] == tissue])]
        lacking += [f"{tissue} {loss}" for loss in missing]
    n, n_real = listed(table["n"].astype(int)), listed(table["n_real"].astype(int))
    runs = "; ".join(
        f"{r.run}: {r.label}, seed {r.seed}, {f'digest {short(r.digest)}' if r.digest else 'not finished: no digest'}"
        for r in table.drop_duplicates("run").itertuples()
    )
    extractors = listed(f"{e} (weights {short(w)})" for e, w in zip(table["extractor"], table["weights"], strict=True))
    caption = (
        f"Kernel distance (KID, lower is better) between generated tiles and real tiles of validation donors, in the "
        f"course of training, against real tiles shown. wgan is gradient penalty and weight clipping, wgangp and "
        f"wganvae are the penalty alone: the published comparison, wgan against wganvae, changes clipping and "
        f"expression at once; wgan against wgangp is clipping alone, wgangp against wganvae expression alone. n = {n} "
        f"generated and {n_real} real tiles. Extractor: {extractors}. Runs, with the digest at their end: {runs}."
    )
    if without:
        caption += f" Without such lines, so not drawn: {', '.join(without)}; made by: {ask.command('kid')}."
    if lacking:
        caption += f" Of the ablation, not run: {', '.join(lacking)}."
    return {NAME: Drawn(figure, table, caption)}


def kid_lines(folder: Path) -> tuple[list[pd.DataFrame], list[str]]:
    """Return a table per run with kid lines, and the names of the runs without; InputError where none has."""
    found, without = [], []
    for config in sorted(folder.glob("*/config.json")):
        said, run = read_json(config), config.parent
        if "loss_type" not in said or not (run / "log.jsonl").is_file():
            continue
        lines = [line for line in read_log(run) if isinstance(line.get("kid"), int | float)]
        if not lines:
            without.append(run.name)
            continue
        table = pd.DataFrame([point(line) for line in lines])
        loss = said["loss_type"]
        kind = "RNA-GAN" if is_conditional(loss) else "GAN"
        label = f"{kind}, {loss}" + (f" ({CRITICS[loss]})" if loss in CRITICS else "")
        about = {"run": run.name, "tissue": tissue_of(said), "kind": kind, "loss": loss, "label": label}
        model = run / f"{run.name}.model"  # of the last point; those before left none
        digest = load_checkpoint(model, "gan")[1] if model.is_file() else ""
        found.append(table.assign(**about, seed=said.get("seed", ""), digest=digest))
    if not found:
        raise InputError(f"{folder}: no log.jsonl with lines of kid in it")
    return found, without


def point(line: dict[str, Any]) -> dict[str, Any]:
    """Return what is drawn of one line of a log."""
    extractor = line.get("kid_extractor", "")
    name = extractor if isinstance(extractor, str) else json.dumps(extractor, sort_keys=True)
    about = {"images": line["images"], "kid": line["kid"]}
    about |= {"n": line.get("kid_n", 0), "n_real": line.get("kid_n_real", 0)}
    return about | {"step": line.get("step", 0), "extractor": name, "weights": line.get("kid_weights", "")}


def tissue_of(said: dict[str, Any]) -> str:
    """Return the tissues of a run's settings."""
    names = said.get("tissues") or [Path(path).stem for path in said.get("path_csv", [])]
    return "+".join(sorted(slug(name) for name in names)) or "tiles"
