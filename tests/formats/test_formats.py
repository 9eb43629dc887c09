"""Formats as data: encodings, checks, names and bits, without torch wherever torch is not the reference."""

import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxsweep.numerics import (
    ELEMENT_NAMES,
    ROUNDINGS,
    SCALE_NAMES,
    SCALE_ROUNDINGS,
    MXFormat,
    backend_problem,
    parse_element,
    parse_scale,
)

OTHER_ELEMENTS = (
    "fp3_e1m1",
    "fp5_e2m2",
    "fp8_e3m4",
    "fp9_e4m4",
    "fp6_e5m0",
    "fp8_e6m1",
    "fp16_e5m10",
    "int5",
    "mint2",
    "mint8",
)

# name: (bits, exponent of the largest magnitude, largest, smallest normal, smallest positive, count of finite values)
FACTS = {
    "fp8_e5m2": (8, 15, 57344.0, 2.0**-14, 2.0**-16, 247),
    "fp8_e4m3": (8, 8, 448.0, 2.0**-6, 2.0**-9, 253),
    "fp6_e3m2": (6, 4, 28.0, 0.25, 0.0625, 63),
    "fp6_e2m3": (6, 2, 7.5, 1.0, 0.125, 63),
    "fp4_e2m1": (4, 2, 6.0, 1.0, 0.5, 15),
    "fp4_e3m0": (4, 4, 16.0, 0.25, 0.25, 15),
    "int8": (8, 0, 1.984375, 1.0, 2.0**-6, 255),
    "int4": (4, 0, 1.75, 1.0, 0.25, 15),
    "int3": (3, 0, 1.5, 1.0, 0.5, 7),
    "int2": (2, 0, 1.0, 1.0, 1.0, 3),
    "mint4": (4, 0, 0.875, 0.5, 0.125, 16),
}


@pytest.mark.parametrize("name", ELEMENT_NAMES)
def test_element_facts_are_those_of_the_specifications(name: str) -> None:
    element = parse_element(name)
    bits, max_exponent, largest, smallest_normal, smallest, count = FACTS[name]
    assert element.bits == bits
    assert element.max_exponent == max_exponent
    assert element.largest == largest
    assert element.smallest_normal == smallest_normal
    assert element.smallest_subnormal == smallest
    assert len(element.values()) == count


