"""Expression tables: samples x genes, linear units, one row per sample with its slide, donor and tissue.

On disk a table is `.h5ad` (AnnData: obs, var named by versioned Ensembl id with `symbol`, uns `unit` and `source`) or
the reference's CSV. Anything else is turned into one of these by `prepare_data.py expression` or `spots`.

A column `assigned_split` (train, val or test; empty: none) settles a row's split; the others follow their donor's hash.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from common.config import DataSettings
from common.errors import InputError, did_you_mean, shorten, warn
from datasets.genes import gene_key, is_ensembl, twins
from datasets.h5ad import open_h5ad, write_h5ad
from datasets.keys import known_donor, slide_key, slug, split_of
from datasets.leaks import refuse_torn_donors
from datasets.reference_csv import read_reference_csv, write_reference_csv
from datasets.table_cache import load_cache, save_cache
from datasets.units import LOGGED_BELOW

SLIDE_COLUMNS = ("wsi_file_name", "wsi_file_names")  # the published tables, and the published classifier's
SPLITS = ("train", "val", "test")
INDEX_COLUMNS = ("", "Unnamed: 0")  # what pandas makes of an index; names only where they are not row numbers
NAME_COLUMNS = ("sample", "SAMPID", "sample_id", "Sample", *SLIDE_COLUMNS, *INDEX_COLUMNS)


@dataclass
class ExpressionTable:
    """Samples x genes. Checked when read: finite, >= 0, sample names unique, no gene twice (versions ignored)."""

    values: np.ndarray  # (samples, genes) float32, linear units
    genes: list[str]  # Ensembl ids, with version where known, without `rna_`
    obs: pd.DataFrame  # index: sample names; columns wsi_file_name ("" where no slide), donor, tissue (slug), ...
    unit: str = "TPM"
    source: str = ""
    symbols: dict[str, str] = field(default_factory=dict)  # Ensembl id without version -> symbol, where known

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, chosen: Sequence[str] | Sequence[int] | np.ndarray) -> "ExpressionTable":
        """Return the table of the chosen rows: names (as `find` takes them), row numbers, or one bool per row."""
        chosen = list(chosen) if not isinstance(chosen, np.ndarray) else chosen
        if len(chosen) and isinstance(chosen[0], str):
            chosen = [self.find(name) for name in chosen]
        index = np.asarray(chosen)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return replace(self, values=self.values[index], obs=self.obs.iloc[index])

    def find(self, name: str) -> int:
        """Return the row of a sample or of a slide (with or without .svs). InputError with the nearest names."""
        name = str(name)
        if not hasattr(self, "_row_of"):
            rows: dict[str, int] = {}
            for column in (self.obs.index, self.obs["wsi_file_name"]):
                for spelling in (column, map(slide_key, column)):
                    for row, known in enumerate(spelling):
                        if known:
                            rows.setdefault(str(known), row)
            self._row_of = rows
        row = self._row_of.get(name, self._row_of.get(slide_key(name)))
        if row is None:
            raise InputError(
                f"{self.source}: no sample or slide named {name} among {len(self)}"
                f"{did_you_mean(name, self._row_of)}; name one of the table's"
            )
        return row

    def aligned(
        self, genes: Sequence[str], min_coverage: float = 0.8, unit: str | None = None
    ) -> tuple[np.ndarray, float]:
        """Return (values (samples, len(genes)) float32 in the order of `genes`, share of `genes` that the table has).

        Genes match without version. A gene that the table lacks is NaN, never 0. InputError where the share is below
        `min_coverage`. `unit` is what the reader expects: counts where another unit is expected, or the reverse, are an
        InputError, since they differ by orders of magnitude; between TPM, FPKM and CPM there is a warning.
        """
        if unit is not None:
            refuse_other_unit(self.source, self.unit, unit)
        column_of = {gene_key(gene): j for j, gene in enumerate(self.genes)}
        columns = np.array([column_of.get(gene_key(gene), -1) for gene in genes], np.int64)
        present = columns >= 0
        coverage = float(present.mean()) if len(genes) else 1.0
        if coverage < min_coverage:
            missing = [gene for gene, here in zip(genes, present, strict=True) if not here]
            raise InputError(
                f"{self.source}: has {present.sum()} of the {len(genes)} expected genes ({coverage:.1%}), at least "
                f"{min_coverage:.0%} were expected; missing {shorten(missing, 3)}; its own genes are named like "
                f"{shorten(self.genes, 2)}; make the table with the same --genes, or lower min_gene_coverage"
            )
        if present.all():
            as_it_is = len(columns) == len(self.genes) and (np.diff(columns) == 1).all()
            return self.values if as_it_is else self.values[:, columns], coverage
        values = np.full((len(self), len(genes)), np.nan, np.float32)
        values[:, present] = self.values[:, columns[present]]
        return values, coverage


def read_expression(path: str | Path, tissue: str | None = None) -> ExpressionTable:
    """Read a table: `.h5ad`, or the reference's CSV (through the binary cache that the first reading leaves beside it).

    `tissue` names the tissue of a table that has no column `tissue`; without it the file's stem does. Profiles without
    slide (no column wsi_file_name) get wsi_file_name "" and, where no column names them, are <stem>_0, <stem>_1...
    InputError names the line and column of whatever is wrong.
    """
    path = Path(path)
    if path.suffix == ".h5ad":
        values, genes, words, unit, symbols = _read_h5ad(path)
    else:
        parsed = load_cache(path) if path.is_file() else None
        if parsed is None:
            before = path.stat() if path.is_file() else None
            parsed = read_reference_csv(path)
            save_cache(path, before, parsed)
        (values, genes, words), symbols = parsed, {}
        unit = _only_unit(path, words)
    obs = _describe(path, words, tissue)
    if len(genes) >= 1000 and len(values) and float(values.max()) < LOGGED_BELOW:
        warn(
            f"{path}: no value above {LOGGED_BELOW:g} in {len(genes)} genes: the table looks logged, linear {unit} is "
            "expected; if so, make it again with `prepare_data.py expression --unit log2p1` (or another base)"
        )
    return ExpressionTable(values, genes, obs, unit, str(path), symbols)


def write_expression(table: ExpressionTable, path: str | Path) -> None:
    """Write `table` as .h5ad or as the reference's CSV (.csv), by the suffix of `path`; whole or not at all."""
    path = Path(path)
    words = table.obs.astype(str)
    if path.suffix == ".csv":
        words = words.drop(columns="wsi_file_name") if not any(words["wsi_file_name"]) else words
        if "wsi_file_name" not in words or list(words.index) != list(words["wsi_file_name"]):
            words.insert(int("wsi_file_name" in words), "sample", table.obs.index.astype(str))
        if table.unit != "TPM":
            words["unit"] = table.unit
        write_reference_csv(path, table.values, table.genes, words)
    elif path.suffix == ".h5ad":
        symbols = [table.symbols.get(gene_key(gene), "") for gene in table.genes]
        var = pd.DataFrame({"symbol": symbols}, index=pd.Index(table.genes, dtype=object))
        write_h5ad(path, table.values, words, var, {"unit": table.unit, "source": table.source})
    else:
        raise InputError(f"{path}: tables are written as .csv or .h5ad; name the output accordingly")


