"""Names: donors, splits, slugs, and which sample belongs to which slide."""

import random

from hypothesis import given
from hypothesis import strategies as st

from datasets.keys import donor_of, match_samples, site_of, slide_key, slug, split_of


def test_donor_site_and_slide_of_known_forms():
    assert donor_of("GTEX-15RJ7-0625.svs") == donor_of("GTEX-15RJ7-0626-SM-5O98Q") == "GTEX-15RJ7"
    assert donor_of("TCGA-CR-7395-01A-01-TS1.svs") == "TCGA-CR-7395"
    assert donor_of("patient 7.ndpi") == "patient 7"
    assert site_of("GTEX-15RJ7-0625.svs") == site_of("GTEX-15RJ7-0626-SM-5O98Q") == "06"
    assert site_of("TCGA-CR-7395-01A-01-TS1.svs") == "01"
    assert site_of("GTEX-15RJ7") is None and site_of("patient 7") is None
    assert slide_key("slides/lung/GTEX-15RJ7-0625.SVS") == "GTEX-15RJ7-0625"
    assert slide_key("a.ome.tiff") == "a" and slide_key("GTEX-11DXY-0526-SM-5EGGQ") == "GTEX-11DXY-0526-SM-5EGGQ"


def test_slug():
    assert slug("Brain - Cortex") == "brain_cortex"
    assert slug("Skin - Sun Exposed (Lower leg)") == "skin_sun_exposed_lower_leg"


def test_split_is_a_fixed_function_of_seed_and_donor():
    assert [split_of(f"GTEX-{i}", 99) for i in range(6)] == [split_of(f"GTEX-{i}", 99) for i in range(6)]
    splits = [split_of(f"GTEX-{i}", 99) for i in range(20000)]
    for name, share in (("train", 0.64), ("val", 0.16), ("test", 0.20)):
        assert abs(splits.count(name) / len(splits) - share) < 0.01
    assert splits != [split_of(f"GTEX-{i}", 100) for i in range(20000)]


def test_samples_and_slides_match_by_site_then_by_the_donors_only_sample():
    samples = ["GTEX-X-0626-SM-1", "GTEX-Y-0526-SM-2", "GTEX-Z-0326-SM-3", "GTEX-Z-0426-SM-4", "GTEX-Q-0126-SM-5"]
    slides = ["GTEX-X-0625.svs", "GTEX-X-0725.svs", "GTEX-Y-0925.svs", "GTEX-Z-0625.svs", "GTEX-W-0125.svs"]
    pairs, left = match_samples(samples, slides)
    assert pairs == {"GTEX-X-0626-SM-1": "GTEX-X-0625.svs", "GTEX-Y-0526-SM-2": "GTEX-Y-0925.svs"}
    reasons = dict(left)
    assert set(reasons) == (set(samples) | set(slides)) - set(pairs) - set(pairs.values())
    assert reasons["GTEX-Q-0126-SM-5"] == "sample: no slide of donor GTEX-Q"
    assert reasons["GTEX-Z-0625.svs"] == "slide: its donor has 2 sample(s) of other sites, the first GTEX-Z-0326-SM-3"


def test_the_only_sample_of_a_donor_is_not_used_when_samples_are_of_several_tissues():
    pairs, left = match_samples(["GTEX-Y-0526-SM-2"], ["GTEX-Y-0925.svs"], one_tissue=False)
    assert not pairs and len(left) == 2


def test_two_samples_of_one_site_share_no_slide():
    pairs, left = match_samples(["GTEX-X-0626-SM-2", "GTEX-X-0626-SM-1"], ["GTEX-X-0625.svs"])
    assert pairs == {"GTEX-X-0626-SM-1": "GTEX-X-0625.svs"}
    assert left == [("GTEX-X-0626-SM-2", "sample: the slide of its site, GTEX-X-0625.svs, went to another sample")]


def test_equal_names_match_whatever_their_form():
    pairs, left = match_samples(["patient 7", "p8"], ["patient 7.ndpi"])
    assert pairs == {"patient 7": "patient 7.ndpi"} and left == [("p8", "sample: no slide of donor p8")]


names = st.builds(
    lambda d, s, a: f"GTEX-{d}-{s:02d}{a}", st.sampled_from("ABCD"), st.integers(0, 5), st.sampled_from(["25", "26"])
)


@given(st.lists(names, unique=True, max_size=12), st.lists(names, unique=True, max_size=12), st.randoms())
def test_matching_is_one_to_one_complete_and_independent_of_order(samples, slides, rng: random.Random):
    pairs, left = match_samples(samples, slides)
    assert len(set(pairs.values())) == len(pairs)
    assert all(donor_of(a) == donor_of(b) for a, b in pairs.items())
    assert len(left) == len(set(samples)) + len(set(slides)) - 2 * len(pairs)
    shuffled_samples, shuffled_slides = rng.sample(samples, len(samples)), rng.sample(slides, len(slides))
    assert match_samples(shuffled_samples, shuffled_slides) == (pairs, left)
