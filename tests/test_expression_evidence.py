"""prepare_data.py expression decides by evidence, says which, and asks where there is a choice."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_expression_prepare import FRAME, GENES, SYMBOLS, VALUES, command, pairs, table_of, write

from common.errors import InputError
from datasets.gene_lists import GeneNames, read_mapping
from datasets.gene_mapper import GeneMapper
from datasets.prepare_table import prepare_table

RNG = np.random.default_rng(5)
IDS = [f"ENSG{i:011d}" for i in range(6000)]
ALL = RNG.gamma(0.3, 100, (6000, 3))
TPM = pd.DataFrame(ALL / ALL.sum(0) * 1e6, index=IDS, columns=list("abc"))
SOME = TPM.iloc[:200] / TPM.iloc[:200].sum() * 1e6
FEW = TPM.iloc[:60]
COUNTS = (TPM * 30).round()
ASK = r"state the unit with --unit: tpm, fpkm, cpm, counts, with the log beside it"


@pytest.mark.parametrize(
    ("name", "frame", "unit", "why"),
    [
        ("m_TPM.csv", SOME, "TPM", r"name says so; profiles sum to 1e\+06"),
        ("m_tpm.csv", SOME.iloc[:150], "TPM", "name says so"),
        ("m_tpm.csv", TPM.round(), "TPM", "name says so"),  # whole, and sums as TPM's
        ("m_rpkm.csv", SOME * 0.7, "FPKM", "name says so"),
        ("m_counts_per_million.csv", SOME, "CPM", "name says so"),
        ("m_counts.csv", COUNTS, "counts", "name says so, and all values are whole"),
        ("m_counts.csv", COUNTS.iloc[:5], "counts", "name says so, and all values are whole"),
        ("m.csv", COUNTS, "counts", r"all values are whole numbers, the highest .* profiles sum to 3e\+07"),
        ("m.csv", (COUNTS / 1000).round(), "counts", "all values are whole numbers"),  # shallow, of many genes
    ],
)
def test_the_unit_is_found_by_name_and_values(tmp_path, name, frame, unit, why):
    table, report = table_of(write(tmp_path / name, frame.to_csv()))
    assert table.unit == report["found"]["unit"] == unit and report["found"]["log"] is None
    assert pd.Series(report["found"]["unit_found_by"]).str.contains(why).all(), report["found"]["unit_found_by"]
    assert np.allclose(table.values, frame.T, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "frame", "seen"),
    [
        ("m.csv", TPM, r"profiles sum to 1e\+06, and the file's name does not tell the unit: TPM, CPM, FPKM"),
        ("m.csv", SOME / 3, r"profiles sum to 3.33e\+05, and the file's name does not tell the unit"),
        ("m.csv", FEW, "and the file's name does not tell the unit"),
        ("m.csv", TPM.round(), "all values are whole numbers, profiles sum to 1e.* counts, or rounded TPM?"),
        ("m.csv", COUNTS.iloc[:60] / 50 // 1, "all values are whole numbers, .*: counts, or rounded TPM?"),
        ("m_tpm.csv", COUNTS, r"name says TPM, but profiles sum to 3e\+07, and TPM to about one million at most"),
        ("m_tpm.csv", FEW.round(), "name says TPM, but all values are whole numbers, as counts are"),
        ("m_fpkm.csv", COUNTS, "name says FPKM, but all values are whole numbers"),
        ("m_counts.csv", COUNTS + 0.5, r"name says counts, but not all values are whole: expected counts"),
        ("m_log2_tpm.csv", SOME, r"the file's name says logged, its values \(highest [0-9.e+]+\) do not"),
        ("m_tpm.csv", np.log2(FEW + 1), "too few genes to tell low values from logged ones"),
        ("m_counts.csv", np.log2(COUNTS + 1), "no base brings profiles to a sum near one million"),
        ("m_tpm.csv", np.log2(TPM + 1) / 3, "no base brings profiles to a sum near one million"),
    ],
)
def test_the_unit_is_asked_for_where_name_and_values_leave_a_choice(tmp_path, capsys, name, frame, seen):
    path = write(tmp_path / name, frame.to_csv())
    with pytest.raises(InputError, match=f"{seen}.*{ASK}"):
        prepare_table(path)
    assert command("--input", path, "--out", tmp_path / "o.csv") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "o.csv").exists()
    assert command("--input", path, "--out", tmp_path / "o.csv", "--unit", "tpm") == 0


def test_a_logged_matrix_without_a_name_has_a_base_but_no_unit(tmp_path, capsys):
    path = write(tmp_path / "m.csv", np.log2(TPM + 1).to_csv())
    asked = "as TPM and CPM do, .* --unit: tpm log2p1, fpkm log2p1, cpm log2p1, counts log2p1$"
    with pytest.raises(InputError, match=asked):
        prepare_table(path)
    with pytest.raises(
        InputError, match=r"holds log2p1 \(given with --unit\), of a unit that nothing tells; .*tpm log2"
    ):
        prepare_table(path, unit="log2p1")
    out = tmp_path / "o.h5ad"
    assert command("--input", path, "--out", out, "--unit", "cpm", "log2p1") == 0
    assert "unit: CPM, log2p1 undone (given with --unit)" in capsys.readouterr().out
    assert np.allclose(prepare_table(path, unit="cpm log2p1")[0].values, TPM.T, rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match=r"--unit tpm cpm: tpm and cpm exclude each other"):
        prepare_table(path, unit="tpm cpm")


def test_what_an_h5ad_says_of_its_log_and_unit_is_taken_together(tmp_path):
    import anndata

    data = anndata.AnnData(np.log1p(SOME.T.to_numpy()), pd.DataFrame(index=list("abc")), pd.DataFrame(index=SOME.index))
    data.uns["log1p"] = {"base": None}
    data.write_h5ad(tmp_path / "m.h5ad")
    with pytest.raises(InputError, match=r"holds ln1p \(the file states it\), of a unit that nothing tells"):
        prepare_table(tmp_path / "m.h5ad")
    data.uns["unit"] = "CPM"
    data.write_h5ad(tmp_path / "m.h5ad")
    table, report = table_of(tmp_path / "m.h5ad")
    assert (table.unit, report["found"]["log"], report["found"]["unit_found_by"]) == (
        "CPM",
        "ln1p",
        "the file states it",
    )


def test_genes_on_both_sides_leave_the_orientation_open(tmp_path):
    square = pd.DataFrame(np.eye(6) * 900.5, index=GENES, columns=[f"ENSG{i:011d}" for i in range(50, 56)])
    path = write(tmp_path / "m_tpm.csv", square.to_csv())
    with pytest.raises(
        InputError, match=r"cannot tell whether genes run .* --orientation genes_in_rows or genes_in_col"
    ):
        prepare_table(path)
    assert prepare_table(path, orientation="rows")[0].genes == GENES


def test_a_mix_of_identifiers_is_asked_about(tmp_path, capsys):
    mapping = write(tmp_path / "map.csv", "Gene,symbol\n" + pairs(SYMBOLS))
    path = write(tmp_path / "m_tpm.csv", FRAME.set_axis([*GENES[:4], *SYMBOLS[4:]]).to_csv())
    flags = ["--input", path, "--mapping", mapping, "--out", tmp_path / "o.csv"]
    assert command(*flags) == 2
    error = capsys.readouterr().err
    assert "4 named by ensembl and 2 named by symbol; state with --id whether all" in error and error.count("\n") == 1
    found = {}
    for kind in ("mixed", "ensembl", "symbol"):
        table, report = table_of(path, mapping=mapping, identifiers=kind)
        found[kind] = (table.genes, report["found"]["identifiers"])
        assert np.array_equal(table.values, VALUES[:, [GENES.index(g) for g in table.genes]])
    assert found["mixed"] == (GENES, "mixed: 4 by ensembl, 2 by symbol")
    assert found["ensembl"] == (GENES[:4], "Ensembl ids with version")
    assert found["symbol"] == (GENES[4:], "symbols, mapped to Ensembl ids")
    write(path, FRAME.set_axis([*SYMBOLS[:4], *GENES[4:]]).to_csv())  # and no mapping
    with pytest.raises(InputError, match=r"2 genes are named by Ensembl id and 4 otherwise \(SFTPC, .*--id ensembl"):
        prepare_table(path)
    assert prepare_table(path, identifiers="ensembl")[0].genes == GENES[4:]


HGNC = "hgnc_id\tsymbol\tname\tlocus_group\talias_symbol\talias_name\tprev_symbol\tentrez_id\tensembl_gene_id\n"


@pytest.fixture
def hgnc(tmp_path):
    """A table as HGNC's complete set: aliases, previous symbols, Entrez ids; an alias of two genes, and one in use."""
    rows = [
        ("SFTPC", "surfactant protein C", "SP-C|PSP-C", "SFTP2", "6440"),
        ("GFAP", "glial fibrillary acidic protein", "FLJ45472", "", "2670"),
        ("ACTB", "actin beta", "TWICE", "", "60"),
        ("TP53", "tumor protein p53", "p53|TWICE", "", "7157"),
        ("XIST", "X inactive", "MYC", "", "7503"),  # an alias that is another gene's symbol
        ("MYC", "MYC proto-oncogene", "c-Myc", "", "4609"),
    ]
    lines = [
        f'HGNC:{i}\t{symbol}\t{name}\tprotein-coding gene\t"{alias}"\t\t"{earlier}"\t{entrez}\t{gene.split(".")[0]}\n'
        for i, ((symbol, name, alias, earlier, entrez), gene) in enumerate(zip(rows, GENES, strict=True))
    ]
    return write(tmp_path / "hgnc_complete_set.txt", HGNC + "".join(lines))


