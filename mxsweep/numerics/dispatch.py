"""Provide `quantize`, the one way in, which checks the arguments, gives the gradient and asks a backend.

The torch backend (definition.py) says what the answer is; the others give the same one or refuse.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.backends import BackendUnavailable, check_backend
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.availability import backend_problem
from mxsweep.numerics.blocks import block_axes
from mxsweep.numerics.kernels.cpu import quantize_by_library
from mxsweep.numerics.kernels.cpu_rows import Asked
from mxsweep.numerics.native_triton import quantize_fused
from mxsweep.numerics.philox import LAST_EXAMPLE, Draws, draws_of
from mxsweep.numerics.reference.definition import quantize_torch, reduced_shape
from mxsweep.numerics.wanted_exponents import kept_exponents

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantize(
    x: Tensor,
    fmt: MXFormat,
    axis: int = -1,
    *,
    backend: str = "torch",
    arithmetic: str | None = None,
    generator: torch.Generator | int | None = None,
    tensor_dims: Sequence[int] | None = None,
    example_dims: int = 0,
    first_example: int | None = None,
    tensor_amax: Tensor | None = None,
) -> Tensor:
    """Quantize `x` to `fmt` and read it back, in x's shape and dtype. `x` is not changed.

    The gradient is the identity, for saturated elements too (straight through).

    Args:
        x: float32, bfloat16 or float16, any shape with at least one dimension, any strides, possibly empty.
        fmt: the format.
        axis: the dimension that blocks extend along; a tile (rows, columns) lies on the last two dimensions
            and `axis` must name one of them.
        backend: "torch"; "cuda", the same answer from one kernel; "microxcaling", Microsoft's library.
        arithmetic: "native" or "exact", see definition.py. None is what the backend is for: exact for "cuda",
            which has no other, native for the others.
        generator: for stochastic rounding. A 64-bit key is drawn from a `torch.Generator`; an int is the key.
        tensor_dims: the dimensions over which the maximum of a per-tensor scale is taken; None for all. They
            must contain the dimensions that blocks extend along.
        example_dims: how many leading dimensions count examples. An element's random number depends on the
            key and on its index (row-major) within its example, so that an example rounds alike in every
            batch.
        first_example: the number of x's first example. It counts in the random numbers, too, so that they are
            independent over examples, however these are split into batches: example i of x draws as example
            `first_example` + i does everywhere. None: every example draws the numbers of example 0.
        tensor_amax: takes the place of the maxima that per-tensor scales are made from, as where several tensors share
            one, or where it was calibrated: float32, not negative, broadcastable to x's shape with `tensor_dims` 1
            long. A block beyond it saturates; a NaN or Inf in x makes its block NaN, and no other.

    Raises:
        TypeError: another dtype, or no tensor or format at all.
        ValueError: an unknown backend or arithmetic, an `axis`, `tensor_dims`, `example_dims`,
            `first_example` or `tensor_amax` that does not fit x, stochastic rounding without a generator, native
            arithmetic in a dtype that does not hold the element's largest value.
        BackendUnavailable: the backend cannot work here, or cannot do this.
    """
    arithmetic = arithmetic or ("exact" if backend == "cuda" else "native")
    check_backend(backend, arithmetic)
    check_arguments(x, fmt, axis, generator, tensor_dims, example_dims, first_example, tensor_amax)
    if arithmetic == "native" and x.dtype == torch.float16 and (problem := fmt.native_float16_problem()) is not None:
        raise ValueError(f"arithmetic: {problem}; allowed here: 'exact'")
    draws = draws_of(fmt, generator, example_dims, first_example)
    if torch.is_grad_enabled() and x.requires_grad:
        answer: Tensor = _StraightThrough.apply(x, fmt, axis, backend, arithmetic, draws, tensor_dims, tensor_amax)
        return answer
    return _dispatch(x.detach(), fmt, axis, backend, arithmetic, draws, tensor_dims, tensor_amax)


def check_arguments(
    x: Tensor,
    fmt: MXFormat,
    axis: int,
    generator: torch.Generator | int | None,
    tensor_dims: Sequence[int] | None,
    example_dims: int,
    first_example: int | None = None,
    tensor_amax: Tensor | None = None,
) -> None:
    """Raise what `quantize` promises to raise for arguments that do not fit each other."""
    if not (isinstance(x, Tensor) and isinstance(fmt, MXFormat)):
        name, value, wanted = ("fmt", fmt, MXFormat) if isinstance(x, Tensor) else ("x", x, Tensor)
        raise TypeError(f"{name}: {value!r:.60} is a {type(value).__name__}; allowed: {wanted.__name__}")
    check_first_example(first_example)
    over = None if tensor_dims is None else tuple(tensor_dims)
    check_fit(x.dtype, x.ndim, fmt, axis, generator is not None, over, example_dims)
    if tensor_amax is not None:
        _check_tensor_amax(tensor_amax, x, fmt, tensor_dims)


def check_first_example(first_example: int | None) -> None:
    """Raise what `quantize` promises to raise for the number of an example."""
    if first_example is not None and (type(first_example) is not int or not 0 <= first_example <= LAST_EXAMPLE):
        raise ValueError(f"first_example: {first_example!r} is not allowed; allowed: None, or 0 to 2^62")


@functools.lru_cache(maxsize=4096)  # as of a step of training, which asks the same a hundred times
def check_fit(
    dtype: torch.dtype,
    ndim: int,
    fmt: MXFormat,
    axis: int,
    has_generator: bool,
    tensor_dims: tuple[int, ...] | None,
    example_dims: int,
) -> None:
    """Raise what `check_arguments` does for arguments that say the same of every tensor of a dtype and so many axes."""
    if dtype not in DTYPES:
        raise TypeError(f"x: dtype {dtype} cannot be quantized; allowed: {', '.join(map(str, DTYPES))}")
    blocked = block_axes(ndim, fmt.block_size, axis)
    if fmt.rounding == "stochastic" and not has_generator:
        raise ValueError("generator: None does not go with stochastic rounding; allowed: a torch.Generator or a key")
    if not 0 <= example_dims < ndim:
        raise ValueError(f"example_dims: {example_dims!r} is not allowed; allowed here: 0 to {ndim - 1}")
    if fmt.tensor_scale and tensor_dims is not None:
        wrong = [dim for dim in tensor_dims if not -ndim <= dim < ndim]
        if wrong or not set(blocked) <= {dim % ndim for dim in tensor_dims}:
            raise ValueError(
                f"tensor_dims: {tensor_dims} is not allowed; allowed: dimensions of x, which has {ndim}, among them "
                f"those that blocks extend along: {', '.join(map(str, blocked))}"
            )


def _check_tensor_amax(tensor_amax: Tensor, x: Tensor, fmt: MXFormat, tensor_dims: Sequence[int] | None) -> None:
    if not fmt.tensor_scale:
        raise ValueError(f"tensor_amax: a tensor does not go with {fmt}, which has no per-tensor scale; allowed: None")
    if not isinstance(tensor_amax, Tensor) or tensor_amax.dtype != torch.float32:
        raise TypeError(f"tensor_amax: {tensor_amax!r:.60} is not allowed; allowed: a float32 tensor")
    wanted = reduced_shape(x.shape, tensor_dims)
    try:
        tensor_amax.expand(wanted)
    except RuntimeError:
        raise ValueError(
            f"tensor_amax: of shape {tuple(tensor_amax.shape)} is not allowed; allowed here: what can be expanded to "
            f"{tuple(wanted)}"
        ) from None


_working: set[str] = set()


def problem_of(x: Tensor, backend: str) -> str | None:
    """Return what `backend_problem` does; of tensors on a GPU it is asked, which takes a while, until none is found."""
    if backend in _working and x.is_cuda:
        return None
    problem = backend_problem(backend)
    if problem is None and backend == "cuda" and x.is_cuda:
        _working.add(backend)
    return problem


class _StraightThrough(torch.autograd.Function):
    """Give gradients the identity: quantization's derivative is zero almost everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        return _dispatch(x.detach(), *arguments)  # which of a parameter is a plain tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return (gradient, *[None] * (len(ctx.needs_input_grad) - 1))


