"""Hold the kernel of native_triton.py, which imports this where Triton is wanted."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["blocks"])
def quantize_blocks(  # type: ignore[no-untyped-def]
    x, y, scales, rounded, wanted, ranges, blocks, BLOCK: tl.constexpr, ROWS: tl.constexpr, RANGES: tl.constexpr,
    RANGE: tl.constexpr, NONE: tl.constexpr,
):  # fmt: skip
    """Quantize `blocks` blocks of BLOCK neighbouring elements of a 16-bit dtype, ROWS of them a program.

    Args:
        x, y: pointers to elements, to be read and written.
        scales: a pointer to the scale of each largest magnitude, [2^15].
        rounded: a pointer to what each quotient becomes, by its bits as int16 plus 2^15, [2^16].
        wanted: a pointer to the exponent that each largest magnitude counts for, [2^15].
        ranges: a pointer to where the range of these, all below NONE, is kept, [RANGES, RANGE]; nowhere if RANGES is 0.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    is_there = (row < blocks)[:, None]
    value = tl.load(x + at, mask=is_there, other=0.0)
    # As numbers, magnitudes are in the order of their bits, a NaN above all.
    magnitude = value.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    largest = tl.max(magnitude, axis=1)
    scale = tl.load(scales + largest)[:, None].to(tl.float32)
    quotient = tl.div_rn(value.to(tl.float32), tl.broadcast_to(scale, (ROWS, BLOCK))).to(value.dtype)
    element = tl.load(rounded + (quotient.to(tl.int16, bitcast=True).to(tl.int32) + 32768))
    tl.store(y + at, (element.to(tl.float32) * scale).to(value.dtype), mask=is_there)
    if RANGES:
        ends = ranges + tl.program_id(0) % RANGES * RANGE
        exponent = tl.load(wanted + largest)
        low = tl.min(tl.where(row < blocks, exponent, NONE), axis=0)
        high = tl.max(tl.where(row < blocks, exponent, -NONE), axis=0)
        tl.atomic_min(ends, low, mask=low < tl.load(ends))
        tl.atomic_max(ends + 1, high, mask=high > tl.load(ends + 1))
