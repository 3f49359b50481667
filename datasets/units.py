"""The unit of an expression matrix: told from its values and its file's name, and brought back to a linear scale."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from common.errors import InputError, warn

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
TPM_SUM = (0.95e6, 1.05e6)  # sum of a profile over all genes; one million by definition of TPM and CPM
LOG_SUM = (0.5e6, 1.1e6)  # the same after undoing a log, with room for tables of protein-coding genes only


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


def guess_unit(
    path: str,
    stats: ValueStats,
    given: str | None = None,
    stated: str | None = None,
    find_negative: Callable[[str], None] = lambda remedy: None,
) -> Unit:
    """Return the unit of the matrix in the file `path`: `given` (--unit), `stated` (in the file), else what is seen.

    InputError where values are negative and no log explains it, or logged to a base that cannot be told.
    `find_negative` raises the InputError that says where a negative value stands, with the remedy that it is given.
    """
    hint = _hint(path)
    linear = hint or "TPM"
    if (known := given or stated) is not None:
        why = "given with --unit" if given else "the file states it"
        unit = Unit(LINEAR.get(known, linear), known if known in LOGS else None, why)
    elif stats.lowest < 0:
        remedy = (
            "mend it; z-scores and log ratios cannot be brought back to expression, logs without a pseudocount can: "
            "--unit log2, ln or log10"
        )
        find_negative(remedy)
        raise InputError(f"{path}: the lowest value is {stats.lowest:g}, at least 0 was expected; {remedy}")
    elif stats.whole and stats.highest >= 20 and hint in (None, "counts"):
        unit = Unit("counts", None, f"all values are whole numbers, the highest {stats.highest:g}")
    elif stats.highest < LOGGED_BELOW and stats.n_genes >= ENOUGH_GENES and not (stats.whole and hint == "counts"):
        unit = Unit("TPM" if hint in (None, "counts") else hint, *_which_log(path, stats))
    elif hint:
        unit = Unit(hint, None, "the file's name says so")
    elif TPM_SUM[0] <= float(np.median(stats.totals)) <= TPM_SUM[1]:
        unit = Unit("TPM", None, "profiles sum to one million (CPM would look the same)")
    else:
        unit = Unit("TPM", None, "ASSUMED: neither name nor values tell; state it with --unit")
        warn(
            f"{path}: linear TPM is assumed: neither the file's name nor its values tell the unit; state it with --unit"
        )
    if stats.lowest < 0 and (unit.log is None or LOGS[unit.log][1]):
        remedy = f"{unit.log or unit.name} cannot have it ({unit.why}): mend it, or state the unit with --unit"
        find_negative(remedy)
        raise InputError(f"{path}: the lowest value is {stats.lowest:g}, at least 0 was expected; {remedy}")
    return unit


def to_linear(values: np.ndarray, log: str | None) -> np.ndarray:
    """Return `values` with the log undone, float32 >= 0: base^x - pseudocount."""
    if log is None:
        return values
    base, one = LOGS[log]
    scaled = values * np.float32(math.log(base))
    return np.maximum(np.expm1(scaled) if one else np.exp(scaled), 0)


def _hint(path: str) -> str | None:
    name = path.rsplit("/", 1)[-1].lower()
    for pattern, unit in (("tpm", "TPM"), ("fpkm|rpkm", "FPKM"), ("cpm", "CPM"), ("count|reads", "counts")):
        if re.search(pattern, name):
            return unit
    return None


def _which_log(path: str, stats: ValueStats) -> tuple[str, str]:
    sums = {name: float(np.median(totals)) for name, totals in stats.unlogged.items()}
    fitting = [name for name, total in sums.items() if LOG_SUM[0] <= total <= LOG_SUM[1]]
    seen = f"no value of {stats.n_genes} genes is above {LOGGED_BELOW:g} (highest {stats.highest:.3g})"
    if len(fitting) != 1:
        raise InputError(
            f"{path}: {seen}, so the values look logged, but no base brings profiles to a sum near one million; "
            f"state it with --unit: {', '.join(LOGS)} (log2p1 is log2(x + 1)), or --unit tpm where they are linear"
        )
    base = {"ln1p": "e"}.get(fitting[0], f"{LOGS[fitting[0]][0]:g}")
    return fitting[0], f"{seen}; base {base} with pseudocount 1 gives profiles that sum to {sums[fitting[0]]:.3g}"
