"""From a foreign matrix to an expression table: one gene per column, one row per sample, linear, matched to slides.

Rules, each counted and named in the report:
- genes match without version, `_PAR_Y` kept apart; rows that mean the same gene are summed in linear units (two
  symbols of one Ensembl id, two versions of it), but the very same Ensembl id twice is refused (`duplicates`);
- a symbol of several Ensembl ids is used where exactly one of them is among the genes to keep, else left out;
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
from datasets.expression import ExpressionTable
from datasets.gene_lists import read_gene_list, read_mapping
from datasets.gene_mapper import GeneMapper
from datasets.keys import known_donor, match_samples, site_of, slide_key, slug
from datasets.matrices import Matrix, read_matrix
from datasets.sample_sheets import donors_sex, read_sexes, read_sheet, read_slides, samples_of_tissues
from datasets.units import UNITS, Unit, guess_unit, to_linear


def prepare_table(
    path: str | Path,
    *,
    attributes: str | None = None,
    phenotypes: str | None = None,
    tissue: Sequence[str] = (),
    genes: str | None = None,
    biotype: str | None = None,
    mapping: str | None = None,
    slides: str | None = None,
    unit: str | None = None,
    orientation: str | None = None,
    identifiers: str | None = None,
    duplicates: str | None = None,
    missing: str = "refuse",
    convert: str | None = None,
    keep_unmatched: bool = False,
) -> tuple[ExpressionTable, dict[str, Any]]:
    """Return the table made of the matrix at `path`, and the report of what was found, mapped, summed and left out.

    `unit` is one of datasets.units.UNITS, `orientation` "rows" or "columns" (where genes run), `identifiers` "ensembl"
    or "symbol", `duplicates` "sum" or "refuse", `missing` "refuse" or "drop", `convert` "tpm" (from FPKM) or "cpm"
    (from counts); None finds out or follows the rules above. Small files are read first, the matrix last.
    """
    wanted = read_gene_list(genes, biotype) if genes else None
    if biotype and not genes:
        raise InputError(f"--biotype {biotype} needs a GTF; name it with --genes")
    symbols = read_mapping(mapping) if mapping else wanted.symbols if wanted else {}
    sheet = read_sheet(attributes, "SAMPID") if attributes else None
    if tissue and sheet is None:
        raise InputError(f"--tissue {shorten(tissue)} needs the samples' tissues; name the file with --attributes")
    tissue_of = samples_of_tissues(attributes, sheet, tissue) if sheet is not None else {}
    sexes = read_sexes(phenotypes) if phenotypes else None
    slide_names = read_slides(slides) if slides else None

    mapper = GeneMapper(wanted, symbols, identifiers)
    matrix = read_matrix(
        path,
        orientation,
        symbols,
        wanted_gene=mapper.wants,
        wanted_sample=(lambda name: sample_name(name) in tissue_of) if tissue else (lambda name: True),
        missing=missing,
    )
    matrix.samples = [sample_name(name) for name in matrix.samples]
    if not matrix.samples:
        raise InputError(
            f"{path}: none of its {matrix.facts['samples_in_file']} samples is of tissue {shorten(tissue)} by "
            f"{attributes}; files of the same release were expected"
        )
    _refuse_doubled_samples(path, matrix)
    found = guess_unit(str(path), matrix.stats, unit, _own_unit(matrix), matrix.find_negative)
    mapper.refuse_unmapped(path, matrix.genes)
    values, names, gene_report = mapper.collect(path, to_linear(matrix.values, found.log), matrix.genes, duplicates)
    matrix.values = values  # the other copy is let go: more than a gigabyte at GTEx's size
    unit_name, convert_note = _convert(values, matrix, found, convert, path)

    obs = _describe(matrix, tissue_of, sexes)
    table = ExpressionTable(values, names, obs, unit_name, str(path), mapper.symbols_of(matrix.genes, matrix.symbols))
    table, slide_report = _match(table, slide_names, slides, keep_unmatched, tissue)
    report = {
        "input": str(path),
        "found": {
            k: v
            for k, v in matrix.facts.items()
            if k not in ("samples_in_file", "genes_in_file", "genes_lacking_values")
        }
        | {
            "identifiers": mapper.describe(matrix.genes),
            "unit": found.name,
            "log": found.log,
            "unit_found_by": found.why,
        },
        "unit_of_table": unit_name,
        "conversion": convert_note,
        "samples": {
            "in_file": matrix.facts["samples_in_file"],
            "of_tissue": len(matrix.samples) if tissue else None,
            "in_table": len(table),
            "without_attributes": [s for s in matrix.samples if s not in tissue_of] if sheet is not None else [],
            "without_phenotypes": int((obs["sex"] == "").sum()) if sexes is not None else None,
        },
        "genes": {"in_file": matrix.facts["genes_in_file"], "in_table": len(names)}
        | gene_report
        | {"lacking_values": matrix.facts.get("genes_lacking_values", []), "filled": []},
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
        "unmapped": genes["unmapped"],
        "ambiguous": genes["ambiguous"],
        "left out for lack of values": genes["lacking_values"],
    }
    lines += [f"genes {what}: {len(names)} ({shorten(names, 3)})" for what, names in counts.items() if names]
    if slides is not None:
        lines.append(
            f"slides: {slides['matched']} of {slides['given']} matched, "
            f"{len(slides['matched_by_donor_only'])} of them by donor only; "
            f"{len(slides['unmatched'])} samples and slides without partner"
        )
    if report["unit_of_table"] == "counts":
        lines.append("note: counts are kept as counts; --convert cpm divides each profile by its sum, x 10^6")
    return "\n".join(lines)


def sample_name(name: str) -> str:
    """Return a sample's name with the dashes that R turned into dots: "GTEX.X.0626.SM.1" -> "GTEX-X-0626-SM-1"."""
    name = name.strip()
    return name.replace(".", "-") if name[:5].upper() in ("GTEX.", "TCGA.") else name


def _own_unit(matrix: Matrix) -> str | None:
    """Return the unit that the file itself states, None where it states none that is known."""
    said = {matrix.facts.get("unit_hint"), *map(str, matrix.words.get("unit", []))} - {None}
    unit = next(iter(said)).lower() if len(said) == 1 else None
    return unit if unit in UNITS else None


def _convert(
    values: np.ndarray, matrix: Matrix, found: Unit, convert: str | None, path: str | Path
) -> tuple[str, str | None]:
    """Scale `values` in place to sums of one million over all genes of the file; return (unit, what was done)."""
    if convert is None:
        return found.name, None
    if (found.name, convert) not in (("FPKM", "tpm"), ("counts", "cpm")):
        raise InputError(
            f"{path}: is in {found.name}; --convert tpm takes FPKM and --convert cpm takes counts "
            "(counts need transcript lengths to become TPM); leave --convert out, or state the unit with --unit"
        )
    totals = matrix.stats.totals if found.log is None else matrix.stats.unlogged.get(found.log)
    if totals is None or not (totals > 0).all():
        raise InputError(f"{path}: a profile without a positive sum cannot be converted; remove it or --convert")
    values *= (1e6 / totals)[:, None].astype(np.float32)
    return convert.upper(), f"{found.name} / sum over all {matrix.stats.n_genes} genes of the file x 10^6"


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
    names = pd.Index(matrix.samples)
    if names.has_duplicates:
        doubled = names[names.duplicated()].unique()
        raise InputError(
            f"{path}: sample {doubled[0]} stands {(names == doubled[0]).sum()} times ({len(doubled)} such), each "
            "sample was expected once; remove or rename the repeats"
        )
