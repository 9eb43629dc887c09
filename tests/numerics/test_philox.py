"""Philox against known answers and a plain-integer implementation."""

import pytest
import torch

from mxsweep.numerics.philox import draw_key, philox4x32, uniform

CPU = torch.device("cpu")

# The known-answer vectors that Random123 ships for philox4x32 with 7 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(7):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key[0] | key[1] << 32)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected
    assert plain_philox(counter, key) == expected


def number(key: int, i: int, example: int = 0) -> float:
    """Element i's, from plain integers."""
    words = plain_philox(
        (i // 8 & 0xFFFFFFFF, i // 8 >> 32, example & 0xFFFFFFFF, example >> 32), (key & 0xFFFFFFFF, key >> 32)
    )
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return (halves[i % 8] + 0.5) * 2.0**-16


def test_eight_elements_share_a_call() -> None:
    key = 0xFEDCBA9876543210
    (u,) = uniform(key, 300_005, CPU)  # more than one piece
    assert u.dtype == torch.float32 and u.shape == (300_005,)
    for i in (*range(17), 262_143, 262_144, 300_004):
        assert float(u[i]) == number(key, i)


def test_the_number_of_an_example_is_in_the_other_two_words() -> None:
    first = 2**32 - 2
    u = uniform(7, 20_003, CPU, first, 4)
    for example, i in ((0, 0), (1, 19_999), (2, 5), (3, 20_002)):
        assert float(u[example, i]) == number(7, i, first + example)
    assert torch.equal(u[2:], uniform(7, 20_003, CPU, first + 2, 2))
    assert torch.equal(uniform(7, 100, CPU), uniform(7, 100, CPU, 0, 3)[:1])
    # Standard error of a correlation: 0.007.
    assert float(torch.corrcoef(u.double()).fill_diagonal_(0).abs().max()) < 0.035


def test_every_number_is_as_likely() -> None:
    (u,) = uniform(3, 2**22, CPU)
    r = (u * 2**16 - 0.5).to(torch.int64)
    assert torch.equal((r + 0.5) * 2.0**-16, u) and r.min() == 0 and r.max() == 2**16 - 1
    # Chi-squared of 2^16 - 1 degrees of freedom has the standard deviation 362: of all, of one place of the eight,
    # and of the upper eight bits of two neighbours together.
    for values in (r, r.view(-1, 8)[:, 3], r.view(-1, 8)[:, 6], (r.view(-1, 2) >> 8) @ torch.tensor([256, 1])):
        counts = torch.bincount(values, minlength=2**16).double()
        expected = values.numel() / 2**16
        assert abs(float(((counts - expected) ** 2).sum() / expected) - 65535) < 5 * 362


def test_uniform_is_uniform() -> None:
    u = uniform(1, 200_000, CPU)[0].double()
    assert u.min() > 0 and u.max() < 1
    # Standard errors: mean 0.00065, variance 0.00017, lag correlation 0.0022.
    assert abs(float(u.mean()) - 0.5) < 0.003
    assert abs(float(u.var()) - 1 / 12) < 0.001
    assert abs(float(torch.corrcoef(torch.stack((u[1:], u[:-1])))[0, 1])) < 0.01


def test_uniform_of_nothing() -> None:
    assert uniform(1, 0, CPU).shape == (1, 0)
    assert uniform(1, 5, CPU, examples=0).shape == (0, 5)


def test_keys() -> None:
    assert draw_key(0) == 0
    assert draw_key(2**64 - 1) == 2**64 - 1
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match=r"^generator: "):
            draw_key(bad)
    first, second = (draw_key(torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second
    generator = torch.Generator().manual_seed(3)
    keys = {draw_key(generator) for _ in range(100)}
    assert len(keys) == 100 and first in keys
    assert max(keys) >= 2**63 > 2**32 > min(key & 0xFFFFFFFF for key in keys)  # both words are drawn in full
