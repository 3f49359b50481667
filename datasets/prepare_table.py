"""From a foreign matrix to an expression table: one gene per column, one row per sample, linear, matched to slides.

Rules, each counted and named in the report:
- genes match without version, `_PAR_Y` kept apart; rows that mean the same gene are summed in linear units (two
  symbols of one Ensembl id, two versions of it), but the very same Ensembl id twice is refused, and so are rows that
  are copies of one another (`duplicates`);
- a symbol of several Ensembl ids is used where exactly one of them is among the genes to keep, else left out; an alias
  is used where no other name of its gene is in the matrix;
- a gene of the list that the matrix lacks is left out of the table, never filled: a model takes its training mean;
- a sample twice is refused; a logged matrix is brought back to linear; counts stay counts unless converted;
- with slides, only samples that have one are kept (`keep_unmatched` keeps the others, without slide).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import InputError, shorten
from datasets.conversion import convert_values
from datasets.expression import ExpressionTable
from datasets.gene_lengths import read_gene_lengths
from datasets.gene_lists import GeneList, GeneNames, read_gene_list, read_mapping
from datasets.gene_mapper import GeneMapper
from datasets.genes import PREFIX, gene_key, is_tally, renamed_from
from datasets.keys import known_donor, match_samples, site_of, slide_key, slug
from datasets.matrices import Matrix, read_matrix
from datasets.sample_sheets import donors_sex, read_sexes, read_sheet, read_slides, samples_of_tissues
from datasets.units import LOGGED_BELOW, UNITS, check_unit, guess_unit, to_linear


def prepare_table(
    path: str | Path,
    *,
    attributes: str | None = None,
    phenotypes: str | None = None,
    tissue: Sequence[str] = (),
    genes: str | GeneList | None = None,
    biotype: str | None = None,
    mapping: str | None = None,
    slides: str | None = None,
    unit: str | None = None,
    orientation: str | None = None,
    identifiers: str | None = None,
    duplicates: str | None = None,
    missing: str = "refuse",
    convert: str | None = None,
    gene_lengths: str | None = None,
    keep_unmatched: bool = False,
) -> tuple[ExpressionTable, dict[str, Any]]:
    """Return the table made of the matrix at `path`, and the report of what was found, mapped, summed and left out.

    `genes` are those to keep: a file, or a list at hand (a checkpoint's). `unit` is of datasets.units.UNITS (one, or a
    unit and its log: "tpm log2p1"), `orientation` "rows" or "columns" (where genes run), `identifiers` of IDENTIFIERS,
    `duplicates` "sum", "first" or "refuse", `missing` "refuse" or "drop", `convert` "tpm" (from FPKM, or from counts
    with `gene_lengths`) or "cpm" (from counts); None finds out or follows the rules above. Small files are read first,
    the matrix last. InputError asks where the evidence leaves a choice.
    """
    check_unit(unit)
    if biotype and not isinstance(genes, str | Path):
        raise InputError(f"--biotype {biotype} needs a GTF; name it with --genes")
    if gene_lengths and convert != "tpm":
        raise InputError(f"--gene_lengths {gene_lengths} makes TPM of counts; add --convert tpm, or leave it out")
    wanted = read_gene_list(genes, biotype) if isinstance(genes, str | Path) else genes
    names = read_mapping(mapping) if mapping else wanted.names if wanted else GeneNames()
    lengths = read_gene_lengths(gene_lengths) if gene_lengths else None
    sheet = read_sheet(attributes, "SAMPID") if attributes else None
    if tissue and sheet is None:
        raise InputError(f"--tissue {shorten(tissue)} needs the samples' tissues; name the file with --attributes")
    tissue_of = samples_of_tissues(attributes, sheet, tissue) if sheet is not None else {}
    sexes = read_sexes(phenotypes) if phenotypes else None
    slide_names = read_slides(slides) if slides else None

    mapper = GeneMapper(wanted, names, identifiers)
    in_file: list[str] = []  # all of the file's genes, wanted or not
    # TPM are shares of all genes; and what is a copy of any gene is to be out of the sums
    needs_all = lengths is not None or (convert is not None and duplicates == "first")

    def wanted_gene(name: str) -> bool:
        in_file.append(name)
        return needs_all or mapper.wants(name)

    matrix = read_matrix(
        path,
        orientation,
        [*names.symbols, *names.aliases],
        wanted_gene=wanted_gene,
        wanted_sample=(lambda name: sample_name(name) in tissue_of) if tissue else (lambda name: True),
        missing=missing,
    )
    if not matrix.samples:
        raise InputError(
            f"{path}: none of its {matrix.facts['samples_in_file']} samples is of tissue {shorten(tissue)} by "
            f"{attributes}; files of the same release were expected"
        )
    _refuse_doubled_samples(path, matrix)
    tallies = _set_tallies_aside(matrix)
    mapper.refuse_unmapped(path, matrix.genes)
    named_by = mapper.identify(path, in_file, identifiers)
    ours = sum(name.startswith(PREFIX) for name in in_file) > len(in_file) / 2
    found = guess_unit(str(path), matrix.stats, unit, _own_unit(matrix), matrix.find_negative, ours)
    repeats = _take_repeats_out(matrix, mapper) if duplicates == "first" else {}
    unit_name, conversion, length_report = convert_values(path, matrix, found, convert, lengths, mapper)
    values, kept, gene_report = mapper.collect(path, matrix.values, matrix.genes, duplicates)
    matrix.values = values  # the other copy is let go: more than a gigabyte at GTEx's size

    obs = _describe(matrix, tissue_of, sexes)
    table = ExpressionTable(values, kept, obs, unit_name, str(path), mapper.symbols_of(matrix.genes, matrix.symbols))
    table, slide_report = _match(table, slide_names, slides, keep_unmatched, tissue)
    report = {
        "input": str(path),
        "found": {
            k: v
            for k, v in matrix.facts.items()
            if k not in ("samples_in_file", "genes_in_file", "genes_lacking_values")
        }
        | {
            "identifiers": named_by,
            "unit": found.name,
            "log": found.log,
            "unit_found_by": found.why,
        },
        "unit_of_table": unit_name,
        "conversion": conversion,
        "gene_lengths": length_report,
        "samples": {
            "in_file": matrix.facts["samples_in_file"],
            "of_tissue": len(matrix.samples) if tissue else None,
            "in_table": len(table),
            "without_attributes": [s for s in matrix.samples if s not in tissue_of] if sheet is not None else [],
            "without_phenotypes": int((obs["sex"] == "").sum()) if sexes is not None else None,
        },
        "genes": {"in_file": matrix.facts["genes_in_file"], "in_table": len(kept)}
        | gene_report
        | {
            "first_of_several": {key: repeats[key] for key in map(gene_key, kept) if key in repeats},
            "lacking_values": matrix.facts.get("genes_lacking_values", []),
            "rows_of_no_gene": tallies,
            "filled": [],
        },
        "slides": slide_report,
    }
    return table, report


def summarise(report: dict[str, Any]) -> str:
    """Return the report in a few lines: what was found, kept, summed and left out."""
    found, samples, genes, slides = (report[key] for key in ("found", "samples", "genes", "slides"))
    log = f", {found['log']} undone" if found["log"] else ""
    lines = [
        f"{report['input']}: {found['format']}, {found['orientation']} ({found['orientation_found_by']})",
        f"unit: {found['unit']}{log} ({found['unit_found_by']})",
        f"identifiers: {found['identifiers']}",
        f"samples: {samples['in_table']} of {samples['in_file']} in the table"
        + (f", {samples['of_tissue']} of the tissue" if samples["of_tissue"] is not None else ""),
        f"genes: {genes['in_table']} of {genes['in_file']} in the table"
        + (f", {genes['wanted']} wanted, {len(genes['missing'])} missing" if genes["wanted"] is not None else ""),
    ]
    counts = {
        "summed": genes["summed"],
        "of which the first row was taken": genes["first_of_several"],
        "known by alias": genes["mapped_from_aliases"],
        "whose alias was set aside, another name of the gene being there": genes["aliases_set_aside"],
        "unmapped": genes["unmapped"],
        "turned into dates by a spreadsheet": genes["spoilt_by_a_spreadsheet"],
        "ambiguous": genes["ambiguous"],
        "left out for lack of values": genes["lacking_values"],
        "without a length, left out": (report["gene_lengths"] or {}).get("genes_without_length", []),
    }
    lines += [f"genes {what}: {len(names)} ({shorten(names, 3)})" for what, names in counts.items() if names]
    if slides is not None:
        lines.append(
            f"slides: {slides['matched']} of {slides['given']} matched, "
            f"{len(slides['matched_by_donor_only'])} of them by donor only; "
            f"{len(slides['unmatched'])} samples and slides without partner"
        )
    if report["conversion"]:
        lengths = report["gene_lengths"]
        said = f"; {lengths['gene_lengths']}: {lengths['length_is']}" if lengths else ""
        lines.append(f"converted to {report['unit_of_table']}: {report['conversion']}{said}")
    if report["unit_of_table"] == "counts":
        lines.append("note: counts are kept as counts; --convert tpm --gene_lengths GTF, or --convert cpm, scales them")
    return "\n".join(lines)


def sample_name(name: str) -> str:
    """Return a sample's name with the dashes that R turned into dots: "GTEX.X.0626.SM.1" -> "GTEX-X-0626-SM-1"."""
    name = name.strip()
    return name.replace(".", "-") if name[:5].upper() in ("GTEX.", "TCGA.") else name


