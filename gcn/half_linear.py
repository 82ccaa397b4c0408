"""Linear layers that read their weights in half precision: for one person at a time, memory is what a CPU waits for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_ENGINES = ("x86", "fbgemm")  # of torch, that multiply by half-precision weights
_LEAST_WEIGHTS = 1 << 16  # fewer stay in the cache as they are
# Beyond so many samples the products cost more than reading the weights, and single precision is about as fast.
MOST_ROWS = 64


class HalfLinear(nn.Linear):
    """An inference-only copy of a linear layer on the CPU that shares its parameters.

    For a few samples the weights are read from a packed copy in half precision and multiplied in single precision; with
    weights that were half precision in their file that is the same to rounding. Where a gradient may be wanted, and
    after the weights were changed or moved, the layer is an ordinary one.
    """

    def __init__(self, exact: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = exact.in_features, exact.out_features
        self.weight, self.bias = exact.weight, exact.bias
        bias = None if exact.bias is None else exact.bias.detach().clone()
        self._packed = torch.ops.quantized.linear_prepack_fp16(exact.weight.detach().clone(), bias)
        self._packed_from = self._state()

    def _state(self) -> tuple[int, ...]:
        """Changes with the parameters."""
        given = (self.weight,) if self.bias is None else (self.weight, self.bias)
        return tuple(
            number
            for tensor in given
            for number in (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        if torch.is_grad_enabled() or x.numel() > MOST_ROWS * self.in_features or self._state() != self._packed_from:
            return linear(x, self.weight, self.bias)
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)


def read_half(module: nn.Module) -> nn.Module:
    """The module with its large linear layers as `HalfLinear`, where this processor can; changed in place.

    Only single-precision layers on the CPU, of exactly `nn.Linear`, whose weights half precision holds, are changed.
    """
    if torch.backends.quantized.engine not in _ENGINES:
        return module
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            weight = child.weight
            is_plain = (
                weight.numel() >= _LEAST_WEIGHTS and weight.dtype == torch.float32 and weight.device.type == "cpu"
            )
            if is_plain and torch.equal(weight, weight.half().float()):
                setattr(module, name, HalfLinear(child))
        else:
            read_half(child)
    return module
