"""A donor who trained a model is never called held out: what checkpoints record, and which stages refuse."""

import json
import shutil
from pathlib import Path

import gan_toy
import numpy as np
import pandas as pd
import published_files as published
import pytest
from betavae_cohort import write_cohort
from PIL import Image

import betaVAE_interpolation
import betaVAE_training
import fid
import generate_tissue_images
import histopathology_gan
import prepare_data
import wsi_model
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import InputError
from datasets.expression import read_expression, splits_of, write_expression
from datasets.keys import donor_of, split_of
from datasets.leaks import TrainedOn, donor_digests, trained_by
from figures.results import makers_said
from models.dcgan import DCGANGenerator

GAN = "checkpoints/rna-gan/rna-gan.model"
VAE = "checkpoints/betavae_tissues/best.pt"
DONORS = [f"GTEX-D{i:02d}" for i in range(gan_toy.N_DONORS)]
TRAIN = [d for d in DONORS if split_of(d, 99) == "train"]
TEST = [d for d in DONORS if split_of(d, 99) == "test"]


def run(module, words):
    return gan_toy.run(module, words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both tissues, a VAE, an RNA-GAN and a GAN of lung trained for a step."""
    folder = tmp_path_factory.mktemp("leaks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gan_toy.make_cohort(folder)
        for name, loss in (("rna-gan", "wganvae"), ("gan", "wgan")):
            words = f"--config lung.json --model_dir checkpoints/{name} --loss_type {loss} --max_steps 1"
            assert run(histopathology_gan, words) == 0
    return folder


work = gan_toy.cohort


def assign(split, donors, tissues=("lung", "brain")):
    """Give the rows of some donors another split in the tables."""
    for tissue in tissues:
        table = read_expression(f"data/{tissue}.csv")
        words = [split if donor in donors else "" for donor in table.obs["donor"]]
        table.obs = table.obs.assign(assigned_split=words)
        write_expression(table, Path(f"data/{tissue}.csv"))


def change(path, kind, **values):
    """Rewrite a checkpoint with other values; return its digest."""
    state = load_checkpoint(path, kind)[0] | values
    return save_checkpoint(path, kind, {k: v for k, v in state.items() if v is not ...})


# ---- What is recorded ----


def test_checkpoints_hold_digests_of_their_training_donors_and_no_name(made, tmp_path):
    for path, kind in ((GAN, "gan"), ("checkpoints/gan/gan.model", "gan")):
        state = load_checkpoint(made / path, kind)[0]
        assert state["trained_donors"] == donor_digests(TRAIN), path
        assert b"GTEX-D" not in (made / path).read_bytes(), path
    config = write_cohort(tmp_path, n_genes=100, num_epochs=1)
    assert run(betaVAE_training, f"--config {config}") == 0
    donors = [f"GTEX-{i:04d}" for i in range(60)]
    state = load_checkpoint(tmp_path / "run" / "best.pt", "betavae")[0]
    assert state["trained_donors"] == donor_digests(d for d in donors if split_of(d, 99) == "train")
    assert b"GTEX-0" not in (tmp_path / "run" / "best.pt").read_bytes()


def test_digests_are_plain_sha256_sorted_once_each():
    assert donor_digests(["b", "a", "b"]) == [
        "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    ]


def test_a_gan_records_the_donors_of_its_vae_with_its_own(work):
    digest = change(VAE, "betavae", trained_donors=donor_digests([*TRAIN, "GTEX-ELSE"]))
    assert run(histopathology_gan, "--config lung.json --model_dir m --loss_type wganvae --max_steps 1") == 0
    state = load_checkpoint("m/m.model", "gan")[0]
    assert state["vae_digest"] == digest and state["trained_donors"] == donor_digests([*TRAIN, "GTEX-ELSE"])


# ---- Which stages refuse ----

REFUSED = {
    "train": (histopathology_gan, "--config lung.json --model_dir new --loss_type wganvae --max_steps 1"),
    "patient": (generate_tissue_images, "--checkpoint {GAN} --config lung.json --patient1 {slide} --sample_size 1"),
    "held_out": (generate_tissue_images, "--checkpoint {GAN} --config lung.json --sample_size 2"),
    "profiles": (fid, "--checkpoint {GAN} --config lung.json --sample_size 4 --iterations 1"),
    "tiles": (fid, "--checkpoint checkpoints/gan --config lung.json --split test --sample_size 4 --iterations 1"),
    "interpolation": (betaVAE_interpolation, "--config vae.json --type tissue"),
    "cohort": (prepare_data, "cohort --config both.json --checkpoint {GAN} --out cohort.csv"),
}


@pytest.mark.parametrize("stage", REFUSED)
def test_a_training_donor_whom_the_table_calls_test_is_refused_by_name(work, capsys, stage):
    donor = TRAIN[2]
    module, words = REFUSED[stage]
    Path("vae.json").write_text(
        json.dumps({"path_csv": ["data/lung.csv", "data/brain.csv"], "save_dir": "checkpoints/betavae_tissues"})
    )
    words = words.format(GAN=GAN, slide=f"{donor}-0625") + (" --device cpu" if module is not prepare_data else "")
    assign("test", [donor])
    before = sorted(Path().rglob("*"))
    assert run(module, words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    model = "gan.model" if stage == "tiles" else "best.pt"
    assert f"{model}: was trained on 1 donor that" in said or f"{GAN}: was trained on 1 donor that" in said
    assert f"in split test: {donor}; use the table (column assigned_split)" in said
    assert [p for p in Path().rglob("*") if p.suffix in (".png", ".model", ".npz", ".csv") and p not in before] == []


def test_a_gan_alone_is_enough_to_refuse_tiles_of_its_vaes_donors(work, capsys):
    change(GAN, "gan", trained_donors=donor_digests([*TRAIN, TEST[0]]))
    words = f"--checkpoint {GAN} --config lung.json --patient1 {TRAIN[0]}-0625 --split test --device cpu"
    assert run(fid, f"{words} --config2 lung.json --matrix real=real:lung.json gan=checkpoints/gan made={GAN}") == 2
    said = capsys.readouterr().err
    assert f"in split test: {TEST[0]};" in said and "rna-gan.model: was trained on 1 donor" in said


def test_a_folder_of_generated_tiles_is_checked_by_its_manifest_or_a_note_says_why_not(work, capsys):
    assert (
        run(generate_tissue_images, "--checkpoint checkpoints/gan --config lung.json --sample_size 4 --out made") == 0
    )
    words = "--config lung.json --split test --sample_size 4 --iterations 1 --device cpu --extractor_side 32 --out fid"
    assert run(fid, f"--checkpoint made {words}") == 0  # its model has seen no donor of the test split
    assert "cannot be checked" not in capsys.readouterr().err
    assign("test", [TRAIN[2]])
    assert run(fid, f"--checkpoint made {words}") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"gan.model: was trained on 1 donor that tiles/lung has in split test: {TRAIN[2]};" in said

    shutil.copytree("made", "plain")
    Path("plain/manifest.json").unlink()
    change("checkpoints/gan/gan.model", "gan", images_seen=7)
    for folder, why in (("plain", "no manifest.json"), ("made", "gan.model is not the model any more that made it")):
        assert run(fid, f"--checkpoint {folder} {words}") == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if "cannot be checked" in line]
        assert len(notes) == 1 and f"{folder}: " in notes[0] and why in notes[0], notes
    Path("checkpoints/gan/gan.model").unlink()
    assert run(fid, f"--checkpoint made {words}") == 0
    assert "gan.model, which is not there: whether held-out donors trained it" in capsys.readouterr().err
    assert run(fid, f"--checkpoint plain {words.replace('--split test', '')}") == 0
    assert "cannot be checked" not in capsys.readouterr().err  # nobody is called held out


def test_tiles_of_a_published_gan_are_measured_and_it_is_said_that_it_names_no_donor(work, capsys):
    published.save_gan(work / "published.model", published.trained(DCGANGenerator(gan_toy.LATENT, gan_toy.SIDE, 4), 1))
    words = "--checkpoint published.model --config lung.json --sample_size 4 --out made"
    assert run(generate_tissue_images, words) == 0
    capsys.readouterr()
    words = "--config lung.json --split test --sample_size 4 --iterations 1 --device cpu --extractor_side 32 --out fid"
    assert run(fid, f"--checkpoint made {words}") == 0
    said = capsys.readouterr().err
    assert said.count("published.model: ") == 1 and "does not say which donors it was trained on" in said


def test_who_is_held_out_is_said_and_who_is_not_is_warned_of(work, capsys):
    for donor, split in ((TEST[0], "test"), (TRAIN[0], "train")):
        words = (
            f"--checkpoint {GAN} --config lung.json --patient1 {donor}-0625 --sample_size 1 --device cpu --out {donor}"
        )
        assert run(generate_tissue_images, words) == 0
        found = capsys.readouterr()
        assert f"profile {donor}-0625.svs (split {split})" in found.out
        assert ("was trained on" in found.err) == (split == "train")
        assert json.loads(Path(donor, "manifest.json").read_text())["made_from"]["split"] == split
    table = read_expression("data/lung.csv")  # profiles without slides, one of a training donor
    table.obs = table.obs.assign(wsi_file_name="", donor=[TRAIN[0], *(f"other{i}" for i in range(len(table) - 1))])
    table.obs.index = [f"sample{i}" for i in range(len(table))]
    write_expression(table, Path("geo.h5ad"))
    for row, split in ((0, "train"), (1, "another study")):
        words = f"--checkpoint {GAN} --config lung.json --rna_data geo.h5ad --patient1 sample{row} --sample_size 1"
        assert run(generate_tissue_images, f"{words} --device cpu --out geo{row}") == 0
        assert json.loads(Path(f"geo{row}", "manifest.json").read_text())["made_from"]["split"] == split


def test_an_older_checkpoint_is_told_of_once_and_used(work, capsys):
    digest = change(VAE, "betavae", trained_donors=..., trained_on=...)
    change(GAN, "gan", trained_donors=..., trained_on=..., vae_digest=digest)
    words = f"--checkpoint {GAN} --config lung.json --patient1 {TEST[0]}-0625 --sample_size 1 --device cpu"
    assert run(generate_tissue_images, words) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "does not say which donors" in line]
    assert [line.split(": ")[1] for line in said] == [VAE, GAN]


# ---- Donors with rows in several splits; spots ----


def test_a_donor_in_two_tissues_has_one_split(work, capsys):
    assign("test", [TRAIN[1]], tissues=["brain"])
    assert run(histopathology_gan, "--config both.json --model_dir new --loss_type wganvae") == 2
    said = capsys.readouterr().err
    assert f"donor {TRAIN[1]}: {TRAIN[1]}-0625.svs in train, {TRAIN[1]}-3025.svs in test; one split" in said


def test_spots_of_one_section_may_lie_in_several_splits_and_are_checked_one_by_one(capsys):
    names = [f"C2_{i}x{i}" for i in range(4)]
    obs = pd.DataFrame({"donor": "patient", "array_x": ["0", "1", "2", "3"]}, names)
    obs["assigned_split"] = ["train", "train", "val", "test"]
    splits = splits_of(obs, 99)
    model = TrainedOn("m.model", trained_by(["patient"], names[:2]))
    model.refuse_held_out(obs.assign(split=splits))
    model.refuse(obs[3:], "test")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "was trained on other spots of patient" in said[0] and "the patients are not" in said[0]
    with pytest.raises(
        InputError, match=r"m\.model: was trained on 1 spot that .* in split test: C2_1x1; use the table"
    ):
        model.refuse(obs[1:], "test")
    with pytest.raises(InputError, match="donor patient: C2_0x0 in train, C2_2x2 in val"):
        splits_of(obs.drop(columns="array_x"), 99)


# ---- The classifier ----


def test_classifier_tables_say_who_is_held_out_and_which_gan_made_them(work, capsys):
    for tissue in ("lung", "brain"):
        words = (
            f"--checkpoint {GAN} --config {tissue}.json --patient1 {TEST[0]}-{'0625' if tissue == 'lung' else '3025'}"
        )
        assert run(generate_tissue_images, f"{words} --sample_size 6 --device cpu --out generated/{tissue}") == 0
    toy = "toy --real tiles/lung tiles/brain --generated generated/lung generated/brain --split test --out images"
    assert run(prepare_data, toy) == 0
    real, made = (pd.read_csv(f"images/{name}_toy_example.csv") for name in ("real", "rna-gan"))
    assert set(real["split"]) == {"test"} and set(made["made_by"]) == {GAN}
    digest = load_checkpoint(GAN, "gan")[1]
    assert set(made["made_digest"]) == {digest} and set(made["made_seed"]) == {99}
    assert set(real["group"]) == set(TEST)
    words = (
        "--patch_data_path images --train_csv rna-gan_toy_example.csv --test_csv real_toy_example.csv --num_epochs 1"
    )
    assert run(wsi_model, f"{words} --device cpu --out one") == 0
    metrics = json.loads(Path("one/metrics.json").read_text())
    maker = {"made_by": GAN, "made_digest": digest, "made_seed": "99"}
    assert [t["makers"] for t in metrics["tables"]] == [[maker], []]
    assert makers_said([metrics]) == (
        f"Generated tiles: rna-gan_toy_example.csv by {Path(GAN).stem} (digest {digest[:12]}, seed 99). No model is "
        "noted for real_toy_example.csv: real tiles, or of a model and seed that are not known."
    )
    other = {"path": "other/rna-gan_toy_example.csv", "makers": [maker | {"made_by": "b.model"}]}
    assert makers_said([metrics, {"tables": [other]}]).startswith(
        f"Generated tiles: images/rna-gan_toy_example.csv by {Path(GAN).stem} (digest {digest[:12]}, seed 99); "
        f"other/rna-gan_toy_example.csv by b (digest {digest[:12]}, seed 99). "
    )
    assert metrics["trained_donors"] == donor_digests([TEST[0]])  # whose profile it was: named in a warning
    capsys.readouterr()

    change(GAN, "gan", trained_donors=donor_digests([*TRAIN, TEST[1]]))
    assert run(wsi_model, f"{words} --device cpu --out two") == 2
    said = capsys.readouterr().err
    assert f"{GAN}: was trained on 1 donor that images/real_toy_example.csv has in split test: {TEST[1]};" in said
    assert run(prepare_data, toy.replace("--out images", "--out again")) == 2
    assert f"in split test: {TEST[1]};" in capsys.readouterr().err and not Path("again").exists()
    Path(GAN).unlink()
    assert run(wsi_model, f"{words} --device cpu --out two") == 0
    assert f"{GAN}: no such checkpoint any more" in capsys.readouterr().err


def test_classifier_refuses_real_tiles_of_a_held_out_donor_in_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for label in ("a", "b"):
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(f"{label}{i}.png")
            rows.append((f"{label}{i}.png", label, f"GTEX-{label}{i}"))
    table = pd.DataFrame(rows, columns=["wsi_file_names", "Labels", "group"])
    table.to_csv("train.csv", index=False)
    table[::4].assign(split="test").to_csv("test.csv", index=False)
    assert run(wsi_model, "--train_csv train.csv --test_csv test.csv --num_epochs 1 --device cpu") == 2
    assert "train.csv: was trained on 4 donors that test.csv has in split test: GTEX-a0" in capsys.readouterr().err
    assert donor_of("GTEX-a0-0625.svs") == "GTEX-a0"


# ---- Rows, whoever their donor is ----


def test_a_row_that_trained_an_older_model_is_refused_without_its_donors():
    model = TrainedOn("old.model", {"trained_on": trained_by([], ["a-slide"])["trained_on"]})
    obs = pd.DataFrame({"donor": ["a", "b"]}, ["a-slide", "b-slide"])
    with pytest.raises(InputError, match=r"old.model: was trained on 1 row .* in split test: a-slide"):
        model.refuse(obs, "test")
    model.refuse(obs.iloc[1:], "test")


def test_toy_takes_donors_and_splits_from_a_table(work):
    """And a slide that the table calls held out, of a donor who trained the GAN of the generated tiles, is refused."""
    assign("test", TRAIN[:1])
    words = "toy --real tiles/lung tiles/brain --split test --table data/lung.csv data/brain.csv --out"
    assert run(prepare_data, f"{words} alone") == 0
    assert set(pd.read_csv("alone/real_toy_example.csv")["group"]) == {*TEST, TRAIN[0]}
    folder = Path("generated/rna-gan_lung/x")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"checkpoint": GAN, "tiles": [{"file": "a.png"}]}))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "a.png")
    assert run(prepare_data, f"{words} both --generated generated/rna-gan_lung") == 2
