"""Training the GAN through its command: whose tiles are used, what a run leaves."""

import json
from pathlib import Path

import gan_toy
import numpy as np
import pytest
import torch
from PIL import Image

import histopathology_gan as command
from common.checkpoint import load_checkpoint
from common.config import GANSettings
from datasets.cohort import open_cohort
from datasets.expression import read_cohort_tables
from datasets.feed import tile_batches
from datasets.keys import split_of
from sources import gan_saves
from sources.batches import Batches
from sources.gan import open_gan
from sources.profiles import Profiles

made, cohort = gan_toy.made, gan_toy.cohort


def train(words, config="lung.json"):
    return gan_toy.run(command, f"--config {config} {words}")


def weights(run):
    return load_checkpoint(f"{run}/last.pt", "gan_training")[0]


def log_of(run):
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_turned_tiles_train_another_network(cohort):
    found = []
    for turns in (False, True):
        gan_toy.write_config(Path("lung.json"), ["lung"], turns=turns)
        assert train(f"--model_dir turns_{turns} --loss_type wgan --max_steps 2") == 0
        found.append(weights(f"turns_{turns}"))
    assert found[0]["step"] == found[1]["step"] and not same(found[0]["critic"], found[1]["critic"])


def test_rates_follow_the_images_shown_and_end_where_the_schedule_says(cohort):
    gan_toy.write_config(
        Path("lung.json"), ["lung"], schedule_images=16, lr_final=0.1, lr_generator=0.01, lr_critic=0.1
    )
    for steps, share in ((1, 1.0), (3, 0.55), (5, 0.1), (7, 0.1)):  # 4 images a step
        assert train(f"--model_dir run --loss_type rpgan --max_steps {steps}") == 0
        state = weights("run")
        rates = [state[key]["param_groups"][0]["lr"] for key in ("optimizer_g", "optimizer_c")]
        assert rates == pytest.approx([0.01 * share, 0.1 * share])


def test_workers_and_cache_change_nothing(cohort):
    assert train("--model_dir plain --loss_type wgan --max_steps 6") == 0
    assert train("--model_dir workers --loss_type wgan --max_steps 6 --n_workers 2") == 0
    for cache in ("none", "ram"):
        assert train(f"--model_dir {cache} --loss_type wgan --max_steps 6 --cache {cache}") == 0
        assert same(weights("plain"), weights(cache))
    assert same(weights("plain"), weights("workers"))


