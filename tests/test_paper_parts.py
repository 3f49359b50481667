"""What the paper's figures are made of: stages of networks, arrays that are kept, components, planes, curves."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.checkpoint import save_checkpoint
from common.config import GANSettings
from common.errors import InputError
from figures.paper_architecture import count, in_rows
from figures.paper_classifier import classifier_figure
from figures.paper_epochs import epochs_figure
from figures.paper_matrix import matrix_figure
from figures.trace import totals, trace_critic, trace_generator, trace_vae
from models.betavae import BetaVAE
from models.gan_settings import resolve_gan_settings
from models.networks import build_critic, build_generator, generator_args
from paper.classifier import curve_runs, first_pretrained
from paper.epochs import kid_lines
from paper.kept import Kept
from paper.latent import principal
from paper.parts import Ask, made_by
from paper.patients import compare, halves
from paper.shift import plane

# ---- Networks ----


def test_stages_of_a_vae_are_its_layers_with_known_flops():
    vae = BetaVAE(50, [20, 10], [20], 6)
    stages = trace_vae(vae)
    assert [s.shape for s in stages] == [(20,), (10,), (6,), (6,), (6,), (20,), (50,)]
    assert stages[0].name == "Linear, BatchNorm, LeakyReLU"
    assert [s.flops for s in stages] == [
        2 * a * b for a, b in ((50, 20), (20, 10), (10, 6), (10, 6), (0, 0), (6, 20), (20, 50))
    ]
    assert in_rows(stages) == [[-1], [0], [1], [2, 3], [4], [5], [6]], "mean beside variance, then the latent"
    assert sum(s.parameters for s in stages) == sum(p.numel() for p in vae.parameters())


@pytest.mark.parametrize("gan_type, grown", [("dcgan", {}), ("residual", {}), ("residual", {"first_side": 8})])
@pytest.mark.parametrize("loss", ["wganvae", "wgangpvae", "wgan"])
def test_stages_of_a_gan_have_all_its_weights_and_flops(gan_type, grown, loss):
    sizes = {"img_size": 16, "step_channels": 4, "encoding_dims": 8, "cond_dim": 5}
    cfg = GANSettings(gan_type=gan_type, loss_type=loss, **sizes, **grown)
    resolve_gan_settings(cfg)
    z = 8 if loss.endswith("vae") else 0
    with torch.device("meta"):
        generator, critic = build_generator(generator_args(cfg, z)), build_critic(cfg, z)
    of_generator, of_critic = trace_generator(generator, z), trace_critic(critic, 16, z)
    learned_null = generator.null.numel() if z else 0  # stands beside the stages
    weights = sum(p.numel() for p in generator.parameters()) - learned_null
    assert sum(s.parameters for s in of_generator) == weights
    assert sum(s.parameters for s in of_critic) == sum(p.numel() for p in critic.parameters())
    assert of_generator[-1].shape == (3, 16, 16)
    inputs = torch.zeros(1, generator.noise_dims, device="meta"), torch.zeros(1, z, device="meta") if z else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        generator.eval()(*inputs)
    assert totals({"g": of_generator})["g"][1] == counter.get_total_flops() > 0


def test_numbers_are_written_short():
    assert [count(n) for n in (12, 1234, 5_600_000, 5.47e9)] == ["12 ", "1.23 k", "5.6 M", "5.47 G"]


# ---- Kept arrays ----


def test_arrays_are_computed_once_for_equal_inputs_and_again_where_a_file_is_damaged(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"x": np.arange(3.0)}

    kept = Kept(tmp_path)
    for of in ({"seed": 1}, {"seed": 1}, {"seed": 2}):
        assert kept.arrays(of, make)["x"].tolist() == [0, 1, 2]
    assert len(calls) == 2
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:-30])
    assert kept.arrays({"seed": 1}, make)["x"].tolist() == [0, 1, 2] and len(calls) == 3


def test_the_command_that_makes_an_input_is_named_once(tmp_path):
    ask = Ask(tmp_path, tmp_path, 1, "cpu")
    with pytest.raises(InputError) as error, made_by(ask, "gan"), made_by(ask, "vae"):
        raise InputError("gone")
    config = f"--config {tmp_path}/configs/betavae_tissues.json"
    assert str(error.value) == f"gone; made by: python betaVAE_training.py {config}"


# ---- Numbers ----


def test_principal_components_are_of_the_fitted_rows_and_have_a_sign():
    x = np.random.default_rng(0).normal(size=(40, 5)) * [9, 3, 1, 1, 1]
    points, share = principal(np.concatenate([x, x + 100]), np.arange(80) < 40)
    assert points[:40].std(0)[0] > points[:40].std(0)[1] and share[0] > 0.7
    mirrored, _ = principal(np.concatenate([x, x + 100])[:, ::-1], np.arange(80) < 40)
    assert np.allclose(points, mirrored)


def test_along_a_shift_its_start_is_at_0_and_its_end_at_1_and_across_it_nothing_moves():
    torch.manual_seed(0)
    mu, start, shift = torch.randn(30, 4), torch.randn(4), torch.tensor([3.0, 0, 0, 0])
    place = plane(mu, start, shift)
    ends = place(torch.stack([start, start + shift, start + 0.5 * shift]))
    assert np.allclose(ends[:, 0], [0, 1, 0.5]) and np.ptp(ends[:, 1]) < 1e-6


def test_patients_whose_tiles_are_their_own_are_all_the_nearest():
    real = np.random.default_rng(0).normal(size=(6, 9)) * 5
    half = np.stack([real, real], 1)
    whose = compare(real, {"RNA-GAN": real + 0.1, "GAN": np.zeros((6, 9))}, half)
    assert whose.nearest == {"real": 6, "RNA-GAN": 6, "GAN": 1}
    assert whose.same["real"].max() == 0 and whose.others["real"].mean() == pytest.approx(1)
    tiles = np.arange(10.0).reshape(5, 2)
    assert np.allclose(halves(tiles, 1).T @ [2, 3], tiles.sum(0)) and halves(tiles[:1], 1).tolist() == [[0, 1]] * 2


# ---- Curves ----


def run_folder(folder, name, loss, lines, **settings):
    (folder / name).mkdir(parents=True)
    said = {"loss_type": loss, "tissues": ["lung"], "seed": 1} | settings
    (folder / name / "config.json").write_text(json.dumps(said))
    (folder / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_kid_lines_of_each_run_are_found_and_runs_without_are_named(tmp_path):
    kid = [{"step": 1, "images": 8, "kid": 3.0, "kid_n": 50, "kid_extractor": "e", "kid_weights": "w"}]
    run_folder(tmp_path, "a", "wgan", [{"step": 1, "critic": 1.0}, *kid])
    run_folder(tmp_path, "b", "wganvae", [{"step": 1, "kid": None}])
    run_folder(tmp_path, "vae", "", [])
    (tmp_path / "vae" / "config.json").write_text('{"encoder_sizes": [3]}')
    run_folder(tmp_path, "c", "wgan", kid)
    digest = save_checkpoint(tmp_path / "c" / "c.model", "gan", {"epoch": 1})
    (table, finished), without = kid_lines(tmp_path)
    assert set(table["digest"]) == {""} and set(finished["digest"]) == {digest}
    assert without == ["b"] and table["label"].tolist() == ["GAN, wgan (penalty and clipping)"]
    assert table[["images", "kid", "n", "extractor", "tissue"]].iloc[0].tolist() == [8, 3.0, 50, "e", "lung"]
    with pytest.raises(InputError, match=r"no log.jsonl with lines of kid"):
        kid_lines(tmp_path / "b")


def test_two_extractors_never_share_a_panel():
    rows = [("lung", e, "w", 8 * k, 1.0, "run", "wgan", "GAN, wgan") for e in ("e", "f") for k in (1, 2)]
    columns = ["tissue", "extractor", "weights", "images", "kid", "run", "loss", "label"]
    figure = epochs_figure(pd.DataFrame(rows, columns=columns))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["lung, e", "lung, f"]


def test_no_axis_of_a_score_has_a_tick_above_1():
    rows = [("a", s, t, v, v - 0.03, min(v + 0.03, 1), "r") for s in ("f", "g") for t, v in ((10, 0.92), (99, 0.997))]
    curves = pd.DataFrame(rows, columns=["start", "score", "train_tiles", "value", "low", "high", "run"])
    figure = classifier_figure(curves[curves["train_tiles"] == 10], curves, {"f": "F", "g": "G"}, 0.5)
    for ax in figure.axes[1:]:
        low, high = ax.get_ylim()
        assert low < 0.89 and 1 < high < 1.02 and all(t <= 1 for t in ax.get_yticks() if t <= high)


def test_the_matrix_writes_each_pair_twice_and_leaves_what_is_unknown_blank():
    figure = matrix_figure(["a", "b"], {"kid": {("b", "a"): (1.5, 0.25), ("a", "a"): (-0.01, 0.0)}})
    words = [text.get_text() for text in figure.axes[0].texts if "±" in text.get_text()]
    assert sorted(words) == ["1.50\n± 0.25", "1.50\n± 0.25", "−0.01\n± 0.00"]
    assert [text.get_position() for text in figure.axes[0].texts if text.get_text() == "–"] == [(1, 1)]


def test_curves_are_of_runs_with_the_same_network_table_settings_and_pre_training():
    base = {"task": "k_fold", "img_size": 16, "seed": 1, "settings": {}, "shuffled_labels": False, "folds": [{}] * 5}
    base |= {"backbone": "a small CNN, all weights trained from random initialisation", "tables": [{"sha256": "x"}]}
    pre = base | {"backbone": "a small CNN, all weights trained from self-supervised pre-training on 3 tiles"}
    on = {"n": 3, "sha256": "s", "settings": {"num_epochs": 20}}
    found = {
        "a test of others": pre | {"pretraining": on, "task": "train_test"},
        "a control": pre | {"pretraining": on | {"sha256": "t"}, "shuffled_labels": True},
        "pre": pre | {"pretraining": on, "train_tiles": 8},
        "pre on others": pre | {"pretraining": on | {"sha256": "t"}, "train_tiles": 8},
        "pre longer": pre | {"pretraining": on | {"settings": {"num_epochs": 40}}, "train_tiles": 8},
        "few": base | {"pretraining": None, "train_tiles": 8},
        "all": base,
        "shuffled": base | {"shuffled_labels": True},
        "other": base | {"tables": [{"sha256": "y"}]},
        "three folds": base | {"folds": [{}] * 3},
        "other network": base | {"backbone": "torchvision's resnet50, all weights trained from random initialisation"},
    }
    assert curve_runs(found) == {"pre": "part", "few": "part", "all": "whole"}
    assert first_pretrained(found) is found["pre"]
    for name in ("pre", "pre on others", "pre longer"):
        del found[name]
    assert curve_runs(found) == {}
