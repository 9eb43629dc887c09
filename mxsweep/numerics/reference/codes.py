"""Find the codes of values that lie on a format's grid, and the values of codes.

A format says in one place, its `decode`, what each of its codes means. Both directions are tables made from that:
value by code, and code by value. So a format that can be decoded can be encoded, whatever its codes look like: sign and
magnitude, two's complement, a biased exponent. A value with at most eight significant bits is told from every other by
the upper half of its float32 bits, which is the place in a table; others are searched for among the format's values.

NaN is no code of most element formats and needs none: an element is NaN only if its block's scale is, which every scale
format can say. Such an element has the code 0. A scale of fp32 is its own code.

Shapes: any; all functions are elementwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mxsweep.formats.element import ElementFormat
from mxsweep.formats.scale import ScaleFormat


@dataclass(frozen=True)
class _Table:
    """Hold what the codes of a format mean.

    Attributes:
        value: float32 [2^bits], by code; NaN for a code without a finite value.
        order: int32 [V], ascending: the finite values as `_order` has them, -0 before 0 where there are two zeros.
        code: int32 [V], that of each.
        by_upper_half: uint8 or int32 codes [2^16] by the upper half of a value's float32 bits; None where that does
            not tell values apart.
        dtype: of a tensor of codes.
    """

    value: Tensor
    order: Tensor
    code: Tensor
    by_upper_half: Tensor | None
    dtype: torch.dtype


def element_codes(q: Tensor, element: ElementFormat) -> Tensor:
    """Return the codes of elements: uint8, or uint16 where they are wider than 8 bits.

    Args:
        q: float32 values of the format, or NaN. A negative zero becomes zero where the format has one zero.
    """
    return _codes(q, _table(element, q.device))


def element_values(codes: Tensor, element: ElementFormat) -> Tensor:
    """Return the values of the codes of elements, float32."""
    return _values(codes, _table(element, codes.device))


@lru_cache(maxsize=64)
def has_negative_zero(element: ElementFormat) -> bool:
    """Return whether the format tells -0 from 0; two's complement does not."""
    return any(value == 0 and math.copysign(1, value) < 0 for value in map(element.decode, range(element.codes)))


def scale_codes(stored: Tensor, scale: ScaleFormat) -> Tensor:
    """Return the codes of scales: uint8, or for fp32 the float32 scales.

    Args:
        stored: float32 values of the format, or NaN.
    """
    return stored if scale.is_float32 else _codes(stored, _table(scale, stored.device))


def scale_values(codes: Tensor, scale: ScaleFormat) -> Tensor:
    """Return the values of the codes of scales, float32."""
    return codes if scale.is_float32 else _values(codes, _table(scale, codes.device))


def code_dtype(grid: ElementFormat | ScaleFormat) -> torch.dtype:
    """Return the dtype of a tensor of codes."""
    return torch.uint8 if grid.bits <= 8 else torch.uint16 if grid.bits <= 16 else torch.float32


def _codes(values: Tensor, table: _Table) -> Tensor:
    if table.by_upper_half is not None:
        upper_half = (values.contiguous().view(torch.int32) >> 16).bitwise_and_(0xFFFF)
        return table.by_upper_half.index_select(0, upper_half.reshape(-1)).view(values.shape).to(table.dtype)
    # What is no finite value of the format can be NaN only, whatever place the search gives it.
    place = torch.searchsorted(table.order, _order(values), out_int32=True).clamp_(max=len(table.order) - 1)
    codes = table.code.index_select(0, place.reshape(-1)).view(values.shape)
    return codes.masked_fill_(values.isnan(), 0).to(table.dtype)


def _values(codes: Tensor, table: _Table) -> Tensor:
    return table.value.index_select(0, codes.reshape(-1).to(torch.int32)).view(codes.shape)


def _order(values: Tensor) -> Tensor:
    """Return integers in the order of the float32 values: their bits, those of negative values turned around."""
    bits = values.contiguous().view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the table outlives the caller's mode
def _table(grid: ElementFormat | ScaleFormat, device: torch.device) -> _Table:
    meanings = [grid.decode(code) for code in range(grid.codes)]
    # A code with the sign bit of a scale set means nothing.
    value = torch.full((2**grid.bits,), torch.nan, dtype=torch.float32, device="cpu")
    value[: grid.codes] = torch.tensor(meanings, dtype=torch.float32, device="cpu")
    value.masked_fill_(value.isinf(), torch.nan)
    code = value.isfinite().nonzero().squeeze(1)
    order, by_order = _order(value[code]).sort()
    code = code[by_order].to(torch.int32)
    by_upper_half = _by_upper_half(value[code], code, grid)
    if by_upper_half is not None:
        by_upper_half = by_upper_half.to(device)
    return _Table(value.to(device), order.to(device), code.to(device), by_upper_half, code_dtype(grid))


def _by_upper_half(value: Tensor, code: Tensor, grid: ElementFormat | ScaleFormat) -> Tensor | None:
    """Return the codes of values by the upper halves of their float32 bits; None where the lower halves hold bits."""
    bits = value.view(torch.int32)
    if (bits & 0xFFFF).any():
        return None
    # Where there is one zero, its code is also that of -0.
    codes = torch.zeros(2**16, dtype=torch.int32, device="cpu")
    codes[(bits >> 16) & 0xFFFF] = code
    if isinstance(grid, ScaleFormat):
        codes[0x7F80:0x8000] = grid.codes - 1  # NaN, whatever its payload
        codes[0xFF80:] = grid.codes - 1
    return codes.to(torch.uint8) if grid.bits <= 8 else codes  # few operations of torch take uint16
