"""Draw the random numbers of stochastic rounding, by a counter: Philox4x32-7, 16 bits an element.

Element i of example e draws from Philox(key, counter = (i // 8, e)), whatever thread, device or batch computes it,
so that every backend rounds it alike. Where examples are not told apart, e is 0 for all. Philox (Salmon, Moraes,
Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3) mixes a counter of four 32-bit
words with a key of two in rounds of

    (c0, c1, c2, c3) <- (hi(M1 * c2) ^ c1 ^ k0,  lo(M1 * c2),  hi(M0 * c0) ^ c3 ^ k1,  lo(M0 * c0))

where hi and lo are the halves of the 64-bit product, the key growing by (W0, W1) between rounds. Seven rounds are
the fewest of Philox4x32 that pass BigCrush (the same, table 2). Here

    n = i // 8      counter = (n mod 2^32, n >> 32, e mod 2^32, e >> 32)      key = (key mod 2^32, key >> 32)
    r = the half i mod 2 (0: the low one) of the word (i mod 8) // 2 of the four that come out
    u = (r + 1/2) * 2^-16                        in (0, 1), exact in float32

so that eight neighbours share one call: rounding takes as long as drawing, and hardware that rounds stochastically
draws 8 to 16 bits an element (PTX, `cvt.rs`). An element is rounded up iff u < f, its fraction: with f's probability
where f is a multiple of 2^-16 (as it is for a bfloat16 x under a scale that is a power of two, unless |x| is small
beside the spacing of the format's values), else with f rounded to the nearest such multiple. The mean of what is
rounded is so within 2^-17 of a spacing, to either side.

torch has no unsigned 32-bit multiplication, so the words live in int64 tensors. The product of two of them
can pass 2^63; its low 64 bits are right all the same, and masking after the (arithmetic) shift undoes the
sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat

_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9  # the golden ratio
_WEYL_1 = 0xBB67AE85  # sqrt(3) - 1
_ROUNDS = 7
SHARING = 8  # elements that draw from one call
_WORD = 0xFFFFFFFF
_HALF = 0xFFFF
_PIECE = 32768  # calls at a time: some ten int64 temporaries are alive at once

KEY_BITS = 64
LAST_EXAMPLE = 2**62  # at most, so that numbers of examples behind it fit in 64 bits, too


@dataclass(frozen=True)
class Draws:
    """Say what stochastic rounding of a tensor draws from.

    Attributes:
        key: 64 bits.
        example_dims: how many leading dimensions count examples.
        first_example: the number of the tensor's first example; None where every example draws as number 0 does.
    """

    key: int
    example_dims: int
    first_example: int | None

    def example_size(self, shape: Sequence[int]) -> int:
        """Return how many elements an example of a tensor of `shape` has."""
        return math.prod(shape[self.example_dims :])


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the rounds of Philox4x32. Counter and result are int64 tensors of one shape with values in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _WORD, key >> 32
    for _ in range(_ROUNDS):
        low_product, high_product = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((high_product >> 32) & _WORD) ^ c1 ^ k0,
            high_product & _WORD,
            ((low_product >> 32) & _WORD) ^ c3 ^ k1,
            low_product & _WORD,
        )
        k0, k1 = (k0 + _WEYL_0) & _WORD, (k1 + _WEYL_1) & _WORD
    return c0, c1, c2, c3


def uniform(key: int, count: int, device: torch.device, first_example: int = 0, examples: int = 1) -> Tensor:
    """Return the numbers u of elements 0 to `count` - 1 of each of some examples that follow each other under `key`:
    float32 [examples, count], odd multiples of 2^-17 in (0, 1).
    """
    calls = -(-count // SHARING)  # for each example
    total = examples * calls
    u = torch.empty(total, SHARING, dtype=torch.float32, device=device)
    step = _PIECE if device.type == "cpu" else max(total, 1)
    for start in range(0, total, step):
        place = torch.arange(start, min(start + step, total), dtype=torch.int64, device=device)
        u[start : start + step] = uniform_of_calls(key, place % calls, place // calls + first_example)
    return u.view(examples, calls * SHARING)[:, :count]


def uniform_of_calls(key: int, n: Tensor, example: Tensor) -> Tensor:
    """Return the numbers u of the n-th eight elements of the examples `example` (int64 of one shape): [..., 8]."""
    words = philox4x32((n & _WORD, n >> 32, example & _WORD, example >> 32), key)
    halves = torch.stack([half for word in words for half in (word & _HALF, word >> 16)], -1)
    return halves.to(torch.float32).add_(0.5).mul_(2.0**-16)


def random_numbers(x: Tensor, draws: Draws) -> Tensor:
    """Return the number u of each of x's elements: float32 of x's shape."""
    example = x.shape[draws.example_dims :]
    if draws.first_example is None:
        return uniform(draws.key, math.prod(example), x.device).reshape(example).expand(x.shape)
    examples = math.prod(x.shape[: draws.example_dims])
    return uniform(draws.key, math.prod(example), x.device, draws.first_example, examples).reshape(x.shape)


def draw_key(generator: torch.Generator | int) -> int:
    """Return a 64-bit key: two 32-bit words, the low one first, from a generator; an int is the key itself.

    Raises:
        ValueError: an int that does not fit into 64 bits.
    """
    if isinstance(generator, torch.Generator):
        words = torch.randint(0, 2**32, (2,), generator=generator, device=generator.device, dtype=torch.int64)
        low, high = words.tolist()
        return int(low) | int(high) << 32
    if not 0 <= generator < 2**KEY_BITS:
        raise ValueError(f"generator: {generator!r} is not a key; allowed: 0 to 2^{KEY_BITS} - 1")
    return int(generator)


def draws_of(
    fmt: MXFormat, generator: torch.Generator | int | None, example_dims: int, first_example: int | None
) -> Draws | None:
    """Return what `fmt` draws from, given arguments of `quantize`; None where it rounds without chance."""
    if fmt.rounding != "stochastic" or generator is None:
        return None
    return Draws(draw_key(generator), example_dims, first_example)
