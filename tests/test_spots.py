"""Spatial transcriptomics into a table and tile stores: both layouts from files whose answers are known."""

import gzip
import json

import h5py
import numpy as np
import pandas as pd
import pytest
from gan_toy import toy_table, write_vae
from PIL import Image
from scipy import sparse

from common.config import DataSettings
from common.errors import InputError
from datasets.cohort import open_cohort
from datasets.expression import read_cohort_tables, read_expression
from datasets.keys import donor_of, split_of
from datasets.tiles import open_stores
from sources.profiles import Profiles

GENES = ["AAA", "BBB", "CCC", "DDD"]
IDS = {"AAA": "ENSG00000000101", "BBB": "ENSG00000000102", "CCC": "ENSG00000000103", "DDD": "ENSG00000000104"}
STEP, MPP = 40, 5.0  # pixels between spots; 200 um / 40 px


def colour(x, y):
    return (10 * x + 5, 10 * y + 5, 200)


def write_st(root, sections=("S1", "S2", "S3"), side=8):
    """ST sections of side x side spots, each on a patch of its colour; spot XxY has X + 1 counts of AAA in 1,000."""
    for kind in ("images", "counts", "spots"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for section in sections:
        image = np.full(((side + 1) * STEP, (side + 1) * STEP, 3), 255, np.uint8)
        places, rows = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"], ["\t".join(["", *GENES])]
        for y in range(side):
            for x in range(side):
                u, v = (x + 1) * STEP, (y + 1) * STEP
                image[v - STEP // 2 : v + STEP // 2, u - STEP // 2 : u + STEP // 2] = colour(x, y)
                places.append(f"{x}\t{y}\t{x}\t{y}\t{u}\t{v}\t1")
                rows.append(f"{x}x{y}\t{x + 1}\t{100 * (y % 3)}\t{800 - 100 * (y % 3) - x}\t199")
        Image.fromarray(image).save(root / "images" / f"{section}.png")
        (root / "spots" / f"{section}_selection.tsv").write_text("\n".join(places) + "\n")
        with gzip.open(root / "counts" / f"{section}.tsv.gz", "wt") as file:
            file.write("\n".join(rows) + "\n")
    (root / "mapping.csv").write_text("id,symbol\n" + "".join(f"{i},{s}\n" for s, i in IDS.items()))
    return root


def edit(path, change):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        text = file.read()
    with opener(path, "wt") as file:
        file.write(change(text))


@pytest.fixture
def spots(tmp_path, command, monkeypatch):
    """Run `prepare_data.py spots` on the folder st, with a mapping; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    write_st(tmp_path / "st")
    line = "prepare_data.py spots --input st --mapping st/mapping.csv --img_size 20 --tiles tiles --format png"
    return lambda flags="--pitch 200 --out t.h5ad --min_spots 0": command(f"{line} {flags}")


def test_st_tile_cpm_and_splits_are_the_known_ones_and_the_cohort_joins_them(spots, tmp_path):
    assert spots("--pitch 200 --out t.h5ad --min_spots 0.5 --test S2 --val_share 0.25") == 0
    table, stores = read_expression("t.h5ad"), open_stores("tiles")
    assert table.unit == "CPM" and len(table) == len(stores) == 3 * 64
    assert table.genes == [IDS[g] for g in GENES] and table.symbols[IDS["BBB"]] == "BBB"
    row = table.find("S1_3x5")
    assert table.values[row].tolist() == [4000.0, 200000.0, 597000.0, 199000.0]
    obs = table.obs.iloc[row]
    assert obs["wsi_file_name"] == "S1_3x5" and obs["donor"] == obs["section"] == "S1" and obs["tissue"] == "t"
    assert [obs[c] for c in ("array_x", "array_y", "total_counts", "genes_detected")] == ["3", "5", "1000", "4"]

    # The tile is the 100 um (20 px) around the spot, of the spot's own colour.
    store = stores["S1_3x5"]
    assert len(store) == 1 and store.mpp == 5.0 and store.coords.tolist() == [[4 * STEP - 10, 6 * STEP - 10]]
    assert store.read(0).shape == (20, 20, 3) and (store.read(0) == colour(3, 5)).all()

    # S2 is test; a quarter of the others is val: four of sixteen-spot blocks, whole.
    splits = table.obs.groupby("section")["assigned_split"].value_counts().to_dict()
    assert splits == {
        ("S1", "train"): 48,
        ("S1", "val"): 16,
        ("S2", "test"): 64,
        ("S3", "train"): 48,
        ("S3", "val"): 16,
    }
    val = table.obs[(table.obs["assigned_split"] == "val") & (table.obs["section"] == "S1")]
    assert val["array_x"].astype(int).floordiv(4).nunique() == val["array_y"].astype(int).floordiv(4).nunique() == 1

    settings = DataSettings(path_csv=["t.h5ad"], patch_data_path=["tiles"], img_size=20)
    for split, n in (("train", 96), ("val", 32), ("test", 64)):
        cohort = open_cohort(settings, [split])
        assert len(cohort.slides) == len(cohort.tiles) == len(cohort.table) == n and not cohort.left_out
    assert set(cohort.slides["donor"]) == {"S2"}

    report = json.loads((tmp_path / "t.report.json").read_text())
    assert report["sections"]["S1"]["mpp"] == 5.0 and report["sections"]["S1"]["square_px"] == 20
    assert report["sections"]["S1"]["splits"] == {"train": 48, "val": 16}


def test_copies_of_a_gene_that_are_not_taken_are_in_no_sum(spots, tmp_path, capsys):
    edit(tmp_path / "st/mapping.csv", lambda t: t + "ENSG00000000101,AAB\n")
    for section in ("S1", "S2", "S3"):  # a column more, of AAA under another name: x + 1 counts too
        counts = tmp_path / f"st/counts/{section}.tsv.gz"
        edit(counts, lambda t: _set(t.replace("\tDDD", "\tDDD\tAAB", 1), 5, lambda x, y: x + 1))
    flags = "--pitch 200 --out t.h5ad --min_spots 0 --min_counts 1000 --duplicates"
    for duplicates, values, total in (
        ("first", [4000.0, 200000.0, 597000.0, 199000.0], 1000),
        ("sum", [8e6 / 1004, 200e6 / 1004, 597e6 / 1004, 199e6 / 1004], 1004),
    ):
        assert spots(f"{flags} {duplicates}") == 0
        table = read_expression("t.h5ad")
        row = table.find("S1_3x5")
        np.testing.assert_allclose(table.values[row], values, rtol=1e-6)
        obs = table.obs.iloc[row]
        assert (obs["total_counts"], obs["genes_detected"]) == (str(total), "4" if duplicates == "first" else "5")
        report = json.loads((tmp_path / "t.report.json").read_text())
        first = {"ENSG00000000101": ["AAA", "AAB"]} if duplicates == "first" else {}
        assert report["genes"]["first_of_several"] == first and len(table.genes) == 4
        assert ("the first row alone of those that repeat" in report["conversion"]) == bool(first)
        said = capsys.readouterr().out
        assert ("genes of which the first row was taken: 1 (ENSG00000000101)" in said) == bool(first)


def test_the_pixel_size_is_given_or_follows_from_the_pitch_else_one_clear_error(spots, capsys):
    assert spots("--out t.csv --mpp 10 --min_spots 0 --group P1") == 0
    assert open_stores("tiles")["S1_0x0"].coords.tolist() == [[STEP - 5, STEP - 5]]
    assert set(read_expression("t.csv").obs["donor"]) == {"P1"}
    assert "enlarged to --img_size 20" in capsys.readouterr().err  # 100 um are 10 px
    assert spots("--out t.csv --min_spots 0") == 2
    error = capsys.readouterr().err
    assert "S1.png" in error and "--mpp" in error and "--pitch" in error and error.count("\n") == 1


def test_spots_that_cannot_take_part_are_left_out_and_counted_with_the_reason(spots, tmp_path):
    places, counts = tmp_path / "st/spots/S1_selection.tsv", tmp_path / "st/counts/S1.tsv.gz"
    edit(places, lambda t: t.replace("0\t0\t0\t0\t40\t40\t1", "0\t0\t0\t0\t40\t40\t0"))  # not selected
    edit(places, lambda t: t.replace("1\t0\t1\t0\t80\t40\t1\n", ""))  # counts, no place
    edit(places, lambda t: t.replace("7\t7\t7\t7\t320\t320\t1", "7\t7\t7\t7\t355\t320\t1"))  # leaves the image
    edit(
        counts, lambda t: "\n".join(line for line in t.split("\n") if not line.startswith("2x0\t"))
    )  # place, no counts
    edit(counts, lambda t: t.replace("3x0\t4\t0\t797\t199", "3x0\t4\t0\t397\t98"))  # 499 counts
    assert spots("--mpp 5 --out t.csv --min_spots 0 --convert none") == 0
    left_out = json.loads((tmp_path / "t.report.json").read_text())["sections"]["S1"]["left_out"]
    assert {reason: (v["n"], v["spots"]) for reason, v in left_out.items()} == {
        "not selected": (1, "0x0"),
        "counts without a place": (1, "1x0"),
        "place without counts": (1, "2x0"),
        "fewer than min_counts": (1, "3x0"),
        "square leaves the image": (1, "7x7"),
    }
    table = read_expression("t.csv")
    assert len(table) == 64 - 5 + 2 * 64 and table.unit == "counts"
    assert table.values[table.find("S1_4x0")].tolist() == [5.0, 0.0, 796.0, 199.0]


def test_genes_are_chosen_by_the_training_spots_alone_and_unmapped_ones_named(spots, tmp_path):
    """BBB varies in all sections but is constant in the training ones; DDD is absent from one section's file."""
    for section in ("S1", "S3"):
        edit(tmp_path / f"st/counts/{section}.tsv.gz", lambda t: _set(t, 2, lambda x, y: 300))
    edit(tmp_path / "st/counts/S3.tsv.gz", lambda t: t.replace("\tDDD", "\tEEE"))
    assert spots("--pitch 200 --out t.h5ad --top_genes 1 --test S2 --val_share 0") == 0
    table = read_expression("t.h5ad")
    assert table.genes == [IDS["AAA"]]  # of AAA, BBB, CCC: AAA runs from 1 to 8, BBB stands still
    genes = json.loads((tmp_path / "t.report.json").read_text())["genes"]
    assert genes["unmapped"] == ["EEE"] and genes["not_in_all_sections"] == 1 and genes["varying_less"] == 2
    for section in ("S1", "S3"):
        edit(tmp_path / f"st/counts/{section}.tsv.gz", lambda t: _set(t, 1, lambda x, y: int(x == y == 0)))
    assert spots("--pitch 200 --out t.h5ad --test S2 --val_share 0") == 0
    assert read_expression("t.h5ad").genes == [IDS["BBB"], IDS["CCC"]]  # AAA: in 2 of 128 training spots


def test_a_file_that_names_genes_in_several_ways_is_asked_about(spots, tmp_path, capsys, command):
    for section in ("S1", "S2", "S3"):
        edit(tmp_path / f"st/counts/{section}.tsv.gz", lambda t: t.replace("\tAAA\t", f"\t{IDS['AAA']}\t", 1))
    assert spots() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "S1.tsv.gz: genes of several kinds" in line and "1 named by ensembl and 3 named by symbol" in line
    bare = "prepare_data.py spots --input st --img_size 20 --tiles tiles --pitch 200 --out t.h5ad --min_spots 0"
    assert command(bare) == 2
    assert "1 genes are named by Ensembl id and 3 otherwise" in capsys.readouterr().err
    assert not (tmp_path / "t.h5ad").exists()
    for kind, names in (("mixed", "AAA BBB CCC DDD"), ("ensembl", "AAA"), ("symbol", "BBB CCC DDD")):
        assert spots(f"--pitch 200 --out {kind}.h5ad --min_spots 0 --id {kind}") == 0
        assert read_expression(f"{kind}.h5ad").genes == [IDS[name] for name in names.split()]
        assert "identifiers: " in capsys.readouterr().out


def _set(text, column, value):
    lines = [line.split("\t") for line in text.rstrip("\n").split("\n")]
    for fields in lines[1:]:
        fields += [""] * (column + 1 - len(fields))
        fields[column] = str(value(*map(int, fields[0].split("x"))))
    return "\n".join("\t".join(fields) for fields in lines) + "\n"


def test_what_is_wrong_with_an_st_folder_is_one_line_that_names_it(spots, tmp_path, capsys):
    st = tmp_path / "st"

    def fails(*words, flags="--pitch 200 --out t.h5ad --min_spots 0"):
        assert spots(flags) == 2
        error = capsys.readouterr().err.rstrip("\n").rsplit("\n", 1)[-1]
        assert all(word in error for word in words), error

    fails("--test S9", "no such section", "S1", flags="--pitch 200 --out t.h5ad --test S9")
    fails("--val_share", flags="--pitch 200 --out t.h5ad --val_share 1")
    fails("no training spot", flags="--pitch 200 --out t.h5ad --test S1 S2 S3")
    (st / "mapping.csv").rename(st / "kept.csv")
    (st / "mapping.csv").write_text("id,symbol\nENSG00000000998,YYY\nENSG00000000999,ZZZ\n")
    fails("S1.tsv.gz", "AAA", "mapping")
    (st / "kept.csv").rename(st / "mapping.csv")

    places, counts, image = st / "spots/S3_selection.tsv", st / "counts/S3.tsv.gz", st / "images/S3.png"
    kept = places.read_text()
    edit(places, lambda t: t + "1\t1\t1\t1\t80\t80\t1\n")
    fails("S3_selection.tsv", "line 66", "1x1", "line 11")
    places.write_text(kept.replace("320\t320", "320\tx"))
    fails("S3_selection.tsv: line 65, column pixel_y: 'x'")
    places.unlink()
    fails("S3_selection.tsv", "missing", "section S3")
    places.write_text(kept)

    packed = counts.read_bytes()
    edit(counts, lambda t: t + "0x0\t1\t1\t1\t1\n")
    fails("S3.tsv.gz", "spot 0x0", "twice")
    counts.write_bytes(packed)
    edit(counts, lambda t: t.replace("199", "199.5"))
    fails("S3.tsv.gz", "raw counts")
    counts.write_bytes(packed)
    image.write_bytes(image.read_bytes()[:-600])
    fails("S3.png", "not a readable image")
    assert not (tmp_path / "t.h5ad").exists()


def write_visium(folder, header=True, mpp=2.0):
    """A Visium section of 10 x 6 spots, one of them off the tissue, on an image of one colour per spot."""
    (folder / "spatial").mkdir(parents=True)
    rows, image = [], np.full((560, 560, 3), 255, np.uint8)
    barcodes = [f"BC{number:02d}-1" for number in range(60)]
    for number, barcode in enumerate(barcodes):
        row, column = divmod(number, 6)
        column = 2 * column + row % 2
        y, x = (100 + row * 50 * 3**0.5) / mpp, (100 + column * 50) / mpp
        image[round(y) - 20 : round(y) + 20, round(x) - 25 : round(x) + 25] = (4 * number, 100, 50)
        rows.append(f"{barcode},{int(number != 7)},{row},{column},{y},{x}")
    names = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    file = "tissue_positions.csv" if header else "tissue_positions_list.csv"
    (folder / "spatial" / file).write_text("\n".join([names] * header + rows) + "\n")
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps({"spot_diameter_fullres": 65 / mpp}))
    counts = np.arange(240).reshape(4, 60) * 10  # features, barcodes
    here = [number for number in range(60) if number != 7][::-1]  # the filtered matrix has its own order
    matrix = sparse.csc_matrix(counts[:, here])
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as h5:
        group = h5.create_group("matrix")
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(matrix, part)
        group["shape"] = np.array(matrix.shape, np.int32)
        group["barcodes"] = np.array([barcodes[i] for i in here], "S")
        group["features/id"] = np.array([*list(IDS.values())[:3], "AB1"], "S")
        group["features/name"] = np.array([*GENES[:3], "AB1"], "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * 3 + ["Antibody Capture"], "S")
    Image.fromarray(image).save(folder.parent / f"{folder.name}.tif")


def test_visium_with_and_without_a_header_finds_its_own_scale(tmp_path, command, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_visium(tmp_path / "V1")
    write_visium(tmp_path / "V2", header=False)
    line = "prepare_data.py spots --input V1 V2 --out v.csv --tiles tiles --tile_um 60 --img_size 30 --format png"
    line += " --min_spots 0 --group V1=P1 V2=P2 --tissue Lymph --min_counts 1"
    assert command(f"{line} --image V1.tif V2.tif") == 0
    table, stores = read_expression("v.csv"), open_stores("tiles")
    assert len(table) == 2 * 59 and table.genes == list(IDS.values())[:3] and "V1_BC07-1" not in stores
    assert set(table.obs["donor"]) == {"P1", "P2"} and set(table.obs["tissue"]) == {"lymph"}
    row = table.obs.loc["V2_BC10-1"]
    assert (row["array_x"], row["array_y"], row["total_counts"]) == ("9", "1", str(100 + 700 + 1300))
    np.testing.assert_allclose(
        table.values[table.find("V2_BC10-1")], np.array([100, 700, 1300]) / 2100 * 1e6, rtol=1e-6
    )
    assert stores["V2_BC10-1"].mpp == 2.0 and (stores["V2_BC10-1"].read(0) == (40, 100, 50)).all()
    facts = json.loads((tmp_path / "v.report.json").read_text())["sections"]["V1"]
    assert facts["mpp"] == 2.0 and facts["left_out"] == {"in_tissue 0": {"n": 1, "spots": "BC07-1"}}

    def fails(*words, flags="--image V1.tif V2.tif"):
        assert command(f"{line} {flags}") == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words), error

    fails("--image", "full-resolution", flags="")
    fails("spot_diameter_fullres", "162 um", flags="--image V1.tif V2.tif --mpp 5")
    positions = tmp_path / "V2/spatial/tissue_positions_list.csv"
    kept = positions.read_text()
    positions.write_text(kept + "BC00-1,1,0,0,50,50\n")
    fails("line 61", "BC00-1", "line 1 too")
    positions.unlink()
    fails("tissue_positions.csv", "missing")
    positions.write_text(kept)
    matrix = tmp_path / "V2/filtered_feature_bc_matrix.h5"
    matrix.write_bytes(matrix.read_bytes()[:3000])
    fails(str(matrix.name), "not a readable feature-barcode matrix")
    matrix.unlink()
    fails(str(matrix.name), "no such file")


def test_an_assigned_split_wins_over_the_donors_hash_and_another_word_is_refused(tmp_path):
    donors = [f"D{i}" for i in range(6)]
    words = ["train", "val", "test", "", "", " test "]
    frame = pd.DataFrame({"wsi_file_name": donors, "donor": donors, "assigned_split": words})
    frame["rna_ENSG00000000101"] = 1.5
    frame.to_csv(tmp_path / "a.csv", index=False)
    others = [f"B{i}" for i in range(6)]
    frame.drop(columns="assigned_split").assign(wsi_file_name=others, donor=others).to_csv(
        tmp_path / "b.csv", index=False
    )
    table = read_cohort_tables(DataSettings(path_csv=[str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]))
    by_hash = [split_of(donor, 99) for donor in [*donors[3:5], *others]]
    assert table.obs["split"].tolist() == ["train", "val", "test", *by_hash[:2], "test", *by_hash[2:]]
    frame.assign(assigned_split="held out").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=r"a\.csv: row D0, column assigned_split: 'held out'"):
        read_cohort_tables(DataSettings(path_csv=[str(tmp_path / "a.csv")]))

    toys = [toy_table("lung", 0)]
    toys[0].obs["assigned_split"] = ["test", "val", *[""] * 22]
    write_vae(tmp_path / "vae", toys)
    profiles = Profiles(tmp_path / "vae", toys[0])
    names = list(toys[0].obs.index)
    assert [profiles.split(name) for name in names[:2]] == ["test", "val"]
    assert all(profiles.split(name) == split_of(donor_of(name), 99) for name in names[2:])
    assert names[0] in profiles.held_out("test") and names[1] not in profiles.held_out("test")


def test_real_section_gives_the_pixel_size_and_dark_tiles_where_the_tissue_is(data_folder, tmp_path, command):
    source = data_folder / "her2st"
    if not source.is_dir():
        pytest.skip(f"no her2st in {data_folder}")
    for kind in ("images", "counts", "spots"):
        (tmp_path / "st" / kind).mkdir(parents=True)
        for path in (source / kind).glob("C3*"):
            (tmp_path / "st" / kind / path.name).symlink_to(path)
    mapping = data_folder / "expression/tissueenrich_human_gene_mapping.csv.gz"
    line = f"prepare_data.py spots --input {tmp_path}/st --pitch 200 --mapping {mapping} --min_spots 0 --out {tmp_path}"
    assert command(f"{line}/t.h5ad --tiles {tmp_path}/tiles --min_counts 15000") == 0
    facts = json.loads((tmp_path / "t.report.json").read_text())["sections"]["C3"]
    assert facts["mpp"] == pytest.approx(0.69, abs=0.01) and facts["square_px"] == 146
    assert facts["spots_with_place"] == 182 and facts["spots_with_counts"] == 180
    assert facts["left_out"]["place without counts"]["n"] == 2
    table, stores = read_expression(tmp_path / "t.h5ad"), open_stores(tmp_path / "tiles")
    assert len(table) == len(stores) == facts["spots_in_table"] > 20 and len(table.genes) > 14000
    tiles = np.stack([store.read(0) for store in stores.values()])
    assert tiles.shape[1:] == (64, 64, 3) and tiles.mean() < 180  # the spots with most counts lie on cells
