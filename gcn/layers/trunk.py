"""Graph blocks from coarse to fine as one differentiable function that keeps little and stays in the cache.

Of every layer only the output before batch norm is kept; what follows from it (normalised, rectified, block inputs) is
computed again where it is needed. Everything is done for a few samples at a time, on the CPU for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import interpolate

from gcn.layers.batchnorm import BatchNorm, sum_over_processes
from gcn.layers.filter import GraphFilter


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A filter and what follows it. `multiplicity` (N,) weighs the nodes in batch statistics; it is 1 at the
    first `num_single`.

    `norm` is None at the very end, where neither batch norm nor ReLU follows.
    """

    filter: GraphFilter
    norm: BatchNorm | None
    multiplicity: Tensor
    num_single: int


@dataclass(frozen=True, kw_only=True)
class Block:
    """Layers, and the input as residual. `parent` (N,) is the coarse node of each node if up-sampling comes first."""

    layers: tuple[Layer, ...]
    parent: Tensor | None
    residual: bool


def resize_channels(x: Tensor, channels: int) -> Tensor:
    """The original's shortcut between widths: the channels resampled as if they were a signal."""
    return x if x.shape[-1] == channels else interpolate(x, size=channels, mode="linear")


def shortcut(x: Tensor, parent: Tensor | None, channels: int) -> Tensor:
    """A block's input at the size of its output: (b, N_in, C_in) -> (b, N, C_out)."""
    x = resize_channels(x, channels)
    return x if parent is None else x.index_select(1, parent)


def shortcut_adjoint(grad: Tensor, block: Block, weight: Tensor) -> Tensor:
    """The gradient that reaches a block's input through its shortcut; `weight` is that of the block's first layer."""
    nodes, channels = block.layers[0].filter.in_size, weight.shape[0]
    if block.parent is not None:
        fine, grad = grad, grad.new_zeros(len(grad), nodes, grad.shape[2])
        for target, sample in zip(grad, fine):
            target.index_add_(0, block.parent, sample)
    if grad.shape[-1] == channels:
        return grad
    shape = (len(grad), nodes, channels)
    return torch.ops.aten.upsample_linear1d_backward(grad, [grad.shape[-1]], shape, False, None)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Batch norm of one layer as z = scale y + shift, with what its gradient needs, all (C,).

    `count` is how many nodes the batch statistics are of; 0 where running statistics are used instead.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inverse_std: Tensor
    count: float

    def relu(self, y: Tensor) -> Tensor:
        """(b, N, C) -> (b, N, C)."""
        return torch.addcmul(self.shift, y, self.scale).relu_()


class Moments:
    """Batch statistics of what a layer wrote, chunk by chunk and then over all processes."""

    def __init__(self, layer: Layer) -> None:
        self.multiplicity = layer.multiplicity
        self.count = 0
        self.origin = self.sums = layer.multiplicity.new_empty(0)

    def add(self, y: Tensor) -> None:
        """One chunk. Sums are taken about the mean of the first, lest they cancel."""
        if self.count == 0:
            self.origin = torch.mv(y[0].T, self.multiplicity) / self.multiplicity.sum()
            self.sums = self.origin.new_zeros(2, len(self.origin), dtype=torch.float64)
        self.count += len(y)
        centred = y - self.origin
        weights = self.multiplicity.repeat(len(y))
        self.sums[0] += torch.mv(centred.flatten(0, 1).T, weights)
        self.sums[1] += torch.mv(centred.square_().flatten(0, 1).T, weights)

    def result(self) -> tuple[Tensor, Tensor, float]:
        """Mean and biased variance of each channel in float64, and the number of nodes that they are of."""
        count = self.count * self.multiplicity.sum().double()
        origin = self.origin.double()
        total = self.sums[0] + count * origin
        squares = self.sums[1] + 2 * origin * self.sums[0] + count * origin.square()
        total, squares, counts = sum_over_processes(torch.stack((total, squares, count.expand_as(total))))
        mean = total / counts
        return mean, squares / counts - mean.square(), float(counts[0])