def test_aliases_and_earlier_symbols_name_a_gene(tmp_path, hgnc):
    names = read_mapping(hgnc)
    stems = [gene.split(".")[0] for gene in GENES]
    assert names.symbols == {symbol: [stem] for symbol, stem in zip(SYMBOLS, stems, strict=True)}
    assert names.aliases["SP-C"] == names.aliases["SFTP2"] == [stems[0]] and "MYC" not in names.aliases
    assert names.aliases["TWICE"] == stems[2:4] and names.entrez["7157"] == [stems[3]]

    path = write(tmp_path / "m_tpm.csv", FRAME.set_axis(["SFTP2", "GFAP", "TWICE", "p53", "XIST", "MYC"]).to_csv())
    table, report = table_of(path, mapping=hgnc)
    assert [g for g in stems if g != stems[2]] == table.genes
    assert report["genes"]["mapped_from_aliases"] == {"SFTP2": stems[0], "p53": stems[3]}
    assert report["genes"]["ambiguous"] == ["TWICE"] and report["genes"]["mapped_from_symbols"] == 5
    assert report["found"]["identifiers"] == "symbols, mapped to Ensembl ids (3 by alias)"
    assert table.symbols[stems[0]] == "SFTPC"
    genes = write(tmp_path / "genes.csv", f"Gene\nrna_{GENES[2]}\nrna_{GENES[0]}\n")  # one of the two is wanted
    table, report = table_of(path, mapping=hgnc, genes=genes)
    assert table.genes == [GENES[2], GENES[0]] and np.array_equal(table.values, VALUES[:, [2, 0]])


