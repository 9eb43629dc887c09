"""The range of exponents that blocks wanted: what it holds, and that scale bits which hold it make no difference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mxsweep.numerics import ELEMENT_NAMES, SCALE_ROUNDINGS, MXFormat, parse_element, quantize
from mxsweep.numerics import dispatch as dispatching
from mxsweep.numerics.reference.scales import exact_exponent
from mxsweep.numerics.wanted_exponents import keeping_exponents

NARROW = MXFormat("fp4_e2m1", block_size=4, scale_bits=6)  # which holds exponents of ±31
WIDE = replace(NARROW, scale_bits=8)
EMAX = 2  # of fp4_e2m1
ROUNDED = [name for name in ELEMENT_NAMES if parse_element(name).scale_rounding is None]


def tensor_of(*maxima: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a row of blocks of 4 with these largest magnitudes."""
    return torch.tensor([[m, -m / 2, m / 3, 0.0] for m in maxima], dtype=torch.float64).reshape(1, -1).to(dtype)


def wanted(x: torch.Tensor, fmt: MXFormat = NARROW, arithmetic: str = "exact") -> tuple[int, int] | None:
    with keeping_exponents() as kept:
        quantize(x, fmt, arithmetic=arithmetic)
    return kept.range()


def is_same(x: torch.Tensor, arithmetic: str, **fields: object) -> bool:
    """Return whether narrow and wide scales make the same bits of x, NaN equal to NaN."""
    narrow, wide = (quantize(x, replace(fmt, **fields), arithmetic=arithmetic) for fmt in (NARROW, WIDE))
    return torch.equal(narrow.nan_to_num(7.25), wide.nan_to_num(7.25)) and torch.equal(
        narrow.signbit() & ~narrow.isnan(), wide.signbit() & ~wide.isnan()
    )


