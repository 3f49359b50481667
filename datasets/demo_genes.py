"""The demo's transcriptome: which genes there are, and what each of them answers to."""

from dataclasses import dataclass

import numpy as np

from datasets.demo_paint import FACTORS

N_GENES = 2000
MODULE = 120  # genes that answer to each factor
LOADING = (0.65, 1.0)  # their natural-log change per standard deviation of the factor, up or down
PROGRAMME = 260  # genes higher in each tissue

SEX_GENES = {  # symbol -> (id, in males, in females), TPM; GENCODE 26
    "XIST": ("ENSG00000229807.11", 0.02, 60.0),
    "RPS4Y1": ("ENSG00000129824.15", 90.0, 0.05),
    "DDX3Y": ("ENSG00000067048.16", 18.0, 0.03),
    "KDM5D": ("ENSG00000012817.15", 9.0, 0.02),
    "UTY": ("ENSG00000183878.15", 5.0, 0.02),
}
MARKERS = {  # tissue programmes with known names, so that a reader recognises them
    "lung": {
        "SFTPC": "ENSG00000168484.12",
        "SFTPB": "ENSG00000168878.16",
        "SFTPA1": "ENSG00000122852.14",
        "SFTPA2": "ENSG00000185303.15",
        "SCGB1A1": "ENSG00000149021.6",
        "AGER": "ENSG00000204305.13",
        "NAPSA": "ENSG00000131400.7",
    },
    "brain": {
        "GFAP": "ENSG00000131095.11",
        "MBP": "ENSG00000197971.14",
        "SNAP25": "ENSG00000132639.12",
        "SYT1": "ENSG00000067715.13",
        "PLP1": "ENSG00000123560.13",
        "ENO2": "ENSG00000111674.8",
        "MOG": "ENSG00000204655.11",
    },
}


@dataclass
class Genes:
    """The genes and their answers, all in natural logs; rows are genes."""

    ids: list[str]  # versioned Ensembl ids
    symbols: list[str]
    coding: np.ndarray  # (genes,) bool
    base: np.ndarray  # (genes,) ln TPM at nought
    tissue: dict[str, np.ndarray]  # (genes,) ln fold change of each tissue
    factors: np.ndarray  # (genes, 4) per standard deviation of FACTORS
    sex: np.ndarray  # (genes, 2) added for males, females
    batch: np.ndarray  # (genes, 6) of each sequencing batch
    ischaemia: np.ndarray  # (genes,) per standard deviation of the sample's ischaemic time
    dispersion: np.ndarray  # (genes,) of the negative binomial
    length_kb: np.ndarray  # (genes,)


def make_genes(rng: np.random.Generator) -> Genes:
    """Return the genes. Modules, programmes and sex genes do not overlap; about one gene in twenty is not coding.

    Ids of genes that are made up lie in a range that Ensembl has not given out (ENSG000009...).
    """
    named = [(s, i) for s, (i, *_) in SEX_GENES.items()] + [p for t in MARKERS.values() for p in t.items()]
    made = N_GENES - len(named)
    numbers = np.sort(rng.choice(90_000, made, replace=False)) + 900_000
    ids = [i for _, i in named] + [f"ENSG00000{n}.{v}" for n, v in zip(numbers, rng.integers(1, 19, made), strict=True)]
    symbols = [s for s, _ in named] + [f"DEMO{n - 900_000:05d}" for n in numbers]
    place = {s: k for k, s in enumerate(symbols)}

    coding = np.ones(N_GENES, bool)
    coding[place["XIST"]] = False
    base = rng.normal(3.2, 1.1, N_GENES)
    factors = np.zeros((N_GENES, len(FACTORS)))
    pool = rng.permutation(np.arange(len(named), N_GENES))
    for k in range(len(FACTORS)):
        members, pool = pool[:MODULE], pool[MODULE:]
        up = np.where(rng.random(MODULE) < 0.7, 1.0, -1.0)
        factors[members, k] = up * rng.uniform(*LOADING, MODULE)
        base[members] = rng.normal(3.4, 0.7, MODULE)  # well above the counting noise
    tissue = {t: np.zeros(N_GENES) for t in (*MARKERS, "liver")}
    for name in tissue:
        members, pool = pool[:PROGRAMME], pool[PROGRAMME:]
        tissue[name][members] = rng.gamma(3.0, 0.6, PROGRAMME)
        for symbol in MARKERS.get(name, {}):
            base[place[symbol]] = rng.normal(1.0, 0.5)
            tissue[name][place[symbol]] = rng.normal(4.6, 0.4)
    silent, pool = pool[:100], pool[100:]  # hardly there: lncRNA and pseudogenes
    coding[silent] = False
    base[silent] = rng.normal(-2.0, 1.2, len(silent))

    sex = np.zeros((N_GENES, 2))
    for symbol, (_, male, female) in SEX_GENES.items():
        base[place[symbol]] = 0.0
        sex[place[symbol]] = np.log([male, female])
    weak = pool[:20]
    sex[weak, 1] = rng.normal(0, 0.25, len(weak))
    order = np.argsort(np.array(ids))  # a GCT lists its genes by place, not by what they answer to
    return Genes(
        ids=[ids[k] for k in order],
        symbols=[symbols[k] for k in order],
        coding=coding[order],
        base=base[order],
        tissue={t: v[order] for t, v in tissue.items()},
        factors=factors[order],
        sex=sex[order],
        batch=rng.normal(0, 0.13, (N_GENES, 6)),
        ischaemia=rng.normal(0, 0.12, N_GENES),
        dispersion=rng.gamma(4.0, 0.015, N_GENES) + 0.01,
        length_kb=np.exp(rng.normal(0.8, 0.6, N_GENES)),
    )
