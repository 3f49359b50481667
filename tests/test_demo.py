"""The demo cohort: real formats, the same bytes for a seed, and the link between genes and slides that it promises."""

import gzip
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest

from common.config import BetaVAESettings, GANSettings, load_config
from common.errors import InputError
from datasets.demo import DEMO_MPP_TABLE, make_demo
from datasets.demo_cohort import plan_cohort
from datasets.demo_expression import DEPTH, _expected, _measure
from datasets.demo_genes import SEX_GENES, make_genes
from datasets.demo_paint import FACTORS
from datasets.demo_tissue import draw_tissue
from datasets.keys import match_samples, slide_key
from metrics.morphology import morphology

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"seed": 99, "n_donors": 14, "slide_px": 256, "progress": False}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "demo", **SMALL, workers=1)


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "configs" not in p.parts)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def slide_of(cohort, kind):
    plan = next(s for s in plan_cohort(SMALL["seed"], SMALL["n_donors"]).slides if s.kind == kind)
    return cohort / "slides" / plan.tissue / plan.name


# --- files ---


def test_the_same_seed_gives_the_same_bytes(cohort, tmp_path):
    again = make_demo(tmp_path / "demo", **SMALL, workers=2)
    assert contents(again) == contents(cohort)
    other = plan_cohort(100, SMALL["n_donors"])
    assert [d.name for d in other.donors[2:]] != [d.name for d in plan_cohort(99, SMALL["n_donors"]).donors[2:]]


def test_a_finished_cohort_is_left_alone_and_a_missing_slide_is_drawn_again(cohort, tmp_path):
    copy = shutil.copytree(cohort, tmp_path / "demo")
    before = contents(copy)
    stamps = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    make_demo(copy, **SMALL, workers=1)
    assert stamps == {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    lost = sorted(copy.glob("slides/lung/*.svs"))[1]
    lost.unlink()
    (copy / "configs" / "gan_run.json").write_text("{}")  # a user's own settings
    make_demo(copy, **SMALL, workers=1)
    assert contents(copy) == before and (copy / "configs" / "gan_run.json").read_text() == "{}"


def test_another_cohort_in_the_same_folder_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match=r"another demo cohort \(seed 99 there, 7 now\).*another --out or delete"):
        make_demo(cohort, **SMALL | {"seed": 7})
    (tmp_path / "slides").mkdir()
    with pytest.raises(InputError, match="not from this command"):
        make_demo(tmp_path, **SMALL)
    for settings, words in (
        ({"n_donors": 3}, "--donors 3: at least 12 donors"),
        ({"slide_px": 100}, "--slide_px 100: at least 256 pixels"),
        ({"workers": -1}, "--workers -1: a number of processes"),
    ):
        with pytest.raises(InputError, match=words):
            make_demo(tmp_path / "x", **settings)


