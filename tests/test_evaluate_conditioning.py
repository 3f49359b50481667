"""evaluate_conditioning.py on generators whose answer is known: obedient, deaf, contrary; the verdict; bad input."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gan_toy
import numpy as np
import pandas as pd
import pytest
import torch

import evaluate_conditioning as command
import histopathology_gan
from common.checkpoint import load_checkpoint, save_checkpoint
from datasets.expression import read_expression, write_expression
from datasets.leaks import donor_digests
from datasets.tiles import write_store
from metrics.comparison import Comparison, Measured, halve
from metrics.evaluation import (
    dose_block,
    liveness,
    matrix_blocks,
    memorisation_block,
    morphology_blocks,
    retrieval_blocks,
)
from metrics.pairing import re_pairings
from metrics.verdict import verdict
from models.conditioning import InputRule
from sources import evaluation, readers
from sources.gan import open_gan
from sources.profiles import Profiles

WORDS = "--tiles 8 --sampling_seeds 2 --re_pairings 199 --device cpu"
RNA_GAN = "checkpoints/rna-gan_lung.model"


def paint(c, rng):
    """A tile (16, 16, 3) whose white share follows c[0] and whose redness follows c[1]."""
    white = rng.random((16, 16, 1)) < 0.1 + 0.6 / (1 + np.exp(-1.5 * c[0]))
    colour = np.array([200, 110, 160]) - 30 * np.tanh(c[1]) * np.array([0.3, 1.0, 0.4])
    tile = np.where(white, 245, colour) + rng.normal(0, 2, (16, 16, 3))
    return tile.clip(0, 255).astype(np.uint8)


class Painter(torch.nn.Module):
    """Paints tiles as the real ones are, for `sign` times the expression that it is given."""

    conditional, rule, encoding_dims = True, InputRule(), gan_toy.LATENT

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def draw(self, n, generator):
        return torch.randn(n, self.encoding_dims, generator=generator)

    def forward(self, noise, c=None, keep=None, guidance=1.0):
        c = torch.zeros_like(noise) if c is None else c * self.sign * guidance
        rngs = [np.random.default_rng(int(abs(x[0]) * 1e6)) for x in noise]
        tiles = [paint(one.double().numpy(), rng) for one, rng in zip(c, rngs, strict=True)]
        return torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 donors whose lung tiles are painted from their latents; a GAN and an RNA-GAN trained for a moment."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cohort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan_toy, "N_DONORS", 60)
        patch.setattr(gan_toy, "TISSUES", ("lung",))
        patch.chdir(folder)
        table = gan_toy.toy_table("lung", 0)
        table.obs = table.obs.assign(assigned_split=["test"] * 16 + ["val"] * 4 + ["train"] * 40)
        write_expression(table, folder / "data" / "lung.csv")
        gan_toy.write_vae(folder / "checkpoints" / "betavae_tissues", [table])
        gan_toy.write_config(folder / "lung.json", ["lung"])
        c = Profiles("checkpoints/betavae_tissues.pt", table).conditions().double().numpy()
        rng = np.random.default_rng(0)
        for one, slide in zip(c, table.obs["wsi_file_name"], strict=True):
            tiles = [(16 * i, 0, 1.0, paint(one, rng)) for i in range(12)]
            write_store(folder / "tiles" / "lung", Path(slide).stem, tiles, mpp=1.0, tile_size=16, fmt="png")
        gan_toy.train_two("wganvae", steps=2)
    return folder


cohort = gan_toy.cohort


def evaluate(words="", checkpoint=RNA_GAN):
    return gan_toy.run(command, f"--checkpoint {checkpoint} --config lung.json {WORDS} {words}")


def with_painter(monkeypatch, sign):
    def opened(path, device="cpu"):
        gan = open_gan(path, device)
        gan.generator = Painter(sign) if gan.conditional else gan.generator
        return gan

    monkeypatch.setattr(command, "open_gan", opened)


def metrics(folder="conditioning/rna-gan_lung"):
    return json.loads((Path(folder) / "metrics.json").read_text())


# ---- Generators whose answer is known ----


def test_an_obedient_generator_matches(cohort, monkeypatch, capsys):
    with_painter(monkeypatch, 1.0)
    assert evaluate("--extractor_side 32") == 0
    found, line = metrics(), capsys.readouterr().out.strip()
    assert found["ceiling_tiles"] == {"each_side": [6, 6], "generated": 8, "real": [12, 12]}
    white, control = found["morphology"]["white_space"], found["controls"]["unconditional"]
    assert found["verdict"]["word"] in ("match", "partial") and found["liveness"]["pixel_difference"]["value"] > 1
    assert white["pearson"] > 0.95 and white["p_value"] == pytest.approx(0.005) and white["spearman"] > 0.8
    assert white["pearson"] > white["null_q99"] and white["shuffled_pearson"] < 0.4
    assert found["retrieval"]["centred"]["mrr"]["p_value"] == pytest.approx(0.005)
    assert found["retrieval"]["plain"]["top1"]["value"] > 3 * found["retrieval"]["plain"]["top1"]["chance"]
    assert found["distance"]["auc"]["value"] > 0.8 and found["distance"]["kind"] == "kernel distance"
    assert found["diversity"]["value"] == pytest.approx(1, abs=0.2)
    assert control["morphology"]["white_space"]["p_value"] > 0.01 and control["variance_explained"]["p_value"] > 0.01
    for name in ("greyscale", "colour_histogram"):  # white space is seen without colour, and by colour alone
        seen = found["controls"][name]
        assert seen["morphology"]["white_space"]["pearson"] > 0.8 and seen["morphology"]["white_space"]["ceiling"] > 0.7
        assert seen["variance_explained"]["p_value"] < 0.01 and seen["round_trip"]["p_value"] < 0.01
        assert seen["diversity"]["value"] == pytest.approx(1, abs=0.3) and 0 <= seen["memorisation"]["value"] <= 1
    dose = found["dose_response"]["white_space"]["white_space"]
    assert dose["spearman"] > 0.8 and dose["p_value"] < 0.01
    assert line.startswith("rna-gan_lung: tiles depend on the expression") and "\n" not in line
    assert "and match it" in line and line == found["summary"]
    assert found["tissues"]["lung"]["morphology"] == found["morphology"]
    page = Path("conditioning/rna-gan_lung/report.html").read_text()
    assert (
        "6 on each side; generated tiles, 8 for each of the patients, are held against all real ones, 12 each" in page
    )
    assert page.count("data:image/png") == 7 and "http" not in page.replace("http-equiv", "")


def test_a_deaf_generator_is_dead(cohort, monkeypatch, capsys):
    with_painter(monkeypatch, 0.0)
    assert evaluate() == 0
    found = metrics()
    assert found["verdict"]["word"] == "dead" and found["liveness"]["pixel_difference"]["value"] == 0
    assert found["liveness"]["variance_explained"]["p_value"] > 0.01
    assert found["retrieval"]["centred"]["mrr"]["p_value"] > 0.01
    assert found["morphology"]["white_space"]["p_value"] > 0.01
    assert "do not depend on the expression (0 grey levels" in capsys.readouterr().out


def test_a_contrary_generator_is_alive_and_does_not_match(cohort, monkeypatch, capsys):
    with_painter(monkeypatch, -1.0)
    assert evaluate("--unconditional checkpoints/gan_lung.model --patients 6 --ceiling sides") == 0
    found = metrics()
    assert found["verdict"]["word"] == "no match" and found["morphology"]["white_space"]["pearson"] < -0.9
    assert found["control"] == "gan_lung" and found["patients_compared"] == 6 and "left half" in found["ceiling"]
    assert "but do not match it" in capsys.readouterr().out


def test_patients_who_trained_the_gan_or_the_vae_are_not_held_out_whatever_the_table_says(cohort, capsys):
    table = read_expression("data/lung.csv")
    swapped = {"test": "train", "train": "test", "val": "val"}
    table.obs = table.obs.assign(assigned_split=[swapped[s] for s in table.obs["assigned_split"]])
    write_expression(table, "data/lung.csv")
    assert evaluate() == 2
    said = capsys.readouterr().err
    assert "best.pt: was trained on 40 donors that data/lung.csv has in split test: GTEX-D20" in said
    assert "assigned_split" in said and not Path("conditioning").exists()


def test_a_control_that_has_seen_the_held_out_donors_is_refused_too(cohort, capsys):
    path = "checkpoints/gan_lung/gan_lung.model"
    donors = list(read_expression("data/lung.csv").obs["donor"])
    state = load_checkpoint(path, "gan")[0] | {"trained_donors": donor_digests(donors[3:])}
    save_checkpoint(path, "gan", state)
    assert evaluate("--unconditional checkpoints/gan_lung.model") == 2
    said = capsys.readouterr().err
    assert f"gan_lung.model: was trained on 13 donors that tiles/lung has in split test: {donors[3]}" in said


def test_a_gan_of_two_tissues_is_judged_tissue_by_tissue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gan_toy, "N_DONORS", 100)
    gan_toy.make_cohort(tmp_path)
    assert (
        gan_toy.run(histopathology_gan, "--config both.json --model_dir both --loss_type rpganvae --max_steps 2") == 0
    )
    words = "--checkpoint both --config both.json --tiles 4 --sampling_seeds 1 --re_pairings 99 --device cpu"
    assert gan_toy.run(command, words) == 0
    found = metrics("conditioning/both")
    assert list(found["tissues"]) == ["lung", "brain"] and found["morphology"] == found["tissues"]["lung"]["morphology"]
    assert found["summary"].count("tiles ") >= 2 and " | brain: " in found["summary"]
    assert found["tissues"]["lung"]["retrieval"] != found["tissues"]["brain"]["retrieval"]


def test_ridges_keep_neighbouring_spots_of_a_lone_section_together():
    patients = SimpleNamespace(
        rows=np.arange(12),
        cohort=SimpleNamespace(slides=pd.DataFrame({"donor": ["one"] * 12})),
        column=lambda name: np.array(["A"] * 12),
        array_xy=lambda: np.array([[x, y] for x in range(6) for y in range(2)]) + 7,
    )
    assert readers._groups(patients).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    patients.array_xy = lambda: None
    assert readers._groups(patients).tolist() == list(range(12))


def test_spots_have_one_tile_each_and_their_array_is_shifted(cohort, monkeypatch, capsys):
    table = read_expression("data/lung.csv")
    n = len(table)
    table.obs = table.obs.assign(array_x=np.arange(n) % 8, array_y=np.arange(n) // 8, section="C1")
    write_expression(table, Path("data/lung.csv"))
    with_painter(monkeypatch, 1.0)
    config = json.loads(Path("lung.json").read_text())
    Path("lung.json").write_text(json.dumps(config | {"max_patch_per_wsi": 1}))
    assert evaluate() == 0
    found = metrics()
    assert "torus" in found["nulls"] and "left half" in found["ceiling"]
    assert found["distance"]["kind"].startswith("cosine") and found["diversity"] is None
    assert found["liveness"]["variance_explained"]["ceiling"] is None
    assert found["morphology"]["white_space"]["pearson"] > 0.8
    assert evaluate("--ceiling halves") == 2
    assert "use --ceiling sides" in capsys.readouterr().err


def test_the_same_command_gives_the_same_numbers(cohort):
    for out in ("a", "b"):
        assert evaluate(f"--out {out} --sampling_seeds 1 --tiles 2 --re_pairings 19") == 0
    assert Path("a/metrics.json").read_bytes() == Path("b/metrics.json").read_bytes()


def test_who_is_no_independent_patient_or_has_few_tiles_is_left_out_by_name(cohort, capsys):
    table = read_expression("data/lung.csv")
    names = table.obs["wsi_file_name"].tolist()
    names[1] = "GTEX-D00-0725.svs"  # a second slide of the first donor
    table.obs = table.obs.assign(wsi_file_name=names).set_axis(names)
    write_expression(table, Path("data/lung.csv"))
    tiles = [(16 * i, 0, 1.0, np.full((16, 16, 3), 200 + i, np.uint8)) for i in range(4)]
    slides = [Path(name).stem for name in names]
    for path in Path("tiles/lung").glob(f"{slides[5]}*"):
        path.unlink()
    write_store(Path("tiles/lung"), slides[1], tiles, mpp=1.0, tile_size=16, fmt="png")
    write_store(Path("tiles/lung"), slides[5], tiles[:1], mpp=1.0, tile_size=16, fmt="png")
    assert evaluate("--sampling_seeds 1 --tiles 2 --re_pairings 19") == 0
    found, errors = metrics(), capsys.readouterr().err
    assert found["patients"] == 14 and found["distance"]["kind"] == "kernel distance"
    assert found["ceiling"].startswith("random halves")
    assert found["left_out"] == {"few_tiles": [slides[5]], "same_donor": [slides[1]]}
    assert slides[5] in errors and "15 rows of 14 donors" in errors


def test_the_ridge_of_morphology_sees_more_tiles_than_the_features(cohort, monkeypatch):
    monkeypatch.setattr(command, "TRAIN_TILES", 100)  # of 40 patients with 12 tiles each
    assert evaluate("--sampling_seeds 1 --tiles 2 --re_pairings 19") == 0
    found = metrics()
    assert found["training_tiles"] == 80 and found["training_tiles_morphology"] == 480
    assert found["memorisation"]["training_tiles_available"] == 480
    assert "80 of 480 training tiles" in Path("conditioning/rna-gan_lung/report.html").read_text()


# ---- Input that cannot be used ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--checkpoint checkpoints/gan_lung.model", "takes no expression"),
        ("--tiles 1", "at least 2"),
        ("--shift none.npz", "no such file"),
        ("--nulls torus", "array_x"),
        ("--extractor_side big", "number of pixels"),
    ],
)
def test_refusals(cohort, capsys, words, message):
    assert evaluate(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and not list(Path("conditioning").rglob("*.*"))


def test_too_few_patients_are_counted(cohort, capsys):
    table = read_expression("data/lung.csv")
    splits = ["test"] * 4 + ["train"] * (len(table) - 4)
    table.obs = table.obs.assign(assigned_split=splits)
    write_expression(table, Path("data/lung.csv"))
    assert evaluate() == 2
    assert "4 patients of lung" in capsys.readouterr().err


def test_a_shift_of_another_vae_is_refused(cohort, capsys):
    np.savez("other.npz", shift=np.zeros(gan_toy.LATENT, np.float32), vae_digest="0" * 64)
    np.savez("short.npz", shift=np.zeros(3, np.float32), vae_digest="0" * 64)
    assert evaluate("--shift other.npz") == 2
    assert "another VAE" in capsys.readouterr().err
    assert evaluate("--shift short.npz") == 2
    assert "3 latent dimensions" in capsys.readouterr().err


# ---- The verdict ----


def blocks(grey=5.0, p=0.001, others=0.001, kept=4, pairings=999, n=20, r=0.9):
    def number(p_value):
        values = {"value": 0.5, "relative": 0.8, "chance": 0.1, "ceiling": 0.6, "p_value": p_value}
        return values | {"pearson": r, "shuffled_pearson": 0.1, "ridge": 0.8, "pairings": pairings, "n": n}

    names = ("nuclear_density", "white_space", "eosin_od")
    morphology = {name: number(others) for name in names} | {"texture": number(0.9) | {"ridge": 0.1}}
    return {
        "liveness": {"pixel_difference": {"value": grey}},
        "retrieval": {"centred": {"mrr": number(p), "top1": number(p)}},
        "round_trip": number(p) | {"kept": kept},
        "morphology": morphology,
    }


@pytest.mark.parametrize(
    ("made", "word", "text"),
    [
        (blocks(), "match", "and match it at 80% of what real tiles allow:"),
        (blocks(grey=0.2), "dead", "do not depend on the expression"),
        (blocks(p=0.5, others=0.2), "no match", "but do not match it"),
        (blocks(p=0.5, others=0.001), "partial", "match it in part (3 of 5 tests)"),
        (blocks(p=0.5, others=None), "no match", "no p"),
        (blocks(r=-0.1), "partial", "match it in part (2 of 5 tests)"),
        (blocks(p=0.5, r=0.0), "no match", "but do not match it"),
        (blocks(p=0.05, others=0.05, pairings=19), "undecided", "at least 100 pairings (--re_pairings) of 5 patients"),
        (blocks(p=0.02, others=0.02, pairings=99), "undecided", "with 99 pairings of 20 patients"),
        (blocks(p=0.02, others=0.02, pairings=100), "no match", "but do not match it"),
        (blocks(p=0.042, others=0.042, n=4), "undecided", "with 999 pairings of 4 patients"),
        (blocks(grey=0.2, pairings=19), "dead", "do not depend on the expression"),
        (blocks(kept=0), "match", "nuclear_density r 0.90 (n 20; real against real 0.60, re-paired 0.10, p 0.001)"),
    ],
)
def test_verdict(made, word, text):
    found = verdict(made)
    assert found["word"] == word and text in found["text"]
    assert "texture" not in found["tests"]  # expression does not predict it: nothing to match


def test_retrieval_alone_is_a_match_in_part_only():
    made = blocks(kept=0)
    for block in made["morphology"].values():
        block["ridge"] = 0.1
    assert verdict(made)["tests"] == {"retrieval": 0.001} and verdict(made)["word"] == "partial"


# ---- The blocks ----


def toy(patients=20, tiles=6, d=12, noise=0.5, seed=0):
    """Patients' centres (P, d), and a function that draws tiles around given centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(patients, d))
    draw = lambda c: Measured([x + noise * rng.normal(size=(tiles, d)) for x in c])  # noqa: E731
    return centres, draw


