"""Proportions, d', ROC area and compared ratings: against published tables, formulas and simulations."""

import re

import numpy as np
import pytest
from scipy.stats import norm

from metrics.discrimination import compared_ratings, criterion, d_prime, drawn_counts, percentiles, roc_area, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombe(right, n, low, high):
    """Newcombe 1998, Stat Med 17:857, table I, method 3."""
    assert wilson(right, n) == pytest.approx((low, high), abs=6e-5)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_without_answers_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_d_prime_and_criterion_are_what_their_definitions_say():
    n = 100_000
    hits, false_alarms = n * norm.cdf(1.2), n * norm.cdf(-0.3)
    assert d_prime(hits, n, false_alarms, n) == pytest.approx(1.5, abs=1e-3)
    assert criterion(hits, n, false_alarms, n) == pytest.approx(-(1.2 - 0.3) / 2, abs=1e-3)
    assert d_prime(5, 10, 5, 10) == 0 and criterion(5, 10, 5, 10) == 0
    assert d_prime(3, 10, 7, 10) == -d_prime(7, 10, 3, 10) < 0


def test_the_log_linear_correction_is_hautus():
    """(x + 0.5) / (n + 1): 20 of 20 hits and no false alarm of 20 give 2 z(20.5 / 21), not infinity."""
    assert d_prime(20, 20, 0, 20) == pytest.approx(2 * norm.ppf(20.5 / 21))
    assert d_prime(15, 25, 5, 20) == pytest.approx(norm.ppf(15.5 / 26) - norm.ppf(5.5 / 21)), "also where not needed"


def test_roc_area_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    signals, noises = rng.integers(1, 6, 40), rng.integers(0, 5, 30)
    pairs = (signals[:, None] > noises).mean() + (signals[:, None] == noises).mean() / 2
    counts = [np.bincount(x, minlength=6) for x in (signals, noises)]
    assert roc_area(*counts) == pytest.approx(pairs)
    assert roc_area([0, 5], [5, 0]) == 1 and roc_area([5, 0], [0, 5]) == 0 and np.isnan(roc_area([0, 0], [5, 0]))


def test_a_bootstrap_draws_as_many_as_there_are():
    drawn = drawn_counts(7, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 7) and (drawn.sum(1) == 7).all() and drawn.mean(0) == pytest.approx(1, abs=0.2)
    assert percentiles(np.array([np.nan, np.nan, 1.0])) is None
    assert percentiles(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))


def ratings_of(rng, effect, visitors=40, tiles=60):
    """Ratings with spread between visitors and between tiles; group b is `effect` better."""
    groups = np.array(["a", "b"] * (tiles // 2))
    y = 3 + rng.normal(0, 0.5, (visitors, 1)) + rng.normal(0, 0.5, tiles) + effect * (groups == "b")
    y = y + rng.normal(0, 0.5, (visitors, tiles))
    y[rng.random(y.shape) < 0.5] = np.nan  # nobody rates all
    return y, groups


def test_an_interval_of_two_models_covers_the_truth_about_as_often_as_it_says():
    """Over visitors and tiles: at 95 % few of 60 miss. Over answers alone most would."""
    rng = np.random.default_rng(1)
    hit = 0
    for _ in range(60):
        _, pairs = compared_ratings(*ratings_of(rng, 0.4), np.random.default_rng(0), resamples=300)
        low, high = pairs[0]["interval"]
        hit += low <= -0.4 <= high
    assert hit >= 53


@pytest.mark.parametrize("visitors", [3, 6, 10])
def test_an_interval_of_few_visitors_covers_the_truth_too_and_says_how_it_was_made(visitors):
    """Visitors who like the models differently: percentiles of a bootstrap cover 87 % with 3 of them, 92 % with 5."""
    rng, hit = np.random.default_rng(1), 0
    for _ in range(100):
        y, groups = ratings_of(rng, 0.4, visitors, 20)
        y = y + rng.normal(0, 0.9, (visitors, 1)) * (groups == "b")
        _, (pair,) = compared_ratings(y, groups, np.random.default_rng(0), resamples=200)
        low, high = pair["interval"]
        assert re.fullmatch(r"t, \d+\.\d degrees of freedom", pair["method"])
        hit += low <= -0.4 <= high
    assert hit >= 93


def test_where_resamples_agree_there_is_no_interval_and_none_leaves_the_scale():
    alike = np.full((3, 4), 4.0)
    groups = np.array(["a", "b"] * 2)
    for y in (alike, np.array([[1.0, 1, 2, 2], [2, 2, 1, 1]])):  # visitors' means agree, and tiles' means
        means, pairs = compared_ratings(y, groups, np.random.default_rng(0), 50)
        assert {(p["interval"], p["method"]) for p in [*means.values(), *pairs]} == {(None, "none")}
    y = np.array([[1.0, 5, 1, 4], [5, 1, 4, 1]])  # t of few degrees of freedom reaches beyond what can be
    means, (pair,) = compared_ratings(y, groups, np.random.default_rng(0), 50, (1, 5))
    assert pair["interval"] == (-4, 4) and means["a"]["interval"] == (1, 5)


def test_compared_ratings_are_means_of_what_was_given():
    y = np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan], [np.nan, 4.0, np.nan]])
    means, pairs = compared_ratings(y, np.array(["x", "y", "z"]), np.random.default_rng(0), 200)
    assert {k: (m["mean"], m["n"], m["visitors"], m["tiles"]) for k, m in means.items()} == {
        "x": (2.0, 2, 2, 1),
        "y": (4.5, 2, 2, 1),
    }
    assert [(p["a"], p["b"], p["difference"]) for p in pairs] == [("x", "y", -2.5)]
