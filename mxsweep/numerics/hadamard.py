"""Rotate a tensor's last dimension by an orthogonal matrix with entries of nearly one size.

x W^T = (x R) (W R)^T for every orthogonal R, so rotating both operands of a product changes nothing until they are
quantized: then an outlier of x no longer sets the scale of its block alone but is spread over all channels (QuaRot,
arXiv 2404.00456). paley.py says which R. In blocks of b channels, R is block-diagonal with the same matrix of order b.

R = B (x) S, where S is Sylvester's matrix, so a row is transformed in two steps: by S, and by B, a dense product. On a
GPU S is a kernel of ours (hadamard_cuda.py), which is all there is to do for a power of two up to 16384, and most sizes
that models have, in 16 bits, have one for both (dense_cuda.py). Elsewhere S is applied as Kronecker factors of orders 2
to 64, a matrix product each: 2^21 float32 elements take 4 to 8 ms on one core for the orders 64 to 8192, where
butterflies made of PyTorch operations take 15 to 25 ms and a copy 0.6 ms. All of it is float32 (float64 for float64),
rounded once at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mxsweep.numerics.kept_tensors import kept_tensors
from mxsweep.numerics.paley import base_factor, sylvester

DENSE_BITS, FACTOR_BITS = 6, 5  # a transform of up to 2^6 is one product, a longer one several of up to 2^5


def hadamard(x: Tensor, block: int = 0, *, inverse: bool = False) -> Tensor:
    """Multiply each block of the last dimension of x by the orthogonal matrix R of that order (``inverse``: by R^T).

    The transform is linear and has a gradient of every order: the inverse transform of the gradient.

    Args:
        x: (..., C), any floating-point dtype, any strides, possibly empty.
        block: channels to a block; 0 for all C. Where C is no multiple of it, the last block is shorter and has the
            matrix of its own order.
        inverse: whether to undo the transform.

    Returns:
        x's shape and dtype, contiguous.

    Raises:
        TypeError: x is not of a floating-point dtype.
        ValueError: x has no dimension, or ``block`` is negative.
    """
    if not x.is_floating_point():
        raise TypeError(f"x: dtype {x.dtype} cannot be rotated; allowed: floating-point dtypes")
    if x.ndim == 0:
        raise ValueError("x: a tensor without dimensions cannot be rotated; allowed: at least one dimension")
    if block < 0:
        raise ValueError(f"block: {block} is not allowed; allowed: 0 for the whole dimension, or a positive number")
    if torch.is_grad_enabled() and x.requires_grad:
        answer: Tensor = _Rotation.apply(x, block, inverse)
        return answer
    return _rotated(x.detach(), block, inverse)


def matrix(order: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Return R of an order: (order, order), orthogonal; `hadamard(x)` is x @ R. Worked out in float64, then rounded.

    Raises:
        ValueError: order is not positive.
    """
    if order < 1:
        raise ValueError(f"order: {order} is not allowed; allowed: a positive number")
    base = torch.from_numpy(base_factor(order))
    log_rest = (order // len(base)).bit_length() - 1
    signs = torch.from_numpy(sylvester(log_rest)).to(torch.float64)
    return torch.kron(base, signs * 2 ** (-log_rest / 2)).to(device, dtype)


@dataclass(frozen=True)
class SignedHadamard:
    """Describe the orthogonal matrix D R: signs on a diagonal, then the matrix R of that order.

    Attributes:
        order: of R.
        negative: bit i is set where the sign of row i is -1.
    """

    order: int
    negative: int

    def rotate(self, x: Tensor, axis: int = -1, *, inverse: bool = False) -> Tensor:
        """Multiply each block of ``order`` elements along an axis of x by the matrix (``inverse``: by its transpose).

        Where the axis is no multiple of the order, the last block is shorter, and has signs from the first on.

        Returns:
            x's shape and dtype; contiguous where the axis is the last.
        """
        x = x.transpose(axis, -1)
        signs = _signs(self, x.dtype, x.device)
        signs = signs.repeat(-(-x.shape[-1] // self.order))[: x.shape[-1]]
        x = hadamard(x, self.order, inverse=True) * signs if inverse else hadamard(x * signs, self.order)
        return x.transpose(axis, -1)


@kept_tensors(64)
def _signs(of: SignedHadamard, dtype: torch.dtype, device: torch.device) -> Tensor:
    signs = [-1.0 if of.negative >> row & 1 else 1.0 for row in range(of.order)]
    return torch.tensor(signs, device="cpu").to(device, dtype)  # whatever the default device is


class _Rotation(torch.autograd.Function):
    """Compute y = x R, whose gradient is that of y times R^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int, inverse: bool) -> Tensor:
        ctx.block, ctx.inverse = block, inverse
        return _rotated(x, block, inverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return hadamard(gradient, ctx.block, inverse=not ctx.inverse), None, None


def _rotated(x: Tensor, block: int, inverse: bool) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    columns = x.shape[-1]
    order = min(block, columns) or columns
    rest = columns % order
    if rest == 0:
        return _transformed(x.reshape(-1, order), order, inverse).view(x.shape)
    whole, last = x[..., : columns - rest], x[..., columns - rest :]
    parts = (
        _transformed(whole.reshape(-1, order), order, inverse).view(whole.shape),
        _transformed(last.reshape(-1, rest), rest, inverse).view(last.shape),
    )
    return torch.cat(parts, dim=-1)


def _transformed(x: Tensor, order: int, inverse: bool) -> Tensor:
    """Return rows (R, order) times the matrix of that order, contiguous."""
    size = len(base_factor(order))
    if size == 1:
        return _sylvester(x, order)
    if x.is_cuda:
        from mxsweep.numerics.kernels.dense_cuda import can_multiply, dense_hadamard_cuda

        if can_multiply(x, order):
            return dense_hadamard_cuda(x, order, inverse)
    y = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    base = _base(order, y.dtype, y.device)
    if size == order:
        return (y @ (base.T if inverse else base)).to(x.dtype)
    y = _sylvester(y, order // size).view(-1, size, order // size)
    return torch.matmul(base if inverse else base.T, y).view(x.shape).to(x.dtype)


def _sylvester(x: Tensor, order: int) -> Tensor:
    """Return each run of ``order`` elements of x times Sylvester's orthogonal matrix, its inverse too; a new tensor."""
    if order == 1:
        return x.clone(memory_format=torch.contiguous_format)
    if x.is_cuda:
        from mxsweep.numerics.kernels.hadamard_cuda import can_transform, sylvester_cuda

        if can_transform(x, order):
            return sylvester_cuda(x, order)
    y = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32).reshape(-1)
    inner = 1
    for factor in _factors(order.bit_length() - 1, y.dtype, y.device):
        size = len(factor)
        y = y.view(-1, size) @ factor if inner == 1 else torch.matmul(factor, y.view(-1, size, inner))
        inner *= size
    return y.view(x.shape).to(x.dtype)


@kept_tensors(128)
def _factors(log_order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return symmetric matrices whose Kronecker product is Sylvester's orthogonal one, the innermost first.

    The innermost carries the whole scale; the others have entries +-1, which cost no rounding but that of sums.
    """
    count = 1 if log_order <= DENSE_BITS else math.ceil(log_order / FACTOR_BITS)
    bits = [log_order // count + (index < log_order % count) for index in range(count)]
    factors = [torch.from_numpy(sylvester(log_size)).to(device, dtype) for log_size in bits]
    factors[0] = factors[0] * 2 ** (-log_order / 2)
    return tuple(factors)


@kept_tensors(128)
def _base(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(base_factor(order)).to(device, dtype)
