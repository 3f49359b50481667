"""The networks against torchgan's, the losses against their formulas, the averaged generator."""

from functools import partial

import pytest
import torch
from torch import nn

from common.errors import InputError
from models import resampling
from models.augment import augmented, cut_out, moved, turned
from models.average import average_decay, calibrate_batch_norm, calibration_inputs, update_average
from models.conditioning import ConditionedCritic, ConditionedGenerator, InputRule
from models.dcgan import DCGANDiscriminator, DCGANGenerator
from models.gan_losses import LOSSES, Shown, gradient_penalty, is_conditional, mismatched_pairs, zero_penalty
from models.gan_steps import critic_step, generator_step
from models.networks import align_moments
from models.resampling import down, up
from models.residual import ResidualCritic
from models.schedules import eased, rate_groups, set_rate


@pytest.mark.parametrize(("side", "channels", "dims"), [(16, 8, 10), (32, 8, 10), (128, 2, 5)])
def test_a_torchgan_state_dict_loads_and_gives_the_same(side, channels, dims):
    theirs = pytest.importorskip("torchgan.models")
    g, c = (
        theirs.DCGANGenerator(dims, side, step_channels=channels),
        theirs.DCGANDiscriminator(side, step_channels=channels),
    )
    ours_g = DCGANGenerator(dims, side, channels)
    ours_c = DCGANDiscriminator(side, channels, norm="batch", output="leaky")
    ours_g.load_state_dict(g.state_dict())
    ours_c.load_state_dict(c.state_dict())
    noise, images = torch.randn(4, dims), torch.rand(4, 3, side, side) * 2 - 1
    for mode in (True, False):
        for theirs_net, ours_net, x in ((g, ours_g, noise), (c, ours_c, images)):
            assert torch.allclose(theirs_net.train(mode)(x), ours_net.train(mode)(x), atol=1e-4)


def test_the_papers_sizes_have_torchgans_keys_and_shapes():
    theirs = pytest.importorskip("torchgan.models")
    with torch.device("meta"):
        pairs = [
            (theirs.DCGANGenerator(2048, 256, step_channels=64), DCGANGenerator(2048, 256, 64)),
            (theirs.DCGANDiscriminator(256, step_channels=64), DCGANDiscriminator(256, 64, "batch", "leaky")),
        ]
    for peer, ours in pairs:
        shapes = {name: value.shape for name, value in peer.state_dict().items()}
        assert shapes == {name: value.shape for name, value in ours.state_dict().items()}


@pytest.mark.parametrize("side", [16, 64])
def test_folded_batch_norm_draws_the_same(side):
    torch.manual_seed(0)
    network = DCGANGenerator(10, side, 8)
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.3, 3), norm.weight.normal_(), norm.bias.normal_()
    network.eval()
    x = torch.randn(4, 10)
    with torch.no_grad():
        before = network(x)
        network.fold()
        after = network(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert torch.allclose(before, after, atol=1e-5) and before.std() > 0.1


def test_a_critic_without_norm_equals_torchgans_without_norm():
    theirs = pytest.importorskip("torchgan.models")
    peer = theirs.DCGANDiscriminator(32, step_channels=8, batchnorm=False, last_nonlinearity=nn.Identity())
    ours = DCGANDiscriminator(32, 8)
    ours.load_state_dict(peer.state_dict())
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    assert torch.allclose(peer(images), ours(images), atol=1e-5)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_shapes_and_range(side):
    tiles = DCGANGenerator(7, side, 4)(torch.randn(3, 7))
    assert tiles.shape == (3, 3, side, side) and tiles.abs().max() <= 1
    assert DCGANDiscriminator(side, 4)(tiles).shape == (3,)


@pytest.mark.parametrize("side", [8, 24, 100])
def test_a_side_that_is_no_power_of_two_is_refused(side):
    with pytest.raises(InputError, match="power of two"):
        DCGANGenerator(7, side, 4)


def test_the_initialisation_is_he():
    torch.manual_seed(0)
    weight = DCGANDiscriminator(32, 64).model[1][0].weight
    assert weight.std().item() == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.03)


# ---- Losses ----


def test_losses_have_the_values_of_their_formulas():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
    assert LOSSES["wgan"].critic(real, fake).item() == pytest.approx(-1.0)
    assert LOSSES["wgan"].generator(fake).item() == pytest.approx(0.0)
    assert LOSSES["lsgan"].critic(real, fake).item() == pytest.approx(0.5 * (1 + 1))
    assert LOSSES["lsgan"].generator(fake).item() == pytest.approx(0.5 * (4 + 0) / 2)
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(2)) + bce(fake, torch.zeros(2))
    assert LOSSES["minimax"].critic(real, fake).item() == pytest.approx(expected.item())
    assert LOSSES["minimax"].generator(fake).item() == pytest.approx(bce(fake, torch.ones(2)).item())