def test_retrieval_is_perfect_for_copies_and_at_chance_for_strangers():
    centres, draw = toy()
    real = draw(centres)
    splits = [(real.take(a), real.take(b)) for a, b in halve([6] * 20, 3, 0)]
    c = Comparison(real, splits, re_pairings(20, 199), np.arange(20))
    good = retrieval_blocks(c, [draw(centres), draw(centres)], False)["top1"]
    assert good["value"] > 0.95 and good["p_value"] == pytest.approx(0.005) and good["relative"] > 0.9
    strange = retrieval_blocks(c, [draw(np.random.default_rng(9).normal(size=centres.shape))], True)["mrr"]
    assert strange["p_value"] > 0.01 and abs(strange["relative"]) < 0.2
    some = Comparison(real, splits, re_pairings(20, 99), np.array([1, 5, 7]))
    assert retrieval_blocks(some, [draw(centres)], False)["top1"]["n"] == 3


def test_a_matrix_block_pairs_rows_with_the_chosen_columns():
    c = Comparison(Measured([]), [], np.array([[1, 0, 2], [2, 1, 0]]), np.array([0, 2]))
    distance = np.array([[0.0, 1.0], [0.5, 2.0], [1.0, 0.0]])  # of 3 patients' tiles to patients 0 and 2
    rows_of = lambda m: {"own": -np.diag(m)}  # noqa: E731
    found = matrix_blocks([distance], c, rows_of, {"own": 0.0}, [])["own"]
    assert found["value"] == 0 and found["pairings"] == 2 and found["p_value"] == pytest.approx(1 / 3)
    assert found["null_mean"] == pytest.approx(-(0.5 + 2.0) / 4)


