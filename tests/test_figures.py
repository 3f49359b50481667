"""Plots, the page, what the report measures, and the report on a small study made by the commands themselves."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import published_files
import pytest
import torch
from figures_study import command, finish_study, make_study
from published_files import betaVAE

from common.checkpoint import load_checkpoint
from common.errors import InputError
from figures import measure, page, plots, tile_sections
from figures.results import metrics_under, read_log, series_of
from models.conditioning import ConditionedGenerator, InputRule
from models.dcgan import DCGANGenerator
from paper import report as page_of_the_demo
from sources.study import Study

# ---- Plots ----


def pixels(figure):
    html = page.picture(figure, "caption", "alt")
    return base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])


def every_plot():
    r = np.random.default_rng(0)
    tiles = r.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    x = np.arange(5.0)
    kind = np.repeat(["real", "reconstructed", "generated"], 4)
    yield plots.tile_rows([("real", tiles), ("GAN\nsecond line", tiles[:2]), ("none", tiles[:0])], 0.5, 2, ["a", "b"])
    yield plots.curves({"total": {"train": (x, x), "val": (x, -x)}, "kl": {"train": (x[:0], x[:0])}}, "epoch")
    yield plots.latent_map(r.normal(size=(12, 2)), ["lung", "brain"] * 6, kind, np.arange(12) % 3 == 0)
    parts = {"held-out donors": x, "before": x + 9, "after": x}
    points = r.normal(size=(3, 9, 2))
    yield plots.harmonised({"lung": points[0]}, *points[1:], (0.5, 0.2), {"latent": (parts, 6.0)}, "title")
    yield plots.shift_curve({"a to b": (x, x / 5, x / 6, x / 4)})
    yield plots.scatter_panels(
        [("lung: size", {"RNA-GAN": (x, x), "GAN": (x, np.ones(5))}), ("", {"GAN": (x[:0], x[:0])})]
    )


def test_plots_give_the_same_bytes_twice_and_leave_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    first, second = [pixels(f) for f in every_plot()], [pixels(f) for f in every_plot()]
    assert first == second and all(data.startswith(b"\x89PNG") for data in first)
    assert dict(matplotlib.rcParams) == before


def test_a_figures_places_are_fixed_and_round_whatever_the_layouts_solver_leaves_in_the_last_digits():
    first = next(every_plot())
    second = next(every_plot())
    for figure, dpi in ((first, 100), (second, 100)):
        plots.settled(figure, dpi)
        assert all(
            round(x, 6) == pytest.approx(x, abs=1e-12) for ax in figure.axes for x in ax.get_position(True).bounds
        )
    places = [ax.get_position(True).bounds for ax in first.axes]
    first.draw_without_rendering()
    assert [ax.get_position(True).bounds for ax in first.axes] == places, "nothing is laid out again"
    assert places == [ax.get_position(True).bounds for ax in second.axes]


def test_a_tissue_keeps_its_colour_whatever_the_order():
    assert plots.colour_of(["lung", "brain"]) == plots.colour_of(["brain", "lung", "lung"])
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)


def test_correlation_of_known_numbers():
    x = np.arange(6.0)
    assert plots.correlation(x, 3 - 2 * x) == pytest.approx(-1)
    assert np.isnan(plots.correlation(x, np.ones(6))) and np.isnan(plots.correlation(x[:2], x[:2]))


# ---- The page ----


class Links(HTMLParser):
    """Collects what a page would fetch, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith(("data:", "#"))]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_self_contained(html):
    links = Links()
    links.feed(html)
    assert not links.fetched and not links.open and not links.scripts and "url(" not in html and "@import" not in html


def test_a_page_escapes_its_words_and_fetches_nothing():
    blocks = [page.table(["a", "b"], [["<b>&", page.Cell("1 & 2", 2.0)], ["word", 1.23456]], "n < 3"), page.note("<i>")]
    blocks += [
        page.missing("Nothing", "python fid.py --matrix <x>"),
        page.picture(next(every_plot()), 'a "b"', 'c "d"'),
    ]
    html = page.render("T & T", "<lead>", [("1", "<fact>")], [page.Section("k", "<title>", "", blocks)], "<end>")
    check_self_contained(html)
    for raw in ("<b>&", "<i>", "<lead>", "<fact>", "<x>", "<end>"):
        assert raw not in html
    assert "1.235" in html and "&lt;b&gt;&amp;" in html


