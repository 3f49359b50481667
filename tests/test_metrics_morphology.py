"""Morphology of tiles drawn with known nuclei, stains and white space."""

import numpy as np
import pytest

from common.errors import InputError
from metrics.morphology import MEASURES, UNITS, morphology, summarise
from metrics.stains import EOSIN, HAEMATOXYLIN, separate_stains


def stained(haematoxylin, eosin):
    """Amounts of stain (..., ) in log10 OD of unit vectors -> uint8 RGB (..., 3)."""
    h, e = (np.array(v) / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN))
    od = np.asarray(haematoxylin)[..., None] * h + np.asarray(eosin)[..., None] * e
    return np.clip(np.rint(256 * 10**-od - 1), 0, 255).astype(np.uint8)


def discs(side, centres, radius, haematoxylin=0.5, eosin=0.3, stroma=0.05):
    """A tile of pink stroma with round nuclei; centres (x, y) and radius in pixels."""
    y, x = np.mgrid[:side, :side]
    nuclear = np.zeros((side, side), bool)
    for cx, cy in centres:
        nuclear |= (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    return stained(np.where(nuclear, haematoxylin, stroma), np.full((side, side), eosin))


GRID = [(x, y) for x in (20, 50, 80, 110) for y in (15, 45, 75)]  # 12 nuclei, none near an edge


def measured(tile, mpp=0.5):
    return {name: values[0] for name, values in morphology(tile[None], mpp).items()}


def test_stains_are_separated():
    h, e, white = separate_stains(stained([0.5, 0.0, 0.3, 0.0], [0.0, 0.4, 0.2, 0.0]))
    assert h == pytest.approx([0.5, 0.0, 0.3, 0.0], abs=0.01) and e == pytest.approx([0.0, 0.4, 0.2, 0.0], abs=0.01)
    assert white.tolist() == [False, False, False, True]


@pytest.mark.parametrize(("mpp", "radius"), [(0.5, 6), (0.5, 8), (0.25, 12)])
def test_drawn_nuclei_are_counted_and_sized(mpp, radius):
    m = measured(discs(128, GRID, radius), mpp)
    assert m["nuclear_density"] * (128 - 2 * radius) ** 2 * mpp**2 / 1e6 == pytest.approx(12, rel=0.05)
    assert m["nuclear_size"] == pytest.approx(np.pi * (radius * mpp) ** 2, rel=0.1)
    assert m["white_space"] == 0


def test_touching_nuclei_are_told_apart():
    pairs = [(x + dx, y) for x, y in ((30, 30), (30, 90), (90, 30), (90, 90)) for dx in (0, 11)]
    m = measured(discs(128, pairs, 6))
    assert m["nuclear_density"] * 0.058**2 == pytest.approx(8, rel=0.05)
    assert np.isnan(m["nuclear_size"])  # none stands alone


def test_nuclei_that_edges_cut_do_not_bias_the_density():
    rng = np.random.default_rng(0)
    grid = range(0, 1024, 31)  # a step that falls everywhere in a tile of 64
    centres = [(x + rng.integers(-5, 6), y + rng.integers(-5, 6)) for x in grid for y in grid]
    picture = discs(1024, centres, 6)
    tiles = np.stack([picture[y : y + 64, x : x + 64] for y in range(0, 1024, 64) for x in range(0, 1024, 64)])
    assert morphology(tiles, 0.5)["nuclear_density"].mean() == pytest.approx(1e6 / 15.5**2, rel=0.05)


def test_stain_amounts_and_white_space():
    tile = discs(128, GRID, 6, eosin=0.25)
    tile[:, 64:] = 255  # the right half is glass
    m = measured(tile)
    assert m["white_space"] == pytest.approx(0.5)
    assert m["eosin_od"] == pytest.approx(0.25, abs=0.01)  # of stroma, not diluted by the glass
    assert measured(discs(128, GRID, 6, haematoxylin=0.9))["haematoxylin_od"] > measured(tile)["haematoxylin_od"]


def test_texture_grows_with_fine_detail():
    smooth, rough = discs(64, [], 6), discs(64, [], 6)
    rough[::2] //= 2
    assert measured(smooth)["texture"] < 1 < measured(rough)["texture"]


def test_an_empty_tile_has_no_nuclei_and_says_what_it_cannot_know():
    m = measured(np.full((64, 64, 3), 255, np.uint8))
    assert m["white_space"] == 1 and m["nuclear_density"] == 0
    assert np.isnan([m[k] for k in ("nuclear_size", "haematoxylin_od", "eosin_od", "texture")]).all()


def test_a_tile_does_not_depend_on_its_neighbours():
    tiles = np.stack([discs(64, [(20, 20)], 6), np.full((64, 64, 3), 90, np.uint8), discs(64, [(40, 30), (20, 50)], 5)])
    together = morphology(tiles, 1.0)
    for name in MEASURES:
        alone = [measured(tile, 1.0)[name] for tile in tiles]
        assert together[name] == pytest.approx(alone, nan_ok=True)
    assert set(together) == set(MEASURES) == set(UNITS)


def test_no_tiles_give_no_values():
    assert all(len(values) == 0 for values in morphology(np.zeros((0, 32, 32, 3), np.uint8), 1.0).values())


def test_summary_leaves_out_what_is_unknown():
    values = {"a": np.array([1.0, np.nan, 3.0]), "b": np.array([np.nan, np.nan, np.nan])}
    assert summarise(values) == {"a": 2.0, "b": None}


def test_other_arrays_are_refused():
    with pytest.raises(InputError, match="float64"):
        morphology(np.full((1, 8, 8, 3), np.nan), 1.0)
    with pytest.raises(InputError, match="8-bit RGB"):
        morphology(np.zeros((8, 8, 3), np.uint8), 1.0)
    with pytest.raises(InputError, match="mpp"):
        morphology(np.zeros((1, 8, 8, 3), np.uint8), 0)


def test_real_tiles_have_plausible_nuclei(data_folder):
    from PIL import Image

    files = sorted((data_folder / "tiles" / "brain_glioma").glob("*.*g"))[:200:25]
    if not files:
        pytest.skip("no tiles of brain_glioma in the real data")
    m = summarise(morphology(np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]), 0.5))
    assert 1000 < m["nuclear_density"] < 6000 and 20 < m["nuclear_size"] < 150 and m["white_space"] < 0.3
