"""Do tiles match their patient? Every number on features whose answer is known: perfect, chance, half-way."""

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn.linear_model import Ridge

from common.errors import InputError
from metrics.agreement import agreement, correlations, dose_response
from metrics.colour import colour_histogram, greyscale
from metrics.conditioning import diagonal_dominance, feature_distances, relative, retrieval, retrieval_chance
from metrics.diversity import memorisation, nearest_pairs, spread_ratio, variance_explained
from metrics.kernel import kernel_distance, kid_matrix
from metrics.pairing import null_of, null_of_matrix, re_pairings, torus_shifts
from metrics.prediction import fit_ridge, round_trip


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def tiles_of(means, n, spread=1.0, seed=0):
    """A table (n, d) of features for each patient's mean."""
    rng = np.random.default_rng(seed)
    return [m + spread * rng.normal(size=(n, len(m))) for m in means]


def top1(distance):
    return retrieval(distance)["top1"]


# ---------------------------------------------------------------- retrieval and distances


def test_retrieval_perfect_worst_and_by_hand():
    assert retrieval(1 - np.eye(20)) == {"top1": 1, "top5": 1, "mrr": 1, "median_percentile": 1}
    worst = retrieval(np.eye(20))
    assert worst == {"top1": 0, "top5": 0, "mrr": pytest.approx(1 / 20), "median_percentile": 0}
    by_hand = retrieval(np.array([[2.0, 1, 3], [0, 5, 9], [4, 4, 4]]))  # ranks 2, 2, 2 (mean of a tie of three)
    assert by_hand == {"top1": 0, "top5": 1, "mrr": 0.5, "median_percentile": 0.5}


def test_retrieval_at_chance_is_its_analytic_expectation():
    found = [retrieval(normal(12, 12, seed=s)) for s in range(800)]
    for name, expected in retrieval_chance(12).items():
        values = [f[name] for f in found]
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / len(values) ** 0.5, name
    deaf = np.tile(normal(12), (12, 1))  # the same tiles for everyone: exactly chance
    assert {k: pytest.approx(v) for k, v in retrieval(deaf).items()} == retrieval_chance(12)


def test_relative():
    assert relative(0.6, 0.2, 1.0) == pytest.approx(0.5)
    assert relative(0.1, 0.2, 1.0) == pytest.approx(-0.125)
    assert relative(0.5, 0.5, 0.5) is None and relative(None, 0, 1) is None and relative(0.5, 0, float("nan")) is None


def test_diagonal_dominance():
    assert diagonal_dominance(1 - np.eye(6)) == {"rows": 1, "auc": 1}
    assert diagonal_dominance(np.eye(6)) == {"rows": 0, "auc": 0}
    assert diagonal_dominance(np.ones((5, 5))) == {"rows": pytest.approx(0.2), "auc": 0.5}
    found = [diagonal_dominance(normal(10, 10, seed=s)) for s in range(400)]
    assert np.mean([f["rows"] for f in found]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([f["auc"] for f in found]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.ones((1, 1)), np.array([[0, 1], [np.nan, 0]])])
def test_what_is_no_distance_matrix_is_refused(bad):
    for function in (retrieval, diagonal_dominance):
        with pytest.raises(InputError, match=r"distances: (expected a square matrix|row 1 holds NaN)"):
            function(bad)


def test_feature_distances_find_the_patient_whatever_the_amplitude_scale_and_dead_dimensions():
    real = normal(40, 30)
    assert top1(feature_distances(real, real)) == 1
    timid = real.mean(0) + 0.1 * (real - real.mean(0))
    assert top1(feature_distances(timid, real)) == 1  # each only a tenth as far from the mean
    artefact = feature_distances(timid + 1, real)  # the same in every generated tile
    assert top1(artefact) < 0.5 < top1(feature_distances(timid + 1, real, centre=True)) == 1
    scales = np.logspace(-3, 3, 30)
    other_units = feature_distances(real[::-1] * scales + 7, real * scales + 7)
    np.testing.assert_allclose(other_units, feature_distances(real[::-1], real), atol=1e-9)
    dead = np.column_stack([np.ones(40), real])  # constant in real tiles, wild in generated ones
    wild = np.column_stack([1e6 * normal(40, seed=1), real])
    np.testing.assert_allclose(feature_distances(wild, dead), feature_distances(real, real), atol=1e-9)
    nearly = np.column_stack([1e-4 * (np.arange(40) == 5), real])  # a bin that one real patient fills, all generated do
    assert top1(feature_distances(np.column_stack([np.ones(40), real]), nearly)) > 0.9
    assert (feature_distances(real, np.ones_like(real)) == 1).all()  # nothing tells the real patients apart