# ---- What the report measures ----


def test_the_same_noise_gives_two_patients_other_tiles_here_and_the_same_ones_in_the_published_form():
    torch.manual_seed(0)
    network = DCGANGenerator(encoding_dims=12, out_size=16, step_channels=4)
    generator = ConditionedGenerator(network, InputRule(share=0.5), 12, 12)
    mu = torch.randn(2, 12) * 3
    two = measure.two_patients(generator, mu, torch.zeros(12), torch.ones(12), 6, seed=1)
    assert two.input_difference["ours"] > 0.5 and two.tile_difference["ours"][0] > 0
    assert two.input_difference["published"] < 1e-12 and two.tile_difference["published"] == (0, 0.0)
    assert two.tiles["ours"].shape == (2, 6, 16, 16, 3)
    section = tile_sections.conditioning_section({"lung": two}, {"lung": ("A", "B")}, {"lung": "seed 1"})
    assert "published" in section.blocks[0]


def test_a_match_has_an_r_a_p_and_a_shuffled_band():
    real = np.random.default_rng(0).normal(size=30)
    good, none = measure.match(real, 2 * real + 1, seed=1), measure.match(real, np.roll(real, 7), seed=1)
    assert good.r == pytest.approx(1) and good.p == pytest.approx(1 / 1001) and good.n == 30
    assert good.shuffled[0] < -0.2 < good.shuffled[1] < 0.2 < good.shuffled[2] and none.p > 0.01
    assert measure.match(np.append(real, np.nan), np.append(real, 1.0), seed=1).n == 30
    assert np.isnan(measure.match(real, np.ones(30), seed=1).p)


