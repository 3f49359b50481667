"""A study for the tests of figures: 40 donors, two tissues, 16 px tiles, tiny networks, made by the commands."""

import importlib
import json
import shlex
from pathlib import Path

import numpy as np
from betavae_cohort import write_cohort

from common.errors import run_command
from datasets.expression import read_expression, write_expression
from datasets.tiles import write_store


def command(line):
    """Run one command line in this process; return its exit status."""
    name, *words = shlex.split(line)
    module = importlib.import_module(name.removesuffix(".py"))
    return run_command(module.main, module.build_parser(), words)


def make_study(root: Path) -> Path:
    """Write tables, tiles and runs under `root`, paths absolute; every stage but fid.py and what comes after it."""
    write_cohort(root, n_donors=40, n_genes=100, num_epochs=3)
    vae = json.loads((root / "vae.json").read_text()) | {"save_dir": f"{root}/checkpoints/betavae_tissues"}
    (root / "configs").mkdir()
    (root / "configs" / "betavae_tissues.json").write_text(json.dumps(vae))
    random = np.random.default_rng(0)
    lines = ["donor,slide,tissue,nuclear_density,nuclear_size,eosin_od,white_space"]
    for tissue, site in (("lung", "0625"), ("brain", "3025")):
        for donor in range(40):
            name = f"GTEX-{donor:04d}-{site}"
            shade = (200, 150, 190) if tissue == "lung" else (150, 90, 160)
            tiles = np.clip(random.normal(shade, 25, (6, 16, 16, 3)), 0, 255).astype(np.uint8)
            rows = [(64 * k, 0, 1.0, tile) for k, tile in enumerate(tiles)]
            write_store(root / "tiles" / tissue, name, rows, mpp=1.0, tile_size=16, fmt="png")
            factors = ",".join(f"{v:.3f}" for v in random.normal(size=4))
            lines.append(f"GTEX-{donor:04d},{name}.svs,{tissue},{factors}")
        gan = {
            "path_csv": [f"{root}/{tissue}.h5ad"],
            "patch_data_path": [f"{root}/tiles/{tissue}"],
            "vae_checkpoint": f"{root}/checkpoints/betavae_tissues.pt",
            "img_size": 16,
            "encoding_dims": 8,
            "step_channels": 4,
            "num_epochs": 1,
            "max_steps": 3,
            "batch_size": 8,
            "log_interval": 1,
            "device": "cpu",
        }
        (root / "configs" / f"gan_run_{tissue}.json").write_text(json.dumps(gan))
    (root / "truth.csv").write_text("\n".join(lines) + "\n")
    config = f"--config {root}/configs/betavae_tissues.json"
    for name in ("training", "interpolation", "sample"):
        assert command(f"betaVAE_{name}.py {config}") == 0
    for tissue in ("lung", "brain"):
        for run, loss in (("gan", "wgan"), ("rna-gan", "wganvae")):
            folder = f"{root}/checkpoints/{run}_{tissue}"
            flags = f"--config {root}/configs/gan_run_{tissue}.json --model_dir {folder} --loss_type {loss}"
            assert command(f"histopathology_gan.py {flags}") == 0
    return root


def finish_study(study: Path) -> Path:
    """Add what comes after the networks, by the commands: tiles, distances, evaluation, classifier."""
    configs, runs = f"{study}/configs/gan_run", f"{study}/checkpoints"
    for run in ("lung", "brain"):
        flags = f"--config {configs}_{run}.json --sample_size 24 --out {study}/generated/rna-gan_{run}/held_out"
        assert command(f"generate_tissue_images.py --checkpoint {runs}/rna-gan_{run} {flags}") == 0
    foreign = read_expression(study / "lung.h5ad").rows([0, 1])
    foreign.obs = foreign.obs.assign(wsi_file_name="", donor=["A", "B"]).set_axis(["GSM1", "GSM2"])
    write_expression(foreign, study / "geo.h5ad")
    flags = f"--config {configs}_lung.json --sample_size 4 --rna_data {study}/geo.h5ad --random_patient"
    geo = f"--checkpoint {runs}/rna-gan_lung {flags} --out {study}/generated/rna-gan_lung/geo"
    assert command(f"generate_tissue_images.py {geo}") == 0
    assert command(f"betaVAE_interpolation.py --config {study}/configs/betavae_tissues.json --type sex") == 0
    sources = f"real=real:{configs}_lung.json gan={runs}/gan_lung rna-gan={runs}/rna-gan_lung"
    flags = f"--sample_size 20 --iterations 2 --extractor_side 32 --device cpu --out {study}/fid/matrix"
    assert command(f"fid.py --matrix {sources} {flags}") == 0
    generated = " ".join(f"{study}/generated/rna-gan_{t}/held_out" for t in ("lung", "brain"))
    toy = f"--generated {generated} --out {study}/images_form --per_class 30"
    assert command(f"prepare_data.py toy --real {study}/tiles/lung {study}/tiles/brain {toy}") == 0
    data = f"--patch_data_path {study}/images_form --num_epochs 3 --device cpu"
    assert command(f"wsi_model.py {data} --csv_path real_toy_example.csv --out {study}/classifier/real") == 0
    tables = "--train_csv rna-gan_toy_example.csv --test_csv real_toy_example.csv"
    assert command(f"wsi_model.py {data} {tables} --out {study}/classifier/synthetic_to_real") == 0
    few = f"{data} --csv_path real_toy_example.csv --train_tiles 16"
    assert command(f"wsi_model.py {few} --out {study}/classifier/scratch_16") == 0
    more = f"--pretrain rna-gan_toy_example.csv --pretrain_epochs 1 --out {study}/classifier/pretrained_16"
    assert command(f"wsi_model.py {few} {more}") == 0
    flags = f"--config {configs}_lung.json --tiles 4 --sampling_seeds 1 --re_pairings 99 --device cpu"
    judged = f"--checkpoint {runs}/rna-gan_lung {flags} --extractor_side 32 --out {study}/conditioning/lung"
    assert command(f"evaluate_conditioning.py {judged}") == 0
    for run, best in (("gan_lung", 3.0), ("rna-gan_lung", 2.0)):
        said = {"kid_n": 500, "kid_extractor": "some_network", "kid_weights": "f" * 64}
        lines = [{"step": k, "images": 8 * k, "kid": best + 5 / k} | said for k in (1, 2, 3)]
        with open(study / "checkpoints" / run / "log.jsonl", "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return study
