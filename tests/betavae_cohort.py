"""A made-up cohort for the beta-VAE's tests: two tissues, four known factors per donor, sex genes; seconds to train."""

import json

import numpy as np
import pandas as pd

from datasets.expression import ExpressionTable, write_expression

MODULE = 15  # genes that each factor drives


def made_values(n_donors=60, n_genes=150, seed=0):
    """Return {tissue: (donors, genes) TPM-like}, factors (donors, 4), sexes (donors,) in {1, 2}."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((n_donors, 4))
    sexes = rng.integers(1, 3, n_donors)
    base = rng.normal(3, 1, n_genes)
    values = {}
    for tissue in ("lung", "brain"):
        log = base + rng.normal(0, 0.3, (n_donors, n_genes))
        for k in range(4):
            log[:, k * MODULE : (k + 1) * MODULE] += 0.8 * factors[:, [k]]
        log[:, 4 * MODULE : 5 * MODULE] += 2.0 * (tissue == "lung")
        log[:, 5 * MODULE : 6 * MODULE] += 2.0 * (sexes == 1)[:, None]
        values[tissue] = np.exp(log).astype(np.float32)
    return values, factors, sexes


def write_cohort(folder, n_donors=60, n_genes=150, seed=0, **settings):
    """Write lung.h5ad, brain.h5ad, phenotypes.txt and vae.json into `folder`; return the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    values, _, sexes = made_values(n_donors, n_genes, seed)
    donors = [f"GTEX-{i:04d}" for i in range(n_donors)]
    genes = [f"ENSG{i:011d}.2" for i in range(n_genes)]
    for tissue, table in values.items():
        samples = [f"{d}-{'0626' if tissue == 'lung' else '3026'}" for d in donors]
        obs = pd.DataFrame({"wsi_file_name": [f"{s[:-1]}5.svs" for s in samples], "donor": donors}, dtype=object)
        obs.index = pd.Index(samples, dtype=object)
        write_expression(ExpressionTable(table, genes, obs.assign(tissue=tissue)), folder / f"{tissue}.h5ad")
    lines = ["SUBJID\tSEX\tAGE", *(f"{d}\t{s}\t50-59" for d, s in zip(donors, sexes, strict=True))]
    (folder / "phenotypes.txt").write_text("\n".join(lines) + "\n")
    config = {
        "path_csv": [str(folder / "lung.h5ad"), str(folder / "brain.h5ad")],
        "phenotypes": str(folder / "phenotypes.txt"),
        "save_dir": str(folder / "run"),
        "device": "cpu",
        "encoder_sizes": [32],
        "decoder_sizes": [32],
        "latent_dim": 8,
        "input_dropout": 0.2,
        "batch_size": 32,
        "lr": 2e-3,
        "num_epochs": 60,
        "log_interval": 1,
    }
    (folder / "vae.json").write_text(json.dumps(config | settings))
    return folder / "vae.json"
