"""fid.py on a small made-up study: two tissues, tile stores, tables, a VAE, a GAN and an RNA-GAN of each tissue."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fid
from common.checkpoint import save_checkpoint
from common.config import GANSettings, settings_dict
from common.errors import run_command
from datasets.expression import ExpressionTable, write_expression
from datasets.keys import donor_of, split_of
from datasets.tiles import write_store
from models.betavae import BetaVAE, finished_state
from models.expression_scaler import ExpressionScaler
from models.networks import build_generator, generator_args

SIDE, GENES, LATENT = 32, 12, 8
LUNG, BRAIN = "GTEX-15RJ7-0625.svs", "GTEX-1C6WA-3025.svs"
VAE = "--vae --vae_checkpoint checkpoints/betavae_tissues.pt"
LUNG_CONFIG, BRAIN_CONFIG = "configs/gan_run_lung.json", "configs/gan_run_brain.json"
RNA_LUNG, GAN_LUNG = "./checkpoints/rna-gan_lung.model", "./checkpoints/gan_lung.model"
RNA_BRAIN, GAN_BRAIN = "./checkpoints/rna-gan_brain.model", "./checkpoints/gan_brain/gan_brain.model"


def made_tiles(colour, n, seed):
    rng = np.random.default_rng(seed)
    for i in range(n):
        tile = np.full((2 * SIDE, 2 * SIDE, 3), colour, np.uint8)
        for x, y in rng.integers(4, 2 * SIDE - 4, (6, 2)):
            tile[y - 3 : y + 3, x - 3 : x + 3] = (90, 40, 130)
        yield 100 * i, 0, 1.0, np.clip(tile + rng.normal(0, 12, tile.shape), 0, 255).astype(np.uint8)


def make_tissue(name, named_slide, colour, seed):
    slides = [named_slide] + [f"GTEX-{seed}{letter}{letter}AA-0625.svs" for letter in "BCDEFGHIJ"]
    genes = [f"ENSG{i:011d}.1" for i in range(GENES)]
    values = np.random.default_rng(seed).lognormal(2, 1, (len(slides), GENES)).astype(np.float32)
    donors = [donor_of(s) for s in slides]
    obs = pd.DataFrame({"wsi_file_name": slides, "donor": donors, "tissue": name}, index=slides)
    write_expression(ExpressionTable(values, genes, obs), f"data/{name}.csv")
    for k, slide in enumerate(slides[:-1]):  # the last row has no tiles
        n = 12 if k == 0 else 5
        write_store(
            f"tiles/{name}", slide.removesuffix(".svs"), made_tiles(colour, n, seed + k), mpp=0.5, tile_size=2 * SIDE
        )
    config = {
        "path_csv": [f"data/{name}.csv"],
        "patch_data_path": [f"tiles/{name}"],
        "img_size": SIDE,
        "device": "cpu",
        "feature_side": SIDE,
        "vae_checkpoint": "checkpoints/betavae_tissues.pt",
    }
    Path(f"configs/gan_run_{name}.json").write_text(json.dumps(config))
    return config, values, genes


def make_vae(path, values, genes, tissues):
    model = BetaVAE(GENES, [16], [16], LATENT, 0.0)
    values = torch.from_numpy(values)
    state = {
        "model_args": {"n_genes": GENES, "encoder_sizes": [16], "decoder_sizes": [16], "latent_dim": LATENT},
        "model": model.state_dict(),
        "genes": genes,
        "unit": "TPM",
        "scaler": ExpressionScaler.fit(values).state(),
        "split_seed": 99,
        "min_gene_coverage": 0.8,
        "missing_genes": "mean",
        "settings": {},
        "epoch": 1,
    }
    return save_checkpoint(path, "betavae", finished_state(state, values, tissues, values[:3]))


def make_gan(path, config, tissue, vae_digest, side=SIDE):
    settings = GANSettings(**{**config, "loss_type": "wganvae" if vae_digest else "wgan", "encoding_dims": LATENT})
    settings.img_size, settings.step_channels = side, 4
    arguments = generator_args(settings, LATENT if vae_digest else 0)
    state = {
        "settings": settings_dict(settings),
        "generator_args": arguments,
        "generator": build_generator(arguments).state_dict(),
        "conditional": vae_digest is not None,
        "vae_digest": vae_digest,
        "latent": None,
        "tissues": [tissue],
        "img_size": side,
        "mpp": 1.0,
        "epoch": 1,
        "images_seen": 1,
        "split_seed": 99,
    }
    save_checkpoint(path, "gan", state)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        folder = tmp_path_factory.mktemp("study")
        patch.chdir(folder)
        torch.manual_seed(0)
        for name in ("configs", "data"):
            Path(name).mkdir()
        lung, values_lung, genes = make_tissue("lung", LUNG, (230, 170, 200), 1)
        brain, values_brain, _ = make_tissue("brain", BRAIN, (200, 160, 220), 2)
        values, tissues = np.concatenate([values_lung, values_brain]), ["lung"] * 10 + ["brain"] * 10
        vae = make_vae("checkpoints/betavae_tissues/best.pt", values, genes, tissues)
        make_vae("checkpoints/other_vae/best.pt", values, genes, tissues)
        for tissue, config in (("lung", lung), ("brain", brain)):
            make_gan(f"checkpoints/gan_{tissue}/gan_{tissue}.model", config, tissue, None)
            make_gan(f"checkpoints/rna-gan_{tissue}/rna-gan_{tissue}.model", config, tissue, vae)
        make_gan("checkpoints/gan_small/gan_small.model", lung, "lung", None, side=16)
        Path("drawn").mkdir()
        for i, (*_, tile) in enumerate(made_tiles((230, 170, 200), 10, 77)):
            Image.fromarray(tile).resize((SIDE, SIDE), Image.Resampling.BOX).save(f"drawn/{i:02d}.png")
        yield folder


@pytest.fixture
def run(study, monkeypatch, capsys, tmp_path):
    """Run fid.py in the study's folder; return exit status, metrics (or None), stdout and stderr."""
    monkeypatch.chdir(study)

    def call(line, n=8, iterations=2):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        argv = [*line.split(), "--sample_size", str(n), "--iterations", str(iterations), "--out", str(out)]
        status = run_command(fid.main, fid.build_parser(), argv)
        text, errors = capsys.readouterr()
        path = out / "metrics.json"
        return status, json.loads(path.read_text()) if path.exists() else None, text, errors

    return call


