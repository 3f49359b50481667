"""A residual generator and critic without batch norm: small, stable, and modulated by noise and expression.

Residual blocks and no batch norm as in R3GAN (Huang et al. 2024); in the generator each channel of a tile is normalised
by itself, then scaled and shifted by a mapped input, with per-pixel noise of learned strength, as in StyleGAN (Karras
et al. 2019, section 2, eq. 1); a minibatch-spread feature in the critic (Karras et al. 2018, section 3). Written from
those equations. Without that normalisation it learnt no structure in the demo's time.
Sides change by even binomial filters: what alternates from pixel to pixel is lost, and new pixels are all made alike,
a quarter from an old one. With [1, 2, 1] every other was an old one, sharper than those between: a grid. They halve by
[1, 3, 3, 1] and double by it or by [1, 5, 10, 10, 5, 1] (`taps`): with four every other pair of new neighbours, where
pixels are noise, differs with 4 times the variance of the one beside it, which a convolution and a rectifier turn into
a grid; with six 1.6 times.

Channels are `step_channels` at full size and double with each halving, up to 16 times that. `depth` blocks per size.
With `first_side` both may train at that side first and double it later (after Karras et al. 2018, section 2): from
there on each side has its own layer to and from RGB, and the parts are added (Karras et al. 2020, figure 7b). Those
above the first start at 0, so that no tile jumps when the side doubles. (The critic then sees tiles halved more softly
than the means of before.)
"""

import functools
import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError
from models.joint import batch_moments

SLOPE = 0.2  # of LeakyReLU
HALF = 0.5**0.5  # keeps the variance of a sum of two branches; Karras et al. 2020, section 4.1 (the critic there)
MAPPED = 128  # width of the mapped input
SMALLEST = 4  # px, the side at which drawing starts
WIDEST = 16  # channels at 4 px, in those at full size
TAPS = (4, 6)  # pixels of the filters by which a side may double; 4: as until 2026-11-26
PIXEL_NOISE = 1.0  # its strength at the start, learned per channel; with 0.1 noise hardly moved a nucleus


def sides_of(out_size: int) -> list[int]:
    """Return [4, 8, ... out_size]; InputError where that is no power of two from 16 to 1024."""
    if out_size < 16 or out_size > 1024 or out_size & (out_size - 1):
        raise InputError(f"img_size = {out_size}: expected a power of two from 16 to 1024")
    return [2**i for i in range(2, out_size.bit_length())]


def grown_sides(first_side: int, out_size: int) -> list[int]:
    """Return the sides that are trained before `out_size`: [first_side, ... out_size / 2], none where that is 0.

    InputError where it is no power of two from 8 to `out_size`.
    """
    if first_side and first_side not in sides_of(out_size)[1:]:
        raise InputError(f"first_side = {first_side}: expected 0, or a power of two from 8 to img_size = {out_size}")
    return [side for side in sides_of(out_size) if 0 < first_side <= side < out_size]


