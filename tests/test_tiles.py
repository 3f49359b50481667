"""Tile stores, conversions, tile sets, pictures: round trips, damage, and what each refusal says."""

import errno
import json
import pickle
import tarfile
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import datasets.tiles as tiles_module
from common.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, run_command
from datasets.exports import export_folder, stores_of
from datasets.image_folder import read_image, read_image_folder
from datasets.keys import split_of
from datasets.pictures import write_toy
from datasets.tiles import TileStore, area_resize, open_stores, to_model, to_uint8, write_store
from datasets.tileset import TileSet
from prepare_data import build_parser, main


def noise(n=4, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def make_store(folder, slide="GTEX-A-0125", n=4, side=32, mpp=0.5, fmt="png", **more):
    images = noise(n, side)
    tiles = [(side * i, 7, 0.5 + i / 100, image) for i, image in enumerate(images)]
    return write_store(folder, slide, tiles, mpp=mpp, tile_size=side, fmt=fmt, **more), images


# ---- Conversions ----


def test_pixels_survive_the_networks_numbers():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    numbers = to_model(every)
    assert numbers.shape == (1, 3, 16, 16) and numbers.min() == -1 and numbers.max() == 1
    assert (to_uint8(numbers) == every).all()
    assert to_uint8(torch.full((1, 3, 2, 2), 7.0)).max() == 255


def test_channels_are_red_green_blue():
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert (to_model(red)[0, 0] == 1).all() and (to_model(red)[0, 1:] == -1).all()


@pytest.mark.parametrize("size", [8, 5, 12, 16])
def test_area_resize_is_the_mean_over_the_covered_area(size):
    image = noise(1, 16)[0]
    fine = image.astype(float).repeat(size, 0).repeat(size, 1)  # exact: every output pixel covers 16 x 16 fine ones
    mean = fine.reshape(size, 16, size, 16, 3).mean((1, 3))
    assert np.abs(area_resize(image, size) - mean).max() <= 0.51


def test_enlarging_keeps_a_constant():
    assert (area_resize(np.full((8, 8, 3), 77, np.uint8), (12, 20)) == 77).all()


# ---- Stores ----


def test_writing_a_store_takes_no_more_memory_with_more_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles_module, "ROWS_IN_MEMORY", 1000)
    monkeypatch.setattr(tiles_module, "encode_image", lambda *_: b"x" * 64)
    image, peaks = noise(1, 8)[0], []
    for n in (50, 5000):
        tracemalloc.start()
        try:
            path = write_store(tmp_path, f"s{n}", ((8 * i, 0, 1.0, image) for i in range(n)), mpp=0.5, tile_size=8)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(TileStore(path)) == n
    assert peaks[1] < peaks[0] + 50_000  # ten bytes a tile; a row of it has a hundred
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "tmp"))] == []


def test_store_round_trip(tmp_path):
    path, images = make_store(tmp_path, extra={"note": 1})
    store = TileStore(path)
    store.verify()
    assert len(store) == 4 and store.slide == "GTEX-A-0125" and store.mpp == 0.5 and store.extra == {"note": 1}
    assert all((store.read(i) == images[i]).all() for i in range(4))
    assert store.coords.tolist() == [[0, 7], [32, 7], [64, 7], [96, 7]]
    assert store.tissue.tolist() == pytest.approx([0.5, 0.51, 0.52, 0.53])


def test_jpeg_store_keeps_red_red_and_is_near(tmp_path):
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    store = TileStore(write_store(tmp_path, "s", [(0, 0, 1.0, red)], mpp=0.5, tile_size=32))
    assert np.abs(store.read(0).astype(int) - red).max() < 6


def test_any_tar_tool_reads_a_store(tmp_path):
    path, _ = make_store(tmp_path, slide="TCGA-CR-7395-01A-01-TS1.a-uuid")
    with tarfile.open(path.with_name(path.name.replace(".json", ".tar"))) as tar:
        names = tar.getnames()
        assert names[1] == "TCGA-CR-7395-01A-01-TS1.a-uuid/00001_x32_y7.png"
        assert tar.extractfile(names[1]).read() == TileStore(path).read_bytes(1)


def test_equal_input_gives_equal_bytes(tmp_path):
    one, _ = make_store(tmp_path / "a", fmt="jpeg")
    two, _ = make_store(tmp_path / "b", fmt="jpeg")
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".tar").read_bytes() == two.with_suffix(".tar").read_bytes()


