"""The page of evaluate_conditioning.py: every number beside its floor and ceiling, and the pictures behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from figures import plots
from figures.conditioning_plots import agreement_panels, dose_curves, matrix_and_ranks
from figures.page import Section, heading, note, picture, render, table
from figures.results import known, short
from metrics.morphology import UNITS

Blocks = Mapping[str, Any]
CONTROLS = {"unconditional": "without expression", "greyscale": "greyscale", "colour_histogram": "colours alone"}
HEADERS = ["number", "value", "95 %", "sd", "chance", "ceiling", "of the ceiling", "re-paired 99 %", "p", "n"]
COLUMNS_SAY = (
    "Mean and sd over sampling seeds; 95 %: bootstrap over patients, none for spots, whose neighbours are alike. "
    "Ceiling: real tiles against real tiles of the same patients, how many is said under Real and generated tiles. Of "
    "the ceiling: 0 at chance, 1 at the ceiling; of morphology, at the r that this ceiling allows. Re-paired: the "
    "bound that 99 % of random pairings stay below; p: one-sided, of them."
)


@dataclass
class Pictures:
    """What one tissue's section draws. Tiles are uint8 (..., H, W, 3)."""

    names: list[str]
    real: list[np.ndarray]
    generated: list[np.ndarray]
    live: np.ndarray  # (patients, noises, H, W, 3), a column's noise is the same
    matrix: np.ndarray  # (Q, Q)
    morphology: dict[str, tuple[np.ndarray, np.ndarray]]  # measure -> real (P,), generated (P,)
    dose: dict[
        str, tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]
    ]  # alphas, measure -> (p, s), tiles (p, s, ...)
    pairs: list[tuple[np.ndarray, np.ndarray, float, str]]  # generated, training, distance, slide


def evaluation_page(
    run: str, line: str, about: Blocks, tissues: Mapping[str, Blocks], pictures: Mapping[str, Pictures]
) -> str:
    """Return the whole page."""
    facts, sections = [], []
    for tissue, m in tissues.items():
        live, top = m["liveness"]["pixel_difference"], m["retrieval"]["centred"]["top1"]
        facts += [
            (m["verdict"]["word"], f"{tissue}: do the tiles match the expression?"),
            (_n(live["value"]), f"{tissue}: grey levels between patients, same noise"),
            (_n(m["morphology"]["nuclear_density"]["pearson"]), f"{tissue}: r of nuclear density"),
            (_n(top["value"]), f"{tissue}: retrieval top-1, chance {_n(top['chance'])}, real {_n(top['ceiling'])}"),
        ]
        several = len(tissues) > 1
        for section in tissue_sections(m, pictures[tissue], about):
            section.key, section.title = (
                f"{tissue}-{section.key}",
                f"{tissue}: {section.title}" * several or section.title,
            )
            sections.append(section)
    extractor, gan = about["extractor"], about["gan"]
    footer = (
        f"{run}, checkpoint {short(gan['digest'])}, epoch {known(gan['epoch'], 'g')}, loss {gan['loss_type']}; "
        f"extractor {extractor['name']}, weights {short(extractor['weights_digest'])}; split {about['split']}, seed "
        f"{about['seed']}, {len(about['sampling_seeds'])} sampling seeds, {about['tiles']} tiles per patient, guidance "
        f"{about['guidance']:g}. Synthetic tiles are not for diagnosis."
    )
    return render(f"Does {run} use the expression?", line, facts, sections, footer)


def tissue_sections(m: Blocks, p: Pictures, about: Blocks) -> list[Section]:
    """Return the sections of one tissue."""
    first = [grid(m, p), live(m, p), retrieval(m, p), readback(m), morphology(m, p)]
    return [*first, doses(m, p), diversity(m, p), controls(m, about)]