@pytest.mark.parametrize("name", (*ELEMENT_NAMES, *OTHER_ELEMENTS))
def test_every_code_decodes_as_the_definition_says(name: str) -> None:
    element = parse_element(name)
    for code in range(2**element.bits):
        text = f"{code:0{element.bits}b}"
        sign = -1 if text[0] == "1" else 1
        if element.is_integer:
            value = (int(text[1:], 2) - (sign < 0) * 2 ** (element.bits - 1)) / 2 ** (element.bits - 2)
            value = value / 2 if name.startswith("mint") else math.nan if value == -2 else value
        else:
            exponent = int(text[1 : 1 + element.exponent_bits], 2)
            fraction = int(text[1 + element.exponent_bits :] or "0", 2) / 2**element.mantissa_bits
            bias = 2 ** (element.exponent_bits - 1) - 1
            value = sign * (2.0 ** (exponent - bias) * (1 + fraction) if exponent else 2.0 ** (1 - bias) * fraction)
            if element.exponent_bits >= 5 and exponent == 2**element.exponent_bits - 1:
                value = math.nan if fraction else sign * math.inf
            if name == "fp8_e4m3" and set(text[1:]) == {"1"}:
                value = math.nan
        decoded = element.decode(code)
        assert decoded == value or (math.isnan(decoded) and math.isnan(value)), text


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)],
    ids=["e4m3", "e5m2"],
)
def test_fp8_decodes_as_torch(name: str, dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    ours = torch.tensor([parse_element(name).decode(code) for code in range(256)])
    torch.testing.assert_close(ours, codes.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_e8m0_decodes_as_torch() -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    ours = torch.tensor([parse_scale("e8m0").decode(code) for code in range(256)])
    torch.testing.assert_close(ours, codes.view(torch.float8_e8m0fnu).float(), rtol=0, atol=0, equal_nan=True)


def test_e4m3_scale_decodes_as_torch() -> None:
    codes = torch.arange(128, dtype=torch.int32).to(torch.uint8)
    ours = torch.tensor([parse_scale("e4m3").decode(code) for code in range(128)])
    torch.testing.assert_close(ours, codes.view(torch.float8_e4m3fn).float(), rtol=0, atol=0, equal_nan=True)


def test_e5m3_is_unsigned_and_uses_its_top_exponent() -> None:
    scale = parse_scale("e5m3")
    values = [scale.decode(code) for code in range(256)]
    assert math.isnan(values[255])
    assert values[:255] == sorted(set(values[:255]))
    for code, value in enumerate(values[:255]):
        exponent, mantissa = code >> 3, code & 7
        expected = 2.0 ** (exponent - 15) * (1 + mantissa / 8) if exponent else 2.0**-14 * mantissa / 8
        assert value == expected
    assert scale.largest == values[254] == 114688.0
    assert scale.smallest_subnormal == values[1] == 2.0**-17
    assert values[8] == 2.0**-14


def test_fp32_scale_decodes_bits() -> None:
    scale = parse_scale("fp32")
    assert scale.decode(0x3F800000) == 1.0
    assert scale.decode(1) == scale.smallest_subnormal == 2.0**-149
    assert scale.decode(0x7F7FFFFF) == scale.largest


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="code: 16"):
        parse_element("fp4_e2m1").decode(16)
    with pytest.raises(ValueError, match="code: 128"):
        parse_scale("e4m3").decode(128)


def test_e3m0_holds_zero_and_powers_of_two() -> None:
    assert [v for v in parse_element("fp4_e3m0").values() if v >= 0] == [0, 0.25, 0.5, 1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fp4",
        "fp4_e2m2",
        "fp9_e8m0",
        "fp17_e5m11",
        "fp2_e0m1",
        "int1",
        "int17",
        "int04",
        "mint1",
        "mint17",
        "mint04",
        "float16",
        "mxfp4",
        " int8",
    ],
)
def test_unknown_elements_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^element: ") as error:
        MXFormat(name)
    assert repr(name) in str(error.value) and "fp4_e2m1" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("element", 4, "string"),
        ("block_size", -1, "whole number"),
        ("block_size", True, "whole number"),
        ("block_size", 16.0, "whole number"),
        ("block_size", (16, 0), "rows, columns"),
        ("block_size", (16, 16, 16), "rows, columns"),
        ("scale", "e8m1", "e8m0, e5m3, e4m3, fp32"),
        ("scale_bits", 1, "2 to 8"),
        ("scale_bits", 9, "2 to 8"),
        ("scale_bits", True, "2 to 8"),
        ("rounding", "up", "nearest, even, floor, stochastic"),
        ("scale_rounding", "nearest", "floor, even, ceil, rceil"),
        ("symmetric", "no", "true, false"),
        ("tensor_scale", 1, "true, false"),
    ],
)
def test_bad_fields_are_refused_by_name_value_and_choice(field: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: ") as error:
        MXFormat(**{"element": "fp4_e2m1", field: value})  # type: ignore[arg-type]
    assert repr(value) in str(error.value)
    assert f"allowed: {allowed}" in str(error.value) or allowed in str(error.value).split("allowed: ")[1]


def test_bad_scale_bits_are_refused_where_they_mean_nothing_too() -> None:
    with pytest.raises(ValueError, match=r"^scale_bits: 40"):
        MXFormat("fp4_e2m1", scale="fp32", scale_bits=40)


def test_formats_are_frozen_and_hashable() -> None:
    fmt = MXFormat("fp4_e2m1")
    with pytest.raises(FrozenInstanceError):
        fmt.block_size = 16  # type: ignore[misc]
    assert {fmt: 1}[MXFormat("fp4_e2m1")] == 1


def test_spellings_of_one_format_are_one_format() -> None:
    assert MXFormat("mxfp4_e2m1") == MXFormat("fp4_e2m1")
    assert MXFormat("mxint8").element == "int8"
    assert MXFormat("int8", [16, 16]) == MXFormat("int8", (16, 16))  # type: ignore[arg-type]
    assert MXFormat("int8", scale="e5m3", scale_bits=4, scale_rounding="ceil") == MXFormat("int8", scale="e5m3")


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        (MXFormat("mxfp4_e2m1"), "fp4_e2m1-b32-e8m0"),
        (MXFormat("int8", 0), "int8-b0-e8m0"),
        (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), "fp4_e2m1-b16-e4m3-tensor"),
        (
            MXFormat("fp6_e2m3", (8, 4), "e8m0", 6, "even", "rceil", symmetric=False),
            "fp6_e2m3-b8x4-e8m0-sb6-scale_rceil-round_even-asym",
        ),
    ],
    ids=["default", "whole axis", "nvfp4", "everything"],
)
def test_text(fmt: MXFormat, text: str) -> None:
    assert str(fmt) == text