def normalise(layer: Layer, moments: Moments) -> Affine:
    """The batch norm of a layer, by batch statistics, which also move the running ones, or by the running ones."""
    norm = layer.norm
    assert norm is not None and norm.running_mean is not None and norm.running_var is not None
    if norm.training:
        mean, variance, count = moments.result()
        norm.follow(mean.to(norm.running_mean), (variance * count / (count - 1)).to(norm.running_var))
    else:
        mean, variance, count = norm.running_mean, norm.running_var, 0.0
    inverse_std = (variance + norm.eps).rsqrt()
    scale = norm.weight * inverse_std
    shift = norm.bias - mean * scale
    vectors = (v.detach().to(norm.weight.dtype) for v in (scale, shift, mean, inverse_std))
    return Affine(**dict(zip(("scale", "shift", "mean", "inverse_std"), vectors)), count=count)


def mask(grad: Tensor, rectified: Tensor) -> Tensor:
    """The gradient before a ReLU."""
    return torch.ops.aten.threshold_backward(grad, rectified, 0)


class NormAdjoint:
    """Backwards through a layer's batch norm: first all chunks are added, then each is mapped."""

    def __init__(self, layer: Layer, affine: Affine) -> None:
        self.layer, self.affine = layer, affine
        self.sums = affine.scale.new_zeros(2, len(affine.scale), dtype=torch.float64)
        self.constants: tuple[Tensor, Tensor] | None = None

    def add(self, grad: Tensor, y: Tensor) -> None:
        """The gradient of one chunk of what the norm writes, and what entered it."""
        self.sums[0] += grad.sum((0, 1))
        self.sums[1] += (grad * y).sum((0, 1))

    def of_parameters(self) -> list[Tensor]:
        """Gradients of the bias before the norm, its weight and its bias."""
        affine = self.affine
        mean, inverse_std = affine.mean.double(), affine.inverse_std.double()
        bias = self.sums[0]
        weight = (self.sums[1] - mean * bias) * inverse_std
        before = torch.zeros_like(bias) if affine.count else affine.scale * bias
        if affine.count:
            first, second = sum_over_processes(torch.stack((bias, weight))) / affine.count
            offset, slope = inverse_std * mean * second - first, -inverse_std * second
            self.constants = (affine.scale * offset).to(affine.scale), (affine.scale * slope).to(affine.scale)
        return [v.to(affine.scale) for v in (before, weight, bias)]

    def map(self, grad: Tensor, y: Tensor, out: Tensor) -> None:
        """Of one chunk: the gradient of what entered."""
        if self.constants is None:
            torch.mul(grad, self.affine.scale, out=out)
            return
        common = torch.addcmul(self.constants[0], y, self.constants[1])
        padding = slice(self.layer.num_single, None)
        common[:, padding] *= self.layer.multiplicity[padding, None]
        torch.addcmul(common, grad, self.affine.scale, out=out)


class Memory:
    """What is kept of one chunk, and what follows from it."""

    def __init__(self, blocks: Sequence[Block], affines: list[Affine], kept: Sequence[Tensor]) -> None:
        """kept: the inputs of the blocks that keep theirs, then what each layer wrote, as far as it is known."""
        self.blocks, self.affines = blocks, affines
        self.keeping = kept_inputs(blocks)
        self.inputs = dict(zip(self.keeping, kept))
        self.outputs = list(kept[len(self.keeping) :])

    def kept(self) -> list[Tensor]:
        """The inverse of the constructor."""
        return [self.inputs[number] for number in self.keeping] + self.outputs

    def rectified(self, layer: int) -> Tensor:
        """What a layer wrote after batch norm and ReLU."""
        return self.affines[layer].relu(self.outputs[layer])

    def input(self, number: int) -> Tensor:
        """What enters a block."""
        if number in self.inputs:
            return self.inputs[number]
        before = self.blocks[number - 1]
        x = self.rectified(sum(len(block.layers) for block in self.blocks[:number]) - 1)
        if before.residual:
            x += shortcut(self.input(number - 1), before.parent, x.shape[-1])
        if number in self.keeping:
            self.inputs[number] = x
        return x


def kept_inputs(blocks: Sequence[Block]) -> list[int]:
    """The blocks whose input is kept: the first, and those that begin with an up-sampling, before it."""
    return [number for number, block in enumerate(blocks) if number == 0 or block.parent is not None]


def evaluate(blocks: Sequence[Block], folded: Sequence[tuple[Tensor, Tensor]], start: Tensor) -> Tensor:
    """The same function of a chunk with batch norm folded into each layer's weights V and bias, without gradients."""
    x, layers = start, iter(folded)
    for block in blocks:
        begin = x
        for layer in block.layers:
            x = layer.filter(x, *next(layers))
            if layer.norm is not None:
                x = x.relu_()
        if block.residual:
            x += shortcut(begin, block.parent, x.shape[-1])
    return x


