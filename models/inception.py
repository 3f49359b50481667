"""The Inception V3 of the published FID: Szegedy et al. 2016, arXiv:1512.00567, in TensorFlow's graph of 2015-12-05.

Names of parameters are those of the published weights file, which are torchvision's. Against the paper's network: the
average in a block counts only the pixels that exist, and the last block has a maximum in its place.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.packed import PackedConvolution, can_pack

CLASSES = 1008  # of the published graph
BATCH_NORM_EPSILON = 0.001


class Convolution(nn.Module):
    """A convolution, its batch norm and a rectifier."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        """(N, c_in, H, W) -> (N, c_out, H', W')."""
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=BATCH_NORM_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the next layer takes."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class AveragedConvolution(Convolution):
    """The convolution of averages over 3 x 3 pixels, those outside the image left out.

    Taken in the other order: a convolution of single pixels and an average commute, and there are fewer channels after
    the one than before it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the next layer takes."""
        return F.relu(average(self.bn(self.conv(x))), inplace=True)


def average(x: torch.Tensor) -> torch.Tensor:
    """Return the averages over 3 x 3 pixels, those outside the image left out: (N, c, H, W) -> (N, c, H, W)."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Block(nn.Module):
    """Branches side by side. ONES: those that begin with a convolution of single pixels of the block's input."""

    ONES: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Subclasses add the branches."""
        super().__init__()
        self.joined: nn.Module | None = None  # the first layers of ONES as one (quicken)

    def ones(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the outputs of the branches ONES, or of their first layers."""
        return [getattr(self, name)(x) for name in self.ONES] if self.joined is None else self.joined(x)


