"""shift  What a shift in the latent space does to profiles: from one tissue to another, and between the sexes.

    python paper_figures.py shift --study demo

Reads   the beta-VAE and its tables, and what betaVAE_interpolation.py left in <save_dir>/shifts and shifts/sex.
Writes  shift_tissue.* and shift_sex.*: held-out donors' profiles before and after, the probability that a classifier of
        real profiles gives the target along alpha, and for the sexes the genes of X and Y. One pair of groups and its
        reverse; the first that betaVAE_interpolation.py has.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch

from common.archives import read_npz
from common.errors import InputError
from common.files import read_json
from datasets.expression import ExpressionTable
from datasets.genes import gene_key
from datasets.sample_sheets import sexes_of
from figures.paper_shift import Moved, shift_figure
from figures.results import short
from metrics.profiles import GroupClassifier
from models.betavae import TrainedVAE
from paper.parts import Ask, Drawn, made_by

NAME, WHAT = "shift", "shifts between tissues and sexes"
ALPHAS = np.linspace(0, 1.5, 13)
# Ensembl ids without version; XIST is expressed from the inactive X, the others lie on Y.
SEX_GENES = {
    "XIST": "ENSG00000229807",
    "RPS4Y1": "ENSG00000129824",
    "DDX3Y": "ENSG00000067048",
    "KDM5D": "ENSG00000012817",
    "UTY": "ENSG00000183878",
    "EIF1AY": "ENSG00000198692",
    "USP9Y": "ENSG00000114374",
    "ZFY": "ENSG00000067646",
}


@dataclass
class Profiles:
    """All profiles that have a group, as the beta-VAE sees them."""

    vae: TrainedVAE
    table: ExpressionTable
    group: np.ndarray  # (rows,) str
    scaled: np.ndarray  # (rows, genes) z-scores
    mu: torch.Tensor  # (rows, z)

    def rows(self, group: str, split: str) -> np.ndarray:
        """Return the rows of a group in a split."""
        return np.flatnonzero((self.group == group) & (self.table.obs["split"] == split).to_numpy())


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw both kinds of shift that there are; InputError where there is neither."""
    run = Path(ask.study.vae_settings.save_dir)
    folders = {"tissue": run / "shifts", "sex": run / "shifts" / "sex"}
    found = {kind: folder for kind, folder in folders.items() if (folder / "metrics.json").is_file()}
    with made_by(ask, "shift"):
        if not found:
            raise InputError(f"{folders['tissue']}: no metrics.json of betaVAE_interpolation.py in it")
        return {f"shift_{kind}": drawn(ask, kind, folder) for kind, folder in found.items()}


def drawn(ask: Ask, kind: str, folder: Path) -> Drawn:
    """Draw one kind of shift."""
    metrics, (vae, digest) = read_json(folder / "metrics.json"), ask.study.vae
    if metrics["vae_digest"] != digest:
        raise InputError(f"{folder}: shifts of another beta-VAE ({short(metrics['vae_digest'])}) than {short(digest)}")
    p = profiles_of(ask, vae, kind)
    first = metrics["pairs"][0]
    pairs = [(q["from"], q["to"]) for q in metrics["pairs"] if {q["from"], q["to"]} == {first["from"], first["to"]}]
    moved = {(a, b): move(p, folder, a, b) for a, b in pairs if len(p.rows(a, "test"))}
    if not moved:
        groups = f"{first['from']} or {first['to']}"
        raise InputError(f"{p.table.source}: no held-out donor has a profile of {groups}: nothing to move")
    boxes, absent = gene_boxes(p, moved) if kind == "sex" else ({}, [])
    counts = "; ".join(
        f"{a} to {b}: {len(m.before)} held-out profiles of {m.donors} donors, centroids of {m.n_from} and {m.n_to}"
        for (a, b), m in moved.items()
    )
    judged = next(iter(moved.values()))
    right = f"{judged.right} of {judged.tested}"
    maps, curves = ("(a, c)", "(b, d)") if len(moved) > 1 else ("(a)", "(b)")
    caption = (
        f"Shift between {'tissues' if kind == 'tissue' else 'sexes'}: the difference of the groups' mean latents over "
        f"training donors. {maps} Held-out donors' profiles before (filled) and after the shift (alpha 1, open), "
        f"decoded and encoded again, over all real profiles: along the shift (0 and 1 are the groups' means) and along "
        f"the first principal component of the rest. {curves} Probability of the target group by a logistic regression "
        f"fitted on real training profiles, for the held-out profiles moved by alpha times the shift and decoded (at "
        f"alpha 0 decoded only): median, middle half (dark), all (pale); it is right on {right} real held-out profiles."
    )
    if boxes:
        caption += (
            f" ({'e' if len(moved) > 1 else 'c'}) Genes of X and Y: real held-out profiles of each sex (filled), and "
            "the same profiles moved to the other and decoded (alpha 1, open). Boxes: quartiles; whiskers: 1.5 times "
            "their range."
        )
    still = [a for a, b in pairs if (a, b) not in moved]
    caption += f" No held-out donor has a profile of {', '.join(still)}." if still else ""
    caption += f" Not in the table: {', '.join(absent)}." if absent else ""
    caption += (
        f" n: {counts}. Nothing here is random (no seed); split seed {vae.split_seed}; no extractor; beta-VAE "
        f"{short(digest)}."
    )
    return Drawn(shift_figure(moved, boxes, p.table.unit), table_of(moved, boxes), caption)


