"""Measure what quantizing did to a tensor's blocks by torch's operations, on the tensor's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.blocks import block_regions, pieces
from mxsweep.numerics.kernels.cpu_rows import Asked
from mxsweep.numerics.reference.definition import (
    SECOND,
    center_blocks,
    elementwise_inputs,
    quantize_torch,
    round_blocks,
    tensor_scale_per_block,
)
from mxsweep.numerics.reference.scales import (
    applied_scale,
    exact_exponent,
    held_exponent,
    native_exponent,
    power_of_two,
    stored_scale,
    wanted_scale,
)
from mxsweep.numerics.wanted_exponents import not_kept

NUMBERS = ("signal", "noise", "saturated", "flushed", "clamped", "unlike", "exponent_min", "exponent_max")


def measure_by_torch(x: Tensor, y: Tensor, asked: Asked, compares: bool) -> tuple[int, Tensor]:
    """Return the number of blocks, and the entries of `NUMBERS`, float64."""
    totals, fmt = _Totals(), asked.fmt
    if x.numel():
        beside = elementwise_inputs(x, fmt, None, asked.tensor_dims, asked.tensor_amax)
        for region in block_regions(x.shape, fmt.block_size, asked.axis):
            views = [region.view(tensor) for tensor in (x, y, *beside)]
            for x_piece, y_piece, *beside_piece in pieces(views, region.block_dims):
                totals.add_elements(x_piece, y_piece)
                totals.add_blocks(x_piece, region.block_dims, fmt, asked.is_native, beside_piece, asked.prescale)
        if compares:
            with not_kept():  # which is none of a run's tensors
                exact = quantize_torch(x, fmt, asked.axis, "exact", None, asked.tensor_dims)
            totals.add("unlike", ((y != exact) & ~(y.isnan() & exact.isnan())).sum())
    return totals.blocks, totals.numbers(x.device)


class _Totals:
    """Gather the numbers of a tensor's pieces, added up at the end: on a GPU, launching operations takes the time."""

    def __init__(self) -> None:
        self.blocks = 0
        self._of_pieces: dict[str, list[Tensor]] = {}

    def add(self, name: str, number: Tensor) -> None:
        """Add a number of one piece, or of some of its blocks."""
        self._of_pieces.setdefault(name, []).append(number)

    def numbers(self, device: torch.device) -> Tensor:
        """Return the entries of `NUMBERS`, float64."""
        return torch.stack([self._total(name, device) for name in NUMBERS])

    def _total(self, name: str, device: torch.device) -> Tensor:
        reduce = {"exponent_min": torch.amin, "exponent_max": torch.amax}.get(name, torch.sum)
        numbers = [number.to(torch.float64) for number in self._of_pieces.get(name, [])]
        if not numbers:
            empty = {"exponent_min": math.inf, "exponent_max": -math.inf}.get(name, 0.0)
            return torch.full((), empty, dtype=torch.float64, device=device)
        return numbers[0] if len(numbers) == 1 else reduce(torch.stack(numbers))

    def add_elements(self, x: Tensor, y: Tensor) -> None:
        """Add what became of a piece's elements."""
        self.add("flushed", ((x != 0) & (y == 0)).sum())
        x_double = x.to(torch.float64)
        self.add("signal", x_double.square().sum())
        self.add("noise", x_double.sub_(y).square().sum())

    def add_blocks(
        self,
        x: Tensor,
        block_dims: tuple[int, ...],
        fmt: MXFormat,
        native: bool,
        beside: Sequence[Tensor],
        prescale: float,
    ) -> None:
        """Add what became of the scales of a piece's blocks x [..., k, b, ...], and which elements they saturate."""
        g = exponent = None
        if native:
            amax, centered = x.abs().amax(block_dims, keepdim=True), x
            exponent = native_exponent(amax, fmt)
            scale = 2.0 ** held_exponent(exponent, fmt)
        else:
            amax, centered, _ = center_blocks(x, block_dims, fmt)
            if fmt.scale_format.is_power_of_two:
                exponent = exact_exponent(amax, fmt)
                scale = power_of_two(held_exponent(exponent, fmt))
            else:
                g = tensor_scale_per_block(block_dims, fmt, beside)
                scale = stored_scale(amax, fmt, g, x.dtype)
                if fmt.four_over_six:
                    chosen = _chosen_scale(x, block_dims, fmt, beside, prescale)
                    amax, scale = torch.where(chosen > scale, amax * SECOND, amax), chosen
        self.blocks += amax.numel()
        applied = applied_scale(scale, fmt, g)
        quotient, element = applied.quotient(centered if prescale == 1 else centered * prescale), fmt.element_format
        self.add("saturated", ((quotient > element.largest) | (quotient < element.lowest)).sum())
        wants_scale = (amax > 0) & amax.isfinite()
        if exponent is not None:
            self.add("clamped", (wants_scale & (exponent.abs() > fmt.max_scale_exponent)).sum())
            self.add("exponent_min", torch.where(wants_scale, exponent, math.inf).amin())
            self.add("exponent_max", torch.where(wants_scale, exponent, -math.inf).amax())
        else:
            wanted = wanted_scale(amax, fmt, g, x.dtype)
            outside = (wanted < fmt.scale_format.smallest_subnormal) | (wanted < fmt.least_scale)
            outside |= wanted > fmt.scale_format.largest
            self.add("clamped", (wants_scale & outside).sum())


def _chosen_scale(
    x: Tensor, block_dims: tuple[int, ...], fmt: MXFormat, beside: Sequence[Tensor], prescale: float
) -> Tensor:
    """Return the better of the two stored scales of each block; of stochastic rounding, by what is nearest."""
    if fmt.rounding == "stochastic":
        fmt = replace(fmt, rounding="nearest")
    return round_blocks(x, block_dims, fmt, beside, prescale).stored