def test_a_run_leaves_a_usable_model_a_grid_per_epoch_and_a_log(cohort, capsys):
    assert (
        train("--model_dir checkpoints/rna-gan --image_dir pictures --loss_type wganvae --num_epochs 2", "both.json")
        == 0
    )
    gan = open_gan("checkpoints/rna-gan.model")
    assert gan.conditional and gan.tissues == ["brain", "lung"] and gan.state["epoch"] == 2.0
    assert gan.state["vae_digest"] == load_checkpoint("checkpoints/betavae_tissues/best.pt")[1]
    assert gan.state["mpp"] == 0.5 and gan.state["img_size"] == gan_toy.SIDE
    assert torch.equal(
        gan.state["latent"]["std"], load_checkpoint("checkpoints/betavae_tissues/best.pt")[0]["latent"]["std"]
    )
    assert sorted(p.name for p in (cohort / "pictures").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
    assert {"step", "epoch", "critic", "penalty", "generator"} <= log_of("checkpoints/rna-gan")[-1].keys()
    assert not gan.generator.training and not any(p.requires_grad for p in gan.generator.parameters())


def test_the_rows_of_a_grid_are_profiles_and_its_columns_the_same_noise(cohort):
    assert train("--model_dir rna --image_dir pictures --loss_type wganvae --max_steps 4") == 0
    grid = np.asarray(Image.open("pictures/epoch_0001.png"))
    rows = [grid[i : i + gan_toy.SIDE] for i in range(0, len(grid), gan_toy.SIDE + 2)]
    assert len(rows) > 1 and (rows[0] != rows[1]).any()


def test_only_training_donors_are_shown_to_a_gan(cohort):
    seen = set()
    settings = command.load_config(command.GANSettings, "lung.json")
    found = open_cohort(settings, ("train",))
    for batch in range(40):
        tiles = Batches(found, None, settings, torch.device("cpu"), 0, 0).indices(batch)
        seen |= set(found.slides["donor"].iloc[found.tiles.slide_index[tiles]])
    assert {split_of(donor, 99) for donor in seen} == {"train"} and len(seen) == len(found.slides)


def test_the_split_seed_is_the_vaes(cohort, capsys):
    gan_toy.write_config(cohort / "other.json", ["lung"], split_seed=1, encoding_dims=2048)
    assert train("--model_dir run --loss_type wganvae --max_steps 1", "other.json") == 0
    said = capsys.readouterr().err
    assert "split_seed = 1, the beta-VAE" in said and "encoding_dims = 2048" in said
    assert open_gan("run").state["split_seed"] == 99


def test_a_plain_gan_splits_donors_as_the_vae_does_where_there_is_one(cohort, capsys):
    gan_toy.write_config(cohort / "other.json", ["lung"], split_seed=1)
    assert train("--model_dir run --loss_type wgan --max_steps 1", "other.json") == 0
    assert "split_seed = 1, the beta-VAE" in capsys.readouterr().err and open_gan("run").state["split_seed"] == 99
    assert train("--model_dir alone --loss_type wgan --max_steps 1 --vae_checkpoint none.pt", "other.json") == 0
    assert open_gan("alone").state["split_seed"] == 1


@pytest.mark.parametrize("loss", ["wgangpvae", "rpganvae --gan_type residual"])
def test_compiled_networks_train_as_plain_ones_and_a_failure_says_why(cohort, loss, monkeypatch, capsys):
    words = f"--loss_type {loss} --max_steps 2 --model_dir"
    assert train(f"{words} plain") == 0
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *a, **k: compile_(*a, **k, backend="aot_eager")
    )  # without a C++ compiler
    assert train(f"{words} compiled --compile") == 0
    assert "compiled: compiled, default" in capsys.readouterr().out
    plain, compiled = (weights(run)["average"] for run in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[k], compiled[k], rtol=1e-3, atol=1e-4) for k in plain)

    def fails(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fails)
    assert train(f"{words} refused --compile") == 0
    assert "refused: not compiled: RuntimeError: no C++ compiler" in capsys.readouterr().out
    assert same(weights("plain")["average"], weights("refused")["average"])


@pytest.mark.parametrize("loss", ["minimax", "lsgan", "wgangp"])
def test_every_loss_trains_at_32_px(cohort, loss):
    assert train(f"--model_dir run --loss_type {loss} --max_steps 2 --img_size 32 --n_workers 0") == 0
    assert open_gan("run").state["generator_args"]["out_size"] == 32


def test_the_published_settings_train(cohort):
    published = {"standardise": "batch", "noise": "uniform", "critic_norm": "batch", "critic_output": "leaky"}
    gan_toy.write_config(cohort / "published.json", ["lung"], **published, penalty_per="batch", shuffle="slides")
    assert train("--model_dir run --loss_type wganvae --max_steps 3", "published.json") == 0


def test_several_critic_steps(cohort):
    gan_toy.write_config(cohort / "more.json", ["lung"], critic_steps=3)
    assert train("--model_dir run --loss_type wgangp --max_steps 2", "more.json") == 0
    assert open_gan("run").state["images_seen"] == 2 * 3 * 4


# ---- What may go wrong ----


def test_a_grid_that_fails_loses_no_training_and_is_not_blamed_on_the_weights(cohort, capsys, monkeypatch):
    def fails(*args):
        raise ValueError("no picture")

    with monkeypatch.context() as patch:
        patch.setattr(gan_saves, "write_png", fails)
        assert train("--model_dir run --loss_type wgan --max_steps 2") != 0
    said = capsys.readouterr().err
    assert "no picture" in said and "lower lr" not in said
    (cohort / "run" / "run.model").unlink()
    assert weights("run")["step"] == 2
    assert train("--model_dir run --loss_type wgan --max_steps 2") == 0
    assert open_gan("run").state["images_seen"] == 8


def test_other_settings_in_the_same_folder_are_refused_and_restart_moves_the_run_aside(cohort, capsys):
    assert train("--model_dir run --loss_type wgan --max_steps 1") == 0
    assert train("--model_dir run --loss_type wgangp --max_steps 1") == 2
    assert "loss_type (wgan there, wgangp now)" in capsys.readouterr().err
    assert train("--model_dir run --loss_type wgangp --max_steps 1 --restart") == 0
    assert len(list(cohort.glob("run.*"))) == 1