def channels_of(out_size: int, step_channels: int) -> list[int]:
    """Return the channels at each side, 4 px first."""
    return [step_channels * min(out_size // side, WIDEST) for side in sides_of(out_size)]


class Halve(torch.autograd.Function):
    """(n, c, s, s) -> (n, c, s / 2, s / 2): smoothed by `taps`, every other one kept; beyond the edge is 0.

    A linear map: its gradient is its transpose, and so on for the gradient's gradient, which torch's own grouped
    convolution takes channel by channel.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, taps: int) -> torch.Tensor:
        ctx.taps = taps
        return F.conv2d(x, _filter(x, taps), stride=2, padding=taps // 2 - 1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient's way back, (n, c, s / 2, s / 2) -> (n, c, s, s)."""
        return Spread.apply(slope, ctx.taps), None


class Spread(torch.autograd.Function):
    """The transpose of Halve, (n, c, s, s) -> (n, c, 2 s, 2 s); four times it interpolates."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, taps: int) -> torch.Tensor:
        ctx.taps = taps
        return F.conv_transpose2d(x, _filter(x, taps), stride=2, padding=taps // 2 - 1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient's way back, (n, c, 2 s, 2 s) -> (n, c, s, s)."""
        return Halve.apply(slope, ctx.taps), None


def halve(x: torch.Tensor) -> torch.Tensor:
    """(n, c, s, s) -> (n, c, s / 2, s / 2), smoothed by [1, 3, 3, 1] before pixels are left out."""
    return Halve.apply(x, 4)


def enlarge(x: torch.Tensor, taps: int = 6) -> torch.Tensor:
    """(n, c, s, s) -> (n, c, 2 s, 2 s): each new pixel is a mean of `taps` / 2 by `taps` / 2; beyond the edge is 0."""
    return 4 * Spread.apply(x, taps)


def _filter(x: torch.Tensor, taps: int) -> torch.Tensor:
    """Return the binomial filter, down times across, of sum 1, for each channel of x: (c, 1, taps, taps)."""
    make = _one_filter.__wrapped__ if torch.compiler.is_compiling() else _one_filter  # it sees through no cache
    return make(x.dtype, x.device, taps).expand(x.shape[1], 1, taps, taps)


@functools.lru_cache(maxsize=8)  # made once: a copy to a GPU would stop it at every call
def _one_filter(dtype: torch.dtype, device: torch.device, taps: int) -> torch.Tensor:
    line = torch.tensor([math.comb(taps - 1, k) / 2 ** (taps - 1) for k in range(taps)], dtype=dtype, device=device)
    return line[:, None] * line


class ModulatedConv(nn.Module):
    """LeakyReLU, 3 x 3 convolution, per-pixel noise, then each channel normalised, scaled and shifted by the input."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.style = nn.Linear(MAPPED, 2 * n_out)
        self.strength = nn.Parameter(torch.full((n_out, 1, 1), PIXEL_NOISE))

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x (n, n_in, s, s), w (n, MAPPED), noise (n, 1, s, s) -> (n, n_out, s, s)."""
        x = self.conv(F.leaky_relu(x, SLOPE)) + self.strength * noise
        x = F.group_norm(x, x.shape[1])  # each channel of each tile by itself
        scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class DrawingBlock(nn.Module):
    """A residual block of the generator; `grow`: between its convolutions the side doubles, by a filter of `taps`."""

    def __init__(self, n_in: int, n_out: int, grow: bool, taps: int = 6) -> None:
        super().__init__()
        self.grow, self.taps = grow, taps
        self.first, self.second = ModulatedConv(n_in, n_out), ModulatedConv(n_out, n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: list[torch.Tensor]) -> torch.Tensor:
        """x (n, n_in, s, s), w (n, MAPPED), two noise fields -> (n, n_out, s or 2 s, ...)."""
        y, x = self.first(x, w, noise[0]), self.skip(x)
        if self.grow:
            x, y = enlarge(x, self.taps), enlarge(y, self.taps)
        return (x + self.second(y, w, noise[1])) * HALF


class ResidualGenerator(nn.Module):
    """Noise with or without expression (n, encoding_dims), per-pixel noise (n, pixel_noise) -> tiles.

    Tiles are meant to lie in [-1, 1]; nothing bounds them (a tanh would slow what is near white), saving clips them.
    They have `side` pixels: out_size, unless training sets it to one of grown_sides.
    """

    def __init__(
        self,
        encoding_dims: int = 128,
        out_size: int = 64,
        step_channels: int = 20,
        depth: int = 1,
        first_side: int = 0,
        taps: int = 6,
    ) -> None:
        super().__init__()
        self.side = out_size
        sides, channels = sides_of(out_size), channels_of(out_size, step_channels)
        self.mapping = nn.Sequential(
            nn.Linear(encoding_dims, MAPPED), nn.LeakyReLU(SLOPE), nn.Linear(MAPPED, MAPPED), nn.LeakyReLU(SLOPE)
        )
        self.start = nn.Linear(MAPPED, channels[0] * SMALLEST**2)
        blocks, fields = [DrawingBlock(channels[0], channels[0], grow=False) for _ in range(depth)], [4] * (2 * depth)
        for side, (wide, narrow) in zip(sides[1:], pairwise(channels), strict=True):
            blocks += [DrawingBlock(wide, narrow, grow=True, taps=taps)]
            blocks += [DrawingBlock(narrow, narrow, grow=False) for _ in range(depth - 1)]
            fields += [side // 2] + [side] * (2 * depth - 1)
        self.blocks = nn.ModuleList(blocks)
        self.to_rgb = nn.Conv2d(channels[-1], 3, 1)
        early = grown_sides(first_side, out_size)
        self.early_to_rgb = nn.ModuleDict({str(s): nn.Conv2d(channels[sides.index(s)], 3, 1) for s in early})
        self.fields = fields  # the side of each field of per-pixel noise, two per block
        self.pixel_noise = sum(side**2 for side in fields)
        initialise(self)
        for later in [*self.early_to_rgb.values(), self.to_rgb][1:]:
            nn.init.zeros_(later.weight)

    def forward(self, x: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        w = self.mapping(x)  # (n, MAPPED)
        noise = [
            field.unflatten(1, (1, side, side))
            for field, side in zip(pixels.split([s**2 for s in self.fields], 1), self.fields, strict=True)
        ]
        h = self.start(w).unflatten(1, (-1, SMALLEST, SMALLEST))  # (n, c, 4, 4)
        h = h.contiguous(memory_format=torch.channels_last)  # a third faster, on a CPU too
        image = None
        for i, block in enumerate(self.blocks):
            h = block(h, w, noise[2 * i : 2 * i + 2])
            last = i + 1 == len(self.blocks)
            if not last and (not self.blocks[i + 1].grow or str(h.shape[-1]) not in self.early_to_rgb):
                continue
            to_rgb = self.to_rgb if last else self.early_to_rgb[str(h.shape[-1])]
            part = to_rgb(F.leaky_relu(h, SLOPE))
            image = part if image is None else F.interpolate(image, scale_factor=2.0, mode="bilinear") + part
            if image.shape[-1] == self.side:
                break
        return image


class JudgingBlock(nn.Module):
    """A residual block of the critic; `shrink`: between its convolutions the side halves.

    After a LeakyReLU, not before: what alternates from pixel to pixel is 0 after halving unless it was rectified, and a
    critic that cannot see it lets the generator draw a grid.
    """

    def __init__(self, n_in: int, n_out: int, shrink: bool) -> None:
        super().__init__()
        self.shrink = shrink
        self.first, self.second = nn.Conv2d(n_in, n_in, 3, padding=1), nn.Conv2d(n_in, n_out, 3, padding=1)
        self.skip = nn.Conv2d(n_in, n_out, 1, bias=False) if n_in != n_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, n_in, s, s) -> (n, n_out, s or s / 2, ...)."""
        y = F.leaky_relu(self.first(F.leaky_relu(x, SLOPE)), SLOPE)
        if self.shrink:
            x, y = halve(x), halve(y)
        return (self.skip(x) + self.second(y)) * HALF


class ResidualCritic(nn.Module):
    """Tiles (n, 3, in_size, in_size) -> features (n, width) -> one score each: the generator mirrored, unmodulated.

    It takes tiles of the sides in grown_sides too. What it saw first, the tile at a smaller side, it goes on seeing
    beside the rest: halved as everything here, and what halving takes away apart, each of four pixels with its own
    weight: what alternates from pixel to pixel is 0 once halved, and rectified a tenth of a grey level leaves nothing.
    If the generator's `taps` are 4: means of four pixels alone.
    """

    norm = "spread"  # tiles of a batch meet in one feature only, which a penalty holds fixed

    def __init__(
        self, in_size: int = 64, step_channels: int = 20, depth: int = 1, first_side: int = 0, taps: int = 6
    ) -> None:
        super().__init__()
        self.taps = taps
        channels = channels_of(in_size, step_channels)[::-1]  # full size first
        self.from_rgb = nn.Conv2d(3, channels[0], 1)
        widths = dict(zip(sides_of(in_size)[::-1], channels, strict=True))
        early = grown_sides(first_side, in_size)
        self.early_from_rgb = nn.ModuleDict({str(s): nn.Conv2d(3, widths[s], 1) for s in early})
        apart = early if taps != 4 else []
        self.apart_from_rgb = nn.ModuleDict({str(s): nn.Conv2d(12, widths[s], 1, bias=False) for s in apart})
        blocks = []
        for narrow, wide in pairwise(channels):
            blocks += [JudgingBlock(narrow, narrow, shrink=False) for _ in range(depth - 1)]
            blocks += [JudgingBlock(narrow, wide, shrink=True)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(channels[-1] + 1, channels[-1], 3, padding=1)
        self.width = 2 * MAPPED
        self.flatten = nn.Linear(channels[-1] * SMALLEST**2, self.width)
        self.out = nn.Linear(self.width, 1)
        self.in_size = in_size
        initialise(self)
        for later in [*[*self.early_from_rgb.values(), self.from_rgb][1:], *self.apart_from_rgb.values()]:
            nn.init.zeros_(later.weight)

    def features(self, images: torch.Tensor, alone: bool | torch.Tensor = False) -> torch.Tensor:
        """Return (n, width), head(trunk(images))."""
        return self.head(self.trunk(images), alone)

    def trunk(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, c, 4, 4), up to where the tiles of a batch meet."""
        images = images.contiguous(memory_format=torch.channels_last)
        h, side = None, self.in_size
        if images.shape[-1] == side:
            h = self.from_rgb(images)
        for block in self.blocks:
            h = h if h is None else block(h)
            if block.shrink:
                side //= 2
                if str(side) in self.early_from_rgb and side <= images.shape[-1]:
                    h, images = self.look(h, images, str(side))
        return F.leaky_relu(h, SLOPE)  # (n, c, 4, 4)

    def look(self, h: torch.Tensor | None, images: torch.Tensor, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `h` (n, c, s, s) or None with what is seen at `side`, and the images at it, (n, 3, s, s)."""
        if images.shape[-1] > int(side):
            with torch.autocast("cuda" if images.is_cuda else "cpu", enabled=False):  # bf16 is too coarse here
                images = images.float()
                means = F.avg_pool2d(images, 2)
                if side in self.apart_from_rgb:
                    apart = F.pixel_unshuffle(images - F.interpolate(means, scale_factor=2.0), 2)  # (n, 12, s, s)
                    h = h + self.apart_from_rgb[side](apart)
                images = means if self.taps == 4 else halve(images)
        part = self.early_from_rgb[side](images)
        return part if h is None else h + part, images

    def head(self, h: torch.Tensor, alone: bool | torch.Tensor = False) -> torch.Tensor:
        """Return (n, width) of the trunk's h. They know the batch's spread.

        `alone` holds it fixed, that a slope is one tile's own: at the batch's, or at a number, where `h` is a part.
        """
        if not isinstance(alone, torch.Tensor):
            alone = self.spread(h.detach() if alone else h)
        h = F.leaky_relu(self.last(torch.cat([h, alone.expand(len(h), 1, SMALLEST, SMALLEST)], 1)), SLOPE)
        return F.leaky_relu(self.flatten(h.flatten(1)), SLOPE)

    def spread(self, h: torch.Tensor) -> torch.Tensor:
        """Return the one number in which the tiles of a batch meet: how far the trunk's h differ, of all ranks."""
        return (batch_moments(h)[1] + 1e-8).sqrt().mean()

    def pool(self, h: torch.Tensor) -> torch.Tensor:
        """Return what the projection sees: the features themselves."""
        return h

    def score(self, h: torch.Tensor) -> torch.Tensor:
        """Return (n,): higher is more real."""
        return self.out(h).flatten()


def initialise(module: nn.Module) -> None:
    """He initialisation after a LeakyReLU (He et al. 2015, eq. 15), LeCun's where there is none; zero biases.

    The first tiles are faint and grey, so that the critic does not win by contrast. Channels last in memory.
    """
    module.to(memory_format=torch.channels_last)
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            linear = "from_rgb" in name or name.endswith(("skip", "mapping.0"))
            nn.init.kaiming_normal_(part.weight, a=1.0 if linear else SLOPE)  # a = 1: no LeakyReLU before it
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for name, part in module.named_modules():
        if isinstance(part, ModulatedConv):
            nn.init.normal_(part.style.weight, std=0.5 * MAPPED**-0.5)
        if name == "out" or (isinstance(part, nn.Conv2d) and "to_rgb" in name):
            part.weight.data.mul_(0.1)