def test_feature_distances_half_way_and_at_chance():
    real = normal(60, 20)
    half = retrieval(feature_distances(real + 1.5 * normal(60, 20, seed=1), real))
    chance = retrieval(feature_distances(normal(60, 20, seed=2), real))
    assert 0.2 < half["top1"] < 0.9 and half["median_percentile"] > 0.95
    assert chance["top1"] < 0.1 and chance["median_percentile"] == pytest.approx(0.5, abs=0.15)


def test_order_of_patients_does_not_matter():
    real, order = normal(15, 8), np.random.default_rng(5).permutation(15)
    generated = real + normal(15, 8, seed=1)
    a, b = feature_distances(generated, real), feature_distances(generated[order], real[order])
    np.testing.assert_allclose(a[np.ix_(order, order)], b, atol=1e-12)
    assert retrieval(a) == retrieval(b) and diagonal_dominance(a) == diagonal_dominance(b)
    sets = tiles_of(real, 5)
    assert variance_explained(sets) == pytest.approx(variance_explained([sets[i] for i in order]))


def test_kid_matrix_is_the_kernel_distance_of_each_pair(monkeypatch):
    generated = [normal(n, 6, seed=n) for n in (4, 7, 2)]
    real = [normal(n, 6, seed=n) + 0.5 for n in (3, 9, 5, 6)]
    expected = [[kernel_distance(x, y) for y in real] for x in generated]
    np.testing.assert_allclose(kid_matrix(generated, real), expected, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("metrics.kernel.ENTRIES", 50)  # strips of 2 rows
    np.testing.assert_allclose(kid_matrix(generated, real), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match=r"column 1's real.*1 image"):
        kid_matrix(generated, [real[0], real[1][:1]])


def test_kid_matrix_dominates_where_tiles_match_and_not_where_they_do_not():
    means = 0.8 * normal(12, 10)
    generated, real = tiles_of(means, 20, seed=1), tiles_of(means, 20, seed=2)
    matched = kid_matrix(generated, real)
    assert diagonal_dominance(matched)["auc"] > 0.95 and abs(matched.diagonal().mean()) < 0.1 * matched.mean()
    shuffled = kid_matrix(generated[1:] + generated[:1], real)
    assert diagonal_dominance(shuffled)["auc"] < 0.65


# ---------------------------------------------------------------- pairings and their null


def test_re_pairings_are_uniform_permutations_within_groups():
    groups = np.array(["lung"] * 3 + ["brain"] * 4)
    pairings = re_pairings(7, 600, seed=1, groups=groups)
    assert pairings.shape == (600, 7) and (np.sort(pairings, 1) == np.arange(7)).all()
    assert (groups[pairings] == groups).all()
    assert (pairings[:, 0][:, None] == range(3)).mean(0) == pytest.approx([1 / 3] * 3, abs=0.07)
    assert (re_pairings(7, 600, seed=1, groups=groups) == pairings).all()
    assert (re_pairings(7, 600, seed=2, groups=groups) != pairings).any()
    with pytest.raises(InputError, match="groups"):
        re_pairings(7, groups=groups[:3])


def test_torus_shifts_of_a_full_array_are_every_shift_once():
    xy = np.argwhere(np.ones((4, 6))) + np.array([10, 3])
    shifts = torus_shifts(xy, 999)
    assert shifts.shape == (23, 24) and (np.sort(shifts, 1) == np.arange(24)).all()
    moved = (xy[shifts] - xy) % [4, 6]
    assert (moved == moved[:, :1]).all()  # all spots by the same offset
    assert sorted(map(tuple, moved[:, 0])) == [(x, y) for x in range(4) for y in range(6)][1:]  # never by none
    assert len(np.unique(torus_shifts(xy, 999, mirrored=True), axis=0)) == 4 * 24 - 1
    assert torus_shifts(xy, 7).shape == (7, 24)


def disc(hexagonal):
    """A round section: Visium-like with x + y even, or square."""
    x, y = (v.ravel() for v in np.meshgrid(range(30), range(26)))
    inside = ((x - 15) ** 2 + (y - 13) ** 2 < 150) & ((x + y) % 2 == 0 if hexagonal else True)
    return np.column_stack([x, y])[inside]


@pytest.mark.parametrize("hexagonal", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_torus_shifts_keep_neighbours_together(hexagonal, mirrored):
    xy = disc(hexagonal)
    shifts = torus_shifts(xy, 300, mirrored=mirrored)
    gap = np.abs(xy[:, None] - xy).sum(-1)
    i, j = np.nonzero(gap == (2 if hexagonal else 1))
    apart = np.abs(xy[shifts[:, i]] - xy[shifts[:, j]]).sum(-1)
    assert (apart <= 3).mean() > 0.85  # the others straddle the seam
    assert (shifts != np.arange(len(xy))).any(1).all()
    free = re_pairings(len(xy), 20)
    assert (np.abs(xy[free[:, i]] - xy[free[:, j]]).sum(-1) <= 3).mean() < 0.1


def test_torus_shifts_move_each_section_by_its_own_offset():
    xy = np.concatenate([disc(False), disc(False)[:200], [[0, 0]]])
    sections = np.repeat(["A", "B", "C"], [len(disc(False)), 200, 1])
    shifts = torus_shifts(xy, 50, groups=sections)
    assert shifts.shape == (50, len(xy)) and (sections[shifts] == sections).all()
    for bad in (np.array([[0.5, 1]]), np.zeros((3, 2), int), np.array([[0, 0], [9000, 9000]])):
        with pytest.raises(InputError, match="array positions"):
            torus_shifts(bad)


def test_torus_shifts_hold_the_level_where_neighbours_are_alike_and_free_shuffles_do_not():
    x, y = (v.ravel() for v in np.meshgrid(range(20), range(17)))
    xy = np.column_stack([x, y])[(x - 10) ** 2 / 90 + (y - 8) ** 2 / 60 < 1]
    free, torus = re_pairings(len(xy), 199), torus_shifts(xy, 199)
    rng = np.random.default_rng(3)

    def smooth():  # a random field as wide as a fifth of the section
        k = rng.normal(size=(8, 2)) * 0.35
        return np.cos(xy @ k.T + rng.uniform(0, 6.3, 8)).sum(1)

    fields = [(smooth(), smooth()) for _ in range(200)]
    wrong = {name: np.mean([agreement(*f, p)["p_value"] < 0.05 for f in fields]) for name, p in
             (("free", free), ("torus", torus))}  # fmt: skip
    assert wrong["torus"] < 0.12 < 0.2 < wrong["free"], wrong


def test_null_of_by_hand():
    null = np.arange(1.0, 100)
    high = null_of(98, null)
    assert high["p_value"] == pytest.approx(3 / 100) and high["count"] == 99 and high["null_mean"] == 50
    assert null_of(2, null, lower_is_better=True)["p_value"] == pytest.approx(3 / 100)
    assert null_of(2, null, lower_is_better=True)["null_q99"] == pytest.approx(np.quantile(null, 0.01))
    assert null_of(0, [-3, 1, np.nan])["null_mean_abs"] == 2
    assert null_of(0.3, [0.1 + 0.2])["p_value"] == 1  # equal but for rounding
    for empty in (null_of(None, null), null_of(float("nan"), null), null_of(1, [])):
        assert empty["p_value"] is None
    assert null_of(1, [])["null_q99"] is None


def test_null_of_matrix_is_the_statistic_of_permuted_rows():
    distance, pairings = 1 - np.eye(8), re_pairings(8, 199)
    found = null_of_matrix(distance, top1, pairings)
    fixed = (pairings == np.arange(8)).mean(1)  # top-1 of a permuted identity: its fixed points
    assert found["value"] == 1 and found["null_mean"] == pytest.approx(fixed.mean()) and found["p_value"] == 1 / 200
    worst = null_of_matrix(distance, lambda d: float(d.diagonal().mean()), pairings, lower_is_better=True)
    assert worst["value"] == 0 and worst["p_value"] == 1 / 200


def test_p_values_are_uniform_under_the_null():
    pairings = re_pairings(15, 99)
    by_r = [agreement(normal(15, seed=s), normal(15, seed=s + 5000), pairings)["p_value"] for s in range(400)]
    auc = [null_of_matrix(normal(15, 15, seed=s), lambda d: diagonal_dominance(d)["auc"], pairings)["p_value"]
           for s in range(300)]  # fmt: skip
    for p in (by_r, auc):
        assert stats.kstest(p, "uniform").statistic < 0.1
        assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


# ---------------------------------------------------------------- agreement, dose


def test_agreement_perfect_half_way_and_chance():
    real, pairings = normal(60), re_pairings(60, 499)
    perfect = agreement(real, 2 * real + 3, pairings)
    assert perfect["pearson"] == pytest.approx(1) and perfect["spearman"] == pytest.approx(1) and perfect["n"] == 60
    assert perfect["p_value"] == 1 / 500 and perfect["shuffled_pearson"] == pytest.approx(0.8 / 59**0.5, rel=0.15)
    half = agreement(real, real + normal(60, seed=1), pairings)  # noise of the same spread: r about 0.7
    assert half["pearson"] == pytest.approx(0.707, abs=0.15) and half["p_value"] < 0.01
    assert half["null_q99"] == pytest.approx(2.33 / 59**0.5, rel=0.2)
    chance = agreement(real, normal(60, seed=2), pairings)
    assert abs(chance["pearson"]) < 0.3 and chance["p_value"] > 0.01
    assert agreement(real, real + 0.5, pairings)["wasserstein"] == pytest.approx(0.5)
    order = np.random.default_rng(0).permutation(60)
    again = agreement(real[order], (real + normal(60, seed=1))[order], pairings)
    assert again["pearson"] == pytest.approx(half["pearson"]) and again["wasserstein"] == half["wasserstein"]


def test_agreement_leaves_out_missing_values_pairwise():
    real, generated, pairings = normal(30), normal(30, seed=1), re_pairings(30, 99)
    real[3], generated[[5, 9]] = np.nan, [np.inf, np.nan]
    used = np.isfinite(real) & np.isfinite(generated)
    found = agreement(real, generated, pairings)
    assert found["n"] == 27
    assert found["pearson"] == pytest.approx(stats.pearsonr(real[used], generated[used]).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(real[used], generated[used]).statistic)
    null = []
    for moved in (generated[p] for p in pairings):
        both = np.isfinite(real) & np.isfinite(moved)
        null.append(stats.pearsonr(real[both], moved[both]).statistic)
    assert found["shuffled_pearson"] == pytest.approx(np.abs(null).mean())


def test_agreement_that_is_undefined_is_none_not_nan():
    pairings = re_pairings(6, 19)
    constant = agreement(normal(6), np.full(6, 0.1), pairings)
    assert constant["pearson"] is None and constant["spearman"] is None and constant["p_value"] is None
    assert constant["wasserstein"] > 0 and constant["n"] == 6
    missing = agreement(np.full(6, np.nan), normal(6), pairings)
    assert missing["n"] == 0 and all(missing[k] is None for k in ("pearson", "wasserstein", "null_q99"))
    assert np.isnan(correlations(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])))[0]  # 2 rows