def test_intervals_are_of_patients_and_not_given_for_spots():
    rng = np.random.default_rng(0)
    c = Comparison(Measured([]), [], np.zeros((0, 200), int), np.arange(200))
    x = rng.normal(size=200)
    low, high = c.interval(200, lambda p: x[p].mean())
    assert low < x.mean() < high and high - low == pytest.approx(2 * 1.96 * x.std() / 200**0.5, rel=0.15)
    y = 0.8 * x + 0.6 * rng.normal(size=200)
    low, high = c.interval(200, lambda p: np.corrcoef(x[p], y[p])[0, 1])
    assert high - low == pytest.approx(2 * 1.96 * (1 - 0.8**2) / 200**0.5, rel=0.3)  # sd of r: (1 - r^2) / sqrt(n)
    assert replace(c, independent=False).interval(200, lambda p: x[p].mean()) is None
    assert c.interval(200, lambda p: float("nan")) is None


def test_an_interval_is_of_the_mean_over_seeds_as_its_value_is():
    rng = np.random.default_rng(4)
    truth = rng.normal(size=300)
    seeds = [Measured([], {"m": [np.array([v]) for v in truth + 2 * rng.normal(size=300)]}) for _ in range(3)]
    real = Measured([], {"m": [np.array([v]) for v in truth]})
    found = morphology_blocks(Comparison(real, [], re_pairings(300, 19), np.arange(300)), seeds)["m"]
    assert found["low"] < found["pearson"] < found["high"] and found["pearson"] == pytest.approx(0.45, abs=0.1)


