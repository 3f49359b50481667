"""The two convolutions of a DCGAN, 4 x 4 with stride 2, each by the kernel that is fastest where it runs.

On a CPU two of their forms are slow in torch's own kernels and are written otherwise, as the same sums in another
order: where images are tiny and weights many (a hundred megabytes at the paper's size) as one matrix product over the
whole batch, which reads the weights once; where a transposed convolution leads to few channels (the picture itself) as
one 2 x 2 convolution with four outputs a pixel. Elsewhere, and on a GPU, torch's own kernels are used.
Networks keep their weights and images channels last in memory, which these kernels want.
"""

import torch
import torch.nn.functional as F

# Pixels of the larger side, weights, channels of the picture; ours, measured with AVX-512, channels last.
SMALL, LARGE, FEW = 8, 2_000_000, 4


def down(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (n, c, s, s), weight (o, c, 4, 4), bias (o,) -> (n, o, s / 2, s / 2): conv2d with stride 2, padding 1."""
    side = x.shape[2]
    if x.device.type != "cpu" or side > SMALL or weight.numel() < LARGE:
        return F.conv2d(x, weight, bias, stride=2, padding=1)
    rows = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (n, s + 2, s + 2, c)
    windows = rows.unfold(1, 4, 2).unfold(2, 4, 2).permute(0, 1, 2, 4, 5, 3)  # (n, s / 2, s / 2, 4, 4, c)
    y = windows.flatten(3) @ weight.permute(2, 3, 1, 0).flatten(0, 2)  # (n, s / 2, s / 2, o)
    return (y if bias is None else y + bias).permute(0, 3, 1, 2)


def up(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (n, c, s, s), weight (c, o, 4, 4), bias (o,) -> (n, o, 2 s, 2 s): conv_transpose2d with stride 2, padding 1."""
    side = x.shape[2]
    if x.device.type == "cpu" and weight.shape[1] <= FEW:
        return _up_to_few(x, weight, bias)
    if x.device.type != "cpu" or 2 * side > SMALL or weight.numel() < LARGE:
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
    windows = x.permute(0, 2, 3, 1) @ weight.permute(0, 2, 3, 1).flatten(1)  # (n, s, s, 4 4 o)
    windows = windows.unflatten(3, (4, 4, -1)).permute(0, 5, 3, 4, 1, 2)  # (n, o, 4, 4, s, s)
    y = F.fold(windows.flatten(1, 3).flatten(2), (2 * side, 2 * side), 4, padding=1, stride=2)
    y = y if bias is None else y + bias.reshape(-1, 1, 1)
    return y.contiguous(memory_format=torch.channels_last)


def _up_to_few(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`up` as a convolution: of the output's even rows each sees rows i - 1 and i of x, of its odd ones i and i + 1."""
    side, (n_in, n_out) = x.shape[2], weight.shape[:2]
    taps = weight.reshape(n_in, n_out, 2, 2, 2, 2).flip(2, 3, 4, 5)  # (c, o, row of x, parity, column of x, parity)
    taps = taps.permute(3, 5, 1, 0, 2, 4).flatten(0, 2).contiguous(memory_format=torch.channels_last)  # (4 o, c, 2, 2)
    y = F.conv2d(x, taps, None if bias is None else bias.repeat(4), padding=1)  # (n, 4 o, s + 1, s + 1)
    y = y.unflatten(1, (2, 2, n_out))
    rows = [torch.stack([y[:, a, b, :, a : a + side, b : b + side] for b in (0, 1)], 4).flatten(3) for a in (0, 1)]
    return torch.stack(rows, 3).flatten(2, 3)  # (n, o, 2 s, 2 s)


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
