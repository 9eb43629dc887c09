"""Tabulate native arithmetic for rows.cpp: what torch's own logarithm and powers, and roundings, come to.

They are asked once for all that there is to ask: of bfloat16 and float16 every code, of float32 where floor(log2 x)
rises, which torch's logarithm decides: just under a power of two it is rounded up to the whole number.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics.reference.rounding import bits_just_below_half, native_table
from mxsweep.numerics.reference.scales import native_exponent, native_power

log = logging.getLogger(__name__)

_LOWEST, _HIGHEST = -149, 128  # floor(log2 x) of float32, of the largest ones after rounding
_BESIDE = 256  # bit patterns to either side of a power of two; the logarithm of 44 is seen to be rounded up


class _Native(ctypes.Structure):
    """Hold rows.cpp's `Native`."""

    _fields_ = [
        ("least", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("lifted", ctypes.c_uint),
        ("exponents", ctypes.c_void_p), ("scales_of_codes", ctypes.c_void_p), ("rounded", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class NativeTables:
    """Hold the tables of a format and a dtype.

    Attributes:
        struct: with their addresses.
        tensors: in whose memory they are.
    """

    struct: _Native
    tensors: tuple[Tensor, ...]

    @property
    def address(self) -> int:
        """Return where the struct is."""
        return ctypes.addressof(self.struct)


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # the tables outlive the caller's mode
def native_tables(fmt: MXFormat, dtype: torch.dtype) -> NativeTables | None:
    """Return the tables; None where torch's logarithm of float32 is not as they have it, which is logged."""
    if dtype == torch.float32:
        least = _least_bits()
        if least is None:
            return None
        exponents = (
            torch.arange(_LOWEST, _HIGHEST + 1, dtype=torch.float32, device="cpu") - fmt.element_format.max_exponent
        )
        tensors = (least, native_power(exponents, fmt))
        lifted = bits_just_below_half(fmt.element_format.smallest_subnormal)
        return NativeTables(_Native(*(tensor.data_ptr() for tensor in tensors), lifted), tensors)
    magnitudes = torch.arange(2**15, dtype=torch.int32, device="cpu").to(torch.int16).view(dtype)
    exponents = native_exponent(magnitudes, fmt)
    rounded = native_table(fmt.element_format, fmt.rounding, dtype, torch.device("cpu"))
    by_code = rounded.roll(2**15)  # codes as unsigned numbers
    of_codes = (exponents.float(), native_power(exponents, fmt).float(), by_code)
    return NativeTables(_Native(None, None, 0, *(tensor.data_ptr() for tensor in of_codes)), of_codes)


@functools.cache
@torch.inference_mode(False)
def _least_bits() -> Tensor | None:
    """Return the bits of the least float32 of each exponent from `_LOWEST` on, int32; behind them what none reaches.

    None where floor(log2 x) falls again, or does not rise beside a power of two.
    """
    exponents = torch.arange(_LOWEST, _HIGHEST + 1, device="cpu")
    powers = torch.where(exponents < -126, 1 << (exponents - _LOWEST).clamp(max=22), (exponents + 127) << 23)
    beside = powers[:, None] + torch.arange(-_BESIDE, _BESIDE, device="cpu")
    real = (beside > 0) & (beside < 0x7F800000)
    values = beside.clamp(1, 0x7F7FFFFF).to(torch.int32).view(torch.float32)
    reaches = torch.where(real, torch.log2(values).floor() >= exponents[:, None], beside > 0)
    first = reaches.int().argmax(1)
    is_as_expected = (reaches[:, 1:] >= reaches[:, :-1]).all() and reaches[:, _BESIDE].all() and (first > 0).all()
    if not is_as_expected:
        log.warning("torch's logarithm does not rise at powers of two, so that torch's operations quantize on the CPU")
        return None
    least = beside.gather(1, first[:, None])[:, 0]
    return torch.cat([least, least.new_tensor([0x7FFFFFFF])]).to(torch.int32)