def test_dose_response():
    alphas = np.array([0, 2, -2, 1, -1])
    rising = dose_response(alphas, np.exp(alphas))
    assert rising["spearman"] == pytest.approx(1) and rising["sign"] == 1 and rising["change_sd"] is None
    assert rising["change"] == pytest.approx(np.exp(2) - np.exp(-2))
    noise = normal(400, 5)
    repeated = dose_response(alphas, noise - alphas)
    assert repeated["spearman"] == pytest.approx(-1) and repeated["sign"] == -1 and repeated["repeats"] == 400
    assert repeated["change_sd"] == pytest.approx(-4, abs=0.3) and -0.95 < repeated["spearman_repeats"] < -0.7
    flat = dose_response(alphas, np.ones(5))
    assert flat["spearman"] is None and flat["sign"] is None and flat["change"] == 0
    holed = dose_response([0, 1, 2, 3], [[0, np.nan, 2, 3], [0, np.nan, 2, 3]])
    assert holed["spearman"] == pytest.approx(1) and holed["change"] == 3 and holed["change_sd"] is None


# ---------------------------------------------------------------- round trip


def test_ridge_is_scikit_learns_and_predicts_new_groups():
    x, groups = normal(120, 12) * np.logspace(-2, 2, 12) + 5, np.repeat(np.arange(20), 6)
    y = x / np.logspace(-2, 2, 12) @ normal(12, 3, seed=1) + 0.5 * normal(120, 3, seed=2)
    x = np.column_stack([x, np.ones(120)])  # a constant feature
    for rows in (slice(None), slice(0, 90, 9)):  # more rows than features, and fewer
        model = fit_ridge(x[rows], y[rows], groups[rows], alphas=[3.0])
        sd = np.where(x[rows].std(0) > 0, x[rows].std(0), 1)
        theirs = Ridge(alpha=3.0).fit((x[rows] - x[rows].mean(0)) / sd, y[rows])
        np.testing.assert_allclose(model.predict(x), theirs.predict((x - x[rows].mean(0)) / sd), atol=1e-8)
    train = groups < 15
    model = fit_ridge(x[train], y[train], groups[train])
    assert (correlations(model.predict(x[~train]), y[~train]) > 0.9).all() and (model.cv_r > 0.9).all()
    with pytest.raises(InputError, match="fitted on 13 features"):
        model.predict(x[:, :5])


