"""The unit of an expression matrix: told from its values and its file's name, and brought back to a linear scale."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from common.errors import InputError

# What --unit accepts. The logged ones are (base, pseudocount): log2p1 is log2(x + 1).
LOGS = {
    "log2p1": (2.0, 1.0),
    "ln1p": (math.e, 1.0),
    "log10p1": (10.0, 1.0),
    "log2": (2.0, 0.0),
    "ln": (math.e, 0.0),
    "log10": (10.0, 0.0),
}
LINEAR = {"tpm": "TPM", "fpkm": "FPKM", "cpm": "CPM", "counts": "counts"}
UNITS = (*LINEAR, *LOGS)

LOGGED_BELOW = 30.0  # no value above it: logged; log2 of 10^9 is 29.9, and a linear profile has genes far above
ENOUGH_GENES = 100  # below, a small highest value says nothing
MANY_GENES = 5000  # from here on a matrix is a transcriptome and no selection, whose sums say nothing; ours
COUNTED_FROM = 20.0  # whole numbers up to here at least may be counts
TPM_SUM = (0.95e6, 1.05e6)  # sum of a profile over all genes; one million by definition of TPM and CPM
LOG_SUM = (0.5e6, 1.1e6)  # the same after undoing a log, with room for tables of protein-coding genes only
SUM_AT_MOST = 2e6  # of TPM and CPM, with room for scaling between samples: nTPM of the HPA reach 1.7e6
NO_LOG_SEEN = (
    "mend it; z-scores and log ratios cannot be brought back to expression, logs without a pseudocount can: "
    "--unit log2, ln or log10"
)
_NAMED = (("tpm", "TPM"), ("fpkm|rpkm", "FPKM"), ("cpm|counts?_per_million", "CPM"), ("count|reads", "counts"))
_LOGGED_NAME = re.compile(r"(^|[^a-z])(log(2|10|e)?|ln|rlog|vst|voom)(p1|1p)?([^a-z]|$|tpm|fpkm|cpm|count)")


@dataclass
class ValueStats:
    """What the values of a matrix show, gathered part by part over all of its genes: needed to tell the unit."""

    n_samples: int
    n_genes: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    whole: bool = True  # every value is an integer
    totals: np.ndarray = field(init=False)  # (n_samples,) float64: sum of the values as they stand
    unlogged: dict[str, np.ndarray] = field(init=False)  # the same after undoing each log with pseudocount 1

    def __post_init__(self) -> None:
        self.totals = np.zeros(self.n_samples)
        self.unlogged = {name: np.zeros(self.n_samples) for name, (_, one) in LOGS.items() if one}

    def more_samples(self, n: int) -> None:
        """Make room for `n` samples more."""
        self.n_samples += n
        self.totals = np.append(self.totals, np.zeros(n))
        self.unlogged = {name: np.append(totals, np.zeros(n)) for name, totals in self.unlogged.items()}

    def add(self, values: np.ndarray, samples: slice = slice(None)) -> None:
        """Count `values` (samples, genes) in; `samples` says which samples its rows are."""
        if not values.size:
            return
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))
        self.whole = self.whole and bool((values == np.rint(values)).all())
        self.totals[samples] += values.sum(1, dtype=np.float64)
        if self.highest < LOGGED_BELOW:
            for name, totals in self.unlogged.items():
                totals[samples] += to_linear(values, name).sum(1, dtype=np.float64)


@dataclass
class Unit:
    """A unit, how it was found, and the log that has to be undone (None: the values are linear)."""

    name: str  # TPM, FPKM, CPM or counts
    log: str | None
    why: str


def check_unit(words: str | None) -> None:
    """InputError where --unit holds two units or two logs: one of each at most was expected."""
    for kinds in (LINEAR, LOGS):
        if len(both := [word for word in (words or "").split() if word in kinds]) > 1:
            raise InputError(
                f"--unit {words}: {' and '.join(both)} exclude each other; give one unit and one log at most"
            )


def guess_unit(
    path: str,
    stats: ValueStats,
    given: str | None = None,
    stated: str | None = None,
    find_negative: Callable[[str], None] = lambda remedy: None,
    ours: bool = False,
) -> Unit:
    """Return the unit of the matrix in the file `path`: `given` (--unit), `stated` (in the file), else by evidence.

    `given` and `stated` are words of UNITS: a unit, a log, or both ("tpm log2p1"). Evidence is the file's name and the
    values; where they disagree, or leave a choice, an InputError asks for --unit. Negative values that no log explains
    are an InputError too: `find_negative` raises the one that says where such a value stands, with a remedy. `ours`:
    the genes are named rna_..., as in tables of this toolkit, which hold TPM unless they state another unit.
    """
    named, says = _named(path), "the file's name"
    if named is None and ours:
        named, says = "TPM", "the form of our tables, columns named rna_,"
    known = given or stated
    if known is not None:
        words = set(known.split())
        name = next((LINEAR[word] for word in LINEAR if word in words), named)
        log = next((word for word in LOGS if word in words), None)
        why = "given with --unit" if given else "the file states it"
        if name is None:
            _ask(path, f"holds {log} ({why}), of a unit that nothing tells", log)
        unit = Unit(name, log, why)
    else:
        if stats.lowest < 0:
            _refuse_negative(path, stats, NO_LOG_SEEN, find_negative)
        unit = _by_evidence(path, stats, named, says)
    if stats.lowest < 0 and (unit.log is None or LOGS[unit.log][1]):
        remedy = f"{unit.log or unit.name} cannot have it ({unit.why}): mend it, or state the unit with --unit"
        _refuse_negative(path, stats, remedy, find_negative)
    return unit


def to_linear(values: np.ndarray, log: str | None) -> np.ndarray:
    """Return `values` with the log undone, float32 >= 0: base^x - pseudocount."""
    if log is None:
        return values
    base, one = LOGS[log]
    scaled = values * np.float32(math.log(base))
    return np.maximum(np.expm1(scaled) if one else np.exp(scaled), 0)


def _by_evidence(path: str, stats: ValueStats, named: str | None, says: str) -> Unit:
    """Return the unit on which the values and what `says` `named` agree. InputError with the choices if they do not."""
    total = float(np.median(stats.totals))
    counted = stats.whole and stats.highest >= COUNTED_FROM
    sums = f"profiles sum to {total:.3g}"
    low = f"no value of {stats.n_genes} genes is above {LOGGED_BELOW:g} (highest {stats.highest:.3g})"
    if stats.highest < LOGGED_BELOW and not (stats.whole and named == "counts"):
        if stats.n_genes < ENOUGH_GENES:
            _ask(path, f"{low}: too few genes to tell low values from logged ones")
        log, why = _which_log(path, low, stats)
        if named is None:
            _ask(path, f"{why}, as TPM and CPM do, and the file's name does not tell which", log)
        return Unit(named, log, why)
    if _LOGGED_NAME.search(_file_name(path)):
        _ask(path, f"the file's name says logged, its values (highest {stats.highest:.4g}) do not")
    if named == "counts":
        if not stats.whole:
            _ask(path, f"{says} says counts, but not all values are whole: expected counts (--unit counts)?")
        return Unit("counts", None, f"{says} says so, and all values are whole numbers")
    if named in ("TPM", "CPM") and total > SUM_AT_MOST:
        _ask(path, f"{says} says {named}, but {sums}, and {named} to about one million at most")
    if named and counted and not TPM_SUM[0] <= total <= TPM_SUM[1]:
        _ask(path, f"{says} says {named}, but all values are whole numbers, as counts are, and {sums}")
    if named:
        return Unit(named, None, f"{says} says so; {sums}")
    if counted and (total > SUM_AT_MOST or (stats.n_genes >= MANY_GENES and total < LOG_SUM[0])):
        why = f"all values are whole numbers, the highest {stats.highest:g}, and {sums}, as no TPM do"
        return Unit("counts", None, why)
    seen = f"{'all values are whole numbers, ' * counted}{sums}, and the file's name does not tell the unit"
    _ask(path, f"{seen}: {'counts, or rounded TPM?' if counted else 'TPM, CPM, FPKM, a part of them?'}")


def _ask(path: str, seen: str, log: str | None = None) -> NoReturn:
    """Raise the InputError that says what was seen, and what can be chosen."""
    choices = ", ".join(f"{word} {log}" if log else word for word in LINEAR)
    logs = "" if log else f", with the log beside it where there is one: {', '.join(LOGS)} (log2p1 is log2(x + 1))"
    raise InputError(f"{path}: {seen}; state the unit with --unit: {choices}{logs}")


def _refuse_negative(path: str, stats: ValueStats, remedy: str, find_negative: Callable[[str], None]) -> NoReturn:
    find_negative(remedy)
    raise InputError(f"{path}: the lowest value is {stats.lowest:g}, at least 0 was expected; {remedy}")


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].lower()


def _named(path: str) -> str | None:
    """Return the unit that the file's name says, None where it says none."""
    return next((unit for pattern, unit in _NAMED if re.search(pattern, _file_name(path))), None)


def _which_log(path: str, low: str, stats: ValueStats) -> tuple[str, str]:
    """Return (log, why): the one base that brings profiles to a sum near one million. InputError where not one does."""
    sums = {name: float(np.median(totals)) for name, totals in stats.unlogged.items()}
    fitting = [name for name, total in sums.items() if LOG_SUM[0] <= total <= LOG_SUM[1]]
    if len(fitting) != 1:
        _ask(path, f"{low}, so the values look logged, but no base brings profiles to a sum near one million")
    base = {"ln1p": "e"}.get(fitting[0], f"{LOGS[fitting[0]][0]:g}")
    return fitting[0], f"{low}; base {base} with pseudocount 1 gives profiles that sum to {sums[fitting[0]]:.3g}"
