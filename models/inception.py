"""The Inception V3 of the published FID: torchvision's network with TensorFlow's pooling in four of its blocks.

Apart from features.py because torchvision takes seconds to import, and the default extractor does without it.
"""

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import inception


class _TensorFlowPool:
    """Inception block whose pooling branch is TensorFlow's, not torchvision's: the last of the block's branches."""

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """3 x 3 average over the pixels that exist: torchvision also counts the zeros outside the image."""
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([*self._forward(x)[:-1], self.branch_pool(self.pool(x))], 1)


class FIDInceptionA(_TensorFlowPool, inception.InceptionA):
    """Blocks at 35 x 35."""


class FIDInceptionC(_TensorFlowPool, inception.InceptionC):
    """Blocks at 17 x 17."""


class FIDInceptionE(_TensorFlowPool, inception.InceptionE):
    """First block at 8 x 8."""


class FIDInceptionEMax(FIDInceptionE):
    """Last block: the published graph has a maximum here, where the paper has an average."""

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """3 x 3 maximum."""
        return F.max_pool2d(x, 3, stride=1, padding=1)


def fid_inception() -> nn.Module:
    """Return the untrained FID Inception V3 with its classifier of 1008; parameter names are torchvision's."""
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_5b, network.Mixed_5c = FIDInceptionA(192, pool_features=32), FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = FIDInceptionA(288, pool_features=64)
    for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(network, name, FIDInceptionC(768, channels_7x7=channels))
    network.Mixed_7b, network.Mixed_7c = FIDInceptionE(1280), FIDInceptionEMax(2048)
    return network


def fuse(network: nn.Module) -> nn.Module:
    """Make one layer of each frozen convolution and its batch norm, in place; return the network."""
    for block in [m for m in network.modules() if isinstance(m, inception.BasicConv2d)]:
        block.conv, block.bn = fuse_conv_bn_eval(block.conv.eval(), block.bn.eval()), nn.Identity()
    return network
