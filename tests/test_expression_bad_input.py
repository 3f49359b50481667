"""Faults of expression tables: one line that names the file, the line and column, what was expected and the remedy."""

import gzip

import pytest
from test_expression import GENES, make_table

from common.config import DataSettings
from common.errors import InputError
from datasets.expression import read_cohort_tables, read_expression, write_expression

G1, G2 = "rna_ENSG00000000001.2", "rna_ENSG00000000002.3"
HEAD = f"wsi_file_name,{G1},{G2}\n"
MEND = "mend the file, or make it again with `prepare_data.py expression`"
NUMBER = "a finite number of at least 0 was expected"


def message_of(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_expression(path)
    assert "\n" not in str(error.value)
    return str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("abc", "'abc' is not a number"),
        ("1.5.2", "'1.5.2' is not a number"),
        ("1_000", "'1_000' is not a number"),
        ("", "the value is missing (empty)"),
        ("NaN", "the value is missing (NaN)"),
        ("NA", "the value is missing (NA)"),
        ("-0.5", "the value is negative (-0.5)"),
        ("inf", "the value is infinite (inf)"),
        ("1e99", "the value is infinite (1e99)"),
    ],
)
def test_a_bad_value_is_named_by_line_and_column(tmp_path, field, problem):
    text = f"{HEAD}A.svs,1,2\nB.svs,3,{field}\n"
    assert message_of(tmp_path, text) == f"t.csv: line 3 (B.svs), column {G2}: {problem}, {NUMBER}; {MEND}"
    assert not list(tmp_path.glob(".*"))  # no cache of a bad table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "A.svs,1,2\nB.svs,3\n", f"t.csv: line 3 (B.svs) has 2 fields, 3 were expected; {MEND}"),
        (
            HEAD + "A.svs,1,2\nB.svs,3,4\nA.svs,5,6\n",
            "t.csv: sample A.svs stands on lines 2, 4, each sample was expected once (1 such); keep one line of each",
        ),
        (
            f"wsi_file_name,{G1},{G1}\nA.svs,1,2\n",
            f"t.csv: columns 2 and 3 are both named '{G1}', each name was expected once; remove or rename one",
        ),
        (
            "wsi_file_name,rna_ENSG00000000001.2,rna_ENSG00000000001.9\nA.svs,1,2\n",
            "t.csv: columns 2 and 3, rna_ENSG00000000001.2 and rna_ENSG00000000001.9, are the same gene (genes match "
            "without version), each was expected once; remove one, or sum them with `prepare_data.py expression`",
        ),
        (
            "gene,S1,S2\nTP53,1,2\n",
            "t.csv: no gene columns like rna_ENSG00000186092.4 in the header (found gene, S1, S2); convert a matrix of "
            "another form with `prepare_data.py expression --input`",
        ),
        (
            HEAD.replace(",", ";") + "A.svs;1;2\nB.svs;3;1,234\n",
            f"t.csv: line 3, column {G2}: '1,234' may be thousands set apart or a decimal comma; write the table "
            "without thousands separators and with decimal points (1234.5)",
        ),
        ("", "t.csv: the file is empty; download or make it again"),
        (HEAD, f"t.csv: no line below the header; {MEND}"),
        ("<!DOCTYPE html>\n<html>", "t.csv: holds a web page, not a table; download it again"),
        (b"\xff\xfe\x00w\x00", "t.csv: not UTF-8 text (invalid start byte); save it as UTF-8 text"),
        (HEAD + ",1,2\n", "t.csv: line 2 has no sample name in column 'wsi_file_name'; give it one"),
    ],
)
def test_a_malformed_table_is_refused_in_one_line(tmp_path, text, message):
    assert message_of(tmp_path, text) == message


def test_a_cut_off_gzip_is_refused(tmp_path):
    whole = gzip.compress((HEAD + "".join(f"{i}.svs,{i},{i * 7919}\n" for i in range(5000))).encode())
    for cut in (len(whole) // 2, len(whole) - 4):
        assert "the gzip file is cut off or damaged" in message_of(tmp_path, whole[:cut], "t.csv.gz")


def test_missing_files_and_wrong_suffixes(tmp_path):
    with pytest.raises(InputError, match=r"no such file; a table was expected"):
        read_expression(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"is a folder, a table was expected"):
        read_expression(tmp_path)
    (tmp_path / "t.h5ad").write_text("nonsense")
    with pytest.raises(InputError, match=r"t.h5ad: not a readable h5ad file"):
        read_expression(tmp_path / "t.h5ad")
    with pytest.raises(InputError, match=r"t.txt: tables are written as .csv or .h5ad"):
        write_expression(make_table(), tmp_path / "t.txt")


def test_bad_values_in_h5ad_are_named(tmp_path):
    table = make_table()
    table.values[2, 3] = -1
    write_expression(table, tmp_path / "t.h5ad")
    with pytest.raises(InputError, match=rf"sample GTEX-0002-0625.svs, gene {GENES[3]}: -1.0, a finite number"):
        read_expression(tmp_path / "t.h5ad")


def test_tables_of_one_cohort_must_fit(tmp_path):
    a, b = str(tmp_path / "a.csv"), str(tmp_path / "b.csv")
    write_expression(make_table(), a)
    write_expression(make_table(genes=[*GENES[:-1], "ENSG00000000077.1"], first=50), b)
    with pytest.raises(InputError, match=r"b.csv: other genes than .*a.csv: 1 missing, 1 more"):
        read_cohort_tables(DataSettings(path_csv=[a, b]))
    write_expression(make_table(seed=1), b)
    with pytest.raises(InputError, match=r"b.csv: sample GTEX-0000-0625.svs is also in .*a.csv"):
        read_cohort_tables(DataSettings(path_csv=[a, b]))
    with pytest.raises(InputError, match=r"tissues has 1 names for the 2 tables"):
        read_cohort_tables(DataSettings(path_csv=[a, b], tissues=["lung"]))
    with pytest.raises(InputError, match=r"a.csv: 8 genes, at least 80% of rna_features = 19198 were expected"):
        read_cohort_tables(DataSettings(path_csv=[a], rna_features=19198))
    with pytest.raises(InputError, match=r"no expression table: set path_csv"):
        read_cohort_tables(DataSettings())