def _dispatch(x: Tensor, fmt: MXFormat, *arguments: Any) -> Tensor:
    """Quantize; where exponents are kept and the backend does not tell them, note that some are not known."""
    kept = kept_exponents()
    noted = kept.notes if kept is not None else 0
    y = _quantize_by(x, fmt, *arguments)
    if kept is not None and kept.notes == noted and fmt.scale_format.is_power_of_two and x.numel():
        kept.is_complete = False
    return y


def _quantize_by(
    x: Tensor,
    fmt: MXFormat,
    axis: int,
    backend: str,
    arithmetic: str,
    draws: Draws | None,
    tensor_dims: Sequence[int] | None,
    tensor_amax: Tensor | None,
) -> Tensor:
    if backend == "torch":
        y = quantize_by_library(x, Asked(fmt, axis, arithmetic, tensor_dims, tensor_amax, draws=draws))
        if y is None:
            y = quantize_fused(x, fmt, axis, arithmetic)
        if y is not None:
            return y
        return quantize_torch(x, fmt, axis, arithmetic, draws, tensor_dims, tensor_amax)
    if problem := problem_of(x, backend):
        raise BackendUnavailable(problem)
    if backend == "cuda":
        if fmt.is_native(arithmetic):
            raise BackendUnavailable("backend 'cuda' computes arithmetic exact and has no native")
        from mxsweep.numerics.kernels.cuda import quantize_cuda

        return quantize_cuda(x, fmt, axis, draws, tensor_dims, tensor_amax)
    from mxsweep.numerics.microxcaling import quantize_microxcaling

    return quantize_microxcaling(x, fmt, axis, arithmetic)