def grid(m: Blocks, p: Pictures) -> Section:
    """Real above generated tiles of a few patients."""
    n = max(map(len, p.generated))
    rows = []
    for name, real, made in zip(p.names, p.real, p.generated, strict=True):
        rows += [(f"{name}\nreal", real), ("generated", made)]
    figure = plots.tile_rows(rows, tile_inches=0.9)
    about = (
        f"{len(p.names)} of {m['patients']} held-out {m['who']}, evenly spaced in the table, none picked by hand; up "
        f"to {n} tiles each. {ceiling_says(m)} Null: {m['nulls']}. {m['training_patients']} training {m['who']}, "
        f"{m['training_tiles']} of their tiles for the round trip, {m['training_tiles_morphology']} for the ridge that "
        "predicts morphology."
    )
    reasons = {"few_tiles": "with too few real tiles", "same_donor": "further rows of a donor"}
    for reason, slides in m["left_out"].items():
        about += f" Left out, {reasons[reason]}: {', '.join(slides)}."
    return Section("tiles", "Real and generated tiles", "", [picture(figure, about, "Real and generated tiles")])


def ceiling_says(m: Blocks) -> str:
    """What the ceiling is, and how many tiles it and the generated tiles' numbers rest on."""
    n = m["ceiling_tiles"]
    side, real = (f"{low}" if low == high else f"{low} to {high}" for low, high in (n["each_side"], n["real"]))
    return (
        f"Ceiling: {m['ceiling']}, {side} on each side; generated tiles, {n['generated']} for each of the {m['who']}, "
        f"are held against all real ones, {real} each, less noisy: with r between the halves, r = sqrt(2 r / (1 + r)) "
        "is attainable, and a measure's share is of that. Retrieval's and the distances' share is of the ceiling "
        "itself and flatters. The round trip's ceiling has all real tiles."
    )


def live(m: Blocks, p: Pictures) -> Section:
    """Part 1."""
    block = m["liveness"]
    pixel, feature, explained = (block[k] for k in ("pixel_difference", "feature_difference", "variance_explained"))
    rows = [(f"patient {k + 1}", tiles) for k, tiles in enumerate(p.live[:4])]
    caption = f"One column, one noise; rows differ in the patient alone ({pixel['patients']} patients were compared)."
    numbers = table(
        HEADERS,
        [
            [
                "pixel difference, grey levels",
                _n(pixel["value"]),
                "–",
                _n(pixel["sd"]),
                "0.00",
                *["–"] * 4,
                pixel["noises"],
            ],
            ["feature difference, of that between noises", _n(feature["value"]), *["–"] * 7, feature["noises"]],
            _row("variance explained by the patient", explained),
        ],
        "Pixel difference: alive from 1 grey level on; sd and n over noises. Variance explained: its null deals tiles "
        "to patients at random, 199 times. " + COLUMNS_SAY,
    )
    text = "The same noise with another patient's expression: does the tile change?"
    return Section("live", "Liveness", text, [numbers, picture(plots.tile_rows(rows), caption, "Same noise")])


def retrieval(m: Blocks, p: Pictures) -> Section:
    """Parts 2 and 3."""
    words = {"top1": "top-1", "top5": "top-5", "mrr": "mean reciprocal rank", "median_percentile": "median percentile"}
    rows = [
        _row(f"{words[k]}{', own means removed' * (way == 'centred')}", block)
        for way, blocks in m["retrieval"].items()
        for k, block in blocks.items()
    ]
    of = {"rows": "distances: rows led by the diagonal", "auc": "distances: diagonal's AUC"}
    rows += [_row(of[k], m["distance"][k]) for k in of]
    figure = matrix_and_ranks(p.matrix, m["distance"]["kind"].split(" (")[0].capitalize())
    caption = f"Left: {m['distance']['kind']}, mean over sampling seeds; dark is near. Right: ranks by these distances."
    text = (
        f"The generated tiles of a patient look for the patient's own real ones among {m['patients_compared']} "
        "patients: by the angle between mean features, and by the distance between sets of tiles."
    )
    blocks = [table(HEADERS, rows, COLUMNS_SAY), picture(figure, caption, "Distances between patients")]
    return Section("retrieval", "Retrieval and distances", text, blocks)


