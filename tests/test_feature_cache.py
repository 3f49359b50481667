"""Features kept on disk: equal numbers without the network, a miss for whatever changed, damage survived."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fid
from common.errors import run_command
from models.features import Extractor
from sources import draws, feature_cache
from sources.feature_cache import FeatureCache, cache_folder

OF = {"tiles": "a", "extractor": "b"}


def rows(n=3, dim=4):
    return {k: np.full(dim, k, np.float32) for k in range(n)}


@pytest.fixture
def measure(tmp_path, monkeypatch, capsys):
    """Two folders of pictures; measure() runs fid.py on them, and returns (metrics, tiles that the network saw)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for side in "ab":
        (tmp_path / side).mkdir()
        for i in range(6):
            image = np.clip(rng.normal(90 + 60 * (side == "a"), 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / side / f"{i}.png")
    seen = []
    original = Extractor.__call__

    def counting(self, images):
        seen.append(len(images))
        return original(self, images)

    def call(flags="", cache="cache", a="a"):
        seen.clear()
        line = f"--checkpoint {a} --checkpoint2 b --extractor_side 32 --device cpu --iterations 2 --out out {flags}"
        status = run_command(fid.main, fid.build_parser(), [*line.split(), "--feature_cache", str(cache)])
        text, errors = capsys.readouterr()
        assert status == 0, errors
        return json.loads((tmp_path / "out" / "metrics.json").read_text()), sum(seen) - 1, text  # one tile sets dim

    monkeypatch.setattr(Extractor, "__call__", counting)
    return call


def test_a_second_call_gives_the_same_numbers_without_the_network(measure, tmp_path):
    first, seen, _ = measure()
    assert seen == 12 and len(list((tmp_path / "cache").iterdir())) == 2
    again, seen, text = measure()
    assert seen == 0 and again == first and "A: features of 6 tiles from cache" in text
    (tmp_path / "a").rename(tmp_path / "moved")
    assert measure("--batch_size 2 --seed 3", a="moved")[1] == 0  # neither place, batch nor draw is part of the key


def test_whatever_changes_the_features_is_a_miss(measure, tmp_path):
    first, *_ = measure()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a" / "3.png")
    changed, seen, _ = measure()
    assert seen == 6 and changed["fid"] != first["fid"]
    bf16, seen, _ = measure("--precision bf16")
    assert seen == 12 and bf16["extractor"]["name"].endswith(", bf16")
    assert measure("--extractor_side 48")[1] == 12
    assert measure(cache="none")[1] == 12


def test_other_weights_are_a_miss(measure, tmp_path):
    import torchvision

    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "w.pt")
        assert measure("--extractor resnet18 --weights w.pt")[1] == 12
    assert measure("--extractor resnet18 --weights w.pt")[1] == 0


def test_a_damaged_file_is_written_again(measure, tmp_path):
    first, *_ = measure()
    for damage in (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:-900] + b"x" * 900):
        for path in (tmp_path / "cache").iterdir():
            path.write_bytes(damage(path.read_bytes()))
        again, seen, _ = measure()
        assert seen == 12 and again == first
        assert measure()[1] == 0


def test_a_folder_that_cannot_be_written_is_no_error(measure, tmp_path):
    (tmp_path / "file").write_text("x")
    assert measure(cache=tmp_path / "file")[1] == 12


def test_only_what_is_missing_is_computed(measure):
    assert measure("--sample_size 2 --iterations 1")[1] == 4
    assert measure()[1] == 8


def test_a_flipped_bit_in_a_feature_is_noticed(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.save(OF, rows())
    assert {k: v.tolist() for k, v in cache.load(OF, 4).items()} == {k: v.tolist() for k, v in rows().items()}
    assert cache.load(OF, 5) == {} and cache.load({**OF, "tiles": "c"}, 4) == {}
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[data.index(rows()[2].tobytes())] ^= 1
    path.write_bytes(data)
    assert cache.load(OF, 4) == {}


def test_features_of_older_versions_are_not_used(tmp_path, monkeypatch):
    for number in (1, 2, 3, 4):  # 3: of the plain Inception, equal within rounding only; 4: of another one in bf16
        with monkeypatch.context() as older:
            older.setattr(feature_cache, "FORMAT", f"rna-gan features {number}")
            FeatureCache(tmp_path).save(OF, rows())
            assert len(FeatureCache(tmp_path).load(OF, 4)) == 3
    assert FeatureCache(tmp_path).load(OF, 4) == {}


def test_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    import os

    cache = FeatureCache(tmp_path)
    for i, name in enumerate("abc"):
        cache.save({"tiles": name}, rows())
        os.utime(cache._place({"tiles": name})[0], (i, i))
    size = cache._place({"tiles": "a"})[0].stat().st_size
    assert cache.load({"tiles": "a"}, 4)  # used now
    monkeypatch.setattr(feature_cache, "LIMIT", 3 * size)
    cache.save({"tiles": "d"}, rows())
    assert [bool(cache.load({"tiles": name}, 4)) for name in "abcd"] == [True, False, True, True]


def test_where_features_are_kept(monkeypatch, tmp_path):
    assert cache_folder(None) is None  # the tests' own setting
    monkeypatch.setenv("RNAGAN_FEATURE_CACHE", "elsewhere")
    assert str(cache_folder(None)) == "elsewhere" and cache_folder("none") is None and cache_folder("x").name == "x"
    monkeypatch.delenv("RNAGAN_FEATURE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "rna-gan" / "features"


def test_the_batch_fits_the_free_memory(monkeypatch):
    class Small:
        device, input_side = torch.device("cpu"), 299

    sizes = []
    for free in (1e6, 1e9, 1e12):
        monkeypatch.setattr(draws, "free_memory", lambda free=free: free)
        sizes.append(draws.tiles_at_a_time(Small()))
    assert sizes == [1, 6, draws.MOST_AT_A_TIME["cpu"]]
    monkeypatch.setattr(draws, "free_memory", lambda: 1e9)
    assert draws.tiles_at_a_time(Small(), 598) == 1  # larger tiles, which a generator draws
