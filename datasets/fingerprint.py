"""Whether a resumed run still has the tables that it was started on, one SHA-256 for each thing that may differ."""

import hashlib
from collections.abc import Iterable

import numpy as np

from datasets.expression import ExpressionTable
from datasets.genes import gene_key


def fingerprints(table: ExpressionTable) -> dict[str, str]:
    """Return what is compared -> SHA-256 (hex): genes in order, without version; samples, donors, ...; unit; values.

    `table` comes from `read_cohort_tables`, so that obs has `split`.
    """
    obs = table.obs
    return {
        "genes and their order": _of_words(map(gene_key, table.genes)),
        "samples and their order": _of_words(obs.index),
        "donors": _of_words(obs["donor"]),
        "tissues": _of_words(obs["tissue"]),
        "splits": _of_words(obs["split"]),
        "unit": _of_words([table.unit]),
        "values": hashlib.sha256(np.ascontiguousarray(table.values, "<f4")).hexdigest(),
    }


def differences(before: dict[str, object], now: dict[str, str]) -> list[str]:
    """Return the names of what differs, in the order of `now`; a digest that an older file lacks counts."""
    return [name for name, digest in now.items() if before.get(name) != digest]


def _of_words(words: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for word in words:
        data = str(word).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
