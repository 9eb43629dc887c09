"""Construct orthogonal matrices with entries of nearly one size, of any order, for Hadamard rotations.

A Hadamard matrix of order n has entries +-1 and orthogonal rows; divided by sqrt(n) it is orthogonal, and spreads a
single outlier evenly over all n channels. Beyond 1 and 2 the order must be a multiple of 4. Here they come from

- Sylvester (1867): the Kronecker power [[1, 1], [1, -1]] (x) ... of order 2^k; symmetric, with a fast transform;
- Paley ("On orthogonal matrices", J. Math. Phys. 12, 1933): for a prime power q, order q + 1 where q = 3 mod 4 (I), and
  2 (q + 1) where q = 1 mod 4 (II), from which elements of the field GF(q) are squares.

The matrix R of order n = m 2^k, m odd, is B (x) Sylvester, where B has the smallest order m 2^j, j <= k, that Paley has
a matrix for. Where there is none (every order that 4 does not divide; of the multiples of 4 the first is 92), B is the
Hartley matrix cas(2 pi i j / m) / sqrt(m), cas = cos + sin (Bracewell, J. Opt. Soc. Am. 73, 1983), which is orthogonal
and symmetric, with entries up to sqrt(2) times 1 / sqrt(m). For the sizes that language models have there is one:
11008 = 344 * 32 (q = 343), 14336 = 28 * 512, 4864 = 76 * 64, 8960 = 140 * 64, 18944 = 148 * 128.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
from numpy.typing import NDArray

Signs = NDArray[np.int8]  # of entries -1, 0 and 1
Polynomial = tuple[int, ...]  # coefficients modulo a prime, that of x^0 first


def sylvester(log_order: int) -> Signs:
    """Return Sylvester's Hadamard matrix of order 2^log_order: the sign at (i, j) is the parity of i & j's bits."""
    matrix = np.ones((1, 1), np.int8)
    for _ in range(log_order):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@functools.lru_cache(maxsize=64)
def base_factor(order: int) -> NDArray[np.float64]:
    """Return B of the orthogonal matrix B (x) Sylvester of an order, float64: [[1]] for a power of two."""
    odd = order
    while odd % 2 == 0:
        odd //= 2
    size = odd
    while odd > 1 and order % size == 0:
        if (signs := paley(size)) is not None:
            return signs / math.sqrt(size)
        size *= 2
    angles = 2 * math.pi / odd * (np.outer(np.arange(odd), np.arange(odd)) % odd)
    return (np.cos(angles) + np.sin(angles)) / math.sqrt(odd)


def paley(order: int) -> Signs | None:
    """Return the Hadamard matrix of an order by Paley's constructions; None where neither has one."""
    if order % 4:
        return None
    if field := prime_power(order - 1):
        skew = _bordered(quadratic_characters(*field), -1)
        return skew + np.eye(order, dtype=np.int8)
    if (order // 2 - 1) % 4 == 1 and (field := prime_power(order // 2 - 1)):
        conference = _bordered(quadratic_characters(*field), 1)
        on, off = np.array([[1, -1], [-1, -1]], np.int8), np.array([[1, 1], [1, -1]], np.int8)
        return np.kron(conference, off) + np.kron(np.eye(order // 2, dtype=np.int8), on)
    return None


def _bordered(characters: Signs, left: int) -> Signs:
    """Return [[0, 1 ...], [left ..., Q]]."""
    bordered = np.ones((len(characters) + 1, len(characters) + 1), np.int8)
    bordered[1:, 0], bordered[0, 0], bordered[1:, 1:] = left, 0, characters
    return bordered


def prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, r) with q = p^r and p prime; None if there are none."""
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    power, rest = 0, q
    while q > 1 and rest % p == 0:
        power, rest = power + 1, rest // p
    return (p, power) if power and rest == 1 else None


def quadratic_characters(p: int, power: int) -> Signs:
    """Return Q (q, q) of the field of q = p^power elements, p odd: at (a, b) 0 if a = b, 1 if a - b is a square, else
    -1.

    Elements are polynomials over the integers modulo p of a degree below ``power``; number a has the digits of a to the
    base p as its coefficients.
    """
    q = p**power
    character = np.full(q, -1, np.int8)
    character[0] = 0
    for element in powers_of_a_generator(p, power)[::2]:
        character[sum(digit * p**place for place, digit in enumerate(element))] = 1
    digits = np.arange(q)[:, None] // p ** np.arange(power) % p
    difference = np.zeros((q, q), np.int64)
    for place in range(power):
        difference += (digits[:, None, place] - digits[None, :, place]) % p * p**place
    return character[difference]


def powers_of_a_generator(p: int, power: int) -> list[Polynomial]:
    """Return x^0 to x^(q - 2) modulo a polynomial of degree ``power`` for which these are all the elements but zero.

    That they return to 1 only after q - 1 steps shows that it is such a polynomial (a primitive one). The even powers
    are the squares.
    """
    one = (1,) + (0,) * (power - 1)
    for low_terms in itertools.product(range(p), repeat=power):  # x^power = their polynomial
        if low_terms[0] == 0:
            continue  # x would have no inverse
        powers, element = [one], _times_x(one, low_terms, p)
        while element != one:
            powers.append(element)
            element = _times_x(element, low_terms, p)
        if len(powers) == p**power - 1:
            return powers
    raise AssertionError(f"every field has a primitive polynomial, that of {p}^{power} elements too")


def _times_x(element: Polynomial, low_terms: Polynomial, p: int) -> Polynomial:
    """Multiply an element by x, where x^power is ``low_terms``; for power 1, by a number."""
    *rest, top = element
    return tuple((digit + top * term) % p for digit, term in zip((0, *rest), low_terms, strict=True))
