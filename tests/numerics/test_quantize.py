"""The definition: recorded answers, a plain-Python oracle, hand-worked blocks, native quirks, NaN and Inf."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.numerics_oracle import assert_same, magnitudes, quantize_block, round_to, row
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from mxsweep.numerics import ELEMENT_NAMES, MXFormat, parse_element, parse_scale, quantize
from mxsweep.numerics.reference.rounding import native_definition, round_exact, round_native

VECTORS = Path(__file__).parents[1] / "data" / "microxcaling_vectors.safetensors"
NAN, INF = math.nan, math.inf


# --- What microxcaling answers -----------------------------------------------------------------------------------


def check_recorded(path: Path, arithmetic: str) -> int:
    """Compares every case of a file of recorded answers, and counts them.

    If `arithmetic` is exact, those are left out where it is meant to differ: 16-bit dtypes, and the numbers just
    under powers of two of our own vectors.
    """
    count, wrong = 0, []
    with safe_open(path, "pt") as recorded:
        for case in json.loads(recorded.metadata()["cases"]):
            if arithmetic == "exact" and (case["dtype"] != "float32" or case["input"].startswith("lifts")):
                continue
            fmt = MXFormat(
                case["elem_format"], case["block_size"], scale_bits=case["scale_bits"], rounding=case["round"]
            )
            x, expected = recorded.get_tensor(case["input"]), recorded.get_tensor(case["output"])
            y = quantize(x, fmt, case["axis"], arithmetic=arithmetic)
            count += 1
            if y.dtype != expected.dtype or not torch.equal(y.nan_to_num(777.0), expected.nan_to_num(777.0)):
                wrong.append(case)
    assert not wrong, f"{len(wrong)} of {count} differ, the first: {wrong[0]}"
    return count


@pytest.mark.parametrize(("arithmetic", "count"), [("native", 1616), ("exact", 592)])
def test_golden_cases(shared_dir: Path, arithmetic: str, count: int) -> None:
    path = shared_dir / "golden" / "microxcaling.safetensors"
    if not path.is_file():
        pytest.skip(f"no golden file at {path}")
    assert check_recorded(path, arithmetic) == count


@pytest.mark.parametrize("arithmetic", ["native", "exact"])
def test_own_vectors(arithmetic: str) -> None:
    assert check_recorded(VECTORS, arithmetic) >= 50


# --- The exact definition against the oracle -------------------------------------------------------------------


def probes(grid: list[float]) -> torch.Tensor:
    """Every value of a grid, every midpoint, the float32 numbers beside them, and some beyond the largest."""
    values = torch.tensor(grid, dtype=torch.float64)
    points = torch.cat((values, (values[1:] + values[:-1]) / 2, values[-1:] * torch.tensor([1.01, 1.25, 8.0])))
    points = points.float()
    beside = [torch.nextafter(points, torch.full_like(points, towards)) for towards in (INF, -INF)]
    magnitude = torch.cat((points, *beside)).abs()
    return torch.cat((magnitude, -magnitude))


@pytest.mark.parametrize("rounding", ["nearest", "even", "floor"])
@pytest.mark.parametrize(
    "name", (*ELEMENT_NAMES, "fp3_e1m1", "fp8_e3m4", "fp6_e5m0", "fp12_e6m5", "int11", "mint2", "mint8")
)
def test_elements_round_to_the_nearest_code(name: str, rounding: str) -> None:
    element = parse_element(name)
    grids = [magnitudes(element, negative) for negative in (False, True)]
    a = torch.cat([probes(grid) for grid in grids])
    expected = torch.tensor([round_to(grids[value < 0], value, rounding) for value in a.tolist()])
    assert_same(round_exact(a, element, rounding), expected)


@pytest.mark.parametrize("name", ["e5m3", "e4m3"])
def test_scales_round_to_nearest_even(name: str) -> None:
    scale = parse_scale(name)
    grid = magnitudes(scale)
    a = probes(grid).abs()
    assert_same(round_exact(a, scale, "even"), torch.tensor([round_to(grid, value, "even") for value in a.tolist()]))


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_fp8_even_is_torchs_cast(name: str, dtype: torch.dtype) -> None:
    element = parse_element(name)
    a = probes(magnitudes(element)).clamp(-element.largest, element.largest)  # torch does not saturate
    assert_same(round_exact(a, element, "even"), a.to(dtype).float())


FORMATS = [
    MXFormat("fp4_e2m1", 4),
    MXFormat("fp8_e4m3", 4, scale_bits=4),
    MXFormat("fp4_e3m0", 4, rounding="even"),
    MXFormat("int4", 4, rounding="floor", scale_rounding="ceil"),
    MXFormat("int2", 4, scale_rounding="even"),
    MXFormat("mint4", 4),
    MXFormat("mint3", 4, rounding="even", scale_bits=5),
    MXFormat("mint8", 4, rounding="floor", symmetric=False),
    MXFormat("fp6_e2m3", 4, scale_rounding="even"),
    MXFormat("fp6_e3m2", 4, scale_rounding="rceil", rounding="even"),
    MXFormat("fp4_e2m1", 4, scale="e5m3"),
    MXFormat("fp8_e5m2", 4, scale="e4m3"),
    MXFormat("int8", 4, scale="fp32", rounding="even"),
    MXFormat("fp4_e2m1", 4, symmetric=False, rounding="even"),
    MXFormat("int3", 4, "e5m3", symmetric=False),
]
# Every float32 with a sign, around powers of two, in the range where a midpoint's halves are exact.
MANTISSAS = st.sampled_from([0, 1, 2, 2**21, 2**22 - 1, 2**22, 2**22 + 1, 3 * 2**21, 2**23 - 2, 2**23 - 1])
FINITE = st.builds(
    lambda sign, exponent, mantissa: sign * 2.0**exponent * (1 + mantissa / 2**23),
    st.sampled_from([-1.0, 1.0]),
    st.one_of(st.integers(-6, 3), st.integers(-124, 127)),
    MANTISSAS | st.integers(0, 2**23 - 1),
)
SUBNORMAL = st.builds(lambda bits: bits * 2.0**-149, st.integers(-(2**23), 2**23))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_exact_blocks_are_the_oracles(fmt: MXFormat) -> None:
    values = FINITE | st.just(0.0) if not fmt.symmetric else FINITE | SUBNORMAL | st.sampled_from([0.0, NAN, INF])

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=8))
    def check(blocks: list[list[float]]) -> None:
        y = quantize(torch.tensor(blocks), fmt, arithmetic="exact")
        assert_same(y, torch.tensor([quantize_block(block, fmt) for block in blocks]))

    check()


@pytest.mark.parametrize("scale_rounding", ["floor", "even", "ceil", "rceil"])
def test_scales_of_maxima_around_every_power_of_two(scale_rounding: str) -> None:
    powers = torch.tensor([2.0**exponent for exponent in range(-149, 128)])
    sides = [torch.nextafter(powers, torch.full_like(powers, towards)) for towards in (INF, 0.0)]
    largest = torch.cat((powers, *sides, powers[:-2] * 1.5, powers[:-2] * 1.75, powers[:-2] * 6))
    largest = largest[largest.isfinite() & (largest > 0)]
    for element in ("fp4_e2m1", "int8"):
        fmt = MXFormat(element, 1, scale_rounding=scale_rounding)
        # One exponent below the top stays representable; a block of one shows its scale through its own value.
        expected = [quantize_block([value], fmt) for value in largest.tolist()]
        assert_same(quantize(largest[:, None], fmt, arithmetic="exact"), torch.tensor(expected))


# --- Hand-worked blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "block", "expected"),
    [
        # amax 6 = 1.5 * 2^2, so the scale is 2^(2-2) = 1; 2.5 and 5 are ties between neighbours.
        (MXFormat("fp4_e2m1"), row(6, 2.5, 5, 0.25), row(6, 3, 6, 0.5)),
        (MXFormat("fp4_e2m1", rounding="even"), row(6, 2.5, 5, 0.25), row(6, 2, 4, 0)),
        (MXFormat("fp4_e2m1", rounding="floor"), row(6, -2.9, 5.9, 0.4), row(6, -2, 4, 0)),
        # amax 7.9: the scale is 1, and 7.9 saturates at 6.
        (MXFormat("fp4_e2m1"), row(7.9, -7.0, 1.2), row(6, -6, 1)),
        # From 1.75 * 2^2 up, "even" carries into the exponent: the scale is 2, and 3.5 rounds to 4, times 2.
        (MXFormat("fp4_e2m1", scale_rounding="even"), row(7, 2.9), row(8, 3)),
        (MXFormat("fp4_e2m1", scale_rounding="even"), row(6.99, 2.9), row(6, 3)),
        (MXFormat("fp4_e2m1", scale_rounding="ceil"), row(4.1, 3.1), row(4, 3)),
        # 6.1 / 6 lies above 1, so "rceil" takes the scale 2; 6 / 6 does not.
        (MXFormat("fp4_e2m1", scale_rounding="rceil"), row(6.1, 0.4), row(6, 0)),
        (MXFormat("fp4_e2m1", scale_rounding="rceil"), row(6.0, 0.4), row(6, 0.5)),
        # int4 holds quarters up to 1.75; amax 1.9 has the scale 1.
        (MXFormat("int4"), row(1.9, 0.125, -0.6), row(1.75, 0.25, -0.5)),
        (MXFormat("int2"), row(1.9, -0.5, 0.49), row(1, -1, 0)),
        # e3m0 has powers of two only; 3 and 0.375 are ties: away from zero, or to the even code.
        (MXFormat("fp4_e3m0"), row(16, 3, 0.375, 0.75, 0.125), row(16, 4, 0.5, 1, 0.25)),
        (MXFormat("fp4_e3m0", rounding="even"), row(16, 3, 0.375, 0.75, 0.125), row(16, 2, 0.5, 0.5, 0)),
        # Scale bits 4 hold 2^-7 to 2^7: 2^10 wants 2^8, 2^-9 wants 2^-11 and gets 2^-7.
        (MXFormat("fp4_e2m1", scale_bits=4), row(2.0**10, 1), row(NAN, NAN)),
        (MXFormat("fp4_e2m1", scale_bits=4), row(2.0**-8, 2.0**-10), row(2.0**-8, 0)),
        # e5m3: 5 / 6 = 0.8333 rounds to 0.8125 = 1.625 / 2; 5 / 0.8125 = 6.15 saturates.
        (MXFormat("fp4_e2m1", scale="e5m3"), row(5, 0), row(4.875, 0)),
        (MXFormat("fp4_e2m1", scale="fp32"), row(3.0, 1.0), row(3.0, 1.0)),
        # Midpoint 10, differences -2 to 2: int3 with scale 2 holds -3 to 3 in steps of 1.
        (MXFormat("int3", symmetric=False), row(8, 9.4, 12), row(8, 9, 12)),
        # NVFP4: g = 448 * 6 / 6 = 448, s = e4m3(6 * 448 / 6) = 448, t = 1.
        (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), row(6, 2.4, 0.3), row(6, 2, 0.5)),
        (MXFormat("fp4_e2m1"), row(0, 0, 0), row(0, 0, 0)),
        (MXFormat("fp4_e2m1", scale="e5m3"), row(0, 0, 0), row(0, 0, 0)),
        (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), row(0, 0, 0), row(0, 0, 0)),
    ],
    ids=[
        "ties away", "ties even", "toward zero", "saturation", "even scale carries", "even scale stays", "ceil scale",
        "rceil scale above", "rceil scale at", "int4", "int2", "e3m0 away", "e3m0 even code", "scale over the top",
        "scale at the bottom", "e5m3", "fp32", "asymmetric", "nvfp4", "zeros", "zeros e5m3", "zeros nvfp4",
    ],
)  # fmt: skip
@pytest.mark.parametrize("arithmetic", ["native", "exact"])
def test_hand_worked(fmt: MXFormat, block: torch.Tensor, expected: torch.Tensor, arithmetic: str) -> None:
    assert_same(quantize(block, fmt, arithmetic=arithmetic), expected)


def test_nvfp4_scales_blocks_relative_to_the_tensor() -> None:
    x = torch.tensor([[24.0, 12.0], [3.0, 0.7]])
    fmt = MXFormat("fp4_e2m1", 2, "e4m3", tensor_scale=True)
    # g = 2688 / 24 = 112. Second row: 3 * 112 / 6 = 56 = 1.75 * 2^5, held exactly; t = 56 / 112 = 0.5.
    assert_same(quantize(x, fmt), torch.tensor([[24.0, 12.0], [3.0, 0.75]]))


def test_nvfp4_holds_tiny_tensors() -> None:
    x = torch.tensor([[2.0**-140, 2.0**-141], [0.0, 0.0]])  # 2688 / amax is beyond float32
    y = quantize(x, MXFormat("fp4_e2m1", 2, "e4m3", tensor_scale=True))
    assert y.isfinite().all() and (y[1] == 0).all()


# --- Native arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "even", "floor"])
@pytest.mark.parametrize("name", [name for name in ELEMENT_NAMES if MXFormat(name).has_native_arithmetic])
def test_fast_native_elements_are_the_definition(name: str, rounding: str) -> None:
    element = parse_element(name)
    half_step = element.smallest_subnormal / 2
    a = torch.cat((probes(magnitudes(element)), row(half_step * (1 - 2.0**-24), NAN), torch.randn(4096) * 3))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        quotients = a.clamp(-element.largest, element.largest).to(dtype)
        assert_same(round_native(quotients, element, rounding), native_definition(quotients, element, rounding))


def test_native_lifts_bfloat16_maxima_just_under_a_power_of_two() -> None:
    x = torch.tensor([0.0155, 0.01], dtype=torch.bfloat16)  # log2 is -6.01, in bfloat16 -6
    native, exact = (quantize(x, MXFormat("fp4_e2m1"), arithmetic=arithmetic) for arithmetic in ("native", "exact"))
    assert native[0] == 2.0**-6
    assert exact[0] == 6 * 2.0**-9


def test_native_float16_zeros_become_nan() -> None:
    zeros = torch.zeros(4, dtype=torch.float16)
    assert quantize(zeros, MXFormat("fp4_e2m1")).isnan().all()
    assert (quantize(zeros, MXFormat("fp4_e2m1"), arithmetic="exact") == 0).all()


def test_native_rounds_up_just_below_half_the_smallest_step() -> None:
    x = row(4.0, 0.25 * (1 - 2.0**-24))
    for rounding in ("nearest", "even"):
        fmt = MXFormat("fp4_e2m1", rounding=rounding)
        assert quantize(x, fmt, arithmetic="native")[1] == 0.5
        assert quantize(x, fmt, arithmetic="exact")[1] == 0


# --- NaN and Inf ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "fmt",
    [
        MXFormat("fp4_e2m1", 4),
        MXFormat("int8", 4, rounding="even"),
        MXFormat("fp8_e5m2", 4, rounding="floor", scale_rounding="even"),
        MXFormat("fp4_e2m1", 4, "e5m3"),
        MXFormat("fp4_e2m1", 4, "fp32", symmetric=False),
        MXFormat("fp4_e3m0", 4, rounding="stochastic"),
    ],
    ids=str,
)
@pytest.mark.parametrize("arithmetic", ["native", "exact"])
def test_what_is_not_finite_takes_its_block_and_no_other(
    fmt: MXFormat, bad: float, dtype: torch.dtype, arithmetic: str
) -> None:
    x = torch.tensor([1.0, bad, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], dtype=dtype)
    y = quantize(x, fmt, arithmetic=arithmetic, generator=1)
    assert y[:4].isnan().all()
    assert y[4:].isfinite().all()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_takes_everything_under_its_tensor_scale(bad: float) -> None:
    x = torch.ones(2, 8)
    x[0, 0] = bad
    fmt = MXFormat("fp4_e2m1", 4, "e4m3", tensor_scale=True)
    assert quantize(x, fmt).isnan().all()
    per_row = quantize(x, fmt, tensor_dims=(-1,))
    assert per_row[0].isnan().all() and (per_row[1] == 1).all()