def refuse_other_unit(source: str, unit: str, expected: str) -> None:
    """InputError where one of the units is counts and the other is not; a warning where they differ otherwise."""
    if unit.lower() == expected.lower():
        return
    message = f"{source or 'the table'}: is in {unit}, {expected} was expected"
    remedy = "`prepare_data.py expression`: --convert tpm (from FPKM) or cpm (from counts), --unit where it is misnamed"
    if "counts" in (unit.lower(), expected.lower()):
        raise InputError(f"{message}; make the table again with {remedy}")
    warn(f"{message}; gene lengths or totals are treated otherwise, so numbers shift; see {remedy}")


def read_cohort_tables(settings: DataSettings) -> ExpressionTable:
    """Read all tables of `settings.path_csv` as one: same genes in any order, versions ignored, order of the first.

    obs has besides the tables' columns: tissue (column `tissue`, else settings.tissues, else the file's stem; a slug),
    table (which of path_csv), split ("train", "val" or "test", as `splits_of` says). InputError where tables differ in
    genes or unit, share a sample, hold fewer than `min_gene_coverage` of `rna_features` genes, or assign a split that
    is none, or several to one donor.
    """
    if not settings.path_csv:
        raise InputError("no expression table: set path_csv in the config, a list of .csv or .h5ad files")
    if settings.tissues and len(settings.tissues) != len(settings.path_csv):
        raise InputError(
            f"tissues has {len(settings.tissues)} names for the {len(settings.path_csv)} tables of path_csv; "
            "one per table was expected, in the same order"
        )
    tissues = settings.tissues or [None] * len(settings.path_csv)
    tables = [read_expression(path, tissue) for path, tissue in zip(settings.path_csv, tissues, strict=True)]
    first = tables[0]
    for table in tables[1:]:
        _refuse_other_genes(first, table)
    values = [first.values, *(table.aligned(first.genes, 1.0)[0] for table in tables[1:])]
    parts = [table.obs.assign(table=number) for number, table in enumerate(tables)]
    obs = pd.concat(parts).fillna("") if len(parts) > 1 else parts[0]
    _refuse_shared_samples(tables)
    obs["split"] = splits_of(obs, settings.split_seed, shorten(settings.path_csv))
    if expected := settings.rna_features:
        if len(first.genes) < settings.min_gene_coverage * expected:
            raise InputError(
                f"{first.source}: {len(first.genes)} genes, at least {settings.min_gene_coverage:.0%} of rna_features "
                f"= {expected} were expected; use the table of all genes, or correct rna_features in the config"
            )
        if len(first.genes) != expected:
            warn(f"{first.source}: {len(first.genes)} genes, the config's rna_features says {expected}")
    stacked = np.concatenate(values) if len(values) > 1 else values[0]
    return ExpressionTable(stacked, first.genes, obs, first.unit, ", ".join(map(str, settings.path_csv)), first.symbols)


