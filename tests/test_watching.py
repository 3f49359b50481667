"""A GAN in training is measured on validation donors' tiles, and is trained as if it were not."""

import json
import shutil
from pathlib import Path

import gan_toy
import numpy as np
import pytest
import torch

import histopathology_gan as command
from common.checkpoint import content_digest, load_checkpoint, save_checkpoint
from common.config import GANSettings, load_config
from common.errors import InputError
from common.run import Run, seed_for
from datasets.cohort import open_cohort
from datasets.expression import read_cohort_tables
from datasets.keys import donor_of, split_of
from datasets.tiles import to_uint8
from datasets.tileset import TileSet
from figures import tile_sections
from metrics.kernel import kernel_distance
from models.features import Extractor, load_extractor
from models.gan_settings import resolve_gan_settings
from models.generate import generate_tiles
from models.networks import build_generator
from sources.gan import open_gan, run_name
from sources.profiles import Profiles
from sources.watching import is_due, open_watch

WATCHED = {"eval_every": 8, "eval_tiles": 6, "feature_side": 32}  # images; two steps of 4
CPU = torch.device("cpu")


made = gan_toy.made


@pytest.fixture
def cohort(made, tmp_path, monkeypatch):
    """A copy of the cohort as the working directory; lung.json measures, plain.json does not."""
    gan_toy.copy_here(made, tmp_path, monkeypatch)
    gan_toy.write_config(Path("plain.json"), ["lung"], **WATCHED | {"eval_every": 0})
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED)
    return tmp_path


def train(words, config="lung.json"):
    return gan_toy.run(command, f"--config {config} {words}")


def measured(run):
    lines = [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "kid" in line]


def settings(config="lung.json", loss="rpganvae"):
    cfg = load_config(GANSettings, config, loss_type=loss)
    resolve_gan_settings(cfg)
    return cfg


def trained(run):
    return load_checkpoint(f"{run}/last.pt", "gan_training")[1]


LOSSES = ["wganvae", "rpganvae --gan_type residual"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_that_is_measured_is_trained_to_the_same_bit_and_resumes_as_one(cohort, loss):
    words = f"--loss_type {loss} --max_steps"
    assert train(f"{words} 7 --model_dir plain", "plain.json") == 0
    assert train(f"{words} 7 --model_dir whole") == 0
    assert train(f"{words} 3 --model_dir parts") == 0
    assert train(f"{words} 5 --model_dir parts") == 0
    assert train(f"{words} 7 --model_dir parts") == 0
    assert trained("plain") == trained("whole") == trained("parts")
    digests = [load_checkpoint(f"{run}/{run}.model", "gan")[1] for run in ("plain", "whole", "parts")]
    assert len(set(digests)) == 1
    assert measured("whole") == measured("parts") and [line["images"] for line in measured("whole")] == [8, 16, 24]
    assert load_checkpoint("whole/best.model", "gan")[1] == load_checkpoint("parts/best.model", "gan")[1]
    assert not measured("plain") and not Path("plain/best.model").exists()


def test_the_random_numbers_of_the_process_are_left_alone(cohort):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    watch = open_watch(settings(loss="wgan"), None, CPU)
    assert len(watch.real) == 6 and torch.equal(torch.rand(3), expected)


def test_the_log_says_the_distance_of_how_many_tiles_by_which_extractor_and_the_best_is_kept(cohort):
    assert train("--loss_type rpganvae --num_epochs 1 --model_dir run") == 0
    lines = measured("run")
    assert [line["images"] for line in lines] == [*range(8, 84, 8), 84]  # 21 steps; the end of the training too
    extractor = load_extractor("efficientnet_lite0", side=32)
    for line in lines:
        assert (line["kid_n"], line["kid_n_real"]) == (6, 6)
        assert (line["kid_extractor"], line["kid_weights"]) == (extractor.name, extractor.digest)
    best = min(lines, key=lambda line: line["kid"])
    assert [line["kid_best"] for line in lines] == np.minimum.accumulate([line["kid"] for line in lines]).tolist()
    state = load_checkpoint("run/best.model", "gan")[0]
    assert state["images_seen"] == best["images"] and state["validation"]["kid"] == best["kid"]
    assert state["validation"]["split"] == "val"
    grids = sorted(path.name for path in Path("run/samples").glob("images_*.png"))
    assert grids == [f"images_{line['images']:010d}.png" for line in lines]

    # The number again, from the file, tile by tile.
    profiles = Profiles(state["settings"]["vae_checkpoint"], read_cohort_tables(settings()))
    held_out = open_cohort(settings(), ("val",))
    chosen = torch.randperm(
        len(held_out.tiles), generator=torch.Generator().manual_seed(seed_for(seed_for(99, "held out", 0), "choose"))
    )[:6].numpy()
    slides = held_out.slides["slide"].iloc[held_out.tiles.slide_index[chosen]]
    conditions = profiles.conditions([f"{slide}.svs" for slide in slides])
    gan = open_gan("run/best.model")
    drawn = np.concatenate([extractor(to_uint8(b)) for b in generate_tiles(gan.generator, 6, 99, conditions)])
    again = kernel_distance(drawn, extractor(held_out.tiles.read(chosen)))
    assert again == pytest.approx(best["kid"], rel=1e-3, abs=1e-4)
    others = kernel_distance(
        np.concatenate([extractor(to_uint8(b)) for b in generate_tiles(gan.generator, 6, 99, conditions.flip(0))]),
        extractor(held_out.tiles.read(chosen)),
    )
    assert others != pytest.approx(best["kid"], rel=1e-3, abs=1e-4)  # the profiles matter


def test_the_best_so_far_survives_a_resume_and_one_of_other_tiles_does_not(cohort, capsys):
    assert train("--loss_type wgan --max_steps 2 --model_dir run") == 0
    state, _ = load_checkpoint("run/best.model", "gan")
    save_checkpoint("run/best.model", "gan", state | {"validation": state["validation"] | {"kid": -9.0}})
    kept = load_checkpoint("run/best.model", "gan")[1]
    assert train("--loss_type wgan --max_steps 6 --model_dir run") == 0
    assert load_checkpoint("run/best.model", "gan")[1] == kept and measured("run")[-1]["kid_best"] == -9.0
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED | {"eval_tiles": 7})
    assert train("--loss_type wgan --max_steps 8 --model_dir run") == 0
    assert "best.model: was chosen by other tiles or another extractor" in capsys.readouterr().err
    assert load_checkpoint("run/best.model", "gan")[0]["images_seen"] == 32 and measured("run")[-1]["kid_n"] == 7