def test_a_store_cut_at_any_block_is_refused_by_name(tmp_path):
    path, _ = make_store(tmp_path)
    tar = path.with_suffix(".tar")
    whole = tar.read_bytes()
    for length in range(0, len(whole), 512):
        tar.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"GTEX-A-0125.tar.*{length} bytes.*cut short.*run prepare_data.py tiles"):
            TileStore(path)


def test_a_store_cut_while_open_is_refused_at_the_read(tmp_path):
    path, _ = make_store(tmp_path)
    store = TileStore(path)
    with open(path.with_suffix(".tar"), "r+b") as file:
        file.truncate(600)
    with pytest.raises(InputError, match=r"tile 3 .* is damaged"):
        store.read(3)


def test_an_open_store_takes_little_memory(tmp_path):
    path, _ = make_store(tmp_path, n=400, side=2)
    TileStore(path)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        store = TileStore(path)
        assert tracemalloc.get_traced_memory()[0] - before < 400 * 90  # 44 a tile, and the store
    finally:
        tracemalloc.stop()
    assert len(store) == 400


def test_every_flipped_byte_of_a_tile_is_named(tmp_path):
    path, _ = make_store(tmp_path, n=2)
    tar = path.with_suffix(".tar")
    whole = tar.read_bytes()
    store = TileStore(path)
    offset, length, _ = store._spans[1]
    for position in range(offset, offset + length, 97):
        tar.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(InputError, match=r"GTEX-A-0125.tar: tile 1 .* damaged"):
            store.read(1)
        store.read(0)


def test_an_altered_description_is_refused(tmp_path):
    path, _ = make_store(tmp_path)
    path.write_text(path.read_text().replace('"mpp": 0.5', '"mpp": 0.25'))
    with pytest.raises(InputError, match="altered or damaged"):
        TileStore(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="not a tile store"):
        TileStore(path)
    for content in (b'{"format": "tile store 1",\n', b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"GTEX-A-0125.json: .*; delete it and run prepare_data.py tiles again$"):
            open_stores(tmp_path)


def test_a_foreign_tar_is_found_by_verify_and_by_the_read(tmp_path):
    path, _ = make_store(tmp_path / "a", fmt="png")
    write_store(
        tmp_path / "b", "GTEX-A-0125", [(0, 0, 1, i) for i in noise(4, seed=1)], mpp=0.5, tile_size=32, fmt="png"
    )
    foreign = bytearray((tmp_path / "b" / "GTEX-A-0125.tar").read_bytes())
    path.with_suffix(".tar").write_bytes(foreign.ljust(path.with_suffix(".tar").stat().st_size, b"\0"))
    with pytest.raises(InputError, match="damaged"):
        TileStore(path).verify()


def test_a_tar_without_its_seal_is_refused(tmp_path):
    path, _ = make_store(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"GTEX-A-0125.tar: no GTEX-A-0125.json beside it: writing was cut short"):
        open_stores(tmp_path)


