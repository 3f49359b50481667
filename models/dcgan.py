"""DCGAN (Radford et al. 2016): the paper's generator and critic, at any power of two from 16 px.

Module tree, shapes and initialisation are those of torchgan 0.1.0's DCGANGenerator and DCGANDiscriminator, so that
weights trained there load here. Sizes below are for out_size 256, step_channels 64.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from common.errors import InputError
from models.joint import JointBatchNorm2d
from models.resampling import Down, Up, up

SLOPE = 0.2  # of LeakyReLU; Radford et al. 2016, section 3.1
CRITIC_NORMS = ("none", "batch")
CRITIC_OUTPUTS = {"linear": nn.Identity, "leaky": lambda: nn.LeakyReLU(SLOPE)}


class DCGANGenerator(nn.Module):
    """Noise or latent (n, encoding_dims) -> images (n, 3, out_size, out_size) in [-1, 1]."""

    def __init__(self, encoding_dims: int = 2048, out_size: int = 256, step_channels: int = 64) -> None:
        super().__init__()
        doublings = _doublings(out_size)
        self.pixel_noise = 0  # takes no noise of single pixels
        channels = [step_channels * 2**i for i in range(doublings, -1, -1)]  # 2048, 1024, ... 64
        first = nn.ConvTranspose2d(encoding_dims, channels[0], kernel_size=4, bias=False)
        blocks = [_block(first, channels[0])]  # (n, z, 1, 1) -> (n, 2048, 4, 4)
        blocks += [
            _block(Up(wide, narrow, bias=False), narrow) for wide, narrow in pairwise(channels)
        ]  # side doubles each
        self.model = nn.Sequential(*blocks, nn.Sequential(Up(channels[-1], 3), nn.Tanh()))
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor, pixels: torch.Tensor | None = None) -> torch.Tensor:
        first, norm, activation = self.model[0]
        # On a 1 x 1 input the transposed convolution is one matrix product, (n, z) @ (z, 4 4 channels), and faster so.
        x = (x.flatten(1) @ first.weight.permute(0, 2, 3, 1).flatten(1)).unflatten(1, (4, 4, -1))
        x = (x if first.bias is None else x + first.bias).permute(0, 3, 1, 2)  # (n, 2048, 4, 4), channels last
        return self.model[1:](activation(norm(x)))

    def fold(self) -> None:
        """Take batch norm, with its averaged statistics, into the weights before it: for drawing only, in eval mode."""
        self.to(memory_format=torch.channels_last)  # weights from a file come as they were saved
        for block in self.model:
            conv, norm = block[0], block[1]
            if isinstance(norm, nn.BatchNorm2d):
                statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, transpose=True)
                block[1] = nn.Identity()


class DCGANDiscriminator(nn.Module):
    """Images (n, 3, in_size, in_size) in [-1, 1] -> one score each, (n,): higher is more real.

    `norm` "none" is for gradient penalties, which are per image only without batch norm; "batch" is torchgan's.
    `output` "linear" gives true logits; "leaky" is torchgan's default, a LeakyReLU on the score itself.
    """

    def __init__(self, in_size: int = 256, step_channels: int = 64, norm: str = "none", output: str = "linear") -> None:
        super().__init__()
        doublings = _doublings(in_size)
        if norm not in CRITIC_NORMS:
            raise InputError(f"critic_norm = {norm!r}: expected {' or '.join(CRITIC_NORMS)}")
        if output not in CRITIC_OUTPUTS:
            raise InputError(f"critic_output = {output!r}: expected {' or '.join(CRITIC_OUTPUTS)}")
        self.norm = norm
        channels = [step_channels * 2**i for i in range(doublings + 1)]  # 64, 128, ... 2048
        self.width = channels[-1]
        blocks = [_block(Down(3, channels[0]), channels[0], norm="none")]
        blocks += [_block(Down(c, wide, bias=norm == "none"), wide, norm) for c, wide in pairwise(channels)]
        self.model = nn.Sequential(*blocks)  # (n, 3, 256, 256) -> (n, 2048, 4, 4)
        score = nn.Conv2d(channels[-1], 1, kernel_size=4, bias=norm == "none")
        self.disc = nn.Sequential(score, CRITIC_OUTPUTS[output]())
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, width, 4, 4)."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def head(self, h: torch.Tensor, alone: bool | torch.Tensor = False) -> torch.Tensor:
        """Return `h` as it is; `alone` is for critics in which tiles of a batch meet."""
        return h

    def spread(self, h: torch.Tensor) -> torch.Tensor:
        """Return nothing of note: see ResidualCritic."""
        return h.new_zeros(())

    def features(self, images: torch.Tensor, alone: bool | torch.Tensor = False) -> torch.Tensor:
        """Return (n, width, 4, 4), head(trunk(images))."""
        return self.trunk(images)

    def pool(self, h: torch.Tensor) -> torch.Tensor:
        """Return what the projection sees, (n, width): the mean over the 4 x 4 places."""
        return h.mean((2, 3))

    def score(self, h: torch.Tensor) -> torch.Tensor:
        """Return (n,) scores of `features`."""
        conv, activation = self.disc
        scores = F.linear(h.flatten(1), conv.weight.flatten(1), conv.bias)  # (n, 1); the same as conv(h), and faster
        return activation(scores).flatten()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.score(self.features(images))

    def slope(self, images: torch.Tensor, pull: torch.Tensor | None = None) -> torch.Tensor:
        """Return d score / d image (n, 3, H, W), differentiable in the weights but not in `images`. `norm` "none" only.

        `pull` (n, width): what a term of `pool` adds to the score's slope there.

        Convolutions and LeakyReLU make the critic linear around each image, so its slope is the same network run
        backwards with the signs held fixed. Equal to torch.autograd.grad(..., create_graph=True), which also carries
        the zero second derivative of LeakyReLU through every layer: six passes there, four here.
        """
        if self.norm != "none":
            raise ValueError("under batch norm the score of one image depends on the others: use autograd")
        with torch.no_grad():
            layers, x = [], images.contiguous(memory_format=torch.channels_last)
            for conv, activation in self.model:
                x = activation(conv(x))
                layers.append(x)
        slope = self.disc[0].weight.expand(len(x), -1, -1, -1)  # (n, 2048, 4, 4)
        if not isinstance(self.disc[1], nn.Identity):
            with torch.no_grad():
                scores = self.score(x)[:, None, None, None]
            slope = _through_leaky(slope, scores.expand_as(slope))
        if pull is not None:
            slope = slope + pull[:, :, None, None] / slope[0, 0].numel()
        for conv, _ in reversed(self.model[1:]):
            slope = up(_through_leaky(slope, layers.pop()), conv.weight)
        return up(_through_leaky(slope, layers.pop()), self.model[0][0].weight)


def _through_leaky(slope: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the slope before a LeakyReLU, given that after it and the signs of its `output`: autograd's own step."""
    return torch.ops.aten.leaky_relu_backward(slope, output, SLOPE, True)


def _doublings(side: int) -> int:
    """Return how often the side doubles between 4 px and the layer before the last, side / 2."""
    if side < 16 or side & (side - 1):
        raise InputError(f"img_size = {side}: expected a power of two, 16 or more")
    return side.bit_length() - 4


def _block(conv: nn.Module, channels: int, norm: str = "batch") -> nn.Sequential:
    return nn.Sequential(
        conv, *([JointBatchNorm2d(channels)] if norm == "batch" else []), nn.LeakyReLU(SLOPE, inplace=True)
    )


def _initialise(module: nn.Module) -> None:
    """He initialisation of the convolutions (He et al. 2015, eq. 10), as torchgan does; biases keep torch's default."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight)
