"""tiles --coordinates and --masks: the squares of CLAM and TRIDENT, the outlines of QuPath; one clear error each."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from test_slides import half_slide, run_tiles, write_svs

from common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_SOME_FAILED, InputError
from datasets.coordinates import read_coordinates
from datasets.polygons import mask_of, read_polygons
from datasets.slides import Slide
from datasets.tiles import TileStore

TILE = ["--tile_size", "64", "--min_sharpness", "0"]
SQUARES = [[0, 0], [64, 0], [0, 64], [128, 192], [64, 0], [10, 333]]  # one of them twice
TRIDENT = {
    "patch_size": 64,
    "patch_size_level0": 64,
    "level0_magnification": 20,
    "target_magnification": 20,
    "overlap": 0,
    "level0_width": 512,
    "level0_height": 512,
}
CLAM = {"patch_size": 64, "patch_level": 0, "downsample": np.array([1.0, 1.0]), "level_dim": np.array([512, 512])}


def write_coordinates(path, squares=SQUARES, about=TRIDENT, name="coords"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=np.asarray(squares))
        file[name].attrs.update(about)
    return path


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(*rings, kind="Polygon"):
    shape = {"type": kind, "coordinates": list(rings)}
    return {"type": "Feature", "geometry": shape, "properties": {"objectType": "annotation"}}


def by(slides, *words):
    """Return the words of a command that cuts by what was given, in this process."""
    return "--slides", slides / "slides", *words, "--out", slides / "tiles", "--workers", 0


@pytest.fixture
def slides(tmp_path):
    write_svs(tmp_path / "slides" / "a.svs", half_slide())
    return tmp_path


# ---- Coordinates ----


@pytest.mark.parametrize(("name", "about"), [("a_patches.h5", TRIDENT), ("patches/a.h5", CLAM)])
def test_the_squares_of_trident_and_clam_are_cut_as_they_are(slides, name, about):
    write_coordinates(slides / "given" / name, about=about)
    words = by(slides, "--coordinates", slides / "given")
    assert run_tiles(*words, *TILE) == EXIT_DONE
    store = TileStore(slides / "tiles" / "a")
    assert sorted(store.coords.tolist()) == sorted([[0, 0], [64, 0], [0, 64], [128, 192], [10, 333]])
    assert store.mpp == 0.5 and (store.tissue > 0.9).all()
    with Slide(slides / "slides" / "a.svs") as slide:
        for index, (x, y) in enumerate(store.coords.tolist()):
            whole = slide.read_region(x, y, 0, (64, 64)).astype(int)
            assert np.abs(store.read(index).astype(int) - whole).mean() < 4  # JPEG again


def test_a_tile_twice_as_fine_is_read_at_its_own_size_and_a_level_is_taken_into_account(slides):
    write_svs(slides / "slides" / "a.svs", half_slide(), mpp=0.25)
    for name, about in {
        "trident": TRIDENT | {"patch_size_level0": 128, "level0_magnification": 40},
        "clam": CLAM | {"patch_size": 32, "patch_level": 1, "downsample": np.array([4.0, 4.0])},
    }.items():
        write_coordinates(slides / name / "a.h5", [[0, 0], [100, 50]], about)
        words = ("--slides", slides / "slides", "--coordinates", slides / name, "--out", slides / "out" / name)
        assert run_tiles(*words, *TILE, "--workers", 0) == EXIT_DONE
        store = TileStore(slides / "out" / name / "a")
        assert store.mpp == 0.5 and sorted(store.coords.tolist()) == [[0, 0], [100, 50]]


def test_squares_over_the_edge_are_left_out_and_counted(slides):
    write_coordinates(slides / "given" / "a.h5", [[0, 0], [500, 0], [0, 449]])
    words = by(slides, "--coordinates", slides / "given")
    assert run_tiles(*words, *TILE) == EXIT_DONE
    assert TileStore(slides / "tiles" / "a").coords.tolist() == [[0, 0]]
    report = pd.read_csv(slides / "tiles" / "report.csv")
    assert report["reason"][0] == "2 of the coordinates cross the slide's edge and were left out"


FAULTS = {
    "other magnification": (
        {"about": TRIDENT | {"patch_size_level0": 128}},
        r"128 pixels .* 64 um; .* 32 um; --mpp 1 would",
    ),
    "outside": ({"squares": [[0, 0], [5120, 0]]}, r"1 of 2 coordinates lie outside the slide of 512 x 512 pixels"),
    "another slide": (
        {"about": TRIDENT | {"level0_width": 999, "level0_height": 512}},
        "was made on a slide of 999 x 512 pixels, .*a.svs has 512 x 512",
    ),
    "all over the edge": ({"squares": [[500, 500]]}, "none of 1 squares lies wholly in the slide"),
    "no size": ({"about": {"patch_level": 0}}, r"does not say how large a tile is: .* \(found patch_level\)"),
    "no such level": ({"about": {"patch_level": 9, "patch_size": 64}}, "does not say how large a tile is"),
    "absurd size": ({"about": TRIDENT | {"patch_size_level0": 0}}, "tiles of 0 pixels at level 0 cannot be"),
    "empty": ({"squares": np.zeros((0, 2), int)}, "no coordinates in it"),
    "shape": ({"squares": [[1, 2, 3]]}, r"coords is int64 \(1, 3\), numbers \(n, 2\) were expected"),
    "nan": ({"squares": [[np.nan, 0.0]]}, "coords holds NaN or infinity"),
    "old CLAM": ({"name": "imgs"}, r"no dataset coords \(found imgs\); it holds pictures of tiles"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_coordinates_file_is_told(slides, capsys, fault):
    options, message = FAULTS[fault]
    write_coordinates(slides / "given" / "a.h5", **options)
    words = by(slides, "--coordinates", slides / "given")
    assert run_tiles(*words, *TILE) == EXIT_BAD_INPUT
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{slides / 'given' / 'a.h5'}: " in error
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert not list((slides / "tiles").glob("*.tar"))


def test_a_damaged_file_costs_its_slide_and_so_does_a_missing_one(slides):
    for name in "bc":
        write_svs(slides / "slides" / f"{name}.svs", half_slide())
    whole = write_coordinates(slides / "given" / "a.h5").read_bytes()
    (slides / "given" / "b.h5").write_bytes(whole[:900])
    words = by(slides, "--coordinates", slides / "given")
    assert run_tiles(*words, *TILE) == EXIT_SOME_FAILED
    report = pd.read_csv(slides / "tiles" / "report.csv", index_col="slide")
    assert report["status"].tolist() == ["cut", "failed", "failed"]
    assert "b.h5: not a readable HDF5 file" in report["reason"]["b"]
    assert "no coordinates of c: c_patches.h5 or c.h5 was expected" in report["reason"]["c"]


def test_other_coordinates_are_other_settings(slides, capsys):
    path = write_coordinates(slides / "given" / "a.h5")
    words = by(slides, "--coordinates", slides / "given")
    assert run_tiles(*words, *TILE) == EXIT_DONE and run_tiles(*words, *TILE) == EXIT_DONE
    assert pd.read_csv(slides / "tiles" / "report.csv")["status"].tolist() == ["kept"]
    write_coordinates(path, SQUARES[:2])
    for more in (words, (*words[:2], *words[4:])):
        assert run_tiles(*more, *TILE) == EXIT_BAD_INPUT
        assert "cut with other settings: coordinates (" in capsys.readouterr().err
    path.unlink()
    assert run_tiles(*words, *TILE) == EXIT_BAD_INPUT
    assert "no coordinates of a" in capsys.readouterr().err
    assert (
        run_tiles("--slides", slides / "slides", "--coordinates", slides / "x", "--out", slides / "o") == EXIT_BAD_INPUT
    )


def test_legacy_files_without_downsample_take_the_slides_own(tmp_path):
    path = write_coordinates(tmp_path / "a.h5", about={"patch_size": 64, "patch_level": 1})
    assert read_coordinates(path, (1.0, 4.0)).side == 256


# ---- Masks ----


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(square(0, 0, 192), square(64, 64, 64))]},
        [feature([square(0, 0, 192), square(64, 64, 64)], kind="MultiPolygon")],
        feature(square(0, 0, 192), square(64, 64, 64)),
        {
            "type": "GeometryCollection",
            "geometries": [
                {"type": "Point", "coordinates": [1, 1]},
                {"type": "Polygon", "coordinates": [square(0, 0, 192), square(64, 64, 64)]},
            ],
        },
    ],
    ids=["collection", "list of multipolygons", "one feature", "bare geometry"],
)
def test_tiles_lie_in_the_outlines_and_not_in_their_holes(slides, content):
    (slides / "masks").mkdir()
    (slides / "masks" / "a.geojson").write_text(json.dumps(content))
    words = by(slides, "--masks", slides / "masks")
    assert run_tiles(*words, *TILE, "--min_tissue", "0.9") == EXIT_DONE
    store = TileStore(slides / "tiles" / "a")
    ring = {(x, y) for x in (0, 64, 128) for y in (0, 64, 128)} - {(64, 64)}
    assert {tuple(xy) for xy in store.coords.tolist()} == ring and (store.tissue > 0.9).all()


def test_outlines_choose_among_coordinates(slides):
    write_coordinates(slides / "given" / "a.h5")
    (slides / "masks").mkdir()
    (slides / "masks" / "a.json").write_text(json.dumps(feature(square(0, 0, 128))))
    words = ("--slides", slides / "slides", "--masks", slides / "masks", "--coordinates", slides / "given")
    assert run_tiles(*words, "--out", slides / "tiles", "--workers", 0, *TILE) == EXIT_DONE
    assert sorted(TileStore(slides / "tiles" / "a").coords.tolist()) == [[0, 0], [0, 64], [64, 0]]


def test_the_mask_is_what_a_point_in_polygon_test_says():
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
    star = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(400, 900, 40)[:, None] + 1000
    hole = np.array(square(950, 950, 100), float)
    mask = mask_of([[star, hole], [np.array(square(-500, 1500, 700), float)]], (100, 120), 20.0)
    centres = (np.stack(np.meshgrid(np.arange(120), np.arange(100)), -1) + 0.5) * 20
    inside = (contains(star, centres) & ~contains(hole, centres)) | ((centres[..., 0] < 200) & (centres[..., 1] > 1500))
    assert mask.shape == (100, 120) and (mask != inside).mean() < 0.02 and 0.2 < inside.mean() < 0.6


def contains(ring, points):
    """Even-odd rule."""
    found = np.zeros(points.shape[:2], bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            crosses = (y0 > points[..., 1]) != (y1 > points[..., 1])
            found ^= crosses & (points[..., 0] < x0 + (points[..., 1] - y0) * (x1 - x0) / (y1 - y0))
    return found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a.geojson: line 1, column 2"),
        ('"tissue"', "a GeoJSON FeatureCollection, or a list of features, was expected"),
        ('{"type": "FeatureCollection", "features": 3}', "a GeoJSON FeatureCollection, or a list"),
        ('{"type": "FeatureCollection", "features": []}', "no Polygon or MultiPolygon in it"),
        ('{"type": "Point", "coordinates": [1, 2]}', "no Polygon or MultiPolygon in it"),
        (
            '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]',
            "feature 1: a Polygon of rings of at",
        ),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[["a", 0]]]}}]', "feature 1: a Polygon of rings"),
        ('[{"geometry": {"type": "Polygon", "coordinates": 5}}]', "feature 1: a Polygon of rings"),
        ('[{"geometry": {"type": "MultiPolygon", "coordinates": [[]]}}]', "feature 1: a MultiPolygon of rings"),
        (json.dumps(feature([[0, 0], [1e999, 0], [0, 9]])), "feature 1: a Polygon of rings"),
        (json.dumps(feature(square(5000, 5000, 99))), "its polygons cover nothing of the slide of 512 x 512 pixels"),
    ],
)
def test_each_fault_of_a_mask_is_told(slides, capsys, text, message):
    (slides / "masks").mkdir()
    (slides / "masks" / "a.geojson").write_text(text)
    words = by(slides, "--masks", slides / "masks")
    assert run_tiles(*words, *TILE) == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_slide_without_mask_is_refused(slides, capsys):
    (slides / "masks").mkdir()
    words = by(slides, "--masks", slides / "masks")
    assert run_tiles(*words, *TILE) == EXIT_BAD_INPUT
    assert "no mask of a: a.geojson or a.json was expected" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such file"):
        read_polygons(slides / "masks" / "a.geojson")