def test_only_tiles_of_validation_donors_are_looked_at_and_each_once(cohort, monkeypatch):
    seen, passes = [], []
    read, extract = TileSet.read, Extractor.__call__

    def counted(tiles, indices):
        seen.extend(tiles.stores[k].slide for k in tiles.slide_index[np.asarray(indices)])
        return read(tiles, indices)

    def passed(extractor, images):
        passes.append(len(images))
        return extract(extractor, images)

    monkeypatch.setattr(TileSet, "read", counted)
    monkeypatch.setattr(Extractor, "__call__", passed)
    watch = open_watch(settings(loss="wgan"), None, CPU)
    assert len(seen) == 6 and {split_of(donor_of(slide), 99) for slide in seen} == {"val"}
    assert passes == [1, 6]  # one blank tile, to learn the features' length
    gan_toy.write_config(Path("plain.json"), ["lung"])
    assert train("--loss_type wgan --max_steps 1 --model_dir run", "plain.json") == 0
    seen.clear()
    watch.drawn(open_gan("run").generator)
    assert not seen and passes[2:] == [6]


def test_an_rna_gan_draws_for_the_donors_of_the_real_tiles_in_turn(cohort):
    cfg = settings()
    cfg.eval_tiles = 1000  # more than there are: all are used, and profiles come again
    profiles = Profiles(cfg.vae_checkpoint, read_cohort_tables(cfg))
    watch = open_watch(cfg, profiles, CPU)
    held_out = open_cohort(cfg, ("val",))
    n = len(held_out.tiles)
    assert len(watch.real) == n < 1000 and len(watch.conditions) == 1000
    assert torch.equal(watch.conditions[:n], watch.conditions[n : 2 * n])
    own = profiles.conditions([str(name) for name in held_out.table.obs.index])
    counts = (watch.conditions[:n, None] == own[None]).all(2).sum(0)
    assert counts.tolist() == [gan_toy.TILES] * len(own)  # as often as a donor has tiles


def test_the_average_itself_is_not_touched(cohort):
    assert train("--loss_type wgan --max_steps 2 --model_dir run", "plain.json") == 0
    state = load_checkpoint("run/run.model", "gan")[0]
    average = build_generator(state["generator_args"])  # a DCGAN: batch norm, with fresh statistics
    average.train()
    before = content_digest(average.state_dict())
    watch = open_watch(settings(loss="wgan"), None, CPU)
    with Run("other", {}) as run:
        found = watch.look(run, 2, average, state, None, None, Path("pictures"))
        assert found["kid"] == found["kid_best"] and average.training
        assert content_digest(average.state_dict()) == before
        again = watch.look(run, 2, average, state, None, None, Path("pictures"))
        next(average.parameters()).data.fill_(float("nan"))
        assert watch.look(run, 2, average, state, None, None, Path("pictures")) == {}  # the next save will refuse it
    assert again == found and len(measured("other")) == 2


def test_without_validation_donors_it_is_said_and_the_training_goes_on(cohort, capsys):
    donors = [f"GTEX-D{i:02d}" for i in range(gan_toy.N_DONORS)]
    for donor in donors:
        if split_of(donor, 99) == "val":
            for path in Path("tiles/lung").glob(f"{donor}*"):
                path.unlink()
    assert train("--loss_type wgan --max_steps 2 --model_dir run") == 0
    said = capsys.readouterr().err
    assert "eval_every = 8: nothing is measured in training" in said and "no slide of split val" in said
    assert not measured("run")


