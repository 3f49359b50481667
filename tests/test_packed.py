"""Packed convolutions: equal to plain ones, whatever the number of images and threads and the side they come at."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.by_image import ByImage
from models.packed import PackedConvolution, can_pack

needs_packing = pytest.mark.skipif(not can_pack(), reason="no oneDNN with bf16 here")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_packing
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel, stride, padding", [((3, 3), 2, 0), ((1, 7), 1, (0, 3)), ((1, 1), 1, 0)])
@torch.inference_mode()
def test_equal_to_the_plain_convolution(kind, kernel, stride, padding, threads):
    torch.manual_seed(0)
    conv = nn.Conv2d(48, 32, kernel, stride, padding).to(kind, memory_format=torch.channels_last)
    layers = [(PackedConvolution(conv, rectified), rectified) for rectified in (True, False)]
    tolerance = 1e-5 if kind == torch.float32 else 2e-2
    for n, side, number in ((1, 17, 1), (4, 17, 1), (3, 20, 1), (2, 17, 2)):  # packed by the first
        threads(number)
        x = torch.randn(n, 48, side, side).to(kind, memory_format=torch.channels_last)
        for layer, rectified in layers:
            y = F.relu(conv(x)) if rectified else conv(x)
            torch.testing.assert_close(layer(x), y, atol=tolerance, rtol=tolerance)
            assert layer.weight.is_mkldnn


@needs_packing
@torch.inference_mode()
def test_one_image_is_run_by_one_thread(threads):
    seen = []

    class Noting(PackedConvolution):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    threads(2)
    network = ByImage(Noting(nn.Conv2d(3, 4, 3), rectified=True))
    for n in (1, 2, 9):
        assert network(torch.randn(n, 3, 8, 8)).shape == (n, 4, 6, 6)
    assert set(seen) == {1} and torch.get_num_threads() == 2


def test_without_the_operations_nothing_is_packed(monkeypatch):
    def another(*_):
        raise RuntimeError("mkldnn::_convolution_pointwise() is missing value for argument")

    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", another, raising=False)
    assert not can_pack()
