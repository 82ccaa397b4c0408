"""Linear layers whose weights are whole numbers times a scale for each output.

A file of them is half as large as in half precision, and for one person at a time a CPU waits for memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_LARGEST = 127
# Of few inputs each weight counts: a first layer in whole numbers moves the joints by 11 mm, all others together by 2.
_LEAST_INPUTS, _LEAST_WEIGHTS = 512, 1 << 16
# Beyond so many samples single-precision products are as fast as reading whole numbers.
MOST_ROWS = 16


def fits_integers(layer: nn.Module) -> bool:
    """Whether a layer is of a kind and size that loses nothing by whole numbers: linear, large, of many inputs."""
    if not isinstance(layer, nn.Linear):
        return False
    return layer.in_features >= _LEAST_INPUTS and layer.weight.numel() >= _LEAST_WEIGHTS


def to_integers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest weights of this form, (out, in) -> (out, in) int8 and scales (out,) bf16, which fast kernels take.

    The largest of a row is 127 times its scale, so that weights which have this form already stay as they are.
    """
    weight = weight.detach().float()
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest / _LARGEST, 1.0).bfloat16()
    return (weight / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def from_integers(numbers: Tensor, scale: Tensor) -> Tensor:
    """(out, in) int8, (out,) -> weights (out, in) float32."""
    return numbers.float() * scale.float()[:, None]


class IntegerLinear(nn.Linear):
    """An inference-only copy of a linear layer on the CPU that shares its parameters, which are such weights.

    For a few samples the whole numbers are read and multiplied with inputs rounded to bf16 (to 0.4 %), as the
    results are. Where a gradient may be wanted, and after the weights were changed or moved, the layer is ordinary.
    """

    def __init__(self, exact: nn.Linear) -> None:
        """Refuses with `ValueError` weights that are not of this form."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = exact.in_features, exact.out_features
        self.weight, self.bias = exact.weight, exact.bias
        numbers, scale = to_integers(exact.weight)
        if not torch.equal(from_integers(numbers, scale), exact.weight.detach()):
            raise ValueError("the weights are no whole numbers times a scale for each output")
        self._numbers, self._scale = numbers, scale
        self._made_from = self._state()

    def _state(self) -> tuple[int, int]:
        """Changes with the weights."""
        return self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        if torch.is_grad_enabled() or x.numel() > MOST_ROWS * self.in_features or self._state() != self._made_from:
            return linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features).bfloat16()
        product = torch._weight_int8pack_mm(rows, self._numbers, self._scale).float()
        return (product if self.bias is None else product + self.bias).view(*x.shape[:-1], self.out_features)


def read_integers(module: nn.Module) -> nn.Module:
    """The module with its layers that have such weights as `IntegerLinear`, where this processor can; changed in place.

    Only single-precision layers on the CPU, of exactly `nn.Linear`, are changed.
    """
    has_kernel = hasattr(torch, "_weight_int8pack_mm")  # of no stable interface
    if not has_kernel or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return module
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            plain = child.weight.dtype == torch.float32 and child.weight.device.type == "cpu"
            if plain and fits_integers(child) and child.in_features % 64 == 0:
                try:
                    setattr(module, name, IntegerLinear(child))
                except ValueError:
                    continue
        else:
            read_integers(child)
    return module