def test_what_is_wrong_with_the_measurement_is_said_before_the_run(cohort, capsys):
    for changes, said in (
        ({"eval_extractor": "efficientnet"}, "extractor 'efficientnet' is not known"),
        ({"eval_extractor": "resnet50"}, "name its weights file"),
        ({"eval_every": -1}, "bad.json: eval_every = -1: expected 0 or more"),
        ({"eval_tiles": 1}, "bad.json: eval_tiles = 1: expected 2 or more"),
    ):
        gan_toy.write_config(Path("bad.json"), ["lung"], **WATCHED | changes)
        assert train("--loss_type wgan --max_steps 1 --model_dir run", "bad.json") == 2
        assert said in capsys.readouterr().err and not Path("run").exists()


def test_one_held_out_tile_is_too_few(cohort, capsys):
    gan_toy.write_config(Path("lung.json"), ["lung"], **WATCHED, max_patch_per_wsi=1)
    cfg = settings(loss="wgan")
    keep = open_cohort(cfg, ("val",)).slides["slide"].tolist()[0]
    for donor in (f"GTEX-D{i:02d}" for i in range(gan_toy.N_DONORS)):
        if split_of(donor, 99) == "val" and not keep.startswith(donor):
            for path in Path("tiles/lung").glob(f"{donor}*"):
                path.unlink()
    assert open_watch(cfg, None, CPU) is None and "2 or more are needed" in capsys.readouterr().err


def test_a_training_without_eval_every_opens_nothing(cohort, monkeypatch):
    monkeypatch.setattr("sources.watching.load_extractor", lambda *a: pytest.fail("an extractor was loaded"))
    assert open_watch(settings("plain.json", "wgan"), None, CPU) is None


@pytest.mark.parametrize(
    ("images", "new", "due"),
    [(8, 4, True), (12, 4, False), (16, 4, True), (20, 16, True), (7, 7, False), (30, 64, True)],
)
def test_when_it_is_due(images, new, due):
    cfg = GANSettings(eval_every=8)
    assert is_due(cfg, images, new, ends=False) is due and is_due(cfg, images, new, ends=True)
    assert not is_due(GANSettings(), images, new, ends=True)


def test_the_best_can_be_named_as_a_checkpoint_and_bears_the_runs_name(cohort):
    import generate_tissue_images

    assert train("--loss_type rpganvae --max_steps 2 --model_dir checkpoints/rna") == 0
    gan = open_gan("checkpoints/rna/best.model")
    assert gan.run == "rna_best" and gan.state["images_seen"] == 8
    assert open_gan("checkpoints/rna").run == "rna" and run_name(Path("checkpoints/rna/best.model")) == "rna_best"
    words = "--checkpoint checkpoints/rna/best.model --config lung.json --sample_size 2 --patient1 GTEX-D00-0625"
    assert gan_toy.run(generate_tissue_images, f"{words} --out drawn") == 0
    assert len(list(Path("drawn").glob("**/*.png"))) >= 2


def test_a_damaged_best_is_named_and_made_again(cohort, capsys):
    assert train("--loss_type wgan --max_steps 2 --model_dir run") == 0
    Path("run/best.model").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint("run/best.model", "gan")
    capsys.readouterr()
    assert train("--loss_type wgan --max_steps 4 --model_dir run") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "best.model: not a readable checkpoint" in line]
    assert len(said) == 1 and "the next measurement makes run/best.model again" in said[0]
    assert load_checkpoint("run/best.model", "gan")[0]["images_seen"] == 16
    shutil.copy("run/last.pt", "run/best.model")  # whole, and another file: not to be written over
    assert train("--loss_type wgan --max_steps 6 --model_dir run") == 2
    assert "holds a gan_training checkpoint, a gan checkpoint was expected" in capsys.readouterr().err


def test_the_report_draws_losses_and_distances_and_nothing_that_is_neither(monkeypatch):
    drawn = {}
    curves = tile_sections.plots.curves
    monkeypatch.setattr(tile_sections.plots, "curves", lambda panels, x: drawn.update(panels) or curves(panels, x))
    log = [{"step": 1, "epoch": 0.5, "critic": 1.0, "generator": 2.0, "penalty": 0.1, "seconds": 3.0}]
    log[0] |= {"images_per_second": 4.0, "seconds_left": 9.0, "memory_gb": 1.0}
    log += [{"step": 1, "epoch": e, "images": 8, "kid": 0.1 * e, "kid_best": 0.1, "kid_n": 6} for e in (1, 2)]
    log[-1] |= {"kid_n_real": 6, "kid_extractor": "efficientnet_lite0", "kid_weights": "0" * 64}
    log += [{"step": 3, "micro_batch": 4}, {"step": 3, "skipped": ["a slide"]}]
    section = tile_sections.training_section({"run": log}, {"run": "about"})
    assert "Losses of run" in "".join(section.blocks)
    assert {title: list(panel) for title, panel in drawn.items()} == {
        "losses": ["critic", "generator"],
        "KID, validation donors": ["kid", "kid_best"],
        "penalty": ["penalty"],
    }
    assert drawn["KID, validation donors"]["kid"][1].tolist() == pytest.approx([0.1, 0.2])