class TrunkFunction(torch.autograd.Function):
    """Start features and the weights of all layers -> what the last layer writes."""

    @staticmethod
    def forward(ctx: Any, blocks: Sequence[Block], chunk: int, start: Tensor, *parameters: Tensor) -> Tensor:
        """start (B, N_0, C_0); for each layer V (C_in, K C_out), b, and unless it is the last the two of its norm.

        -> (B, N, C).
        """
        affines: list[Affine] = []
        memories = [Memory(blocks, affines, [begin]) for begin in start.split(chunk)]
        at = 0
        for number, block in enumerate(blocks):
            for place, layer in enumerate(block.layers):
                weight, bias = parameters[at : at + 2]
                moments = Moments(layer)
                table = layer.filter.table(start[:chunk], len(bias))
                for memory in memories:
                    x = memory.rectified(len(affines) - 1) if place else memory.input(number)
                    memory.outputs.append(layer.filter(x, weight, bias, table))
                    if layer.norm is not None and layer.norm.training:
                        moments.add(memory.outputs[-1])
                if layer.norm is not None:
                    affines.append(normalise(layer, moments))
                at += 2 if layer.norm is None else 4
        result = torch.cat([memory.outputs.pop() for memory in memories])
        ctx.blocks, ctx.affines, ctx.num_parameters = blocks, affines, len(parameters)
        ctx.save_for_backward(*parameters, *(tensor for memory in memories for tensor in memory.kept()))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """See `_backward`; in full precision, whatever is around."""
        with torch.autocast(grads[0].device.type, enabled=False):
            return TrunkFunction._backward(ctx, grads[0])

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of start and parameters, layer by layer: batch norm needs sums over the whole batch."""
        blocks: Sequence[Block] = ctx.blocks
        affines: list[Affine] = ctx.affines
        parameters, kept = ctx.saved_tensors[: ctx.num_parameters], ctx.saved_tensors[ctx.num_parameters :]
        size = len(kept_inputs(blocks)) + len(affines)
        memories = [Memory(blocks, affines, kept[i : i + size]) for i in range(0, len(kept), size)]
        chunks = list(grad.split([len(memory.inputs[0]) for memory in memories]))
        of_parameters: list[Tensor] = []  # from the last
        at, layer_idx = len(parameters), len(affines)
        for number in range(len(blocks) - 1, -1, -1):
            block = blocks[number]
            norm_adjoint = None
            residuals: list[Tensor] = []
            if block.layers[-1].norm is not None:
                norm_adjoint = NormAdjoint(block.layers[-1], affines[layer_idx])
                for i, memory in enumerate(memories):
                    if block.residual:
                        residuals.append(shortcut_adjoint(chunks[i], block, parameters[at - 4 * len(block.layers)]))
                    chunks[i] = mask(chunks[i], memory.rectified(layer_idx))
                    norm_adjoint.add(chunks[i], memory.outputs[layer_idx])
            for place in range(len(block.layers) - 1, -1, -1):
                layer = block.layers[place]
                at -= 2 if norm_adjoint is None else 4
                of_others = [grad.sum((0, 1))] if norm_adjoint is None else norm_adjoint.of_parameters()
                below = NormAdjoint(block.layers[place - 1], affines[layer_idx - 1]) if place else None
                of_weight = torch.zeros_like(parameters[at])
                space = layer.filter.adjoint_rows(chunks[0])
                for i, memory in enumerate(memories):
                    rows = space[: len(chunks[i])]
                    if norm_adjoint is None:
                        rows[:, : layer.filter.size] = chunks[i]
                    else:
                        norm_adjoint.map(chunks[i], memory.outputs[layer_idx], rows[:, : layer.filter.size])
                    spread = layer.filter.adjoint(rows).flatten(0, 1)
                    x = memory.rectified(layer_idx - 1) if place else memory.input(number)
                    of_weight.addmm_(x.flatten(0, 1).T, spread)
                    chunks[i] = (spread @ parameters[at].T).view_as(x)
                    if below is not None:
                        chunks[i] = mask(chunks[i], x)
                        below.add(chunks[i], memory.outputs[layer_idx - 1])
                    elif residuals:
                        chunks[i] += residuals[i]
                of_parameters[:0] = [of_weight, *of_others]
                norm_adjoint = below
                layer_idx -= 1
        return None, None, torch.cat(chunks), *of_parameters
