"""Fuse the operations that native arithmetic of a 16-bit dtype takes on a GPU, by Triton: the same bits in one pass.

PyTorch's operations read and write a tensor ten times over. What they do to an element of bfloat16 or float16 can be
tabulated: a block's scale follows from the largest magnitude in it, one of 32,768, and what an element becomes from its
quotient by the scale, one of 65,536. Both tables are made by PyTorch's operations on the GPU that is to use them
(`native_power`, `native_table`). Triton's kernel looks up, divides and multiplies, each rounded as PyTorch rounds.

Before it is used for a format, dtype and GPU, blocks of every largest magnitude there is are quantized by both. Where a
bit differs, where there is no Triton (PyTorch brings it on Linux), or where it cannot compile, PyTorch's
operations do the work, which is logged once. What Triton compiles it keeps on disk.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Any

import torch
from torch import Tensor

from mxsweep.formats.mxformat import INF_SATURATES, MXFormat
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.numerics.kernels.compile import on
from mxsweep.numerics.kernels.plain_tensors import is_in_memory
from mxsweep.numerics.kernels.trials import count_differing
from mxsweep.numerics.reference.definition import quantize_torch
from mxsweep.numerics.reference.rounding import native_table
from mxsweep.numerics.reference.scales import native_exponent, native_power
from mxsweep.numerics.wanted_exponents import (
    NO_EXPONENT,
    RANGE,
    RANGES,
    WantedExponents,
    each_wanted,
    kept_exponents,
    not_kept,
)

log = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16)
_BLOCKS = (8, 16, 32, 64, 128, 256)  # elements
_PROGRAM = 4096  # elements that a program of Triton quantizes
_ALIGNED = 16  # bytes: for a tensor that begins elsewhere Triton compiles a kernel of its own, which was not tried

_calls = 0


def call_count() -> int:
    """Return how many tensors this process quantized by Triton so far."""
    return _calls


def takes(x: Tensor, fmt: MXFormat, axis: int, arithmetic: str) -> bool:
    """Return whether `quantize_fused` can quantize x, if Triton works here."""
    return (
        x.is_cuda
        and x.dtype in DTYPES
        and fmt.is_native(arithmetic)
        and fmt.inf != INF_SATURATES
        and isinstance(fmt.block_size, int)
        and fmt.block_size in _BLOCKS
        and axis % x.ndim == x.ndim - 1
        and x.numel() > 0
        and x.shape[-1] % fmt.block_size == 0
        and is_in_memory(x)
    )


def quantize_fused(x: Tensor, fmt: MXFormat, axis: int, arithmetic: str) -> Tensor | None:
    """Quantize as `quantize_torch` does; None where that is left to it."""
    global _calls
    if not takes(x, fmt, axis, arithmetic):
        return None
    kept = kept_exponents()
    fused = _fused(fmt, x.dtype, x.device, kept is not None)
    if fused is None:
        return None
    _calls += 1
    return fused(x, kept)


class Fused:
    """Quantize tensors of a dtype on a device to a format, by Triton.

    Args:
        keeps: whether to keep the exponents that scales want.
    """

    def __init__(self, fmt: MXFormat, dtype: torch.dtype, device: torch.device, keeps: bool) -> None:
        self._kernel: Any = importlib.import_module("mxsweep.numerics.native_triton_kernel").quantize_blocks
        self._block = int(fmt.block_size)  # type: ignore[arg-type]
        magnitudes = torch.arange(2**15, dtype=torch.int32, device=device).to(torch.int16).view(dtype)
        exponents = native_exponent(magnitudes, fmt)
        self._scales = native_power(exponents, fmt)
        self._wanted = each_wanted(magnitudes, exponents).clamp(-NO_EXPONENT, NO_EXPONENT).to(torch.int32)
        self._rounded = native_table(fmt.element_format, fmt.rounding, dtype, device)
        self._ranges = RANGES if keeps else 0

    def __call__(self, x: Tensor, kept: WantedExponents | None) -> Tensor:
        """Return what x [..., n], n a multiple of the block, becomes.

        Args:
            kept: where exponents are noted, if they are kept.
        """
        if x.stride(-1) != 1:
            x = x.contiguous()
        if x.data_ptr() % _ALIGNED:
            x = x.clone()
        y = torch.empty_like(x)
        if y.stride() != x.stride():  # x has gaps, or overlaps itself
            x, y = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
        blocks = x.numel() // self._block
        rows = _PROGRAM // self._block
        # Where nothing is kept, some pointer.
        ranges = self._wanted if kept is None else kept.note_launch(x.device, is_exact=False)
        with on(x.device):
            self._kernel[(-(-blocks // rows),)](
                x, y, self._scales, self._rounded, self._wanted, ranges, blocks, BLOCK=self._block, ROWS=rows,
                RANGES=self._ranges, RANGE=RANGE, NONE=NO_EXPONENT, num_warps=4,
            )  # fmt: skip
        return y


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # the tables outlive the caller's mode
def _fused(fmt: MXFormat, dtype: torch.dtype, device: torch.device, keeps: bool) -> Fused | None:
    """Return what quantizes by Triton, compiled and tried; None where PyTorch's operations are to do it."""
    try:
        fused = Fused(fmt, dtype, device, keeps)
        x = trial(int(fmt.block_size), dtype, device)  # type: ignore[arg-type]
        ours, theirs = WantedExponents(), WantedExponents()
        with not_kept(), torch.no_grad():
            y = fused(x, ours if keeps else None)
            differing = count_differing(y, quantize_torch(x, fmt, -1, "native", None, None))
            if keeps:
                amax = x.abs().amax(1)
                theirs.note(amax, native_exponent(amax, fmt), is_exact=False)
    except Exception as error:  # of whatever Triton, its compiler, the host's and the driver raise
        if is_out_of_memory(error):  # says nothing of Triton: another batch may have room
            raise
        _say_once(f"{type(error).__name__}: {error}".splitlines()[0])
        return None
    if differing:
        _say_once(f"{differing} of {x.numel()} elements come out otherwise in {fmt} of {dtype}")
        return None
    if ours.range() != theirs.range():
        _say_once(f"the exponents that blocks want are not those of {fmt} of {dtype}")
        return None
    return fused


@functools.cache
def _say_once(reason: str) -> None:
    log.info("Triton does not fuse PyTorch's operations: %s", reason)


def trial(block: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return blocks [65,536, block] of which the first element is each of the dtype's values, and the largest."""
    codes = torch.arange(2**16, dtype=torch.int64, device=device)[:, None]
    place = torch.arange(block, dtype=torch.int64, device=device)
    mixed = (codes * block + place) * 2654435761 % 2**32  # Knuth's multiplicative hash
    magnitudes = (mixed >> 8) % ((codes & 0x7FFF) + 1)
    near = (codes & 0x7FFF) - (mixed >> 24) % (8 << 7)  # within eight or so powers of two, of bfloat16
    magnitudes = torch.where((place % 2 == 0) & (near >= 0), near, magnitudes)
    values = torch.where(place == 0, codes, magnitudes | (mixed & 1) << 15)
    return torch.where(values >= 2**15, values - 2**16, values).to(torch.int16).view(dtype)