def test_real_tiles_may_be_the_held_out_ones_alone(run):
    line = f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG} {VAE}"
    assert run(line)[1]["sources"]["B"]["splits"].keys() > {"test"}
    status, m, _, errors = run(f"{line} --split test")
    assert status == 0, errors
    assert m["sources"]["B"]["splits"].keys() == {"test"} and "test slides" in m["sources"]["B"]["label"]
    named = run(f"{line} --split test --patient1 {LUNG}")[1]["sources"]["B"]  # whom the user names is meant
    assert named["patient"] == LUNG and named["slides"] == 1


def test_rna_gan_against_the_patients_real_tiles(run):
    line = f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG} {VAE} --patient1 {LUNG}"
    status, m, text, errors = run(line, n=20)
    assert status == 0, errors
    a, b = m["sources"]["A"], m["sources"]["B"]
    assert a["kind"] == "rna-gan" and a["profiles"] == [LUNG] and a["n"] == 20 and len(a["digest"]) == 64
    assert b["kind"] == "real" and b["patient"] == LUNG and b["slides"] == 1 and b["n"] == b["tiles"] == 12
    assert "n = 12 (of 20 asked for: all there are)" in text  # fewer tiles than asked for: all, and said
    split = split_of("GTEX-15RJ7", 99)
    assert f"({split})" in a["label"] and f"({split})" in b["label"]
    assert m["extractor"]["name"] == "efficientnet_lite0@32px" and len(m["extractor"]["weights_digest"]) == 64
    assert m["seed"] == 99 and len(m["pairs"][0]["draws"]) == 2 and m["pairs"][0]["reference"] == "B"
    for measure in ("fid", "kid", "precision", "recall"):
        draws = [d[measure] for d in m["pairs"][0]["draws"]]
        assert m[measure]["mean"] == pytest.approx(np.mean(draws)) and m[measure]["sd"] == pytest.approx(
            np.std(draws, ddof=1)
        )
        assert all(np.isfinite(draws)) and m[measure]["low"] == min(draws) and measure in text
    assert m["fid"]["mean"] > 0 and "biased upwards" in errors and m["warnings"]


