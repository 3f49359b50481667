"""Convolutions with weights in the order that oneDNN computes in, and the rectifier in the same pass: frozen, on a CPU.

A plain convolution puts its weights in that order at every call, and its rectifier passes over the output once more:
with four images at a time 3 to 20 % of most layers' time in bf16. The operations are those that torch.compile puts in a
convolution's place on a CPU; they are not torch's promise, so `can_pack` tries them.
"""

import torch
from torch import nn


class PackedConvolution(nn.Module):
    """A frozen convolution with its bias, and a rectifier where asked for, for inference on a CPU alone."""

    def __init__(self, conv: nn.Conv2d, rectified: bool) -> None:
        """`conv` pads with zeros."""
        super().__init__()
        self.how = [list(values) for values in (conv.padding, conv.stride, conv.dilation)] + [conv.groups]
        self.after = "relu" if rectified else "none"
        self.register_buffer("weight", conv.weight.detach())
        self.register_buffer("bias", conv.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, c_in, H, W) -> (N, c_out, H', W'), channels last."""
        weight = self.weight
        if not weight.is_mkldnn:  # in the order for these H, W and torch's threads; with others it is slow, not wrong
            shape = [1, *x.shape[1:]]
            weight = self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.how, shape)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.how, self.after, [], "")


@torch.inference_mode()
def can_pack() -> bool:
    """Return whether this torch and this processor have what PackedConvolution needs, in bf16 too: it is tried."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        PackedConvolution(nn.Conv2d(1, 1, 1).bfloat16(), rectified=True)(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):  # no such operation in this torch, or another one
        return False
    return True
