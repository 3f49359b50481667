"""From the gene names of a foreign matrix to Ensembl ids, one column per gene."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, shorten
from datasets.gene_lists import GeneList
from datasets.genes import PREFIX, gene_key, is_ensembl


class GeneMapper:
    """Turns a matrix's names into Ensembl ids, and sums those that mean the same gene."""

    def __init__(self, wanted: GeneList | None, symbols: dict[str, list[str]], identifiers: str | None) -> None:
        self.name_of = {gene_key(g): g for g in wanted.genes} if wanted else None  # key -> the list's spelling
        self.symbols, self.identifiers = symbols, identifiers

    def id_of(self, name: str) -> str | None:
        """Return the Ensembl id of a name in the matrix, None where it has none or several."""
        if self.identifiers != "symbol" and is_ensembl(name):
            return name.removeprefix(PREFIX)
        if self.identifiers == "ensembl":
            return None
        ids = self.symbols.get(name, [])
        if len(ids) > 1 and self.name_of is not None:
            ids = [i for i in ids if gene_key(i) in self.name_of]
        return ids[0] if len(ids) == 1 else None

    def wants(self, name: str) -> bool:
        """Return False for a gene that is known not to be on the list; unknown names are kept, to be reported."""
        gene = self.id_of(name)
        return gene is None or self.name_of is None or gene_key(gene) in self.name_of

    def describe(self, names: list[str]) -> str:
        """Return which identifiers the matrix has."""
        ensembl = [name for name in names if is_ensembl(name)]
        if len(ensembl) * 2 < len(names) or self.identifiers == "symbol":
            return "symbols, mapped to Ensembl ids"
        return "Ensembl ids with version" if any("." in name for name in ensembl) else "Ensembl ids without version"

    def symbols_of(self, names: list[str], said: dict[str, str]) -> dict[str, str]:
        """Return the symbol of each gene (by its Ensembl id without version): the matrix's own, else the mapping's.

        `said`: name in the matrix -> symbol, from a column beside the ids.
        """
        found = {gene_key(i): symbol for symbol, ids in self.symbols.items() for i in ids if len(ids) == 1}
        for name in names:
            if (gene := self.id_of(name)) is not None and (symbol := said.get(name, "" if is_ensembl(name) else name)):
                found[gene_key(gene)] = symbol
        return found

    def refuse_unmapped(self, path: str | Path, names: list[str]) -> None:
        """Raise InputError where not one gene could be understood."""
        if any(self.id_of(name) is not None for name in names):
            return
        if not names and self.name_of is not None:
            problem, remedy = (
                "none of its genes is in the list of --genes",
                "use the list of the same species and release",
            )
        elif self.symbols:
            problem, remedy = (
                f"none of its gene names ({shorten(names, 3)}) is in the mapping",
                "use its mapping",
            )
        else:
            problem = f"its genes are named {shorten(names, 3)}, Ensembl ids were expected"
            remedy = "name a table of symbols and Ensembl ids, or a GTF, with --mapping, or state --orientation"
        raise InputError(f"{path}: {problem}; {remedy}")

    def collect(
        self, path: str | Path, values: np.ndarray, names: list[str], duplicates: str | None
    ) -> tuple[np.ndarray, list[str], dict[str, Any]]:
        """Return (values (samples, genes), genes, report): one column per gene, in the order of the list, if any."""
        sources: dict[str, list[int]] = {}
        unmapped, ambiguous = [], []
        for j, name in enumerate(names):
            gene = self.id_of(name)
            if gene is None:
                (ambiguous if name in self.symbols else unmapped).append(name)
            else:
                sources.setdefault(gene_key(gene), []).append(j)
        summed = {key: [names[j] for j in columns] for key, columns in sources.items() if len(columns) > 1}
        for key, repeated in summed.items():
            same = len(set(repeated)) < len(repeated) and is_ensembl(repeated[0])
            if duplicates == "refuse" or (same and duplicates is None):
                raise InputError(
                    f"{path}: gene {key} stands {len(repeated)} times ({shorten(repeated, 3)}), "
                    f"{len(summed)} such gene(s); once was expected; remove the repeats, or add them up with "
                    "--duplicates sum"
                )
        keys = [k for k in self.name_of if k in sources] if self.name_of is not None else list(sources)
        result = values[:, [sources[key][0] for key in keys]]
        for column, key in enumerate(keys):
            if key in summed:
                result[:, column] = values[:, sources[key]].sum(1, dtype=np.float64)
        own = {key: self.id_of(names[columns[0]]) for key, columns in sources.items()}
        genes = [self.name_of[key] if self.name_of is not None else own[key] for key in keys]
        missing = [name for key, name in self.name_of.items() if key not in sources] if self.name_of is not None else []
        report = {
            "wanted": len(self.name_of) if self.name_of is not None else None,
            "other_version": sum(own[key] != gene for key, gene in zip(keys, genes, strict=True)),
            "mapped_from_symbols": sum(not is_ensembl(names[sources[key][0]]) for key in keys),
            "summed": summed,
            "unmapped": unmapped,
            "ambiguous": ambiguous,
            "missing": missing,
        }
        return result, genes, report