@pytest.mark.parametrize(
    ("line", "a", "b"),
    [
        (
            f"--checkpoint {RNA_LUNG} --checkpoint2 {GAN_LUNG} --config {LUNG_CONFIG} {VAE} --patient1 {LUNG}",
            "rna-gan",
            "gan",
        ),
        (f"--checkpoint {GAN_LUNG} --config {BRAIN_CONFIG} --checkpoint2 {GAN_BRAIN}", "gan", "gan"),
        (
            f"--checkpoint2 {RNA_BRAIN} --checkpoint {RNA_LUNG} --config {LUNG_CONFIG} --config2 {BRAIN_CONFIG} {VAE} "
            f"--patient1 {LUNG} --patient2 {BRAIN}",
            "rna-gan",
            "rna-gan",
        ),
        (f"--checkpoint {GAN_LUNG} --config {BRAIN_CONFIG}", "gan", "real"),
        (f"--checkpoint2 {GAN_LUNG} --config {LUNG_CONFIG} --patient1 {LUNG}", "real", "gan"),
        (f"--config {LUNG_CONFIG} --config2 {BRAIN_CONFIG}", "real", "real"),
        (
            f"--checkpoint {RNA_BRAIN} --config {BRAIN_CONFIG} --config2 {LUNG_CONFIG} {VAE} --patient1 {BRAIN}",
            "rna-gan",
            "real",
        ),
        (f"--checkpoint drawn --checkpoint2 {GAN_LUNG} --device cpu", "folder", "gan"),
    ],
)
def test_sides(run, line, a, b):
    status, m, _, errors = run(line, iterations=1)
    assert status == 0, errors
    assert (m["sources"]["A"]["kind"], m["sources"]["B"]["kind"]) == (a, b)


def test_each_rna_gan_takes_its_own_patient(run):
    both = f"--checkpoint {RNA_LUNG} --checkpoint2 {RNA_BRAIN} --config {LUNG_CONFIG} --config2 {BRAIN_CONFIG}"
    _, m, _, _ = run(f"{both} --patient1 {LUNG} --patient2 {BRAIN}", iterations=1)
    assert m["sources"]["A"]["profiles"] == [LUNG] and m["sources"]["B"]["profiles"] == [BRAIN]
    one = f"--checkpoint {RNA_LUNG} --checkpoint2 {RNA_BRAIN} --config {LUNG_CONFIG}"
    _, m, _, errors = run(f"{one} --patient1 {LUNG}", iterations=1)
    assert m["sources"]["B"]["profiles"] == [LUNG] and "is of lung" in errors  # allowed, with a warning


def test_without_a_patient_held_out_donors_are_taken(run):
    _, m, _, errors = run(f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG}", iterations=1)
    assert m, errors
    names = m["sources"]["A"]["profiles"]
    assert names and all(split_of(donor_of(name), 99) == "test" for name in names)


def test_a_plain_gan_ignores_the_vae(run):
    status, m, text, _ = run(f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} {VAE}", iterations=1)
    assert status == 0 and "--vae: no side is an RNA-GAN" in text and m["sources"]["A"]["label"] == "GAN gan_lung"


def test_equal_calls_give_equal_numbers_and_another_seed_others(run):
    line = f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG}"
    first, again, other = run(line)[1], run(line)[1], run(f"{line} --seed 5 --batch_size 3")[1]
    assert first == again and first["fid"] != other["fid"]
    batched = run(f"{line} --batch_size 3")[1]
    assert batched["fid"]["mean"] == pytest.approx(first["fid"]["mean"], rel=1e-4)


def test_the_same_real_tiles_on_both_sides_are_at_zero(run):
    line = f"--config {LUNG_CONFIG} --config2 {LUNG_CONFIG} --patient1 {LUNG} --patient2 {LUNG}"
    _, m, _, _ = run(line, n=100)
    assert m["fid"]["high"] < 1e-6 and m["precision"]["mean"] == m["recall"]["mean"] == 1


def test_a_gan_of_another_size_decides_the_size_of_all(run):
    _, m, _, _ = run(f"--checkpoint checkpoints/gan_small --config {LUNG_CONFIG} --extractor_side tiles", iterations=1)
    assert m["img_size"] == 16 and m["sources"]["B"]["img_size"] == 16 and m["extractor"]["input_side"] == 16
    _, m, _, errors = run(f"--checkpoint checkpoints/gan_small --checkpoint2 {GAN_LUNG}", iterations=1)
    assert m["img_size"] == 16 and "16, 32 px" in errors