@pytest.mark.parametrize("arithmetic", ["exact", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("exponent", "is_held"), [(31, True), (32, False), (-31, True), (-32, False), (0, True), (5, True)]
)
def test_range_and_bits_agree_at_both_ends(exponent: int, is_held: bool, dtype: torch.dtype, arithmetic: str) -> None:
    """One exponent more than 6 bits hold changes bits; where the range lies within them, none is changed."""
    x = tensor_of(1.0, 2.0 ** (exponent + EMAX), dtype=dtype)
    for fmt in (NARROW, WIDE):
        low, high = wanted(x, fmt, arithmetic) or (-999, 999)
        assert (low, high) == (min(exponent, -EMAX), max(exponent, -EMAX))
        assert (low >= -31 and high <= 31) is is_held
    assert is_same(x, arithmetic) is is_held


@pytest.mark.parametrize("arithmetic", ["exact", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("odd", [0.0, -0.0, torch.inf, torch.nan])
def test_blocks_of_zeros_and_without_a_number_want_nothing(odd: float, dtype: torch.dtype, arithmetic: str) -> None:
    """They become the same under any scale, and are not in the range."""
    x = tensor_of(1.0, 3.0, dtype=dtype)
    x[0, 4:] = odd
    assert wanted(x, NARROW, arithmetic) == (-EMAX, 0)
    assert is_same(x, arithmetic)


def test_zeros_of_float16_in_native_arithmetic_leave_the_range_unknown() -> None:
    """There the scale decides: 2^-31 is no number of float16, 2^-7 is, and the block is NaN or zeros."""
    x = tensor_of(1.0, 0.0, dtype=torch.float16)
    assert wanted(x, NARROW, "native") is None
    assert not quantize(x, replace(NARROW, scale_bits=4), arithmetic="native").isnan().any()
    assert quantize(x, NARROW, arithmetic="native").isnan().any()


def test_the_range_is_over_everything_that_was_quantized() -> None:
    """An outlier of one pass among many stays in it, however many ranges were put together before."""
    with keeping_exponents() as kept:
        quantize(tensor_of(2.0**30), NARROW, arithmetic="exact")
        for _ in range(700):
            quantize(tensor_of(1.0), NARROW, arithmetic="exact")
        quantize(tensor_of(2.0**-29), NARROW, arithmetic="exact")
    assert kept.range() == (-31, 28)


@pytest.mark.parametrize("fields", [{"symmetric": False}, {"rounding": "stochastic"}, {"scale_rounding": "rceil"}])
def test_other_rules_keep_the_range_of_theirs(fields: dict[str, object]) -> None:
    x = tensor_of(2.0**33, 2.0**-20)
    fmt = replace(NARROW, **fields)
    with keeping_exponents() as kept:
        narrow = quantize(x, fmt, arithmetic="exact", generator=7)
    assert kept.range() is not None
    low, high = kept.range() or (0, 0)
    wide = quantize(x, replace(fmt, scale_bits=8), arithmetic="exact", generator=7)
    assert (max(-low, high) <= 31) is torch.equal(narrow.nan_to_num(7.25), wide.nan_to_num(7.25))


@pytest.mark.parametrize(
    "fmt",
    [
        *(MXFormat(element, scale_rounding=rounding) for element in ROUNDED for rounding in SCALE_ROUNDINGS),
        *(MXFormat("fp4_e2m1", scale_rounding=f"even{bits}") for bits in (0, 1, 7, 22)),
        MXFormat("fp8_e4m3", scale_rounding="ceil", scale_emax=False),
        MXFormat("fp16_e7m8", scale_rounding="rceil"),
    ],
    ids=str,
)
def test_roundings_are_floor_below_what_they_lift_and_not_there(fmt: MXFormat) -> None:
    """Of maxima with every exponent from that of a scale of 2^-100 on."""
    emax = fmt.element_format.max_exponent if fmt.scale_emax else 0
    powers = torch.arange(max(-100 + emax, -126), 127).double().exp2()
    floor = replace(fmt, scale_rounding="floor")

    def differs(significand: float) -> torch.Tensor:
        amax = (powers * significand).float()
        return exact_exponent(amax, fmt) != exact_exponent(amax, floor)

    lifted, ulp = fmt.lifted_from, 2.0**-23
    below = torch.linspace(1, lifted - ulp, 97, dtype=torch.float64).mul(2**23).floor().div(2**23)
    for significand in {1.0, lifted - ulp, *below.tolist()}:
        assert not differs(significand).any()
    if lifted < 2:
        assert differs(lifted).all() and differs(2 - ulp).all()


def test_the_largest_significand_is_known_in_exact_arithmetic() -> None:
    odd = tensor_of(0.0, torch.inf, torch.nan, 2.0)
    for maxima, expected in (((1.0, 2.0**-30, 64.0), 1.0), ((1.0, 3.0, 2.5), 1.5), ((1.75, 2.0**-140), 1.75)):
        with keeping_exponents() as kept:
            for x in (tensor_of(*maxima), odd):
                quantize(x, NARROW, arithmetic="exact")
        assert kept.largest_significand() == expected
    with keeping_exponents() as kept:
        quantize(odd, NARROW, arithmetic="exact")
        quantize(tensor_of(1.0), NARROW, arithmetic="native")
    assert kept.range() is not None and kept.largest_significand() is None


def test_what_is_quantized_unseen_leaves_the_range_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that tells nothing of exponents, as a kernel, proves nothing."""
    with keeping_exponents() as kept:
        quantize(tensor_of(1.0), NARROW)
        assert kept.range() == (-EMAX, -EMAX)
        monkeypatch.setattr(dispatching, "_quantize_by", lambda x, *_: x.clone())
        quantize(tensor_of(1.0), NARROW)
    assert kept.range() is None


def test_scales_that_are_no_powers_of_two_have_no_exponents() -> None:
    assert wanted(tensor_of(1.0), MXFormat("fp4_e2m1", block_size=4, scale="e4m3")) is None
    with keeping_exponents() as kept:
        quantize(tensor_of(1.0), MXFormat("fp4_e2m1", block_size=4, scale="e4m3"))
        quantize(tensor_of(1.0), NARROW)
    assert kept.range() == (-EMAX, -EMAX)


def test_nothing_is_kept_outside() -> None:
    with keeping_exponents() as kept:
        pass
    quantize(tensor_of(1.0), NARROW)
    assert kept.notes == 0 and kept.range() is None
