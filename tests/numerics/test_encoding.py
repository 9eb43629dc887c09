"""Codes: `quantize` is `decode(encode(x))` for every format and arithmetic, and codes are as standards have them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits
from helpers.kernel_formats import FORMATS, GENERAL_ELEMENTS, MINTS
from helpers.numerics_oracle import row

from mxsweep.numerics import (
    ARITHMETICS,
    ELEMENT_NAMES,
    ROUNDINGS,
    SCALE_NAMES,
    MXFormat,
    decode,
    encode,
    parse_element,
    parse_scale,
    quantize,
)
from mxsweep.numerics.blocks import block_regions, blocks_shape
from mxsweep.numerics.reference.codes import element_codes, element_values, has_negative_zero, scale_codes, scale_values
from mxsweep.solvers.block_scales import BlockScales

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ELEMENTS = tuple(dict.fromkeys((*ELEMENT_NAMES, *MINTS, *GENERAL_ELEMENTS, "int16", "fp16_e5m10")))
SCALED = (("e8m0", False), ("e5m3", False), ("e4m3", False), ("e4m3", True), ("fp32", False))
KEY = 2**63 + 5


def check(x: torch.Tensor, fmt: MXFormat, axis: int = -1, **arguments: object) -> None:
    """Equal bit for bit, the sign of zero included; without what codes cannot say, equal as numbers."""
    for arithmetic in ARITHMETICS:
        if arithmetic == "native" and fmt.has_native_arithmetic and not _holds_quotients(x.dtype, fmt):
            with pytest.raises(ValueError, match=r"^arithmetic: 'native' rounds"):
                encode(x, fmt, axis, arithmetic=arithmetic, **arguments)  # type: ignore[arg-type]
            continue
        expected = quantize(x, fmt, axis, arithmetic=arithmetic, **arguments)  # type: ignore[arg-type]
        encoded = encode(x, fmt, axis, arithmetic=arithmetic, **arguments)  # type: ignore[arg-type]
        assert_same_bits(decode(encoded), expected)
        codes_alone = decode(replace(encoded, negative_zeros=None))
        torch.testing.assert_close(codes_alone, expected, rtol=0, atol=0, equal_nan=True)


def _holds_quotients(dtype: torch.dtype, fmt: MXFormat) -> bool:
    element = fmt.element_format
    digits = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[dtype]
    too_wide = dtype == torch.float16 and element.max_exponent >= 15
    return element.mantissa_bits + (not element.is_integer) <= digits and not too_wide


# --- quantize is decode(encode) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("element", ELEMENTS)
def test_all_kinds_of_numbers_in_every_format_of_the_kernels(element: str) -> None:
    formats = [fmt for fmt in FORMATS if fmt.element == element]
    formats = formats or [MXFormat(element, 16, scale, tensor_scale=g) for scale, g in SCALED]
    for fmt, dtype in itertools.product(formats, DTYPES):
        x = adversarial(3 * 6 * 64, 3, finite=fmt.tensor_scale).view(6, -1)[:, :-5].to(dtype)  # a shorter last block
        check(x, fmt, generator=KEY, example_dims=1)


@pytest.mark.parametrize("block", [0, 1, 5, (4, 16), (5, 7), (1, 8)], ids=str)
def test_blocks_of_every_shape(block: int | tuple[int, int]) -> None:
    x = adversarial(3 * 10 * 40, 4).view(3, 10, 40)
    x[1, 2] = -0.0
    x[1, 3] = 0.0
    for element, (scale, g), rounding, symmetric in itertools.product(
        ("fp4_e2m1", "int4", "mint4"), SCALED, ROUNDINGS, (True, False)
    ):
        if element != "mint4" or scale == "e8m0":
            fmt = MXFormat(element, block, scale, rounding=rounding, symmetric=symmetric, tensor_scale=g)
            for axis in (-1, 1) if isinstance(block, tuple) else (-1, 1, 0):
                check(x, fmt, axis, generator=7)


@pytest.mark.parametrize("dims", [None, (-1,), (1, 2)], ids=str)
@pytest.mark.parametrize("special", [0.0, math.nan, math.inf, -math.inf, 3e38, 1e-40], ids=str)
def test_per_tensor_scales(dims: tuple[int, ...] | None, special: float) -> None:
    x = torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 1e3])[:, None, None]
    x[0] = 0.0
    x[1, 2, 3] = special
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    check(x, fmt, tensor_dims=dims)
    g = encode(x, fmt, tensor_dims=dims).tensor_scale
    assert g is not None and g.dtype == torch.float32
    assert g.shape == {None: (1, 1, 1), (-1,): (3, 6, 1), (1, 2): (3, 1, 1)}[dims]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_beyond_the_dtype_become_inf_in_both(dtype: torch.dtype) -> None:
    x = torch.full((2, 32), torch.finfo(dtype).max, dtype=dtype)
    fmt = MXFormat("fp4_e2m1", 32, scale_rounding="ceil")
    check(x, fmt)
    if dtype != torch.float32:  # whose product is a NaN block's or finite
        assert decode(encode(x, fmt)).isinf().all()


def test_large_tensors_in_pieces_and_any_strides() -> None:
    x = torch.randn(700, 3, 257, generator=torch.Generator().manual_seed(1)).permute(1, 2, 0)
    for fmt in (MXFormat("int8", 32, symmetric=False), MXFormat("fp4_e2m1", (16, 16), "e5m3")):
        check(x, fmt)


def test_stochastic_rounding_draws_as_quantize_does() -> None:
    x, fmt = torch.randn(8, 64), MXFormat("fp4_e2m1", rounding="stochastic")
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    assert_same_bits(decode(encode(x, fmt, generator=first)), quantize(x, fmt, generator=second))
    assert_same_bits(decode(encode(x, fmt, generator=first)), quantize(x, fmt, generator=second))


def test_native_scales_that_float16_does_not_hold_make_their_blocks_nan() -> None:
    x = torch.tensor([[65504.0] * 4, [1e-7] * 4, [0.0] * 4, [3.0] * 4], dtype=torch.float16)
    fmt = MXFormat("int8", 4)
    encoded = encode(x, fmt, arithmetic="native")
    assert_same_bits(decode(encoded), quantize(x, fmt, arithmetic="native"))
    assert decode(encoded)[:, 0].isnan().tolist() == [True, False, True, False]
    assert encoded.scales.flatten().tolist()[0] == encoded.scales.flatten().tolist()[2] == 255


def test_rows_are_split_where_they_share_no_scale() -> None:
    x = torch.randn(6, 40)
    fmt = MXFormat("int4", 16, symmetric=False)
    parts = encode(x, fmt).split([1, 2, 3])
    for part, rows in zip(parts, x.split([1, 2, 3]), strict=True):
        assert_same_bits(decode(part), quantize(rows, fmt, arithmetic="exact"))
    for shared in (MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), MXFormat("fp4_e2m1", (2, 16))):
        with pytest.raises(ValueError, match="cannot be split"):
            encode(x, shared).split([1, 2, 3])


def test_bad_arguments_are_quantizes() -> None:
    for arguments, message in (({"axis": 2}, "^axis: 2"), ({"example_dims": 4}, "^example_dims: 4")):
        with pytest.raises(ValueError, match=message):
            encode(torch.zeros(4, 4), MXFormat("int8"), **arguments)
    with pytest.raises(TypeError, match=r"torch\.float64"):
        encode(torch.zeros(4, dtype=torch.float64), MXFormat("int8"))


def test_the_input_stays_and_gets_no_gradient() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    before = x.detach().clone()
    encoded = encode(x, MXFormat("int8", symmetric=False))
    assert torch.equal(x.detach(), before)
    assert not decode(encoded).requires_grad
    codes = encoded.codes.clone()
    decode(encoded)
    assert torch.equal(encoded.codes, codes)


# --- What codes look like --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_element_code_survives(name: str) -> None:
    element = parse_element(name)
    meanings = torch.tensor([element.decode(code) for code in range(2**element.bits)])
    codes = torch.arange(2**element.bits, dtype=torch.int32)[meanings.isfinite()]
    found = element_codes(meanings[codes], element)
    assert found.dtype == (torch.uint8 if element.bits <= 8 else torch.uint16)
    assert torch.equal(found.to(torch.int32), codes)
    assert_same_bits(element_values(found, element), meanings[codes])
    assert element_codes(row(math.nan), element).item() == 0
    assert has_negative_zero(element) is (not element.is_integer)
    if element.is_integer:
        assert element_codes(row(-0.0), element).item() == 0


@pytest.mark.parametrize("name", [name for name in SCALE_NAMES if name != "fp32"])
def test_every_scale_code_survives(name: str) -> None:
    scale = parse_scale(name)
    meanings = torch.tensor([scale.decode(code) for code in range(scale.codes)])
    found = scale_codes(meanings, scale)
    assert found.dtype == torch.uint8
    assert torch.equal(found.to(torch.int32), torch.arange(scale.codes, dtype=torch.int32))
    assert_same_bits(scale_values(found, scale), meanings)
    if scale.stores_sign:
        assert scale_values(torch.tensor([255], dtype=torch.uint8), scale).isnan().all()


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_fp8_codes_are_torchs(name: str, dtype: torch.dtype) -> None:
    largest = parse_element(name).largest
    x = (torch.randn(64, 32, generator=torch.Generator().manual_seed(2)) * largest / 4).clamp(-largest, largest)
    x[:, 0], x[:, 1] = largest, -0.0  # with this maximum the scale is 1
    encoded = encode(x, MXFormat(name, 32, rounding="even"))
    assert (encoded.scales == 127).all()
    assert torch.equal(encoded.codes, x.to(dtype).view(torch.uint8))
    assert_same_bits(encoded.codes.view(dtype).float(), decode(encoded))


def test_e8m0_and_e4m3_scales_are_torchs() -> None:
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 6, 64)[:, None]
    w[3, 5] = math.nan
    for fmt, dtype in (
        (MXFormat("fp4_e2m1", 32), torch.float8_e8m0fnu),
        (MXFormat("fp4_e2m1", 16, "e4m3"), torch.float8_e4m3fn),
    ):
        scales = encode(w, fmt).scales
        assert_same_bits(scales.view(dtype).float(), BlockScales.of(w, fmt).stored)
        assert scales[3, 0] == {torch.float8_e8m0fnu: 255, torch.float8_e4m3fn: 127}[dtype]


def test_codes_by_hand() -> None:
    x = torch.tensor([[1.0, -6.0, 0.4, -0.1, 24.0, 3.0, 0.0, -0.0, 1.5]])
    encoded = encode(x, MXFormat("fp4_e2m1", 4))
    # Scales 1, 4 and 2^-2; e2m1's magnitudes by code are 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the top bit is the sign.
    assert encoded.scales.tolist() == [[127, 129, 125]]
    assert encoded.codes.tolist() == [[2, 15, 1, 8, 7, 2, 0, 8, 7]]
    assert (encoded.tensor_scale, encoded.midpoints, encoded.negative_zeros) == (None, None, None)
    integers = encode(torch.tensor([[1.75, -1.75, -0.25, -0.1]]), MXFormat("int4", 4))
    assert integers.codes.tolist() == [[7, 9, 15, 0]]
    assert integers.negative_zeros is not None and integers.negative_zeros.tolist() == [[False, False, False, True]]


def test_nvfp4_by_hand() -> None:
    x = torch.tensor([[24.0, 12.0], [3.0, 0.7]])
    encoded = encode(x, MXFormat("fp4_e2m1", 2, "e4m3", tensor_scale=True))
    assert encoded.tensor_scale is not None and encoded.tensor_scale.tolist() == [[112.0]]  # 2688 / 24
    assert encoded.scales.tolist() == [[0x7E], [0x66]]  # 448 and 56 = 1.75 * 2^5
    assert encoded.codes.tolist() == [[7, 5], [7, 3]]


def test_midpoints_are_bfloat16() -> None:
    encoded = encode(torch.tensor([[8.0, 9.4, 12.05]]), MXFormat("int3", 4, symmetric=False))
    assert encoded.midpoints is not None and encoded.midpoints.dtype == torch.bfloat16
    assert encoded.midpoints.tolist() == [[10.0]]


def test_scale_bits_narrow_the_range_and_not_the_bias() -> None:
    x = torch.tensor([[2.0**10], [2.0**-20], [1.0]])
    assert encode(x, MXFormat("fp4_e2m1", 1, scale_bits=4)).scales.tolist() == [[255], [120], [125]]


def test_a_block_with_nan_has_the_code_0_and_no_scale() -> None:
    for scale, of_nan in (("e8m0", 255), ("e5m3", 255), ("e4m3", 127)):
        encoded = encode(row(1.0, math.nan, 3.0), MXFormat("fp4_e2m1", 4, scale))
        assert encoded.codes.tolist() == [0, 0, 0]
        assert encoded.scales.tolist() == [of_nan]
    assert encode(row(1.0, math.inf), MXFormat("fp4_e2m1", 4, "fp32")).scales.isnan().all()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize(
    "fmt",
    [MXFormat("int8", 0), MXFormat("int8", 4, symmetric=False), MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)],
    ids=str,
)
def test_empty_tensors(shape: tuple[int, ...], fmt: MXFormat) -> None:
    for axis in range(len(shape)):
        encoded = encode(torch.empty(shape, dtype=torch.bfloat16), fmt, axis)
        assert (encoded.shape, encoded.codes.shape) == (shape, shape)
        assert encoded.scales.numel() == 0
        assert (decode(encoded).shape, decode(encoded).dtype) == (shape, torch.bfloat16)


@pytest.mark.parametrize(
    ("shape", "block", "axis", "expected"),
    [
        ((4, 64), 32, -1, (4, 2)),
        ((4, 65), 32, 1, (4, 3)),
        ((4, 65), 3, 0, (2, 65)),
        ((4, 65), 0, -1, (4, 1)),
        ((3, 10, 40), (4, 16), -1, (3, 3, 3)),
    ],
)
def test_one_scale_a_block(
    shape: tuple[int, ...], block: int | tuple[int, int], axis: int, expected: tuple[int, ...]
) -> None:
    assert blocks_shape(shape, block, axis) == expected
    assert encode(torch.zeros(shape), MXFormat("int8", block), axis).scales.shape == expected
    covered = torch.zeros(expected, dtype=torch.int32)
    for region in block_regions(shape, block, axis):
        covered[region.blocks] += 1
    assert (covered == 1).all()


def test_the_codes_of_a_weight_are_its_stored_bits() -> None:
    w = torch.randn(8, 70)
    for fmt in (MXFormat("fp4_e2m1", 32), MXFormat("int8", 16, "fp32", symmetric=False), MXFormat("fp6_e2m3", (4, 16))):
        encoded = encode(w, fmt)
        bits = encoded.codes.numel() * fmt.element_format.bits + encoded.scales.numel() * fmt.scale_format.bits
        midpoints = 0 if encoded.midpoints is None else encoded.midpoints.numel() * 16
        assert bits + midpoints == fmt.stored_bits(w.shape)