def test_an_alias_is_set_aside_where_its_gene_has_another_name_in_the_matrix(tmp_path, hgnc):
    path = write(tmp_path / "m_tpm.csv", FRAME.set_axis([*SYMBOLS[:5], "PSP-C"]).to_csv())
    table, report = table_of(path, mapping=hgnc)
    assert report["genes"]["aliases_set_aside"] == ["PSP-C"] and report["genes"]["summed"] == {}
    assert np.array_equal(table.values, VALUES[:, :5])


def test_entrez_ids_are_mapped(tmp_path, hgnc):
    numbers = ["6440", "2670", "60", "7157", "7503", "4609"]
    path = write(tmp_path / "m_tpm.tsv", FRAME.set_axis(numbers).rename_axis("GeneID").to_csv(sep="\t"))
    table, report = table_of(path, mapping=hgnc)
    assert np.array_equal(table.values, VALUES) and report["genes"]["mapped_from_entrez"] == 6
    assert report["found"]["identifiers"] == "Entrez ids, mapped to Ensembl ids"
    assert table.symbols["ENSG00000000001"] == "SFTPC"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_a_column_twice_or_more_is_found_though_pandas_renamed_it(tmp_path, column, places, turned, renamed):
    frame = FRAME.T if turned else FRAME
    order = list(range(frame.shape[1]))
    for place in places:
        order.insert(place, column)
    name, text = frame.columns[column], frame.iloc[:, order].to_csv()
    if renamed:
        text = pd.read_csv(io.StringIO(text), index_col=0).to_csv()
        assert f"{name}.{len(places)}" in text
    path = write(tmp_path / "m_tpm.csv", text)
    gene = name.split(".")[0]
    what = rf"gene {gene} stands {len(places) + 1} times" if turned else rf"samples? {name} (and {name}\.\d:|stands in)"
    with pytest.raises(InputError, match=what):
        prepare_table(path)
    if turned:
        once = prepare_table(path, duplicates="first")[0]
        assert sorted(once.genes) == GENES and np.array_equal(once.aligned(GENES)[0], VALUES)


def test_an_unversioned_id_and_its_renamed_copy_are_one_gene(tmp_path):
    names = [gene.split(".")[0] for gene in GENES[:5]] + ["ENSG00000000002.1"]
    path = write(tmp_path / "m_tpm.csv", FRAME.set_axis(names).T.to_csv())
    with pytest.raises(InputError, match=r"gene ENSG00000000002 stands 2 times \(ENSG00000000002, ENSG00000000002.1\)"):
        prepare_table(path)