def test_distinct_formats_have_distinct_texts() -> None:
    choices = product(
        ("fp4_e2m1", "int4"), (0, 32, (16, 16)), SCALE_NAMES, (6, 8), ROUNDINGS, SCALE_ROUNDINGS, (True, False)
    )
    formats = {MXFormat(*choice) for choice in choices}
    formats |= {replace(fmt, tensor_scale=True) for fmt in formats if fmt.scale == "e4m3"}
    assert len({str(fmt) for fmt in formats}) == len(formats)


_BLOCKS = st.integers(0, 300) | st.tuples(st.integers(1, 300), st.integers(1, 300))
_SCALED = st.sampled_from([(scale, False) for scale in SCALE_NAMES] + [("e4m3", True)])


@given(
    st.sampled_from([*ELEMENT_NAMES, *OTHER_ELEMENTS, "mxfp4_e2m1"]),
    _BLOCKS,
    _SCALED,
    st.integers(2, 8),
    st.sampled_from(ROUNDINGS),
    st.sampled_from(SCALE_ROUNDINGS),
    st.booleans(),
)
def test_a_formats_text_is_read_back(
    element: str,
    block: int | tuple[int, int],
    scaled: tuple[str, bool],
    bits: int,
    rounding: str,
    of_scale: str,
    sym: bool,
) -> None:
    scale, tensor_scale = ("e8m0", False) if element.startswith("mint") else scaled
    fmt = MXFormat(element, block, scale, bits, rounding, of_scale, sym, tensor_scale)
    assert MXFormat.parse(str(fmt)) == fmt


def test_every_choice_of_names_is_read_back() -> None:
    choices = product(
        [*ELEMENT_NAMES, *OTHER_ELEMENTS],
        (0, 32, (16, 1)),
        SCALE_NAMES,
        (2, 8),
        ROUNDINGS,
        SCALE_ROUNDINGS,
        (True, False),
    )
    for choice in choices:
        if choice[2] == "e8m0" or not choice[0].startswith("mint"):
            fmt = MXFormat(*choice)
            assert MXFormat.parse(str(fmt)) == fmt


