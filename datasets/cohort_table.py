"""One table of a whole cohort: each slide with its sample, donor, tissue, sex, split, tiles; and what does not fit."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from common.config import DataSettings
from common.errors import shorten
from datasets.cohort import NO_ROW, Cohort, open_cohort
from datasets.coverage import Expected, coverage_of, describe_coverage
from datasets.sample_sheets import donors_sex, read_sexes

COLUMNS = ["slide", "sample", "donor", "tissue", "sex", "split", "tiles", "coverage"]


@dataclass
class CohortTable:
    """`slides` has COLUMNS, a row per slide with tiles and expression; the rest lists what is left out, and why."""

    slides: pd.DataFrame
    obs: pd.DataFrame  # the rows of the expression tables behind them, in the same order
    without_expression: list[tuple[str, str]]  # slides with tiles: name, reason
    without_slide: list[tuple[str, str]]  # samples of the table: name, reason
    several: dict[str, list[str]]  # donor -> tissues, where there are several
    without_sex: list[str]  # donors
    genes: dict[str, Any] | None  # which of the expected ones the tables have, see datasets.coverage

    def report(self) -> dict[str, Any]:
        """Return it as JSON, with the slides, donors and tiles of each tissue and split."""
        counts: dict[str, dict[str, Any]] = {}
        for (tissue, split), rows in self.slides.groupby(["tissue", "split"]):
            numbers = {"slides": len(rows), "donors": int(rows["donor"].nunique()), "tiles": int(rows["tiles"].sum())}
            counts.setdefault(str(tissue), {})[str(split)] = numbers
        return {
            "slides": len(self.slides),
            "donors": int(self.slides["donor"].nunique()),
            "tiles": int(self.slides["tiles"].sum()),
            "tissues": counts,
            "slides_without_expression": _named(self.without_expression),
            "expression_without_slide": _named(self.without_slide),
            "donors_in_several_tissues": self.several,
            "donors_without_sex": self.without_sex,
            "genes": self.genes,
        }

    def lines(self) -> list[str]:
        """Return what the user is told: counts, donors of several tissues, and what was left out, by name."""
        table = self.slides
        splits = ", ".join(f"{split} {n}" for split, n in table["split"].value_counts().items())
        found = [
            f"{len(table)} slides of {table['donor'].nunique()} donors, {table['tiles'].sum()} tiles; slides: {splits}"
        ]
        if self.several:
            tissues = sorted({" and ".join(names) for names in self.several.values()})
            found.append(f"donors in several tissues: {len(self.several)} ({shorten(tissues)}), each in one split")
        for what, names in (
            ("slides without expression", self.without_expression),
            ("expression without slide", self.without_slide),
        ):
            if names:
                found.append(f"{what}: {len(names)}: {shorten(f'{name} ({why})' for name, why in names)}")
        if self.genes and self.genes["coverage"] < 1:
            found.append(describe_coverage(self.genes))
        if self.without_sex:
            found.append(f"donors without sex: {len(self.without_sex)}: {shorten(self.without_sex)}")
        return found


def make_cohort_table(settings: DataSettings, expected: Expected | None = None) -> CohortTable:
    """Join the tables, tile stores and phenotypes of `settings` as every stage does, all splits and all tiles.

    `expected`: genes of a checkpoint or a list; coverage is the share that the tables have (None: left empty).
    InputError as `open_cohort` raises it: nothing fits, a damaged store, a donor in several splits.
    """
    cohort = open_cohort(replace(settings, max_patch_per_wsi=0), None)
    obs, slides = cohort.table.obs, cohort.slides
    tissues = obs.groupby(obs["donor"].astype(str))["tissue"].unique()
    sexes = _sexes(settings, cohort)
    genes = None if expected is None else coverage_of(expected, cohort.table, 0.0)
    table = pd.DataFrame(
        {
            "slide": slides["slide"],
            "sample": obs.index.astype(str),
            "donor": slides["donor"].astype(str),
            "tissue": slides["tissue"].astype(str),
            "sex": sexes,
            "split": slides["split"],
            "tiles": slides["n_tiles"],
            "coverage": "" if genes is None else f"{genes['coverage']:.4f}",
        }
    )
    slides_alone = [(name, why) for name, why in cohort.left_out if why.startswith(NO_ROW)]
    return CohortTable(
        table[COLUMNS],
        obs,
        slides_alone,
        [pair for pair in cohort.left_out if pair not in slides_alone],
        {donor: sorted(map(str, names)) for donor, names in tissues.items() if len(names) > 1},
        sorted(set(table["donor"][table["sex"] == ""])) if any(sexes) else [],
        genes,
    )


def _sexes(settings: DataSettings, cohort: Cohort) -> list[str]:
    obs = cohort.table.obs
    if settings.phenotypes:
        sheet = read_sexes(settings.phenotypes)
        return donors_sex(list(obs.index), list(obs["donor"].astype(str)), sheet)["sex"].tolist()
    return obs["sex"].astype(str).tolist() if "sex" in obs else [""] * len(obs)


def _named(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "reason": reason} for name, reason in pairs]