def _set_tallies_aside(matrix: Matrix) -> list[str]:
    """Take rows that count reads of no gene out of `matrix`, from its values and its sums; return their names."""
    tallies = np.array([is_tally(name) for name in matrix.genes], bool)
    if not tallies.any():
        return []
    names = [name for name, tally in zip(matrix.genes, tallies, strict=True) if tally]
    _take_out(matrix, tallies)
    matrix.facts["genes_in_file"] -= len(names)
    return names


def _take_repeats_out(matrix: Matrix, mapper: GeneMapper) -> dict[str, list[str]]:
    """Take all but the first row of each gene out of `matrix`; return gene key -> its rows, the first one too."""
    several = mapper.repeats(matrix.genes)
    names = {key: [matrix.genes[j] for j in rows] for key, rows in several.items()}
    if several:
        later = np.zeros(len(matrix.genes), bool)
        later[[j for rows in several.values() for j in rows[1:]]] = True
        _take_out(matrix, later)
    return names


def _take_out(matrix: Matrix, rows: np.ndarray) -> None:
    """Take `rows` (genes,) bool out of `matrix`, from its values, its names and its sums, with and without a log."""
    taken = matrix.values[:, rows]
    matrix.stats.n_genes -= int(rows.sum())
    matrix.stats.totals -= taken.sum(1, dtype=np.float64)
    if matrix.stats.highest < LOGGED_BELOW:  # else they were not gathered
        for log, totals in matrix.stats.unlogged.items():
            totals -= to_linear(taken, log).sum(1, dtype=np.float64)
    matrix.values = matrix.values[:, ~rows]
    matrix.genes = [name for name, out in zip(matrix.genes, rows, strict=True) if not out]


