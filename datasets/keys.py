"""Names and what follows from them: a sample's donor, its split, its slide; a tissue's slug."""

import hashlib
import re
from collections.abc import Callable, Iterable

SLIDE_SUFFIXES = (
    ".ome.tiff", ".ome.tif", ".svs", ".tiff", ".tif", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide",
    ".qptiff", ".czi", ".dcm",
)  # fmt: skip
TEST_SHARE, VAL_SHARE = 0.20, 0.16  # the rest, 64 %, is train; shares of the published split


def slide_key(name: str) -> str:
    """Return a slide's name without its folder and known suffix: "a/GTEX-15RJ7-0625.svs" -> "GTEX-15RJ7-0625"."""
    name = str(name).strip().rsplit("/", 1)[-1]
    lower = name.lower()
    for suffix in SLIDE_SUFFIXES:
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def known_donor(name: str) -> str | None:
    """Return the donor that a GTEx id (two fields) or a TCGA id (three fields) names, None for any other name."""
    fields = slide_key(name).split("-")
    if fields[0].upper() == "GTEX" and len(fields) >= 2:
        return "-".join(fields[:2])
    if fields[0].upper() == "TCGA" and len(fields) >= 3:
        return "-".join(fields[:3])
    return None


def donor_of(sample: str) -> str:
    """Return the donor of a sample or slide: "GTEX-15RJ7-0625.svs" -> "GTEX-15RJ7"; any other name is its own donor."""
    return known_donor(sample) or slide_key(sample)


def site_of(name: str) -> str | None:
    """Return the two digits of the collection site: "06" of GTEX-X-0625 and GTEX-X-0626-SM-1, "01" of TCGA-X-Y-01A-...

    The last digits tell aliquots apart (25: the slide, 26: the tissue for RNA), the first two the piece that both came
    from. None where the name has no such field.
    """
    donor = known_donor(name)
    rest = slide_key(name)[len(donor) + 1 :] if donor else ""
    match = re.match(r"\d\d", rest)
    return match.group() if match else None


def split_of(donor: str, split_seed: int) -> str:
    """Return "train", "val" or "test" (64/16/20 %), from a hash of the seed and the donor: the same in every stage."""
    u = int(hashlib.sha256(f"{split_seed}:{donor}".encode()).hexdigest()[:8], 16) / 2**32
    return "test" if u < TEST_SHARE else "val" if u < TEST_SHARE + VAL_SHARE else "train"


def slug(name: str) -> str:
    """Return a tissue's name as used in paths and columns: "Brain - Cortex" -> "brain_cortex"."""
    return re.sub(r"[^0-9a-z]+", "_", str(name).lower()).strip("_")


def match_samples(
    samples: Iterable[str], slides: Iterable[str], one_tissue: bool = True
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Pair expression samples with slides: ({sample: slide}, [(name, reason) of every sample and slide left over]).

    In this order: the same name; the same donor and site digits; the donor's only sample
    (skipped where `one_tissue` is false: the samples are of several tissues, so that sample may be of another organ).
    Each slide and each sample is used once; of several candidates the first by name is taken and the others reported.
    The result does not depend on the order of the arguments.
    """
    samples, slides = sorted({str(s) for s in samples}), sorted({str(s) for s in slides})
    pairs: dict[str, str] = {}
    taken: dict[str, str] = {}

    def pair_by(key_of: Callable[[str], object]) -> None:
        waiting: dict[object, list[str]] = {}
        for slide in slides:
            if slide not in taken and (key := key_of(slide)) is not None:
                waiting.setdefault(key, []).append(slide)
        for sample in samples:
            key = None if sample in pairs else key_of(sample)
            if key is not None and waiting.get(key):
                slide = waiting[key].pop(0)
                pairs[sample], taken[slide] = slide, sample

    pair_by(slide_key)
    pair_by(lambda name: (known_donor(name), site_of(name)) if site_of(name) else None)
    if one_tissue:
        of_donor = _by_donor(samples)
        pair_by(lambda name: donor_of(name) if len(of_donor.get(donor_of(name), [])) == 1 else None)
    return pairs, _left_over(samples, slides, pairs, taken)


def _by_donor(names: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(donor_of(name), []).append(name)
    return groups


def _left_over(
    samples: list[str], slides: list[str], pairs: dict[str, str], taken: dict[str, str]
) -> list[tuple[str, str]]:
    """Return (name, reason) of every sample and slide that has no partner."""
    reasons = []
    for kind, mine, others, done in (("sample", samples, slides, pairs), ("slide", slides, samples, taken)):
        other_kind = "slide" if kind == "sample" else "sample"
        others_of = _by_donor(others)
        for name in mine:
            if name in done:
                continue
            near = others_of.get(donor_of(name), [])
            same_site = [o for o in near if site_of(o) is not None and site_of(o) == site_of(name)]
            if same_site:
                reason = f"the {other_kind} of its site, {same_site[0]}, went to another {kind}"
            elif near:
                reason = f"its donor has {len(near)} {other_kind}(s) of other sites, the first {near[0]}"
            else:
                reason = f"no {other_kind} of donor {donor_of(name)}"
            reasons.append((name, f"{kind}: {reason}"))
    return reasons
