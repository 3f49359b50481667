"""latent  Real, reconstructed and generated profiles in two dimensions, and how well profiles are reconstructed.

    python paper_figures.py latent --study demo

Reads   the beta-VAE's config, tables and run folder: best.pt, samples.h5ad (betaVAE_sample.py), metrics.json and
        test_genes.csv (errors per tissue and gene, beside tissue mean and PCA).
Writes  latent_map.* (UMAP, and the first two principal components of the real profiles' latents) and latent_errors.*
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from common.errors import InputError
from common.files import read_json
from datasets.expression import read_expression
from figures import measure
from figures.paper_latent import errors_figure, map_figure
from figures.results import short
from paper.kept import table_digest
from paper.parts import Ask, Drawn, made_by
from sources.study import Study

NAME, WHAT = "latent", "the latent space, and the errors of reconstruction"
METHODS = {"vae": "beta-VAE", "tissue_mean": "tissue mean"}


def draw(ask: Ask) -> dict[str, Drawn]:
    """Draw the map and the errors."""
    return {"latent_map": latent_map(ask), "latent_errors": latent_errors(ask)}


def latent_map(ask: Ask) -> Drawn:
    """Real, reconstructed and generated profiles: UMAP and PCA of the encoder's means."""
    study = ask.study
    with made_by(ask, "vae"):
        _, digest = study.vae
        of = {"figure": "latent map", "vae": digest, "table": table_digest(study.table), "seed": ask.seed}
    with made_by(ask, "samples"):
        samples = read_expression(Path(study.vae_settings.save_dir) / "samples.h5ad")
        latents, tissue, kind, held_out = latent_points(study)
    of["samples"] = table_digest(samples)
    umap = ask.kept.arrays(of, lambda: {"points": measure.latent_map_points(latents, ask.seed)})["points"]
    pca, share = principal(latents, kind == "real")
    table = pd.DataFrame({"kind": kind, "tissue": tissue, "held_out": held_out})
    table[["umap_1", "umap_2"]], table[["pc_1", "pc_2"]] = umap, pca
    counts = ", ".join(f"{name} {int((kind == name).sum())}" for name in dict.fromkeys(kind))
    caption = (
        f"Profiles of expression under the encoder (its means): real ones, their reconstructions (decoded and encoded "
        f"again) and generated ones (betaVAE_sample.py). Top: UMAP, all points fitted together; distances between far "
        f"clusters mean nothing there. Bottom: the first two principal components of the real profiles' means "
        f"({share[0]:.0%} and {share[1]:.0%} of their variance). Black rings: held-out (test) donors. n = {counts} "
        f"profiles. Seed {ask.seed} (UMAP); no extractor; beta-VAE {short(digest)}."
    )
    return Drawn(map_figure({"UMAP": umap, "PC": pca}, tissue, kind, held_out, share), table, caption)


def latent_points(study: Study) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return latents (n, z) of real, reconstructed and generated profiles; of each tissue, kind, held out or not."""
    vae, _ = study.vae
    table, samples = study.table, read_expression(Path(study.vae_settings.save_dir) / "samples.h5ad")
    real = study.latent_means(table)
    again = vae.encode(vae.decode(real.to(vae.device))).cpu()
    latents = torch.cat([real, again, study.latent_means(samples)]).numpy()
    kind = np.repeat(["real", "reconstructed", "generated"], [len(table), len(table), len(samples)])
    tissue = np.concatenate([t.obs["tissue"].astype(str) for t in (table, table, samples)])
    test = (table.obs["split"] == "test").to_numpy()
    return latents, tissue, kind, np.concatenate([test, test, np.zeros(len(samples), bool)])


def principal(latents: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return latents (n, z) on the first two principal components of the rows `fitted`, (n, 2), and their shares."""
    centred = (latents - latents[fitted].mean(0)).astype(np.float64)
    _, singular, directions = np.linalg.svd(centred[fitted], full_matrices=False)
    signs = np.sign(directions[np.arange(2), np.abs(directions[:2]).argmax(1)])  # a component's sign is arbitrary
    return centred @ (directions[:2] * signs[:, None]).T, singular[:2] ** 2 / ((singular**2).sum() or 1.0)


def latent_errors(ask: Ask) -> Drawn:
    """Errors on held-out donors by tissue and by gene, against the baselines; read from the beta-VAE's run folder."""
    run = Path(ask.study.vae_settings.save_dir)
    with made_by(ask, "vae"):
        metrics = read_json(run / "metrics.json")
        if not (run / "test_genes.csv").is_file():
            raise InputError(f"{run / 'test_genes.csv'}: no such file; train the beta-VAE to its end")
        genes = pd.read_csv(run / "test_genes.csv")
    lines, per_gene = [], {}
    for group, found in metrics["test"].items():
        methods = {key: m for key, m in found.items() if isinstance(m, dict)}
        for key, m in methods.items():
            lines.append((group, label(key), "", m["mse"], m["mse_low"], m["mse_high"], found["profiles"]))
        rows = genes[genes["group"] == group]
        per_gene[group] = {label(key): rows[f"{key}_mse"].to_numpy(float) for key in methods}
        for key in methods:
            values = zip(rows["gene"], rows[f"{key}_mse"], strict=True)
            lines += [(group, label(key), gene, mse, np.nan, np.nan, found["profiles"]) for gene, mse in values]
    table = pd.DataFrame(lines, columns=["donors", "method", "gene", "mse", "low", "high", "profiles"])
    sizes = "; ".join(f"{g} {f['profiles']} profiles of {f['donors']} donors" for g, f in metrics["test"].items())
    better = np.mean(per_gene["all"][METHODS["vae"]] < per_gene["all"][METHODS["tissue_mean"]])
    caption = (
        f"Mean squared error of reconstruction on held-out (test) donors, in {metrics['unit']}. (a) By tissue, with 95 "
        f"% intervals (bootstrap over donors). (b) Its distribution over {len(per_gene['all'][METHODS['vae']])} genes, "
        f"all tissues. (c) Gene by gene, beta-VAE against tissue mean: the beta-VAE is better on {better:.0%} of the "
        f"genes (the axes leave out the last 1 % in b, 0.5 % in c). PCA is fitted on the training donors; its number "
        f"of components is in the legend. n: {sizes}. Seed {metrics['seed']}, split seed {metrics['split_seed']}; no "
        f"extractor; beta-VAE {short(metrics['vae_digest'])}."
    )
    summary = table[table["gene"] == ""]
    return Drawn(errors_figure(summary, per_gene["all"], metrics["unit"]), table, caption)


def label(method: str) -> str:
    """Return a method's name in words."""
    return METHODS.get(method, f"PCA, {method.removeprefix('pca_')} components")
