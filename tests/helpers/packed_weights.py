"""Weights that find mistakes in a packed layout, and the comparison of what is read back with what was written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mxsweep.numerics import Encoded, MXFormat, decode, encode

ROWS, COLUMNS = 24, 192
DTYPES = (torch.float32, torch.bfloat16)


def weight(dtype: torch.dtype, span: float = 30.0) -> Tensor:
    """Return W (ROWS, COLUMNS): scales over so many binades, ties of every format, zeros of both signs, subnormals."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    by_row, by_block = torch.rand(ROWS, 1, generator=generator), torch.rand(ROWS, COLUMNS // 16, generator=generator)
    x *= torch.exp2(span * (by_row - 0.5) + 4 * by_block).repeat_interleave(16, 1)
    x[0] = torch.arange(COLUMNS) / 16 - 6  # every tie of e2m1 and e2m3
    x[1], x[2] = 0.0, -0.0
    x[3, 32:64] = 0.0
    x[4, :32] = -x[4, :32].abs()
    if span > 20:
        x[5] *= 2.0**-120  # blocks at the bottom of e8m0, elements that are subnormal numbers
        x[6] *= 2.0**100
    return x.to(dtype)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same, the signs of zeros included."""
    assert a.dtype == b.dtype and a.shape == b.shape
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


def mismatches(target: Any, name: str, encoded: Encoded, config: dict[str, Any], **arguments: Any) -> int:
    """Return how many elements differ between a weight, and what is read from its stored tensors."""
    stored = target.tensors(name, encoded, **arguments)
    assert all(part.startswith(f"{name}.") and tensor.is_contiguous() for part, tensor in stored.items())
    read = decode(target.decode(name, stored, config, encoded.dtype))
    expected = decode(encoded)
    if encoded.negative_zeros is not None:  # two's complement has no place for their sign
        read, expected = read + 0.0, expected + 0.0
    bits = torch.int32 if read.dtype == torch.float32 else torch.int16
    return int((read.view(bits) != expected.view(bits)).sum())


def encoded_weight(fmt: MXFormat, dtype: torch.dtype, span: float | None = None) -> Encoded:
    """Return `weight` in a format, over as many binades as its scales hold."""
    narrow = fmt.scale != "e8m0" or fmt.block_size == 16
    return encode(weight(dtype, (10.0 if narrow else 30.0) if span is None else span), fmt)


def with_nan_block(fmt: MXFormat) -> Encoded:
    """Return a weight one block of which is NaN."""
    x = weight(torch.float32, 4.0)
    x[7, 5] = torch.nan
    return encode(x, fmt)


def peer(module: str) -> Any:
    """Return a module of a peer, or skip the test with the reason."""
    return pytest.importorskip(module, reason=f"the peer {module.split('.')[0]} is not installed")
