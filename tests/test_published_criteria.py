"""The published extractor's criteria in integer arithmetic: pixel by pixel what its libraries give."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.exposure import is_low_contrast
from skimage.filters import threshold_otsu

from datasets import published_criteria as ours

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))  # last: it has a fid.py too
import published_tiles as published


def textures(seed: int, height: int = 96, width: int = 80) -> dict[str, np.ndarray]:
    """Images of many kinds, uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.standard_normal((height, width)), random.uniform(0.5, 4))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    two = np.where(
        (smooth > random.uniform(0.2, 0.8))[..., None], random.integers(0, 256, 3), random.integers(0, 256, 3)
    )
    tissue = 255 * np.exp(-smooth[..., None] * random.uniform(0, 2, 3)) - random.normal(0, 3, (height, width, 3))
    pale = 240 + 12 * smooth[..., None] + random.normal(0, 1, (height, width, 3))
    padded = tissue.copy()
    padded[:, int(width * random.uniform(0.1, 0.9)) :] = 0
    return {
        "noise": random.integers(0, 256, (height, width, 3)),
        "two": two,
        "tissue": tissue,
        "pale": pale,
        "padded": padded,
        "grey": np.repeat(random.integers(0, 256, (height, width, 1)), 3, -1),
        "one colour": np.broadcast_to(random.integers(0, 256, 3), (height, width, 3)),
        "one channel": np.stack([smooth * 255, np.full_like(smooth, 90), np.full_like(smooth, 200)], -1),
        "dark": tissue / 5,
    }


def as_image(array: np.ndarray) -> np.ndarray:
    return np.clip(array, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", textures(0))
def test_masks_equal_in_every_pixel(kind):
    for seed in range(12):
        image = as_image(textures(seed, 96 + seed, 80 - seed)[kind])
        mask = ours.tissue_mask(image)
        assert np.array_equal(mask, published.pixel_rule(image))
        wider = ndimage.binary_dilation(mask, iterations=3)
        assert np.array_equal(ours.grown(mask, 3), wider)
        assert np.array_equal(ours.closed(mask), ndimage.binary_erosion(wider, iterations=3))
        share, low = ours.judge(image)
        assert share == wider.mean() and low == is_low_contrast(image)


def test_thresholds_are_scikit_images():
    random = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(random.integers(0, 256, 2))
        values = random.integers(low, high + 1, 3000).astype(np.uint8)[None]
        assert ours.otsu_bin(np.bincount(values[0], minlength=256), ours.BYTES) == threshold_otsu(values)


def test_contrast_is_decided_by_scikit_image_where_it_is_close():
    random = np.random.default_rng(0)
    found = set()
    for spread in np.linspace(18, 36, 60):
        image = as_image(120 + random.uniform(0, spread, (64, 64, 1)) + np.zeros(3))
        assert ours.judge(image)[1] == is_low_contrast(image)
        found.add((ours.Counts(image).surely_high_contrast(), is_low_contrast(image)))
    assert found == {(False, True), (False, False), (True, False)}


@pytest.mark.parametrize("strip", [7, 50, 1000])
def test_a_slides_mask_does_not_depend_on_the_strips(strip):
    level = as_image(textures(3, 200, 60)["tissue"])
    level[20:50] = 250
    whole = ndimage.binary_erosion(ndimage.binary_dilation(published.pixel_rule(level), iterations=3), iterations=3)
    parts = list(ours.slide_mask(lambda first, rows: level[first : first + rows], (60, 200), strip))
    assert [first for first, _ in parts] == list(range(0, 200, strip))
    assert np.array_equal(np.concatenate([mask for _, mask in parts]), whole) and 0 < whole.mean() < 1


def test_cells_are_tried_in_the_published_order():
    order = [(x, y) for x in range(0, 1000, 96) for y in range(0, 700, 96)]
    np.random.seed(5)
    np.random.shuffle(order)
    assert ours.cells((1000, 700), 96).tolist() == [list(cell) for cell in order]