def test_ridge_leaves_groups_out():
    """Features that name the group predict rows of a seen group and no other: only a heavy penalty survives."""
    groups = np.repeat(np.arange(40), 10)
    x = normal(40, 40, seed=5)[groups] + 0.01 * normal(400, 40)
    y = np.column_stack([normal(40, seed=1)[groups], x @ normal(40, seed=2)])
    alphas = [0.1, 1e6]
    assert fit_ridge(x, y[:, :1], groups, alphas).alphas.tolist() == [1e6]
    assert fit_ridge(x, y[:, :1], np.arange(400), alphas).alphas.tolist() == [0.1]  # rows left out instead
    seen = normal(400, 40, seed=3)
    both = fit_ridge(seen, np.column_stack([y[:, 0], seen[:, 0]]), groups, alphas)
    assert both.alphas.tolist() == [1e6, 0.1] and both.cv_r[1] > 0.99  # a penalty for each target
    with pytest.raises(InputError, match="at least 2 groups"):
        fit_ridge(x, y, np.zeros(400))


def test_round_trip_perfect_half_way_and_chance():
    truth, pairings = normal(80, 6), re_pairings(80, 199)
    from_real = truth + 0.5 * normal(80, 6, seed=1)
    from_real[:, 4:] = normal(80, 2, seed=2) * [1, -1]  # two components that tiles do not show
    perfect = round_trip(truth, from_real, from_real, pairings, floor=0.4)
    assert perfect["ratio"] == 1 and (perfect["kept"], perfect["left_out"]) == (4, 2) and perfect["p_value"] == 1 / 200
    noisy = truth + 2 * normal(80, 6, seed=3)  # r = 1 / sqrt(5) against 1 / sqrt(1.25): half
    half = round_trip(truth, noisy, from_real, pairings, floor=0.4)
    assert half["ratio"] == pytest.approx(0.5, abs=0.1) and half["p_value"] < 0.01
    assert half["r_real"] == pytest.approx(0.894, abs=0.03)
    chance = round_trip(truth, normal(80, 6, seed=4), from_real, pairings, floor=0.4)
    assert abs(chance["ratio"]) < 0.2 and chance["p_value"] > 0.01
    deaf = round_trip(truth, np.ones((80, 6)), from_real, pairings)
    assert deaf["ratio"] == 0 and deaf["p_value"] == 1
    hopeless = round_trip(truth, truth, np.ones((80, 6)), pairings)
    assert hopeless["kept"] == 0 and hopeless["ratio"] is None and hopeless["p_value"] is None


