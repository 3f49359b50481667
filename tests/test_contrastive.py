"""Self-supervised pre-training: the loss against its formula, what views keep, and what it gives a classifier."""

import json

import numpy as np
import pytest
import torch
from test_classifier import run, write_tiles

from common.checkpoint import save_checkpoint
from common.errors import InputError
from datasets.image_table import read_unlabelled_pictures
from datasets.leaks import trained_by
from metrics.classification import some_of
from models.classifier import SmallCNN
from models.contrastive import STAINS, PretrainSettings, _stain_matrix, nt_xent, pretrain, views

# ---- The loss and the views ----


def test_the_loss_is_that_of_chen_et_al_2020():
    torch.manual_seed(0)
    z, t = torch.randn(6, 4), 0.5
    unit = z / z.norm(dim=1, keepdim=True)
    terms = []
    for i in range(6):
        j = (i + 3) % 6
        others = sum(float(torch.exp(unit[i] @ unit[k] / t)) for k in range(6) if k != i)
        terms.append(-np.log(float(torch.exp(unit[i] @ unit[j] / t)) / others))
    assert float(nt_xent(z, t)) == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_loss_is_low_where_views_find_each_other_and_log_of_the_others_where_all_are_alike():
    far = torch.eye(8)
    assert float(nt_xent(torch.cat([far, far]), 0.05)) < 1e-3
    assert float(nt_xent(torch.ones(16, 8), 0.5)) == pytest.approx(np.log(15))


def test_views_keep_the_range_and_the_stain_and_follow_their_generator():
    pink = torch.tensor([0.85, 0.45, 0.7]).view(1, 3, 1, 1).expand(8, 3, 16, 16)
    seen = views(pink, torch.Generator().manual_seed(1))
    assert seen.shape == pink.shape and float(seen.min()) >= 0 and float(seen.max()) <= 1
    assert float((seen.mean((2, 3)) - pink.mean((2, 3))).abs().max()) < 0.12  # a little more or less stain
    assert bool((seen.argmax(1) == 0).all()) and bool((seen.argmin(1) == 1).all())  # never another hue
    assert torch.equal(seen, views(pink, torch.Generator().manual_seed(1)))
    assert not torch.equal(seen, views(pink, torch.Generator().manual_seed(2)))


def test_a_view_is_a_square_of_the_tile_turned_and_mirrored_and_nothing_is_lost_of_an_even_one(monkeypatch):
    monkeypatch.setattr("models.contrastive.STRENGTH", 0.0)
    monkeypatch.setattr("models.contrastive.BASE", 0.0)
    monkeypatch.setattr("models.contrastive.LEAST_CROP", 1.0)
    tile = 0.2 + 0.6 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    symmetries = [t.rot90(k, (2, 3)) for t in (tile, tile.flip(3)) for k in range(4)]
    found = set()
    for seed in range(40):
        seen = views(tile, torch.Generator().manual_seed(seed))
        (near,) = [k for k, s in enumerate(symmetries) if torch.allclose(seen, s, atol=1e-4)]
        found.add(near)
    assert found == set(range(8))


def test_the_stains_are_those_of_the_literature_and_independent():
    matrix = _stain_matrix()
    assert torch.allclose(matrix.norm(dim=1), torch.ones(3)) and float(torch.linalg.det(matrix).abs()) > 0.5
    assert torch.allclose(matrix[0], torch.tensor(STAINS[0]) / torch.tensor(STAINS[0]).norm())


# ---- The training ----


def striped(n, seed=0):
    """Tiles with stripes of four widths and random shades."""
    random = np.random.default_rng(seed)
    wave = np.stack([np.sin(np.arange(16) * (k % 4 + 1) * np.pi / 8 + random.uniform(0, 6)) for k in range(n)])
    tiles = random.uniform(120, 200, (n, 1, 1, 3)) + 40 * wave[:, None, :, None] + random.normal(0, 4, (n, 16, 16, 3))
    return tiles.clip(0, 255).astype(np.uint8)


def test_pre_training_lowers_the_loss_and_is_the_same_twice_and_leaves_the_network_alone():
    torch.manual_seed(0)
    network, tiles = SmallCNN(2, (8, 8, 16)), striped(48)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    settings = PretrainSettings(num_epochs=6, batch_size=24, lr=3e-3)
    weights, losses = pretrain(network, tiles.__getitem__, 48, settings, 7, torch.device("cpu"))
    again, _ = pretrain(network, tiles.__getitem__, 48, settings, 7, torch.device("cpu"))
    other, _ = pretrain(network, tiles.__getitem__, 48, settings, 8, torch.device("cpu"))
    assert losses[-1] < losses[0] - 0.05
    assert set(weights) == {k for k in before if not k.startswith("head")}
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert any(not torch.equal(weights[k], other[k]) for k in weights)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    with pytest.raises(InputError, match="at least 2"):
        pretrain(network, tiles.__getitem__, 1, settings, 7, torch.device("cpu"))