def test_the_share_of_morphology_is_of_the_r_that_the_ceiling_allows():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=2000)
    noisy = lambda: [np.array([v]) for v in truth + rng.normal(size=2000)]  # noqa: E731
    a, b = noisy(), noisy()
    whole = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
    one = lambda v: Measured([], {"m": v})  # noqa: E731
    c = Comparison(one(whole), [(one(a), one(b))], re_pairings(2000, 19), np.arange(2000))
    knows = one([np.array([v]) for v in truth])  # a generator that knows the truth
    assert morphology_blocks(c, [knows])["m"]["attainable"] is None
    found = morphology_blocks(c, [knows], {"m": truth})["m"]
    assert found["ceiling"] == pytest.approx(0.5, abs=0.05) and found["attainable"] == pytest.approx(0.816, abs=0.03)
    assert found["relative"] == pytest.approx(1, abs=0.05) and found["low"] < found["pearson"] < found["high"]


def test_the_ceiling_of_memorisation_is_a_half_also_where_a_patient_has_one_tile():
    rng = np.random.default_rng(2)
    tiles = lambda n: Measured([rng.normal(size=(1, 3)) for _ in range(n)])  # noqa: E731
    real = tiles(300)
    c = Comparison(real, [(real, real)], np.zeros((0, 300), int), np.arange(300))
    train = rng.normal(size=(300, 3))
    found = memorisation_block(c, [tiles(300)], train, 0, 300)
    assert found["value"] == pytest.approx(0.5, abs=0.1) and found["ceiling"] == pytest.approx(0.5, abs=0.1)
    copies = memorisation_block(c, [Measured([row[None] for row in train])], train, 0, 300)
    assert copies["value"] > 0.95