def splits_of(obs: pd.DataFrame, split_seed: int, source: str = "") -> list[str]:
    """Return each row's split: its `assigned_split` where obs has the column and a word in it, else its donor's hash.

    `source` names the table in the InputError about a word that is none of train, val, test, or about a donor whose
    rows are in several splits.
    """
    assigned = [str(word).strip() for word in obs["assigned_split"]] if "assigned_split" in obs else [""] * len(obs)
    for name, word in zip(obs.index, assigned, strict=True):
        if word and word not in SPLITS:
            raise InputError(
                f"{source or 'the table'}: row {name}, column assigned_split: {word!r}, one of {', '.join(SPLITS)} or "
                "nothing was expected; correct it"
            )
    donors = obs["donor"].astype(str)
    splits = [word or split_of(donor, split_seed) for word, donor in zip(assigned, donors, strict=True)]
    refuse_torn_donors(obs, splits, source)
    return splits


def _read_h5ad(path: Path) -> tuple[np.ndarray, list[str], pd.DataFrame, str, dict[str, str]]:
    data = open_h5ad(path)
    if "log1p" in data.uns:
        raise InputError(f"{path}: holds logged values (uns['log1p']); convert it with `prepare_data.py expression`")
    genes = [str(gene) for gene in data.var_names]
    if not any(map(is_ensembl, genes)):
        raise InputError(
            f"{path}: no Ensembl ids among its genes (found {shorten(genes, 3)}); convert it with "
            "`prepare_data.py expression --input`"
        )
    if pairs := twins(genes):
        raise InputError(f"{path}: {pairs[0][0]} and {pairs[0][1]} are the same gene, expected once; remove one")
    values = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    values = np.ascontiguousarray(values, np.float32)
    if values.size and not (values.min() >= 0 and np.isfinite(values.max())):
        row, column = np.argwhere(~(np.isfinite(values) & (values >= 0)))[0]
        raise InputError(
            f"{path}: sample {data.obs_names[row]}, gene {genes[column]}: {values[row, column]}, a finite number of at "
            "least 0 was expected; mend the file, or make it again with `prepare_data.py expression`"
        )
    words = data.obs.astype(object).where(data.obs.notna(), "").astype(str)
    words.insert(0, "sample", data.obs_names.astype(str)) if "sample" not in words else None
    named = data.var["symbol"].astype(object).fillna("").astype(str) if "symbol" in data.var else []
    symbols = {gene_key(gene): symbol for gene, symbol in zip(genes, named, strict=False) if symbol}
    return values, genes, words.reset_index(drop=True), str(data.uns.get("unit", "TPM")), symbols