def test_a_run_is_conditional_exactly_when_its_loss_ends_in_vae():
    assert {name for name in LOSSES if is_conditional(name)} == {"wganvae", "wgangpvae", "rpganvae"}


class Linear(nn.Module):
    """score = w . x: its slope is w at every x, so the penalty is (|w| - 1)^2 whatever the images are."""

    norm = "spread"

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, c=None, keep=None, alone=False):
        return x.flatten(1) @ self.weight


def test_the_penalty_of_a_linear_critic():
    critic = Linear(torch.full((12,), 0.5))  # |w| = sqrt(3)
    real, fake = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    penalty = gradient_penalty(critic, real, fake, torch.rand(5))
    assert penalty.item() == pytest.approx((3**0.5 - 1) ** 2, rel=1e-5)
    whole = gradient_penalty(critic, real, fake, torch.rand(5), per="batch")  # one norm for all: sqrt(5) as long
    assert whole.item() == pytest.approx((15**0.5 - 1) ** 2, rel=1e-5)
    assert zero_penalty(critic, real).item() == pytest.approx(3 / 2, rel=1e-5)


def test_the_penalty_is_per_image():
    torch.manual_seed(0)
    critic = ConditionedCritic(DCGANDiscriminator(16, 4))
    real, fake, epsilon = torch.randn(6, 3, 16, 16), torch.randn(6, 3, 16, 16), torch.rand(6)
    each = [gradient_penalty(critic, real[i : i + 1], fake[i : i + 1], epsilon[i : i + 1]) for i in range(6)]
    assert gradient_penalty(critic, real, fake, epsilon).item() == pytest.approx(
        torch.stack(each).mean().item(), rel=1e-4
    )


@pytest.mark.parametrize("output", ["linear", "leaky"])
@pytest.mark.parametrize("sees", [False, True])
def test_the_slope_run_backwards_equals_autograds_and_so_do_its_gradients(output, sees):
    torch.manual_seed(0)
    critic = ConditionedCritic(DCGANDiscriminator(32, 4, output=output), 7 if sees else 0).double()
    real, fake = (torch.randn(5, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    epsilon = torch.rand(5, dtype=torch.float64)
    shown = Shown(torch.randn(5, 7, dtype=torch.float64), torch.tensor([1, 1, 0, 1, 1]).bool()) if sees else Shown()
    found = {}
    for norm in ("none", "autograd"):  # any other norm takes autograd's way
        critic.norm = norm
        critic.zero_grad()
        gradient_penalty(critic, real, fake, epsilon, shown=shown).backward()
        found[norm] = {k: p.grad.clone() for k, p in critic.named_parameters() if p.grad is not None and p.grad.any()}
    assert found["none"].keys() == found["autograd"].keys() != set()
    assert ("of_profile.weight" in found["none"]) == sees
    for key, gradient in found["none"].items():
        assert torch.allclose(gradient, found["autograd"][key], rtol=1e-9, atol=1e-12), key


def test_under_batch_norm_the_slope_is_autograds():
    critic = ConditionedCritic(DCGANDiscriminator(16, 4, norm="batch"))
    gradient_penalty(critic, torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.rand(4)).backward()
    with pytest.raises(ValueError, match="batch norm"):
        critic.slope(torch.randn(4, 3, 16, 16))


def test_the_difference_estimates_the_zero_centred_penalty():
    torch.manual_seed(0)
    weight = torch.randn(3 * 8 * 8)

    def linear(x, *_, **__):  # its slope is `weight` everywhere, so one sign vector gives (v . w)^2
        return x.flatten(1) @ weight

    images = torch.rand(2, 3, 8, 8)
    assert float(zero_penalty(linear, images)) == pytest.approx(float(weight.square().sum()) / 2, rel=1e-5)
    draws = torch.randint(2, (4000, 3, 8, 8)) * 2.0 - 1.0
    estimate = float(zero_penalty(linear, images[:1].expand(4000, -1, -1, -1), signs=draws))
    assert estimate == pytest.approx(float(weight.square().sum()) / 2, rel=0.1)  # 3 sd of its mean: 0.067


def test_mismatched_pairs_ask_the_critic_to_tell_a_tiles_own_profile_from_other_patients():
    torch.manual_seed(0)
    critic = ConditionedCritic(DCGANDiscriminator(16, 4), latent_dim=3)
    h, c = critic.network.features(torch.randn(4, 3, 16, 16)), torch.randn(4, 3)
    s = critic.match(h, c)
    assert torch.allclose(critic.score(h, c), critic.network.score(h) + s.diagonal(), atol=1e-6)
    one = mismatched_pairs(critic, h, Shown(c, patients=torch.tensor([0, 0, 1, 1])))
    pairs = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (3, 0), (3, 1)]  # never within a patient
    by_hand = torch.stack([nn.functional.softplus(s[i, j] - s[i, i]) for i, j in pairs]).mean()
    assert one.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert mismatched_pairs(critic, h, Shown(c, patients=torch.zeros(4))).item() == 0


# ---- The two updates ----


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_each_update_moves_its_own_network_only(name, norm):
    torch.manual_seed(0)
    generator, critic = DCGANGenerator(6, 16, 4), ConditionedCritic(DCGANDiscriminator(16, 4, norm))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (generator, critic)]
    before = [[p.detach().clone() for p in net.parameters()] for net in (generator, critic)]

    def moved():
        pairs = zip((generator, critic), before, strict=True)
        return [any(not torch.equal(p, q) for p, q in zip(net.parameters(), old, strict=True)) for net, old in pairs]

    real, fake = torch.randn(4, 3, 16, 16), generator(torch.randn(4, 6))
    parts = critic_step(critic, optimizers[1], LOSSES[name], real, fake, torch.rand(4))
    assert moved() == [False, True]
    assert ("penalty" in parts) == bool(LOSSES[name].penalty)
    before[1] = [p.detach().clone() for p in critic.parameters()]
    generator_step(critic, optimizers[0], LOSSES[name], fake, real=real)
    assert moved() == [True, False]
    assert all(p.requires_grad for p in critic.parameters())