def test_saved_statistics_stand_for_the_tiles(run, tmp_path):
    saved = tmp_path / "saved"
    line = f"--config {LUNG_CONFIG} --extractor_side 32"
    _, direct, text, _ = run(f"--checkpoint drawn {line} --save_statistics {saved}", n=100, iterations=1)
    assert str(saved / "drawn.npz") in text and (saved / "real_gan_run_lung.npz").exists()
    _, m, _, errors = run(f"--checkpoint {saved / 'drawn.npz'} {line}", n=100, iterations=1)
    assert m, errors
    for measure in ("fid", "kid", "precision", "recall"):
        assert m[measure]["mean"] == pytest.approx(direct[measure]["mean"], rel=1e-4, abs=1e-9)
    assert m["sources"]["A"]["kind"] == "statistics" and "drawn" in m["sources"]["A"]["label"]

    bare = saved / "bare.npz"  # no features in it: the Fréchet distance alone is known
    with np.load(saved / "drawn.npz") as file:
        np.savez(bare, **{k: file[k] for k in file.files if k != "features"})
    _, m, text, _ = run(f"--checkpoint {bare} {line}", n=100, iterations=1)
    assert m["fid"]["mean"] == pytest.approx(direct["fid"]["mean"], rel=1e-4) and m["kid"] is None
    _, m, _, _ = run(
        f"--checkpoint {bare} --checkpoint2 {saved / 'real_gan_run_lung.npz'} --extractor_side 32 --device cpu"
    )
    assert m["fid"]["mean"] == pytest.approx(direct["fid"]["mean"], rel=1e-4)


def test_matrix_is_symmetric_with_the_floor_on_the_diagonal(run):
    sources = (
        f"lung=real:{LUNG_CONFIG} patient=real:{LUNG_CONFIG}:{LUNG} gan={GAN_LUNG} rna={RNA_LUNG}:{LUNG} drawn=drawn"
    )
    status, m, text, errors = run(f"--matrix {sources} --extractor_side tiles", iterations=2)
    assert status == 0, errors
    assert list(m["sources"]) == ["lung", "patient", "gan", "rna", "drawn"] and len(m["pairs"]) == 10
    table = np.array(m["matrix"]["fid"], float)
    off = ~np.eye(5, dtype=bool)
    assert (table[off] == table.T[off]).all() and np.isfinite(table[off]).all()
    assert np.isfinite(table.diagonal()).tolist() == [True, True, False, False, False]
    assert {f["source"]: f["n"] for f in m["floors"]} == {"lung": 8, "patient": 6}  # 12 tiles make halves of 6
    assert m["sources"]["rna"]["profiles"] == [LUNG] and m["extractor"]["name"].endswith("@32px")
    assert "drawn" in text and "diagonal" in text
    again = run(f"--matrix drawn=drawn lung=real:{LUNG_CONFIG} --extractor_side tiles", iterations=2)[1]
    cell = {frozenset((p["a"], p["b"])): p["fid"]["mean"] for p in m["pairs"]}[frozenset(("lung", "drawn"))]
    assert again["matrix"]["fid"][0][1] == pytest.approx(cell, rel=1e-6)  # a cell does not depend on its neighbours


def test_features_of_stores_and_generators_are_kept_too(run, tmp_path):
    line = f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG} {VAE} --feature_cache {tmp_path / 'kept'}"
    first, (again, text) = run(line)[1], run(line)[1:3]
    assert again == first and "A: features of 16 tiles from" in text and "B: features of" in text
    for changed in (f"{line} --guidance 2", f"{line} --seed 5", f"{line} --patient1 {LUNG}"):
        assert "A: features" not in run(changed)[2]  # other tiles
    assert "A: features of 8 tiles" in run(line, n=4)[2]  # the first four of each draw


def test_default_output_names_both_sides(study, monkeypatch, capsys):
    monkeypatch.chdir(study)
    line = f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG} --patient1 {LUNG} --sample_size 4 --iterations 1"
    assert run_command(fid.main, fid.build_parser(), line.split()) == 0, capsys.readouterr().err
    assert Path("fid/rna-gan_lung_GTEX-15RJ7-0625_vs_real_gan_run_lung_GTEX-15RJ7-0625/metrics.json").exists()
    plain = f"--checkpoint2 {GAN_LUNG} {line}"
    assert run_command(fid.main, fid.build_parser(), plain.split()) == 0, capsys.readouterr().err
    assert Path("fid/rna-gan_lung_GTEX-15RJ7-0625_vs_gan_lung/metrics.json").exists()  # a plain GAN has no patient


