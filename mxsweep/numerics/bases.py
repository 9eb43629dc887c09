"""Put both operands of a product into a basis in which they are quantized.

Legend: x (..., C) what a weight W (N, C) multiplies; T (C, C) block-diagonal with an inverse. Since x W^T =
(x T^T) (W T^-1)^T, another basis changes nothing until the operands are quantized.

Both are computed in float32 (float64 for float64) and rounded once at the end, to the tensor's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mxsweep.numerics.hadamard import hadamard


class Basis(Protocol):
    """Say what operands become before they are quantized."""

    def of_input(self, x: Tensor) -> Tensor:
        """Return x T^T (..., C), of x's dtype."""

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return W T^-1 (N, C), of the weight's dtype."""


@dataclass(frozen=True)
class HadamardBasis:
    """Rotate both operands by Hadamard matrices of an order, 0 for C: T is orthogonal, so that T^-1 is T^T."""

    block: int

    def of_input(self, x: Tensor) -> Tensor:
        """Return x T^T (..., C), of x's dtype."""
        return hadamard(x, self.block)

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return W T^-1 (N, C), of the weight's dtype."""
        return hadamard(weight, self.block)


@dataclass(frozen=True, eq=False)
class BlockTransform:
    """Multiply each block of channels by a matrix of its own.

    A transform equals itself only: layers that read one input share one.

    Attributes:
        whole: (n, b, b) float32, the blocks of T.
        rest: (r, r) float32, the last block where b does not divide C; None where it does.
    """

    whole: Tensor
    rest: Tensor | None = None

    def of_input(self, x: Tensor) -> Tensor:
        """Return x T^T (..., C), of x's dtype."""
        return _multiplied(x, self.whole.mT, None if self.rest is None else self.rest.mT)

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return W T^-1 (N, C), of the weight's dtype."""
        return _multiplied(weight, *self._inverses)

    @cached_property
    def _inverses(self) -> tuple[Tensor, Tensor | None]:
        """Return the inverses of both, once for all weights that read the input."""
        # Those of what inputs are multiplied by, which is T rounded to float32: so the product stays what it was.
        with torch.inference_mode(False):  # they outlive the caller's mode
            return _inverse(self.whole), None if self.rest is None else _inverse(self.rest)

    def to(self, device: torch.device) -> BlockTransform:
        """Return the transform on a device: this one where it is there."""
        if self.whole.device == device:
            return self
        return BlockTransform(self.whole.to(device), None if self.rest is None else self.rest.to(device))

    @property
    def condition(self) -> float:
        """Return the largest condition number of a block."""
        blocks = [self.whole] if self.rest is None else [self.whole, self.rest]
        return max(float(torch.linalg.cond(block.cpu().double()).max()) for block in blocks if block.numel())


def matrix_elements(width: int, order: int) -> int:
    """Count the elements of the matrices of blocks of ``order`` channels, of ``width``; the last may be shorter."""
    blocks, rest = divmod(width, order)
    return blocks * order**2 + rest**2


def _inverse(matrices: Tensor) -> Tensor:
    """Return inverses (..., b, b) float64, in host memory, where float64 is to be had on every machine."""
    return torch.linalg.inv(matrices.cpu().double())


def _multiplied(x: Tensor, whole: Tensor, rest: Tensor | None) -> Tensor:
    """Return each block of x (..., C), as a row, times its matrix of ``whole`` (n, b, b), the last times ``rest``."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.reshape(-1, x.shape[-1]).to(wide)
    count, order = whole.shape[:2]
    blocks = rows[:, : count * order].unflatten(1, (count, order)).transpose(0, 1)
    y = torch.bmm(blocks, whole.to(x.device, wide)).transpose(0, 1).flatten(1)
    if rest is not None:
        y = torch.cat((y, rows[:, count * order :] @ rest.to(x.device, wide)), dim=1)
    return y.to(x.dtype).view(x.shape)