def test_wgan_clips_and_the_others_do_not():
    for name in LOSSES:
        torch.manual_seed(0)
        critic = ConditionedCritic(DCGANDiscriminator(16, 4))
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
        critic_step(
            critic, optimizer, LOSSES[name], torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.rand(4)
        )
        largest = max(p.abs().max().item() for p in critic.parameters())
        assert (largest <= 0.01) == (name == "wgan")


# ---- The average ----


def test_the_averages_half_life_is_in_images():
    assert average_decay(8, 1000, 10**9) ** (1000 / 8) == pytest.approx(0.5)
    assert average_decay(8, 1000, 80) == pytest.approx(0.5)  # early: a tenth of the images shown so far
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * model.weight.detach()
    update_average(average, model, 0.9)
    assert torch.allclose(average.weight, expected)


def test_calibrated_statistics_depend_on_the_weights_alone():
    torch.manual_seed(0)
    model = ConditionedGenerator(DCGANGenerator(6, 16, 4), InputRule(), 6)
    calibrate_batch_norm(model, calibration_inputs(model, 99))
    once = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()(torch.randn(4, 6) * 9)
    calibrate_batch_norm(model, calibration_inputs(model, 99))
    assert not model.training
    assert all(torch.equal(v, once[k]) for k, v in model.state_dict().items())
    first, norm, _ = model.network.model[0]
    assert norm.running_var.mean().item() == pytest.approx(first.weight.square().sum(0).mean().item(), rel=0.2)


def test_moments_from_a_file_in_another_memory_layout_are_read_as_they_were_written():
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(6, 5, 4, 4).contiguous(memory_format=layout))
        optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
        weight.grad = torch.randn(6, 5, 4, 4).contiguous(memory_format=layout)
        optimizer.step()
        state = optimizer.state_dict()
        state["state"][0] |= {"exp_avg": torch.randn(6, 5, 4, 4), "exp_avg_sq": torch.rand(6, 5, 4, 4)}
        optimizer.load_state_dict(state)
        align_moments(optimizer)
        optimizer.step()
        found.append(weight.detach())
    assert torch.allclose(*found, atol=1e-6)


# ---- The convolutions ----


def both_ways(ours, peer, inputs):
    """Assert equal values, gradients, and gradients of the gradients' squares, in double precision."""
    for function in (ours, peer):
        y = function(*inputs)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        found = [y, *first, *second]
        if function is ours:
            mine = found
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(mine, found, strict=True))


@pytest.mark.parametrize("channels", [7, 3])
@pytest.mark.parametrize("side", [2, 4, 8, 16, 32])
def test_the_other_forms_of_the_convolutions_equal_torchs_with_both_derivatives(side, channels, monkeypatch):
    monkeypatch.setattr(resampling, "LARGE", 0)  # the matrix product, up to a side of resampling.SMALL
    source = torch.Generator().manual_seed(side)
    x, w, v, b = (
        torch.randn(*shape, generator=source, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 5, side, side), (channels, 5, 4, 4), (5, channels, 4, 4), (channels,))
    )
    options = {"stride": 2, "padding": 1}
    both_ways(down, partial(nn.functional.conv2d, **options), (x, w, b))
    both_ways(up, partial(nn.functional.conv_transpose2d, **options), (x, v, b))


