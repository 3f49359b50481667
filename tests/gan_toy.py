"""A cohort for the GAN's tests: 24 donors of two tissues, 6 tiles each, 60 genes, and a beta-VAE trained on nothing.

Tile colours follow a donor's first gene, so that tiles and profiles are not unrelated; nothing is learned from it here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import histopathology_gan
from common.checkpoint import save_checkpoint
from common.errors import run_command
from datasets.expression import ExpressionTable, splits_of, write_expression
from datasets.leaks import trained_by
from datasets.tiles import write_store
from models.betavae import BetaVAE, finished_state
from models.expression_scaler import ExpressionScaler

N_DONORS, N_GENES, LATENT, TILES, SIDE = 24, 60, 12, 6, 16
TISSUES = ("lung", "brain")


def make_cohort(folder: Path) -> Path:
    """Write tables, tiles, a VAE and configs under `folder`, paths relative to it; return it."""
    tables = {tissue: toy_table(tissue, number) for number, tissue in enumerate(TISSUES)}
    for tissue, table in tables.items():
        write_expression(table, folder / "data" / f"{tissue}.csv")
        for row, slide in enumerate(table.obs["wsi_file_name"]):
            write_store(folder / "tiles" / tissue, Path(slide).stem, toy_tiles(table, row), mpp=0.5, tile_size=SIDE)
    write_vae(folder / "checkpoints" / "betavae_tissues", tables.values())
    for name, tissues in {"lung": ["lung"], "brain": ["brain"], "both": list(TISSUES)}.items():
        write_config(folder / f"{name}.json", tissues)
    return folder


def write_config(path: Path, tissues: list[str], **more: object) -> None:
    """Write a GAN config for networks that train in a second."""
    values = {
        "path_csv": [f"data/{t}.csv" for t in tissues],
        "patch_data_path": [f"tiles/{t}" for t in tissues],
        "img_size": SIDE,
        "encoding_dims": LATENT,
        "step_channels": 4,
        "batch_size": 4,
        "num_epochs": 2,
        "num_grid": 8,
        "device": "cpu",
        "vae_checkpoint": "checkpoints/betavae_tissues.pt",
    }
    path.write_text(json.dumps(values | more))


def toy_table(tissue: str, number: int, prefix: str = "GTEX-D") -> ExpressionTable:
    """Return N_DONORS profiles; site 06 for lung, 30 for brain."""
    rng = np.random.default_rng(number)
    donors = [f"{prefix}{i:02d}" for i in range(N_DONORS)]
    slides = [f"{donor}-{('0625', '3025')[number]}.svs" for donor in donors]
    values = rng.gamma(2.0, 20.0, (N_DONORS, N_GENES)).astype(np.float32)
    obs = pd.DataFrame({"wsi_file_name": slides, "donor": donors, "tissue": tissue}, index=slides)
    return ExpressionTable(values, [f"ENSG{i:011d}.1" for i in range(N_GENES)], obs)


def toy_tiles(table: ExpressionTable, row: int) -> list[tuple[int, int, float, np.ndarray]]:
    """Return TILES tiles of a donor: noise around a colour."""
    rng = np.random.default_rng(row)
    colour = 80 + 2 * table.values[row, 0].clip(0, 60)
    tiles = (colour + rng.normal(0, 20, (TILES, SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
    return [(SIDE * i, 0, 1.0, tile) for i, tile in enumerate(tiles)]


def write_vae(run: Path, tables: object, seed: int = 0) -> str:
    """Write best.pt of an untrained VAE whose latent means vary between donors; return its digest."""
    tables = list(tables)
    values = torch.from_numpy(np.concatenate([table.values for table in tables]))
    tissues = [t for table in tables for t in table.obs["tissue"]]
    train = torch.tensor([split == "train" for table in tables for split in splits_of(table.obs, 99)])
    torch.manual_seed(seed)
    args = {"n_genes": N_GENES, "encoder_sizes": [24], "decoder_sizes": [24], "latent_dim": LATENT}
    args |= {"input_dropout": 0.0, "decoder_output": "linear"}
    model = BetaVAE(**args)
    scaler = ExpressionScaler.fit(values[train], "log1p", "mean")
    state = {"model_args": args, "model": model.state_dict(), "genes": tables[0].genes, "unit": "TPM"}
    state |= {"scaler": scaler.state(), "split_seed": 99, "min_gene_coverage": 0.8, "missing_genes": "mean"}
    kept = [t for t, here in zip(tissues, train.tolist(), strict=True) if here]
    obs = pd.concat([table.obs for table in tables])[train.numpy()]
    state |= trained_by(obs["donor"], obs.index)
    state = finished_state(state | {"settings": {}, "epoch": 1}, values[train], kept, values[~train])
    return save_checkpoint(run / "best.pt", "betavae", state)


def repeatable(line: dict) -> dict:
    """Return a line of a log without what is another each time: times, rates and memory."""
    momentary = ("seconds", "seconds_left", "memory_gb", "images_per_second", "profiles_per_second")
    return {key: value for key, value in line.items() if key not in momentary}


def run(module: object, words: str) -> int:
    """Run a command's main() with these words; return the exit status."""
    return run_command(module.main, module.build_parser(), words.split())


def train_two(loss: str, steps: int) -> None:
    """Train a GAN and, with `loss`, an RNA-GAN of the lung, here, for so many steps."""
    for name, own in (("gan_lung", "wgan"), ("rna-gan_lung", loss)):
        words = f"--config lung.json --model_dir checkpoints/{name} --loss_type {own} --max_steps {steps}"
        assert run(histopathology_gan, words) == 0


def copy_here(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy a cohort into `folder` and work there."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)


# ---- Fixtures, for test files that name them ----


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The cohort, once for a file."""
    torch.set_num_threads(1)
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def cohort(made, tmp_path, monkeypatch):
    """A copy of the file's `made` as the working directory."""
    copy_here(made, tmp_path, monkeypatch)
    return tmp_path