def test_a_run_from_before_a_setting_was_there_goes_on_with_its_default(cohort, capsys):
    assert train("--model_dir run --loss_type wgan --max_steps 1") == 0
    config = json.loads(Path("run/config.json").read_text())
    for key in ("turns", "augment", "gamma_final", "condition", "critic_condition", "cond_dropout"):
        del config[key]
    Path("run/config.json").write_text(json.dumps(config))
    assert train("--model_dir run --loss_type wgan --max_steps 2") == 0
    del config["clip"]
    Path("run/config.json").write_text(json.dumps(config))
    gan_toy.write_config(cohort / "lung.json", ["lung"], clip=0.02)
    assert train("--model_dir run --loss_type wgan --max_steps 3") == 2
    assert "clip (0.01 there, 0.02 now)" in capsys.readouterr().err


def test_tiles_changed_since_are_refused_by_name(cohort, capsys):
    assert train("--model_dir run --loss_type wgan --max_steps 1") == 0
    donor = open_cohort(command.load_config(command.GANSettings, "lung.json"), ("train",)).slides["slide"].iloc[0]
    for path in (cohort / "tiles" / "lung").glob(f"{donor}*"):
        path.unlink()
    assert train("--model_dir run --loss_type wgan --max_steps 2") == 2
    assert "cohort_digest" in capsys.readouterr().err


def test_other_pixels_in_the_same_number_of_tiles_are_refused(cohort, capsys):
    assert train("--model_dir run --loss_type wgan --max_steps 1") == 0
    slide = open_cohort(command.load_config(command.GANSettings, "lung.json"), ("train",)).slides["slide"].iloc[0]
    table = gan_toy.toy_table("lung", 0)
    tiles = gan_toy.toy_tiles(table, (table.find(slide) + 1) % len(table))  # another donor's
    gan_toy.write_store(cohort / "tiles" / "lung", slide, tiles, mpp=0.5, tile_size=gan_toy.SIDE)
    assert train("--model_dir run --loss_type wgan --max_steps 2") == 2
    assert "cohort_digest" in capsys.readouterr().err


