"""Mase's MXINT (`mint<n>`): two's complement fractions under a power of two that nothing exceeds."""

import pytest
import torch

from mxsweep.numerics import MXFormat, block_statistics, microxcaling_problem, parse_element, quantize


def mase(x: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """As its definition reads, in float64: exponent ceil(log2 amax), codes -2^(n-1) to 2^(n-1) - 1, ties to even."""
    blocks = x.double().unflatten(-1, (-1, block))
    unit = 2.0 ** (blocks.abs().amax(-1, keepdim=True).log2().ceil() - (bits - 1))
    codes = (blocks / unit).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes * unit).flatten(-2).float()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_it_is_mases_definition(bits: int) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    y = quantize(x, MXFormat(f"mint{bits}", 32, rounding="even"), arithmetic="exact")
    assert torch.equal(y, mase(x, bits, 32))


def test_by_hand() -> None:
    x = torch.tensor([[-4.0, 3.9, 0.7, -0.2], [3.0, -3.0, 0.3, 0.0], [4.0, 1.0, -1.3, -3.8]])
    y = quantize(x, MXFormat("mint4", 4))
    # Units of 4/8: -4 is code -8, 3.9 saturates at code 7, which is 3.5, and so does 4.0.
    assert torch.equal(y, torch.tensor([[-4.0, 3.5, 0.5, 0.0], [3.0, -3.0, 0.5, 0.0], [3.5, 1.0, -1.5, -4.0]]))


def test_its_values_are_those_of_twos_complement() -> None:
    element = parse_element("mint4")
    assert element.values() == tuple(code / 8 for code in range(-8, 8))
    assert (element.lowest, element.largest) == (-1.0, 0.875)
    assert [element.decode(code) for code in (0, 1, 7, 8, 15)] == [0.0, 0.125, 0.875, -1.0, -0.125]


@pytest.mark.parametrize("rounding", ["nearest", "even", "floor"])
def test_all_codes_are_kept(rounding: str) -> None:
    x = torch.arange(-8, 8).float().view(1, -1) * 2.0**-5
    assert torch.equal(quantize(x, MXFormat("mint4", 16, rounding=rounding)), x)


def test_there_is_one_scale_and_one_way_to_it() -> None:
    fmt = MXFormat("mint4")
    assert fmt == MXFormat("mint4", scale_rounding="floor") == MXFormat("mint4", scale_rounding="rceil")
    assert (fmt.scale_rounding, str(fmt), fmt.bits_per_element) == ("ceil", "mint4-b32-e8m0", 4.25)
    assert not fmt.has_native_arithmetic
    for scale in ("e5m3", "e4m3", "fp32"):
        with pytest.raises(ValueError, match=rf"^scale: '{scale}' does not go with element mint4; allowed: e8m0$"):
            MXFormat("mint4", scale=scale)


def test_native_arithmetic_is_exact_arithmetic() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    native, exact = (quantize(x, MXFormat("mint4"), arithmetic=name) for name in ("native", "exact"))
    assert torch.equal(native, exact)


def test_what_saturates_is_counted_on_either_side() -> None:
    x = torch.tensor([[-1.0, 1.0, 0.9, -0.9], [0.875, -0.95, 0.5, 0.5]])
    statistics = block_statistics(x, MXFormat("mint4", 4))
    assert statistics.elements_saturated == 2  # 1.0 and 0.9, above 0.875; -1 is a value
    assert (statistics.exponent_min, statistics.exponent_max) == (0, 0)


def test_stochastic_rounding_keeps_the_mean() -> None:
    x = torch.full((1, 20000), -0.95)
    x[0, 0] = -1.0
    y = quantize(x, MXFormat("mint4", 0, rounding="stochastic"), generator=3)
    assert set(y.unique().tolist()) == {-1.0, -0.875}
    assert y.mean().item() == pytest.approx(-0.95, abs=0.002)


def test_microxcaling_has_it_not() -> None:
    assert (microxcaling_problem(MXFormat("mint4"), "native") or "").startswith(
        "backend 'microxcaling' has no element mint4"
    )