def test_what_a_text_leaves_out_is_the_default() -> None:
    assert MXFormat.parse("mxfp4_e2m1") == MXFormat("fp4_e2m1")
    assert MXFormat.parse("int4-asym-b16") == MXFormat("int4", 16, symmetric=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^element: '' is not an element format; allowed: fp8_e5m2, "),
        ("fp4_e2m2-b32-e8m0", r"^element: 'fp4_e2m2' is not an element format; allowed: fp8_e5m2, "),
        ("fp4_e2m1-32-e8m0", r"^format: '32' in 'fp4_e2m1-32-e8m0' is not known; allowed: ELEMENT-bSIZE-SCALE, as "),
        ("fp4_e2m1-b32-e8m1", r"^format: 'e8m1' in .* SCALE: e8m0, e5m3, e4m3, fp32$"),
        ("fp4_e2m1-b32-", r"^format: '' in 'fp4_e2m1-b32-' is not known"),
        ("fp4_e2m1-b32 ", r"^format: 'b32 ' in "),
        ("fp4_e2m1-b32-b16", r"^format: 'fp4_e2m1-b32-b16' has a second block_size, 'b16'; allowed: one$"),
        ("fp4_e2m1-b0x4", r"^block_size: \(0, 4\) is not allowed; allowed: a whole number"),
        ("fp4_e2m1-b32-e8m0-sb9", r"^scale_bits: 9 is not allowed; allowed: 2 to 8$"),
        (
            "fp4_e2m1-b32-e8m0-round_up",
            r"^rounding: 'up' is not known; allowed: nearest, even, floor, stochastic, ties_t",
        ),
        (
            "fp4_e2m1-b32-e8m0-scale_up",
            r"^scale_rounding: 'up' is not known; allowed: floor, even, ceil, rceil, even0 to even22$",
        ),
        ("fp4_e2m1-b32-e8m0-tensor", r"^tensor_scale: true does not go with scale 'e8m0'; allowed: scale e5m3, e4m3$"),
        ("mint4-b32-e5m3", r"^scale: 'e5m3' does not go with element mint4; allowed: e8m0$"),
        (4, r"^format: 4 is not a text; allowed: ELEMENT-bSIZE-SCALE"),
    ],
)
def test_texts_of_no_format_are_refused_by_part(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MXFormat.parse(text)


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (MXFormat("fp4_e2m1"), 4.25),
        (MXFormat("fp4_e2m1", 16, scale_bits=6), 4.375),
        (MXFormat("fp6_e2m3", 64), 6.125),
        (MXFormat("fp4_e2m1", 16, "e5m3"), 4.5),
        (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), 4.5),
        (MXFormat("int8", 32, "fp32"), 9.0),
        (MXFormat("fp4_e2m1", 32, symmetric=False), 4.75),
        (MXFormat("fp4_e2m1", (16, 16)), 4.03125),
        (MXFormat("int8", 0), 8.0),
    ],
    ids=str,
)
def test_bits_per_element_count_the_overhead(fmt: MXFormat, bits: float) -> None:
    assert fmt.bits_per_element == bits


@pytest.mark.parametrize(
    ("fmt", "native"),
    [
        (MXFormat("fp4_e2m1"), True),
        (MXFormat("fp4_e3m0", rounding="even"), True),
        (MXFormat("fp4_e2m1", scale="e5m3"), False),
        (MXFormat("fp4_e2m1", scale_rounding="ceil"), False),
        (MXFormat("fp4_e2m1", rounding="stochastic"), False),
        (MXFormat("fp4_e2m1", symmetric=False), False),
    ],
    ids=str,
)
def test_native_arithmetic_is_for_what_microxcaling_defines(fmt: MXFormat, native: bool) -> None:
    assert fmt.has_native_arithmetic is native


def test_importing_and_checking_formats_loads_no_torch() -> None:
    code = (
        "import sys; from mxsweep.numerics import MXFormat, backend_problem; MXFormat('fp4_e2m1');"
        "backend_problem('torch'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["block_statistics", "quantize", "BlockStatistics"])
def test_lazy_names_are_what_they_say_in_any_order(first: str) -> None:
    code = (
        f"from mxsweep.numerics import {first}; from mxsweep.numerics import quantize, block_statistics;"
        "assert callable(quantize) and callable(block_statistics)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_backend_problems_are_sentences() -> None:
    assert backend_problem("torch") is None
    if not torch.cuda.is_available():
        assert backend_problem("cuda") == "backend 'cuda' needs a CUDA GPU, and none was found"
    with pytest.raises(ValueError, match=r"^backend: 'tpu' is not known; allowed: torch, cuda, microxcaling"):
        backend_problem("tpu")


@pytest.mark.parametrize(
    ("fmt", "shape", "bits"),
    [
        (MXFormat("fp4_e2m1"), (4, 64), 4 * (64 * 4 + 2 * 8)),
        (MXFormat("fp4_e2m1"), (4, 65), 4 * (65 * 4 + 3 * 8)),
        (MXFormat("int8", block_size=0, scale_bits=5), (4, 65), 4 * (65 * 8 + 5)),
        (MXFormat("int8", symmetric=False), (32,), 32 * 8 + 8 + 16),
        (MXFormat("fp6_e2m3", block_size=(4, 16), scale="fp32"), (3, 5, 33), 3 * (5 * 33 * 6 + 2 * 3 * 32)),
        (MXFormat("int4"), (4, 0), 0),
    ],
    ids=["whole blocks", "shorter last block", "whole axis", "asymmetric", "tiles", "empty"],
)
def test_stored_bits_of_whole_tensors(fmt: MXFormat, shape: tuple[int, ...], bits: int) -> None:
    assert fmt.stored_bits(shape) == bits