def test_a_log_also_goes_to_wandb_offline(cohort, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train("--model_dir run --loss_type wgan --max_steps 2 --log 1") == 0
    assert list(cohort.glob("**/offline-run-*"))


def test_a_grid_of_two_tissues_shows_both_in_turn(cohort):
    gan_toy.write_config(cohort / "both.json", ["lung", "brain"])  # the table: all of lung, then all of brain
    profiles = Profiles(
        "checkpoints/betavae_tissues", read_cohort_tables(command.load_config(GANSettings, "both.json"))
    )
    names = profiles.held_out("val", 4)
    assert [profiles.table.obs["tissue"].loc[name] for name in names] == ["lung", "brain", "lung", "brain"]
    assert set(names) <= set(profiles.held_out("val")) and len(set(names)) == 4


def test_a_vae_trained_again_since_is_refused(cohort, capsys):
    assert train("--model_dir run --loss_type wganvae --max_steps 1") == 0
    tables = [gan_toy.toy_table(tissue, number) for number, tissue in enumerate(gan_toy.TISSUES)]
    gan_toy.write_vae(cohort / "checkpoints" / "betavae_tissues", tables, seed=1)
    assert train("--model_dir run --loss_type wganvae --max_steps 2") == 2
    assert "vae_digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        ("--micro_batch -1", {}, "bad.json: micro_batch = -1: expected 0 or more"),
        ("--micro_batch 2", {"penalty_per": "batch"}, "bad.json: micro_batch = 2: penalty_per = batch needs it whole"),
        ("--img_size 24", {}, "img_size = 24: expected a power of two"),
        ("--device cuda:7", {}, "a GPU was asked for"),
        ("--batch_size 4000", {}, "only 84 training tiles"),
        ("--vae_checkpoint nowhere.pt --loss_type wganvae", {}, "nowhere.pt: no such checkpoint"),
        ("--vae_checkpoint lung.json --loss_type wganvae", {}, "not a readable checkpoint"),
        ("--loss_type wganvae", {"path_csv": []}, "path_csv"),
        ("", {"optimizer": "SGD"}, "optimizer = 'SGD': expected Adam, AdamW"),
        ("", {"loss_type": "wgna"}, "loss_type = 'wgna'"),
        ("", {"critic_norm": "layer"}, "bad.json: critic_norm = 'layer': expected none, batch"),
        ("", {"critic_output": "tanh"}, "bad.json: critic_output = 'tanh': expected linear, leaky"),
        ("", {"penalty_per": "pixel"}, "bad.json: penalty_per = 'pixel': expected image, batch"),
        ("", {"noise": "pink"}, "bad.json: noise = 'pink'"),
        ("", {"lr_generator": 0.0}, "bad.json: lr_generator = 0.0: expected more than 0"),
        ("", {"lr_critic": -1e-4}, "bad.json: lr_critic = -0.0001: expected more than 0"),
        ("", {"adam_beta1": -0.5}, "bad.json: adam_beta1 = -0.5: expected 0 or more, under 1"),
        ("", {"adam_beta2": 1.0}, "bad.json: adam_beta2 = 1.0: expected 0 or more, under 1"),
        ("", {"n_workers": -1}, "bad.json: n_workers = -1: expected 0 or more"),
        ("--num_patches 0", {}, "bad.json: max_patch_per_wsi = 0: expected 1 or more"),
        ("", {"ema_images": 0}, "bad.json: ema_images = 0: expected 1 or more"),
        ("", {"clip": 0.0}, "bad.json: clip = 0.0: expected more than 0"),
        ("", {"num_grid": 0}, "bad.json: num_grid = 0: expected 1 or more"),
        ("", {"penalty_weight": -1.0}, "bad.json: penalty_weight = -1.0: expected 0 or more"),
        ("--condition_share 2", {}, "bad.json: condition_share = 2.0: expected 0"),
        ("", {"lr_final": 0.1}, "bad.json: lr_final and gamma_final need schedule_images"),
        ("", {"first_side": 8}, "bad.json: first_side = 8 needs gan_type = residual"),
        ("", {"equalised": True}, "bad.json: equalised = True needs gan_type = residual"),
        ("--gan_type residual", {"enlarge_taps": 5}, "bad.json: enlarge_taps = 5: expected 4, 6"),
        ("--gan_type residual", {"first_side": 8}, "bad.json: first_side and grow_images go together"),
        (
            "--gan_type residual",
            {"first_side": 12, "grow_images": 9},
            "bad.json: first_side = 12: expected 0, or",
        ),
        ("", {"gamma_final": 0.1}, "bad.json: lr_final and gamma_final need schedule_images"),
        ("", {"gamma_final": -1, "schedule_images": 8}, "bad.json: gamma_final = -1.0: expected 0 or more"),
        ("", {"augment": 1.0}, "bad.json: augment = 1.0: expected 0 or more, under 1"),
        ("--cache gpu", {}, "cache = gpu, but the run is on cpu"),
        ("--loss_type wganvae --cond_dropout 0.1", {"standardise": "batch"}, "needs standardise = train"),
        ("", {"critic_nrom": "none"}, "nearest: critic_norm"),
        ("", {"patch_data_path": ["tiles/liver"]}, "tiles/liver: no such tile folder"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(cohort, capsys, words, changes, said):
    gan_toy.write_config(cohort / "bad.json", ["lung"], **changes)
    assert train(f"--model_dir run {words} --max_steps 1", "bad.json") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and not (cohort / "run").exists()


def test_a_damaged_store_is_named(cohort, capsys):
    path = next((cohort / "tiles" / "lung").glob("*.tar"))
    path.write_bytes(path.read_bytes()[:-700])
    assert train("--model_dir run --loss_type wgan --max_steps 1") == 2
    assert path.name in capsys.readouterr().err


def test_a_damaged_tile_is_named_by_a_reading_thread_too(cohort, capsys):
    for path in (cohort / "tiles" / "lung").glob("*.tar"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert train("--model_dir run --loss_type wgan --max_steps 1 --n_workers 1") == 2
    assert "is damaged" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_papers_flags_are_understood():
    words = "--seed 99 --config c.json --image_dir i --model_dir m --num_epochs 39 --gan_type dcgan --loss_type wgan"
    args = command.build_parser().parse_args([*words.split(), "--num_patches", "600"])
    assert (args.save_dir, args.max_patch_per_wsi, args.num_epochs) == ("m", 600, 39)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whoever_reads_them_and_may_be_left_early(cohort, workers):
    tiles = open_cohort(command.load_config(command.GANSettings, "lung.json"), ("train",)).tiles
    feed = tile_batches(tiles, lambda i: np.arange(4 * i, 4 * i + 4), 2, 20, workers)
    for i in range(2, 12):
        indices, images = next(feed)
        assert indices[0] == 4 * i and (images == tiles.read(indices)).all()
    feed.close()