# ---------------------------------------------------------------- diversity


def test_variance_explained_is_corrected_for_chance():
    nothing = [variance_explained(tiles_of(np.zeros((10, 5)), 4, seed=s)) for s in range(200)]
    assert abs(np.mean(nothing)) < 0.01 and min(nothing) < 0  # the plain share, eta squared, would be 9 / 39
    half = [variance_explained(tiles_of(normal(40, 5, seed=s), 4, seed=s + 999)) for s in range(50)]
    assert np.mean(half) == pytest.approx(0.5, abs=0.02)
    uneven = [normal(n, 3, seed=n) + m for n, m in ((2, 0), (50, 10), (9, -10))]
    assert 0.9 < variance_explained(uneven) < 1
    assert variance_explained([np.full((3, 2), p) for p in range(4)]) == 1
    assert variance_explained([np.ones((3, 2))] * 4) == 0
    with pytest.raises(InputError, match="at least one needs 2"):
        variance_explained([np.ones((1, 2))] * 4)


def test_spread_ratio():
    means = 5 * normal(9, 6)
    real = tiles_of(means, 200, seed=1)
    same, half = spread_ratio(tiles_of(means, 150, seed=2), real), spread_ratio(tiles_of(means, 150, 0.5), real)
    assert same["median"] == pytest.approx(1, abs=0.03) and half["median"] == pytest.approx(0.5, abs=0.02)
    assert half["lowest"] <= half["median"] <= half["highest"] and half["n"] == 9
    assert spread_ratio([x[:1].repeat(5, 0) for x in real], real)["highest"] == 0  # one tile over and over
    dead = spread_ratio(real[:2], [real[0], np.ones((4, 6))])
    assert dead["n"] == 1 and dead["ratios"] == [1, None]


