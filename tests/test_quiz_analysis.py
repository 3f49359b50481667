"""Export and analysis: a row per answer, and numbers that a simulation with known observers gives back."""

import json

import numpy as np
import pandas as pd
import pytest
from quiz_visitors import make_quiz, open_answers
from scipy.stats import norm

from quiz.analysis import COLUMNS, RATINGS, analyse, answer_table, summary
from quiz.result import scale_bar, standing
from quiz.store import Answer, Tally

SKILL = {"gan": 2.5, "rna-gan": 0.5}  # d' of the simulated observers, by model


def simulate(store, deck, visitors=40, n=40, rated=True):
    """Visitors who see evidence N(0, 1) of a real tile, N(d', 1) of a synthetic one, and are unbiased at d' = 1.5."""
    store._connection().execute("PRAGMA synchronous = OFF")  # 1,600 answers, of which none need survive
    rng = np.random.default_rng(3)
    for v in range(visitors):
        tiles = deck.deal(rng, n)
        visit, _ = store.start(tiles, ("lay", "pathologist", None)[v % 3])
        for position, tile in enumerate(tiles, 1):
            card = deck.cards[tile]
            evidence = rng.normal(0 if card.real else SKILL[card.model]) - 0.75
            sure = 1 + int(abs(evidence) > 0.5) + int(abs(evidence) > 1.2)
            quality = {"real": 4, "gan": 2, "rna-gan": 3}[card.model] + int(rng.integers(-1, 2)) if rated else None
            assert store.answer(visit, position, Answer(evidence < 0, sure, quality), 0, False)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    deck, store = open_answers(make_quiz(tmp_path_factory.mktemp("quiz"), n=96, per_cell=24).folder)
    simulate(store, deck)
    return deck, answer_table(store, deck)


def test_there_is_one_row_per_answer_with_its_truth(answered):
    deck, table = answered
    assert list(table.columns) == COLUMNS and len(table) == 40 * 40
    assert not table.duplicated(["visit", "position"]).any() and not table.duplicated(["visit", "tile"]).any()
    assert (table["correct"] == (table["truth"] == table["answer"])).all() and table["finished"].all()
    assert (table["truth"] == table["tile"].map(lambda t: "real" if deck.cards[t].real else "synthetic")).all()
    assert (table["seconds"] >= 0).all() and pd.to_datetime(table["answered"]).dt.tz is not None


def test_d_prime_and_accuracy_of_each_model_are_those_of_the_observers(answered):
    found = analyse(answered[1], resamples=400)
    for model, d in SKILL.items():
        block = found["by_model"][model]
        assert block["d_prime"]["value"] == pytest.approx(d, abs=0.3), model
        assert block["d_prime"]["low"] < d < block["d_prime"]["high"] and block["accuracy"]["n"] == 400
        assert block["accuracy"]["value"] == pytest.approx(norm.cdf(d - 0.75), abs=0.08)
        assert block["criterion"]["value"] == pytest.approx(0.75 - d / 2, abs=0.15)
        area = norm.cdf(d / np.sqrt(2))  # of equal-variance observers (Green and Swets 1966)
        assert block["roc_area"]["value"] == pytest.approx(area, abs=0.06)
    everything = found["all"]
    assert everything["specificity"]["value"] == pytest.approx(norm.cdf(0.75), abs=0.05)
    assert everything["accuracy"]["interval"] == "bootstrap over visitors" and everything["visitors"] == 40
    assert everything["accuracy"]["value"] == pytest.approx(answered[1]["correct"].mean())
    assert set(found["by_experience"]) == {"lay", "pathologist", "not given"} and set(found["by_tissue"]) == {
        "lung",
        "brain",
    }


def test_quality_orders_the_models_with_intervals_over_visitors_and_tiles(answered):
    quality = analyse(answered[1], resamples=400)["quality"]
    assert [round(quality["means"][m]["mean"]) for m in ("gan", "rna-gan", "real")] == [2, 3, 4]
    for pair in quality["differences"]:
        low, high = pair["interval"]
        assert low < pair["difference"] < high and not low < 0 < high
    assert len(quality["differences"]) == 3


def test_tiles_are_listed_hardest_first_and_every_answer_is_in_one(answered):
    tiles = analyse(answered[1], resamples=50)["tiles"]
    shares = [t["accuracy"] for t in tiles]
    assert shares == sorted(shares) and sum(t["n"] for t in tiles) == 1600
    assert all(t["low"] <= t["accuracy"] <= t["high"] for t in tiles)
    hard = [t["model"] for t in tiles[:10]]
    assert hard.count("rna-gan") > 7, "those that fooled the simulated observers"


def test_the_analysis_is_the_same_for_the_same_seed_and_is_json(answered):
    a, b = (json.dumps(analyse(answered[1], 5, 100), allow_nan=False) for _ in range(2))
    assert a == b != json.dumps(analyse(answered[1], 6, 100))
    text = "\n".join(summary(json.loads(a)))
    assert "1600 answers in 40 visits (40 finished) of 40 visitors" in text and "rna-gan: right 0." in text


