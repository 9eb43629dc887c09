"""Quantize the operands of a linear layer's three products, each along the dimension that its product sums over.

Legend: x (..., T, C) input, W (N, C) weight, g (..., T, N) gradient of the loss with respect to y = x W^T; of E
experts together x (B, E, T, C), W (E, N, C) and g (B, E, T, N). T are the tokens of one sequence (of an expert's, those
that are for it), so that no block lies over two sequences.

Random numbers. An element's depends on the recipe's seed, the step, the layer, the operand and the element's place
within its example, and on the example's number within the step: not on how a batch is split among passes or processes,
nor on how often an operand is made, as it is twice where activations are computed anew for the backward pass.

The float32 scale that NVFP4 has over the scales of blocks is taken over a weight as a whole (an expert's own); over a
token's channels where blocks of inputs and gradients lie along these, as in evaluation; and over a sequence where they
lie along its tokens, or tiles over several. Taken over a whole batch, as other libraries do, it would make a gradient
depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.training import BY_STEP, OF_INPUT, OF_WEIGHT, REQUANTIZED, LayerFormats, OperandFormat
from mxsweep.numerics import quantize, quantize_both
from mxsweep.numerics.hadamard import SignedHadamard
from mxsweep.numerics.philox import uniform
from mxsweep.numerics.rescaled import quantize_rescaled
from mxsweep.training.roles import RoleObserver

ALONG_TOKENS, ALONG_CHANNELS = -2, -1
# The dimension that a product sums over, in each of its operands.
_AXES = {
    "fprop.input": -1, "fprop.weight": -1, "dgrad.grad": -1, "dgrad.weight": -2, "wgrad.grad": -2, "wgrad.input": -2,
}  # fmt: skip
_PRODUCTS = {operand: operand.partition(".")[0] for operand in _AXES}
_REMADE = ("dgrad.weight", "wgrad.input")  # what backward products read of which fprop has quantized the same


class _Arguments(NamedTuple):
    """Hold what :func:`mxsweep.numerics.quantize` is told beside a tensor and an axis."""

    fmt: MXFormat
    generator: int | None
    tensor_dims: tuple[int, ...] | None
    example_dims: int
    first_example: int | None


class Remembered:
    """Remember the tensor that was last seen, and what was made of it.

    Projections that read one tensor come one after the other, in the forward pass as in the backward pass. The version
    counter notices a tensor changed in place.
    """

    def __init__(self) -> None:
        self._seen: tuple[Tensor, int] | None = None  # held, so that nothing else can take its place in memory
        self._made: dict[Hashable, tuple[Tensor, ...]] = {}

    def get(self, x: Tensor, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what is remembered of x under the key, or else what ``make`` returns, which is remembered."""
        if self._seen is None or not _is_same(*self._seen, x):
            self._seen, self._made = (x.detach(), x._version), {}
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def forget(self) -> None:
        """Let go of the remembered tensors."""
        self._seen, self._made = None, {}


def _is_same(seen: Tensor, version: int, x: Tensor) -> bool:
    if x._version != version or x.dtype != seen.dtype or x.device != seen.device:
        return False
    return x.data_ptr() == seen.data_ptr() and x.shape == seen.shape and x.stride() == seen.stride()