def profiles_of(ask: Ask, vae: TrainedVAE, kind: str) -> Profiles:
    """Return the profiles with their groups: tissues, or sexes where they are known."""
    table = ask.study.table
    group = table.obs["tissue"].to_numpy(dtype=str)
    if kind == "sex":
        group = sexes_of(table.obs, ask.study.vae_settings.phenotypes)
        if group is None:
            raise InputError(f"{table.source}: sexes are not known; name the phenotypes in the beta-VAE's config")
        known = np.isin(group, ("male", "female"))
        table, group = table.rows(known), group[known]
    values = torch.from_numpy(table.aligned(vae.genes, vae.min_gene_coverage, vae.unit)[0])
    return Profiles(vae, table, group, vae.scale(values).cpu().numpy(), vae.encode(values).cpu())


def move(p: Profiles, folder: Path, a: str, b: str) -> Moved:
    """Move held-out profiles of `a` to `b` and look at them: where they are, and what the classifier says."""
    path = folder / f"shift_{a}_to_{b}.npz"
    try:
        file = read_npz(path)
        shift, start = torch.from_numpy(file["shift"]), torch.from_numpy(file["mean_from"])
    except (BadZipFile, ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: not a shift of betaVAE_interpolation.py ({str(error)[:80]}); make it again"
        ) from None
    train, held = {g: p.rows(g, "train") for g in (a, b)}, {g: p.rows(g, "test") for g in (a, b)}
    both = np.concatenate([train[a], train[b]])
    classifier = GroupClassifier(p.scaled[both], p.group[both])
    mu = p.mu[held[a]]
    along = [p.vae.decode_scaled(mu + float(x) * shift).cpu().numpy() for x in ALPHAS]
    real = np.concatenate([held[a], held[b]])
    whole = p.vae.decode(mu + shift)
    again = p.vae.encode(whole).cpu()
    axes = plane(p.mu, start, shift)
    mine = np.isin(p.group, (a, b))
    return Moved(
        others={g: axes(p.mu[mine & (p.group == g)]) for g in (a, b)},
        before=axes(mu),
        after=axes(again),
        alphas=ALPHAS,
        probability=np.stack([classifier.probability(x, b) for x in along], 1),
        names=[str(name) for name in p.table.obs.index[held[a]]],
        donors=p.table.obs["donor"].iloc[held[a]].nunique(),
        n_from=len(train[a]),
        n_to=len(train[b]),
        right=int((classifier.call(p.scaled[real]) == p.group[real]).sum()),
        tested=len(real),
        profiles={"before": p.table.aligned(p.vae.genes, 0.0)[0][held[a]], "after": whole.cpu().numpy()},
    )


def plane(mu: torch.Tensor, start: torch.Tensor, shift: torch.Tensor) -> Any:
    """Return a function from latents (n, z) to (n, 2): along the shift in its own length, and across it.

    Across: the first principal component of `mu` (rows, z) without what lies along the shift.
    """
    unit = shift.double() / shift.double().norm()

    def across(x: torch.Tensor) -> torch.Tensor:
        x = x.double() - start.double()
        return x - (x @ unit)[:, None] * unit

    rest = across(mu)
    first = torch.linalg.svd(rest - rest.mean(0), full_matrices=False)[2][0]
    first = first * torch.sign(first[first.abs().argmax()])  # a component's sign is arbitrary

    def place(x: torch.Tensor) -> np.ndarray:
        along = (x.double() - start.double()) @ unit / shift.double().norm()
        return torch.stack([along, across(x) @ first], 1).numpy()

    return place


def gene_boxes(p: Profiles, moved: dict[tuple[str, str], Moved]) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Return gene -> (group -> log2 (1 + expression)), (n,) each, and the genes that the table lacks."""
    column = {gene_key(gene): j for j, gene in enumerate(p.vae.genes)}
    boxes: dict[str, dict[str, np.ndarray]] = {}
    for symbol, gene in SEX_GENES.items():
        if gene in column:
            boxes[symbol] = {}
            for (a, b), m in moved.items():
                values = {k: np.log2(1 + m.profiles[k][:, column[gene]]) for k in ("before", "after")}
                boxes[symbol] |= {a: values["before"], f"{a} to {b}": values["after"]}
    return boxes, [symbol for symbol, gene in SEX_GENES.items() if gene not in column]


def table_of(moved: dict[tuple[str, str], Moved], boxes: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Return one long table: panel, from, to, profile, alpha or gene, x, y or value."""
    lines: list[dict[str, Any]] = []
    for (a, b), m in moved.items():
        pair = {"from": a, "to": b}
        for when, points in (("before", m.before), ("after", m.after)):
            for name, (x, y) in zip(m.names, points, strict=True):
                lines.append({"panel": "map", **pair, "profile": name, "what": when, "x": x, "y": y})
        for name, row in zip(m.names, m.probability, strict=True):
            for alpha, value in zip(m.alphas, row, strict=True):
                lines.append({"panel": "probability", **pair, "profile": name, "what": "p", "x": alpha, "y": value})
    for gene, groups in boxes.items():
        for group, values in groups.items():
            for number, value in enumerate(values):
                lines.append({"panel": "genes", "from": group, "profile": number, "what": gene, "y": value})
    return pd.DataFrame(lines, columns=["panel", "from", "to", "profile", "what", "x", "y"])