def test_memorisation_half_where_fresh_and_one_where_copied(monkeypatch):
    train, held_out = normal(600, 8, seed=1), normal(150, 8, seed=2)
    fresh = memorisation(normal(400, 8), train, held_out)
    assert fresh["mean"] == pytest.approx(0.5, abs=0.07) and fresh["size"] == 150 and 0 < fresh["sd"] < 0.1
    assert memorisation(normal(400, 8), train, held_out) == fresh
    copies = train[:150] + 1e-3 * normal(150, 8)
    assert memorisation(copies, train[:150], held_out)["mean"] == 1
    assert memorisation(copies, held_out, train[:150])["mean"] == 0
    half = np.concatenate([copies, held_out])
    assert memorisation(half, train[:150], held_out)["mean"] == pytest.approx(0.5)
    assert memorisation(half, held_out, held_out)["mean"] == 0.5  # all ties
    monkeypatch.setattr("metrics.diversity.ENTRIES", 5000)
    assert memorisation(normal(400, 8), train, held_out) == fresh


def test_nearest_pairs(monkeypatch):
    train, generated = normal(300, 8, seed=1), normal(80, 8, seed=2)
    generated[[7, 8, 9]] = train[[200, 200, 3]] + [[0], [1e-4], [1e-2]]  # two copies of one training tile
    for _ in range(2):
        pairs = nearest_pairs(generated, train)
        assert [p[:2] for p in pairs[:2]] == [(7, 200), (9, 3)] and pairs[0][2] == 0
        assert pairs[1][2] == pytest.approx(1e-2 * 8**0.5)
        assert len(pairs) == 10 == len({j for _, j, _ in pairs}) and pairs == sorted(pairs, key=lambda p: p[2])
        monkeypatch.setattr("metrics.diversity.ENTRIES", 2000)
    assert len(nearest_pairs(generated, train[:4])) == 4


# ---------------------------------------------------------------- colour


def test_greyscale_is_pillows():
    tiles = np.random.default_rng(0).integers(0, 256, (3, 9, 7, 3), dtype=np.uint8)
    grey = greyscale(tiles)
    assert grey.dtype == np.uint8 and grey.shape == tiles.shape and (grey == grey[..., :1]).all()
    np.testing.assert_array_equal(grey[1, ..., 0], np.asarray(Image.fromarray(tiles[1]).convert("L")))
    np.testing.assert_array_equal(greyscale(grey), grey)
    with pytest.raises(InputError, match="uint8"):
        greyscale(tiles / 255)


def test_colour_histogram_knows_colour_and_nothing_else():
    tiles = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    histogram = colour_histogram(tiles)
    assert histogram.shape == (4, 512) and histogram.dtype == np.float32
    np.testing.assert_allclose(histogram.sum(1), 1, rtol=1e-6)
    expected = np.histogramdd(tiles[2].reshape(-1, 3), bins=8, range=[(0, 256)] * 3)[0]
    np.testing.assert_allclose(histogram[2], expected.ravel() / 256, rtol=1e-6)
    pixels = tiles.reshape(4, 256, 3)[:, np.random.default_rng(1).permutation(256)]
    np.testing.assert_array_equal(colour_histogram(pixels.reshape(tiles.shape)), histogram)
    assert colour_histogram(np.full((1, 2, 2, 3), [255, 0, 32], np.uint8))[0, 7 * 64 + 1] == 1


def test_a_ridge_does_not_follow_a_feature_that_training_hardly_saw():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=400), np.zeros(400)])
    x[:2, 1] = 0.01  # a colour that two tiles have
    y = x[:, :1] + 0.1 * rng.normal(size=(400, 1))
    y[:2] += 1
    ridge = fit_ridge(x, y, np.arange(400) // 8)
    far = x.copy()
    far[:, 1] = rng.random(400)  # of which the generator has plenty
    assert correlations(ridge.predict(far), y)[0] > 0.95
    assert np.allclose(
        ridge.predict(far),
        ridge.predict(np.column_stack([x[:, 0], np.minimum(far[:, 1], 5 * x[:, 1].std() + x[:, 1].mean())])),
    )
