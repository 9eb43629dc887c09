"""Philox against known answers and a plain-integer implementation."""

import pytest
import torch

from mxsweep.numerics.philox import draw_key, philox4x32, uniform, uniform_at

CPU = torch.device("cpu")

# The known-answer vectors that Random123 ships for philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key[0] | key[1] << 32)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected
    assert plain_philox(counter, key) == expected


def test_uniform_takes_the_first_word_at_counter_i() -> None:
    key = 0xFEDCBA9876543210
    (u,) = uniform(key, 70_000, CPU)  # more than one piece
    assert u.dtype == torch.float32 and u.shape == (70_000,)
    for i in (0, 1, 32_767, 32_768, 69_999):
        word = plain_philox((i, 0, 0, 0), (key & 0xFFFFFFFF, key >> 32))[0]
        assert float(u[i]) == (word >> 8) * 2.0**-24


def test_counters_beyond_32_bits_use_the_second_word() -> None:
    u = uniform_at(7, torch.tensor([2**32 + 5, 5]))
    expected = [plain_philox((5, high, 0, 0), (7, 0))[0] for high in (1, 0)]
    assert u.tolist() == [(word >> 8) * 2.0**-24 for word in expected]


def test_the_number_of_an_example_is_in_the_other_two_words() -> None:
    first = 2**32 - 2
    u = uniform(7, 20_000, CPU, first, 4)
    for example, i in ((0, 0), (1, 19_999), (2, 5), (3, 12_345)):
        counter = (i, 0, (first + example) & 0xFFFFFFFF, (first + example) >> 32)
        assert float(u[example, i]) == (plain_philox(counter, (7, 0))[0] >> 8) * 2.0**-24
    assert torch.equal(u[2:], uniform(7, 20_000, CPU, first + 2, 2))
    assert torch.equal(uniform(7, 100, CPU), uniform(7, 100, CPU, 0, 3)[:1])
    # Standard error of a correlation: 0.007.
    assert float(torch.corrcoef(u.double()).fill_diagonal_(0).abs().max()) < 0.035


def test_uniform_is_uniform() -> None:
    u = uniform(1, 200_000, CPU)[0].double()
    assert u.min() >= 0 and u.max() < 1
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
