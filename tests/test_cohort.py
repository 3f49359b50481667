"""The join of tiles and expression, and patient-balanced batches."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import evaluate_conditioning
import fid
import generate_tissue_images
import histopathology_gan
from common.config import GANSettings
from common.errors import InputError
from datasets.cohort import PatientBatches, open_cohort, write_left_out
from datasets.keys import split_of
from datasets.tiles import write_store

SEED = 99
DONORS = [f"GTEX-{i:05d}" for i in range(40)]
TRAIN = [d for d in DONORS if split_of(d, SEED) == "train"]


def write_tiles(folder, donors, n=3, slide="-0125"):
    for number, donor in enumerate(donors):
        tiles = [(0, i, 1.0, np.full((8, 8, 3), 2 * number, np.uint8)) for i in range(n)]
        write_store(folder, f"{donor}{slide}", tiles, mpp=0.5, tile_size=8, fmt="png")


def write_table(path, donors, slide="-0125.svs"):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"wsi_file_name": [f"{d}{slide}" for d in donors]})
    table["rna_ENSG00000000003.14"] = np.arange(len(donors)) + 1.0
    table["rna_ENSG00000000005.5"] = 2.0
    table.to_csv(path, index=False)


@pytest.fixture
def settings(tmp_path):
    """Tiles of donors 0..29, a table of donors 10..39: 20 in both."""
    write_tiles(tmp_path / "lung", DONORS[:30])
    write_table(tmp_path / "lung.csv", DONORS[10:])
    return GANSettings(path_csv=[str(tmp_path / "lung.csv")], patch_data_path=[str(tmp_path / "lung")], img_size=8)


def test_each_tile_has_the_row_of_its_slide(settings):
    cohort = open_cohort(settings, None)
    assert len(cohort.slides) == len(cohort.table) == 20 and len(cohort.tiles) == 60
    for tile in range(0, 60, 7):
        row = cohort.row_of_tile[tile]
        store = cohort.tiles.stores[cohort.tiles.slide_index[tile]]
        assert cohort.table.obs["wsi_file_name"].iloc[row] == f"{store.slide}.svs"
        number = DONORS.index(cohort.table.obs["donor"].iloc[row])
        assert cohort.table.values[row, 0] == number - 9  # what the table's file says of this donor
        assert (cohort.tiles.read([tile]) == 2 * number).all()  # what its tiles show
    assert set(cohort.slides["tissue"]) == {"lung"} and (cohort.slides["n_tiles"] == 3).all()


def test_limits_of_the_scores_choose_tiles_and_slides(settings, tmp_path):
    for number, donor in enumerate(DONORS[:30]):
        tiles = [
            (0, i, number / 30, np.zeros((8, 8, 3), np.uint8), {"pen": i / 10, "sharpness": 0.3}) for i in range(3)
        ]
        write_store(tmp_path / "lung", f"{donor}-0125", tiles, mpp=0.5, tile_size=8, fmt="png")
    cohort = open_cohort(replace(settings, min_tissue=0.5, max_pen=0.1), None)
    assert len(cohort.slides) == 15 and (cohort.slides["n_tiles"] == 2).all()  # donors 15 to 29, tiles 0 and 1
    reason = dict(cohort.left_out)["GTEX-00012-0125.svs"]
    assert reason.endswith("lung within min_tissue 0.5, max_pen 0.1")
    with pytest.raises(InputError, match=r"none of 30 rows has tiles in .* within min_sharpness 0.4"):
        open_cohort(replace(settings, min_sharpness=0.4), None)
    for command in (histopathology_gan, fid, evaluate_conditioning, generate_tissue_images):
        assert "--min_tissue" in command.build_parser().format_help()


def test_what_has_no_partner_is_listed_with_the_reason(settings, tmp_path):
    cohort = open_cohort(settings, None)
    reasons = dict(cohort.left_out)
    assert len(reasons) == 20
    assert "no tiles of GTEX-00035-0125" in reasons["GTEX-00035-0125.svs"]
    assert "no row in" in reasons["GTEX-00003-0125"]
    assert "left out 20: " in cohort.summary() and "20 slides of 20 donors, 60 tiles" in cohort.summary()
    path = write_left_out(cohort, tmp_path / "run")
    written = pd.read_csv(path)  # all of them, where the summary names five
    assert path.name == "left_out.csv" and list(written) == ["name", "reason"]
    assert list(written.itertuples(index=False, name=None)) == cohort.left_out
    cohort.left_out = []
    assert write_left_out(cohort, tmp_path / "run") is None and not path.exists()


def test_splits_are_by_donor(settings):
    parts = {split: set(open_cohort(settings, (split,)).slides["donor"]) for split in ("train", "val", "test")}
    assert parts["train"] == set(TRAIN) & set(DONORS[10:30])
    assert sum(map(len, parts.values())) == 20 == len(set.union(*parts.values()))
    settings.seed = 5  # moves no donor
    assert set(open_cohort(settings).slides["donor"]) == parts["train"]


def test_two_tables_with_their_folders(settings, tmp_path):
    write_tiles(tmp_path / "brain", DONORS[:12], slide="-3025")
    write_table(tmp_path / "brain.csv", DONORS[:12], slide="-3025.svs")
    settings.path_csv.append(str(tmp_path / "brain.csv"))
    with pytest.raises(InputError, match="none of"):  # lung's folder for both: no brain slide in it
        open_cohort(GANSettings(path_csv=settings.path_csv[1:], patch_data_path=settings.patch_data_path))
    settings.patch_data_path.append(str(tmp_path / "brain"))
    cohort = open_cohort(settings, None)
    assert cohort.slides["tissue"].value_counts().to_dict() == {"lung": 20, "brain": 12}
    settings.patch_data_path.append("third")
    with pytest.raises(InputError, match="third: no such tile folder"):
        open_cohort(settings, None)


def test_several_slides_of_a_donor_stay_in_one_split(tmp_path):
    write_tiles(tmp_path / "lung", DONORS[:10])
    write_tiles(tmp_path / "lung", DONORS[:10], slide="-0225")
    cohort = open_cohort(GANSettings(patch_data_path=[str(tmp_path / "lung")], img_size=8), None, False)
    assert len(cohort.slides) == 20 and (cohort.slides.groupby("donor")["split"].nunique() == 1).all()
    assert len(cohort.tiles_of("GTEX-00003")) == 6 and len(cohort.tiles_of("GTEX-00003-0225.svs")) == 3


def test_without_tables_all_slides_take_part(settings):
    settings.path_csv = []
    cohort = open_cohort(settings, None, need_expression=False)
    assert cohort.table is None and len(cohort.slides) == 30 and cohort.row_of_tile.max() == 29
    with pytest.raises(InputError, match="path_csv is empty"):
        open_cohort(settings)
    settings.patch_data_path = []
    with pytest.raises(InputError, match="patch_data_path is empty"):
        open_cohort(settings)


def test_a_patient_is_found_by_slide_sample_or_donor(settings):
    cohort = open_cohort(settings, None)
    wanted = cohort.tiles_of("GTEX-00015-0125.svs")
    assert len(wanted) == 3
    for name in ("GTEX-00015-0125", "GTEX-00015"):
        assert (cohort.tiles_of(name) == wanted).all()


def test_a_patient_without_tiles_is_refused_with_folder_reason_and_remedy(settings):
    cohort = open_cohort(settings, None)
    for patient, reason in (
        ("GTEX-00035-0125.svs", "no tiles of GTEX-00035-0125 in"),
        ("GTEX-00003", "no row in"),
        ("GTEX-00015-0126x.svs", "not among the 20 slides with tiles; nearest: GTEX-00015-0125"),
    ):
        with pytest.raises(InputError) as error:
            cohort.tiles_of(patient)
        said = str(error.value)
        assert said.startswith(f"{settings.patch_data_path[0]}: patient {patient}: {reason}")
        assert said.endswith(
            "; name another patient, or add the slide (prepare_data.py tiles) or the row that is missing"
        )


def test_nothing_in_common_is_refused(settings, tmp_path):
    write_table(tmp_path / "other.csv", [f"TCGA-AA-{i:04d}" for i in range(5)])
    settings.path_csv = [str(tmp_path / "other.csv")]
    with pytest.raises(InputError, match=r"none of 5 rows has tiles in .*lung.*check that wsi_file_name"):
        open_cohort(settings)


def test_a_cohort_too_small_to_split_is_refused(tmp_path):
    lonely = next(d for d in DONORS if split_of(d, SEED) == "test")
    write_tiles(tmp_path / "lung", [lonely])
    with pytest.raises(InputError, match=r"no slide of split train \(slides: 1 test\); the cohort is too small"):
        open_cohort(GANSettings(patch_data_path=[str(tmp_path / "lung")], img_size=8), need_expression=False)


def test_a_damaged_store_stops_the_cohort(settings, tmp_path):
    (tmp_path / "lung" / "GTEX-00012-0125.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"GTEX-00012-0125.tar: 0 bytes"):
        open_cohort(settings)


def test_two_slides_of_a_donor_are_one_patient_and_two_tissues_are_two(tmp_path):
    write_tiles(tmp_path / "lung", TRAIN[:4])
    write_tiles(tmp_path / "lung", TRAIN[:1], n=5, slide="-0225")
    write_tiles(tmp_path / "brain", TRAIN[:2], slide="-3025")
    folders = [str(tmp_path / "lung"), str(tmp_path / "brain")]
    cohort = open_cohort(GANSettings(patch_data_path=folders, img_size=8), need_expression=False)
    patients = cohort.patient_of_tile
    assert len(cohort.slides) == 7 and len(set(patients)) == 6
    assert sorted(np.bincount(patients)) == [3, 3, 3, 3, 3, 8]
    drawn = np.concatenate([PatientBatches(patients, 6, 1).of(step) for step in range(10)])
    assert set(np.bincount(patients[drawn])) == {10}


# ---- Batches ----


def batches(rows, size, seed, steps):
    source = PatientBatches(rows, size, seed)
    return np.stack([source.of(step) for step in range(steps)])


def test_batches_hold_many_patients_and_every_patient_equally_often():
    tiles_of = np.random.default_rng(0).integers(1, 60, 30)
    rows = np.repeat(np.arange(30), tiles_of)
    drawn = batches(rows, 8, seed=1, steps=90)
    assert all(len(set(rows[batch])) >= 4 for batch in drawn)
    assert np.ptp(np.bincount(rows[drawn.ravel()])) == 0  # 90 * 8 = 24 rounds of 30


def test_a_patients_tiles_are_gone_through_before_any_returns():
    rows = np.array([5, 5, 5, 9, 9, 9, 9, 5])  # rows need be neither dense nor sorted
    drawn = batches(rows, 2, seed=1, steps=4).ravel()
    assert sorted(drawn.tolist()) == list(range(8))


def test_tiles_are_sorted_once_not_for_each_batch(monkeypatch):
    source = PatientBatches(np.repeat(np.arange(9), 4), 6, 1)
    monkeypatch.setattr("datasets.cohort.np.argsort", None)
    assert len(np.unique(source.of(0))) == 6


def test_few_patients_all_take_part():
    rows = np.repeat([0, 1, 2], 4)
    assert all(set(rows[b]) == {0, 1, 2} for b in batches(rows, 8, seed=3, steps=20))


def test_a_batch_depends_on_seed_and_step_alone():
    rows = np.repeat(np.arange(12), 5)
    drawn = batches(rows, 4, seed=1, steps=10)
    assert (PatientBatches(rows, 4, 1).of(7) == drawn[7]).all()
    assert (batches(rows, 4, seed=2, steps=10) != drawn).any()
    assert len({tuple(rows[b]) for b in drawn}) > 5  # shuffled