@dataclass(frozen=True)
class Quantizer:
    """Make the operands of one layer's products, in one pass.

    Attributes:
        formats: of the operands.
        name: of the layer.
        reads: the name of the first layer that reads the same input: those that do draw alike for it.
        backward: what the operands of dgrad and wgrad are made from that fprop has, too.
        signs: whether the signs of Hadamard matrices are drawn once or each step.
        backend, arithmetic: as in :func:`mxsweep.numerics.quantize`.
        seed: of everything random.
        step: the number of the step.
        first_example: the number of the pass's first example.
        observer: told of every operand and product; None for nobody.
        in_forward, in_backward: what was last made of an input in a forward and in a backward pass, which layers share
            that read the same one; None for nothing.
        whole_tensors: whether the float32 scales of NVFP4 are taken over tensors as a whole, the batch with them.
    """

    formats: LayerFormats
    name: str = ""
    reads: str = ""
    backward: str = "high_precision"
    signs: str = "fixed"
    backend: str = "torch"
    arithmetic: str = "native"
    seed: int = 0
    step: int = 0
    first_example: int = 0
    observer: RoleObserver | None = None
    in_forward: Remembered | None = None
    in_backward: Remembered | None = None
    whole_tensors: bool = False

    def make(self, operand: str, x: Tensor) -> Tensor:
        """Return what a product multiplies in the place of x: rotated and quantized, still times its prescale."""
        x = self._rotated(operand, x)
        if self.formats.by_operand[operand] is None:
            return x
        quantized = self._quantized(operand, x)
        if self.observer is not None:
            self._tell(operand, x, quantized)
        return quantized

    def _format(self, operand: str) -> OperandFormat:
        of_operand = self.formats.by_operand[operand]
        assert of_operand is not None
        return of_operand

    def _tell(self, operand: str, x: Tensor, quantized: Tensor) -> None:
        assert self.observer is not None
        of_operand = self._format(operand)
        scale = of_operand.prescale
        before, after = x, quantized if scale == 1 else quantized / scale
        if _AXES[operand] == ALONG_TOKENS:
            before, after = before.mT, after.mT
        dims = self._tensor_dims(operand, of_operand.fmt)  # the same for an operand and its transpose
        self.observer.operand(self.name, operand, before, after, of_operand, axis=-1, tensor_dims=dims)

    @property
    def makes_both(self) -> bool:
        """Return whether operands of fprop and of a backward product are best made at once, from one tensor."""
        return self.backend == "cuda" and self.backward != REQUANTIZED and self.observer is None

    def make_shared(self, operands: tuple[str, ...], x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return what :meth:`make` makes of the input x as these operands, made once for all layers that read it.

        Args:
            dtype: that x is cast to first.
        """
        remembered = self.in_forward if operands[0] == "fprop.input" else self.in_backward
        alone = self.observer is not None or x.is_inference()
        if remembered is None or alone or torch._C._are_functorch_transforms_active():
            return self.make_both(operands, x.to(dtype))
        # By identity, since to hash formats takes a while; those of layers that read one input are one object mostly.
        place = (dtype, operands, id(self.formats), self.reads, self.backward, self.step, self.first_example)
        return remembered.get(x, place, lambda: self.make_both(operands, x.to(dtype)))

    def make_both(self, operands: tuple[str, ...], x: Tensor) -> tuple[Tensor, ...]:
        """Return x as one operand, or as two: as one that lies along its rows, then as one along its columns.

        Two that are made of x itself are made at once, which a kernel does in one reading.
        """
        remade = self.backward == REQUANTIZED and operands[-1] in _REMADE
        if len(operands) < 2 or remade or not self._are_made_at_once(*operands):
            return tuple(self.make(operand, self.backward_source(operand, x)) for operand in operands)
        row, column = self._arguments(operands[0], x), self._arguments(operands[1], x)
        quantized = quantize_both(
            x,
            row.fmt,
            column.fmt,
            backend=self.backend,
            arithmetic=self.arithmetic,
            generators=(row.generator, column.generator),
            tensor_dims=(row.tensor_dims, column.tensor_dims),
            example_dims=row.example_dims,
            first_example=row.first_example,
            column_rotation=self._rotation(operands[1]),
        )
        if self.observer is not None:
            for operand, y in zip(operands, quantized, strict=True):
                self._tell(operand, x, y)
        return quantized

    def _are_made_at_once(self, row: str, column: str) -> bool:
        alone = self.formats.by_format_alone
        if row not in alone:
            return False
        if column in alone:
            return True
        of_column = self.formats.by_operand[column]  # an observer is told of what is rotated, which is then made first
        return of_column is not None and of_column.prescale == 1 and self.observer is None

    def unscaled(self, product: str, y: Tensor) -> Tensor:
        """Return a product's answer without the prescales of its operands; y is changed."""
        scale = self.formats.prescales[product]
        return y if scale == 1 else y.div_(scale)

    def backward_source(self, operand: str, x: Tensor) -> Tensor:
        """Return what an operand is made from, given the weight, the input or the gradient as it was."""
        if self.backward != REQUANTIZED or operand not in _REMADE:
            return x
        of_fprop = "fprop.weight" if operand in OF_WEIGHT else "fprop.input"
        fmt = self.formats.by_operand[of_fprop]
        if fmt is None:
            return x
        quantized = replace(self, observer=None).make(of_fprop, x)
        if fmt.prescale != 1:
            quantized = quantized / fmt.prescale
        return self._rotated(of_fprop, quantized, inverse=True)

    def _rotated(self, operand: str, x: Tensor, inverse: bool = False) -> Tensor:
        rotation = self._rotation(operand)
        return x if rotation is None else rotation.rotate(x, _AXES[operand], inverse=inverse)

    def _rotation(self, operand: str) -> SignedHadamard | None:
        product = _PRODUCTS[operand]
        order = self.formats.rotations[product]
        if not order:
            return None
        return _signed_hadamard(self.seed, self.step if self.signs == BY_STEP else "fixed", product, order)

    def _arguments(self, operand: str, x: Tensor) -> _Arguments:
        of_operand = self._format(operand)
        fmt = of_operand.of_columns if _AXES[operand] == ALONG_TOKENS else of_operand.fmt
        key, example_dims, first_example = None, 0, None
        if fmt.rounding == "stochastic":
            reader = self.reads if operand in OF_INPUT else ""
            key = random_key(self.seed, self.step, reader or self.name, operand)
        if operand not in OF_WEIGHT:
            example_dims = x.ndim - 2
            first_example = self.first_example * (x.shape[1] if x.ndim > 3 else 1) if example_dims else None
        return _Arguments(fmt, key, self._tensor_dims(operand, fmt), example_dims, first_example)

    def _quantized(self, operand: str, x: Tensor) -> Tensor:
        beside, prescale = self._arguments(operand, x)._asdict(), self._format(operand).prescale
        axis, fmt = _AXES[operand], beside.pop("fmt")
        if prescale == 1:
            return quantize(x, fmt, axis, backend=self.backend, arithmetic=self.arithmetic, **beside)
        return quantize_rescaled(x, fmt, axis, prescale=prescale, backend=self.backend, **beside)

    def _tensor_dims(self, operand: str, fmt: MXFormat) -> tuple[int, ...] | None:
        if self.whole_tensors:
            return None
        by_token = _AXES[operand] == ALONG_CHANNELS and isinstance(fmt.block_size, int)
        return (-1,) if by_token and operand not in OF_WEIGHT else (-2, -1)


def random_key(seed: int, step: int | str, module: str, operand: str) -> int:
    """Return the 64-bit key of one tensor's random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{module}/{operand}".encode()).digest()[:8], "little")


@lru_cache(maxsize=64)
def _signed_hadamard(seed: int, step: int | str, product: str, order: int) -> SignedHadamard:
    drawn = uniform(random_key(seed, step, product, "signs"), order, torch.device("cpu"))[0] < 0.5
    return SignedHadamard(order, sum(1 << row for row, is_negative in enumerate(drawn.tolist()) if is_negative))
