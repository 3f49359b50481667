"""The demo's people: who they are, which samples and slides they gave, and the four factors that they carry."""

from dataclasses import dataclass, field

import numpy as np

from common.run import seed_for
from datasets.demo_paint import FACTORS
from datasets.demo_slides import SlidePlan

TISSUES = ("lung", "brain")
SMTSD = {"lung": "Lung", "brain": "Brain - Cortex", "liver": "Liver"}  # GTEx's names
NAMED = {"lung": ("GTEX-15RJ7", "06"), "brain": ("GTEX-1C6WA", "30")}  # the paper's two patients and their sites
SPECIAL = {("lung", 3): "no_mpp", ("brain", 3): "x40", ("lung", 5): "blank_half", ("brain", 5): "faulty"}
LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass
class Donor:
    """One donor: sex 1 male, 2 female as in GTEx; sites: tissue -> the two site digits."""

    name: str
    sex: int
    age: str
    hardy: int
    factors: dict[str, float]
    sites: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One RNA sample; `batch` is its sequencing batch."""

    name: str  # GTEX-15RJ7-0626-SM-ABCDE
    donor: Donor
    tissue: str
    batch: int


@dataclass
class Cohort:
    """Everything that is decided before anything is drawn."""

    donors: list[Donor]
    samples: list[Sample]
    slides: list[SlidePlan]


def plan_cohort(seed: int, n_donors: int, specials: bool = True) -> Cohort:
    """Return the cohort: the same for the same seed and size.

    Of the donors about 90 % have lung and 87 % brain. A few slides have no RNA, a few RNA samples no slide, and two
    samples lie at another site than their slide. The factors have mean 0, spread 1 and no correlation with one another
    or with sex, exactly, over the donors.
    """
    rng = np.random.default_rng(seed_for(seed, "demo cohort"))
    donors = _donors(rng, n_donors)
    samples, slides = [], []
    used: set[str] = set()
    for tissue in TISSUES:
        here = [d for d in donors if tissue in d.sites]
        here.sort(key=lambda d: d.name != NAMED[tissue][0])  # the paper's patient first: never an exception
        plain = len(here) >= 12
        for i, donor in enumerate(here):
            site = donor.sites[tissue]
            if not (plain and i == 7):  # RNA without slide
                name = f"{donor.name}-{site}25.svs"
                kind = SPECIAL.get((tissue, i), "") if specials else ""
                slides.append(SlidePlan(name, donor.name, tissue, donor.factors, seed_for(seed, "slide", name), kind))
            if plain and i == 8:  # slide without RNA
                continue
            if plain and i == 9:  # the RNA comes from another piece of the same tissue
                site = f"{int(site) + 1:02d}"
            samples.append(_sample(rng, used, donor, tissue, site))
    for donor in donors[:: max(1, n_donors // 6)]:  # another tissue, so that --tissue has something to leave out
        samples.append(_sample(rng, used, donor, "liver", "18"))
    order = rng.permutation(len(samples))
    return Cohort(donors, [samples[i] for i in order], sorted(slides, key=lambda s: (s.tissue, s.name)))


def _donors(rng: np.random.Generator, n: int) -> list[Donor]:
    names = [name for name, _ in NAMED.values()]
    while len(names) < n:
        name = f"GTEX-1{rng.choice(list('11223344567ABCHIJK'))}{''.join(rng.choice(list(LETTERS), 3))}"
        if name not in names:
            names.append(name)
    sex = np.ones(n, int)
    sex[rng.permutation(n)[: round(0.4 * n)]] = 2
    factors = _independent(rng, sex)
    ages = rng.choice(["20-29", "30-39", "40-49", "50-59", "60-69", "70-79"], n, p=[0.08, 0.08, 0.16, 0.33, 0.31, 0.04])
    donors = []
    for i, name in enumerate(names):
        values = dict(zip(FACTORS, (round(float(v), 6) for v in factors[i]), strict=True))
        donor = Donor(name, int(sex[i]), str(ages[i]), int(rng.choice(5, p=[0.5, 0.04, 0.26, 0.06, 0.14])), values)
        has_lung, has_brain = (i < 2 or rng.random() < share for share in (0.90, 0.87))
        if has_lung or not has_brain:
            donor.sites["lung"] = f"{rng.integers(1, 13):02d}"
        if has_brain:
            donor.sites["brain"] = f"{rng.integers(28, 33):02d}"
        donors.append(donor)
    for tissue, (name, site) in NAMED.items():
        next(d for d in donors if d.name == name).sites[tissue] = site
    first, rest = donors[:2], sorted(donors[2:], key=lambda d: d.name)
    return first + rest


def _independent(rng: np.random.Generator, sex: np.ndarray) -> np.ndarray:
    """Return (n, 4) normal numbers, freed of what chance correlates: of one another, and of sex; spread 1, mean 0."""
    n = len(sex)
    draws = np.column_stack([np.ones(n), sex, rng.standard_normal((n, len(FACTORS)))])
    orthogonal, triangle = np.linalg.qr(draws)
    return (orthogonal * np.sign(np.diag(triangle)))[:, 2:] * np.sqrt(n)


def _sample(rng: np.random.Generator, used: set[str], donor: Donor, tissue: str, site: str) -> Sample:
    while True:
        code = rng.choice(list("3456")) + "".join(rng.choice(list(LETTERS), 4))
        if code not in used:
            used.add(code)
            return Sample(f"{donor.name}-{site}26-SM-{code}", donor, tissue, int(rng.integers(6)))
