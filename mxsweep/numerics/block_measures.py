"""Measure what quantizing does to a tensor's blocks: scales clamped, elements saturated, and the error.

A run that reports these numbers explains itself: when `scale_bits` 6 and 8 agree to the last digit, it is because no
block's scale was clamped at either.

The numbers are gathered on the tensor's device (`measure_blocks`) and fetched together (`fetch_statistics`), for any
number of tensors in one transfer: on a GPU each number fetched by itself would wait for everything before it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import ParamSpec

import torch
from torch import Tensor

from mxsweep.formats.backends import check_backend
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.block_totals import NUMBERS, measure_by_torch
from mxsweep.numerics.dispatch import check_arguments
from mxsweep.numerics.kernels.cpu import measure_by_library
from mxsweep.numerics.kernels.cpu_rows import Asked
from mxsweep.numerics.kernels.measures_cuda import measure_by_kernel
from mxsweep.numerics.philox import draws_of
from mxsweep.numerics.reference.definition import quantize_torch, without_inf
from mxsweep.statistics.decibels import compare_db


@dataclass(frozen=True)
class BlockStatistics:
    """Hold what quantizing one tensor did. Two are equal whose counts are, and whose `sqnr_db` are by `compare_db`.

    Attributes:
        blocks: number of blocks.
        blocks_scale_clamped: blocks whose wanted scale lay outside what `scale_bits`, or the scale format,
            holds. A block that is all zero or holds NaN or Inf wants no scale and is not among them.
        elements: number of elements.
        elements_saturated: elements whose quotient x / s lay beyond the largest, or the most negative, element value.
        elements_flushed: elements that were not zero and became zero.
        exponent_min: smallest wanted `e8m0` exponent, before clamping; None without one.
        exponent_max: largest wanted `e8m0` exponent, before clamping; None without one.
        sqnr_db: 10 log10(signal / noise) in decibels; inf where nothing was lost, NaN where y holds NaN.
        signal: sum x^2, in float64. Sums over tensors give the ratio of all of them.
        noise: sum (x - y)^2, in float64.
        unlike_exact: elements whose value differs from the one of exact arithmetic; None where that was not
            asked for, or where the arithmetic is exact by itself.
    """

    blocks: int
    blocks_scale_clamped: int
    elements: int
    elements_saturated: int
    elements_flushed: int
    exponent_min: int | None
    exponent_max: int | None
    sqnr_db: float = field(hash=False)
    signal: float = field(default=math.nan, compare=False)  # sqnr_db is compared, which is their ratio
    noise: float = field(default=math.nan, compare=False)
    unlike_exact: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockStatistics):
            return NotImplemented
        counts = ([getattr(one, name) for name in _COUNTS] for one in (self, other))
        return operator.eq(*counts) and compare_db(self.sqnr_db, other.sqnr_db) == 0

    @property
    def rmse(self) -> float:
        """Return sqrt(noise / elements), in x's unit; NaN without elements."""
        return math.sqrt(self.noise / self.elements) if self.elements else math.nan

    @staticmethod
    def pooled(statistics: Iterable[BlockStatistics]) -> BlockStatistics:
        """Return the statistics of all tensors taken together, as if they were one."""
        parts = list(statistics)
        signal, noise = (math.fsum(getattr(part, name) for part in parts) for name in ("signal", "noise"))
        unlike = [part.unlike_exact for part in parts if part.unlike_exact is not None]
        return BlockStatistics(
            blocks=sum(part.blocks for part in parts),
            blocks_scale_clamped=sum(part.blocks_scale_clamped for part in parts),
            elements=sum(part.elements for part in parts),
            elements_saturated=sum(part.elements_saturated for part in parts),
            elements_flushed=sum(part.elements_flushed for part in parts),
            exponent_min=min((part.exponent_min for part in parts if part.exponent_min is not None), default=None),
            exponent_max=max((part.exponent_max for part in parts if part.exponent_max is not None), default=None),
            sqnr_db=sqnr_db(signal, noise),
            signal=signal,
            noise=noise,
            unlike_exact=sum(unlike) if unlike else None,
        )


_COUNTS = tuple(each.name for each in fields(BlockStatistics) if each.compare and each.name != "sqnr_db")


