"""What the numbers of evaluate_conditioning.py mean, in one word and one sentence."""

from collections.abc import Mapping
from typing import Any

import numpy as np

ALIVE = 1.0  # grey levels of 255 between two patients at the same noise; below it the expression decides nothing
LEVEL = 0.01  # p below which a number is above its re-pairings
FAMILY = 0.05  # for "in part": that one of all tests passes by luck (Bonferroni)
PREDICTABLE = 0.3  # r of a ridge from expression on real tiles; below it expression says nothing of a measure
NAMED = ("nuclear_density", "white_space", "eosin_od")  # the sentence names these of the measures


def verdict(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return word, text and tests for one tissue's blocks `liveness`, `retrieval`, `round_trip` and `morphology`.

    word is "dead" (the tiles do not depend on the expression), "no match", "partial" or "match". The tests are those
    of retrieval (mean reciprocal rank), the round trip and each measure that expression predicts at all (`ridge` at
    least 0.3, or unknown). match: each has p < 0.01; partial: at least one has, and p <= 0.05 / number of tests, so
    that luck with one of many does not count. A measure with r <= 0 does not pass.
    """
    grey, tests = metrics["liveness"]["pixel_difference"]["value"], _tests(metrics)
    passed = [name for name, p in tests.items() if p is not None and p < LEVEL]
    sure = [name for name in passed if tests[name] <= FAMILY / len(tests)]
    if grey < ALIVE:
        word = "dead"
    elif not sure:
        word = "no match"
    else:
        word = "match" if len(passed) == len(tests) else "partial"
    return {"word": word, "text": _text(metrics, word, grey, tests, passed), "tests": tests, "share": share(metrics)}


def share(metrics: Mapping[str, Any]) -> float | None:
    """Return the mean of value over ceiling (above chance) over the tests of `verdict`; None where none is known."""
    morphology = metrics["morphology"]
    values = [metrics["retrieval"]["centred"]["mrr"]["relative"], metrics["round_trip"]["relative"]]
    values += [morphology[name]["relative"] for name in _judged(morphology)]
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _judged(morphology: Mapping[str, Any]) -> list[str]:
    """The measures that expression predicts."""
    return [m for m, b in morphology.items() if b.get("ridge") is None or b["ridge"] >= PREDICTABLE]


def _tests(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    tests = {"retrieval": metrics["retrieval"]["centred"]["mrr"]["p_value"]}
    if metrics["round_trip"]["kept"]:
        tests["round_trip"] = metrics["round_trip"]["p_value"]
    return tests | {name: metrics["morphology"][name]["p_value"] for name in _judged(metrics["morphology"])}


def _text(metrics: Mapping[str, Any], word: str, grey: float, tests: Mapping[str, Any], passed: list[str]) -> str:
    changed = f"({grey:.2g} grey levels between patients at the same noise)"
    of_ceiling = share(metrics)
    reach = f" at {of_ceiling:.0%} of what real tiles reach" if of_ceiling is not None else ""
    heads = {
        "dead": f"tiles do not depend on the expression {changed} and do not match it",
        "no match": f"tiles depend on the expression {changed} but do not match it",
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
    return f"{name} r {_n(b['pearson'])} (real against real {_n(b['ceiling'])}, {floor})"


def _n(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
