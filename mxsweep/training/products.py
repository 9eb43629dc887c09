"""Compute y = Q(x) Q(W)^T + b and its gradients dx = Q(g) Q(W) and dW = Q(g)^T Q(x), with a format for each operand.

Legend and the order of dimensions are those of :mod:`mxsweep.training.quantizing`: x (..., T, C), W (N, C), b (N,);
of E experts together x (B, E, T, C), W (E, N, C), b (E, N).

Gradients pass straight through quantization. That of the bias is the sum of g as it is. x and W are saved as they came,
which takes no memory that the model has not taken already; what the backward products read is made from them when it is
needed. Where a kernel makes an operand of fprop and one of a backward product in one reading, the latter is saved in
the place of what it is made from. The products are computed in x's dtype; gradients have the dtypes of x, W and b.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mxsweep.formats.training import INPUT_GRADIENT, OF_GRADIENT, OF_INPUT, OF_WEIGHT, WEIGHT_GRADIENT
from mxsweep.training.quantizing import Quantizer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, quantizer: Quantizer) -> Tensor:
    """Return y = Q(x) Q(W)^T + b.

    Under autocast x is cast to its dtype first, and W and b for the products only: they keep theirs, as their gradients
    do.

    Raises:
        TypeError: x and W have two dtypes and there is no autocast, or a dtype that cannot be quantized.
    """
    device = x.device.type
    dtype = x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif dtype != weight.dtype:
        raise TypeError(f"x: {x.dtype} does not go with a weight of {weight.dtype}; allowed: one dtype, or autocast")
    with _without_autocast(device):
        made = _made_ahead(x, dtype, weight, quantizer, torch.is_grad_enabled())
        if made is None or made.wgrad_input is None:
            x = x.to(dtype)  # which is read itself: by the product, or by what the backward pass makes of it
        y: Tensor = _Linear.call(x, weight, bias, made, quantizer)
    return y


class _Switched(AbstractContextManager[None]):
    """Turn autocast off on a device where it is on. Made each time, ``torch.autocast`` takes several times as long."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> None:
        torch.set_autocast_enabled(self._device, False)

    def __exit__(self, *raised: object) -> None:
        torch.set_autocast_enabled(self._device, True)


def _without_autocast(device: str) -> AbstractContextManager[None]:
    return _Switched(device) if torch.is_autocast_enabled(device) else nullcontext()


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()


class _Made(NamedTuple):
    """Hold operands that were made before their product is computed; None for one that is made when it is needed."""

    fprop_input: Tensor | None = None
    wgrad_input: Tensor | None = None
    fprop_weight: Tensor | None = None
    dgrad_weight: Tensor | None = None


def _made_ahead(
    x: Tensor, dtype: torch.dtype, weight: Tensor, quantizer: Quantizer, with_gradients: bool
) -> _Made | None:
    """Make what layers share that read one input, and what one reading makes for the backward pass, too.

    Args:
        dtype: of the products.
    """
    if quantizer.formats.fprop.is_plain or torch._C._are_functorch_transforms_active():
        return None  # under a transform x may stand for many tensors
    both = with_gradients and quantizer.makes_both
    inputs = quantizer.make_shared(OF_INPUT if both and weight.requires_grad else OF_INPUT[:1], x.detach(), dtype)
    weights: tuple[Tensor, ...] = ()
    if both and x.requires_grad:
        weights = quantizer.make_both(OF_WEIGHT, weight.detach().to(dtype))
    return _Made(*inputs, *[None] * (2 - len(inputs)), *weights)


class _Linear(torch.autograd.Function):
    """Compute y."""

    @classmethod
    def call(cls, *arguments: Any) -> Any:
        """Do what ``apply`` does, but look up the signature of ``forward`` only where a transform asks for it."""
        of_autograd: Any = cls if _is_transformed() else super(torch.autograd.Function, cls)
        return of_autograd.apply(*arguments)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, made: _Made | None, quantizer: Quantizer) -> Tensor:
        if quantizer.formats.fprop.is_plain and weight.ndim == 2:
            return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        x_row, _, weight_row, _ = made or _Made()
        if x_row is None:
            x_row = quantizer.make("fprop.input", x)
        if weight_row is None:
            weight_row = quantizer.make("fprop.weight", weight.to(x_row.dtype))
        bias = None if bias is None else bias.to(x_row.dtype)
        y = quantizer.unscaled("fprop", _times_transposed(x_row, weight_row))
        return y if bias is None else y.add_(bias if bias.ndim == 1 else bias.unsqueeze(1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, made, ctx.quantizer = inputs
        _, x_column, _, weight_column = made or _Made()
        by_x, by_weight, *_ = ctx.needs_input_grad
        of_x, of_weight = (x if x_column is None else x_column), (weight if weight_column is None else weight_column)
        ctx.save_for_backward(of_x if by_weight else None, of_weight if by_x else None)
        ctx.made = x_column is not None, weight_column is not None
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias, *_ = ctx.needs_input_grad
        if ctx.quantizer.in_forward is not None:
            ctx.quantizer.in_forward.forget()  # no other layer reads what the last one of the forward pass read
        dx = dw = None
        if by_x or by_weight:
            # As a function of its own only where that is asked for, since it takes a while.
            alone = torch.is_grad_enabled() or _is_transformed()
            gradients_of: Any = _Gradients.apply if alone else _Gradients.forward
            found = gradients_of(g, x, weight, *ctx.made, ctx.quantizer)
            of_x, of_weight, _ = ctx.dtypes
            dx, dw = found[0].to(of_x) if by_x else None, found[-1].to(of_weight) if by_weight else None
        db = _sum_over_tokens(g).to(ctx.dtypes[2]) if by_bias else None
        return dx, dw, db, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        answers = [_Linear.apply(*one) for one in _one_by_one(info.batch_size, in_dims, inputs)]
        return torch.stack(answers), 0


class _Gradients(torch.autograd.Function):
    """Compute dx where W is given, and dW where x is. It is a function of its own so that it can be mapped over.

    Where one "is made", it is the operand itself and not what that is made from.
    """

    @staticmethod
    def forward(
        g: Tensor, x: Tensor | None, weight: Tensor | None, x_is_made: bool, weight_is_made: bool, quantizer: Quantizer
    ) -> tuple[Tensor, ...]:
        found = []
        with _without_autocast(g.device.type):
            names = OF_GRADIENT[:1] if x is None else OF_GRADIENT[1:] if weight is None else OF_GRADIENT
            quantized = quantizer.make_both(names, g)
            if weight is not None:
                if not weight_is_made:
                    weight = weight.to(g.dtype)
                operand = weight if weight_is_made else quantizer.make_both(OF_WEIGHT[1:], weight)[0]
                found.append(quantizer.unscaled("dgrad", _times(quantized[0], operand)))
                if quantizer.observer is not None:
                    quantizer.observer.gradient(quantizer.name, INPUT_GRADIENT, _times(g, weight), found[-1])
            if x is not None:
                operand = x if x_is_made else quantizer.make_shared(OF_INPUT[1:], x, x.dtype)[0]
                found.append(quantizer.unscaled("wgrad", _over_tokens(quantized[-1], operand)))
                if quantizer.observer is not None:
                    quantizer.observer.gradient(quantizer.name, WEIGHT_GRADIENT, _over_tokens(g, x), found[-1])
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
