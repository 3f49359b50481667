"""Winograd's convolutions equal the plain ones within rounding, at any size, padding and number of threads."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metrics.frechet import frechet_distance
from models import winograd
from models.by_image import ByImage
from models.features import Extractor, load_extractor
from models.inception import FIDInception, Joined, fuse
from models.packed import can_pack
from models.winograd import TILES, WinogradConvolution, pays, terms, transforms

SAME = {(3, 3): (1, 1), (5, 5): (2, 2), (1, 7): (0, 3), (7, 1): (3, 0), (1, 3): (0, 1), (3, 1): (1, 0)}  # paddings


@pytest.fixture
def threads():
    """Sets the number of torch's threads; the old one is restored."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def layer(c_in, c_out, kernel, padding, seed=0):
    conv = nn.Conv2d(c_in, c_out, kernel, padding=padding).requires_grad_(False)
    source = torch.Generator().manual_seed(seed)
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=source) / conv.weight[0].numel() ** 0.5)
    conv.bias.copy_(torch.randn(c_out, generator=source))
    return conv


def rectified(conv, x, dtype):
    return F.relu(F.conv2d(x.to(dtype), conv.weight.to(dtype), conv.bias.to(dtype), padding=conv.padding))


def test_every_filter_is_tried():
    assert set(TILES) == set(SAME)


@pytest.mark.parametrize(("m", "r"), [(1, 1), (4, 3), (4, 5), (6, 7)])
def test_the_matrices_convolve(m, r):
    a, g, b = transforms(m, r)
    rng = np.random.default_rng(r)
    pixels, taps = rng.normal(size=m + r - 1), rng.normal(size=r)
    np.testing.assert_allclose(a @ ((g @ taps) * (b @ pixels)), np.correlate(pixels, taps), atol=1e-12)


def test_terms_are_the_matrix():
    _, _, b = transforms(6, 7)
    of = terms(b)
    assert of.sources.shape[1] % 4 == 0
    vector = np.random.default_rng(0).normal(size=len(b))
    np.testing.assert_allclose((of.factors * vector[of.sources]).sum(1), b @ vector, atol=1e-5)


FORMS = [*SAME.items(), ((3, 3), (0, 0)), ((5, 5), (0, 1)), ((7, 1), (3, 1)), ((3, 1), (0, 2)), ((1, 7), (1, 3))]
SIDES = [(1, 1), (2, 3), (7, 7), (8, 17), (13, 9), (35, 11)]


@pytest.mark.parametrize(
    ("kernel", "padding", "side"),
    [(k, p, s) for k, p in FORMS for s in SIDES if all(n + 2 * q >= r for n, q, r in zip(s, p, k, strict=True))],
)
def test_a_layer_is_the_plain_convolution(kernel, padding, side):
    conv = layer(19, 33, kernel, padding)
    x = torch.randn(3, 19, *side, generator=torch.Generator().manual_seed(1))
    found, exact = WinogradConvolution(conv)(x), rectified(conv, x, torch.float64)
    assert found.shape == exact.shape and found.is_contiguous(memory_format=torch.channels_last)
    scale = exact.abs().max()
    assert (found - exact).abs().max() < 2e-5 * scale
    assert (found - rectified(conv, x, torch.float32)).abs().max() < 2e-5 * scale


def test_an_image_does_not_depend_on_its_batch():
    conv = layer(80, 64, (3, 3), (1, 1))
    x = torch.randn(9, 80, 40, 40, generator=torch.Generator().manual_seed(1))  # several pieces of work
    fast = WinogradConvolution(conv)
    together, alone = fast(x), torch.cat([fast(image) for image in x.split(1)])
    assert (together - alone).abs().max() < 1e-5
    assert (together - rectified(conv, x, torch.float32)).abs().max() < 1e-4


def test_what_is_no_number_stays_none():
    x = torch.ones(1, 4, 9, 9)
    x[0, 2, 8, 8] = torch.nan
    found = WinogradConvolution(layer(4, 5, (3, 3), (1, 1)))(x)
    assert found[..., 8, 8].isnan().all() and found[..., :4, :4].isfinite().all()


def test_pixels_without_a_number_reach_no_other_tile():
    conv = layer(4, 5, (3, 3), (1, 1))
    x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    for value in (torch.nan, torch.inf):
        x[0, 2, 6, 6] = value  # within the tile of rows and columns 4 to 7 alone
        found, plain = WinogradConvolution(conv)(x), rectified(conv, x, torch.float32)
        outside = torch.ones(12, 12, dtype=torch.bool)
        outside[4:8, 4:8] = False
        assert (found - plain)[..., outside].abs().max() < 1e-4
        assert not found[..., 4:8, 4:8].isfinite().all()


