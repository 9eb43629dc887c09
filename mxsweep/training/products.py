"""Compute y = Q(x) Q(W)^T + b and its gradients dx = Q(g) Q(W) and dW = Q(g)^T Q(x), with a format for each operand.

Legend and the order of dimensions are those of :mod:`mxsweep.training.quantizing`: x (..., T, C), W (N, C), b (N,);
of E experts together x (B, E, T, C), W (E, N, C), b (E, N).

Gradients pass straight through quantization. That of the bias is the sum of g as it is. x and W are saved as they came,
which takes no memory that the model has not taken already; what the backward products read is made from them when it is
needed. The products are computed in x's dtype; gradients have the dtypes of x, W and b.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mxsweep.training.quantizing import Quantizer
from mxsweep.training.roles import INPUT_GRADIENT, WEIGHT_GRADIENT


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, quantizer: Quantizer) -> Tensor:
    """Return y = Q(x) Q(W)^T + b.

    Under autocast x is cast to its dtype first, and W and b for the products only: they keep theirs, as their gradients
    do.

    Raises:
        TypeError: x and W have two dtypes and there is no autocast, or a dtype that cannot be quantized.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    elif x.dtype != weight.dtype:
        raise TypeError(f"x: {x.dtype} does not go with a weight of {weight.dtype}; allowed: one dtype, or autocast")
    y: Tensor = _Linear.apply(x, weight, bias, quantizer)
    return y


class _Linear(torch.autograd.Function):
    """Compute y."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, quantizer: Quantizer) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
            if quantizer.formats.fprop.is_plain and weight.ndim == 2:
                return F.linear(x, weight, bias)
            y = _times_transposed(quantizer.make("fprop.input", x), quantizer.make("fprop.weight", weight))
            y = quantizer.unscaled("fprop", y)
            return y if bias is None else y.add_(bias if bias.ndim == 1 else bias.unsqueeze(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.quantizer = inputs
        by_x, by_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if by_weight else None, weight if by_x or by_weight else None)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias, _ = ctx.needs_input_grad
        found = iter(_Gradients.apply(g, x, weight, ctx.quantizer, by_x, by_weight) if by_x or by_weight else ())
        dx, dw = (next(found) if needed else None for needed in (by_x, by_weight))
        db = _sum_over_tokens(g).to(ctx.bias_dtype) if by_bias else None
        return dx, dw, db, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        answers = [_Linear.apply(*one) for one in _one_by_one(info.batch_size, in_dims, inputs)]
        return torch.stack(answers), 0


class _Gradients(torch.autograd.Function):
    """Compute dx and dW, those that are asked for. It is a function of its own so that it can be mapped over."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor | None, weight: Tensor, quantizer: Quantizer, by_x: bool, by_weight: bool
    ) -> tuple[Tensor, ...]:
        found = []
        with torch.autocast(g.device.type, enabled=False):
            if by_x:
                found.append(_input_gradient(g, weight, quantizer))
            if by_weight:
                assert x is not None
                found.append(_weight_gradient(g, x, weight.dtype, quantizer))
        return tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError("gradients of quantized products have no gradients themselves")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        answers = [_Gradients.apply(*one) for one in _one_by_one(info.batch_size, in_dims, inputs)]
        stacked = tuple(torch.stack(parts) for parts in zip(*answers, strict=True))
        return stacked, (0,) * len(stacked)


def _input_gradient(g: Tensor, weight: Tensor, quantizer: Quantizer) -> Tensor:
    weight = weight.to(g.dtype)
    source = quantizer.backward_source("dgrad.weight", weight)
    dx = _times(quantizer.make("dgrad.grad", g), quantizer.make("dgrad.weight", source))
    dx = quantizer.unscaled("dgrad", dx)
    if quantizer.observer is not None:
        quantizer.observer.gradient(quantizer.name, INPUT_GRADIENT, _times(g, weight), dx)
    return dx


def _weight_gradient(g: Tensor, x: Tensor, dtype: torch.dtype, quantizer: Quantizer) -> Tensor:
    source = quantizer.backward_source("wgrad.input", x)
    dw = _over_tokens(quantizer.make("wgrad.grad", g), quantizer.make("wgrad.input", source))
    dw = quantizer.unscaled("wgrad", dw)
    if quantizer.observer is not None:
        quantizer.observer.gradient(quantizer.name, WEIGHT_GRADIENT, _over_tokens(g, x), dw)
    return dw.to(dtype)


def _times_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """Return x W^T."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return _of_experts(_by_expert(x) @ weight.mT, x)


def _times(g: Tensor, weight: Tensor) -> Tensor:
    """Return g W."""
    return torch.matmul(g, weight) if weight.ndim == 2 else _of_experts(_by_expert(g) @ weight, g)


def _over_tokens(g: Tensor, x: Tensor) -> Tensor:
    """Return g^T x, summed over all tokens; of experts, each one's own."""
    if x.ndim > 3:
        return _by_expert(g).mT @ _by_expert(x)
    return g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def _by_expert(x: Tensor) -> Tensor:
    """Return (B, E, T, C) as (E, B T, C)."""
    return x.transpose(0, 1).flatten(1, 2)


def _of_experts(y: Tensor, x: Tensor) -> Tensor:
    """Return (E, B T, N) as (B, E, T, N), given x (B, E, T, C)."""
    return y.unflatten(1, (x.shape[0], x.shape[2])).transpose(0, 1)


def _sum_over_tokens(g: Tensor) -> Tensor:
    return g.sum((0, 2)) if g.ndim > 3 else g.reshape(-1, g.shape[-1]).sum(0)


def _one_by_one(size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the inputs of each of the ``size`` calls that are mapped over, whose examples are numbered on."""
    calls = []
    for index in range(size):
        one = [value if dim is None else value.select(dim, index) for value, dim in zip(inputs, in_dims, strict=True)]
        first = one[0]
        if in_dims[0] is not None and first.ndim > 2:
            one = [
                replace(value, first_example=value.first_example + index * len(first))
                if isinstance(value, Quantizer)
                else value
                for value in one
            ]
        calls.append(tuple(one))
    return calls
