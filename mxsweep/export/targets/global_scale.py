"""Find the float32 number that a loader needs over block scales, so that it computes every value of a weight as it is.

A value under a scale of the tensor is a product of three numbers, and what it is depends on their order. A format's
rule says it (formats/scale_rules.py): q (s / g), or q (s d), each operation rounded to float32, then to the weight's
dtype. Loaders have an order of their own: compressed-tensors q (s / g), ModelOpt q (s t), llama.cpp (q s) t. For powers
of two all are the same. For any other g no float32 is 1/g, and a product need not be the same float32. In bfloat16,
which keeps 8 of its 24 bits, it nearly always is: of the 128 significands that the maximum of a bfloat16 weight may
have, 127 have a number for every rule and loader, whatever scales the blocks have, and for most pairs of these all do.

There are at most 127 block scales and 16 elements, so that all values of a weight can be compared: what is stored is a
number for which every one of them is the same, and where there is none the weight is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mxsweep.export.targets.bits import group_scales, powers_in_e4m3, read_back
from mxsweep.formats.element import ElementFormat
from mxsweep.formats.mxformat import MXFormat
from mxsweep.numerics import Encoded, decode
from mxsweep.numerics.reference.codes import element_values, scale_values

_ULPS = 4  # to either side of the nearest

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Return what a loader computes from block scales s, elements q and its number, all float32."""


def divided(s: Tensor, q: Tensor, g: Tensor) -> Tensor:
    """Return q (s / g)."""
    return (s / g) * q


def scales_first(s: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """Return q (s t)."""
    return (s * t) * q


def scales_last(s: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """Return (q s) t."""
    return (s * q) * t


def e4m3_scales(name: str, target: str, encoded: Encoded, group: int, product: Product) -> tuple[Tensor, float]:
    """Return the scales of groups as e4m3 codes (N, C / group) uint8, and the number that the loader needs over them.

    Raises:
        ValueError: powers of two too far apart for e4m3, a scale that is not one number for the whole weight, or no
            number gives the weight's values; the message begins with its name.
    """
    divides = product is divided
    if encoded.format.scale_format.is_power_of_two:
        scales, shift = powers_in_e4m3(name, encoded, group)
        return scales, 2.0 ** (shift if divides else -shift)
    scales, over = group_scales(encoded, group), _one_number(name, encoded.tensor_scale)
    used = scales.unique()
    expected = _read_by_rule(encoded.format, used, over, encoded.dtype)
    same_kind = encoded.format.rule.divides_by_tensor_scale == divides
    for number in _around(over if same_kind else 1 / over):
        if equal_values(_read_by_loader(encoded.format, used, number, encoded.dtype, product), expected):
            return scales, number
    raise ValueError(
        f"{name}: {target} has another order of products, and no float32 over the block scales gives this weight's "
        f"values in {str(encoded.dtype).removeprefix('torch.')}; allowed: model.dtype=bfloat16, where that is rare, a "
        "target that has the order of format.scale_rule, or that target's rule"
    )


def read_by_product(
    name: str, codes: Tensor, scales: Tensor, t: float, dtype: torch.dtype, product: Product
) -> Encoded:
    """Return a weight that a loader multiplies by t, by a rule of ours that gives the same values.

    Args:
        codes: (N, C) uint8 of fp4_e2m1.
        scales: (N, C / 16) uint8 of e4m3.

    Raises:
        ValueError: no rule does.
    """
    used = scales.unique()
    expected = _read_by_loader(_NVFP4, used, t, dtype, product)
    for fmt, near in ((replace(_NVFP4, scale_rule="modelopt"), t), (_NVFP4, 1 / t)):
        for over in _around(near):
            if equal_values(_read_by_rule(fmt, used, over, dtype), expected):
                return read_back(name, codes, fmt, scales, dtype, over)
    raise ValueError(f"{name}: its stored scale {t:.9g} gives values that no rule of mxsweep's gives")


def check_plain(name: str, target: str, encoded: Encoded) -> None:
    """Raise ValueError where a rule reads block scales otherwise than as what they are: where its values differ."""
    used = encoded.scales.unique()
    plain = _read_by_loader(encoded.format, used, 1.0, encoded.dtype, scales_last)
    if not equal_values(_read_by_rule(encoded.format, used, 1.0, encoded.dtype), plain):
        raise ValueError(f"{name}: {target}: scale_rule {encoded.format.scale_rule} reads values that it does not")


def equal_values(a: Tensor, b: Tensor) -> bool:
    """Return whether tables of values are equal, NaN in the same places."""
    return torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0)) and torch.equal(a.isnan(), b.isnan())


def _around(value: float) -> Iterator[float]:
    """Yield the nearest float32 and its neighbours, the nearest first."""
    nearest = torch.tensor(value, dtype=torch.float32)
    yield float(nearest)
    up = down = nearest
    for _ in range(_ULPS):
        up, down = torch.nextafter(up, up.new_tensor(torch.inf)), torch.nextafter(down, down.new_tensor(0.0))
        yield from (float(up), float(down))


_NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)


def _element_codes(element: ElementFormat, device: torch.device) -> Tensor:
    return torch.arange(element.codes, dtype=torch.int32, device=device).to(torch.uint8)


def _read_by_rule(fmt: MXFormat, used: Tensor, over: float, dtype: torch.dtype) -> Tensor:
    """Return what each scale (S,) makes of each element: [S, elements]."""
    element = fmt.element_format
    codes = _element_codes(element, used.device).expand(len(used), -1).contiguous()
    return decode(read_back("", codes, replace(fmt, block_size=element.codes), used.view(-1, 1), dtype, over))


def _read_by_loader(fmt: MXFormat, used: Tensor, number: float, dtype: torch.dtype, product: Product) -> Tensor:
    q = element_values(_element_codes(fmt.element_format, used.device), fmt.element_format)
    s = scale_values(used, fmt.scale_format).view(-1, 1)
    return product(s, q, torch.tensor(number, dtype=torch.float32, device=used.device)).to(dtype)


def _one_number(name: str, tensor_scale: Tensor | None) -> float:
    if tensor_scale is None:
        return 1.0
    first = tensor_scale.reshape(-1)[0]
    if not bool((tensor_scale == first).all()):
        raise ValueError(f"{name}: its rows have scales of their own; allowed: one scale of the whole tensor")
    if not bool(torch.isfinite(first)):
        raise ValueError(f"{name}: its scale of the tensor is {first.item()}; allowed: a finite number")
    return float(first)