def test_real_means_leave_out_undefined_tiles_and_halves_agree_where_tiles_of_a_patient_do():
    tiles = [np.full((4, 2, 2, 3), k, np.uint8) for k in range(5)]

    def fake(images, mpp):
        values = images.mean((1, 2, 3)) * mpp
        return {"brightness": values, "undefined": np.where(np.arange(len(values)) == 0, np.nan, values)}

    means, ceiling = measure.real_means(tiles, 0.5, fake, seed=1)
    assert means["brightness"].tolist() == means["undefined"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert ceiling["brightness"] == pytest.approx(1)
    assert measure.patient_means(tiles, 0.5, fake)["brightness"].tolist() == [0, 0.5, 1, 1.5, 2]


def test_the_latent_map_is_deterministic_and_takes_few_rows():
    latents = np.random.default_rng(0).normal(size=(24, 5))
    a, b = (measure.latent_map_points(latents, seed=1) for _ in range(2))
    assert a.shape == (24, 2) and np.array_equal(a, b)
    assert measure.latent_map_points(latents[:5], seed=1).shape == (5, 2)
    assert measure.furthest_apart(torch.tensor([[0.0], [9.0], [1.0]])) == [0, 1]


def test_a_log_cut_short_is_read_to_its_last_whole_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "kl": 2.0}\n{"step": 2, "kl": null}\n{"step": 3, "kl"')
    x, y = series_of(read_log(tmp_path), "kl", "step")
    assert x.tolist() == [1] and y.tolist() == [2]


# ---- The report on a study ----


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of 40 donors, two tissues, 16 px tiles, made by the commands; every stage but fid.py and wsi_model.py."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """A copy of the study with all that comes after the networks."""
    root = tmp_path_factory.mktemp("whole") / "study"
    shutil.copytree(study, root)
    for path in [*root.glob("configs/*.json"), *root.glob("checkpoints/*/config.json")]:
        path.write_text(path.read_text().replace(str(study), str(root)))
    return finish_study(root)


def report(root, out):
    assert command(f"paper_figures.py report --demo {root} --out {out} --device cpu --tiles 4") == 0
    return out.read_text()


def section(html, key):
    return re.search(rf'<section id="{key}">(.*?)</section>', html, re.S)[1]


def test_the_report_is_written_with_what_there_is_and_names_the_commands_for_the_rest(study, tmp_path, capsys):
    html = report(study, tmp_path / "report.html")
    check_self_contained(html)
    for key, name in (("distances", "fid.py --split test"), ("classifier", "wsi_model.py --patch_data_path")):
        assert 'class="missing"' in section(html, key) and name in section(html, key)
    for key in ("cohort", "vae", "latent", "shift", "gan", "tiles", "conditioning", "morphology", "settings"):
        assert 'class="missing"' not in section(html, key), key
        assert "<img" in section(html, key) or key == "settings"
    assert "section distances is left open" in capsys.readouterr().err


def test_the_whole_report_shows_n_seed_extractor_and_digests_and_is_the_same_twice(whole, tmp_path):
    study = whole
    html = report(study, tmp_path / "a.html")
    assert 'class="missing"' not in html
    check_self_contained(html)
    matrix = metrics_under(study / "fid")["matrix"]
    distances = section(html, "distances")
    assert matrix["extractor"]["weights_digest"][:12] in distances and "n = 20" in distances and "2 draws" in distances
    assert "synthetic_to_real" in section(html, "classifier") and "seed 99" in section(html, "classifier")
    vae = json.loads((study / "checkpoints/betavae_tissues/metrics.json").read_text())["vae_digest"]
    assert vae in section(html, "settings") and vae[:12] in section(html, "latent")
    assert "published: over the batch" in section(html, "conditioning")
    match = json.loads((study / "conditioning/lung/metrics.json").read_text())
    assert match["summary"] in section(html, "match") and match["gan"]["digest"][:12] in section(html, "match")
    assert "split half" in section(html, "morphology") and "shuffled" in section(html, "morphology")
    assert report(study, tmp_path / "b.html") == html


def test_of_published_gans_the_report_says_what_is_not_known(study, tmp_path, capsys):
    root = tmp_path / "study"
    shutil.copytree(study, root)
    for name in ("gan_brain", "rna-gan_brain"):
        shutil.rmtree(root / "checkpoints" / name)
    networks = {name: published_files.trained(DCGANGenerator(8, 16, 4), seed) for seed, name in enumerate("abc")}
    for name in networks:
        (root / "checkpoints" / name).mkdir()
    published_files.save_gan(root / "checkpoints/a/a.model", networks["a"])
    published_files.save_gan(root / "checkpoints/b/b.model", networks["b"], published_files.trained(betaVAE(), gain=3))
    torch.save(networks["c"].state_dict(), root / "checkpoints/c/c.model")  # no epoch, no losses
    html = report(root, tmp_path / "report.html")
    check_self_contained(html)
    training, gans = section(html, "gan"), Study(root, torch.device("cpu")).runs
    assert 'class="missing"' not in training and training.count("<img") == 2  # ours have their curves
    unknown = "images shown not known, 16 px, seed not known, digest"
    for name, kind, words in (
        ("a", "published GAN", f"loss WassersteinGeneratorLoss, epoch 12, {unknown} {gans['a'].digest[:12]}."),
        ("b", "published RNA-GAN", f"loss WassersteinGeneratorLossVAE, epoch 12, {unknown} {gans['b'].digest[:12]}, "),
        ("c", "published GAN", f"loss unknown, epoch not known, {unknown} {gans['c'].digest[:12]}."),
    ):
        losses = f"Losses not known: the file is the published code&#x27;s. {name} ({kind}): {words}"
        assert losses in training and f"{name} (digest {gans[name].digest})" in section(html, "settings")
    assert "VAE not known." in training and "images shown, 16 px, seed 99" in training
    for name in ("rna-gan_lung", "gan_lung"):
        shutil.rmtree(root / "checkpoints" / name)
    report(root, tmp_path / "theirs.html")
    told = "no finished GAN of one tissue with held-out patients (a, b, c: of a published file the tissue is not known)"
    assert told in capsys.readouterr().err


def test_a_report_on_configs_alone_names_every_stage(study, tmp_path):
    shutil.copytree(study / "configs", tmp_path / "bare" / "configs")
    for path in (tmp_path / "bare" / "configs").glob("*.json"):
        path.write_text(path.read_text().replace(str(study), str(tmp_path / "bare")))
    html = report(tmp_path / "bare", tmp_path / "bare.html")
    assert html.count('class="missing"') == 12
    for name in (
        "prepare_data.py tiles",
        "betaVAE_training.py",
        "betaVAE_sample.py",
        "histopathology_gan.py",
        "fid.py",
    ):
        assert name in html


def test_held_out_donors_are_the_vaes_and_a_gan_of_another_split_is_refused(study, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "checkpoints").symlink_to(study / "checkpoints")
    for path in (study / "configs").glob("*.json"):
        (tmp_path / "configs" / path.name).write_text(json.dumps(json.loads(path.read_text()) | {"split_seed": 7}))
    ours, theirs = (Study(folder, torch.device("cpu")) for folder in (tmp_path, study))
    for tissue, patients in theirs.held_out.items():
        assert ours.held_out[tissue].slides == patients.slides
    ours = Study(tmp_path, torch.device("cpu"))
    next(iter(ours.runs.values())).state["split_seed"] = 7
    with pytest.raises(InputError, match="trained under split_seed 7"):
        _ = ours.held_out


def test_generated_tiles_are_measured_at_the_gans_pixel_size_and_real_ones_at_their_own(study, monkeypatch):
    opened, seen = Study(study, torch.device("cpu")), {}
    for gan in opened.runs.values():
        gan.state["mpp"] = 3.0
    for name in ("real_means", "patient_means"):
        real = getattr(measure, name)
        monkeypatch.setattr(
            measure, name, lambda t, mpp, *a, f=real, n=name: (seen.setdefault(n, mpp), f(t, mpp, *a))[1]
        )
    page_of_the_demo.morphology_part(opened, 0, 2)
    own = next(iter(opened.held_out.values())).cohort.tiles.mpp
    assert seen["real_means"] == own != 3.0 and seen["patient_means"] == 3.0


def test_a_folder_without_configs_is_refused(tmp_path, capsys):
    assert command(f"paper_figures.py report --demo {tmp_path}") == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "configs" in error[-1] and "prepare_data.py demo" in error[-1]


# ---- Do the tiles match? ----


def test_the_matching_section_says_what_was_done_and_survives_what_is_undefined(tmp_path):
    number = {"value": 0.5, "null_q99": 0.2, "p_value": None, "ceiling": None, "n": 9}
    blocks = {
        "retrieval": {"plain": {"top1": number}, "centred": {"mrr": number}},
        "morphology": {"nuclear_density": number | {"pearson": None, "ridge": None}},
    }
    found = blocks | {
        "verdict": {},
        "summary": "a line",
        "controls": {"unconditional": blocks},
        "control": "gan_lung",
        "ceiling": "random halves",
        "ceiling_tiles": {"each_side": [5, 6], "generated": 8, "real": [10, 12]},
        "nulls": "199 torus shifts",
        "ridge_components": 7,
        "extractor": {"name": "some", "weights_digest": None},
        "gan": {"run": "rna-gan", "digest": "0" * 64},
        "sampling_seeds": [1],
        "re_pairings": 199,
        "tiles": 8,
        "seed": 99,
    }
    for tissue, control in (("brain", "gan_brain"), ("lung", "gan_lung")):
        (tmp_path / tissue).mkdir()
        (tmp_path / tissue / "metrics.json").write_text(json.dumps(found | {"control": control}))
    facts = []
    section = page_of_the_demo.matching_part(tmp_path, facts)
    assert facts[0] == ("–", "r of nuclear density, RNA-GAN with real, brain")
    html = page.render("t", "", facts, [section], "")
    for words in (
        "brain: gan_brain; lung: gan_lung",
        "random halves, 5 to 6 on each side (generated tiles are held against all 10 to 12)",
        "over 199 torus shifts",
        "from 7 components",
    ):
        assert words in html


# ---- The paper's figures on the same study ----

EVERY = {
    "architecture",
    "latent_map",
    "latent_errors",
    "shift_tissue",
    "shift_sex",
    "tiles_lung",
    "tiles_brain",
    "fid_matrix",
    "patients",
    "epochs",
    "conditioning",
    "geo",
    "classifier",
}


def draw(what, root, out, status=0):
    assert command(f"paper_figures.py {what} --study {root} --out {out} --device cpu") == status
    return {path.name: path.read_bytes() for path in out.glob("[!.]*")}


@pytest.fixture(scope="module")
def drawn(whole, tmp_path_factory):
    """The folder of all figures of the whole study."""
    out = tmp_path_factory.mktemp("drawn")
    draw("all", whole, out)
    return out


def test_all_figures_are_drawn_the_same_twice_and_the_second_time_nothing_is_computed(
    whole, drawn, tmp_path, monkeypatch
):
    first = {path.name: path.read_bytes() for path in drawn.glob("[!.]*")}
    assert set(first) == {f"{name}.{kind}" for name in EVERY for kind in ("pdf", "png", "csv", "txt")}
    assert all(b"Date" not in first[name] for name in first if name.endswith("pdf"))
    again = draw("all", whole, tmp_path / "b")
    assert [name for name in first if first[name] != again[name]] == []

    def computed(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(measure, "latent_map_points", computed)
    monkeypatch.setattr(Study, "generated", computed)
    assert draw("latent", whole, drawn) == first and draw("patients", whole, drawn) == first


def test_every_caption_says_n_seed_extractor_and_digest_and_that_the_papers_values_are_unknown(whole, drawn):
    captions = {path.name: path.read_text() for path in drawn.glob("*.txt")}
    vae = json.loads((whole / "checkpoints/betavae_tissues/metrics.json").read_text())["vae_digest"][:12]
    for name, text in captions.items():
        stem = name.removesuffix(".txt")
        assert re.search(r"\bn\b|profiles|patients", text) and re.search("[Ss]eed", text), name
        assert "xtractor" in text and re.search(r"\b[0-9a-f]{12}\b", text), name
        assert ("own values are not known to us" in text) == (stem != "architecture"), name
    for stem in ("architecture", "latent_map", "latent_errors", "shift_tissue", "shift_sex", "geo"):
        assert vae in captions[f"{stem}.txt"], stem
    matrix = metrics_under(whole / "fid")["matrix"]
    assert matrix["extractor"]["weights_digest"][:12] in captions["fid_matrix.txt"]
    assert "Not among the sources: real_lung" in captions["fid_matrix.txt"]
    assert "Not in the table: XIST" in captions["shift_sex.txt"]
    assert "No held-out donor has a profile of male" in captions["shift_sex.txt"]
    assert "gan_brain" in captions["epochs.txt"] and "--eval_every" in captions["epochs.txt"]
    assert "lung wgangp" in captions["epochs.txt"]
    digest = load_checkpoint(whole / "checkpoints/gan_lung/gan_lung.model", "gan")[1]
    assert f"digest {digest[:12]}" in captions["epochs.txt"]
    made = r"rna-gan_toy_example\.csv by rna-gan_\w+ \(digest [0-9a-f]{12}, seed \d+\)"
    assert re.search(made, captions["classifier.txt"])
    seen = metrics_under(whole / "classifier")["pretrained_16"]["pretraining"]["tested_donors_seen"]
    assert seen > 0 and f"Pre-training knows {seen} of the tested donors" in captions["classifier.txt"]


def test_the_tables_hold_what_the_metrics_do(whole, drawn):
    table = {name: pd.read_csv(drawn / f"{name}.csv") for name in EVERY}
    errors = table["latent_errors"].fillna({"gene": ""})
    test = json.loads((whole / "checkpoints/betavae_tissues/metrics.json").read_text())["test"]
    own = errors[(errors["donors"] == "lung") & (errors["method"] == "beta-VAE")]
    assert own[own["gene"] == ""]["mse"].item() == pytest.approx(test["lung"]["vae"]["mse"], rel=1e-5)
    assert own[own["gene"] != ""]["mse"].mean() == pytest.approx(test["lung"]["vae"]["mse"], rel=1e-3)
    pairs = json.loads((whole / "checkpoints/betavae_tissues/shifts/metrics.json").read_text())["pairs"]
    curve = table["shift_tissue"].query("panel == 'probability'")
    for pair in pairs:  # the calls of betaVAE_interpolation.py are those of a probability above a half
        end = curve[(curve["from"] == pair["from"]) & (curve["x"] == 1.0)]
        assert (end["y"] > 0.5).sum() == pair["after_called_to"]["count"]
    floor = table["fid_matrix"].query("measure == 'kid' and a == 'real' and b == 'real'")
    assert floor["mean"].item() == pytest.approx(
        metrics_under(whole / "fid")["matrix"]["floors"][0]["kid"]["mean"], 1e-4
    )
    assert set(table["epochs"]["run"]) == {"gan_lung", "rna-gan_lung"}
    assert table["epochs"].groupby("run")["kid"].min().to_dict() == pytest.approx(
        {"gan_lung": 3 + 5 / 3, "rna-gan_lung": 2 + 5 / 3}, rel=1e-5
    )
    value = table["conditioning"].query("what == 'nuclear size, r'")["value"].item()
    r = metrics_under(whole / "conditioning")["lung"]["morphology"]["nuclear_size"]["pearson"]
    assert (np.isnan(value) and r is None) or value == pytest.approx(r, rel=1e-5)
    scored = table["classifier"].set_index(["run", "score"])["value"]
    assert scored["real", "accuracy"] == pytest.approx(
        metrics_under(whole / "classifier")["real"]["scores"]["accuracy"]["value"], rel=1e-5
    )
    assert table["classifier"].set_index("run")["curve"].to_dict()["pretrained_16"] == "part"
    assert set(table["geo"]["profile"]) <= {"GSM1", "GSM2"} and len(table["tiles_lung"]) == 3 * 3 * 6


def test_a_figure_without_its_inputs_names_the_command_that_makes_them(study, tmp_path, capsys):
    assert draw("all", study, tmp_path, status=3).keys() >= {"latent_map.pdf", "architecture.pdf", "patients.pdf"}
    said = capsys.readouterr().err
    for name, maker in (
        ("fid_matrix", "fid.py"),
        ("epochs", "--eval_every N"),
        ("conditioning", "evaluate_conditioning.py"),
        ("geo", "generate_tissue_images.py"),
        ("classifier", "wsi_model.py"),
    ):
        line = next(line for line in said.splitlines() if f"{name} is left out" in line)
        assert f"made by: python {maker}" in line or f"{maker}" in line, line
        assert not list(tmp_path.glob(f"{name}*"))
        assert command(f"paper_figures.py {name} --study {study} --out {tmp_path}") == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_folder_of_configs_alone_has_the_architecture_and_names_the_rest(study, tmp_path, capsys):
    shutil.copytree(study / "configs", tmp_path / "bare" / "configs")
    for path in (tmp_path / "bare" / "configs").glob("*.json"):
        words = path.read_text().replace(f"{study}/checkpoints", f"{tmp_path}/bare/checkpoints")
        path.write_text(words)
    assert draw("all", tmp_path / "bare", tmp_path / "out", status=3).keys() == {
        f"architecture.{kind}" for kind in ("pdf", "png", "csv", "txt")
    }
    said = capsys.readouterr().err
    assert "betaVAE_training.py" in said and "betaVAE_interpolation.py" in said and "histopathology_gan.py" in said
    assert command(f"paper_figures.py all --study {tmp_path}/nowhere --out {tmp_path}/none") == 2
