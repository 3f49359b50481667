"""The report's sections on expression: the beta-VAE's training and errors, the latent space, the shifts."""

from typing import Any

import numpy as np

from figures import plots
from figures.page import Section, picture, table
from figures.results import series_of, short

METHODS = {"vae": "beta-VAE", "tissue_mean": "tissue mean"}


def vae_section(log: list[dict[str, Any]], metrics: dict[str, Any], settings: dict[str, Any]) -> Section:
    """Return training curves and test errors; `log`, `metrics`, `settings` are the run's files."""
    panels = {
        part: {name: series_of(log, f"{name}_{part}", "epoch") for name in ("train", "val")}
        for part in ("total", "reconstruction", "kl")
    }
    n, digest = metrics["n"], short(metrics["vae_digest"])
    counts = ", ".join(f"{split} {c['profiles']} profiles of {c['donors']} donors" for split, c in n.items())
    curve = picture(
        plots.curves(panels, "epoch"),
        f"Loss per epoch: total = reconstruction + {settings['beta']:g} KL. {counts}. Seed {metrics['seed']}, "
        f"split seed {metrics['split_seed']}; best epoch {metrics['epoch']} by validation ({settings['best_by']}); "
        f"training curves are with dropout {settings['input_dropout']:g}. VAE digest {digest}.",
        "Training and validation loss of the beta-VAE",
    )
    rows = []
    for group, found in metrics["test"].items():
        for method, values in found.items():
            if isinstance(values, dict):
                name = METHODS.get(method, method.replace("pca_", "PCA, ") + " components")
                mse = f"{values['mse']:.3f} [{values['mse_low']:.3f}, {values['mse_high']:.3f}]"
                r = values["pearson_median"]
                size = f"{found['profiles']} / {found['donors']}"
                rows.append([group, name, mse, f"{values['mae']:.3f}", "–" if r is None else f"{r:.2f}", size])
    errors = table(
        ["test donors", "method", "MSE [95 %]", "MAE", "median r per gene", "profiles / donors"],
        rows,
        f"Reconstruction of held-out donors, in {metrics['unit']}. Intervals: bootstrap over donors. PCA is fitted "
        f"on the training donors. Seed {metrics['seed']}, VAE digest {digest}.",
    )
    return Section(
        "vae",
        "The beta-VAE of expression",
        "It must do better on donors it has not seen than the mean of their tissue does; PCA is the linear bar.",
        [curve, errors],
    )


def latent_section(
    points: np.ndarray, tissue: np.ndarray, kind: np.ndarray, held_out: np.ndarray, seed: int, vae_digest: str
) -> Section:
    """Return the map of latents; arguments as of plots.latent_map."""
    counts = ", ".join(f"{name} {int((kind == name).sum())}" for name in dict.fromkeys(kind))
    caption = (
        "UMAP of the encoder's means, all points fitted together: of real profiles, of their reconstructions (encoded "
        "again) and of generated profiles (of betaVAE_sample.py, encoded). Black rings: held-out (test) donors. "
        f"n: {counts}. Distances between far clusters mean nothing. Seed {seed}, VAE digest {short(vae_digest)}."
    )
    figure = plots.latent_map(points, list(tissue), list(kind), held_out)
    alt = "Map of real, reconstructed and generated profiles"
    return Section(
        "latent",
        "The latent space",
        "Real, reconstructed and generated profiles under one encoder, coloured by tissue.",
        [picture(figure, caption, alt)],
    )
