"""The set of tiles: balanced, the same choice for the same seed, and nothing in a file that tells what it is."""

import io
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from quiz_visitors import SIDE, make_quiz, scene, write_generated, write_sources
from scipy.fft import dctn

from common.errors import InputError
from datasets.keys import split_of
from datasets.tiles import area_resize, encode_image, write_store
from quiz.build import build_quiz
from quiz.deck import REAL, Card, Deck, deal
from quiz.pictures import made_alike, padded


def pixels(data):
    return np.array(Image.open(io.BytesIO(data)))


def head(data):
    """A JPEG's bytes up to its pixels: markers, tables, sizes, comments."""
    return data[: data.index(b"\xff\xda")]


def blocks(image):
    """Coefficients of the cosine transform of blocks of 8 px, grey levels, (blocks, 8, 8)."""
    grey = image.astype(float) @ (0.299, 0.587, 0.114) - 128
    n = grey.shape[0] // 8
    return dctn(grey.reshape(n, 8, n, 8).swapaxes(1, 2).reshape(-1, 8, 8), axes=(1, 2), norm="ortho")


def fine_detail(image):
    """What compression sets to zero first."""
    return np.median(np.abs(blocks(image)[:, np.add.outer(np.arange(8), np.arange(8)) >= 8]))


def zeros(image):
    """The share of coefficients that are nearly zero."""
    return (np.abs(blocks(image)) < 1.5).mean()


def colour_detail(image):
    """Steps of red against green between neighbours; compression keeps colour at half the resolution."""
    return np.median(np.abs(np.diff(image[..., 0].astype(float) - image[..., 1], axis=1)))


def area_under(a, b):
    """P(a value of a > one of b)."""
    return (np.subtract.outer(a, b) > 0).mean() + (np.subtract.outer(a, b) == 0).mean() / 2


def test_half_are_real_and_tissues_models_and_donors_are_balanced(tmp_path):
    deck = make_quiz(tmp_path, n=48)
    counts = Counter((c.tissue, c.model) for c in deck.cards.values())
    assert counts == {(t, m): 12 if m == REAL else 6 for t in ("lung", "brain") for m in (REAL, "gan", "rna-gan")}
    donors = Counter(re.search(r"D\d", c.source).group() for c in deck.cards.values() if c.real)
    assert set(donors.values()) == {8}
    assert deck.um == 32.0 and deck.side == SIDE


def test_the_files_of_real_and_synthetic_tiles_differ_in_nothing_but_the_picture(tmp_path):
    deck = make_quiz(tmp_path)
    data = {card.real: [] for card in deck.cards.values()}
    for card in deck.cards.values():
        data[card.real].append(deck.path(card.id).read_bytes())
        assert re.fullmatch(r"[0-9a-f]{16}", card.id)
    everything = data[True] + data[False]
    assert len({len(d) for d in everything}) == 1, "equally long"
    assert len({head(d) for d in everything}) == 1, "same tables, same sizes, no EXIF, no comment"
    assert not any(word in head(everything[0]) for word in (b"Exif", b"ICC", b"http", b"\xff\xfe"))
    for d in everything:
        end = d.rindex(b"\xff\xd9") + 2
        assert not d[end:].strip(b"\0"), "only zeros after the end"
        assert pixels(d).shape == (SIDE, SIDE, 3) and not Image.open(io.BytesIO(d)).info.get("comment")
    listed = sorted(p.name for p in (deck.folder / "tiles").iterdir())
    assert listed == sorted(f"{name}.jpg" for name in deck.cards) and json.dumps(listed).count("real") == 0


