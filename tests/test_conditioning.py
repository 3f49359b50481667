"""The conditioning is alive: what models/conditioning.py claims, and that the published form fails it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from models.conditioning import (
    ConditionedCritic,
    ConditionedGenerator,
    InputRule,
    infuse,
    published_infuse,
    standardise_latent,
)
from models.dcgan import DCGANGenerator
from models.generate import generate_tiles
from models.residual import TAPS, ResidualCritic, ResidualGenerator, _one_filter, enlarge, halve
from models.schedules import side_at

DIMS, N = 24, 8


class Echo(torch.nn.Module):
    """A network that returns its input."""

    pixel_noise = 0

    def forward(self, x, pixels):
        return x


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


def test_the_published_form_without_expression_is_what_it_is_with_any_single_one():
    _, _, z_a, _ = two_patients()
    network = ConditionedGenerator(Echo(), InputRule(standardise="batch", noise="uniform"), DIMS, DIMS)
    noise = torch.randn(N, DIMS)
    with_one, without = network.enter(noise, z_a.expand(N, -1)), network.enter(noise, None)
    assert torch.allclose(with_one, without, atol=1e-4) and without.std(0).mean() == pytest.approx(1, abs=0.01)
    with pytest.raises(InputError, match="no null to move from"):
        network.enter(noise, z_a.expand(N, -1), guidance=2.0)


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
    for key, value in (("noise", "gaussian"), ("standardise", "none"), ("condition_share", 1.5), ("condition", "x")):
        with pytest.raises(InputError, match=key):
            InputRule.of(good | {key: value})
    with pytest.raises(InputError, match="two tiles"):
        published_infuse(torch.randn(1, DIMS), torch.randn(DIMS))


def test_generated_tiles_differ_between_patients_and_not_in_the_published_form():
    mean, std, z_a, z_b = two_patients()
    torch.manual_seed(0)
    network = DCGANGenerator(DIMS, 16, 8)

    def tiles(rule, z):
        generator = ConditionedGenerator(network, rule, DIMS, DIMS)
        return torch.cat(list(generate_tiles(generator, N, 5, rule.condition(z, mean, std))))

    ours, published = InputRule(share=0.5), InputRule("uniform", "batch")
    assert (tiles(ours, z_a) - tiles(ours, z_b)).abs().mean() > 0.01
    assert torch.allclose(tiles(published, z_a), tiles(published, z_b), atol=1e-3)


# ---- In the networks ----


def made(network=ResidualGenerator, how="concat", latent=5):
    torch.manual_seed(0)
    dims = latent if how == "add" else 7
    into = dims + (6 if how == "concat" else 0)
    generator = ConditionedGenerator(network(into, 16, 4), InputRule(how=how), dims, latent, cond_dim=6).eval()
    with torch.no_grad():
        generator.null.normal_()  # as if trained
    return generator


@pytest.mark.parametrize("network", [DCGANGenerator, ResidualGenerator])
@pytest.mark.parametrize("how", ["add", "concat"])
def test_expression_reaches_the_tile_beside_the_noise_or_added_to_it(network, how):
    generator, c = made(network, how), torch.randn(2, 5)
    noise = generator.draw(1, torch.Generator().manual_seed(1)).expand(2, -1)
    with torch.no_grad():
        one, other = generator(noise, c)
        assert (one - other).abs().mean() > 1e-3
        again = generator(noise[:1], c[:1])
    assert torch.allclose(again[0], one, atol=1e-5)  # whatever else is in the batch


@pytest.mark.parametrize("how", ["add", "concat"])
def test_dropped_expression_is_the_learned_null_and_guidance_goes_along_the_line_from_it(how):
    generator, c = made(how=how), torch.randn(3, 5)
    noise = torch.randn(3, generator.encoding_dims)
    with torch.no_grad():
        null, full = generator.enter(noise, None), generator.enter(noise, c)
        half_kept = generator.enter(noise, c, torch.tensor([True, False, True]))
        guided = generator.enter(noise, c, guidance=2.0)
    assert torch.equal(half_kept[1], null[1]) and torch.equal(half_kept[0], full[0])
    assert torch.allclose(guided - null, 2 * (full - null), atol=1e-5)
    assert torch.allclose(generator.enter(noise, c, guidance=0.0), null, atol=1e-5)


def test_a_plain_gan_has_nothing_of_expression():
    generator = ConditionedGenerator(ResidualGenerator(7, 16, 4), InputRule(how="concat"), 7)
    assert not generator.conditional and not [k for k in generator.state_dict() if not k.startswith("network.")]
    with pytest.raises(InputError, match="needs the VAE's 5"):
        ConditionedGenerator(DCGANGenerator(7, 16, 4), InputRule(), 7, 5)


def test_the_critic_sees_the_expression_only_where_it_is_kept():
    torch.manual_seed(0)
    critic = ConditionedCritic(ResidualCritic(16, 4), 5).eval()
    images, c = torch.randn(4, 3, 16, 16), torch.randn(4, 5)
    kept = torch.tensor([True, True, False, False])
    with torch.no_grad():
        plain, seen, some = critic(images), critic(images, c), critic(images, c, kept)
    assert torch.equal(some[:2], seen[:2]) and torch.equal(some[2:], plain[2:]) and (seen != plain).all()


def test_a_critics_slope_is_one_tiles_own_though_it_knows_the_batchs_spread():
    torch.manual_seed(0)
    critic, images = ConditionedCritic(ResidualCritic(16, 4)), torch.randn(4, 3, 16, 16)
    images.requires_grad_(True)
    (held,) = torch.autograd.grad(critic(images, alone=True)[0], images)
    (free,) = torch.autograd.grad(critic(images)[0], images)
    assert held[1:].abs().max() == 0 and free[1:].abs().max() > 0


@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_residual_networks_shapes_and_what_size_costs(side):
    generator, critic = ResidualGenerator(7, side, 4, depth=2), ResidualCritic(side, 4, depth=2)
    tiles = generator(torch.randn(2, 7), torch.randn(2, generator.pixel_noise))
    assert tiles.shape == (2, 3, side, side) and critic.score(critic.features(tiles)).shape == (2,)
    with pytest.raises(InputError, match="power of two"):
        ResidualGenerator(7, 48, 4)


@pytest.mark.parametrize("taps, smaller", [(6, halve), (4, lambda tiles: F.avg_pool2d(tiles, 2))])
def test_a_network_that_grows_draws_the_same_enlarged_until_its_new_side_is_trained(taps, smaller):
    torch.manual_seed(0)
    generator, critic = ResidualGenerator(7, 64, 4, 2, 16, taps), ResidualCritic(64, 4, 2, 16, taps)
    x, pixels, tiles = torch.randn(2, 7), torch.randn(2, generator.pixel_noise), {}
    for side in (16, 32, 64):
        generator.side = side
        tiles[side] = generator(x, pixels)
        assert tiles[side].shape == (2, 3, side, side) and tiles[side].std() > 0.01
    for side in (32, 64):
        enlarged = F.interpolate(tiles[side // 2], scale_factor=2.0, mode="bilinear")
        assert torch.allclose(tiles[side], enlarged, atol=1e-6)
        fine = torch.randn(2, 3, side, side)
        with torch.no_grad():  # and its critic judges by what it has learnt so far
            scores = [critic.score(critic.features(t)) for t in (fine, smaller(fine))]
        assert torch.allclose(*scores, atol=1e-6)
    critic.score(critic.features(tiles[64])).sum().backward()
    for new in (generator.to_rgb, generator.early_to_rgb["32"], critic.from_rgb, critic.early_from_rgb["32"]):
        assert new.weight.grad.abs().sum() > 0  # it can be learnt
    assert [k for k, v in critic.apart_from_rgb.items() if v.weight.grad.abs().sum() > 0] == (
        ["16", "32"] if taps > 4 else []
    )
    with pytest.raises(InputError, match="first_side = 64: expected 0, or a power of two from 8"):
        ResidualCritic(32, 4, 1, 64)


def test_the_critic_that_grows_sees_what_alternates_from_pixel_to_pixel_without_rectifying_it():
    torch.manual_seed(0)
    critic, grey, slopes = ResidualCritic(64, 4, 2, 32), torch.zeros(1, 3, 64, 64), []
    stripes = torch.ones(64).index_fill(0, torch.arange(1, 64, 2), -1).expand(1, 3, 64, 64)
    for weight in critic.apart_from_rgb.values():
        for std in (0.0, 0.1):
            torch.nn.init.normal_(weight.weight, std=std)
            first, second = (critic.look(torch.zeros(1, 8, 32, 32), grey + k * stripes, "32")[0] for k in (1e-3, 2e-3))
            inside = (second - first)[..., 4:-4, 4:-4]
            slopes.append(float(inside.abs().max()) / 1e-3)
    assert slopes[0] < 1e-4 and slopes[1] > 0.1


def test_sides_double_in_equal_parts_of_the_images():
    assert [side_at(images, 16, 64, 100) for images in (0, 49, 50, 99, 100, 1000)] == [16, 16, 32, 32, 64, 64]
    assert side_at(0, 0, 64, 0) == side_at(0, 64, 64, 100) == 64


def test_a_constant_stays_constant_when_sides_change():
    x = torch.ones(1, 2, 8, 8)
    assert torch.allclose(halve(x)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    for taps in TAPS:
        assert torch.allclose(enlarge(x, taps)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))  # no checkerboard inside
        noise = torch.randn(200, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        spread = enlarge(noise, taps)[..., 4:-4, 4:-4].var((0, 1))
        of_phase = [spread[i::2, j::2].mean() for i in (0, 1) for j in (0, 1)]
        assert max(of_phase) / min(of_phase) < 1.05  # nor in how sharp a pixel is


def test_new_neighbours_differ_alike_wherever_they_lie():
    noise = torch.randn(100, 2, 16, 16, generator=torch.Generator().manual_seed(0))

    def uneven(taps):  # how much more neighbours differ between the same two old pixels than on either side of one
        steps = enlarge(noise, taps)[..., 4:-4, 4:-4].diff(dim=3).square().mean((0, 1, 2))
        return (steps[::2].mean() / steps[1::2].mean()).log2().abs()

    assert 1.9 < uneven(4) < 2.1 and uneven(6) < 0.8  # four times; what is rectified after it becomes a grid
    assert torch.equal(enlarge(noise), enlarge(noise, 6))


def test_the_critic_sees_what_alternates_from_pixel_to_pixel():
    torch.manual_seed(0)
    critic = ResidualCritic(32, 8)
    grid = torch.tensor([1.0, -1.0]).repeat(16).expand(1, 3, 32, 32)
    wave = torch.cos(torch.arange(32) * torch.pi / 8).expand(1, 3, 32, 32)  # 16 pixels long
    plain = torch.randn(1, 3, 32, 32) * 0.1
    change = [(critic.features(plain + 0.3 * x) - critic.features(plain)).norm() for x in (grid, wave)]
    assert change[0] > 0.3 * change[1]


def test_halving_and_spreading_are_each_others_gradient():
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(halve, x) and torch.autograd.gradgradcheck(halve, x)
    for taps in TAPS:
        assert torch.autograd.gradcheck(lambda x, n=taps: enlarge(x, n), x[..., :4, :4].detach().requires_grad_(True))


def test_drawing_before_training_leaves_the_networks_trainable():
    generator = made(how="concat")
    _one_filter.cache_clear()
    list(generate_tiles(generator, 2, 5, torch.randn(5)))  # in inference mode: what it caches is used in training
    critic = ConditionedCritic(ResidualCritic(16, 4), 5)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(images, alone=True).sum(), images, create_graph=True)
    slope.square().sum().backward()
    generator(torch.randn(2, generator.noise_dims), torch.randn(2, 5)).sum().backward()
    assert critic.network.from_rgb.weight.grad.abs().sum() > 0 and generator.project.weight.grad.abs().sum() > 0
