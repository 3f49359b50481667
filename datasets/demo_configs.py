"""Settings of the demo's runs: the configs of the paper at a size that two CPU cores train in minutes."""

from typing import Any

SHARED = {"rna_features": 0, "split_seed": 99, "device": "cpu", "n_workers": 0, "min_gene_coverage": 0.8}

BETAVAE = {
    "encoder_sizes": [512],
    "latent_dim": 32,
    "decoder_sizes": [512],
    "input_dropout": 0.2,
    "beta": 5e-4,
    "lr": 1e-3,
    "num_epochs": 60,
    "batch_size": 32,
    "log_interval": 20,
}

GAN = {
    "img_size": 64,
    "max_patch_per_wsi": 40,
    "gan_type": "residual",
    "encoding_dims": 64,
    "step_channels": 8,
    "cond_dim": 32,
    "condition_share": 0.7,
    "lr_generator": 1e-3,
    "lr_critic": 1e-3,
    "adam_beta1": 0.0,
    "adam_beta2": 0.99,
    "gamma": 1.0,
    "turns": True,
    "enlarge_taps": 4,  # as measured on this cohort (benchmarks/CONDITIONING.md); six are not
    "num_epochs": 8,
    "batch_size": 8,
    "ema_images": 2000,
    "cache": "ram",
    "log_interval": 50,
}


def demo_configs(root: str) -> dict[str, dict[str, Any]]:
    """Return file name -> settings, with every path under `root` (the demo's folder, as the user wrote it)."""
    tables = {tissue: f"{root}/data/{tissue}.csv" for tissue in ("lung", "brain")}
    tiles = {tissue: f"{root}/tiles/{tissue}" for tissue in tables}
    phenotypes = f"{root}/rna/SubjectPhenotypesDS.txt"
    vae = {"path_csv": list(tables.values()), "tissues": list(tables), "phenotypes": phenotypes}
    configs = {"betavae_tissues.json": vae | SHARED | {"save_dir": f"{root}/checkpoints/betavae_tissues"} | BETAVAE}
    for name, chosen in {"gan_run_lung": ["lung"], "gan_run_brain": ["brain"], "gan_run": ["lung", "brain"]}.items():
        paths = {
            "path_csv": [tables[t] for t in chosen],
            "patch_data_path": [tiles[t] for t in chosen],
            "tissues": chosen,
            "phenotypes": phenotypes,
            "vae_checkpoint": f"{root}/checkpoints/betavae_tissues.pt",
            "save_dir": f"{root}/checkpoints/{name}",
            "flag": name,
        }
        configs[f"{name}.json"] = paths | SHARED | GAN
    return configs