def test_rows_that_are_copies_are_not_added_up(tmp_path):
    mapping = write(tmp_path / "map.csv", "Gene,symbol\n" + pairs(SYMBOLS) + f"{GENES[0]},SP5\n")
    frame = pd.concat([FRAME.set_axis(SYMBOLS), FRAME.iloc[[0]].set_axis(["SP5"])])
    path = write(tmp_path / "m_tpm.csv", frame.to_csv())
    with pytest.raises(InputError, match=r"with the same values: copies or parts .* --duplicates first .* or sum"):
        prepare_table(path, mapping=mapping)
    for duplicates, factor, kept in (("first", 1, "first_of_several"), ("sum", 2, "summed")):
        table, report = table_of(path, mapping=mapping, duplicates=duplicates)
        assert np.allclose(table.values[:, 0], factor * VALUES[:, 0]) and np.array_equal(
            table.values[:, 1:], VALUES[:, 1:]
        )
        assert report["genes"][kept] == {"ENSG00000000001": ["SFTPC", "SP5"]}
    frame.iloc[6] *= 2  # other values: parts
    assert np.allclose(
        prepare_table(write(path, frame.to_csv()), mapping=mapping)[0].values[:, 0], 3 * VALUES[:, 0], rtol=1e-5
    )


def test_symbols_among_ensembl_ids_in_columns_are_no_words_about_the_samples(tmp_path):
    mapping = write(tmp_path / "map.csv", "Gene,symbol\n" + pairs(SYMBOLS))
    frame = FRAME.set_axis([*GENES[:4], *SYMBOLS[4:]]).T.assign(pmi=[3, 4, 5, 6])
    path = write(tmp_path / "m_tpm.csv", frame.to_csv())
    with pytest.raises(InputError, match="4 named by ensembl and 2 named by symbol"):
        prepare_table(path, mapping=mapping)
    table, _ = table_of(path, mapping=mapping, identifiers="mixed")
    assert table.genes == GENES and list(table.obs["pmi"]) == ["3", "4", "5", "6"]


def test_a_table_of_our_own_form_holds_tpm_unless_it_or_its_values_say_otherwise(tmp_path):
    frame = SOME.T.rename(columns=lambda gene: f"rna_{gene}").rename_axis("wsi_file_name")
    table, report = table_of(write(tmp_path / "m.csv", frame.to_csv()))
    assert table.unit == "TPM" and "columns named rna_, says so" in report["found"]["unit_found_by"]
    table, report = table_of(write(tmp_path / "m.csv", frame.assign(unit="CPM").to_csv()))
    assert (table.unit, report["found"]["unit_found_by"]) == ("CPM", "the file states it")
    with pytest.raises(InputError, match=r"columns named rna_, says TPM, but profiles sum to 3e\+07"):
        prepare_table(write(tmp_path / "m.csv", (frame * 30).to_csv()))
    assert table_of(write(tmp_path / "m.csv", np.log2(frame + 1).to_csv()))[1]["found"]["log"] == "log2p1"


def test_names_that_a_spreadsheet_turned_into_dates_are_said(tmp_path, hgnc, capsys):
    dates = ["1-Mar", "Sep-02", "2026-03-01 00:00:00", "3/1/2026"]
    frame = pd.concat([FRAME.set_axis(SYMBOLS), FRAME.iloc[:4].set_axis(dates), FRAME.iloc[:1].set_axis(["MARCH-X"])])
    path = write(tmp_path / "m_tpm.csv", frame.to_csv())
    assert command("--input", path, "--mapping", hgnc, "--out", tmp_path / "o.csv") == 0
    out = capsys.readouterr().out
    assert "genes unmapped: 5 (1-Mar, Sep-02, 2026-03-01 00:00:00 and 2 more)" in out
    assert "genes turned into dates by a spreadsheet: 4 (1-Mar, " in out


def test_the_first_of_two_is_never_the_one_that_a_program_renamed(tmp_path):
    mapping = write(tmp_path / "map.csv", "Gene,symbol\n" + pairs(SYMBOLS))
    frame = pd.concat([FRAME.iloc[[0]].set_axis(["SFTPC.1"]) * 2, FRAME.set_axis(SYMBOLS)])
    path = write(tmp_path / "m_tpm.csv", frame.to_csv())
    table, report = table_of(path, mapping=mapping, duplicates="first")
    assert table.genes == GENES and np.array_equal(table.values, VALUES)
    assert report["genes"]["first_of_several"] == {"ENSG00000000001": ["SFTPC", "SFTPC.1"]}


def test_the_mapper_takes_the_first_of_several_by_itself_as_spots_need_it():
    mapper, values = GeneMapper(None, GeneNames(), None), np.arange(6.0).reshape(2, 3)
    taken, genes, about = mapper.collect("m", values, [GENES[0], GENES[1], GENES[0]], "first")
    assert taken.tolist() == [[0, 1], [3, 4]] and genes == GENES[:2]
    assert about["summed"] == {} and about["first_of_several"] == {"ENSG00000000001": [GENES[0]] * 2}