# ---- Turned tiles ----


def test_turns_are_the_eight_symmetries_of_a_square_and_move_pixels_only():
    image = torch.arange(2 * 9.0).reshape(1, 2, 3, 3)
    found = turned(image.expand(8, -1, -1, -1), torch.arange(8))
    assert torch.equal(found[0], image[0])
    assert torch.equal(found[1, 0], torch.tensor([[2.0, 1, 0], [5, 4, 3], [8, 7, 6]]))
    assert torch.equal(found[2, 0], torch.tensor([[6.0, 7, 8], [3, 4, 5], [0, 1, 2]]))
    assert torch.equal(found[4, 0], torch.tensor([[0.0, 3, 6], [1, 4, 7], [2, 5, 8]]))
    assert len({tuple(x.flatten().tolist()) for x in found}) == 8
    assert torch.equal(found.flatten(2).sort(2).values, image.flatten(2).expand(8, -1, -1))
    which = torch.tensor([5, 0, 5])
    assert torch.equal(turned(image.expand(3, -1, -1, -1), which), found[which])


def test_moved_tiles_are_reflected_at_the_edge_and_cut_out_tiles_have_a_grey_quarter():
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(3, -1, -1, -1)
    found = moved(image, torch.tensor([[0, 0], [1, 0], [0, -2]]))
    assert torch.equal(found[0], image[0])
    assert torch.equal(found[1, 0], image[0, 0][[1, 0, 1, 2]])
    assert torch.equal(found[2, 0], image[0, 0][:, [2, 3, 2, 1]])
    holed = cut_out(torch.ones(2, 1, 4, 4), torch.tensor([[0.5, 0.5], [0.0, 0.25]]))
    assert holed[0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert holed[1, 0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_augmentation_has_the_asked_for_strength_and_two_derivatives():
    images = torch.rand(400, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    source = torch.Generator().manual_seed(0)
    assert torch.equal(augmented(images, 0.0, source), images)
    found = augmented(images, 0.3, source)
    untouched = (found == images).flatten(1).all(1).double().mean()
    assert untouched == pytest.approx(0.7**3, abs=0.08)  # or a little more: some turns and shifts are none
    assert torch.equal(*(augmented(images, 0.5, torch.Generator().manual_seed(1)) for _ in range(2)))

    def shown(x):
        return augmented(x, 0.5, torch.Generator().manual_seed(2)).pow(3)

    few = images[:4].detach().requires_grad_(True)
    assert torch.autograd.gradcheck(shown, few) and torch.autograd.gradgradcheck(shown, few)


@pytest.mark.parametrize(("images", "value"), [(0, 4.0), (50, 3.0), (100, 2.0), (500, 2.0)])
def test_settings_ease_from_start_to_end_along_half_a_cosine(images, value):
    assert eased(4.0, 2.0, images, 100) == pytest.approx(value)
    assert eased(4.0, 2.0, images, 0) == 2.0
    assert eased(4.0, 2.0, 25, 100) == pytest.approx(3 + 0.5**0.5)


# ---- Learning rates ----


def test_equalised_rates_move_every_layer_by_the_same_part_of_its_weights():
    torch.manual_seed(0)
    critic = ConditionedCritic(ResidualCritic(32, 8), 5)
    plain, equalised = rate_groups(critic, False), rate_groups(critic, True)
    assert len(plain) == 1 and plain[0]["share"] == 1
    for groups in (plain, equalised):
        assert sorted(map(id, critic.parameters())) == sorted(id(w) for g in groups for w in g["params"])
    optimizer = torch.optim.Adam(equalised, lr=1.0, betas=(0.0, 0.99))
    old = torch.optim.Adam(critic.parameters(), lr=1.0)  # as in a file of before the groups
    set_rate(old, 0.03)
    assert [group["lr"] for group in old.param_groups] == [0.03]
    set_rate(optimizer, 0.01)
    before = [w.detach().clone() for w in critic.parameters()]
    critic(torch.randn(4, 3, 32, 32), torch.randn(4, 5)).sum().backward()
    optimizer.step()
    pairs = zip(critic.named_parameters(), before, strict=True)
    moved = {name: (w.detach() - b).square().mean().sqrt().item() for (name, w), b in pairs}
    assert critic.network.blocks[2].second.weight[0].numel() == 32 * 9
    assert moved["network.blocks.2.second.weight"] == pytest.approx(0.01 / 288**0.5, rel=0.1)
    assert moved["network.from_rgb.weight"] == pytest.approx(0.01 / 3**0.5, rel=0.1)
    assert moved["network.from_rgb.bias"] == pytest.approx(0.01, rel=0.1)