def _own_unit(matrix: Matrix) -> str | None:
    """Return the unit that the file itself states, None where it states none that is known."""
    said = {matrix.facts.get("unit_hint"), *map(str, matrix.words.get("unit", []))} - {None}
    unit = next(iter(said)).lower() if len(said) == 1 else ""
    return unit if unit and all(word in UNITS for word in unit.split()) else None


def _describe(matrix: Matrix, tissue_of: dict[str, str], sexes: pd.DataFrame | None) -> pd.DataFrame:
    """Return obs of the matrix's samples. Tissue: the attributes', else the file's own, else "" (told by the stem)."""
    words = matrix.words
    if matrix.facts.get("id_column") == "wsi_file_name":
        words = words.assign(wsi_file_name=matrix.samples)
    own_tissue = next((words[c] for c in ("tissue", "SMTSD") if c in words), [""] * len(matrix.samples))
    own_donor = words["donor"] if "donor" in words else [""] * len(matrix.samples)
    slide = words["wsi_file_name"] if "wsi_file_name" in words else [""] * len(matrix.samples)
    obs = pd.DataFrame(
        {
            "wsi_file_name": list(slide),
            "donor": [known_donor(s) or str(d) or slide_key(s) for s, d in zip(matrix.samples, own_donor, strict=True)],
            "tissue": [tissue_of.get(s) or slug(t) for s, t in zip(matrix.samples, own_tissue, strict=True)],
        },
        index=pd.Index(matrix.samples, dtype=object),
        dtype=object,
    )
    if sexes is not None:
        obs = obs.join(donors_sex(matrix.samples, obs["donor"], sexes))
    return obs.assign(**{c: words[c].to_numpy() for c in words if c not in (*obs.columns, "", "sample", "unit")})


def _match(
    table: ExpressionTable, names: list[str] | None, where: str | None, keep_unmatched: bool, tissue: Sequence[str]
) -> tuple[ExpressionTable, dict[str, Any] | None]:
    """Give each sample its slide; leave out those without, unless they are to be kept."""
    if names is None:
        return table, None
    one_tissue = table.obs["tissue"].nunique() <= 1
    pairs, left_over = match_samples(table.obs.index, names, one_tissue)
    if not pairs:
        raise InputError(
            f"{where}: none of its {len(names)} slides belongs to one of {len(table)} samples (slides such as "
            f"{shorten(names, 2)}, samples such as {shorten(table.obs.index, 2)}); names with the same donor were "
            "expected; check --slides and --tissue"
        )
    table.obs["wsi_file_name"] = [pairs.get(sample, "") for sample in table.obs.index]
    report = {
        "given": len(names),
        "matched": len(pairs),
        "matched_by_donor_only": sorted(s for s, slide in pairs.items() if site_of(s) != site_of(slide)),
        "unmatched": [{"name": name, "reason": reason} for name, reason in left_over],
        "unmatched_samples_kept": keep_unmatched,
    }
    if keep_unmatched:
        return table, report
    return table.rows(np.array([sample in pairs for sample in table.obs.index])), report


def _refuse_doubled_samples(path: str | Path, matrix: Matrix) -> None:
    """Give the samples their names; InputError where one stands twice, or once more with the ".1" of pandas and R."""
    present = set(matrix.samples)
    for name in matrix.samples:
        if (stem := renamed_from(name, present)) is not None:
            raise InputError(
                f"{path}: samples {stem} and {name}: pandas and R so name the second of two columns {stem}; each "
                f"sample was expected once; remove one if they are the same, else rename it ({name.replace('.', '_')})"
            )
    matrix.samples = [sample_name(name) for name in matrix.samples]
    names = pd.Index(matrix.samples)
    if names.has_duplicates:
        doubled = names[names.duplicated()].unique()
        raise InputError(
            f"{path}: sample {doubled[0]} stands {(names == doubled[0]).sum()} times ({len(doubled)} such), each "
            "sample was expected once; remove or rename the repeats"
        )
