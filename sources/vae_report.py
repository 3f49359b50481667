"""How well a trained beta-VAE reconstructs the test donors, beside the baselines: a run folder's metrics.json."""

import torch

from common.config import BetaVAESettings
from common.files import read_json, write_json
from common.run import Run
from datasets.expression import ExpressionTable
from metrics.expression import reconstruction_report, write_gene_errors
from models.betavae import TrainedVAE


def measure_best(run: Run, part: dict[str, ExpressionTable], cfg: BetaVAESettings, device: torch.device) -> None:
    """Measure best.pt on the test donors, beside the baselines; write metrics.json and test_genes.csv."""
    vae, digest = TrainedVAE.open(run.folder / "best.pt", device)
    path = run.folder / "metrics.json"
    if path.exists() and (run.folder / "test_genes.csv").exists() and read_json(path).get("vae_digest") == digest:
        print(f"{run.folder}: trained and measured already; metrics.json stands")
        return
    x = {s: vae.scale(torch.from_numpy(part[s].values)) for s in ("train", "test")}
    mine = vae.decode_scaled(vae.encode(torch.from_numpy(part["test"].values))).cpu().numpy()
    obs = {s: part[s].obs for s in x}
    report, per_gene = reconstruction_report(
        x["train"].cpu().numpy(),
        x["test"].cpu().numpy(),
        mine,
        obs["train"]["tissue"].to_numpy(),
        obs["test"]["tissue"].to_numpy(),
        obs["test"]["donor"].to_numpy(),
        latent_dim=cfg.latent_dim,
        seed=cfg.seed,
    )
    write_gene_errors(run.folder / "test_genes.csv", vae.genes, per_gene)
    counts = {s: {"profiles": len(p), "donors": int(p.obs["donor"].nunique())} for s, p in part.items()}
    about = {"vae_digest": digest, "epoch": vae.state["epoch"], "seed": cfg.seed, "split_seed": cfg.split_seed}
    units = f"z-scores of {cfg.transform} {vae.unit}, training donors' mean and sd"
    write_json(path, about | {"n": counts, "unit": units, "validation": vae.state["validation"], "test": report})
    for group, methods in report.items():
        words = [
            f"{m} {v['mse']:.3f} [{v['mse_low']:.3f}, {v['mse_high']:.3f}]"
            for m, v in methods.items()
            if isinstance(v, dict)
        ]
        print(f"test, {group} (n = {methods['profiles']} of {methods['donors']} donors), mse: {'; '.join(words)}")
    print(f"{run.folder / 'best.pt'}: epoch {vae.state['epoch']}, digest {digest[:12]}")