@dataclass(frozen=True)
class PendingStatistics:
    """Hold the statistics of one tensor, still on its device.

    Attributes:
        elements, blocks: numbers of them.
        numbers: float64, one entry for each of `NUMBERS`. Counts are exact up to 2^53.
        has_exponents: whether the format's scales are `e8m0`.
        has_unlike: whether the values were compared with those of exact arithmetic.
    """

    elements: int
    blocks: int
    numbers: Tensor
    has_exponents: bool
    has_unlike: bool


def measure_blocks(
    x: Tensor,
    fmt: MXFormat,
    axis: int = -1,
    *,
    arithmetic: str = "native",
    generator: torch.Generator | int = 0,
    tensor_dims: Sequence[int] | None = None,
    example_dims: int = 0,
    first_example: int | None = None,
    tensor_amax: Tensor | None = None,
    quantized: Tensor | None = None,
    prescale: float = 1.0,
    compare_exact: bool = False,
) -> PendingStatistics:
    """Gather the statistics of `quantize(x, fmt, axis, ...)`, whose arguments these are; wait for no device.

    The numbers are the same however they are gathered, but that float64 sums are added up in another order by the
    library for a CPU, by torch's operations there, by those on a GPU, and by a kernel.

    Args:
        generator: for stochastic rounding only; it has a default here, since it sways none but `sqnr_db` and
            `elements_flushed`, and those little.
        quantized: what `quantize` gave, where it is at hand, so that it is not computed again.
        prescale: what elements were multiplied by under the scales of x, and divided by again in ``quantized``.
        compare_exact: whether to count the elements that exact arithmetic would have given another value.

    Raises:
        TypeError, ValueError: as `quantize`.
    """
    check_backend("torch", arithmetic)
    check_arguments(x, fmt, axis, generator, tensor_dims, example_dims, first_example, tensor_amax)
    x = without_inf(x.detach(), fmt)
    y = quantized
    if y is None:
        draws = draws_of(fmt, generator, example_dims, first_example)
        y = quantize_torch(x, fmt, axis, arithmetic, draws, tensor_dims, tensor_amax)
    asked = Asked(fmt, axis, arithmetic, tensor_dims, tensor_amax, prescale)
    compares = compare_exact and asked.is_native
    measured = measure_by_library(x, y, asked, compares)
    if measured is None:
        measured = measure_by_kernel(x, y, asked, compares)
    blocks, numbers = measured if measured is not None else measure_by_torch(x, y, asked, compares)
    return PendingStatistics(x.numel(), blocks, numbers, fmt.scale_format.is_power_of_two, compares)


_Arguments = ParamSpec("_Arguments")


def _fetched(measure: Callable[_Arguments, PendingStatistics]) -> Callable[_Arguments, BlockStatistics]:
    def block_statistics(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> BlockStatistics:
        """Return the statistics of `quantize(x, fmt, axis, ...)`, given the arguments of `measure_blocks`."""
        return fetch_statistics([measure(*args, **kwargs)])[0]

    return block_statistics


block_statistics = _fetched(measure_blocks)


def fetch_statistics(pending: Sequence[PendingStatistics]) -> list[BlockStatistics]:
    """Fetch the statistics of several tensors in one transfer from each device."""
    rows: dict[int, list[float]] = {}
    for device in dict.fromkeys(item.numbers.device for item in pending):
        here = [index for index, item in enumerate(pending) if item.numbers.device == device]
        rows |= zip(here, torch.stack([pending[index].numbers for index in here]).tolist(), strict=True)
    return [_result(item, dict(zip(NUMBERS, rows[index], strict=True))) for index, item in enumerate(pending)]


def _result(pending: PendingStatistics, numbers: dict[str, float]) -> BlockStatistics:
    low, high = numbers["exponent_min"], numbers["exponent_max"]
    return BlockStatistics(
        blocks=pending.blocks,
        blocks_scale_clamped=int(numbers["clamped"]),
        elements=pending.elements,
        elements_saturated=int(numbers["saturated"]),
        elements_flushed=int(numbers["flushed"]),
        exponent_min=int(low) if pending.has_exponents and math.isfinite(low) else None,
        exponent_max=int(high) if pending.has_exponents and math.isfinite(high) else None,
        sqnr_db=sqnr_db(numbers["signal"], numbers["noise"]),
        signal=numbers["signal"],
        noise=numbers["noise"],
        unlike_exact=int(numbers["unlike"]) if pending.has_unlike else None,
    )


def sqnr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise) in decibels: inf without noise, NaN where either is NaN.

    -inf without signal, and where an element became Inf, as one beyond the largest float16 does.
    """
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio != 0 else -math.inf