def test_an_output_that_cannot_be_written_is_refused_before_any_feature(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study)
    monkeypatch.setattr(fid.Draws, "extract", None)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "metrics.json").mkdir(parents=True)
    line = f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} --sample_size 4 --extractor_side 32"
    for flags, words in (
        (f"--out {tmp_path}/file/deeper", f"{tmp_path}/file/deeper: a folder was expected, a file stands in its place"),
        (f"--out {tmp_path}/file", f"{tmp_path}/file: a folder was expected"),
        (f"--out {tmp_path}/folder", f"{tmp_path}/folder/metrics.json: is a folder"),
        (f"--out {tmp_path}/new --save_statistics {tmp_path}/file", f"{tmp_path}/file: a folder was expected"),
    ):
        assert run_command(fid.main, fid.build_parser(), f"{line} {flags}".split()) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "both sides would be the same"),
        (f"--checkpoint {GAN_LUNG}", "real tiles: name their cohort with --config"),
        ("--checkpoint checkpoints/gan_lun --config " + LUNG_CONFIG, "gan_lung"),
        (f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG} --patient1 GTEX-15RJ8-0625.svs", "GTEX-15RJ7-0625"),
        (f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} --patient1 GTEX-15RJ8-0625.svs", "GTEX-15RJ7-0625"),
        (f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} --patient1 GTEX-1JJAA-0625.svs", "no tiles"),
        (f"--checkpoint {RNA_LUNG} --config {LUNG_CONFIG} --vae_checkpoint checkpoints/other_vae", "--vae_checkpoint"),
        (f"--checkpoint {GAN_LUNG} --config configs/none.json", "configs/none.json"),
        (f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} --extractor resnet5", "nearest: resnet50"),
        (f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} --extractor_side x", "a number of pixels, or 'tiles'"),
        (f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG} --device cuda", "--device cpu"),
        ("--matrix a=drawn", "at least two"),
        ("--matrix a=drawn a=drawn", "given twice"),
        ("--matrix drawn b=drawn", "NAME=SOURCE"),
        ("--matrix a=drawn b=nowhere", "nowhere"),
        ("--checkpoint none.npz --config " + LUNG_CONFIG, "none.npz"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, line, message):
    if "--device cuda" in line and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, m, _, errors = run(line, iterations=1)
    last = errors.strip().splitlines()[-1]
    assert status == 2 and m is None and message in last, errors


def test_too_few_or_no_draws_are_refused(run):
    assert run(f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG}", n=1)[0] == 2
    assert run(f"--checkpoint {GAN_LUNG} --config {LUNG_CONFIG}", iterations=0)[0] == 2


def test_folders_with_damaged_or_odd_pictures_are_refused_by_name(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert run(f"--checkpoint {folder} --config {LUNG_CONFIG}")[0] == 2  # empty
    for i in range(4):
        Image.fromarray(np.full((SIDE, SIDE, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    good = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(good[: len(good) // 2])
    status, _, _, errors = run(f"--checkpoint {folder} --config {LUNG_CONFIG}")
    assert status == 2 and "2.png" in errors
    (folder / "2.png").write_text("<html>not found</html>")
    status, _, _, errors = run(f"--checkpoint {folder} --config {LUNG_CONFIG}")
    assert status == 2 and "2.png" in errors
    for i in range(1, 4):
        (folder / f"{i}.png").unlink()
    status, _, _, errors = run(f"--checkpoint {folder} --config {LUNG_CONFIG}")
    assert status == 2 and "at least 2" in errors  # one picture has no spread


def test_statistics_of_another_extractor_are_refused(run, tmp_path):
    line = f"--config {LUNG_CONFIG} --save_statistics {tmp_path}"
    assert run(f"--checkpoint drawn {line} --extractor_side 32", iterations=1)[0] == 0
    other_side = f"--checkpoint {tmp_path / 'drawn.npz'} --config {LUNG_CONFIG} --extractor_side 48"
    status, _, _, errors = run(other_side, iterations=1)
    assert status == 2 and "efficientnet_lite0@32px" in errors and "not comparable" in errors
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(3), sigma=np.eye(3))
    status, _, _, errors = run(f"--checkpoint {tmp_path / 'foreign.npz'} --config {LUNG_CONFIG}", iterations=1)
    assert status == 2 and "another tool" in errors
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    status, _, _, errors = run(f"--checkpoint {tmp_path / 'broken.npz'} --config {LUNG_CONFIG}", iterations=1)
    assert status == 2 and "broken.npz" in errors


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        fid.build_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert "python fid.py --checkpoint" in text and "metrics.json" in text and "--matrix" in text