class BlockA(Block):
    """Blocks at 35 x 35."""

    ONES = ("branch1x1", "branch5x5_1", "branch3x3dbl_1", "branch_pool")

    def __init__(self, c_in: int, c_pool: int) -> None:
        """(N, c_in, 35, 35) -> (N, 224 + c_pool, 35, 35)."""
        super().__init__()
        self.branch1x1 = Convolution(c_in, 64, 1)
        self.branch5x5_1 = Convolution(c_in, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(c_in, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = AveragedConvolution(c_in, c_pool, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branches' channels, side by side."""
        one, five, three, pooled = self.ones(x)
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(three))
        return torch.cat([one, self.branch5x5_2(five), three, pooled], 1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, c_in: int) -> None:
        """(N, c_in, 35, 35) -> (N, 480 + c_in, 17, 17)."""
        super().__init__()
        self.branch3x3 = Convolution(c_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(c_in, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branches' channels, side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(Block):
    """Blocks at 17 x 17: their 7 x 7 convolutions are pairs of 1 x 7 and 7 x 1."""

    ONES = ("branch1x1", "branch7x7_1", "branch7x7dbl_1", "branch_pool")

    def __init__(self, c: int) -> None:
        """(N, 768, 17, 17) -> (N, 768, 17, 17); c: channels between the two of a pair."""
        super().__init__()
        across, down = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Convolution(768, 192, 1)
        self.branch7x7_1 = Convolution(768, c, 1)
        self.branch7x7_2 = Convolution(c, c, **across)
        self.branch7x7_3 = Convolution(c, 192, **down)
        self.branch7x7dbl_1 = Convolution(768, c, 1)
        self.branch7x7dbl_2 = Convolution(c, c, **down)
        self.branch7x7dbl_3 = Convolution(c, c, **across)
        self.branch7x7dbl_4 = Convolution(c, c, **down)
        self.branch7x7dbl_5 = Convolution(c, 192, **across)
        self.branch_pool = AveragedConvolution(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branches' channels, side by side."""
        one, single, double, pooled = self.ones(x)
        single = self.branch7x7_3(self.branch7x7_2(single))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(double))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([one, single, double, pooled], 1)


class BlockD(Block):
    """From 17 x 17 to 8 x 8."""

    ONES = ("branch3x3_1", "branch7x7x3_1")

    def __init__(self) -> None:
        """(N, 768, 17, 17) -> (N, 1280, 8, 8)."""
        super().__init__()
        self.branch3x3_1 = Convolution(768, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(768, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branches' channels, side by side."""
        three, seven = self.ones(x)
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(seven)))
        return torch.cat([self.branch3x3_2(three), seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(Block):
    """Blocks at 8 x 8: two of their branches end in a 1 x 3 and a 3 x 1 side by side."""

    ONES = ("branch1x1", "branch3x3_1", "branch3x3dbl_1")

    def __init__(self, c_in: int, last: bool) -> None:
        """(N, c_in, 8, 8) -> (N, 2048, 8, 8); the last block has a maximum in place of the average."""
        super().__init__()
        across, down = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.last = last
        self.branch1x1 = Convolution(c_in, 320, 1)
        self.branch3x3_1 = Convolution(c_in, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, **across)
        self.branch3x3_2b = Convolution(384, 384, **down)
        self.branch3x3dbl_1 = Convolution(c_in, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, **across)
        self.branch3x3dbl_3b = Convolution(384, 384, **down)
        self.branch_pool = (Convolution if last else AveragedConvolution)(c_in, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branches' channels, side by side."""
        one, three, double = self.ones(x)
        double = self.branch3x3dbl_2(double)
        ends = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        ends += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else x
        return torch.cat([one, *ends, self.branch_pool(pooled)], 1)


class Joined(nn.Module):
    """Frozen convolutions of the same single pixels as one matrix product, and what comes after each: for inference.

    A product of three or four times the columns is 10 to 25 % faster than so many of the parts.
    """

    def __init__(self, branches: Sequence[Convolution]) -> None:
        """`branches` are fused, with kernels of 1 x 1; an AveragedConvolution is the last, if there is one."""
        super().__init__()
        self.averaged = isinstance(branches[-1], AveragedConvolution)
        self.widths = [branch.conv.out_channels for branch in branches]
        self.register_buffer("weight", torch.cat([branch.conv.weight.detach().flatten(1) for branch in branches]))
        self.register_buffer("bias", torch.cat([branch.conv.bias.detach() for branch in branches]))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(N, c, H, W), channels last, -> (N, c_i, H, W) of each branch."""
        y = F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        parts = list(y.split(self.widths, 1))
        if self.averaged:
            parts[-1] = average(parts[-1])
        return [part.relu_() for part in parts]


class FIDInception(nn.Module):
    """From (N, 3, 299, 299) to (N, 2048) features, and through `fc` to (N, CLASSES); other sides of 75 and more too."""

    def __init__(self) -> None:
        """Untrained."""
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(BlockC, (128, 160, 160, 192))
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)
        self.fc = nn.Linear(2048, CLASSES)
        self.late = torch.float32  # the type of the blocks from Mixed_6a on (round_late)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, CLASSES) logits of images (N, 3, H, W) in [-1, 1]; the features where `fc` is the identity."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)  # (N, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)  # (N, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))).to(self.late)
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))  # (N, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        return self.fc(x.mean((2, 3), dtype=torch.float32))


def fuse(network: nn.Module) -> nn.Module:
    """Make one layer of each frozen convolution and its batch norm, in place; return the network."""
    for block in [m for m in network.modules() if isinstance(m, Convolution)]:
        block.conv, block.bn = fuse_conv_bn_eval(block.conv.eval(), block.bn.eval()), nn.Identity()
    return network


def round_late(network: FIDInception) -> FIDInception:
    """Make the blocks from Mixed_6a on bf16, in place; return the network.

    What is rounded early passes through all that follows: with every layer in bf16 the differences between tiles shrank
    by 0.3 %, and the FID by 0.5 %; so by less than 0.1 % (random weights; benchmarks/RESULTS.md).
    """
    children = dict(network.named_children())
    for name in list(children)[list(children).index("Mixed_6a") : -1]:
        children[name].to(torch.bfloat16)
    network.late = torch.bfloat16
    return network


def quicken(network: FIDInception) -> nn.Module:
    """Return a fused network for a CPU, some 1.4 times faster in fp32, equal within rounding; `network` is changed.

    One with blocks in bf16 has what is not Winograd's packed, where that can be: apart, those are faster than joined.
    """
    from models.winograd import WinogradConvolution, pays  # Numba takes half a second to import

    packed = network.late == torch.bfloat16 and can_pack()
    for block in [m for m in network.modules() if isinstance(m, Block) and m.ONES and not packed]:
        block.joined = Joined([getattr(block, name) for name in block.ONES])
        for name in block.ONES:
            delattr(block, name)
    for block in list(network.modules()):
        for name, layer in list(block.named_children()):
            if type(layer) is Convolution and pays(layer.conv):
                setattr(block, name, WinogradConvolution(layer.conv))
            elif type(layer) is Convolution and packed:
                setattr(block, name, PackedConvolution(layer.conv, rectified=True))
            elif type(layer) is AveragedConvolution and packed:
                layer.conv = PackedConvolution(layer.conv, rectified=False)
    return network