def readback(m: Blocks) -> Section:
    """Part 4."""
    trip = m["round_trip"]
    per = trip["per_component"]
    rows = [
        [k + 1, _n(r), _n(g), "yes" if kept else "no"]
        for k, (r, g, kept) in enumerate(zip(per["real"], per["generated"], per["kept"], strict=True))
    ]
    blocks = [
        table(HEADERS, [_row(f"mean r, {trip['kept']} of {trip['components']} components", trip)], COLUMNS_SAY),
        table(
            ["component", "r, real tiles", "r, generated tiles", "kept"], rows, "Kept: read off real tiles (r >= 0.2)."
        ),
    ]
    text = (
        "A ridge from features of real tiles to principal components of the latent expression, fitted on training "
        "donors, reads the expression of held-out patients back from their tiles."
    )
    return Section("round-trip", "Round trip to the expression", text, blocks)


def morphology(m: Blocks, p: Pictures) -> Section:
    """Part 5."""
    rows, panels = [], []
    for name, b in m["morphology"].items():
        row = _row(name.replace("_", " "), {**b, "value": b["pearson"]})
        rows.append([*row, _n(b["spearman"]), _n(b["shuffled_pearson"]), _n(b["ridge"]), _g(b["wasserstein"])])
        real, made = p.morphology[name]
        panels.append((name.replace("_", " "), real, made, f"{_unit(UNITS[name])}; r = {_n(b['pearson'])}"))
    headers = [*HEADERS, "Spearman", "mean |r| re-paired", "ridge from expression", "Wasserstein"]
    caption = (
        f"Pearson's r of patients' means. {COLUMNS_SAY} Ridge: r of what a ridge predicts from the expression alone "
        "with real tiles: what expression says of the measure at all. Wasserstein in the measure's unit."
    )
    figure = picture(agreement_panels(panels), "One point per patient; dotted: equality.", "Morphology")
    return Section("morphology", "Morphology per patient", "", [table(headers, rows, caption), figure])


def doses(m: Blocks, p: Pictures) -> Section:
    """Part 6."""
    names = list(p.morphology)
    rows = []
    for direction, b in m["dose_response"].items():
        cells = [f"{_n(b[k]['spearman_repeats'])} (p {_n(b[k]['p_value'], 3)})" for k in names]
        rows.append([direction.replace("_", " "), b["unit"], *cells])
    headers = ["along", "step", *(k.replace("_", " ") for k in names)]
    some = next(iter(m["dose_response"].values()))
    caption = (
        f"Spearman of a measure with the step, mean over {some['patients']} patients of {some['noises']} tiles at the "
        "same noise, without patients whose tiles are all alike; p: steps shuffled within patients, two-sided. It says "
        "that the measure responds along these steps, not that only this direction moves it. A direction named after "
        "a measure is the mean change of the latent that goes with one sd of a ridge's prediction of it, fitted on "
        "training donors."
    )
    curves = dose_curves(
        {k: (alphas, values) for k, (alphas, values, _) in p.dose.items()}, {k: _unit(u) for k, u in UNITS.items()}
    )
    strips = []
    for direction, (_, _, tiles) in p.dose.items():
        strips.append((direction.replace("_", " "), np.concatenate(list(tiles))))
    alphas = next(iter(p.dose.values()))[0]
    about = (
        f"Along each direction, alpha from {alphas[0]:g} to {alphas[-1]:g} (shifts: -1 to 1 of the whole), two "
        "patients, the same noise in all tiles of a patient."
    )
    blocks = [
        table(headers, rows, caption),
        picture(
            curves,
            "Mean over patients; bold: along the direction made for the measure, patients in grey. 1 is the last step.",
            "Dose-response",
        ),
    ]
    figure = plots.tile_rows(strips, per_block=len(alphas), titles=[f"patient {k + 1}" for k in range(len(tiles))])
    return Section("dose", "Dose-response", "", [*blocks, picture(figure, about, "Tiles along shifts")])