def test_few_visitors_have_wilsons_interval_and_say_so(tmp_path):
    deck, store = open_answers(make_quiz(tmp_path).folder)
    empty = analyse(answer_table(store, deck))
    assert empty["answers"] == 0 and "0 answers in 0 visits (0 finished) of 0 visitors" in summary(empty)[0]
    simulate(store, deck, visitors=3, n=8, rated=False)
    found = json.loads(json.dumps(analyse(answer_table(store, deck), resamples=50), allow_nan=False))
    block = found["all"]
    assert block["accuracy"]["interval"] == "Wilson over answers" and block["d_prime"]["interval"] == "none"
    assert block["d_prime"]["low"] is None and found["quality"] == {"means": {}, "differences": []}


def test_where_all_visitors_did_alike_an_interval_still_has_a_width(answered):
    """Who knows all tiles: a bootstrap over visitors gives 1 to 1, which no 1,600 answers can show."""
    right = answered[1].assign(answer=answered[1]["truth"], correct=True)
    found = json.loads(json.dumps(analyse(right, resamples=50), allow_nan=False))
    for block in (found["all"], found["by_model"]["gan"], found["by_tissue"]["lung"]):
        accuracy = block["accuracy"]
        assert accuracy["value"] == accuracy["high"] == 1 and 0.98 < accuracy["low"] < 1
        assert accuracy["interval"] == block["specificity"]["interval"] == "Wilson over answers"
    assert found["all"]["d_prime"]["interval"] == "none" and "right 1.000 (0.998 to 1.000)" in summary(found)[1]


def test_a_model_that_few_saw_has_wilsons_interval_though_many_saw_real_tiles(answered):
    table = answered[1]
    few = table[(table["model"] != "gan") | (table["visitor"] <= 2)]
    found = analyse(few, resamples=50)["by_model"]["gan"]
    assert found["visitors"] == 40 and found["accuracy"]["interval"] == "Wilson over answers"
    assert found["d_prime"]["low"] is None and found["specificity"]["interval"] == "bootstrap over visitors"


def test_one_person_in_many_visits_is_one_visitor(answered):
    alone = answered[1].assign(visitor=1)
    found = json.loads(json.dumps(analyse(alone, resamples=50), allow_nan=False))
    assert found["visitors"] == 1 and found["visits"] == 40
    assert found["all"]["accuracy"]["interval"] == "Wilson over answers"
    assert found["quality"]["means"]["gan"]["visitors"] == 1
    assert found["quality"]["means"]["gan"]["interval"] is None, "one visitor cannot say how others would differ"
    assert {pair["interval"] for pair in found["quality"]["differences"]} == {None}


def test_a_visitor_who_saw_one_kind_only_has_no_d_prime(answered):
    real = answered[1][answered[1]["truth"] == "real"]
    block = json.loads(json.dumps(analyse(real, resamples=50)["all"], allow_nan=False))
    assert (
        block["d_prime"]["value"] is None
        and block["sensitivity"]["value"] is None
        and block["roc_area"]["value"] is None
    )
    assert block["specificity"]["value"] == pytest.approx(real["correct"].mean())


def test_sureness_orders_the_ratings(answered):
    assert RATINGS == 6  # 3 of each answer: certainly real 0, ..., certainly synthetic 5
    table = answered[1].iloc[:12].assign(
        visitor=1, visit=1, truth=["real"] * 6 + ["synthetic"] * 6, sure=[3, 2, 1, 1, 2, 3] * 2,
        answer=(["real"] * 3 + ["synthetic"] * 3) * 2,
    )  # fmt: skip
    table["correct"] = table["truth"] == table["answer"]
    assert analyse(table, resamples=20)["all"]["roc_area"]["value"] == 0.5
    worse = table.assign(sure=[3, 3, 3, 1, 1, 1, 1, 1, 1, 3, 3, 3])
    assert analyse(worse, resamples=20)["all"]["roc_area"]["value"] == pytest.approx(0.75)


def test_standing_among_others():
    crowd = [("lay", Tally(2, 4, 2, 4), 6), ("pathologist", Tally(4, 4, 0, 4), 2), (None, Tally(3, 4, 1, 4), 1)]
    own = standing(Tally(3, 4, 1, 4), crowd)
    assert own.others == 8 and own.compared and own.worse == 6 / 8
    assert own.bars[5] == 6 and own.bars[7] == 1 and own.bars[9] == 2 and own.own_bar == 7
    assert [(g.name, g.visits, g.accuracy) for g in own.groups] == [("lay", 6, 0.5)], "no group of fewer than 5"
    assert own.mean == pytest.approx((6 * 4 + 2 * 8 + 6) / 72) and own.d_prime == pytest.approx(2 * norm.ppf(3.5 / 5))


@pytest.mark.parametrize(("um", "length"), [(64, 20), (128, 20), (32, 10), (299.9, 50), (300, 100), (0.9, 0.2)])
def test_a_scale_bar_is_a_round_number_of_at_most_a_third(um, length):
    assert scale_bar(um) == (length, pytest.approx(length / um))
