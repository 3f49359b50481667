"""The report's sections on tiles: the cohort, training, grids, conditioning, morphology, the classifier."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from figures import plots
from figures.measure import Match, TwoPatients
from figures.page import Section, heading, note, picture, table
from figures.results import makers_said, series_of, short

Rows = Sequence[tuple[str, np.ndarray]]
NO_LOSSES = {"step", "epoch", "images", "seconds", "images_per_second", "seconds_left", "memory_gb"}  # in a GAN's log
NO_LOSSES |= {"kid_n", "kid_n_real", "kid_extractor", "kid_weights", "micro_batch", "skipped"}


def cohort_section(
    counts: Sequence[Sequence[Any]], rows: Mapping[str, Rows], titles: Sequence[str], per_donor: int, about: str
) -> Section:
    """Return counts per tissue and sample tiles: tissue -> rows of `per_donor` tiles of each donor, under `titles`."""
    headers = ["tissue", "slides", "donors", "train", "val", "test", "tiles", "tile", "genes"]
    blocks = [table(headers, counts, "Slides per split; a donor is in one split, whatever the tissue.")]
    for tissue, of_tissue in rows.items():
        figure = plots.tile_rows(of_tissue, per_block=per_donor, titles=titles)
        blocks += [heading(tissue), picture(figure, about, f"Sample tiles of {tissue}")]
    return Section("cohort", "The cohort", "", blocks)


def training_section(logs: Mapping[str, list[dict[str, Any]]], about: Mapping[str, str]) -> Section:
    """Return the loss curves of the GANs; run name -> log lines, none of a published file, and a line of facts."""
    blocks = []
    for name, facts in about.items():
        if name not in logs:
            blocks += [heading(name), note(f"Losses not known: the file is the published code's. {facts}")]
            continue
        log = logs[name]
        keys = [k for k in dict.fromkeys(k for line in log for k in line) if k not in NO_LOSSES]
        together = {"losses": ("critic", "generator"), "KID, validation donors": ("kid", "kid_best")}
        panels = {title: {k: series_of(log, k, "epoch") for k in keys if k in both} for title, both in together.items()}
        shown = {k for panel in panels.values() for k in panel}
        panels |= {k.replace("_", " "): {k: series_of(log, k, "epoch")} for k in keys if k not in shown}
        figure = plots.curves({k: v for k, v in panels.items() if v}, "epoch")
        blocks += [heading(name), picture(figure, facts, f"Losses of {name}")]
    text = "A critic's loss says how well it tells real from generated; it is not a measure of the tiles' quality."
    return Section("gan", "Training of the GANs", text, blocks)


def grid_section(grids: Mapping[str, Rows], patients: Mapping[str, Sequence[str]], about: Mapping[str, str]) -> Section:
    """Return real, GAN and RNA-GAN tiles of the same held-out patients, one picture per tissue."""
    blocks = []
    for tissue, rows in grids.items():
        per_patient = len(rows[0][1]) // len(patients[tissue])
        figure = plots.tile_rows(rows, per_block=per_patient, titles=patients[tissue])
        blocks += [heading(tissue), picture(figure, about[tissue], f"Real and generated tiles of {tissue}")]
    text = "For the same held-out patients, whom neither the VAE nor the GANs have seen in training. One block each."
    return Section("tiles", "Real, GAN and RNA-GAN tiles", text, blocks)


def conditioning_section(
    found: Mapping[str, TwoPatients], names: Mapping[str, tuple[str, str]], about: Mapping[str, str]
) -> Section:
    """Return the proof that expression reaches the tiles: the same noise, two patients, both forms."""
    rows: list[list[Any]] = []
    blocks: list[str] = []
    labels = {"ours": "here: training statistics", "published": "published: over the batch"}
    for tissue, two in found.items():
        a, b = names[tissue]
        for form, label in labels.items():
            most, mean = two.tile_difference.get(form, ("none: not its input", float("nan")))
            mean_text = f"{mean:.3g}" if np.isfinite(mean) else "none"
            rows.append([f"{tissue}: {a} against {b}", label, f"{two.input_difference[form]:.2g}", most, mean_text])
        pictures = []
        for form, (first, second) in two.tiles.items():
            label = labels[form]
            gap = np.abs(first.astype(int) - second.astype(int)).astype(np.uint8)
            short_label = label.split(":")[0]
            pictures += [
                (f"{short_label}\n{a}", first),
                (f"{short_label}\n{b}", second),
                (f"{short_label}\n|difference|", gap),
            ]
        figure = plots.tile_rows(pictures)
        caption = f"{tissue}: one column, one noise vector; rows differ in the patient alone. {about[tissue]}"
        blocks += [picture(figure, caption, f"Same noise, two patients, {tissue}")]
    n = next(iter(found.values())).tiles["ours"].shape[1]
    headers = [
        "same noise, two patients",
        "standardised with",
        "inputs: largest difference",
        "tiles: largest",
        "tiles: mean",
    ]
    caption = (
        f"Inputs of the generator have unit spread; tiles are in grey levels of 255, over {n} tiles. Published: "
        "noise + latent standardised over the batch; with one patient in it, as in all of its generation, the "
        "latent is a constant of each column and is subtracted exactly (what is left is rounding, about 1e-15). "
        "Same generator for both forms; digests and seed stand under the pictures."
    )
    text = "A tile must change when only the patient changes. Here it does; in the published form it cannot."
    return Section("conditioning", "The conditioning is alive", text, [table(headers, rows, caption), *blocks])


def morphology_section(
    real: Mapping[str, Mapping[str, np.ndarray]],
    generated: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    matches: Mapping[str, Mapping[str, Mapping[str, Match]]],
    ceiling: Mapping[str, Mapping[str, float]],
    truth: Mapping[str, Mapping[str, float]],
    units: Mapping[str, str],
    shown: Sequence[str],
    about: str,
) -> Section:
    """Return scatter plots and a table of how generated tiles follow the patient's real ones.

    real: tissue -> property -> (patients,); generated and matches: tissue -> model -> property; ceiling: tissue ->
    property -> split-half r of real tiles; truth: tissue -> property -> r of real tiles with the known factor.
    """
    panels, rows = [], []
    for tissue, measured in real.items():
        models = generated[tissue]
        for name in shown:
            series = {}
            for model in sorted(models, reverse=True):  # RNA-GAN first
                x, y = measured[name], models[model][name]
                fine = np.isfinite(x) & np.isfinite(y)
                series[model] = (x[fine], y[fine])
            panels.append((f"{tissue}: {name.replace('_', ' ')}\n{_unit(units[name])}", series))
        for name in measured:
            row = [tissue, name.replace("_", " ")]
            for model in ("RNA-GAN", "GAN"):
                m = matches[tissue].get(model, {}).get(name)
                row.append("–" if m is None else _r(m.r) + (f" (p {m.p:.3f})" if np.isfinite(m.p) else ""))
                if model == "RNA-GAN":
                    row.append("–" if m is None else f"{_r(m.shuffled[1])} [{_r(m.shuffled[0])}, {_r(m.shuffled[2])}]")
            row += [_r(ceiling[tissue].get(name, np.nan)), _r(truth.get(tissue, {}).get(name, np.nan))]
            rows.append([*row, min(of_model[name].n for of_model in matches[tissue].values())])
    scatter = picture(
        plots.scatter_panels(panels),
        "One point per held-out patient; the line is fitted to RNA-GAN's points, the dotted one is equality. " + about,
        "Morphology of generated against real tiles per patient",
    )
    headers = [
        "tissue",
        "property",
        "RNA-GAN r",
        "expression shuffled",
        "GAN r",
        "real, split half",
        "real, truth",
        "n",
    ]
    caption = (
        "Pearson's r over patients between the means of generated and of real tiles. Expression shuffled: tiles "
        "of another patient (RNA-GAN), 1,000 shuffles, mean and middle 95 %; p: share with an r at least as high "
        "(one-sided, not corrected for the number of rows). Split half: random halves of a patient's real tiles, about "
        "what a perfect match could reach. Truth: real tiles against the cohort's known factor. " + about
    )
    text = (
        "Do generated tiles look like the patient's own? The plain GAN knows no patient and should be at chance. "
        "A value near the shuffled ones says that they do not."
    )
    return Section("morphology", "Morphology per patient", text, [scatter, table(headers, rows, caption)])


def classifier_section(found: Mapping[str, dict[str, Any]]) -> Section:
    """Return one row per run of wsi_model.py; name -> metrics.json."""
    rows = []
    for name, metrics in found.items():
        scores = []
        for key in ("accuracy", "f1_weighted", "auc"):
            value, limits = metrics["scores"][key]["value"], metrics["scores"][key]["interval"]
            text = "–" if value is None else f"{value:.3f}"
            scores.append(text + (f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else ""))
        per_class = ", ".join(f"{k} {v}" for k, v in metrics["n_test_per_class"].items())
        label = name + (" (labels shuffled: control)" if metrics["shuffled_labels"] else "")
        way = (
            f"{len(metrics['folds'])}-fold by {metrics['folds_by']}" if metrics["task"] == "k_fold" else "train / test"
        )
        rows.append([label, way, metrics["groups_in_train_and_test"], *scores, per_class])
    methods = "; ".join(sorted({m["interval_method"] for m in found.values()}))
    backbones = "; ".join(sorted({f"{m['backbone']} (weights {short(m['weights_digest'])})" for m in found.values()}))
    seeds = ", ".join(sorted({str(m["seed"]) for m in found.values()}))
    sides = ", ".join(sorted({f"{m['img_size']} px" for m in found.values()}))
    caption = f"{methods}. Backbone: {backbones}. Tiles of {sides}, seed {seeds}. n: test tiles per class. "
    caption += makers_said(found.values())
    headers = ["table", "protocol", "donors on both sides", "accuracy [95 %]", "weighted F1 [95 %]", "AUC [95 %]", "n"]
    text = (
        "Which tissue is this tile from? Folds of real tiles; trained on generated, tested on real; shuffled labels. "
        "Donors on both sides: those with tiles in training and in test, a generated tile counting as its profile's "
        "donor. Real tiles may be of donors that the GAN was trained on, unless the tables were made with --split test."
    )
    return Section("classifier", "The classifier", text, [table(headers, rows, caption)])


def _unit(text: str) -> str:
    return text.replace("um", "µm").replace("m2", "m²")


def _r(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