def test_some_rows_are_dealt_from_all_classes_and_groups_in_turn():
    labels, groups = np.repeat([0, 1], 20), np.array([f"d{k % 5}" for k in range(40)])
    rows = some_of(labels, groups, 10, seed=3)
    assert len(rows) == 10 and (np.bincount(labels[rows]) == 5).all()
    for label in (0, 1):
        assert len(set(groups[rows][labels[rows] == label])) == 5
    assert (np.diff(rows) > 0).all() and np.array_equal(rows, some_of(labels, groups, 10, seed=3))
    assert not np.array_equal(rows, some_of(labels, groups, 10, seed=4))
    assert (np.bincount(labels[some_of(labels, None, 7, 1)]) >= 3).all()
    assert len(some_of(labels, groups, 99, 1)) == 40


# ---- The command ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images_form")
    write_tiles(folder, "real", 1)
    write_tiles(folder, "synthetic", 2)
    return folder


def test_the_command_pre_trains_on_a_folder_or_a_table_and_says_so(folder, tmp_path, capsys):
    flags = ("--csv_path", "real.csv", "--num_epochs", 2, "--folds", 3, "--pretrain_epochs", 2, "--train_tiles", 12)
    _, scratch = run(folder, tmp_path / "scratch", *flags)
    _, by_folder = run(folder, tmp_path / "folder", *flags, "--pretrain", folder / "synthetic")
    assert "knows" not in capsys.readouterr().err and by_folder["pretraining"]["tested_donors_seen"] == 0
    _, by_table = run(folder, tmp_path / "table", *flags, "--pretrain", "synthetic.csv")
    assert "knows 10 donor(s) that" in capsys.readouterr().err and by_table["pretraining"]["tested_donors_seen"] == 10
    assert scratch["pretraining"] is None and scratch["train_tiles"] == 12
    assert all(f["n_train"] + f["n_validation"] == 12 for f in scratch["folds"])
    about = by_folder["pretraining"]
    assert about["n"] == 60 and len(about["loss"]) == 2 and about["settings"]["num_epochs"] == 2
    assert about["own_donors"] == 0 and by_table["pretraining"]["own_donors"] == 10
    assert "self-supervised pre-training on 60 tiles" in by_folder["backbone"]
    assert by_folder["weights_digest"] != scratch["weights_digest"]
    predicted = [(tmp_path / name / "predictions.csv").read_text() for name in ("scratch", "folder")]
    assert predicted[0] != predicted[1]
    _, again = run(folder, tmp_path / "again", *flags, "--pretrain", folder / "synthetic")
    assert again == by_folder


def test_a_gan_that_has_seen_a_held_out_donor_may_not_make_the_tiles_to_pre_train_on(folder, tmp_path, capsys):
    table = write_tiles(tmp_path, "held", 4, n_groups=6)
    table.assign(split="test").to_csv(tmp_path / "held.csv", index=False)
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for seen, status in (("GTEX-0002", 2), ("GTEX-9999", 0)):
        save_checkpoint(tmp_path / "gan.model", "gan", trained_by([seen], []))
        files = sorted((folder / "synthetic").glob("*.png"))[:6]
        for file in files:
            (drawn / file.name).write_bytes(file.read_bytes())
        tiles = [{"file": file.name, "index": k} for k, file in enumerate(files)]
        made = {"checkpoint": str(tmp_path / "gan.model")}
        (drawn / "manifest.json").write_text(json.dumps({"made_from": made, "finished": True, "tiles": tiles}))
        flags = ("--csv_path", "held.csv", "--num_epochs", 1, "--folds", 2, "--pretrain", drawn, "--pretrain_epochs", 1)
        assert run(tmp_path, tmp_path / "out", *flags)[0] == status
        if status:
            assert "GTEX-0002" in capsys.readouterr().err
            table.to_csv(tmp_path / "any.csv", index=False)  # which calls nobody held out
            assert run(tmp_path, tmp_path / "out", "--csv_path", "any.csv", *flags[2:])[0] == 0
            assert "knows 1 donor(s)" in capsys.readouterr().err
    assert read_unlabelled_pictures(drawn).made_by == [str(tmp_path / "gan.model")]


def test_pre_training_needs_a_network_that_is_trained_as_a_whole(folder, tmp_path, capsys):
    torch.save({}, tmp_path / "weights.pt")
    flags = ("--csv_path", "real.csv", "--pretrain", "synthetic.csv", "--backbone", tmp_path / "weights.pt")
    assert run(folder, tmp_path / "out", *flags)[0] == 2
    assert "--pretrain" in capsys.readouterr().err
    assert run(folder, tmp_path / "out", "--csv_path", "real.csv", "--pretrain", tmp_path / "none")[0] == 2
    assert "none" in capsys.readouterr().err