def test_a_full_disk_leaves_the_earlier_store_and_nothing_half(tmp_path, monkeypatch):
    path, images = make_store(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left", "disk")

    monkeypatch.setattr(tiles_module, "encode_image", full)
    with pytest.raises(OSError):
        make_store(tmp_path, n=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["GTEX-A-0125.json", "GTEX-A-0125.tar"]
    assert (TileStore(path).read(3) == images[3]).all()


def test_the_tar_is_renamed_before_its_seal(tmp_path, monkeypatch):
    renamed = []
    replace = tiles_module.os.replace
    monkeypatch.setattr("common.files.os.replace", lambda a, b: (renamed.append(b.suffix), replace(a, b)))
    make_store(tmp_path)
    assert renamed == [".tar", ".json"]


def test_a_store_survives_pickling(tmp_path):
    path, images = make_store(tmp_path)
    assert (pickle.loads(pickle.dumps(TileStore(path))).read(2) == images[2]).all()


def test_open_stores_by_key_and_other_files_do_not_matter(tmp_path):
    make_store(tmp_path, "GTEX-B-0125")
    make_store(tmp_path, "GTEX-A-0125")
    (tmp_path / "report.csv").write_text("slide\n")
    (tmp_path / "notes.json").write_text("{}")
    assert list(open_stores(tmp_path)) == ["GTEX-A-0125", "GTEX-B-0125"]
    with pytest.raises(InputError, match="no such tile folder"):
        open_stores(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no tile store"):
        open_stores(tmp_path / "empty")


# ---- Tile sets ----


def test_tile_set_numbers_tiles_of_all_slides(tmp_path):
    for slide, n in (("a", 3), ("b", 5)):
        make_store(tmp_path, slide, n)
    tiles = TileSet(open_stores(tmp_path), img_size=16, max_per_slide=4, seed=1)
    assert len(tiles) == 7 and np.bincount(tiles.slide_index).tolist() == [3, 4]
    assert tiles.mpp == 1.0 and tiles.of_slide("b").tolist() == [3, 4, 5, 6]
    expected = area_resize(tiles.stores[1].read(int(tiles.tile_index[5])), 16)
    assert (tiles.read([5, 0])[0] == expected).all() and tiles.read([]).shape == (0, 16, 16, 3)


def test_the_choice_of_tiles_depends_on_seed_and_slide_alone(tmp_path):
    for slide in ("a", "b"):
        make_store(tmp_path, slide, 12)
    stores = open_stores(tmp_path)
    both, alone = TileSet(stores, 8, 5, seed=1), TileSet([stores["b"]], 8, 5, seed=1)
    assert (both.tile_index[5:] == alone.tile_index).all()
    assert (TileSet([stores["b"]], 8, 5, seed=2).tile_index != alone.tile_index).any()


def test_the_cache_gives_the_same_tiles(tmp_path):
    path, _ = make_store(tmp_path)
    plain, cached = (TileSet(open_stores(tmp_path), 16) for _ in range(2))
    cached.keep()
    first = cached.read([2, 1])
    path.with_suffix(".tar").unlink()
    assert (cached.read([2, 1]) == first).all()
    with pytest.raises((InputError, OSError)):
        plain.read([2])


def test_slides_cut_to_different_sizes_are_not_mixed(tmp_path):
    make_store(tmp_path, "a", mpp=0.5)
    make_store(tmp_path, "b", mpp=0.25)
    with pytest.raises(InputError, match=r"b.json: tiles of 8 um, a has 16 um; cut all slides"):
        TileSet(open_stores(tmp_path), 16)


# ---- Pictures ----


def test_pictures_are_read_square_and_damage_is_named(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 5) == 200).all()
    assert read_image(tmp_path / "wide.png").shape == (10, 30, 3)
    Image.fromarray(wide[..., 0]).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").shape == (10, 30, 3)
    whole = (tmp_path / "wide.png").read_bytes()
    for content in (b"", b"<html>", whole[: len(whole) // 2]):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(InputError, match=r"bad.png: not a readable JPEG or PNG"):
            read_image(tmp_path / "bad.png")
    with pytest.raises(InputError, match="no such picture"):
        read_image(tmp_path / "none.png")


def generated_folder(folder, n=3, side=16, **manifest):
    folder.mkdir(parents=True)
    for k, image in enumerate(noise(n, side, seed=5)):
        Image.fromarray(image).save(folder / f"{k:05d}.png")
    Image.fromarray(noise(1, 64)[0]).save(folder / "grid.png")
    if manifest:
        tiles = [{"file": f"{k:05d}.png", "seed": 1, "index": k} for k in range(n)]
        (folder / "manifest.json").write_text(json.dumps({"tiles": tiles, **manifest}))
    return folder


def test_a_manifest_says_which_pictures_are_tiles(tmp_path):
    assert len(read_image_folder(generated_folder(tmp_path / "a", profile="x"))) == 3
    assert len(read_image_folder(generated_folder(tmp_path / "b"))) == 4
    (tmp_path / "a" / "00001.png").unlink()
    with pytest.raises(InputError, match=r"00001.png: missing, though manifest.json lists it"):
        read_image_folder(tmp_path / "a")


def test_a_folder_one_level_too_high_counts_the_tiles_of_its_manifests_alone(tmp_path):
    for patient, n in (("p1", 3), ("p2", 2)):
        folder = generated_folder(tmp_path / "gan_lung" / patient, n, profile=patient)
        Image.fromarray(noise(1, 64)[0]).save(folder / "comparison.png")
        for inside in ("second", "real"):
            generated_folder(folder / inside, 4, profile=patient)
    Image.fromarray(noise(1, 64)[0]).save(tmp_path / "gan_lung" / "epoch_001.png")
    own = [tmp_path / "gan_lung" / f"p{p}" / f"{k:05d}.png" for p, n in ((1, 3), (2, 2)) for k in range(n)]
    assert read_image_folder(tmp_path) == read_image_folder(tmp_path / "gan_lung") == own
    assert len(read_image_folder(own[0].parent / "second")) == 4
    (tmp_path / "png").mkdir()
    Image.fromarray(noise(1)[0]).save(tmp_path / "png" / "a.png")
    (tmp_path / "png" / "manifest.json").write_text('{"name": "of another tool"}')
    assert read_image_folder(tmp_path) == own and len(read_image_folder(tmp_path / "png")) == 1


def test_export_writes_pngs_and_their_coordinates(tmp_path, capsys):
    path, images = make_store(tmp_path / "tiles")
    args = ["export", "--format", "folder", "--tiles", str(tmp_path / "tiles"), "--out", str(tmp_path / "png")]
    assert run_command(main, build_parser(), args) == EXIT_DONE
    table = pd.read_csv(tmp_path / "png" / "tiles.csv")
    assert table["x"].tolist() == [0, 32, 64, 96] and set(table["slide"]) == {"GTEX-A-0125"}
    assert (read_image(tmp_path / "png" / table["file"][2]) == images[2]).all()
    assert len(export_folder(stores_of(path.with_suffix(".tar")), tmp_path / "one")) == 4
    assert run_command(main, build_parser(), ["export", "--tiles", "nowhere", "--out", "x"]) == EXIT_BAD_INPUT
    assert "nowhere: no such tile store or folder; check the path" in capsys.readouterr().err


def test_toy_tables_have_label_and_donor(tmp_path):
    for tissue in ("lung", "brain"):
        make_store(tmp_path / tissue, "GTEX-A-0125", 3)
        make_store(tmp_path / tissue, "GTEX-B-0125", 5)
        generated_folder(tmp_path / f"rna-gan_{tissue}" / "GTEX-C-0125", profile="GTEX-C-0125", donor="GTEX-C")
    generated_folder(tmp_path / "rna-gan_lung" / "GTEX-C-0125" / "real", profile="GTEX-C-0125")  # a comparison
    out = tmp_path / "images_form"
    args = ["toy", "--real", str(tmp_path / "lung"), str(tmp_path / "brain"), "--out", str(out), "--per_class", "4"]
    args += ["--generated", str(tmp_path / "rna-gan_lung"), str(tmp_path / "rna-gan_brain")]
    assert run_command(main, build_parser(), args) == EXIT_DONE
    real, made = (pd.read_csv(out / name) for name in ("real_toy_example.csv", "rna-gan_toy_example.csv"))
    assert list(real) == ["wsi_file_names", "Labels", "group"]
    assert real["Labels"].value_counts().to_dict() == {"lung": 4, "brain": 4}
    assert real.groupby("group").size().to_dict() == {"GTEX-A": 4, "GTEX-B": 4}
    assert made["Labels"].value_counts().to_dict() == {"lung": 3, "brain": 3} and set(made["group"]) == {"GTEX-C"}
    sides = {read_image(out / f).shape for f in [*real["wsi_file_names"], *made["wsi_file_names"]]}
    assert sides == {(16, 16, 3)}  # the generated tiles' side, so that size does not tell them apart
    assert real["wsi_file_names"].is_unique


def test_toy_groups_tiles_by_the_profile_of_each(tmp_path):
    make_store(tmp_path / "lung")
    folder = generated_folder(tmp_path / "rna-gan_lung" / "held_out")
    tiles = [{"file": f"{k:05d}.png", "index": k, "profile": f"GTEX-{'XYX'[k]}-0126"} for k in range(3)]
    manifest = {"made_from": {"profile": None, "split": "test"}, "finished": True, "n": 3, "tiles": tiles}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    made = write_toy([tmp_path / "lung"], [tmp_path / "rna-gan_lung"], tmp_path / "out")["rna-gan_toy_example.csv"]
    assert made.groupby("group").size().to_dict() == {"GTEX-X": 2, "GTEX-Y": 1}


def test_toy_of_a_split_holds_its_donors_alone(tmp_path):
    donors = [f"GTEX-{i:05d}" for i in range(30)]
    for donor in donors:
        make_store(tmp_path / "lung", f"{donor}-0625", 2)
    table = write_toy([tmp_path / "lung"], [], tmp_path / "out", split="test")["real_toy_example.csv"]
    held_out = {d for d in donors if split_of(d, 99) == "test"}
    assert held_out and set(table["group"]) == held_out and len(table) == 2 * len(held_out)
    make_store(tmp_path / "brain", f"{min(held_out)}-3025", 2)
    with pytest.raises(InputError, match=r"--split val: no donor of brain is in it"):
        write_toy([tmp_path / "lung", tmp_path / "brain"], [], tmp_path / "none", split="val")


def test_toy_refuses_tiles_of_no_class(tmp_path):
    make_store(tmp_path / "lung")
    with pytest.raises(InputError, match="which of the classes lung these tiles are"):
        write_toy([tmp_path / "lung"], [generated_folder(tmp_path / "liver")], tmp_path / "out")
