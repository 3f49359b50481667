"""The conditioning is alive: what models/conditioning.py claims, and that the published form fails it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from models.conditioning import InputRule, infuse, published_infuse, standardise_latent
from models.dcgan import DCGANGenerator
from models.generate import generate_tiles

DIMS, N = 24, 8


def two_patients(seed=0):
    """Latent means of 200 training donors, and of two patients."""
    source = torch.Generator().manual_seed(seed)
    donors = 3 + 2 * torch.randn(200, DIMS, generator=source)
    return donors.mean(0), donors.std(0), donors[0], donors[1]


def inputs(form, noise, z, mean, std):
    return published_infuse(noise, z) if form == "published" else infuse(noise, standardise_latent(z, mean, std), 0.5)


def differ_between_patients(form):
    """The claim: with the same noise, two patients give different generator inputs and different tiles."""
    mean, std, z_a, z_b = two_patients()
    noise = torch.randn(N, DIMS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_a, x_b = (inputs(form, noise, z.double(), mean.double(), std.double()) for z in (z_a, z_b))
    torch.manual_seed(0)
    generator = DCGANGenerator(DIMS, 16, 8).eval()
    with torch.no_grad():
        tiles_a, tiles_b = generator(x_a.float()), generator(x_b.float())
    inputs_differ = (x_a - x_b).abs().mean() > 0.1
    tiles_differ = (tiles_a - tiles_b).abs().mean() > 0.01
    return bool(inputs_differ and tiles_differ)


def test_two_patients_give_different_inputs_and_tiles():
    assert differ_between_patients("ours")


def test_the_published_form_fails_exactly_that_test():
    assert not differ_between_patients("published")
    _, _, z_a, z_b = two_patients()
    noise = torch.randn(N, DIMS, dtype=torch.float64)
    difference = (published_infuse(noise, z_a.double()) - published_infuse(noise, z_b.double())).abs().max()
    assert difference < 1e-12  # the patient cancels: not small, gone


def test_the_published_form_sees_patients_only_where_they_share_a_batch():
    _, _, z_a, z_b = two_patients()
    noise = torch.randn(N, DIMS)
    mixed = torch.stack([z_a, z_b] * (N // 2))
    assert not torch.allclose(published_infuse(noise, mixed), published_infuse(noise, z_a), atol=1e-3)


def test_a_tile_does_not_depend_on_its_batch():
    noise, c = torch.randn(N, DIMS), torch.randn(N, DIMS)
    assert torch.equal(infuse(noise, c, 0.5)[3:4], infuse(noise[3:4], c[3:4], 0.5))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1))
def test_the_input_has_unit_variance_for_any_share(share):
    source = torch.Generator().manual_seed(0)
    noise, c = (torch.randn(4000, 4, generator=source) for _ in range(2))
    assert infuse(noise, c, share).var().item() == pytest.approx(1, abs=0.05)


def test_share_zero_is_noise_and_share_one_is_the_profile():
    noise, c = torch.randn(N, DIMS), torch.randn(DIMS)
    assert torch.equal(infuse(noise, c, 0.0), noise)
    assert torch.equal(infuse(noise, c, 1.0), c.expand(N, -1))


def test_latents_are_measured_in_training_spread_and_idle_dimensions_are_zero():
    mean, std = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 1e-4])
    c = standardise_latent(torch.tensor([[5.0, 6.0]]), mean, std)
    assert c[0].tolist() == pytest.approx([2.0, 0.0], abs=1e-5)


def test_training_donors_have_unit_variance():
    source = torch.Generator().manual_seed(0)
    donors = 3 + 2 * torch.randn(200, DIMS, generator=source)
    c = standardise_latent(donors, donors.mean(0), donors.std(0))
    assert torch.allclose(c.mean(0), torch.zeros(DIMS), atol=1e-4)
    assert torch.allclose(c.std(0), torch.ones(DIMS), atol=1e-4)


def test_the_rule_in_a_checkpoint_is_checked():
    good = {"noise": "normal", "standardise": "train", "condition_share": 0.5}
    assert InputRule.of(good) == InputRule()
    for key, value in (("noise", "gaussian"), ("standardise", "none"), ("condition_share", 1.5)):
        with pytest.raises(InputError, match=key):
            InputRule.of(good | {key: value})
    with pytest.raises(InputError, match="two tiles"):
        published_infuse(torch.randn(1, DIMS), torch.randn(DIMS))


def test_generated_tiles_differ_between_patients_and_not_in_the_published_form():
    mean, std, z_a, z_b = two_patients()
    torch.manual_seed(0)
    generator = DCGANGenerator(DIMS, 16, 8).eval()

    def tiles(rule, z):
        return torch.cat(list(generate_tiles(generator, N, 5, rule.condition(z, mean, std), rule=rule)))

    ours, published = InputRule(share=0.5), InputRule("uniform", "batch")
    assert (tiles(ours, z_a) - tiles(ours, z_b)).abs().mean() > 0.01
    assert torch.allclose(tiles(published, z_a), tiles(published, z_b), atol=1e-3)
