"""The two convolutions of a DCGAN, 4 x 4 with stride 2, as one matrix product each where images are small.

On a CPU the deep layers (few pixels, many channels) take twice as long in a convolution kernel, which reads their
weights, a hundred megabytes at the paper's size, once per image; a matrix product over the whole batch reads them once.
Same sums in another order. Elsewhere, and on a GPU, torch's own kernels are used.
"""

import torch
import torch.nn.functional as F

# Pixels of the larger side, and weights; ours, measured on AVX2: 8 to 4 px is twice as fast, 16 to 8 px a third.
SMALL, LARGE = 16, 2_000_000


def down(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (n, c, s, s), weight (o, c, 4, 4), bias (o,) -> (n, o, s / 2, s / 2): conv2d with stride 2, padding 1."""
    n, _, side, _ = x.shape
    if x.device.type != "cpu" or side > SMALL or weight.numel() < LARGE:
        return F.conv2d(x, weight, bias, stride=2, padding=1)
    windows = F.unfold(x, 4, padding=1, stride=2).transpose(1, 2)  # (n, pixels, c 4 4)
    y = windows.flatten(0, 1) @ weight.flatten(1).t()  # (n pixels, o)
    y = y if bias is None else y + bias
    return y.unflatten(0, (n, -1)).transpose(1, 2).unflatten(2, (side // 2, side // 2)).contiguous()


def up(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (n, c, s, s), weight (c, o, 4, 4), bias (o,) -> (n, o, 2 s, 2 s): conv_transpose2d with stride 2, padding 1."""
    n, _, side, _ = x.shape
    if x.device.type != "cpu" or 2 * side > SMALL or weight.numel() < LARGE:
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    windows = x.flatten(2).transpose(1, 2).flatten(0, 1) @ weight.flatten(1)  # (n pixels, o 4 4)
    windows = windows.unflatten(0, (n, -1)).transpose(1, 2)  # (n, o 4 4, pixels)
    y = F.fold(windows, (2 * side, 2 * side), 4, padding=1, stride=2)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


class Down(torch.nn.Conv2d):
    """Conv2d, 4 x 4, stride 2, padding 1: halves the side."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__(n_in, n_out, kernel_size=4, stride=2, padding=1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return down(x, self.weight, self.bias)


class Up(torch.nn.ConvTranspose2d):
    """ConvTranspose2d, 4 x 4, stride 2, padding 1: doubles the side."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__(n_in, n_out, kernel_size=4, stride=2, padding=1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return up(x, self.weight, self.bias)
