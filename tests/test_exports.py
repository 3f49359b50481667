"""prepare_data.py export --format webdataset: the convention, the stores' own bytes, nothing lost between shards."""

import json
import re
import tarfile

import numpy as np
import pandas as pd
import pytest

import prepare_data
from common.errors import EXIT_BAD_INPUT, EXIT_DONE, run_command
from datasets.tiles import TileStore, write_store

SLIDES = ("GTEX-AAAA-0625", "TCGA-AA-0001-01Z-00-DX1.7b3f")  # a dot ends a key


@pytest.fixture
def stores(tmp_path):
    rng = np.random.default_rng(0)
    for slide, fmt in zip(SLIDES, ("jpeg", "png"), strict=True):
        tiles = [(32 * i, 7, 0.5, rng.integers(0, 255, (32, 32, 3), np.uint8)) for i in range(7)]
        write_store(tmp_path / "tiles", slide, tiles, mpp=0.5, tile_size=32, fmt=fmt)
    return {slide: TileStore(tmp_path / "tiles" / f"{slide}.json") for slide in SLIDES}


def run(*words):
    return run_command(prepare_data.main, prepare_data.build_parser(), ["export", *map(str, words)])


def samples(shard):
    """Group a shard's members as WebDataset does: the key ends at the first dot of the file's name."""
    found = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, suffix = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name).groups()
            assert key in found or suffix in ("jpg", "png"), "a sample's files follow one another"
            found.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return found


def test_shards_hold_every_tile_once_as_the_store_has_it(stores, tmp_path, capsys):
    words = ("--format", "webdataset", "--tiles", tmp_path / "tiles", "--out", tmp_path / "out", "--shard_size", 4)
    assert run(*words) == EXIT_DONE
    assert "14 tiles of 2 slides in 4 shards" in capsys.readouterr().out
    shards = sorted((tmp_path / "out").glob("shard-*.tar"))
    listed = json.loads((tmp_path / "out" / "shards.json").read_text())
    assert [s["samples"] for s in listed["shards"]] == [4, 4, 4, 2] and listed["samples"] == 14
    assert (
        [s["shard"] for s in listed["shards"]] == [p.name for p in shards] == [f"shard-{i:06d}.tar" for i in range(4)]
    )
    found = {}
    for shard in shards:
        here = samples(shard)
        assert not set(here) & set(found)
        found |= here
    assert len(found) == 14
    for sample in found.values():
        about = json.loads(sample["json"])
        store, index = stores[about["slide"]], about["index"]
        image = sample["png" if about["slide"] == SLIDES[1] else "jpg"]
        assert image == store.read_bytes(index) and len(sample) == 2
        assert (about["x"], about["y"]) == (32 * index, 7) and about["mpp"] == 0.5 and about["tissue"] == 0.5
    assert {json.loads(s["json"])["donor"] for s in found.values()} == {"GTEX-AAAA", "TCGA-AA-0001"}
    assert run(*words) == EXIT_BAD_INPUT
    assert "shard-000000.tar: there already" in capsys.readouterr().err


def test_tiles_without_a_known_place_say_so(tmp_path):
    tiles = [(None, None, None, np.full((32, 32, 3), i, np.uint8)) for i in range(2)]
    write_store(tmp_path / "tiles", "a", tiles, mpp=0.5, tile_size=32, fmt="png")
    assert run("--format", "webdataset", "--tiles", tmp_path / "tiles", "--out", tmp_path / "w") == EXIT_DONE
    (first, second) = samples(tmp_path / "w" / "shard-000000.tar").values()
    about = json.loads(second["json"])
    assert (about["x"], about["y"], about["tissue"], about["index"]) == (None, None, None, 1)
    assert run("--tiles", tmp_path / "tiles" / "a.tar", "--out", tmp_path / "f") == EXIT_DONE
    table = pd.read_csv(tmp_path / "f" / "tiles.csv")
    assert table["file"].tolist() == ["a/00000.png", "a/00001.png"] and table[["x", "y", "tissue"]].isna().all(None)
    assert (tmp_path / "f" / "a" / "00001.png").is_file() and first["png"] != second["png"]


def test_refusals(stores, tmp_path, capsys):
    assert (
        run("--format", "webdataset", "--tiles", tmp_path / "tiles", "--out", "o", "--shard_size", 0) == EXIT_BAD_INPUT
    )
    assert "--shard_size 0: at least 1" in capsys.readouterr().err
    tile = [(0, 0, 1.0, np.zeros((32, 32, 3), np.uint8))]
    write_store(tmp_path / "tiles", "TCGA-AA-0001-01Z-00-DX1_7b3f", tile, mpp=0.5, tile_size=32)
    assert run("--format", "webdataset", "--tiles", tmp_path / "tiles", "--out", tmp_path / "o") == EXIT_BAD_INPUT
    assert "would share the key TCGA-AA-0001-01Z-00-DX1_7b3f" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
