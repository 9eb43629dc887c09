"""Scales held fixed: with a format's own ones, rounding is what `quantize` does."""

import itertools

import pytest
import torch
from helpers.adversarial import adversarial, assert_same_bits

from mxsweep.numerics import ELEMENT_NAMES, ROUNDINGS, MXFormat, decode, encode, quantize
from mxsweep.solvers.block_scales import BlockScales

BLOCKS = (32, 1, 16, 0, 100, (4, 16), (5, 7))
SCALES = (("e8m0", False), ("e5m3", False), ("e4m3", False), ("e4m3", True), ("fp32", False))
FORMATS = [
    MXFormat(element, block, scale, rounding=rounding, symmetric=symmetric, tensor_scale=tensor_scale)
    for element, block, (scale, tensor_scale), rounding, symmetric in itertools.product(
        ELEMENT_NAMES, BLOCKS, SCALES, [name for name in ROUNDINGS if name != "stochastic"], (True, False)
    )
    if scale == "e8m0" or element != "mint4"
]


def weight(rows: int = 37, columns: int = 70) -> torch.Tensor:
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    w[3] = 0.0
    return w


@pytest.mark.parametrize("element", ELEMENT_NAMES)
def test_the_formats_own_scales_are_quantizes(element: str) -> None:
    """Blocks that end short, tiles, whole rows; every element, scale and rounding that goes with frozen scales."""
    w = weight()
    for fmt in [fmt for fmt in FORMATS if fmt.element == element]:
        expected, scales = quantize(w, fmt, arithmetic="exact"), BlockScales.of(w, fmt)
        assert_same_bits(scales.quantize(w, fmt), expected)
        encoded = scales.encode(w, fmt)
        for part, tensor in encode(w, fmt).tensors().items():
            assert torch.equal(encoded.tensors()[part], tensor), part
        assert_same_bits(decode(encoded), expected)
        assert_same_bits(decode(scales.encode_chosen(expected, fmt)), expected)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if not fmt.tensor_scale][::17], ids=str)
def test_all_kinds_of_numbers(fmt: MXFormat) -> None:
    w = adversarial(2**14, 3).view(64, -1)
    scales, expected = BlockScales.of(w, fmt), quantize(w, fmt, arithmetic="exact")
    assert_same_bits(scales.quantize(w, fmt), expected)
    assert_same_bits(decode(scales.encode(w, fmt)), expected)


def test_the_scales_by_hand() -> None:
    w = torch.tensor([[1.0, 6.0, 0.1, 24.0, 3.0], [0.0, 0.0, 12.0, 1.0, 48.0]])
    scales = BlockScales.of(w, MXFormat("fp4_e2m1", 2))
    assert torch.equal(scales.stored, torch.tensor([[1.0, 4.0, 0.5], [2.0**-127, 2.0, 8.0]]))
    assert (scales.midpoint, scales.length) == (None, 2)
    tiles = BlockScales.of(w, MXFormat("fp4_e2m1", (2, 3)))
    assert torch.equal(tiles.stored, torch.tensor([[2.0, 8.0], [2.0, 8.0]]))
    asymmetric = BlockScales.of(w, MXFormat("int4", 0, "fp32", symmetric=False))
    assert asymmetric.midpoint is not None
    assert torch.equal(asymmetric.midpoint, torch.tensor([[12.0625], [24.0]]))  # bfloat16 has no 12.05
    torch.testing.assert_close(asymmetric.stored, torch.tensor([[11.9625 / 1.75], [24 / 1.75]]))
    assert asymmetric.length == 5


def test_the_tensor_scale_is_in_the_scale() -> None:
    w = weight()
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
    g = 448 * 6 / w.abs().max()
    stored = BlockScales.of(w, fmt).applied(fmt).read * g
    nearest = stored.to(torch.float8_e4m3fn).float()
    torch.testing.assert_close(stored, nearest, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("w", "fmt", "message"),
    [
        (
            torch.zeros(4),
            MXFormat("int8"),
            r"^w: torch.float32 of shape \(4,\) is not allowed; allowed: a float32 matrix",
        ),
        (torch.zeros(4, 0), MXFormat("int8"), r"^w: torch.float32 of shape \(4, 0\)"),
        (torch.zeros(4, 4).bfloat16(), MXFormat("int8"), r"^w: torch.bfloat16 of shape \(4, 4\)"),
        (
            torch.zeros(4, 4),
            MXFormat("int8", rounding="stochastic"),
            r"^rounding: 'stochastic' .* nearest, even, floor, ties_to_zero$",
        ),
    ],
    ids=["a vector", "empty", "bfloat16", "stochastic"],
)
def test_what_has_no_frozen_scales_is_refused(w: torch.Tensor, fmt: MXFormat, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockScales.of(w, fmt)
