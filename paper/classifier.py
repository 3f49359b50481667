"""classifier  A classifier of tiles: real against synthetic training, and pre-training on synthetic tiles.

    python paper_figures.py classifier --study demo

Reads   <study>/classifier/**/metrics.json of wsi_model.py.
Writes  classifier.*: accuracy and F1 of every run; and, where runs with --train_tiles are there, with and without
        --pretrain, both against the number of real tiles that were trained on
"""

from typing import Any

import pandas as pd

from figures.paper_classifier import classifier_figure
from figures.results import makers_said, short
from paper.parts import Ask, Drawn, listed, made_by

NAME, WHAT = "classifier", "real against synthetic training, and pre-training"
SCORES = {"accuracy": "accuracy", "f1_weighted": "F1 (weighted)"}


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw the runs, and the curves where there are some."""
    with made_by(ask, "classifier"):
        found = ask.metrics("classifier", "scores")
    table = pd.DataFrame([line for name, m in found.items() for line in lines_of(name, m)])
    in_curves = curve_runs(found)
    table["curve"] = table["run"].map(in_curves).fillna("")
    bars = table[table["curve"].isin(["", "whole"])]
    curves = table[table["curve"] != ""].copy()
    curves["start"] = curves["pretrained"].map({True: "pre-trained on synthetic tiles", False: "from scratch"})
    chance = 1 / max(len(m["classes"]) for m in found.values())
    settings = listed(
        f"{m['backbone']}, {m['img_size']} px, weights {short(m['weights_digest'])}" for m in found.values()
    )
    caption = (
        "Which tissue is this tile from? Accuracy and weighted F1 with 95 % intervals "
        f"({listed(m['interval_method'] for m in found.values())}). (a) Runs of wsi_model.py: "
        f"{'; '.join(about(name, found[name]) for name in dict.fromkeys(bars['run']))}. "
    )
    if len(curves):
        first = first_pretrained(found)
        learned, fitted = first["pretraining"], first["settings"]
        caption += (
            f"(b, c) {len(first['folds'])}-fold by {first['folds_by']}, trained on so many real tiles of each "
            f"fold, from scratch and after self-supervised pre-training (SimCLR, NT-Xent; Chen et al. 2020) on "
            f"{learned['n']} tiles of {learned['source']} ({learned['settings']['num_epochs']} epochs; "
            f"{learned['augmentation']}); {fitted['num_epochs']} epochs at most, "
            f"{'with an' if fitted['patience'] else 'no'} early stop. One training seed: differences within the "
            f"intervals say nothing. "
        )
        if learned.get("tested_donors_seen"):
            caption += f"Pre-training knows {learned['tested_donors_seen']} of the tested donors: not a fair test. "
    else:
        caption += f"Pre-training against scratch is not drawn: it needs runs made by: {ask.command('pretrain')}. "
    seeds = listed(m["seed"] for m in found.values())
    caption += f"{makers_said(found.values())} Seed {seeds}. No extractor; networks: {settings}."
    return {NAME: Drawn(classifier_figure(bars, curves, SCORES, chance), table, caption)}


def lines_of(name: str, m: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line per score of a run."""
    trained = [fold["n_train"] + fold["n_validation"] for fold in m["folds"]]
    said = {"run": name, "task": m["task"], "shuffled": m["shuffled_labels"], "pretrained": bool(m.get("pretraining"))}
    said |= {"train_tiles": sum(trained) / len(trained), "n_test": m["n_test"], "seed": m["seed"]}
    lines = []
    for key in SCORES:
        value, limits = m["scores"][key]["value"], m["scores"][key]["interval"] or (None, None)
        lines.append(said | {"score": key, "value": value, "low": limits[0], "high": limits[1]})
    return lines


def curve_runs(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the runs of the curves: "part" those with few tiles, "whole" those with all; {} without pre-trained ones.

    All are k-fold on the table, with the network, of the first pre-trained run by name; pre-trained ones as it was.
    """
    first = first_pretrained(found)
    if first is None:
        return {}
    chosen = {}
    for name, m in found.items():
        same = of_curve(m) == of_curve(first) and not m["shuffled_labels"]
        if same and (not m.get("pretraining") or as_pretrained(m) == as_pretrained(first)):
            chosen[name] = "part" if m.get("train_tiles") or m.get("pretraining") else "whole"
    return chosen


def first_pretrained(found: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first pre-trained k-fold run by name, None where there is none."""
    pretrained = (m for m in found.values() if m.get("pretraining") and m["task"] == "k_fold")
    return next((m for m in pretrained if not m["shuffled_labels"]), None)


def of_curve(m: dict[str, Any]) -> list[Any]:
    """Return what runs of one curve share: the network (without where it starts), the table's rows, the settings."""
    network = m["backbone"].split(", all weights")[0]
    shared = [m[key] for key in ("task", "img_size", "seed", "settings")]
    return [network, len(m["folds"]), [t["sha256"] for t in m["tables"]], *shared]


def as_pretrained(m: dict[str, Any]) -> list[Any]:
    """Return what a run was pre-trained on, and how."""
    return [m["pretraining"].get("sha256"), m["pretraining"].get("settings")]


def about(name: str, m: dict[str, Any]) -> str:
    """Return what a run is in words."""
    way = (
        f"{len(m['folds'])}-fold by {m['folds_by']}"
        if m["task"] == "k_fold"
        else "trained on one table, tested on another"
    )
    shuffled = ", labels shuffled (control)" if m["shuffled_labels"] else ""
    return f"{name}, {way}{shuffled}, n = {m['n_test']} tested tiles"