def as_in_a_slide(image):
    """A tile of 64 px cut, off the grid of its blocks, from a slide of JPEG quality 70, and stored."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=70, subsampling="4:2:2")
    return pixels(encode_image(pixels(buffer.getvalue())[5:69, 3:67], "jpeg", 95))


@pytest.mark.parametrize("telltale", [fine_detail, zeros, colour_detail])
def test_that_real_tiles_were_compressed_before_does_not_give_them_away(telltale):
    """As they come, one number tells the two kinds apart, tile by tile; after the common round trip it does not."""
    rng = np.random.default_rng(5)
    real, drawn = [as_in_a_slide(scene(rng, 80)) for _ in range(40)], [scene(rng, 80)[5:69, 3:67] for _ in range(40)]
    before = area_under(*(np.array([telltale(x) for x in kind]) for kind in (real, drawn)))
    after = area_under(*(np.array([telltale(pixels(made_alike(x, 64))) for x in kind]) for kind in (real, drawn)))
    assert abs(before - 0.5) > 0.45 and abs(after - 0.5) < 0.2, (before, after)


def test_the_same_picture_leaves_the_same_bytes_whatever_it_was_stored_as():
    tile = scene(np.random.default_rng(2), 64)
    assert made_alike(pixels(encode_image(tile, "png")), 32) == made_alike(tile, 32)
    wide = np.concatenate([np.zeros((64, 16, 3), np.uint8), tile, np.zeros((64, 16, 3), np.uint8)], 1)
    assert made_alike(wide, 32) == made_alike(tile, 32), "the central square"
    error = pixels(made_alike(tile, 32)).astype(float) - area_resize(tile, 32)
    assert np.abs(error).mean() < 12, "still the picture"
    assert [len(d) for d in padded([b"abc", b"a"])] == [3, 3]


def test_the_same_seed_chooses_the_same_tiles_under_other_names(tmp_path):
    real, synthetic = write_sources(tmp_path)
    a, b, c = (build_quiz(real, synthetic, tmp_path / n, 24, 8, seed)[0] for n, seed in (("a", 5), ("b", 5), ("c", 6)))
    sources = [sorted(card.source for card in deck.cards.values()) for deck in (a, b, c)]
    assert sources[0] == sources[1] != sources[2]
    assert not set(a.cards) & set(b.cards) and a.key != b.key, "who knows the seed does not know the names"
    order = [[deck.cards[i].real for i in sorted(deck.cards)] for deck in (a, b)]
    assert order[0] != order[1], "nor does the order of names tell"


def test_a_visit_is_balanced_and_its_order_tells_nothing(tmp_path):
    deck = make_quiz(tmp_path)
    rng = np.random.default_rng(0)
    visits = [[deck.cards[i] for i in deck.deal(rng)] for _ in range(600)]
    for cards in visits:
        assert len({c.id for c in cards}) == 8 and sum(c.real for c in cards) == 4
        assert Counter((c.tissue, c.real) for c in cards) == {(t, r): 2 for t in ("lung", "brain") for r in (0, 1)}
    real = np.array([[c.real for c in cards] for cards in visits])  # (600, 8)
    assert np.abs(real.mean(0) - 0.5).max() < 0.08, "4 standard errors"
    pairs = (real[:, 1:] == real[:, :-1]).mean()
    assert abs(pairs - 3 / 7) < 0.03, "neighbours are of one kind as often as in a random order of 4 and 4"
    assert len({tuple(c.id for c in cards) for cards in visits}) == 600
    seen = Counter(c.id for cards in visits for c in cards)
    assert set(seen) == set(deck.cards) and min(seen.values()) > 50  # of 100 expected


def test_a_code_decides_tiles_and_order_and_needs_the_key(tmp_path):
    real, synthetic = write_sources(tmp_path)
    a, b = (build_quiz(real, synthetic, tmp_path / name, 48, 8)[0] for name in "ab")
    assert a.deal_for("P01") == a.deal_for("P01") != a.deal_for("P02")
    source = [[deck.cards[i].source for i in deck.deal_for("P01")] for deck in (a, b)]
    assert source[0] != source[1]


def test_a_deal_of_all_tiles_and_of_unequal_cells_has_each_once():
    cards = [Card(f"r{i}", "lung", REAL, "") for i in range(5)] + [Card(f"s{i}", "lung", "gan", "") for i in range(3)]
    rng = np.random.default_rng(1)
    assert sorted(deal(cards, 8, rng)) == sorted(c.id for c in cards)
    assert all(len(set(deal(cards, n, rng))) == n for n in range(2, 9))


def test_building_again_keeps_what_is_there_and_never_orphans_answers(tmp_path, capsys):
    real, synthetic = write_sources(tmp_path)
    deck, kept = build_quiz(real, synthetic, tmp_path / "quiz", 24, 8)
    again, kept_again = build_quiz(real, synthetic, tmp_path / "quiz", 24, 8)
    assert (kept, kept_again) == (False, True) and again.digest == deck.digest
    other, _ = build_quiz(real, synthetic, tmp_path / "quiz", 16, 8)
    assert len(list((tmp_path / "quiz/tiles").iterdir())) == len(other.cards) == 16
    (tmp_path / "quiz/answers.sqlite").touch()
    with pytest.raises(InputError, match="with answers"):
        build_quiz(real, synthetic, tmp_path / "quiz", 24, 8)
    assert Deck(tmp_path / "quiz").digest == other.digest
    next((tmp_path / "quiz/tiles").iterdir()).unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        Deck(tmp_path / "quiz")


def test_with_split_only_donors_of_it_are_shown_and_a_model_that_knows_them_is_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    donors = [f"GTEX-A{i}" for i in range(30)]
    for donor in donors:
        write_store(tmp_path / "tiles/lung", f"{donor}-0625", [(0, 0, 1.0, scene(rng))] * 2, mpp=1.0, tile_size=SIDE)
    made = write_generated(tmp_path / "gan_lung", "lung", "gan", [scene(rng) for _ in range(8)], checkpoint="x.model")
    (tmp_path / "x.model").touch()
    from datasets.leaks import TrainedOn, donor_digests

    held_out = [d for d in donors if split_of(d, 99) == "test"]
    known = {"trained_donors": donor_digests(["GTEX-OTHER"])}
    monkeypatch.setattr(TrainedOn, "read", lambda path: TrainedOn(path, known))
    deck, _ = build_quiz([tmp_path / "tiles/lung"], [made], tmp_path / "quiz", 8, 4, split="test")
    shown = {re.search(r"GTEX-A\d+", c.source).group() for c in deck.cards.values() if c.real}
    assert shown <= set(held_out) and shown
    known["trained_donors"] = donor_digests(donors)
    with pytest.raises(InputError, match="was trained on"):
        build_quiz([tmp_path / "tiles/lung"], [made], tmp_path / "other", 8, 4, split="test")


def broken(tmp_path, case):
    rng = np.random.default_rng(0)
    real, synthetic = write_sources(tmp_path, per_cell=4)
    generated = tmp_path / "generated"
    if case == "no store":
        real = [tmp_path / "generated"]
    if case == "no manifest":
        synthetic = [tmp_path / "tiles"]
    if case == "another field":
        write_generated(generated / "gan2_lung", "lung", "gan2", [scene(rng)], mpp=0.5)
    if case == "no scale":
        write_generated(generated / "gan2_lung", "lung", "gan2", [scene(rng)], mpp=None)
    if case == "no tissue":
        write_generated(tmp_path / "liver", "liver", "gan", [scene(rng)])
        synthetic = [tmp_path / "liver"]
    if case == "one kind":
        synthetic = [generated / "gan_lung"]
    if case == "real tiles":
        write_generated(generated / "real_lung", "lung", "x", [scene(rng)], kind="real")
    if case == "called real":
        write_generated(generated / "named_lung", "lung", "real", [scene(rng)])
    return build_quiz(real, synthetic, tmp_path / "quiz", *((48, 40) if case == "round" else (48, 8)))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no store", "no tile store"),
        ("no manifest", "no manifest.json"),
        ("another field", "their scale would tell them apart"),
        ("no scale", "does not say how large"),
        ("no tissue", "which of the classes"),
        ("one kind", "brain: no synthetic tiles"),
        ("real tiles", "made by no model"),
        ("called real", "rename the run"),
        ("round", "--round 40: the quiz has 32 tiles only"),
    ],
)
def test_what_cannot_be_a_quiz_is_refused_with_a_remedy_and_leaves_nothing(tmp_path, case, said):
    with pytest.raises(InputError, match=said):
        broken(tmp_path, case)
    assert not (tmp_path / "quiz").exists()


def test_too_few_tiles_of_a_model_shrink_all_tissues_alike(tmp_path, capsys):
    deck = make_quiz(tmp_path, n=400, per_cell=5)
    counts = Counter((c.tissue, c.real) for c in deck.cards.values())
    assert set(counts.values()) == {10} and "has 5 tiles" in capsys.readouterr().err
