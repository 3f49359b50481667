"""What a finished `make demo` must show. Run after it; skipped where there is none."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datasets.keys import slide_key
from datasets.tiles import open_stores
from datasets.tileset import TileSet
from metrics.morphology import morphology
from quiz.deck import Deck

DEMO = Path(__file__).parents[1] / "demo"
pytestmark = pytest.mark.skipif(
    not (DEMO / ".done/report").exists(), reason="no finished demo in demo/: run `make demo` first"
)


def accuracy(name):
    return json.loads((DEMO / "classifier" / name / "metrics.json").read_text())["scores"]["accuracy"]["value"]


def test_the_classifier_knows_the_tissues_from_real_and_from_synthetic_tiles_and_not_from_shuffled_labels():
    assert accuracy("real") >= 0.95
    assert accuracy("synthetic_to_real") >= 0.80
    assert accuracy("real_shuffled") == pytest.approx(0.5, abs=0.1)


def test_the_vae_beats_the_tissue_mean():
    test = json.loads((DEMO / "checkpoints/betavae_tissues/metrics.json").read_text())["test"]["all"]
    assert test["vae"]["mse_high"] < test["tissue_mean"]["mse_low"]


def test_the_distances_are_of_200_tiles_in_two_draws():
    matrix = json.loads((DEMO / "fid/matrix/metrics.json").read_text())
    assert matrix["iterations"] == 2 and {s["n"] for s in matrix["sources"].values()} == {200}
    assert len(matrix["pairs"]) == 15


def test_the_page_is_whole():
    html = (DEMO / "report.html").read_text()
    assert 'class="missing"' not in html and "http://" not in html.replace("http://www.w3.org", "")


def test_the_quiz_is_of_both_tissues_and_models_half_real():
    deck = Deck(DEMO / "quiz")
    assert len(deck.cards) == 200 and sum(card.real for card in deck.cards.values()) == 100
    assert (deck.tissues, deck.models, deck.side, deck.um) == (["brain", "lung"], ["gan", "rna-gan"], 64, 64.0)


@pytest.mark.parametrize("tissue", ["lung", "brain"])
def test_each_measure_of_real_tiles_is_its_own_factor_and_no_other(tissue):
    truth = pd.read_csv(DEMO / "truth.csv")
    truth = truth[truth["tissue"] == tissue].set_index("slide")
    own = {"nuclear_density": 0.9, "nuclear_size": 0.7, "eosin_od": 0.9, "white_space": 0.9}
    found = {}
    for slide, store in open_stores(DEMO / "tiles" / tissue).items():
        tiles = TileSet([store], 64)
        m = morphology(tiles.read(range(len(tiles))), tiles.mpp)
        found[slide] = {name: np.nanmean(m[name]) for name in own}
    table = pd.DataFrame(found).T
    factors = truth.set_index(truth.index.map(slide_key)).loc[table.index, list(own)]
    r = pd.DataFrame({a: {b: np.corrcoef(table[a], factors[b])[0, 1] for b in own} for a in own})  # [factor, measure]
    for measure, bar in own.items():
        assert abs(r.loc[measure, measure]) >= bar, (measure, r)
        assert r[measure].drop(measure).abs().max() <= 0.3, (measure, r)


@pytest.mark.parametrize("tissue", ["lung", "brain"])
def test_tiles_of_held_out_donors_match_their_expression(tissue):
    m = json.loads((DEMO / "conditioning" / tissue / "metrics.json").read_text())
    bars = {"nuclear_density": 0.8, "white_space": 0.8, "eosin_od": 0.6}
    for measure, bar in bars.items():
        found = m["morphology"][measure]
        assert found["pearson"] >= bar and found["pearson"] > found["null_q99"], measure
        assert found["p_value"] < 0.01 and found["shuffled_pearson"] <= 0.25, measure
    assert 0.5 <= m["diversity"]["value"] <= 2
    assert (DEMO / "conditioning" / tissue / "report.html").exists()
