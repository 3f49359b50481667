"""Inside one slide: direct decoding, the published criteria from end to end, damage, scores kept with the tiles."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from test_slides import GLASS, tissue

from common.errors import InputError
from datasets import published_criteria
from datasets.extraction import cut_slide
from datasets.job import Job, TileSettings, finished
from datasets.slides import Slide
from datasets.tiles import TileStore, _seal, area_resize, write_store
from datasets.tileset import TileLimits, TileSet

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))  # last: it has a fid.py too
import published_tiles as published


def field(height, width, seed=0):
    """Glass with a piece of tissue whose stain varies, and a black corner."""
    image = np.full((height, width, 3), GLASS, np.uint8)
    piece = tissue(height * 3 // 4, width * 2 // 3, seed)
    fading = np.linspace(0, 1, piece.shape[1])[None, :, None]
    image[: piece.shape[0], : piece.shape[1]] = piece * (1 - 0.8 * fading) + 240 * 0.8 * fading
    image[-40:, -40:] = 0
    return image


def write_svs(path, image, mpp=0.5, power=20, tile=256, levels=(), compression="jpeg", subsampling=(2, 2), rgb=False):
    """An Aperio slide; `levels`: how many times smaller each further one is; `rgb`: JPEGs without YCbCr."""
    stated = f"|AppMag = {power}" if power else ""
    options = {"compression": compression, "photometric": "rgb", "metadata": None, "tile": (tile, tile)}
    if compression == "jpeg":
        options |= {"compressionargs": {"level": 85} | ({"outcolorspace": "rgb"} if rgb else {})}
        options |= {} if rgb else {"subsampling": subsampling}
    head = "Aperio Image Library v11.2.1 \r\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        file.write(image, description=f"{head}{image.shape[1]}x{image.shape[0]}{stated}|MPP = {mpp}", **options)
        for factor in levels:
            small = area_resize(image, tuple(side // factor for side in image.shape[:2]))
            file.write(small, description=f"{head}{small.shape[1]}x{small.shape[0]}", **options)
    return path


@pytest.mark.parametrize("width", [97, 101, 333, 1201])
def test_the_parts_that_an_overview_is_read_in_move_no_pixel(tmp_path, monkeypatch, width):
    image = np.random.default_rng(3).integers(0, 256, (1003, 1201, 3), np.uint8)  # noise: half a pixel off shows
    with Slide(write_svs(tmp_path / "odd.svs", image, tile=240, levels=(4,))) as slide:
        monkeypatch.setattr(slide._handle, "read_region", None)  # not asked: all is direct
        whole, _ = slide.overview(width)
        for largest in (512, 100, 64):
            monkeypatch.setattr("datasets.slides.LARGEST_READ", largest)
            parts, unreadable = slide.overview(width)
            difference = np.abs(parts.astype(int) - whole)
            assert not unreadable and difference.mean() < 0.2  # 20 and more


def test_parts_that_openslide_reads_are_in_their_places(tmp_path, monkeypatch):
    image = np.zeros((1003, 1201, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = np.linspace(0, 255, 1201), np.linspace(0, 255, 1003)[:, None]
    with Slide(write_svs(tmp_path / "odd.svs", image, levels=(4,), compression="lzw")) as slide:
        assert slide.reader != "direct"
        whole, _ = slide.overview(101)
        monkeypatch.setattr("datasets.slides.LARGEST_READ", 64)
        parts, _ = slide.overview(101)
        assert np.abs(parts.astype(int) - whole).max() <= 1 and whole[..., 0].max() > 250 and whole[..., 1].max() > 250


def test_a_store_that_was_cut_with_a_finer_mask_is_not_mixed(tmp_path, monkeypatch):
    path = write_svs(tmp_path / "s.svs", field(900, 900))
    (tmp_path / "out").mkdir()
    job = Job(path, tmp_path / "out", TileSettings(tile_size=128))
    assert 4 <= cut_slide(job).mask_mpp < 4.1 and finished(job).status == "kept"
    sealed = tmp_path / "out" / "s.json"
    content = json.loads(sealed.read_text())
    del content["seal"], content["extra"]["outcome"]["mask_mpp"]
    sealed.write_text(json.dumps(content | {"seal": _seal(content)}))
    assert finished(job).status == "kept"  # so small that the bound changes nothing
    monkeypatch.setattr("datasets.job.MASK_PIXELS", 5000)
    with pytest.raises(InputError, match=r"cut with other settings: a finer tissue mask there.*--restart"):
        finished(job)


def spans_of(path, level=0):
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        return list(zip(page.dataoffsets, page.databytecounts, strict=True))


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def cut(path, out, **settings):
    settings = {"tile_size": 64, "max_tiles": 0, "min_sharpness": None} | settings
    return cut_slide(Job(path, out, TileSettings(**settings)))


# ---- Direct decoding ----


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": (1, 1)},
        {"subsampling": (2, 1), "tile": 240},
        {"subsampling": (2, 2), "tile": 128, "levels": (4, 16)},
        {"rgb": True, "levels": (3,)},
    ],
)
def test_pixels_are_openslides(tmp_path, options):
    path = write_svs(tmp_path / "a.svs", field(533, 700), **options)
    random = np.random.default_rng(0)
    with Slide(path) as slide, openslide.OpenSlide(path) as handle:
        assert slide.reader == "direct"
        for level, (width, height) in enumerate(slide.level_sizes):
            for _ in range(25):
                x, y = (int(random.integers(-80, side)) for side in slide.size)
                size = int(random.integers(1, width + 90)), int(random.integers(1, height + 90))
                theirs = np.asarray(handle.read_region((x, y), level, size).convert("RGB"))
                assert np.array_equal(slide.read_region(x, y, level, size, outside=0), theirs)


def test_the_real_slides_pixels_are_openslides(data_folder):
    path = data_folder / "wsi" / "CMU-1-Small-Region.svs"  # tables shared between tiles, JPEGs in RGB, 240 px
    with Slide(path) as slide, openslide.OpenSlide(path) as handle:
        assert slide.reader == "direct"
        whole = np.asarray(handle.read_region((0, 0), 0, slide.size).convert("RGB"))
        assert np.array_equal(slide.read_region(0, 0, 0, slide.size), whole)
    with Slide(data_folder / "wsi" / "TCGA-CR-7395-01A-01-TS1.svs") as slide:
        assert slide.reader == "OpenSlide: its tiles are APERIO_JP2000_RGB, RGB"


def test_what_is_out_of_the_ordinary_is_left_to_openslide_and_said(tmp_path):
    path = write_svs(tmp_path / "a.svs", field(300, 300), compression="lzw")
    assert cut(path, tmp_path / "t").reader == "OpenSlide: its tiles are LZW, RGB"
    with Slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, (300, 300)), field(300, 300))


def test_a_difference_from_openslide_is_noticed(tmp_path, monkeypatch):
    import imagecodecs

    path = write_svs(tmp_path / "a.svs", field(300, 300))
    honest = imagecodecs.jpeg8_decode
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", lambda *a, out, **k: np.bitwise_xor(honest(*a, **k), 1, out=out))
    with Slide(path) as slide:
        assert slide.reader == "OpenSlide: level 0 decoded directly differs from what OpenSlide reads"


# ---- The published criteria ----


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (533, 700, {}),
        (701, 640, {"tile": 240, "subsampling": (2, 1)}),
        (1024, 1030, {"levels": (4,)}),
        (900, 1100, {"power": 40, "mpp": 0.25, "levels": (4, 8), "rgb": True}),
        (533, 700, {"power": None, "compression": "lzw", "levels": (3,)}),
    ],
)
def test_published_criteria_keep_the_published_tiles(tmp_path, monkeypatch, height, width, options):
    monkeypatch.setattr(published_criteria, "STRIP_PIXELS", 20_000)  # several strips
    path = write_svs(tmp_path / "a.svs", field(height, width), **options)
    with openslide.OpenSlide(path) as handle:
        mask = published.mask_of(handle)
        theirs = list(published.patches(handle, mask, 64, 30))
    with Slide(path) as slide:
        strips = published_criteria.slide_mask(slide.read_rows, slide.level_sizes[-1], slide.rows_at_a_time)
        assert np.array_equal(np.concatenate([part for _, part in strips]), mask) and 0.05 < mask.mean() < 0.95
    outcome = cut(path, tmp_path / "t", criteria="published", max_tiles=30, fmt="png")
    store = TileStore(tmp_path / "t" / "a")
    assert store.coords.tolist() == [[x, y] for x, y, _ in theirs] and len(theirs) > 8
    assert all(np.array_equal(store.read(i), np.array(picture)) for i, (_, _, picture) in enumerate(theirs))
    assert outcome.tiles == len(theirs) and store.mpp == 0.5 and (store.tissue > 0.2).all()


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_published_criteria_keep_the_published_tiles_of_real_slides(data_folder, tmp_path, name):
    path = data_folder / "wsi" / name
    with openslide.OpenSlide(path) as handle:
        mask = published.mask_of(handle)
        theirs = list(published.patches(handle, mask, 128, 15))
    with Slide(path) as slide:
        strips = published_criteria.slide_mask(slide.read_rows, slide.level_sizes[-1], slide.rows_at_a_time)
        assert np.array_equal(np.concatenate([part for _, part in strips]), mask)
    settings = TileSettings(criteria="published", tile_size=128, max_tiles=15, fmt="png")
    assert cut_slide(Job(path, tmp_path, settings, mpp_from_flag=0.5)).status == "cut"
    store = TileStore(tmp_path / path.stem)
    assert store.coords.tolist() == [[x, y] for x, y, _ in theirs] and len(theirs) == 15
    assert all(np.array_equal(store.read(i), np.array(picture)) for i, (_, _, picture) in enumerate(theirs))


def test_a_magnification_that_contradicts_the_mpp_is_refused(tmp_path):
    path = write_svs(tmp_path / "a.svs", field(600, 600), mpp=0.25, power=None)
    reason = cut(path, tmp_path / "t", criteria="published").reason
    assert "states no magnification, taken as 20, with 0.25 um per pixel" in reason and "--criteria default" in reason
    assert cut(path, tmp_path / "t").status == "cut"
    with pytest.raises(InputError, match="published criteria do not ask for sharpness"):
        TileSettings(criteria="published", min_sharpness=0.2).check()


# ---- Faults ----


def test_a_slide_with_too_many_unreadable_tiles_is_given_up(tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue(1024, 1024), levels=(4,))
    for offset, length in spans_of(path)[:10]:
        overwrite(path, offset, bytes(length))
    outcome = cut(path, tmp_path / "t")
    assert outcome.status == "failed" and "tiles are unreadable" in outcome.reason and outcome.unreadable > 64
    assert not (tmp_path / "t" / "a.json").exists()


@pytest.mark.parametrize("end", [0, 2])
def test_a_half_zeroed_jpeg_that_reads_without_error_is_caught_by_its_pixels(tmp_path, end):
    path = write_svs(tmp_path / "a.svs", tissue(512, 512), levels=(2,))
    offset, length = spans_of(path)[3]
    overwrite(path, offset + length // 3, bytes(length - length // 3 - end))  # with or without the mark of its end
    with openslide.OpenSlide(path) as handle, Slide(path) as slide:
        theirs = np.asarray(handle.read_region((256, 256), 0, (256, 256)).convert("RGB"))  # no error here either
        assert np.array_equal(slide.read_region(256, 256, 0, (256, 256)), theirs) and theirs[100:].std() > 20
    outcome = cut(path, tmp_path / "t")
    assert outcome.status == "cut" and outcome.damaged in (11, 12, 13) and outcome.unreadable == 0
    coords = TileStore(tmp_path / "t" / "a").coords
    assert not (coords >= [256, 384]).all(1).any() and len(coords) == 64 - outcome.damaged


def test_a_jpeg_that_ends_early_costs_its_tiles(tmp_path):
    path = write_svs(tmp_path / "a.svs", tissue(512, 512), levels=(2,))
    offset, length = spans_of(path)[3]
    overwrite(path, offset + length // 3, b"\xff\xd9" + bytes(length - length // 3 - 2))
    outcome = cut(path, tmp_path / "t")
    assert outcome.status == "cut" and outcome.unreadable == 16 and outcome.reader == "direct"
    coords = TileStore(tmp_path / "t" / "a").coords
    assert not (coords >= 256).all(1).any() and len(coords) == 48  # the handle was opened again


def test_40x_among_20x_shows_the_same_micrometres(tmp_path):
    fine = tissue(1024, 1024)
    stores = []
    for name, image, mpp, power in (("a", area_resize(fine, 512), 0.5, 20), ("b", fine, 0.25, 40)):
        path = write_svs(tmp_path / f"{name}.svs", image, mpp, power, subsampling=(1, 1))
        assert cut(path, tmp_path / "t", min_sharpness=0, fmt="png").tiles == 64
        stores.append(TileStore(tmp_path / "t" / name))
    assert [s.mpp for s in stores] == [0.5, 0.5] and TileSet(stores, 64).mpp == 0.5
    order = [np.lexsort(s.coords.T) for s in stores]
    tiles = [
        np.stack([store.read(i) for i in numbers]).astype(int) for store, numbers in zip(stores, order, strict=True)
    ]
    same, other = (np.abs(tiles[0] - t).mean((1, 2, 3)) for t in (tiles[1], np.roll(tiles[1], 1, 0)))
    assert same.max() < 10 < 20 < other.min()  # grey levels; two JPEGs


@pytest.mark.parametrize("mpp", [0.33, 0.25, 0.6])
def test_tiles_that_are_resized_are_judged_and_stored(tmp_path, mpp):
    outcome = cut(write_svs(tmp_path / "a.svs", tissue(512, 512), mpp), tmp_path / "t", min_sharpness=0)
    assert outcome.status == "cut" and outcome.tiles >= 9
    assert TileStore(tmp_path / "t" / "a").read(0).std() > 20


# ---- Scores kept with the tiles ----


def test_limits_choose_without_the_slide(tmp_path):
    image = field(768, 768)
    image[100:160, 100:400] = (30, 60, 140)  # a pen's stroke
    path = write_svs(tmp_path / "a.svs", image)
    outcome = cut(path, tmp_path / "all", min_tissue=0.1, min_sharpness=0, max_pen=1)
    store = TileStore(tmp_path / "all" / "a")
    path.unlink()
    assert outcome.pen == outcome.blurred == 0 and set(store.scores) == {"stained", "pen", "sharpness"}
    limits = TileLimits(min_tissue=0.9, min_sharpness=0.2, max_pen=0.05)
    chosen = TileSet([store], 64, limits=limits)
    good = (store.tissue >= 0.9) & (store.scores["sharpness"] >= 0.2) & (store.scores["pen"] <= 0.05)
    assert chosen.tile_index.tolist() == np.flatnonzero(good).tolist() and 10 < good.sum() < len(store) - 5
    assert (store.scores["pen"] > 0.05).sum() >= 4
    few = TileSet([store], 64, max_per_slide=5, limits=limits)
    assert len(few) == 5 and set(few.tile_index) <= set(chosen.tile_index)


def test_cutting_with_a_threshold_is_choosing_by_it_later(tmp_path):
    path = write_svs(tmp_path / "a.svs", field(768, 768))
    cut(path, tmp_path / "all", min_tissue=0.1, min_sharpness=0)
    cut(path, tmp_path / "strict", min_tissue=0.8, min_sharpness=0.25)
    store = TileStore(tmp_path / "all" / "a")
    later = store.coords[TileLimits(min_tissue=0.8, min_sharpness=0.25).numbers(store)]
    assert sorted(later.tolist()) == sorted(TileStore(tmp_path / "strict" / "a").coords.tolist())


def test_a_store_without_the_score_asked_for_is_refused(tmp_path):
    path = write_svs(tmp_path / "a.svs", field(533, 700))
    cut(path, tmp_path, criteria="published")
    store = TileStore(tmp_path / "a")
    assert len(TileLimits(min_tissue=0.5).numbers(store)) < len(store)
    with pytest.raises(InputError, match=r"a.json: keeps no sharpness of its tiles .* cut the slide again"):
        TileSet([store], 64, limits=TileLimits(min_sharpness=0.2))
    with pytest.raises(InputError, match="min_tissue = 2: expected 0 to 1"):
        TileLimits(min_tissue=2)


def test_a_store_from_before_a_setting_was_there_is_kept(tmp_path, monkeypatch):
    path = write_svs(tmp_path / "a.svs", field(533, 700))
    job = Job(path, tmp_path, TileSettings(tile_size=64))
    monkeypatch.setattr(
        "datasets.extraction.asdict",
        lambda x: {k: v for k, v in vars(x).items() if k not in ("criteria", "max_pen", "reader", "pen", "flat")},
    )
    assert cut_slide(job).status == "cut"
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"max_pen \(1.0 there, 0.05 now\)"):
        finished(job)
    assert finished(replace(job, settings=TileSettings(tile_size=64, max_pen=1.0))).status == "kept"
    with pytest.raises(InputError, match=r"criteria \(default there, published now\)"):
        finished(replace(job, settings=TileSettings(tile_size=64, criteria="published")))
    assert "criteria" not in TileStore(tmp_path / "a").extra["settings"]


def test_a_store_from_elsewhere_is_not_cut_over(tmp_path):
    path = write_svs(tmp_path / "a.svs", field(533, 700))
    write_store(tmp_path, "a", [(None, None, None, np.zeros((64, 64, 3), np.uint8))], mpp=0.5, tile_size=64)
    with pytest.raises(InputError, match=r"a.json: tiles from elsewhere .*--restart"):
        finished(Job(path, tmp_path, TileSettings(tile_size=64)))


def test_the_published_criteria_refuse_a_limit_of_pen():
    assert TileSettings(criteria="published").max_pen == 1
    with pytest.raises(InputError, match=r"--max_pen 0.1: the published criteria"):
        TileSettings(criteria="published", max_pen=0.1).check()
