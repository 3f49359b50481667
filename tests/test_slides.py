"""Slides to tiles: micrometres per pixel, tissue, quality, damage; on made-up slides whose tissue is known."""

import os
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_SOME_FAILED, InputError, run_command
from datasets.extraction import cut_slide
from datasets.image_folder import read_image
from datasets.job import Job, TileSettings
from datasets.quality import judge, sharpness
from datasets.slides import Slide, find_slides, read_mpp_table, resolve_mpp
from datasets.tiles import TileStore, open_stores
from datasets.tissue import (
    _remove_small,
    glass_colour,
    otsu_threshold,
    spread_order,
    stain_strength,
    stained,
    tile_grid,
    tissue_fractions,
    tissue_mask,
)
from preparation import tiles
from prepare_data import build_parser, main

GLASS, WHITE = (243, 242, 244), np.array([255, 255, 255], np.float32)


def tissue(height, width, seed=0):
    """Pink stroma with dark nuclei-like grains."""
    random = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(random.standard_normal((height, width)), 1.2)
    image = np.empty((height, width, 3))
    image[:] = (214, 150, 190)
    image[grain > 0.25] = (90, 60, 140)
    return np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def half_slide(side=512):
    """Tissue on the left half, glass on the right."""
    image = np.full((side, side, 3), GLASS, np.uint8)
    image[:, : side // 2] = tissue(side, side // 2)
    return image


def write_svs(path, image, mpp=0.5, words="AppMag = 20"):
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = f"|{words}" + (f"|MPP = {mpp}" if mpp else "")
    with tifffile.TiffWriter(path) as file:
        file.write(
            image,
            description=f"Aperio Image Library v11.2.1 \r\n{image.shape[1]}x{image.shape[0]} JPEG/RGB Q=95{stated}",
            tile=(256, 256),
            compression="jpeg",
            compressionargs={"level": 95},
            photometric="rgb",
            metadata=None,
        )
    return path


SMALL = ["--workers", "0", "--tile_size", "64", "--max_tiles", "12"]


def run_tiles(*words):
    return run_command(main, build_parser(), ["tiles", *map(str, words)])


# ---- Micrometres per pixel ----


@pytest.mark.parametrize(("mpp", "side"), [(0.5, 64), (0.25, 128), (0.4, 80), (0.499, 64)])
def test_tiles_of_all_slides_show_the_same_micrometres(tmp_path, mpp, side):
    with Slide(write_svs(tmp_path / "a.svs", half_slide(), mpp)) as slide:
        scale = slide.scale_for(slide.own_mpp, 0.5, 64)
        assert scale.side == side and scale.mpp * 64 == pytest.approx(32, rel=0.01)
        assert slide.read_tile(0, 0, scale, 64).shape == (64, 64, 3)


def test_a_nominal_magnification_is_not_taken_for_mpp(tmp_path):
    with Slide(write_svs(tmp_path / "a.svs", half_slide(), mpp=None, words="AppMag = 40")) as slide:
        assert slide.own_mpp is None
        with pytest.raises(
            InputError, match=r"a.svs: the file states no mpp; give --slide_mpp X .* or --mpp_table CSV"
        ):
            resolve_mpp(slide, None, None)
        assert resolve_mpp(slide, None, 0.25) == (0.25, "flag")
        assert resolve_mpp(slide, 0.3, 0.25) == (0.3, "table")


@pytest.mark.parametrize("mpp", [352.8, 0.001])
def test_an_absurd_mpp_is_refused(tmp_path, mpp):
    with Slide(write_svs(tmp_path / "a.svs", half_slide(), mpp)) as slide, pytest.raises(InputError, match="cannot be"):
        resolve_mpp(slide, None, None)


def test_the_files_mpp_wins_over_the_flag_and_the_table_over_both(tmp_path):
    with Slide(write_svs(tmp_path / "a.svs", half_slide(), 0.5)) as slide:
        assert resolve_mpp(slide, None, 0.25) == (0.5, "file")
        assert resolve_mpp(slide, 0.4, 0.25) == (0.4, "table")
        with pytest.raises(InputError, match=r"too coarse for --mpp 0\.25"):
            slide.scale_for(0.5, 0.25, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,mpp\na,0.5\n", r"columns slide and mpp were expected, found name, mpp"),
        ("slide,mpp\na.svs,0.5\nb.svs,20x\n", r"row 3, column mpp: '20x' is no number"),
        ("slide,mpp\na.svs,40\n", r"row 2, column mpp: 40; expected micrometres per pixel, 0.05 to 10"),
        ("slide,mpp\na.svs,0.5\na,0.5\n", r"row 3, column slide: a stands there twice"),
        ("", r"not a readable CSV"),
    ],
)
def test_a_faulty_mpp_table_is_named(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_mpp_table(tmp_path / "m.csv")


def test_an_mpp_table_is_read_with_either_separator(tmp_path):
    for text in ("slide,mpp\na.svs,0.5\nb,0.25\n", "﻿wsi_file_name;mpp\na.svs;0.5\nb;0.25\n"):
        (tmp_path / "m.csv").write_text(text, encoding="utf-8")
        assert read_mpp_table(tmp_path / "m.csv") == {"a": 0.5, "b": 0.25}


# ---- Tissue and quality ----


def tissue_of(image, mpp=8.0):
    return tissue_mask(stained(image, glass_colour(image)), mpp)


def test_the_mask_is_the_tissue():
    image = np.full((120, 120, 3), GLASS, np.uint8)
    image[20:80, 30:90] = tissue(60, 60)
    image[40:50, 50:60] = GLASS  # a lumen of 80 um: part of the tissue
    image[100:102, 100:102] = (200, 120, 170)  # a crumb
    image[90:118, 5:25] = 20  # black, without stain
    mask = tissue_of(image)
    true = np.zeros((120, 120), bool)
    true[20:80, 30:90] = True
    assert (mask ^ true).mean() < 0.02 and mask[45, 55] and not mask[101, 101] and not mask[100, 10]


@pytest.mark.parametrize("colour", [GLASS, (255, 255, 255), (0, 0, 0), (128, 128, 128), (236, 232, 225)])
def test_blank_slides_have_no_tissue(colour):
    noise = np.random.default_rng(0).normal(0, 2, (80, 80, 3))
    image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    assert tissue_of(image).mean() < 0.01


def test_a_slide_full_of_tissue_is_all_tissue():
    assert tissue_of(tissue(80, 80)).mean() > 0.99


def test_a_mask_made_in_bands_is_that_of_the_whole(monkeypatch):
    image = np.full((300, 310, 3), GLASS, np.uint8)
    image[20:280, 30:290] = tissue(260, 260)
    image[100:180, 50:90] = np.random.default_rng(1).integers(200, 256, (80, 40, 3))
    low, high = image.min(-1), image.max(-1)
    white = np.median(image[(low > 205) & (high - low < 24)], axis=0)
    monkeypatch.setattr("datasets.tissue.BAND", 310 * 7)
    assert np.array_equal(glass_colour(image), white.astype(np.float32))
    smooth = ndimage.gaussian_filter(stain_strength(image, white), 1.0)
    threshold = np.clip(otsu_threshold(*np.histogram(smooth, 128)), 0.05, 0.10)
    assert np.array_equal(stained(image, white), smooth > threshold) and 0 < (smooth > threshold).mean() < 1
    mask = tissue_of(image)
    monkeypatch.undo()
    assert np.array_equal(mask, tissue_of(image))


def test_a_mask_of_noise_has_more_pieces_than_two_bytes_count():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True
    mask[301:330, 301:330] = True
    pieces, n = ndimage.label(mask)
    assert n > 2**16
    expected = (np.bincount(pieces.ravel()) >= 16)[pieces] & mask
    _remove_small(mask, 16)
    assert np.array_equal(mask, expected) and 800 < mask.sum() < 1000


def test_the_mask_takes_few_bytes_a_pixel():
    image = np.tile(tissue(256, 256), (12, 12, 1))
    image[400:900] = GLASS
    white, n = glass_colour(image), image[..., 0].size
    tracemalloc.start()
    try:
        rough = stained(image, white)
        tracemalloc.reset_peak()
        tissue_mask(rough, 8.0)
        clean = tracemalloc.get_traced_memory()[1] / n
        del rough
        tracemalloc.reset_peak()
        stained(image, white)
        found = tracemalloc.get_traced_memory()[1] / n
    finally:
        tracemalloc.stop()
    bands = 40 * 2**18 / n  # what is made of a band on the way
    assert found < 2 + bands and clean < 6 + bands  # a float32 array alone is 4


def test_a_speckled_mask_takes_no_more_for_each_piece():
    mask = np.random.default_rng(0).random((2048, 2048)) < 0.05
    tracemalloc.start()
    try:
        tissue_mask(mask, 8.0)
        assert tracemalloc.get_traced_memory()[1] / mask.size < 14  # 17 with a count of all pieces for each band
    finally:
        tracemalloc.stop()


def test_fractions_are_the_masks_mean_over_each_tile():
    mask = np.zeros((16, 32), bool)
    mask[:, :12] = True
    corners = tile_grid((320, 160), 80.0)
    assert corners.tolist()[:4] == [[0, 0], [80, 0], [160, 0], [240, 0]] and len(corners) == 8
    assert tissue_fractions(mask, corners, 80.0, 10.0).tolist() == [1, 0.5, 0, 0] * 2


def test_the_grid_begins_at_the_corner_and_stays_inside():
    corners = tile_grid((1000, 530), 256.5)
    assert corners.max(0).tolist() == [513, 256] and corners.min(0).tolist() == [0, 0]
    assert len(tile_grid((100, 1000), 256.5)) == 0


@pytest.mark.parametrize("n", [16, 37])
def test_every_beginning_of_the_order_is_spread(n):
    corners = np.stack(np.meshgrid(np.arange(40), np.arange(40)), -1).reshape(-1, 2) * 10
    order = spread_order(corners, 10.0)
    assert sorted(order.tolist()) == list(range(1600))
    quarters = np.bincount((corners[order[:n]] // 200) @ [1, 2], minlength=4)
    assert quarters.min() >= n // 4 - 1


def fault_of(image, min_sharpness=0.15, max_pen=0.05):
    return judge(image, WHITE, min_sharpness, max_pen)[0]


def test_unfit_tiles_are_named():
    good = tissue(128, 128)
    assert fault_of(good) is None
    half = good.copy()
    half[64:] = 128  # what a JPEG decoder leaves of a cut file
    blurred = ndimage.gaussian_filter(good, (4, 4, 0))
    assert fault_of(half) == "damaged"
    assert fault_of(np.zeros_like(good)) == "damaged"
    assert fault_of(np.full_like(good, 244)) == "blank"
    assert fault_of(blurred) == "blurred" and fault_of(blurred, min_sharpness=0) is None
    lumen = good.copy()
    lumen[:100] = 250  # pure white is glass or lumen, not damage
    assert fault_of(lumen) is None
    assert sharpness(good) > 2 * sharpness(blurred)


@pytest.mark.parametrize("ink", [(40, 60, 150), (0, 100, 60), (30, 50, 120)])
def test_a_pens_mark_is_named_and_tissue_is_none(ink, data_folder):
    marked = tissue(128, 128)
    marked[:, 40:60] = np.clip(np.array(ink) + np.random.default_rng(0).normal(0, 6, (128, 20, 3)), 0, 255)
    fault, scores = judge(marked, WHITE, 0.15, 0.05)
    assert fault == "pen" and scores["pen"] == pytest.approx(20 / 128, abs=0.03)
    assert fault_of(marked, max_pen=1) is None
    for path in sorted((data_folder / "tiles").glob("*/*"))[::40]:  # lung, lung cancer, glioma
        assert judge(read_image(path), WHITE, 0, 0.05)[1]["pen"] < 0.01, path


# ---- The command ----


def test_tiles_come_from_the_tissue_with_report_and_preview(tmp_path, capsys):
    write_svs(tmp_path / "slides" / "GTEX-A-0125.svs", half_slide())
    out = tmp_path / "tiles"
    assert run_tiles("--slides", tmp_path / "slides", "--out", out, *SMALL) == EXIT_DONE
    store = open_stores(out)["GTEX-A-0125"]
    assert len(store) == 12 and store.tile_size == 64 and store.mpp == 0.5
    assert (store.coords[:, 0] + 64 <= 256 + 8).all() and (store.tissue > 0.8).all()
    image = half_slide()
    for i in (0, 11):
        x, y = store.coords[i]
        assert np.abs(store.read(i).astype(int) - image[y : y + 64, x : x + 64]).mean() < 12  # JPEG twice
    report = pd.read_csv(out / "report.csv")
    assert report.loc[0, ["slide", "status", "tiles", "mpp"]].tolist() == ["GTEX-A-0125", "cut", 12, 0.5]
    assert (out / "previews" / "GTEX-A-0125.png").stat().st_size > 1000
    assert "12 tiles of 1 slides; 0 failed" in capsys.readouterr().out


def test_a_slide_that_fails_costs_itself(tmp_path, capsys):
    slides, out = tmp_path / "slides", tmp_path / "tiles"
    good = write_svs(slides / "good.svs", half_slide()).read_bytes()
    write_svs(slides / "nompp.svs", half_slide(), mpp=None)
    write_svs(slides / "blank.svs", np.full((512, 512, 3), GLASS, np.uint8))
    (slides / "empty.svs").write_bytes(b"")
    (slides / "page.svs").write_text("<html>404</html>")
    (slides / "cut.svs").write_bytes(good[: len(good) // 2])
    assert run_tiles("--slides", slides, "--out", out, *SMALL) == EXIT_SOME_FAILED
    report = pd.read_csv(out / "report.csv", index_col="slide")
    assert report["status"].to_dict() == dict.fromkeys(("blank", "cut", "empty", "nompp", "page"), "failed") | {
        "good": "cut"
    }
    for slide, words in {
        "blank": "no tissue",
        "cut": "OpenSlide cannot read it",
        "empty": "the file is empty",
        "nompp": "--slide_mpp X",
        "page": "a web page",
    }.items():
        assert words in report.loc[slide, "reason"] and f"{slide}.svs" in report.loc[slide, "reason"]
    assert list(open_stores(out)) == ["good"] and not list(out.rglob(".*"))
    assert capsys.readouterr().err.count("warning: ") == 5


def test_when_all_slides_fail_the_input_is_bad(tmp_path, capsys):
    slides = tmp_path / "slides"
    write_svs(slides / "nompp.svs", half_slide(), mpp=None)
    assert run_tiles("--slides", slides, "--out", tmp_path / "tiles", *SMALL) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nompp.svs" in error and "--slide_mpp" in error and "--mpp_table" in error
    assert run_tiles("--slides", slides, "--out", tmp_path / "tiles", *SMALL, "--slide_mpp", 0.5) == EXIT_DONE
    (tmp_path / "m.csv").write_text("slide,mpp\nnompp.svs,0.25\n")
    table = ["--mpp_table", tmp_path / "m.csv"]
    assert run_tiles("--slides", slides, "--out", tmp_path / "tiles2", *SMALL, *table) == EXIT_DONE
    assert pd.read_csv(tmp_path / "tiles2" / "report.csv").loc[0, ["mpp", "mpp_source"]].tolist() == [0.25, "table"]


def test_a_part_that_cannot_be_read_costs_its_tiles(tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue(1024, 1024))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        for k in (0, 1):  # two of the sixteen JPEG tiles
            offset, length = file.pages[0].dataoffsets[k], file.pages[0].databytecounts[k]
            data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    outcome = cut_slide(Job(path, tmp_path / "tiles", TileSettings(tile_size=64, max_tiles=0)))
    assert outcome.status == "cut" and outcome.unreadable > 0 and "unreadable" in outcome.reason
    store = TileStore(tmp_path / "tiles" / "a")
    assert 200 <= len(store) <= 224
    assert not ((store.coords[:, 0] + 32 < 512) & (store.coords[:, 1] + 32 < 256)).any()


def test_finished_slides_are_kept_and_other_settings_refused(tmp_path, capsys):
    write_svs(tmp_path / "slides" / "a.svs", half_slide())
    line = ["--slides", tmp_path / "slides", "--out", tmp_path / "tiles", *SMALL, "--max_tiles"]
    assert run_tiles(*line, 6) == EXIT_DONE
    before = (tmp_path / "tiles" / "a.tar").stat().st_mtime_ns
    assert run_tiles(*line, 6) == EXIT_DONE
    assert (tmp_path / "tiles" / "a.tar").stat().st_mtime_ns == before
    assert pd.read_csv(tmp_path / "tiles" / "report.csv").loc[0, ["status", "tiles"]].tolist() == ["kept", 6]
    assert run_tiles(*line, 7) == EXIT_BAD_INPUT
    assert "a.json: cut with other settings: max_tiles (6 there, 7 now)" in capsys.readouterr().err
    assert run_tiles(*line, 7, "--restart") == EXIT_DONE
    with open(tmp_path / "tiles" / "a.tar", "r+b") as file:
        file.truncate(1000)  # cut short: queued again
    assert run_tiles(*line, 7) == EXIT_DONE
    open_stores(tmp_path / "tiles")["a"].verify()


def test_a_slide_that_was_changed_is_cut_again(tmp_path):
    slide = write_svs(tmp_path / "slides" / "a.svs", half_slide())
    line = ["--slides", slide, "--out", tmp_path / "tiles", *SMALL]

    def status():
        assert run_tiles(*line) == EXIT_DONE
        return pd.read_csv(tmp_path / "tiles" / "report.csv").loc[0, "status"]

    assert [status(), status()] == ["cut", "kept"]
    os.utime(slide, (1e9, 1e9))  # other content of the same size
    assert [status(), status()] == ["cut", "kept"]


@pytest.mark.parametrize("way", ["--slide_mpp", "--mpp_table"])
def test_an_mpp_that_is_no_longer_given_is_another_setting(tmp_path, capsys, way):
    write_svs(tmp_path / "slides" / "a.svs", half_slide(), mpp=None)
    (tmp_path / "m.csv").write_text("slide,mpp\na.svs,0.5\n")
    line = ["--slides", tmp_path / "slides", "--out", tmp_path / "tiles", *SMALL]
    given = [way, 0.5 if way == "--slide_mpp" else tmp_path / "m.csv"]
    assert run_tiles(*line, *given) == run_tiles(*line, *given) == EXIT_DONE
    assert run_tiles(*line) == EXIT_BAD_INPUT
    assert f"a.json: cut with other settings: mpp of the slide (0.5 there from {way}, not" in capsys.readouterr().err


def test_a_slide_that_fails_when_cut_again_loses_its_store(tmp_path):
    slides, out = tmp_path / "slides", tmp_path / "tiles"
    for name in ("a", "b"):
        write_svs(slides / f"{name}.svs", half_slide())
    line = ["--slides", slides, "--out", out, *SMALL]
    assert run_tiles(*line) == EXIT_DONE and sorted(open_stores(out)) == ["a", "b"]
    (slides / "a.svs").write_bytes((slides / "a.svs").read_bytes()[:5000])
    assert run_tiles(*line) == EXIT_SOME_FAILED and sorted(open_stores(out)) == ["b"]
    reason = pd.read_csv(out / "report.csv", index_col="slide").loc["a", "reason"]
    assert reason.endswith("its earlier tiles were set aside as a.json.old, a.tar.old")
    assert (out / "a.tar.old").exists() and not (out / "a.tar").exists()


def test_slides_of_one_name_and_empty_folders_are_refused(tmp_path):
    for folder in "xy":
        write_svs(tmp_path / folder / "a.svs", half_slide())
    with pytest.raises(InputError, match="two slides with one name"):
        find_slides(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no slide in it; expected files that end in .*\.svs"):
        find_slides(tmp_path / "none")
    with pytest.raises(InputError, match="no such folder of slides"):
        find_slides(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "words",
    [
        ("--mpp", 0),
        ("--tile_size", 1),
        ("--min_tissue", 2),
        ("--slide_mpp", -1),
        ("--workers", -1),  # was waited for without end
        ("--slide_timeout", -5),
        ("--slide_timeout", "nan"),
        ("--slide_timeout", 5, "--workers", 0),
        ("--memory_limit", "lots"),
        ("--memory_limit", "1GB", "--workers", 0),
        ("--workers", 2, "--scheduler", "tcp://127.0.0.1:1"),
    ],
)
def test_settings_that_cannot_be_are_refused_first(tmp_path, capsys, words):
    assert run_tiles("--slides", tmp_path / "nowhere", "--out", tmp_path, *words) == EXIT_BAD_INPUT
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("deeper", ["", "tiles"])
def test_an_output_that_is_a_file_is_one_line_before_any_slide(tmp_path, capsys, monkeypatch, deeper):
    write_svs(tmp_path / "slides" / "a.svs", half_slide())
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(tiles, "cut_slides", None)
    assert run_tiles("--slides", tmp_path / "slides", "--out", tmp_path / "out" / deeper) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path}/out" in error and "a file stands in its place" in error


# ---- Real slides ----


def test_real_slides(data_folder, tmp_path, capsys):
    slides, out = data_folder / "wsi", tmp_path / "tiles"
    assert run_tiles("--slides", slides, "--out", out, "--max_tiles", "10", "--workers", "0") == EXIT_SOME_FAILED
    report = pd.read_csv(out / "report.csv", index_col="slide")
    assert report["tiles"].to_dict() == {
        "CMU-1-Small-Region": 10,
        "TCGA-CR-7395-01A-01-TS1": 0,
        "openslide_boxes": 0,
        "openslide_small": 0,
    }
    tcga = report.loc["TCGA-CR-7395-01A-01-TS1", "reason"]
    assert "--slide_mpp" in tcga and "--mpp_table" in tcga
    assert "352.858 um per pixel, which cannot be true" in report.loc["openslide_boxes", "reason"]
    assert "smaller than one tile" in report.loc["openslide_small", "reason"]
    assert report.loc["CMU-1-Small-Region", "mpp"] == 0.499 and report.loc["CMU-1-Small-Region", "tissue"] > 0.25


@pytest.mark.parametrize("way", ["flag", "table"])
def test_the_real_slide_without_mpp_works_with_each_way(data_folder, tmp_path, way):
    slide = data_folder / "wsi" / "TCGA-CR-7395-01A-01-TS1.svs"
    (tmp_path / "m.csv").write_text(f"slide,mpp\n{slide.name},0.25\n")
    words = ["--slide_mpp", 0.25] if way == "flag" else ["--mpp_table", tmp_path / "m.csv"]
    assert run_tiles("--slides", slide, "--out", tmp_path / "t", "--max_tiles", 8, "--workers", 0, *words) == EXIT_DONE
    store = open_stores(tmp_path / "t")[slide.stem]
    assert len(store) == 8 and store.mpp == pytest.approx(0.5, rel=0.01)
    images = np.stack([store.read(i) for i in range(8)])
    assert (images[..., 0].mean() > images[..., 1].mean() + 20) and images.std() > 20  # pink, red stays red
