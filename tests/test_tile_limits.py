"""Limits of what was measured when tiles were cut, for the classifier's tables and for other tools."""

import json
import tarfile

import numpy as np
import pandas as pd
import pytest

import prepare_data
from common.errors import EXIT_BAD_INPUT, EXIT_DONE, run_command
from datasets.image_folder import read_image
from datasets.tiles import write_store

# One tissue share, sharpness and pen share per tile; tiles 2 and 3 are within 0.5, 0.2 and 0.1.
TISSUE, SHARPNESS, PEN = (0.1, 0.5, 0.5, 0.9, 1.0), (0.3, 0.1, 0.2, 0.3, 0.3), (0.0, 0.0, 0.1, 0.0, 0.5)
LIMITS = ("--min_tissue", "0.5", "--min_sharpness", "0.2", "--max_pen", "0.1")


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Two slides of five tiles, each of one grey, and one slide whose tiles are all bad."""
    monkeypatch.chdir(tmp_path)
    for slide in ("GTEX-A-0125", "GTEX-B-0125"):
        tiles = [
            (8 * k, 0, TISSUE[k], np.full((8, 8, 3), 40 * k, np.uint8), {"sharpness": SHARPNESS[k], "pen": PEN[k]})
            for k in range(5)
        ]
        write_store("lung", slide, tiles, mpp=0.5, tile_size=8, fmt="png")
    bad = [(0, 0, 0.1, np.zeros((8, 8, 3), np.uint8), {"sharpness": 0.0, "pen": 1.0})]
    write_store("lung", "GTEX-C-0125", bad, mpp=0.5, tile_size=8, fmt="png")


def run(*words):
    return run_command(prepare_data.main, prepare_data.build_parser(), list(words))


def test_toy_takes_the_tiles_within_the_limits(stores, capsys):
    assert run("toy", "--real", "lung", "--out", "out", *LIMITS) == EXIT_DONE
    names = sorted(pd.read_csv("out/real_toy_example.csv")["wsi_file_names"])
    assert names == [f"real/lung/GTEX-{donor}-0125_{k:05d}.png" for donor in "AB" for k in (2, 3)]
    assert [int(read_image(f"out/{name}").max()) for name in names] == [80, 120, 80, 120]
    assert run("toy", "--real", "lung", "--out", "all") == EXIT_DONE
    assert len(pd.read_csv("all/real_toy_example.csv")) == 11
    assert run("toy", "--real", "lung", "--out", "none", "--max_pen", "0", "--min_tissue", "1") == EXIT_BAD_INPUT
    assert "lung: no tile within min_tissue 1, max_pen 0" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_export_takes_the_tiles_within_the_limits(stores, capsys, form):
    words = ("export", "--format", form, "--tiles", "lung", "--out")
    assert run(*words, "out", *LIMITS) == EXIT_DONE
    assert "4 tiles of 2 slides" in capsys.readouterr().out
    if form == "folder":
        table = pd.read_csv("out/tiles.csv")
        assert table["x"].tolist() == [16, 24] * 2 and table["tissue"].tolist() == [0.5, 0.9] * 2
    else:
        with tarfile.open("out/shard-000000.tar") as tar:
            abouts = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
        assert [about["index"] for about in abouts] == [2, 3] * 2
    assert run(*words, "none", "--min_sharpness", "0.9") == EXIT_BAD_INPUT
    assert "no tile of 3 slides within min_sharpness 0.9" in capsys.readouterr().err


def test_a_limit_of_what_was_not_measured_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_store("old", "GTEX-A-0125", [(0, 0, 0.5, np.zeros((8, 8, 3), np.uint8))], mpp=0.5, tile_size=8)
    assert run("export", "--tiles", "old", "--out", "out", "--max_pen", "0.5") == EXIT_BAD_INPUT
    assert "keeps no pen of its tiles" in capsys.readouterr().err
    assert run("toy", "--real", "old", "--out", "out", "--min_tissue", "2") == EXIT_BAD_INPUT
    assert "min_tissue = 2: expected 0 to 1" in capsys.readouterr().err
