"""What the numbers of evaluate_conditioning.py mean, in one word and one sentence."""

from collections.abc import Mapping
from itertools import count
from math import factorial
from typing import Any

import numpy as np

ALIVE = 1.0  # grey levels of 255 between two patients at the same noise; below it the expression decides nothing
LEVEL = 0.01  # p below which a number is above its re-pairings
FAMILY = 0.05  # for "in part": that one of all tests passes by luck (Bonferroni)
PREDICTABLE = 0.3  # r of a ridge from expression on real tiles; below it expression says nothing of a measure
NAMED = ("nuclear_density", "white_space", "eosin_od")  # the sentence names these of the measures


def verdict(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return word, text, tests (p-values), passed and share for one tissue's blocks `liveness`, `retrieval`,
    `round_trip` and `morphology`.

    word is "dead" (the tiles do not depend on the expression), "no match", "undecided", "partial" or "match". The
    tests are those of retrieval (mean reciprocal rank), the round trip and each measure that expression predicts at
    all (`ridge` at least 0.3, or unknown). match: each has p < 0.01, one besides retrieval among them; partial: at
    least one has, and p <= 0.05 / number of tests, so that luck with one of many does not count. A number at or below
    chance (r <= 0) never passes. undecided: no test could have passed, because its least p, the larger of
    1 / (1 + pairings) and 1 / n! of n patients, is not below that bound.
    """
    grey, tests = metrics["liveness"]["pixel_difference"]["value"], _tests(metrics)
    passed = [name for name, b in tests.items() if _above_chance(b) and b["p_value"] < LEVEL]
    sure = [name for name in passed if tests[name]["p_value"] <= FAMILY / len(tests)]
    able = [name for name, b in tests.items() if _low_enough(_least(b["pairings"], b["n"]), len(tests))]
    if grey < ALIVE:
        word = "dead"
    elif not sure:
        word = "no match" if able else "undecided"
    else:
        word = "match" if len(passed) == len(tests) > 1 else "partial"
    return {
        "word": word,
        "text": _text(metrics, word, grey, tests, passed),
        "tests": {name: b["p_value"] for name, b in tests.items()},
        "passed": passed,
        "share": share(metrics),
    }


def share(metrics: Mapping[str, Any]) -> float | None:
    """Return the mean of `relative` over the tests of `verdict`; None where none is known.

    0 is chance, 1 is where real tiles would be: at their ceiling, or for morphology at the r that it allows.
    """
    morphology = metrics["morphology"]
    values = [metrics["retrieval"]["centred"]["mrr"]["relative"], metrics["round_trip"]["relative"]]
    values += [morphology[name]["relative"] for name in _judged(morphology)]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _judged(morphology: Mapping[str, Any]) -> list[str]:
    """The measures that expression predicts."""
    return [m for m, b in morphology.items() if b.get("ridge") is None or b["ridge"] >= PREDICTABLE]


def _tests(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The block of each test; `value` is what must lie above `chance`."""
    tests = {"retrieval": metrics["retrieval"]["centred"]["mrr"]}
    if metrics["round_trip"]["kept"]:
        tests["round_trip"] = metrics["round_trip"]
    morphology = metrics["morphology"]
    return tests | {name: {**morphology[name], "value": morphology[name]["pearson"]} for name in _judged(morphology)}


def _above_chance(b: Mapping[str, Any]) -> bool:
    return b["value"] is not None and b["p_value"] is not None and b["value"] > (b["chance"] or 0.0)


def _least(pairings: int, patients: int) -> float:
    """The least p that so many random pairings of so many patients can have."""
    return max(1 / (1 + pairings), 1 / factorial(min(patients, 20)))


def _low_enough(p: float, tests: int) -> bool:
    return p < LEVEL and p <= FAMILY / tests


def _needed(tests: Mapping[str, Mapping[str, Any]]) -> str:
    """What is there and what it would take for one of the tests to pass, in words."""
    pairings, patients = (max(b[key] for b in tests.values()) for key in ("pairings", "n"))
    more = next(n for n in count(1) if _low_enough(1 / (1 + n), len(tests)))
    people = next(n for n in count(1) if _low_enough(1 / factorial(n), len(tests)))
    return (
        f"no test of {len(tests)} can pass with {pairings} pairings of {patients} patients, at least {more} pairings "
        f"(--re_pairings) of {people} patients are needed"
    )


def _text(metrics: Mapping[str, Any], word: str, grey: float, tests: Mapping[str, Any], passed: list[str]) -> str:
    changed = f"({grey:.2g} grey levels between patients at the same noise)"
    of_ceiling = share(metrics)
    reach = f" at {of_ceiling:.0%} of what real tiles allow" if of_ceiling is not None else ""
    heads = {
        "dead": f"tiles do not depend on the expression {changed} and do not match it",
        "no match": f"tiles depend on the expression {changed} but do not match it",
        "undecided": f"tiles depend on the expression {changed}; whether they match it is undecided ({_needed(tests)})",
        "partial": f"tiles depend on the expression {changed} and match it in part "
        f"({len(passed)} of {len(tests)} tests){reach}",
        "match": f"tiles depend on the expression {changed} and match it{reach}",
    }
    parts = [_measure(name, metrics["morphology"][name]) for name in _judged(metrics["morphology"]) if name in NAMED]
    top = metrics["retrieval"]["centred"]["top1"]
    parts.append(f"retrieval top-1 {_n(top['value'])} (chance {_n(top['chance'])}, real {_n(top['ceiling'])})")
    return f"{heads[word]}: {'; '.join(parts)}"


def _measure(name: str, b: Mapping[str, Any]) -> str:
    p = "no p" if b["p_value"] is None else f"p {b['p_value']:.3f}"
    floor = f"re-paired {_n(b['shuffled_pearson'])}, {p}"
    low, high = b.get("low"), b.get("high")
    interval = "" if low is None else f" [{_n(low)}, {_n(high)}]"
    return f"{name} r {_n(b['pearson'])}{interval} (n {b['n']}; real against real {_n(b['ceiling'])}, {floor})"


def _n(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
