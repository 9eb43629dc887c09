"""Eleven kinds of tensors on which quantizers that differ by one bit give different values, 256 x 512 each."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

SHAPE = (256, 512)
BLOCK = 16  # the shortest block that is compared: what belongs together extends over it, or over several of it


class Draw:
    """The random numbers of one kind."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape or SHAPE, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape or SHAPE, generator=self.generator)

    def powers(self, low: int, high: int) -> Tensor:
        """float32 [256, 32, 1]: 2^low to 2^(high - 1), one for each block."""
        return torch.exp2(self.integers(low, high, SHAPE[0], SHAPE[1] // BLOCK, 1).double()).float()


def in_blocks(x: Tensor) -> Tensor:
    return x.reshape(SHAPE[0], -1, BLOCK)


def normal(draw: Draw) -> Tensor:
    return draw.normal()


def heavy_tails(draw: Draw) -> Tensor:
    """Student's t with two degrees of freedom: one element in a block is far larger than the others."""
    return draw.normal() / (draw.normal().square() + draw.normal().square()).div(2).sqrt().clamp(min=1e-4)


def wide_range(draw: Draw) -> Tensor:
    """Rows of very different size, so that scales under a per-tensor scale reach their bottom."""
    return draw.normal() * torch.exp2(draw.integers(-24, 12, SHAPE[0], 1).float())


def ties(draw: Draw) -> Tensor:
    """Sixty-fourths of a power of two, so that most quotients lie on a value or half way between two."""
    return (in_blocks(draw.integers(-512, 513) / 64) * draw.powers(-20, 21)).reshape(SHAPE)


def beside_ties(draw: Draw) -> Tensor:
    """The same, an ulp of bfloat16 or of float32 to either side."""
    x = ties(draw)
    steps = draw.integers(-1, 2) * torch.where(draw.integers(0, 2) == 0, 1, 1 << 16)
    return torch.where(x == 0, x, (x.view(torch.int32) + steps.to(torch.int32)).view(torch.float32))


def zeros(draw: Draw) -> Tensor:
    """Zeros of both signs, whole blocks of them, and blocks with one element that is none."""
    sign = 1.0 - 2.0 * draw.integers(0, 2)
    few = in_blocks(draw.normal() * (draw.integers(0, 24) == 0)) * (draw.powers(0, 2) - 1)
    return few.reshape(SHAPE) * sign


def maxima(draw: Draw) -> Tensor:
    """Blocks whose maximum is n/16 of a power of two, as where exponents are decided, or an ulp beside it."""
    top = in_blocks(draw.integers(16, 33))[..., :1] / 16 * draw.powers(-12, 13)
    steps = in_blocks(draw.integers(-1, 2) * torch.where(draw.integers(0, 2) == 0, 1, 1 << 16))[..., :1]
    top = (top.view(torch.int32) + steps.to(torch.int32)).view(torch.float32)
    below = in_blocks(draw.normal()).clamp(-3, 3) / 4 * top
    return torch.where(torch.arange(BLOCK) == 3, top, below).reshape(SHAPE)


def subnormal(draw: Draw) -> Tensor:
    """Below 2^-117 with subnormals and zeros: exponents of scales at their bottom."""
    return (in_blocks(draw.normal().clamp(-3, 3)).double() * draw.powers(-149, -118).double()).float().reshape(SHAPE)


def near_largest(draw: Draw) -> Tensor:
    """Up to the largest finite bfloat16, which is a float32, too."""
    x = in_blocks(draw.normal()) * draw.powers(110, 127)
    return x.nan_to_num(posinf=3e38, neginf=-3e38).clamp(-3.3895e38, 3.3895e38).reshape(SHAPE)


def any_bits(draw: Draw) -> Tensor:
    """Bit patterns of all exponents in blocks of all sizes, finite; all patterns of bfloat16 are likely among them."""
    size = in_blocks(draw.integers(1, 255))[..., :1]
    exponent = (size - (in_blocks(draw.integers(0, 2**16)).float() + 1).log2().floor().long() + 14).clamp(0, 254)
    bits = in_blocks(draw.integers(0, 2**23)) | exponent << 23 | in_blocks(draw.integers(0, 2)) << 31
    return torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32).reshape(SHAPE)


def nan_inf(draw: Draw) -> Tensor:
    """Normal numbers, in one block of four a NaN, in one an Inf."""
    x, which = in_blocks(draw.normal()).clone(), in_blocks(draw.integers(0, 4))[..., 0]
    x[..., 5] = torch.where(which == 1, torch.nan, torch.where(which == 2, -torch.inf, x[..., 5]))
    return x.reshape(SHAPE)


KINDS: dict[str, Callable[[Draw], Tensor]] = {
    function.__name__: function
    for function in (
        normal,
        heavy_tails,
        wide_range,
        ties,
        beside_ties,
        zeros,
        maxima,
        subnormal,
        near_largest,
        any_bits,
        nan_inf,
    )
}

EXTREME = ("subnormal", "near_largest", "any_bits", "nan_inf")  # as no weight or activation is


@cache
def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    """Every kind, contiguous, not to be changed. In bfloat16 what float32 is rounded to, finite where that was."""
    made = {kind: make(Draw(seed)) for seed, (kind, make) in enumerate(KINDS.items())}
    if dtype == torch.float32:
        return {kind: x.contiguous() for kind, x in made.items()}
    largest = torch.finfo(dtype).max
    kept = {kind: x.to(dtype) for kind, x in made.items()}
    return {kind: x if kind == "nan_inf" else x.clamp(-largest, largest) for kind, x in kept.items()}
