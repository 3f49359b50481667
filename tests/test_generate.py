"""Tiles from a trained GAN: a tile is its seed, its number and its profile; folders, manifests, foreign profiles."""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import gan_toy
import numpy as np
import pytest
import torch

import generate_tissue_images as command
import models.generate
from common.checkpoint import load_checkpoint, resolve_checkpoint, save_checkpoint
from common.errors import InputError
from datasets.expression import read_expression, write_expression
from datasets.image_folder import read_image, read_image_folder
from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANGenerator
from models.generate import CHUNK, chunk_drawer, generate_tiles
from models.residual import ResidualGenerator
from sources.gan import GANSource, open_gan

PATIENT, OTHER = "GTEX-D03-0625.svs", "GTEX-D00-0625.svs"  # of split test, and another


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The cohort with a GAN and an RNA-GAN of the lung, trained for a moment."""
    torch.set_num_threads(1)
    folder = gan_toy.make_cohort(tmp_path_factory.mktemp("cohort"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gan_toy.train_two("wganvae", steps=3)
    return folder


cohort = gan_toy.cohort


def generate(words, checkpoint="checkpoints/rna-gan_lung.model"):
    return gan_toy.run(command, f"--checkpoint {checkpoint} --config lung.json {words}")


def pixels(folder):
    return np.stack([read_image(path) for path in read_image_folder(folder)])


def manifest(folder):
    return json.loads((Path(folder) / "manifest.json").read_text())


# ---- The function ----


@pytest.mark.parametrize("batch_size", [1, 7, 16, 100])
@pytest.mark.parametrize("network", [DCGANGenerator(6, 16, 8), ResidualGenerator(6, 16, 8)])
def test_tile_k_depends_on_seed_and_k_only(network, batch_size):
    torch.manual_seed(0)
    generator = ConditionedGenerator(network, InputRule(), 6)
    whole = torch.cat(list(generate_tiles(generator, 40, 5, batch_size=64)))
    again = list(generate_tiles(generator, 40, 5, batch_size=batch_size))
    assert all(len(batch) <= batch_size for batch in again)
    assert torch.equal(torch.cat(again), whole)
    for start, n in ((3, 5), (CHUNK, CHUNK), (30, 10), (39, 1)):
        part = torch.cat(list(generate_tiles(generator, n, 5, start=start, batch_size=batch_size)))
        assert torch.equal(part, whole[start : start + n])
    assert not torch.equal(torch.cat(list(generate_tiles(generator, 40, 6))), whole)
    assert not generator.training


def test_each_tile_may_have_its_own_profile():
    torch.manual_seed(0)
    generator, c = ConditionedGenerator(DCGANGenerator(6, 16, 8), InputRule(), 6, 6), torch.randn(20, 6)
    mixed = torch.cat(list(generate_tiles(generator, 20, 5, c, start=10)))
    for i in (0, 7, 19):
        alone = torch.cat(list(generate_tiles(generator, 1, 5, c[i], start=10 + i)))
        assert torch.equal(alone[0], mixed[i])


@pytest.mark.parametrize("network", [DCGANGenerator(6, 32, 8), ResidualGenerator(6, 32, 8)])
def test_bf16_tiles_are_within_a_few_grey_levels_and_depend_on_seed_and_k_only(network):
    torch.manual_seed(0)
    generator = ConditionedGenerator(deepcopy(network), InputRule(), 6, 6)
    c = torch.randn(40, 6)
    fp32 = torch.cat(list(generate_tiles(generator, 40, 5, c)))
    generator.to_bf16()
    whole = torch.cat(list(generate_tiles(generator, 40, 5, c)))
    assert whole.dtype == torch.float32 and not torch.equal(whole, fp32)
    levels = (whole - fp32).abs() * 127.5
    assert levels.mean() < 0.5 and levels.max() < 8, (levels.mean(), levels.max())
    assert torch.equal(torch.cat(list(generate_tiles(generator, 5, 5, c[30:35], start=30, batch_size=2))), whole[30:35])


def test_where_a_gpu_cannot_record_the_generator_draws_and_one_warning_says_why(monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(models.generate, "_record", refuse)
    generator = ConditionedGenerator(DCGANGenerator(6, 16, 4), InputRule(), 6)
    noise = SimpleNamespace(device=torch.device("cuda", 0), shape=(CHUNK, 6))
    draws = [chunk_drawer(generator, noise, None) for _ in range(3)]
    assert all(draw.func is generator for draw in draws)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "operation not permitted when stream is capturing" in err


# ---- The source ----


def test_a_source_yields_uint8_and_says_what_it_is(cohort):
    gan = open_gan("checkpoints/gan_lung")
    source = GANSource(gan)
    batches = list(source.batches(10, 1, batch_size=4))
    assert [b.shape for b in batches] == [(4, 16, 16, 3), (4, 16, 16, 3), (2, 16, 16, 3)]
    assert batches[0].dtype == np.uint8 and source.count() is None
    assert source.describe()["digest"] == gan.digest and source.label == "GAN lung"


def test_profiles_are_drawn_per_tile_by_seed_and_number(cohort):
    gan = open_gan("checkpoints/rna-gan_lung")
    profiles = gan.profiles("checkpoints/betavae_tissues", read_expression("data/lung.csv"))
    names = profiles.held_out("test")
    assert names and {profiles.split(name) for name in names} == {"test"}
    source = GANSource(gan, profiles.conditions(names), names=names)
    whole = np.concatenate(list(source.batches(20, 1)))
    assert (np.concatenate(list(source.batches(6, 1, start=9))) == whole[9:15]).all()
    assert len(set(source.profile_of_tiles(60, 1))) > 1


def test_two_patients_give_different_tiles_for_the_same_noise(cohort):
    gan = open_gan("checkpoints/rna-gan_lung")
    profiles = gan.profiles(None, read_expression("data/lung.csv"))
    a, b = (np.concatenate(list(GANSource(gan, profiles.condition(p)).batches(8, 1))) for p in (PATIENT, OTHER))
    assert (a != b).any()


# ---- The command ----


def test_tiles_of_a_patient_with_the_papers_flags(cohort, capsys):
    vae = "--vae --vae_checkpoint checkpoints/betavae_tissues.pt"
    assert generate(f"--sample_size 20 {vae} --patient1 {PATIENT}") == 0
    folder = Path("generated/rna-gan_lung/GTEX-D03-0625")
    said = manifest(folder)
    assert said["n"] == 20 == len(said["tiles"]) == len(read_image_folder(folder)) and said["finished"]
    about = said["made_from"]
    assert (about["profile"], about["donor"], about["split"], about["seed"]) == (PATIENT, "GTEX-D03", "test", 99)
    assert about["digest"] == load_checkpoint("checkpoints/rna-gan_lung/rna-gan_lung.model")[1]
    assert about["vae_digest"] == load_checkpoint("checkpoints/betavae_tissues/best.pt")[1]
    assert about["gene_coverage"] == 1.0 and about["tissue"] == "lung"
    assert about["distance"]["held_out"] == 20 and not about["distance"]["profiles"][PATIENT]["far"]
    assert f"{PATIENT}: distance to the training cloud: percentile " in capsys.readouterr().out
    assert (folder / "grid.png").exists()


def test_a_sample_named_otherwise_than_its_slide_is_found_and_the_folder_bears_the_name_asked_for(cohort):
    table = read_expression("data/lung.csv")
    table.obs.index = [f"{name.removesuffix('25.svs')}26-SM-{i:04d}" for i, name in enumerate(table.obs.index)]
    write_expression(table, cohort / "samples" / "lung.csv")
    gan_toy.write_config(cohort / "lung.json", ["lung"], path_csv=["samples/lung.csv"])
    assert generate(f"--checkpoint2 checkpoints/gan_lung.model --sample_size 4 --patient1 {PATIENT}") == 0
    about = manifest("generated/rna-gan_lung/GTEX-D03-0625")["made_from"]
    assert (about["profile"], about["slide"]) == ("GTEX-D03-0626-SM-0003", PATIENT)


def test_a_plain_gan_says_that_it_knows_no_patient(cohort, capsys):
    assert generate(f"--sample_size 2 --patient1 {PATIENT}", "checkpoints/gan_lung.model") == 0
    assert f"takes no expression; --patient1 {PATIENT} is ignored" in capsys.readouterr().err
    assert len(read_image_folder("generated/gan_lung/no_patient")) == 2
    pair = "--checkpoint2 checkpoints/gan_lung.model --sample_size 2"
    assert generate(f"{pair} --patient1 {PATIENT}", "checkpoints/gan_lung.model") == 0
    assert "is only used for the real tiles beside it" in capsys.readouterr().err
    assert Path("generated/gan_lung/GTEX-D03-0625/real").is_dir()
    assert generate(f"{pair} --patient1 GTEX-D93-0625.svs", "checkpoints/gan_lung.model") == 2
    assert "nearest: GTEX-D23-0625" in capsys.readouterr().err


def test_models_of_two_sizes_are_shown_at_one():
    parts = [np.full((n, side, side, 3), 7, np.uint8) for n, side in ((16, 16), (5, 32), (3, 8))]
    picture = command.side_by_side(parts, 16)
    assert len(picture) == len(command.side_by_side(parts[:1], 16))
    assert picture.shape == command.side_by_side([parts[0]] * 3, 16).shape


def test_the_batch_size_changes_no_tile(cohort):
    assert generate(f"--sample_size 20 --patient1 {PATIENT} --out a") == 0
    assert generate(f"--sample_size 20 --patient1 {PATIENT} --out b --batch_size 3") == 0
    assert (pixels("a") == pixels("b")).all()


def test_an_interrupted_run_goes_on_and_a_longer_one_adds(cohort):
    assert generate(f"--sample_size 20 --patient1 {PATIENT} --out whole") == 0
    assert generate(f"--sample_size 9 --patient1 {PATIENT} --out parts") == 0
    kept = Path("parts/seed99_00002.png")
    before = kept.stat().st_mtime_ns
    Path("parts/seed99_00005.png").unlink()
    assert generate(f"--sample_size 20 --patient1 {PATIENT} --out parts") == 0
    assert (pixels("whole") == pixels("parts")).all() and kept.stat().st_mtime_ns == before


def test_bf16_is_in_the_manifest_and_not_mixed_with_fp32(cohort, capsys):
    assert generate(f"--patient1 {PATIENT} --sample_size 4 --out a") == 0
    assert generate(f"--patient1 {PATIENT} --sample_size 4 --out b --precision bf16") == 0
    assert manifest("b")["made_from"]["precision"] == "bf16" and "precision" not in manifest("a")["made_from"]
    assert np.abs(pixels("a").astype(int) - pixels("b")).max() <= 4
    capsys.readouterr()
    assert generate(f"--patient1 {PATIENT} --sample_size 6 --out b") == 2
    assert "precision (bf16 there, None now)" in capsys.readouterr().err
    with pytest.raises(InputError, match="expected fp32 or bf16"):
        open_gan("checkpoints/gan_lung", precision="fp16")


def test_a_folder_of_other_tiles_is_refused(cohort, capsys):
    assert generate(f"--sample_size 4 --patient1 {PATIENT} --out a") == 0
    assert generate(f"--sample_size 4 --patient1 {OTHER} --out a") == 2
    assert "profile" in capsys.readouterr().err
    assert generate(f"--sample_size 4 --patient1 {PATIENT} --out a --seed 1") == 2
    assert "seed (99 there, 1 now)" in capsys.readouterr().err


def test_genes_in_another_order_give_the_same_tiles(cohort):
    table = read_expression("data/lung.csv")
    order = np.random.default_rng(0).permutation(len(table.genes))
    genes = [table.genes[i].split(".")[0] + ".7" for i in order]  # and of another version
    write_expression(type(table)(table.values[:, order], genes, table.obs), cohort / "other" / "lung.csv")
    assert generate(f"--sample_size 6 --patient1 {PATIENT} --out a") == 0
    assert generate(f"--sample_size 6 --patient1 {PATIENT} --out b --rna_data other/lung.csv") == 0
    assert (pixels("a") == pixels("b")).all()


def test_a_random_patient_of_a_foreign_table(cohort, capsys):
    table = read_expression("data/brain.csv")
    table.obs = table.obs.assign(wsi_file_name="", donor=[f"P{i}" for i in range(len(table))])
    table.obs.index = [f"GSE_{i}" for i in range(len(table))]
    write_expression(table, cohort / "GSE120795_lung_proteincoding.csv")
    words = "--sample_size 4 --rna_data GSE120795_lung_proteincoding.csv --random_patient"
    assert generate(words + " --out a") == 0
    about = manifest("a")["made_from"]
    assert about["profile"] in table.obs.index and about["split"] == "another study"
    assert generate(words + " --out b") == 0
    assert manifest("b")["made_from"]["profile"] == about["profile"]
    drawn = set()
    for seed in range(5):
        assert generate(f"{words} --out s{seed} --seed {seed}") == 0
        drawn.add(manifest(f"s{seed}")["made_from"]["profile"])
    assert len(drawn) > 1


def test_without_a_patient_every_tile_has_a_held_out_profile(cohort):
    assert generate("--sample_size 12 --out a") == 0
    names = {tile["profile"] for tile in manifest("a")["tiles"]}
    assert len(names) > 1
    profiles = open_gan("checkpoints/rna-gan_lung").profiles(None, read_expression("data/lung.csv"))
    assert {profiles.split(name) for name in names} == {"test"}


def test_real_first_and_second_side_by_side(cohort):
    words = f"--checkpoint2 checkpoints/gan_lung.model --sample_size 10 --patient1 {PATIENT} --out a"
    assert generate(words) == 0
    assert len(read_image_folder("a")) == len(read_image_folder("a/second")) == 10
    assert len(read_image_folder("a/real")) == gan_toy.TILES  # all that the patient has
    assert manifest("a/second")["made_from"]["run"] == "gan_lung"
    width = read_image("a/comparison.png").shape[1]
    assert width == 3 * (4 * 16 + 3 * 2) + 2 * (16 // 3)


def test_a_plain_gan_notes_and_ignores_vae(cohort, capsys):
    assert generate("--sample_size 4 --vae", "checkpoints/gan_lung.model") == 0
    assert "takes no expression" in capsys.readouterr().err
    assert Path("generated/gan_lung/no_patient/manifest.json").exists()


def test_another_tissue_is_a_warning(cohort, capsys):
    words = "--sample_size 4 --rna_data data/brain.csv --patient1 GTEX-D03-3025.svs --out a"
    assert generate(words) == 0
    assert "is of brain, rna-gan_lung was trained on lung" in capsys.readouterr().err


def test_another_vae_is_refused(cohort, capsys):
    tables = [gan_toy.toy_table(tissue, number) for number, tissue in enumerate(gan_toy.TISSUES)]
    gan_toy.write_vae(cohort / "checkpoints" / "other_vae", tables, seed=1)
    assert generate(f"--patient1 {PATIENT} --vae --vae_checkpoint checkpoints/other_vae.pt") == 2
    assert "another VAE" in capsys.readouterr().err


def test_a_table_of_other_genes_is_refused(cohort, capsys):
    table = read_expression("data/lung.csv")
    genes = [f"ENSG{i + 900:011d}.1" for i in range(len(table.genes))]
    write_expression(type(table)(table.values, genes, table.obs), cohort / "strange.csv")
    assert generate(f"--rna_data strange.csv --patient1 {PATIENT}") == 2
    assert "0 of the 60 expected genes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--patient1 GTEX-D93-0625.svs", "nearest: GTEX-D"),
        (f"--patient1 {PATIENT} --random_patient", "give one of the two"),
        ("--sample_size 0", "1 or more"),
        ("--checkpoint2 checkpoints/gan_lnug.model", "no such checkpoint"),
        ("--rna_data nowhere.csv --random_patient", "nowhere.csv"),
    ],
)
def test_bad_input_is_one_line(cohort, capsys, words, said):
    assert generate(words) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_patient_without_tiles_cannot_be_compared(cohort, capsys):
    for path in (cohort / "tiles" / "lung").glob("GTEX-D03-*"):
        path.unlink()
    assert generate(f"--checkpoint2 checkpoints/gan_lung.model --patient1 {PATIENT} --sample_size 2") == 2
    assert "no tiles of GTEX-D03-0625" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_or_kind_is_refused(cohort, capsys):
    state, _ = load_checkpoint("checkpoints/gan_lung/gan_lung.model")
    args = {**state["generator_args"], "step_channels": 8}
    save_checkpoint("wide.model", "gan", {**state, "generator_args": args})
    assert generate("--sample_size 2", "wide.model") == 2
    assert "another architecture" in capsys.readouterr().err
    args = {k: v for k, v in state["generator_args"].items() if k != "first_side"} | {"gan_type": "residual"}
    save_checkpoint("early.model", "gan", {**state, "generator_args": args})  # of before sides changed as they do now
    assert generate("--sample_size 2", "early.model") == 2
    assert "early.model: weights of another architecture than it states (no 'first_side')" in capsys.readouterr().err
    assert generate("--sample_size 2", "checkpoints/betavae_tissues/best.pt") == 2
    assert "holds a betavae checkpoint" in capsys.readouterr().err


def test_a_cut_checkpoint_is_refused(cohort, capsys):
    path = Path("checkpoints/gan_lung/gan_lung.model")
    path.write_bytes(path.read_bytes()[:-2000])
    assert generate("--sample_size 2", str(path)) == 2
    assert "cut short" in capsys.readouterr().err


# ---- Along a shift; guidance ----


def write_shift(path, digest=None, size=gan_toy.LATENT):
    state, own = load_checkpoint(resolve_checkpoint("checkpoints/betavae_tissues.pt"), "betavae")
    shift = 2 * state["latent"]["std"].numpy()[:size]
    np.savez(path, shift=shift, vae_digest=digest or own)


def test_sweep_draws_a_row_per_noise_and_a_column_per_alpha(cohort):
    write_shift("shift.npz")
    words = f"--patient1 {PATIENT} --sample_size 3 --out out"
    assert generate(f"{words} --sweep shift.npz --alphas -1,0,2.5") == 0
    page, made_from = read_image("out/sweep.png"), manifest("out")
    assert page.shape[:2] == (command.SWEPT * 18 - 2, 3 * 18 - 2)
    for k in range(3):  # alpha 0 is the patient's own tile
        assert np.array_equal(page[18 * k : 18 * k + 16, 18:34], read_image(f"out/seed99_{k:05d}.png"))
    assert (page[:16, 36:52] != page[:16, 18:34]).any()
    assert made_from["sweep"]["alphas"] == [-1, 0, 2.5] and made_from["sweep"]["profile"] == PATIENT
    assert generate(f"{words} --sweep shift.npz --alphas 0.5") == 0  # the same tiles: the folder is gone on with
    assert manifest("out")["sweep"]["alphas"] == [0.5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"--patient1 {PATIENT} --sweep shift.npz --alphas 0,x", "numbers with commas"),
        (f"--patient1 {PATIENT} --sweep shift.npz --alphas 0,inf", "numbers with commas"),
        (f"--patient1 {PATIENT} --sweep other.npz", "another VAE"),
        (f"--patient1 {PATIENT} --sweep short.npz", "a shift of 3 latent dimensions"),
        (f"--patient1 {PATIENT} --sweep lung.json", "not a shift"),
        (f"--patient1 {PATIENT} --sweep none.npz", "no such file"),
        ("--sweep shift.npz", "--patient1"),
        (f"--patient1 {PATIENT} --guidance -1", "--guidance -1"),
        (f"--patient1 {PATIENT} --guidance nan", "--guidance nan"),
    ],
)
def test_sweep_and_guidance_refusals(cohort, capsys, words, message):
    write_shift("shift.npz")
    write_shift("other.npz", "0" * 64)
    write_shift("short.npz", size=3)
    assert generate(f"--sample_size 2 --out out {words}") == 2
    assert message in capsys.readouterr().err and not Path("out").exists()


def test_sweep_needs_expression(cohort, capsys):
    write_shift("shift.npz")
    words = f"--sample_size 2 --patient1 {PATIENT} --sweep shift.npz"
    assert generate(words, "checkpoints/gan_lung.model") == 2
    assert "takes no expression" in capsys.readouterr().err


def test_guidance_is_in_the_manifest_and_0_draws_without_expression(cohort):
    for patient, out in ((PATIENT, "a"), (OTHER, "b")):
        assert generate(f"--patient1 {patient} --sample_size 2 --guidance 0 --out {out}") == 0
    assert generate(f"--patient1 {PATIENT} --sample_size 2 --guidance 3 --out c") == 0
    assert manifest("a")["made_from"]["guidance"] == 0 and manifest("c")["made_from"]["guidance"] == 3
    assert np.array_equal(pixels("a")[1:], pixels("b")[1:]) and not np.array_equal(pixels("a"), pixels("c"))