def test_tiles_are_viewed_a_strip_at_a_time(monkeypatch):
    monkeypatch.setattr(evaluation, "STRIP", 5)
    sizes, seen = [3, 3, 1, 7, 2], []

    def view(x):
        seen.append(len(x))
        return x[:, 0, 0, :1].astype(int)

    images = [np.full((n, 4, 4, 3), k, np.uint8) for k, n in enumerate(sizes)]
    tiles = evaluation.Tiles(sizes, lambda some: (images[p] for p in some))
    found = evaluation.viewed({"first": view}, tiles)["first"]
    assert [x[:, 0].tolist() for x in found] == [[k] * n for k, n in enumerate(sizes)] and seen == [6, 8, 2]


def test_liveness_of_tiles_that_do_and_do_not_change():
    centres, draw = toy()
    same = np.full((3, 4, 8, 8, 3), 100, np.uint8)
    changed = same + np.array([0, 10, 20], np.uint8)[:, None, None, None, None]
    features = np.random.default_rng(0).normal(size=(3, 4, 5))
    args = (features, [draw(centres)], draw(centres), 99, 0)
    assert liveness(same, *args)["pixel_difference"]["value"] == 0
    found = liveness(changed, *args)
    assert found["pixel_difference"]["value"] == pytest.approx(40 / 3)
    explained = found["variance_explained"]
    assert explained["value"] == pytest.approx(0.8, abs=0.1) and explained["null_q99"] < 0.1