def test_an_interrupted_run_goes_on(cohort, tmp_path):
    command = [sys.executable, "prepare_data.py", "demo", "--out", str(tmp_path / "demo"), "--donors", "14"]
    command += ["--slide_px", "256", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("demo/slides/*/*.svs"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "type the same command again" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.partial"))
    done = make_demo(tmp_path / "demo", **SMALL, workers=1)
    assert contents(done) == contents(cohort)


# --- slides ---


def test_slides_are_aperio_and_openslide_opens_them(cohort):
    for name in ("lung/GTEX-15RJ7-0625.svs", "brain/GTEX-1C6WA-3025.svs"):
        with openslide.OpenSlide(str(cohort / "slides" / name)) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert (slide.properties["openslide.mpp-x"], slide.properties["aperio.AppMag"]) == ("0.5", "20")
            assert "thumbnail" in slide.associated_images and slide.dimensions == (256, 256)
            corner = np.asarray(slide.read_region((0, 0), 0, (12, 12)))[..., :3]
            middle = np.asarray(slide.read_region((64, 64), 0, (128, 128)))[..., :3]
        assert corner.min() > 230  # glass
        red, green, blue = middle.reshape(-1, 3).mean(0)
        assert green < blue and green < red  # pink to purple: channels are in order


def test_a_pyramid_has_levels(tmp_path):
    from datasets.demo_slides import write_svs

    image = draw_tissue("brain", dict.fromkeys(FACTORS, 0.0), 512, 0.5, seed=1)
    write_svs(tmp_path / "a.svs", image, 0.5, "a")
    with openslide.OpenSlide(str(tmp_path / "a.svs")) as slide:
        assert slide.level_dimensions == ((512, 512), (128, 128))
        back = np.asarray(slide.read_region((0, 0), 0, (512, 512)))[..., :3]
        small = np.asarray(slide.read_region((0, 0), 1, (128, 128)))[..., :3]
    assert np.abs(back.astype(int) - image).mean() < 5
    assert np.abs(small.astype(int) - image.reshape(128, 4, 128, 4, 3).mean((1, 3))).mean() < 5


def test_the_special_slides(cohort):
    with openslide.OpenSlide(str(slide_of(cohort, "no_mpp"))) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert "openslide.mpp-x" not in slide.properties and "aperio.AppMag" not in slide.properties
    with openslide.OpenSlide(str(slide_of(cohort, "x40"))) as slide:
        assert (slide.properties["openslide.mpp-x"], slide.properties["aperio.AppMag"]) == ("0.25", "40")
        assert slide.dimensions == (512, 512)
    with openslide.OpenSlide(str(slide_of(cohort, "blank_half"))) as slide:
        picture = np.asarray(slide.read_region((0, 0), 0, (256, 256)))[..., :3]
        assert picture[:, 160:].min() > 215 and picture[64:192, 32:100].min() < 150
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(str(slide_of(cohort, "faulty")))
    table = pd.read_csv(cohort / DEMO_MPP_TABLE)
    assert table.to_dict("records") == [{"slide": slide_of(cohort, "no_mpp").name, "mpp": 0.5}]


def test_the_command_takes_debug_after_its_name(tmp_path, capsys):
    import prepare_data
    from common.errors import run_command

    words = ["demo", "--out", str(tmp_path), "--donors", "1"]
    for flag, shown in ([], False), (["--debug"], True):
        assert run_command(prepare_data.main, prepare_data.build_parser(), [*words, *flag]) == 2
        assert ("Traceback" in capsys.readouterr().err) == shown


def test_tiling_fails_on_exactly_the_faulty_slide(cohort, tmp_path):
    import prepare_data
    from common.errors import run_command

    for tissue, status in (("lung", 0), ("brain", 3)):
        words = ["tiles", "--slides", str(cohort / "slides" / tissue), "--out", str(tmp_path / tissue)]
        words += ["--mpp", "0.5", "--mpp_table", str(cohort / DEMO_MPP_TABLE)]
        words += ["--tile_size", "64", "--max_tiles", "4", "--workers", "0"]
        assert run_command(prepare_data.main, prepare_data.build_parser(), words) == status
        stores = {p.stem for p in (tmp_path / tissue).glob("*.tar")}
        slides = {slide_key(p.name) for p in (cohort / "slides" / tissue).glob("*.svs")}
        assert slides - stores == ({slide_key(slide_of(cohort, "faulty").name)} if status else set())


# --- people and expression ---


def test_the_cohort_at_full_size():
    cohort = plan_cohort(99, 130)
    assert len(cohort.donors) == 130
    assert all(re.fullmatch(r"GTEX-1[0-9A-Z]{4}", d.name) for d in cohort.donors)
    slides = {t: {s.donor for s in cohort.slides if s.tissue == t} for t in ("lung", "brain")}
    assert len(slides["lung"] & slides["brain"]) >= 90 and min(map(len, slides.values())) >= 100
    named = {(s.name, s.tissue): s.kind for s in cohort.slides}
    assert named["GTEX-15RJ7-0625.svs", "lung"] == named["GTEX-1C6WA-3025.svs", "brain"] == ""
    assert sorted(s.kind for s in cohort.slides if s.kind) == ["blank_half", "faulty", "no_mpp", "x40"]
    assert not any(s.kind for s in plan_cohort(99, 130, specials=False).slides)
    factors = np.array([[d.factors[f] for f in FACTORS] for d in cohort.donors])
    sex = np.array([d.sex for d in cohort.donors])
    with_sex = np.corrcoef(np.column_stack([factors, sex]).T)
    assert np.abs(with_sex - np.eye(5)).max() < 1e-4  # independent of one another and of sex
    np.testing.assert_allclose([factors.mean(0), factors.std(0)], [[0] * 4, [1] * 4], atol=1e-4)


def test_truth_names_every_slide(cohort):
    truth = pd.read_csv(cohort / "truth.csv")
    assert list(truth.columns) == ["donor", "slide", "tissue", *FACTORS]
    assert set(truth.tissue + "/" + truth.slide) == {f"{p.parent.name}/{p.name}" for p in cohort.glob("slides/*/*.svs")}
    assert (truth.groupby("donor")[list(FACTORS)].nunique() == 1).all().all()  # the same in both tissues


def test_gct_and_annotations(cohort):
    with gzip.open(cohort / "rna/gene_tpm.gct.gz", "rt") as file:
        assert file.readline() == "#1.2\n"
        rows, columns = map(int, file.readline().split())
        table = pd.read_csv(file, sep="\t")
    assert table.shape == (rows, columns + 2) and rows == 2000 and list(table.columns[:2]) == ["Name", "Description"]
    assert table.Name.str.fullmatch(r"ENSG\d{11}\.\d+").all() and table.Name.is_unique
    samples = table.columns[2:]
    np.testing.assert_allclose(table[samples].sum(), 1e6, rtol=1e-3)  # TPM
    attributes = pd.read_csv(cohort / "rna/SampleAttributesDS.txt", sep="\t").set_index("SAMPID")
    assert set(samples) <= set(attributes.index)
    assert set(attributes.SMTSD) == {"Lung", "Brain - Cortex", "Liver"}
    sexes = pd.read_csv(cohort / "rna/SubjectPhenotypesDS.txt", sep="\t").set_index("SUBJID").SEX
    sex = np.array([sexes["-".join(s.split("-")[:2])] for s in samples])
    by_symbol = table.set_index("Description")[samples]
    assert by_symbol.loc["XIST", sex == 2].min() > 10 * by_symbol.loc["XIST", sex == 1].max()
    for symbol in set(SEX_GENES) - {"XIST"}:
        assert by_symbol.loc[symbol, sex == 1].min() > 10 * by_symbol.loc[symbol, sex == 2].max()
    lung = (attributes.SMTSD[samples] == "Lung").to_numpy()
    assert by_symbol.loc["SFTPC", lung].median() > 10 * by_symbol.loc["SFTPC", ~lung].median()
    listed = (cohort / "rna/protein_coding_genes.csv").read_text().split()
    assert listed[0] == "Gene" and all(re.fullmatch(r"rna_ENSG\d{11}\.\d+", g) for g in listed[1:])
    assert 1800 < len(listed) - 1 < rows and SEX_GENES["XIST"][0] not in {g.removeprefix("rna_") for g in listed}


def test_samples_find_their_slides():
    cohort = plan_cohort(99, 130)
    for tissue in ("lung", "brain"):
        samples = [s.name for s in cohort.samples if s.tissue == tissue]
        slides = [s.name for s in cohort.slides if s.tissue == tissue]
        matched, _ = match_samples(samples, slides)
        assert len(samples) - 3 <= len(matched) < len(samples)  # RNA without a slide
        assert len(set(matched.values())) == len(matched) < len(slides)  # a slide without RNA


def test_each_factor_drives_its_module():
    cohort, genes = plan_cohort(99, 130), make_genes(np.random.default_rng(1))
    samples = [s for s in cohort.samples if s.tissue == "lung"]
    expected = _expected(genes, samples, np.zeros(len(samples)))
    tpm = _measure(np.random.default_rng(2), genes, expected)
    z = np.array([[s.donor.factors[f] for f in FACTORS] for s in samples])
    log = np.log(tpm + 0.1)
    for k in range(4):
        module = np.flatnonzero(genes.factors[:, k])
        assert len(module) >= 100 and (np.abs(genes.factors[module, k]) >= 0.6).all()
        assert not np.any(genes.factors[np.ix_(module, [j for j in range(4) if j != k])])
        assert np.median(log[module].std(1)) >= 0.6
        r = [abs(np.corrcoef(log[g], z[:, k])[0, 1]) for g in module]
        assert np.median(r) > 0.8
    stable = expected.mean(1) > np.median(expected.mean(1))
    counts = tpm[stable] * (DEPTH / 1e6)
    flat = np.flatnonzero(~np.any(genes.factors[stable], axis=1))
    assert np.median(counts[flat].var(1) / counts[flat].mean(1)) > 3  # over-dispersed


def test_the_other_platform(cohort):
    coding = (cohort / "rna/protein_coding_genes.csv").read_text().split()[1:]
    shifts = []
    for tissue in ("lung", "brain"):
        table = pd.read_csv(cohort / f"geo/GSE120795_{tissue}_proteincoding.csv", index_col=0)
        assert table.shape == (12, round(0.97 * len(coding))) and table.index.is_unique
        assert set(table.columns) < set(coding)
        assert list(table.columns) != sorted(table.columns)  # another order
        assert np.isfinite(table.to_numpy()).all() and (table.to_numpy() >= 0).all()
        shifts.append(np.log(table + 1).median())
    assert list(shifts[0].index) == list(shifts[1].index)


# --- the known link ---


@pytest.mark.parametrize("tissue", ["lung", "brain"])
def test_each_factor_shows_in_the_tiles(tissue):
    rng = np.random.default_rng(5)
    z = rng.standard_normal((24, 4)).clip(-2.5, 2.5)
    measured = []
    for i, row in enumerate(z):
        picture = draw_tissue(tissue, dict(zip(FACTORS, row, strict=True)), 640, 0.5, seed=i)
        tiles = picture[64:576, 64:576].reshape(4, 128, 4, 128, 3).swapaxes(1, 2).reshape(-1, 128, 128, 3)
        values = morphology(tiles, 0.5)
        measured.append([np.nanmean(values[f]) for f in FACTORS])
    r = np.corrcoef(np.column_stack([measured, z]).T)[:4, 4:]
    assert (np.diag(r) >= 0.8).all(), np.round(r, 2)
    rest = np.abs(r - np.diag(np.diag(r)))
    assert (rest < np.diag(r)).all(), np.round(r, 2)  # a measure answers to its own factor most


# --- configs ---


def test_configs_load_and_stay_inside_the_demo(cohort, monkeypatch):
    vae = load_config(BetaVAESettings, cohort / "configs/betavae_tissues.json")
    assert vae.tissues == ["lung", "brain"] and vae.path_csv == [f"{cohort}/data/{t}.csv" for t in vae.tissues]
    for name, tissues in {"gan_run_lung": 1, "gan_run_brain": 1, "gan_run": 2}.items():
        gan = load_config(GANSettings, cohort / f"configs/{name}.json")
        assert len(gan.path_csv) == len(gan.patch_data_path) == tissues and gan.cond_dim <= vae.latent_dim
        paths = [*gan.path_csv, *gan.patch_data_path, gan.vae_checkpoint, gan.save_dir, gan.phenotypes]
        assert all(p.startswith(str(cohort) + os.sep) for p in paths)
        assert gan.vae_checkpoint == f"{vae.save_dir}.pt"
