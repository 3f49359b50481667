"""The report's section on shifts in the latent space, from the files of betaVAE_interpolation.py."""

from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import InputError
from figures import plots
from figures.page import Section, heading, picture, table
from figures.results import metrics_under, short


def shift_section(run: Path) -> Section:
    """Return a curve and a table per kind of group (tissue, sex); `run` is the beta-VAE's run folder.

    InputError where no shifts*/ folder in it holds metrics.json and calls.csv.
    """
    blocks = []
    for name, metrics in metrics_under(run).items():
        calls = run / name / "calls.csv"
        if "pairs" not in metrics or not calls.is_file():
            continue
        digest = f"Split seed {metrics['split_seed']}, VAE digest {short(metrics['vae_digest'])}"
        within = f" within {metrics['tissue']}" if metrics["tissue"] else ""
        figure = plots.shift_curve(_curves(pd.read_csv(calls)))
        caption = (
            "Share of held-out donors' profiles that a logistic regression, fitted on real training profiles, calls "
            "the target after they are moved by alpha times the shift and decoded. Bands: Wilson's 95 %. Nothing here "
            f"is random. {digest}."
        )
        rows = [_row(pair) for pair in metrics["pairs"]]
        headers = [
            "from",
            "to",
            "called the target before",
            "after (alpha = 1)",
            "classifier right on real",
            "latent step",
        ]
        about = (
            f"Counts of held-out profiles with Wilson's 95 % interval; n: training profiles behind the two centroids. "
            f"The classifier's own rate on real held-out profiles is the ceiling. {digest}."
        )
        title = heading(
            f"Between {metrics['type']}es{within}" if metrics["type"] == "sex" else "Between tissues" + within
        )
        blocks += [title, picture(figure, caption, f"Calls along the shift, {metrics['type']}")]
        blocks += [table([*headers, "n of centroids"], rows, about)]
    if not blocks:
        raise InputError(f"{run}: no shifts with metrics.json and calls.csv in it")
    text = (
        "shift = mean latent of one group minus the other's, over training donors. Held-out profiles are moved along "
        "it and decoded: does a classifier of real profiles take them for the other group?"
    )
    return Section("shift", "Shifts in the latent space", text, blocks)


def _curves(calls: pd.DataFrame) -> dict[str, tuple[Any, ...]]:
    return {
        f"{a} to {b}": tuple(rows[c].to_numpy(float) for c in ("alpha", "share", "low", "high"))
        for (a, b), rows in calls.groupby(["from", "to"])
    }


def _row(pair: dict[str, Any]) -> list[Any]:
    def share(key: str) -> str:
        found = pair.get(key)
        if found is None:
            return "–"
        return f"{found['count']} of {found['n']} [{found['low']:.2f}, {found['high']:.2f}]"

    n = f"{pair['n_train_from']}, {pair['n_train_to']}"
    shares = [share(k) for k in ("before_called_to", "after_called_to", "accuracy_on_real")]
    return [pair["from"], pair["to"], *shares, f"{pair['latent_distance']:.2f}", n]
