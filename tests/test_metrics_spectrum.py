"""The spectrum of tiles whose frequencies are known."""

import numpy as np
import pytest

from common.errors import InputError
from metrics.spectrum import log_power, peak, peaks_beside, radial


def noise(n=40, side=32, seed=0):
    return np.random.default_rng(seed).normal(128, 12, (n, side, side, 1)).repeat(3, 3)


def as_tiles(values):
    return values.clip(0, 255).astype(np.uint8)


def test_a_checkerboard_is_a_peak_and_noise_has_none():
    board = 6.0 * (np.indices((32, 32)).sum(0) % 2 * 2 - 1)[None, ..., None]
    plain, grid = as_tiles(noise()), as_tiles(noise(seed=1) + board)
    assert peak(log_power(plain)) < 0.4
    found = peaks_beside(grid, plain)
    assert found["generated"] > 1 and found["excess"] > 0.7
    assert found["excess"] == pytest.approx(found["generated"] - found["real"])


def test_a_wave_stands_at_its_own_frequency():
    wave = 40 * np.sin(2 * np.pi * 8 / 32 * np.arange(32))[None, :, None]
    spectrum = log_power(as_tiles(np.broadcast_to(128 + wave[:, :, None], (1, 32, 32, 3))))
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    assert abs(row - 16) == 8 and column == 16  # 8 cycles from top to bottom, none across
    frequency, power = radial(log_power(as_tiles(noise() + wave[..., None])))
    more = power - radial(log_power(as_tiles(noise())))[1]
    assert abs(frequency[more.argmax()] - 0.25) <= 1 / 32 and more.max() > 10 * np.abs(np.median(more))
    assert len(frequency) == 16 and frequency[-1] == 0.5


def test_slow_structure_counts_for_nothing():
    slow = 60 * np.sin(2 * np.pi * 2 / 32 * np.arange(32))[None, :, None, None]
    assert peak(log_power(as_tiles(noise() + slow))) < 0.4


def test_tiles_too_small_or_oblong_are_refused():
    for shape in ((1, 8, 8, 3), (1, 32, 16, 3), (0, 32, 32, 3)):
        with pytest.raises(InputError, match="square tiles of at least 14 px"):
            log_power(np.zeros(shape, np.uint8))
