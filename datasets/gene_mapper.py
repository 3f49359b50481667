"""From the gene names of a foreign matrix to Ensembl ids, one column per gene."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError, shorten
from datasets.gene_lists import GeneList, GeneNames
from datasets.genes import PREFIX, gene_key, is_date, is_ensembl, renamed_from

# --id: which kinds of names are understood. An alias is a symbol that a gene had, or has beside its own.
IDENTIFIERS = {
    "ensembl": ("ensembl",),
    "symbol": ("symbol", "alias"),
    "entrez": ("entrez",),
    "mixed": ("ensembl", "symbol", "alias", "entrez"),
}
COPY_SAMPLES = 3  # so many samples with the same value above 0 in two rows of a gene: more than chance; ours


class GeneMapper:
    """Turns a matrix's names into Ensembl ids, and sums those that mean the same gene."""

    def __init__(self, wanted: GeneList | None, names: GeneNames, identifiers: str | None) -> None:
        self.name_of = {gene_key(g): g for g in wanted.genes} if wanted else None  # key -> the list's spelling
        self.names, self.kinds = names, IDENTIFIERS[identifiers or "mixed"]

    def find(self, name: str) -> tuple[str, list[str]]:
        """Return (kind, Ensembl ids) of a name in the matrix; ("", []) where it is not understood.

        The kind is "ensembl", "symbol", "alias" or "entrez". Of several ids, those of the wanted genes.
        """
        kind, ids = ("ensembl", [name.removeprefix(PREFIX)]) if is_ensembl(name) else self.names.find(name)
        if kind not in self.kinds:
            return "", []
        if len(ids) > 1 and self.name_of is not None:
            ids = [i for i in ids if gene_key(i) in self.name_of]
        return kind, ids

    def id_of(self, name: str) -> str | None:
        """Return the Ensembl id of a name in the matrix, None where it has none or several."""
        _, ids = self.find(name)
        return ids[0] if len(ids) == 1 else None

    def wants(self, name: str) -> bool:
        """Return False for a gene that is known not to be on the list; unknown names are kept, to be reported."""
        kind, ids = self.find(name)
        if not kind or self.name_of is None:
            return True
        return len(ids) > 1 or any(gene_key(gene) in self.name_of for gene in ids)

    def identify(self, path: str | Path, names: Sequence[str], given: str | None) -> str:
        """Return which identifiers the matrix has. `names`: all of its genes. `given`: --id.

        InputError where Ensembl ids, symbols and Entrez ids are mixed, or most names are none of them and no mapping
        explains them, and --id does not settle it.
        """
        count = Counter(self.find(name)[0] for name in names)
        groups = {what: sum(count[kind] for kind in IDENTIFIERS[what]) for what in ("ensembl", "symbol", "entrez")}
        found = {what: n for what, n in groups.items() if n}
        ids = [name for name in names if is_ensembl(name)]
        if given is None and len(found) > 1:
            kinds = " and ".join(f"{n} named by {what}" for what, n in found.items())
            raise InputError(
                f"{path}: genes of several kinds of identifiers, {kinds}; state with --id whether all are to be taken "
                f"(mixed; rows of one gene are added up) or one kind ({', '.join(found)})"
            )
        if given is None and ids and 2 * len(ids) < len(names) and not self.names:
            others = [name for name in names if not is_ensembl(name)]
            raise InputError(
                f"{path}: {len(ids)} genes are named by Ensembl id and {len(others)} otherwise ({shorten(others, 3)}); "
                "name a table of their names and Ensembl ids, or a GTF, with --mapping, or take the former with "
                "--id ensembl"
            )
        if len(found) > 1:
            return "mixed: " + ", ".join(f"{n} by {what}" for what, n in found.items())
        if "entrez" in found:
            return "Entrez ids, mapped to Ensembl ids"
        if "symbol" in found:
            return "symbols, mapped to Ensembl ids" + f" ({count['alias']} by alias)" * bool(count["alias"])
        return "Ensembl ids with version" if any("." in name for name in ids) else "Ensembl ids without version"

    def symbols_of(self, names: list[str], said: dict[str, str]) -> dict[str, str]:
        """Return the symbol of each gene (by its Ensembl id without version): the matrix's own, else the mapping's.

        `said`: name in the matrix -> symbol, from a column beside the ids.
        """
        found = {gene_key(i): symbol for symbol, ids in self.names.symbols.items() for i in ids if len(ids) == 1}
        for name in names:
            kind, ids = self.find(name)
            if len(ids) == 1 and (symbol := said.get(name, name if kind == "symbol" else "")):
                found[gene_key(ids[0])] = symbol
        return found

    def refuse_unmapped(self, path: str | Path, names: list[str]) -> None:
        """Raise InputError where not one gene could be understood."""
        if any(self.id_of(name) is not None for name in names):
            return
        if not names and self.name_of is not None:
            problem, remedy = (
                "none of its genes is among those to keep",
                "use the list, or the checkpoint, of the same species and release",
            )
        elif self.names:
            problem, remedy = (
                f"none of its gene names ({shorten(names, 3)}) is in the mapping",
                "use its mapping",
            )
        else:
            problem = f"its genes are named {shorten(names, 3)}, Ensembl ids were expected"
            remedy = "name a table of their names and Ensembl ids, or a GTF, with --mapping, or state --orientation"
        raise InputError(f"{path}: {problem}; {remedy}")

    def collect(
        self, path: str | Path, values: np.ndarray, names: list[str], duplicates: str | None
    ) -> tuple[np.ndarray, list[str], dict[str, Any]]:
        """Return (values (samples, genes), genes, report): one column per gene, in the order of the list, if any.

        `duplicates` is "sum", "first" or "refuse", None for the rules of datasets/prepare_table.py.
        """
        sources, aside, unmapped, ambiguous = self.sources(names)
        keys = [k for k in self.name_of if k in sources] if self.name_of is not None else list(sources)
        summed = {key: [names[j] for j in sources[key]] for key in keys if len(sources[key]) > 1}
        for key in summed:
            _settle(path, key, [(names[j], values[:, j]) for j in sources[key]], duplicates, len(summed))
        result = values[:, [sources[key][0] for key in keys]]
        if duplicates != "first":
            for column, key in enumerate(keys):
                if key in summed:
                    result[:, column] = values[:, sources[key]].sum(1, dtype=np.float64)
        first = {key: names[columns[0]] for key, columns in sources.items()}
        own = {key: self.id_of(name) or self.id_of(name.rpartition(".")[0]) for key, name in first.items()}
        genes = [self.name_of[key] if self.name_of is not None else own[key] for key in keys]
        missing = [name for key, name in self.name_of.items() if key not in sources] if self.name_of is not None else []
        kinds = Counter(self.find(first[key])[0] for key in keys)
        report = {
            "wanted": len(self.name_of) if self.name_of is not None else None,
            "other_version": sum(own[key] != gene for key, gene in zip(keys, genes, strict=True)),
            "mapped_from_symbols": kinds["symbol"] + kinds["alias"],
            "mapped_from_aliases": {first[key]: key for key in keys if self.find(first[key])[0] == "alias"},
            "mapped_from_entrez": kinds["entrez"],
            "summed": summed if duplicates != "first" else {},
            "first_of_several": summed if duplicates == "first" else {},
            "aliases_set_aside": aside,
            "unmapped": unmapped,
            "ambiguous": ambiguous,
            "spoilt_by_a_spreadsheet": [name for name in unmapped if is_date(name)],
            "missing": missing,
        }
        return result, genes, report

    def sources(self, names: list[str]) -> tuple[dict[str, list[int]], list[str], list[str], list[str]]:
        """Return gene key -> its columns, and the names that have none: aliases set aside, unmapped, ambiguous.

        An alias counts only where no other name of its gene is there: it may mean another gene there.
        """
        present = set(names)
        sources: dict[str, list[int]] = {}
        by_alias: dict[str, list[int]] = {}
        unmapped, ambiguous = [], []
        for j, name in enumerate(names):
            kind, ids = self.find(name)
            if not kind and (stem := renamed_from(name, present)) is not None:
                kind, ids = self.find(stem)
            if len(ids) == 1:
                (by_alias if kind == "alias" else sources).setdefault(gene_key(ids[0]), []).append(j)
            else:
                (ambiguous if kind else unmapped).append(name)
        aside = [names[j] for key, columns in by_alias.items() if key in sources for j in columns]
        in_order = sorted((by_alias | sources).items(), key=lambda pair: pair[1][0])
        return dict(in_order), aside, unmapped, ambiguous

    def repeats(self, names: list[str]) -> dict[str, list[int]]:
        """Return gene key -> its columns, of genes that have several; the one to be taken as the first comes first.

        A name that another program made of a repeated one ("SFTPC.1") is never the first.
        """
        several = {key: columns for key, columns in self.sources(names)[0].items() if len(columns) > 1}
        return {key: sorted(columns, key=lambda j: not self.find(names[j])[0]) for key, columns in several.items()}


def _settle(
    path: str | Path, key: str, rows: list[tuple[str, np.ndarray]], duplicates: str | None, n_genes: int
) -> None:
    """Raise InputError where rows of one gene, (name, values (samples,)), are refused or may be parts or copies."""
    if duplicates not in (None, "refuse"):
        return
    names = [name for name, _ in rows]
    first = rows[0][1]
    copies = all(np.array_equal(first, row) for _, row in rows[1:]) and (first > 0).sum() >= COPY_SAMPLES
    same = len(set(names)) < len(names) or any(name.rpartition(".")[0] in names for name in names)
    if duplicates == "refuse" or (same and is_ensembl(names[0])):
        raise InputError(
            f"{path}: gene {key} stands {len(names)} times ({shorten(names, 3)}), {n_genes} such gene(s); once was "
            "expected; remove the repeats, add them up with --duplicates sum, or take the first with --duplicates first"
        )
    if copies:
        raise InputError(
            f"{path}: gene {key} stands {len(names)} times ({shorten(names, 3)}) with the same values: copies or parts "
            "of it; state it with --duplicates first (copies) or sum (parts)"
        )
