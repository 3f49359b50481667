"""Distances between sets of features, on sets whose distance is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import InputError
from metrics.frechet import (
    ROWS,
    frechet_distance,
    frechet_from_statistics,
    frechet_to_statistics,
    small_sample_note,
    statistics_of,
)
from metrics.kernel import kernel_distance
from metrics.manifold import precision_recall


def normal(n, d, seed, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def by_sqrtm(x, y):
    (mu1, s1), (mu2, s2) = statistics_of(x), statistics_of(y)
    return float(((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real))


def test_frechet_of_known_gaussians():
    d, zero, eye = 6, np.zeros(6), np.eye(6)
    assert frechet_from_statistics(zero, 4 * eye, zero, 9 * eye) == pytest.approx(d * (2 - 3) ** 2)
    assert frechet_from_statistics(zero, eye, zero + 2, eye) == pytest.approx(d * 4)  # equal covariances: the shift
    assert frechet_from_statistics(zero, 0 * eye, zero, 9 * eye) == pytest.approx(d * 9)  # a point against a Gaussian


def test_frechet_of_features_shifted_by_a_vector_is_its_square():
    x = normal(50, 8, 0)
    assert frechet_distance(x, x + np.arange(8)) == pytest.approx((np.arange(8) ** 2).sum())


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 20), (300, 15, 20), (15, 300, 20), (20, 20, 20), (21, 20, 20)])
def test_gram_and_covariance_forms_agree_with_sqrtm(n, m, d):
    x, y = normal(n, d, 1), normal(m, d, 2, shift=0.3, scale=1.7)
    expected = by_sqrtm(x, y)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)  # sqrtm's own error on singular products
    assert frechet_from_statistics(*statistics_of(x), *statistics_of(y)) == pytest.approx(
        frechet_distance(x, y), rel=1e-9
    )
    assert frechet_to_statistics(x, *statistics_of(y)) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            given = {a.data_ptr() for a in args if isinstance(a, torch.Tensor)}  # a view of what was there counts not
            self.bytes = max(self.bytes, 0 if made.data_ptr() in given else made.numel() * made.element_size())
        return made


def test_many_features_are_taken_in_parts():
    x, y = (normal(5 * ROWS + 3, 32, seed, shift=seed).astype(np.float32) for seed in (0, 1))
    with Largest() as largest:
        distances = frechet_distance(x, y), kernel_distance(x, y, subset_size=200, subsets=2)
        mean, covariance = statistics_of(x)
    assert 0 < largest.bytes <= ROWS * 32 * 8 < x.nbytes
    assert all(value > 0 for value in distances)
    assert np.allclose(mean, x.mean(0, dtype=np.float64)) and np.allclose(covariance, np.cov(x.T.astype(np.float64)))


def test_frechet_of_few_images_in_many_dimensions_equals_sqrtm():
    x, y = normal(40, 300, 3), normal(35, 300, 4, shift=0.1)
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-5)


def test_frechet_of_identical_sets_is_zero():
    for n, d in ((30, 500), (500, 30)):
        x = normal(n, d, 5, shift=10)
        assert 0 <= frechet_distance(x, x) < 1e-9
        assert 0 <= frechet_from_statistics(*statistics_of(x), *statistics_of(x)) < 1e-9
        assert 0 <= frechet_distance(x, x[::-1].copy()) < 1e-9  # order does not matter


def test_frechet_of_float32_tensors_is_done_in_float64():
    x, y = (torch.from_numpy(normal(30, 64, seed)).float() for seed in (6, 7))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x.double(), y.double()), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 12), st.sampled_from([1e-4, 1.0, 1e4]), st.booleans())
def test_frechet_is_never_complex_nan_or_negative(n, m, d, scale, constant):
    x, y = normal(n, d, n, scale=scale), normal(m, d, m + 100)
    if constant:
        x[:] = x[0]  # covariance 0
    for value in (frechet_distance(x, y), frechet_from_statistics(*statistics_of(x), *statistics_of(y))):
        assert isinstance(value, float) and math.isfinite(value) and value >= 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 4)), "1 image"),
        (np.ones(4), "shape"),
        (np.full((5, 4), np.nan), "row 0 holds NaN"),
        (np.array([[0.0, 1], [np.inf, 0]]), "row 1 holds NaN or infinity"),
        (np.ones((5, 3)), "3 and of 4 dimensions"),
    ],
)
def test_what_cannot_be_measured_is_refused(x, message):
    with pytest.raises(InputError, match=message):
        frechet_distance(x, normal(6, 4, 0))


def test_statistics_with_nan_or_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="NaN"):
        frechet_from_statistics(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))
    with pytest.raises(InputError, match="covariance"):
        frechet_from_statistics(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2))


def test_a_note_where_images_are_fewer_than_dimensions():
    assert "600" in small_sample_note(600, 2048) and "KID" in small_sample_note(600, 2048)
    assert small_sample_note(5000, 2048) is None


def test_pytorch_fid_agrees():
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    x, y = normal(400, 40, 8), normal(300, 40, 9, shift=0.2, scale=1.3)
    theirs = fid_score.calculate_frechet_distance(*statistics_of(x), *statistics_of(y))
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=1e-6)


# ---------------------------------------------------------------- kernel distance


def mmd2_by_loops(x, y):
    d = x.shape[1]

    def k(a, b):
        return (a @ b / d + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_is_its_definition():
    x, y = normal(9, 5, 0), normal(7, 5, 1, shift=0.5)
    assert kernel_distance(x, y) == pytest.approx(mmd2_by_loops(x, y), rel=1e-12)


def test_kernel_distance_is_unbiased():
    draws = [kernel_distance(normal(10, 4, s), normal(10, 4, s + 1000)) for s in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20  # about 0 where both are one distribution
    assert min(draws) < 0


def test_kernel_distance_over_subsets():
    x, y = normal(300, 4, 0), normal(260, 4, 1, shift=0.5)
    whole, parts = kernel_distance(x, y), kernel_distance(x, y, subset_size=60, subsets=200, seed=1)
    assert parts == pytest.approx(whole, rel=0.1)
    assert parts == kernel_distance(x, y, subset_size=60, subsets=200, seed=1)
    assert parts != kernel_distance(x, y, subset_size=60, subsets=200, seed=2)


# ---------------------------------------------------------------- precision and recall


def test_precision_and_recall_of_known_sets():
    line = np.arange(10.0)[:, None] * [1, 0]
    assert precision_recall(line, line) == (1.0, 1.0)
    assert precision_recall(line, line + np.array([0, 100])) == (0.0, 0.0)
    half = line[:5]  # all plausible, half the variety; the ball of radius 1 around 4 reaches 5
    assert precision_recall(line, half, k=1) == (1.0, 0.6)
    assert precision_recall(half, line, k=1) == (0.6, 1.0)


def test_precision_and_recall_of_repeated_images():
    same = np.ones((6, 3))
    assert precision_recall(same, same) == (1.0, 1.0)


def test_precision_needs_more_images_than_neighbours():
    with pytest.raises(InputError, match="more than k = 3"):
        precision_recall(normal(3, 2, 0), normal(9, 2, 1))