def _only_unit(path: Path, words: pd.DataFrame) -> str:
    units = sorted(set(words["unit"])) if "unit" in words else ["TPM"]
    if len(units) != 1:
        raise InputError(f"{path}: column unit holds {shorten(units)}; one unit per table was expected")
    return units[0]


def _describe(path: Path, words: pd.DataFrame, tissue: str | None) -> pd.DataFrame:
    """Return obs: sample names, wsi_file_name, donor, tissue, then the other columns."""
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    slide_column = next((c for c in SLIDE_COLUMNS if c in words), None)
    named_by = next((c for c in NAME_COLUMNS if c in words and not _is_row_number(c, words[c])), None)
    names = [str(n).strip() for n in words[named_by]] if named_by is not None else []
    names = names or [f"{stem}_{i}" for i in range(len(words))]
    slides = [str(n).strip() for n in words[slide_column]] if slide_column else [""] * len(words)
    for what, column in (("sample", names), ("slide", [s for s in slides if s])):
        if doubled := pd.Index(column)[pd.Index(column).duplicated()].unique().tolist():
            lines = [i + 2 for i, n in enumerate(names if what == "sample" else slides) if n == doubled[0]]
            raise InputError(
                f"{path}: {what} {doubled[0]} stands on lines {shorten(lines)}, each {what} was expected once "
                f"({len(doubled)} such); keep one line of each"
            )
    if "" in names:
        raise InputError(f"{path}: line {names.index('') + 2} has no sample name in column {named_by!r}; give it one")
    given = words["donor"] if "donor" in words else [""] * len(words)
    donors = [
        known_donor(name) or known_donor(slide) or str(donor).strip() or slide_key(name)
        for name, slide, donor in zip(names, slides, given, strict=True)
    ]
    fallback = slug(tissue or stem)
    tissues = [slug(t) or fallback for t in words["tissue"]] if "tissue" in words else [fallback] * len(words)
    obs = pd.DataFrame({"wsi_file_name": slides, "donor": donors, "tissue": tissues}, dtype=object)
    obs.index = pd.Index(names, dtype=object)
    used = {named_by, slide_column, "donor", "tissue", "unit", *INDEX_COLUMNS}
    return obs.assign(**{c: words[c].to_numpy() for c in words.columns if c not in used})


def _is_row_number(column: str, names: pd.Series) -> bool:
    return column in INDEX_COLUMNS and all(str(name).strip().isdigit() for name in names)


def _refuse_other_genes(first: ExpressionTable, table: ExpressionTable) -> None:
    if table.unit != first.unit:
        raise InputError(f"{table.source}: is in {table.unit}, {first.source} in {first.unit}; use one unit for all")
    here, there = {gene_key(g) for g in table.genes}, {gene_key(g) for g in first.genes}
    if here != there:
        examples = [*sorted(there - here)[:2], *sorted(here - there)[:2]]
        raise InputError(
            f"{table.source}: other genes than {first.source}: {len(there - here)} missing, {len(here - there)} more "
            f"(such as {shorten(examples, 3)}); make both tables with the same --genes"
        )


def _refuse_shared_samples(tables: Iterable[ExpressionTable]) -> None:
    owner: dict[str, str] = {}
    for table in tables:
        for name in table.obs.index:
            if name in owner:
                raise InputError(
                    f"{table.source}: sample {name} is also in {owner[name]}; each sample was expected in one table"
                )
            owner[name] = table.source