def diversity(m: Blocks, p: Pictures) -> Section:
    """Part 7."""
    copies = m["memorisation"]
    rows = [_row("share nearer to a training tile (0.5 is ideal)", copies)]
    if m["diversity"] is not None:
        spread = m["diversity"]
        rows.insert(
            0,
            _row(
                f"spread within a patient, of the real one ({_n(spread['lowest'])} to {_n(spread['highest'])})", spread
            ),
        )
    pairs = [("generated", np.stack([x[0] for x in p.pairs])), ("training", np.stack([x[1] for x in p.pairs]))]
    names = ", ".join(f"{slide} {distance:.3g}" for *_, distance, slide in p.pairs)
    caption = (
        f"The nearest of generated and training tiles, from left to right: {names}. Looked at: "
        f"{copies['training_tiles']} of {copies['training_tiles_available']} training tiles"
        + (" (turned copies are not looked for)" if m["turned"] else "")
        + ("." if copies["training_tiles"] == copies["training_tiles_available"] else "; a copy of others goes unseen.")
    )
    blocks = [
        table(HEADERS, rows, COLUMNS_SAY),
        picture(plots.tile_rows(pairs, tile_inches=0.8), caption, "Nearest pairs"),
    ]
    if m["diversity"] is None:
        blocks.insert(1, note("The spread within a patient is left out: a patient has one real tile only."))
    return Section("diversity", "Diversity and memorisation", "", blocks)


def controls(m: Blocks, about: Blocks) -> Section:
    """Part 8."""
    found = m["controls"]
    columns = [{**m, "variance_explained": m["liveness"]["variance_explained"]}, *(found[key] for key in CONTROLS)]
    rows = [
        ["variance explained by the patient", *(_cell(c["variance_explained"]) for c in columns)],
        ["top-1", *(_cell(c["retrieval"]["plain"]["top1"]) for c in columns)],
        ["top-1, own means removed", *(_cell(c["retrieval"]["centred"]["top1"]) for c in columns)],
        ["distances: diagonal's AUC", *(_cell(c["distance"]["auc"]) for c in columns)],
        ["round trip, mean r", *(_cell(c["round_trip"]) for c in columns)],
    ]
    for name in m["morphology"]:
        blocks = [{**c["morphology"][name], "value": c["morphology"][name]["pearson"]} for c in columns]
        rows.append([f"{name.replace('_', ' ')}, r", *map(_cell, blocks)])
    if m["diversity"] is not None:
        rows.append(["spread within a patient", *(_cell(c["diversity"]) for c in columns)])
    rows.append(["share nearer to a training tile", *(_cell(c["memorisation"]) for c in columns)])
    caption = (
        "Value; in brackets what real tiles reach and, under re-paired patients, p. Greyscale and colours: morphology "
        "is what a ridge, fitted on training tiles, reads off them, held against the measured real tiles. Without "
        "expression tiles at the same noise are equal: its pixel difference and dose-response are 0."
    )
    text = (
        f"Without expression: {about['control']}; it should be at chance. Greyscale tiles and colours alone (joint "
        "histograms) show how much of the match is stain. The controls are of one sampling seed, "
        f"{found['unconditional']['tiles']} tiles per patient."
    )
    headers = ["number", "all", *CONTROLS.values()]
    return Section("controls", "Controls", text, [heading("The same numbers"), table(headers, rows, caption)])


def _cell(b: Blocks) -> str:
    p = "" if b["p_value"] is None else f"; p {_n(b['p_value'], 3)}"
    return f"{_n(b['value'])} ({_n(b['ceiling'])}{p})"


def _row(name: str, b: Blocks) -> list[Any]:
    interval = "–" if b.get("low") is None else f"{_n(b['low'])} to {_n(b['high'])}"
    numbers = [_n(b["value"]), interval, *(_n(b[k]) for k in ("sd", "chance", "ceiling", "relative", "null_q99"))]
    return [name, *numbers, _n(b["p_value"], 3), "–" if b["n"] is None else b["n"]]


def _n(value: float | None, digits: int = 2) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-0.00", "0.00").replace("-", "−")


def _g(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _unit(text: str) -> str:
    return text.replace("um", "µm").replace("m2", "m²")
