"""Turn the float32 number that block scales are divided by into one that is multiplied by, where values stay the same.

Under a scale of the tensor a value reads back here as q (s / g), each operation rounded to float32, then rounded to the
weight's dtype (numerics/reference/scales.py). Some loaders multiply by a stored t instead: ModelOpt computes q (s t),
llama.cpp (q s) t. For a power of two both are the same. For any other g no float32 is 1/g, and neither product needs to
be our float32. In bfloat16, which keeps 8 of its 24 bits, it nearly always is: of the 128 significands that the maximum
of a bfloat16 weight may have, 127 have a t for q (s t), and all for (q s) t, whatever scales the blocks have. The one
left is 1.3671875, which makes 1/g a multiple of 25/3, so that values lie on ties of bfloat16.

There are at most 127 block scales and 16 elements, so that all values of a weight can be compared: t is one for which
every one of them is the same, and where there is none the weight is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mxsweep.export.targets.bits import read_back
from mxsweep.formats.element import parse_element
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics import decode
from mxsweep.numerics.reference.codes import element_values, scale_values

_ULPS = 4  # to either side of the rounded reciprocal

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Return what a loader computes from block scales s, elements q and t, all float32: by s and by q."""


def scales_first(s: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """Return q (s t)."""
    return (s * t) * q


def scales_last(s: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """Return (q s) t."""
    return (s * q) * t


def multiplier_of(name: str, target: str, g: float, scales: Tensor, dtype: torch.dtype, product: Product) -> float:
    """Return a float32 t by which a loader's product gives every value of a weight under g, bit for bit.

    Args:
        scales: e4m3 codes of the weight's blocks, uint8.

    Raises:
        ValueError: there is none; the message begins with the weight's name.
    """
    used = scales.unique()
    expected = _by_division(used, g, dtype)
    for t in _around(1 / g):
        if torch.equal(_by_product(used, t, dtype, product), expected):
            return t
    raise ValueError(
        f"{name}: {target} multiplies by a scale of the tensor, and no float32 gives the values of this weight in "
        f"{str(dtype).removeprefix('torch.')} that dividing by {g:.9g} does; allowed: model.dtype=bfloat16, where it "
        "is rare, or target compressed-tensors, which divides"
    )


def divisor_of(name: str, t: float, scales: Tensor, dtype: torch.dtype, product: Product) -> float:
    """Return a float32 g that gives every value that a loader's product with t does: the way back.

    Raises:
        ValueError: there is none.
    """
    used = scales.unique()
    expected = _by_product(used, t, dtype, product)
    for g in _around(1 / t):
        if torch.equal(_by_division(used, g, dtype), expected):
            return g
    raise ValueError(f"{name}: no float32 divides to the values that its stored scale {t:.9g} multiplies to")


def _around(value: float) -> Iterator[float]:
    """Yield the nearest float32 and its neighbours, the nearest first."""
    nearest = torch.tensor(value, dtype=torch.float32)
    yield float(nearest)
    up = down = nearest
    for _ in range(_ULPS):
        up, down = torch.nextafter(up, up.new_tensor(torch.inf)), torch.nextafter(down, down.new_tensor(0.0))
        yield from (float(up), float(down))


_FORMAT = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)


def _by_division(used: Tensor, g: float, dtype: torch.dtype) -> Tensor:
    """Return what each scale (S,) makes of each element: [S, 16]."""
    element = parse_element(_FORMAT.element)
    codes = torch.arange(element.codes, dtype=torch.uint8, device=used.device).expand(len(used), -1)
    fmt = replace(_FORMAT, block_size=element.codes)
    return decode(read_back("", codes.contiguous(), fmt, used.view(-1, 1), dtype, g))


def _by_product(used: Tensor, t: float, dtype: torch.dtype, product: Product) -> Tensor:
    element = parse_element(_FORMAT.element)
    q = element_values(torch.arange(element.codes, dtype=torch.uint8, device=used.device), element)
    s = scale_values(used, _FORMAT.scale_format).view(-1, 1)
    return product(s, q, torch.tensor(t, dtype=torch.float32, device=used.device)).to(dtype)
