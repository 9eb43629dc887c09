"""Blocks under another scale than their format's: by hand, and by what float64 says of both scales."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mxsweep.numerics import MXFormat, decode, encode, quantize
from mxsweep.numerics.rescaled import quantize_rescaled

FP4, NVFP4 = MXFormat("fp4_e2m1", 16), MXFormat("fp4_e2m1", 16, scale="e4m3", rounding="even")


def heavy(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", [FP4, NVFP4, MXFormat("int4", (4, 8), symmetric=False)], ids=str)
def test_as_it_is_nothing_is_rescaled(fmt: MXFormat, dtype: torch.dtype) -> None:
    x = heavy((5, 40), dtype)
    assert torch.equal(quantize_rescaled(x, fmt), quantize(x, fmt, arithmetic="exact"))


def test_a_prescale_by_hand() -> None:
    """A maximum of 7.9 has the scale 1: three quarters of it are 5.925, which is 6, where 7.9 saturates."""
    x = torch.tensor([[7.9, 4.0, -1.0, 0.1]])
    fmt = MXFormat("fp4_e2m1", 4)
    assert quantize(x, fmt).tolist() == [[6.0, 4.0, -1.0, 0.0]]
    assert quantize_rescaled(x, fmt, prescale=0.75).tolist() == [[6.0, 3.0, -1.0, 0.0]]


@pytest.mark.parametrize("prescale", [1.0, 0.75])
def test_only_unclipped_stochastic_rounding_has_no_bias(prescale: float) -> None:
    x = heavy((64, 64))
    fmt = MXFormat("fp4_e2m1", 16, rounding="stochastic")
    drawn = torch.stack([quantize_rescaled(x, fmt, prescale=prescale, generator=key) for key in range(100)]) / prescale
    slope = float((drawn.mean(0) * x).sum() / x.square().sum())
    assert abs(slope - 1) < 0.004 if prescale < 1 else slope < 0.98


def test_four_over_six_by_hand() -> None:
    """Under the scale 1, 5 lies between 4 and 6; under 1.5, 6 is 4 and 4.5 is 3, both exact."""
    fmt = MXFormat("fp4_e2m1", 2, scale="fp32")
    x = torch.tensor([[6.0, 5.0], [6.0, 4.5], [6.0, 4.0]])
    assert quantize(x, fmt).tolist() == [[6.0, 6.0], [6.0, 4.0], [6.0, 4.0]]
    assert quantize(x, replace(fmt, four_over_six=True)).tolist() == [[6.0, 4.5], [6.0, 4.5], [6.0, 4.0]]


@pytest.mark.parametrize("tensor_scale", [False, True])
def test_each_block_takes_the_better_scale(tensor_scale: bool) -> None:
    fmt = MXFormat("fp4_e2m1", 16, scale="e4m3", rounding="even", tensor_scale=tensor_scale)
    x = heavy((64, 64))
    better = replace(fmt, four_over_six=True)
    y = quantize(x, better)
    assert torch.equal(y, decode(encode(x, better)))
    assert torch.equal(y, quantize_rescaled(x, better))
    g = (256 * 6 / x.abs().max()).item() if tensor_scale else 1.0
    blocks = x.double().view(-1, 16)
    grid = torch.tensor(fmt.element_format.values(), dtype=torch.float64)
    errors = []
    for largest in (6, 4):
        scale = (blocks.abs().amax(1) * g / largest).clamp(2.0**-9, 448).float().to(torch.float8_e4m3fn).double() / g
        nearest = (blocks / scale[:, None]).unsqueeze(-1).sub(grid).abs().argmin(-1)
        errors.append((grid[nearest] * scale[:, None] - blocks).square().sum(1))
    found = (y.double().view(-1, 16) - blocks).square().sum(1)
    torch.testing.assert_close(found, torch.minimum(*errors), rtol=1e-5, atol=1e-9)
    assert 0.1 < float((errors[1] < errors[0]).float().mean()) < 0.8
    assert found.sum() < 0.95 * (quantize(x, fmt).double().view(-1, 16) - blocks).square().sum()


@pytest.mark.parametrize("rounding", ["even", "stochastic"])
def test_the_better_scale_depends_neither_on_order_nor_on_size(rounding: str) -> None:
    fmt = MXFormat("fp4_e2m1", 16, scale="fp32", rounding=rounding, four_over_six=True)
    x = torch.randint(-24, 25, (4096, 16), generator=torch.Generator().manual_seed(0)) / 4.0  # errors often tie
    expected = quantize(x, fmt, generator=1)
    for exponent in (100, 1, -1, -100):
        assert torch.equal(quantize(x * 2.0**exponent, fmt, generator=1), expected * 2.0**exponent)
    if rounding == "even":
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        assert torch.equal(quantize(x[:, order], fmt), expected[:, order])


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"^four_over_six: true does not go with scale 'e8m0'; allowed: scale e5m3, "):
        replace(FP4, four_over_six=True)
    assert quantize_rescaled(torch.empty(0, 16), FP4, prescale=0.5).shape == (0, 16)
