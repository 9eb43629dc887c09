"""Hold the kernel of native_triton.py, which imports this where Triton is wanted."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["blocks"])
def quantize_blocks(x, y, scales, rounded, blocks, BLOCK: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Quantize `blocks` blocks of BLOCK neighbouring elements of a 16-bit dtype, ROWS of them a program.

    Args:
        x, y: pointers to elements, to be read and written.
        scales: a pointer to the scale of each largest magnitude, [2^15].
        rounded: a pointer to what each quotient becomes, by its bits as int16 plus 2^15, [2^16].
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    is_there = (row < blocks)[:, None]
    value = tl.load(x + at, mask=is_there, other=0.0)
    # As numbers, magnitudes are in the order of their bits, a NaN above all.
    magnitude = value.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    scale = tl.load(scales + tl.max(magnitude, axis=1))[:, None].to(tl.float32)
    quotient = tl.div_rn(value.to(tl.float32), tl.broadcast_to(scale, (ROWS, BLOCK))).to(value.dtype)
    element = tl.load(rounded + (quotient.to(tl.int16, bitcast=True).to(tl.int32) + 32768))
    tl.store(y + at, (element.to(tl.float32) * scale).to(value.dtype), mask=is_there)
