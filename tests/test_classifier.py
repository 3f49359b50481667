"""The classifier: answers known beforehand, controls, folds by group, determinism, and bad tables."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image

import wsi_model
from common.errors import InputError, run_command
from datasets.image_table import Pictures, read_image_table
from metrics.classification import inner_split, intervals, make_folds, scores
from models.classifier import Classifier, SmallCNN, augmented, frozen_features, normalised

SIDE = 32


def write_tiles(folder, name, seed, n_groups=10, per_group=3, side=SIDE):
    """Two classes that differ in texture: smooth tiles ("lung") and speckled ones ("brain"); each donor has both."""
    generator, rows = np.random.default_rng(seed), []
    (folder / name).mkdir(parents=True, exist_ok=True)
    for group in range(n_groups):
        for label in ("lung", "brain"):
            for k in range(per_group):
                tile = np.full((side, side, 3), (200, 150, 190)) + generator.normal(0, 6, (1, 1, 3))
                tile = tile + generator.normal(0, 40 if label == "brain" else 3, (side, side, 1))
                path = f"{name}/{label}_{group}_{k}.png"
                Image.fromarray(np.clip(tile, 0, 255).astype(np.uint8)).save(folder / path)
                rows.append((path, label, f"GTEX-{group:04d}"))
    table = pd.DataFrame(rows, columns=["wsi_file_names", "Labels", "group"])
    table.to_csv(folder / f"{name}.csv", index=False)
    return table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images_form")
    write_tiles(folder, "real", 1)
    write_tiles(folder, "synthetic", 2)
    return folder


def run(folder, out, *flags):
    """Run the command in this process; return its exit status and metrics."""
    flags = ["--patch_data_path", str(folder), "--device", "cpu", "--out", str(out), *map(str, flags)]
    status = run_command(wsi_model.main, wsi_model.build_parser(), flags)
    return status, json.loads((out / "metrics.json").read_text()) if status == 0 else None


def value(metrics, name="accuracy"):
    return metrics["scores"][name]["value"]


# ---- The command ----


def test_k_fold_tells_two_textures_apart_and_a_second_run_gives_the_same_bytes(folder, tmp_path):
    status, metrics = run(folder, tmp_path / "a", "--csv_path", "real.csv", "--num_epochs", 8)
    assert status == 0 and value(metrics) >= 0.95 and value(metrics, "auc") >= 0.95
    assert metrics["n_test_per_class"] == {"brain": 30, "lung": 30} and len(metrics["folds"]) == 5
    assert metrics["folds_by"] == "group" and "10 groups" in metrics["interval_method"]
    low, high = metrics["scores"]["accuracy"]["interval"]
    assert low <= value(metrics) <= high
    predictions = pd.read_csv(tmp_path / "a" / "predictions.csv")
    assert len(predictions) == 60 and (predictions.groupby("group")["fold"].nunique() == 1).all()
    assert (predictions["Labels"] == predictions["predicted"]).mean() == pytest.approx(value(metrics))
    assert run(folder, tmp_path / "b", "--csv_path", folder / "real.csv", "--num_epochs", 8)[0] == 0
    assert (tmp_path / "a" / "predictions.csv").read_bytes() == (tmp_path / "b" / "predictions.csv").read_bytes()


def test_shuffled_labels_give_chance(tmp_path):
    write_tiles(tmp_path, "many", 3, n_groups=20, per_group=8)  # n = 320: 0.1 is 3.6 standard errors
    _, metrics = run(tmp_path, tmp_path / "out", "--csv_path", "many.csv", "--num_epochs", 2, "--shuffle_labels")
    assert metrics["shuffled_labels"] and abs(value(metrics) - 0.5) < 0.1


def test_train_on_one_table_and_test_on_the_other_both_ways(folder, tmp_path):
    for train, test in (("synthetic", "real"), ("real", "synthetic")):
        flags = ("--train_csv", f"{train}.csv", "--test_csv", f"{test}.csv", "--num_epochs", 8)
        _, metrics = run(folder, tmp_path / train, *flags)
        assert value(metrics) >= 0.9 and metrics["n_test"] == 60 and metrics["groups_in_train_and_test"] == 10
        assert [t["path"].split("/")[-1] for t in metrics["tables"]] == [f"{train}.csv", f"{test}.csv"]


def test_the_published_tables_are_accepted_and_folds_without_groups_are_said_to_be_by_tile(folder, tmp_path, capsys):
    table = pd.read_csv(folder / "real.csv").drop(columns="group")
    table["Labels"] = (table["Labels"] == "lung").astype(int)
    table.columns = ["wsi_file_name", "label"]
    table["wsi_file_name"] = [str(folder / name) for name in table["wsi_file_name"]]
    table.to_csv(tmp_path / "published.csv", index=False)
    _, metrics = run(".", tmp_path / "out", "--csv_path", tmp_path / "published.csv", "--num_epochs", 2)
    assert metrics["classes"] == ["0", "1"] and metrics["folds_by"] == "tile"
    assert "no column group" in capsys.readouterr().err


def test_the_default_folder_is_named_after_the_table(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--patch_data_path", str(folder), "--csv_path", "real.csv", "--num_epochs", "1", "--device", "cpu"]
    assert run_command(wsi_model.main, wsi_model.build_parser(), flags) == 0
    assert (tmp_path / "classifier" / "real" / "metrics.json").exists()


def test_pictures_of_other_sizes_are_brought_to_the_smallest(tmp_path):
    write_tiles(tmp_path, "small", 1, 5, 2, side=32)
    write_tiles(tmp_path, "large", 2, 5, 2, side=48)
    flags = ("--train_csv", "large.csv", "--test_csv", "small.csv", "--num_epochs", 1)
    assert run(tmp_path, tmp_path / "out", *flags)[1]["img_size"] == 32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--seed -1", "--seed -1: 0 or more was expected"),
        ("--weight_decay -1", "--weight_decay -1.0"),
        ("--lr inf", "--lr inf: a positive rate was expected"),
        ("--lr 0", "--lr 0.0: a positive rate was expected"),
        ("--folds 1", "--folds 1: at least 2 was expected"),
        ("--img_size 8", "--img_size 8: at least 16 pixels"),
    ],
)
def test_odd_numbers_are_refused_in_one_line(folder, tmp_path, capsys, words, said):
    status, _ = run(folder, tmp_path / "out", "--csv_path", "real.csv", *words.split())
    assert status == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


# ---- Backbones ----


def test_weights_of_a_file_are_frozen_recognised_and_named_by_digest(folder, tmp_path):
    torch.manual_seed(0)
    torch.save({"state_dict": torchvision.models.resnet18(num_classes=7).state_dict()}, tmp_path / "weights.pt")
    flags = ("--csv_path", "real.csv", "--num_epochs", 3, "--folds", 2, "--backbone", tmp_path / "weights.pt")
    _, metrics = run(folder, tmp_path / "out", *flags)
    assert "resnet18" in metrics["backbone"] and "frozen" in metrics["backbone"]
    from common.files import sha256_of

    assert metrics["weights_digest"] == sha256_of(tmp_path / "weights.pt")
    trained = Classifier(str(tmp_path / "weights.pt"), 2, seed=1, finetune=True)
    assert trained.features is None and trained.network(0)(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_resnet50_without_weights_is_trained_as_a_whole():
    network = Classifier("resnet50", 3, seed=1).network(0)
    assert all(p.requires_grad for p in network.parameters()) and network.fc.out_features == 3


def test_frozen_features_do_not_depend_on_the_batch():
    backbone = SmallCNN(2).features.eval()
    body = torch.nn.Sequential(backbone, torch.nn.Flatten())
    tiles = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    a = frozen_features(body, tiles.__getitem__, 5, torch.device("cpu"), batch_size=2)
    b = frozen_features(body, tiles.__getitem__, 5, torch.device("cpu"), batch_size=5)
    assert np.allclose(a, b, atol=1e-5)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not weights")
    for name, part in (
        ("other.pt", "fit none of"),
        ("text.pt", "damaged, or not of torch.save"),
        ("absent.pt", "no such file"),
    ):
        with pytest.raises(InputError, match=part):
            Classifier(str(tmp_path / name), 2, seed=1)


def test_augmentation_only_moves_pixels_and_follows_its_generator():
    x = torch.rand(6, 3, 8, 8)
    seeded = [augmented(x, torch.Generator().manual_seed(3), jitter=False) for _ in range(2)]
    assert torch.equal(*seeded) and not torch.equal(seeded[0], x)
    assert torch.equal(seeded[0].flatten(2).sort().values, x.flatten(2).sort().values)
    assert augmented(x, torch.Generator().manual_seed(3), jitter=True).shape == x.shape


def test_normalised_takes_rgb_bytes_to_channels_first():
    red = np.zeros((1, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    x = normalised(red, torch.device("cpu"))
    assert x.shape == (1, 3, 4, 4)
    assert x[0, :, 0, 0].numpy() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], abs=1e-5)


# ---- Folds and scores ----


def test_folds_keep_groups_together_and_classes_balanced():
    labels, groups = np.tile([0, 1], 60), np.repeat(np.arange(20), 6)
    fold = make_folds(labels, groups, 5, seed=1)
    assert all(len(set(fold[groups == g])) == 1 for g in range(20))
    assert all(abs(labels[fold == k].mean() - 0.5) < 0.01 for k in range(5))
    assert (fold == make_folds(labels, groups, 5, seed=1)).all()
    train, val = inner_split(labels, groups, seed=1)
    assert not set(groups[train]) & set(groups[val]) and len(train) + len(val) == 120
    with pytest.raises(ValueError, match="3 groups for 5 folds"):
        make_folds(labels, groups % 3, 5, seed=1)


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    generator = np.random.default_rng(0)
    for n_classes in (2, 3):
        labels = generator.integers(0, n_classes, 200)
        p = generator.dirichlet(np.ones(n_classes), 200).round(2)  # rounded: with ties
        found = scores(labels, p)
        auc = roc_auc_score(labels, p[:, 1]) if n_classes == 2 else roc_auc_score(labels == 0, p[:, 0])
        assert found["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)))
        assert found["f1_weighted"] == pytest.approx(f1_score(labels, p.argmax(1), average="weighted"))
        if n_classes == 2:
            assert found["auc"] == pytest.approx(auc)


def test_intervals_widen_with_groups_and_do_not_collapse_at_one():
    labels = np.tile([0, 1], 100)
    right = np.repeat(np.random.default_rng(0).random(20) < 0.7, 10)  # whole groups right or wrong
    p = np.eye(2)[np.where(right, labels, 1 - labels)]
    by_group = intervals(labels, p, np.repeat(np.arange(20), 10), seed=1)["accuracy"]
    by_row = intervals(labels, p, None, seed=1)["accuracy"]
    assert by_group[1] - by_group[0] > 2 * (by_row[1] - by_row[0])
    perfect = intervals(labels, np.eye(2)[labels], np.repeat(np.arange(20), 10), seed=1)["accuracy"]
    assert perfect == [pytest.approx(0.025 ** (1 / 20)), 1.0]


# ---- Bad input ----


def broken(folder, tmp_path, change):
    table = pd.read_csv(folder / "real.csv")
    table = change(table)
    table.to_csv(tmp_path / "broken.csv", index=False)
    return "--csv_path", tmp_path / "broken.csv"


CASES = {
    "a missing column": (
        lambda t: t.rename(columns={"Labels": "Lable"}),
        ["column Labels is missing", "nearest: Lable"],
    ),
    "a missing picture": (lambda t: t.replace({"real/lung_0_1.png": "real/gone.png"}), ["row 3", "real/gone.png"]),
    "one class": (lambda t: t[t["Labels"] == "lung"], ["one class only (lung)"]),
    "fewer groups than folds": (lambda t: t[t["group"] < "GTEX-0003"], ["3 groups for 5 folds", "--folds"]),
    "an empty label": (lambda t: t.replace({"Labels": {"lung": ""}}), ["row 2, column Labels: empty"]),
    "a picture twice": (lambda t: pd.concat([t, t.iloc[[0]]]), ["row 62", "row 2 already"]),
    "no rows": (lambda t: t.iloc[:0], ["no rows"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_table_ends_in_one_line_and_status_2(name, folder, tmp_path, capsys):
    change, parts = CASES[name]
    assert run(folder, tmp_path / "out", *broken(folder, tmp_path, change))[0] == 2
    error = capsys.readouterr().err.strip()
    assert all(part in error for part in [*parts, "broken.csv"]) and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_corrupt_picture_is_found_before_training_and_named(folder, tmp_path, capsys):
    write_tiles(tmp_path, "real", 1, 5, 1)
    victim = tmp_path / "real" / "brain_1_0.png"
    victim.write_bytes(victim.read_bytes()[:400])  # the header is whole, the pixels are not
    assert run(tmp_path, tmp_path / "out", "--csv_path", "real.csv")[0] == 2
    assert "brain_1_0.png" in capsys.readouterr().err
    victim.write_text("<html>")
    assert run(tmp_path, tmp_path / "out", "--csv_path", "real.csv")[0] == 2
    assert "row 5" in capsys.readouterr().err


def test_wrong_flags_are_refused(folder, tmp_path, capsys):
    for flags, part in (
        (("--csv_path", "real.csv", "--test_csv", "real.csv"), "either --csv_path"),
        (("--train_csv", "real.csv"), "both --train_csv"),
        (("--csv_path", "reel.csv"), "real.csv"),
        (("--csv_path", "real.csv", "--folds", "1"), "--folds"),
    ):
        assert run(folder, tmp_path / "out", *flags)[0] == 2
        assert part in capsys.readouterr().err


def test_a_class_that_is_tested_but_not_trained_is_named(folder, tmp_path, capsys):
    table = pd.read_csv(folder / "real.csv").replace({"Labels": {"lung": "liver"}})
    table.to_csv(tmp_path / "other.csv", index=False)
    assert run(folder, tmp_path / "out", "--train_csv", "real.csv", "--test_csv", tmp_path / "other.csv")[0] == 2
    assert "liver" in capsys.readouterr().err


def test_pictures_beyond_memory_are_read_when_needed(folder, monkeypatch):
    table = read_image_table("real.csv", folder)
    kept, read = Pictures(table.paths, SIDE), Pictures(table.paths, SIDE)
    kept.keep()
    monkeypatch.setattr("datasets.image_table.IN_MEMORY_BYTES", 1)
    read.keep()
    rows = np.array([5, 0, 7])
    assert read._kept is None and (read.read(rows) == kept.read(rows)).all()


# ---- Real tiles ----


def test_real_lung_and_brain_are_told_apart_by_source_image(data_folder, tmp_path):
    table = pd.read_csv(data_folder / "tiles" / "groups.csv")
    table = table[table["folder"].isin(["lung_n", "brain_glioma"])].groupby("folder").head(90)
    table["wsi_file_names"], table["Labels"] = table["folder"] + "/" + table["file"], table["folder"]
    table[["wsi_file_names", "Labels", "group"]].to_csv(tmp_path / "real.csv", index=False)
    flags = ("--csv_path", tmp_path / "real.csv", "--img_size", 48, "--folds", 3, "--num_epochs", 10)
    _, metrics = run(data_folder / "tiles", tmp_path / "out", *flags)
    assert value(metrics) >= 0.9 and metrics["folds_by"] == "group"