def test_dose_block_is_sure_of_a_trend_only():
    alphas, rng = np.arange(5.0), np.random.default_rng(0)
    rising = dose_block(alphas, alphas + 0.1 * rng.normal(size=(5, 5)), 199, 0)
    assert rising["spearman_repeats"] == pytest.approx(1) and rising["p_value"] == pytest.approx(0.005)
    assert dose_block(alphas, rng.normal(size=(5, 5)), 199, 0)["p_value"] > 0.05
    assert dose_block(alphas, np.ones((5, 5)), 199, 0)["p_value"] is None


def test_dose_block_counts_the_rows_it_uses():
    alphas, rising = np.arange(5.0), np.arange(5.0)
    flat = dose_block(alphas, np.stack([rising, *np.ones((4, 5))]), 999, 0)
    assert flat["patients_used"] == 1 and flat["spearman_repeats"] == pytest.approx(1)
    assert flat["p_value"] == pytest.approx(2 / 120, abs=0.01)  # 2 of the 120 orders of one patient's steps
    gap = dose_block(alphas, np.stack([rising, np.where(rising == 2, np.nan, -rising)]), 999, 0)
    assert gap["p_value"] == flat["p_value"] and gap["spearman_repeats"] == flat["spearman_repeats"]
    ties = dose_block(alphas, np.array([[0, 0, 1, 1, 1.0]] * 3), 99, 0)["spearman_repeats"]
    assert ties == pytest.approx(0.866, abs=1e-3)
    assert dose_block(alphas[:2], np.ones((3, 2)).cumsum(1), 99, 0)["p_value"] is None


@pytest.mark.parametrize("guidance", ["-1", "nan", "inf"])
def test_a_guidance_that_cannot_be_is_refused_before_anything_is_opened(capsys, guidance):
    assert gan_toy.run(command, f"--checkpoint nowhere --config nowhere.json --guidance {guidance}") == 2
    assert "--guidance" in capsys.readouterr().err
