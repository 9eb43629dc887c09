"""Tests of other libraries' rules for scales, of scales' bounds, of ties, of maxima's precision and of Inf.

The oracle rounds rational numbers, one operation after the other, so that it shares nothing with torch's arithmetic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits

from mxsweep.formats.scale_rules import SCALE_FLOORS, SCALE_RULE_NAMES
from mxsweep.numerics import MXFormat, block_statistics, decode, encode, quantize
from mxsweep.solvers.block_scales import BlockScales
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISION = {torch.float32: (24, -149), torch.bfloat16: (8, -133)}  # bits of a significand, exponent of the last one


def rounded(value: Fraction, precision: int, last: int, away: bool = False) -> Fraction:
    """Return the value with so many significant bits, none below 2^last; ties to even."""
    if value == 0:
        return Fraction(0)
    exponent = 0
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    unit = Fraction(2) ** max(exponent - precision + 1, last)
    return round(value / unit) * unit


def f32(value: Fraction) -> Fraction:
    return rounded(value, 24, -149)


def e4m3(value: Fraction) -> Fraction:
    return rounded(min(value, Fraction(448)), 4, -9)


def fp4(value: Fraction) -> Fraction:
    return max(min(rounded(value, 2, -1), Fraction(6)), Fraction(-6))


def by_hand(rule: str, x: list[Fraction], tensor_amax: Fraction | None, dtype: torch.dtype) -> list[Fraction]:
    """Return what a block becomes in NVFP4 by a rule: formulas of the libraries, each operation rounded by itself."""

    def own(value: Fraction) -> Fraction:
        return rounded(value, *PRECISION[dtype])

    a, bounds = max(map(abs, x)), Fraction(2688)
    g = d = Fraction(1)
    if tensor_amax is not None:
        d = f32(tensor_amax / bounds)
        g = f32(bounds / tensor_amax) if rule == "mxsweep" else f32(bounds * f32(1 / tensor_amax))
        if rule == "compressed_tensors":
            g = own(bounds * own(1 / tensor_amax))
    if rule == "mxsweep":
        s = e4m3(max(f32(f32(a * g) / 6), Fraction(1, 512)))
        by = read = f32(s / g)
    elif rule == "torchao":
        s = e4m3(max(f32(f32(a / 6) / d), Fraction(1, 64)))
        by, read = f32(f32(1 / d) / s), f32(s * d)
        return [f32(fp4(f32(v * by)) * read) for v in x]
    elif rule == "modelopt":
        s = e4m3(max(f32(a / f32(6 * d)), Fraction(1, 512)))
        by = read = f32(s * d)
    elif rule == "compressed_tensors":
        s = e4m3(f32(g * own(a / 6))) or Fraction(1, 8)
        by = read = f32(s / g)
    elif rule == "quark":
        s = e4m3(f32(f32(a / 6) / d))
        by = read = f32(s * d)
    else:
        s = e4m3(f32(g * f32(a * f32(Fraction(1, 6)))))
        if s == 0:
            return [Fraction(0)] * len(x)
        product = f32(s * f32(1 / g))
        by, read = f32(1 / product), f32(s / g) if rule == "vllm" else f32(1 / f32(1 / product))
        return [f32(fp4(f32(v * by)) * read) for v in x]
    return [f32(fp4(f32(v / by)) * read) if s else Fraction(0) for v in x]


def values(dtype: torch.dtype) -> torch.Tensor:
    """Blocks over seven decades, ties among them, one that is zero."""
    generator = torch.Generator().manual_seed(3)
    ordinary = torch.randn(60, 16, generator=generator) * 10 ** torch.empty(60, 1).uniform_(-6, 1, generator=generator)
    ties = torch.randint(-24, 25, (20, 16), generator=generator) / 4
    return torch.cat([ordinary, ties, torch.zeros(1, 16)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tensor_scale", [True, False])
@pytest.mark.parametrize("rule", SCALE_RULE_NAMES)
def test_a_rule_is_its_formulas(rule: str, tensor_scale: bool, dtype: torch.dtype) -> None:
    x = values(dtype)
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=tensor_scale, scale_rule=rule)
    tensor_amax = Fraction(x.abs().max().item()) if tensor_scale else None
    expected = [by_hand(rule, [Fraction(v) for v in row], tensor_amax, dtype) for row in x.tolist()]
    y = quantize(x, fmt)
    assert torch.equal(y, torch.tensor([[float(v) for v in row] for row in expected]).to(dtype))
    if rule not in ("mxsweep", "modelopt"):  # which differs in a rounding of d alone
        assert not torch.equal(y, quantize(x, replace(fmt, scale_rule="mxsweep")))


@pytest.mark.parametrize("four_over_six", [False, True])
@pytest.mark.parametrize("rule", SCALE_RULE_NAMES)
def test_codes_say_what_a_rule_computes(rule: str, four_over_six: bool) -> None:
    for floor, (scale, tensor_scale), element, dtype, dims in itertools.product(
        SCALE_FLOORS, (("e4m3", True), ("e4m3", False), ("e5m3", True), ("fp32", False)), ("fp4_e2m1", "int8"), DTYPES,
        (None, (-1,)),
    ):  # fmt: skip
        fmt = MXFormat(
            element, 16, scale, tensor_scale=tensor_scale, scale_rule=rule, scale_floor=floor,
            four_over_six=four_over_six,
        )  # fmt: skip
        assert MXFormat.parse(str(fmt)) == fmt
        x = torch.cat([adversarial(1536, 5).view(6, -1).to(dtype), torch.zeros(1, 256, dtype=dtype)])
        assert_same_bits(decode(encode(x, fmt, tensor_dims=dims)), quantize(x, fmt, tensor_dims=dims))


@pytest.mark.parametrize(
    ("rule", "floor", "expected"),
    [
        ("mxsweep", "subnormal", 2.0**-9), ("mxsweep", "normal", 2.0**-6), ("mxsweep", "none", 0.0),
        ("modelopt", "auto", 2.0**-9), ("torchao", "auto", 2.0**-6), ("torchao", "subnormal", 2.0**-9),
        ("vllm", "auto", 0.0), ("quark", "auto", 0.0), ("compressed_tensors", "auto", 0.125),
        ("compressed_tensors", "subnormal", 2.0**-9),
    ],
)  # fmt: skip
def test_floors(rule: str, floor: str, expected: float) -> None:
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", scale_rule=rule, scale_floor=floor)
    x = torch.full((1, 16), 2.0**-12)
    encoded = encode(x, fmt)
    assert fmt.scale_format.decode(int(encoded.scales)) == expected
    y = quantize(x, fmt)
    assert_same_bits(y, decode(encoded))
    if expected == 0:
        assert (y == 0).all() and not encoded.codes.any()
    clamped = block_statistics(x, fmt).blocks_scale_clamped
    assert clamped == 1


@pytest.mark.parametrize("rule", SCALE_RULE_NAMES)
def test_a_scale_that_is_read_back_as_zero_makes_zeros(rule: str) -> None:
    """A block of zeros beside values so small that d is the smallest number, and s d is none."""
    x = torch.zeros(2, 16)
    x[0, 1] = 1e-41
    y = quantize(x, MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, scale_rule=rule))
    assert y.isfinite().all() and (y[1] == 0).all()


def test_fields_without_a_meaning_are_normalized() -> None:
    assert MXFormat("fp4_e2m1", scale_rule="torchao", scale_floor="none") == MXFormat("fp4_e2m1")
    assert MXFormat("int8", scale_emax=False) == MXFormat("int8")
    assert MXFormat("fp4_e2m1", scale_rounding="even1") == MXFormat("fp4_e2m1", scale_rounding="even")
    nvfp4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    assert replace(nvfp4, scale_floor="subnormal", scale_emax=False) == nvfp4
    torchao = replace(nvfp4, scale_rule="torchao", scale_floor="normal")
    assert str(torchao) == "fp4_e2m1-b16-e4m3-tensor-rule_torchao"
    more = replace(torchao, scale_floor="none", inf="saturate", four_over_six=True, rounding="ties_to_zero")
    assert str(more) == ("fp4_e2m1-b16-e4m3-tensor-round_ties_to_zero-rule_torchao-floor_none-inf_saturate-4over6")
    assert str(MXFormat("fp4_e2m1", scale_emax=False, scale_rounding="even7")) == (
        "fp4_e2m1-b32-e8m0-scale_even7-noemax"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_rule": "mine"}, r"^scale_rule: 'mine' is not known; allowed: mxsweep, torchao, modelopt, "),
        ({"scale_floor": "low"}, r"^scale_floor: 'low' is not known; allowed: auto, subnormal, normal, none$"),
        ({"scale_emax": 1}, r"^scale_emax: 1 is not a yes or no; allowed: true, false$"),
        ({"scale_emax": False, "scale_rounding": "rceil"}, r"^scale_emax: false does not go with scale_rounding rceil"),
        ({"scale_rounding": "even23"}, r"^scale_rounding: 'even23' is not known; allowed: floor, even, .* to even22$"),
        ({"inf": "zero"}, r"^inf: 'zero' is not known; allowed: nan_block, saturate$"),
        ({"four_over_six": True}, r"^four_over_six: true does not go with scale 'e8m0'; allowed: scale e5m3, e4m3, f"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MXFormat("fp4_e2m1", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "element", ["fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2", "fp4_e3m0", "int8", "int4"]
)
def test_ties_go_to_zero_and_nothing_else_moves(element: str) -> None:
    fmt = MXFormat(element, 32, rounding="ties_to_zero")
    grid = [value for value in fmt.element_format.values() if value >= 0]
    ties = torch.tensor([(low + high) / 2 for low, high in itertools.pairwise(grid)], dtype=torch.float64)
    lower, upper = torch.tensor(grid[:-1]), torch.tensor(grid[1:])
    largest = torch.full((len(ties), 1), fmt.element_format.largest)

    def become(x: torch.Tensor) -> torch.Tensor:
        block = torch.cat([x[:, None], -x[:, None], largest], dim=1)  # under the scale 1
        y = quantize(block, replace(fmt, block_size=0))
        assert torch.equal(y[:, 0], -y[:, 1])
        return y[:, 0]

    at = ties.float()
    assert torch.equal(at.double(), ties)
    assert torch.equal(become(at), lower)
    assert torch.equal(become(torch.nextafter(at, torch.tensor(math.inf))), upper)
    assert torch.equal(become(torch.nextafter(at, torch.tensor(0.0))), lower)
    for values in (torch.tensor(grid), torch.zeros(1)):
        y = quantize(torch.cat([values, largest[0]])[None], replace(fmt, block_size=0))[0, :-1]
        assert torch.equal(y, values)


@pytest.mark.parametrize("bits", [0, 1, 3, 7, 22])
def test_a_maximum_is_rounded_to_bits_of_its_own(bits: int) -> None:
    """The exponent is that of the maximum rounded to so many mantissa bits, ties up."""
    fmt = MXFormat("fp4_e2m1", 0, scale_rounding=f"even{bits}")
    edge = 2 - 2.0 ** -(bits + 1)  # the least that rounds up to 2
    for amax, exponent in ((edge, -1), (math.nextafter(edge, 0), -2), (1.0, -2), (2.0, -1)):
        amax = float(torch.tensor(amax, dtype=torch.float64).float()) if amax != math.nextafter(edge, 0) else amax
        x = torch.tensor([[amax]], dtype=torch.float64).float()
        if amax == math.nextafter(edge, 0):
            x = torch.nextafter(torch.tensor([[edge]]), torch.tensor(0.0))
        assert int(encode(x, fmt).scales) - 127 == exponent


def test_a_scale_without_emax_is_the_maximums_power_of_two() -> None:
    fmt = MXFormat("fp8_e4m3", 0, scale_emax=False, rounding="even")
    x = torch.tensor([[3.0, 0.1, -2.9]])
    encoded = encode(x, fmt)
    assert int(encoded.scales) - 127 == 1
    expected = (x / 2).to(torch.float8_e4m3fn).float() * 2
    assert torch.equal(quantize(x, fmt, arithmetic="native"), expected)
    assert torch.equal(decode(encoded), expected)
    assert not fmt.has_native_arithmetic
    assert block_statistics(x, fmt).exponent_max == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "fmt",
    [
        MXFormat("fp4_e2m1", 16, inf="saturate"),
        MXFormat("fp8_e4m3", 16, inf="saturate", symmetric=False),
        MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, inf="saturate"),
        MXFormat("int4", 16, "fp32", inf="saturate"),
    ],
    ids=str,
)
def test_inf_counts_as_the_largest_value(fmt: MXFormat, dtype: torch.dtype) -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 3], x[1, 20], x[2, 5] = math.inf, -math.inf, math.nan
    finite = x.clone()
    finite[0, 3], finite[1, 20] = torch.finfo(dtype).max, torch.finfo(dtype).min
    y = quantize(x, fmt, tensor_dims=(-1,))
    assert_same_bits(y, quantize(finite, replace(fmt, inf="nan_block"), arithmetic="exact", tensor_dims=(-1,)))
    assert_same_bits(y, decode(encode(x, fmt, tensor_dims=(-1,))))
    assert not y[:2].isnan().any() and y[2, :16].isnan().all()
    assert quantize(x, replace(fmt, inf="nan_block"), tensor_dims=(-1,))[0, :16].isnan().all()


def test_a_tensor_scale_over_e5m3() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 1e-6
    fmt = MXFormat("fp4_e2m1", 16, "e5m3", tensor_scale=True)
    g = torch.tensor(114688.0 * 6) / x.abs().max()
    assert encode(x, fmt).tensor_scale == g
    assert encode(x, fmt).scales.max() == 0xFE  # the largest value is some block's scale
    without = (quantize(x, replace(fmt, tensor_scale=False)) - x).square().sum()
    assert (quantize(x, fmt) - x).square().sum() < 0.2 * without  # which has subnormals alone


@pytest.mark.parametrize("rule", SCALE_RULE_NAMES)
def test_scales_held_fixed_are_applied_by_the_rule(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(6, 40, generator=generator) * torch.tensor([1e-4, 1e-3, 1, 1, 3, 9])[:, None]
    inputs = torch.randn(200, 40, generator=generator)
    for tensor_scale in (False, True):
        fmt = MXFormat("fp4_e2m1", 16, "e4m3", rounding="even", tensor_scale=tensor_scale, scale_rule=rule)
        scales = BlockScales.of(w, fmt)
        assert_same_bits(scales.quantize(w, fmt), quantize(w, fmt))
        assert_same_bits(decode(scales.encode(w, fmt)), quantize(w, fmt))
        searched = search_scales(w, fmt)
        y = decode(searched.encode(w, fmt))
        assert_same_bits(y, searched.quantize(w, fmt))
        assert (y - w).square().sum() <= (quantize(w, fmt) - w).square().sum()
        chosen = gptq(w, inputs.T @ inputs, fmt, searched)
        assert_same_bits(decode(searched.encode_chosen(chosen, fmt)).abs(), chosen.abs())


def test_searched_scales_are_no_worse_than_the_better_of_two() -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, four_over_six=True)
    errors = [(y - w).square().view(-1, 16).sum(1) for y in (search_scales(w, fmt).quantize(w, fmt), quantize(w, fmt))]
    assert (errors[0] <= errors[1] * 1.000001).all() and errors[0].sum() < errors[1].sum()