def test_the_scratch_of_inference_mode_serves_outside_it_too(monkeypatch):
    monkeypatch.setattr(winograd, "_spaces", threading.local())
    conv = layer(4, 5, (3, 3), (1, 1))
    x = torch.randn(2, 4, 9, 9)
    with torch.inference_mode():
        WinogradConvolution(conv)(x)
    found = WinogradConvolution(conv)(x)
    scratch = winograd._spaces.all
    with torch.inference_mode():
        again = WinogradConvolution(conv)(x)
    assert winograd._spaces.all is scratch  # made once
    for of in (found, again):
        assert (of - rectified(conv, x, torch.float32)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("kernel", "padding", "side"),
    [((3, 3), (0, 0), (9, 2)), ((3, 3), (0, 0), (2, 9)), ((1, 7), (0, 0), (9, 6)), ((5, 5), (2, 2), (0, 9))],
)
def test_an_image_too_small_is_refused_as_by_torch(kernel, padding, side):
    conv = layer(4, 5, kernel, padding)
    for of in (conv, WinogradConvolution(conv)):
        with pytest.raises(RuntimeError):
            of(torch.zeros(1, 4, *side))


def test_no_image_gives_no_output(threads):
    conv = layer(4, 5, (3, 3), (1, 1))
    for n in (1, 3):
        threads(n)
        assert ByImage(WinogradConvolution(conv))(torch.zeros(0, 4, 9, 9)).shape == (0, 5, 9, 9)


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"bias": False},
        {"kernel_size": 1},
        {"kernel_size": 9},
        {"padding_mode": "reflect", "padding": 1},
    ],
    ids=str,
)
def test_other_convolutions_are_left_alone(other):
    usual = {"in_channels": 64, "out_channels": 64, "kernel_size": 3}
    assert pays(nn.Conv2d(**usual)) and not pays(nn.Conv2d(**usual | other))


def test_each_thread_takes_its_own_images(threads):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)
    x = torch.randn(11, 3, 8, 8)
    for n in (1, 3):
        threads(n)
        assert torch.allclose(ByImage(network)(x), network(x), atol=1e-6)
        assert torch.get_num_threads() == n
        with pytest.raises(RuntimeError):
            ByImage(network)(x[:, :2])
        assert torch.get_num_threads() == n


def test_the_extractor_is_the_plain_network(tmp_path):
    from benchmarks.fid import make_weights

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (16, 8, 8, 3)).repeat(12, 1).repeat(12, 2)
    images = np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)
    make_weights(tmp_path / "weights.pth", images[:6])
    fast = load_extractor("inception", tmp_path / "weights.pth")
    half = load_extractor("inception", tmp_path / "weights.pth", precision="bf16")
    kinds = [[type(m) for m in extractor.network.modules()] for extractor in (fast, half)]
    assert [of.count(WinogradConvolution) for of in kinds] == [49, 12]  # all fp32 ones of stride 1 but those of 1 x 1
    joined = 0 if can_pack() else 10
    assert [of.count(Joined) for of in kinds] == [10, joined]  # blocks with branches that begin alike

    network = FIDInception()
    network.load_state_dict(torch.load(tmp_path / "weights.pth"))
    network.fc = nn.Identity()
    plain = Extractor("plain", fuse(network), "", 299, (0.5,) * 3, (0.5,) * 3, False, "cpu")
    features = [extractor(images) for extractor in (fast, plain, half)]
    np.testing.assert_allclose(*features[:2], atol=1e-4 * features[1].max(), rtol=0)
    values = [frechet_distance(side[:8], side[8:]) for side in features]
    assert values[0] == pytest.approx(values[1], rel=1e-4)

    assert half.name == "inception, bf16 from Mixed_6a"
    kinds = {name.split(".")[0]: value.dtype for name, value in half.network.network[1].named_buffers()}
    kinds |= {name.split(".")[0]: value.dtype for name, value in half.network.network[1].named_parameters()}
    assert (kinds["Mixed_5d"], kinds["Mixed_6a"]) == (torch.float32, torch.bfloat16)
    error = features[2] - features[1]
    spread = [np.sqrt(((x - x.mean(0)) ** 2).mean()) for x in (error, features[1])]
    assert 0.001 < spread[0] / spread[1] < 0.05  # 0.09 with all layers in bf16
    assert values[2] == pytest.approx(values[1], rel=1e-3)
