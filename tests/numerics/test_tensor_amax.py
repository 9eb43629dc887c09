"""Tests that a maximum which is given takes the place of the one that a per-tensor scale is measured by."""

from dataclasses import replace

import pytest
import torch
from helpers.adversarial import assert_same_bits

from mxsweep.numerics import ROUNDINGS, MXFormat, block_statistics, decode, encode, quantize

NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
ALLOWED = r"^tensor_amax: of shape \(2, 1\) is not allowed; allowed here: what can be expanded to \(6, 1\)$"


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dims", [None, (-1,)], ids=str)
def test_the_measured_maximum_given_changes_nothing(dtype: torch.dtype, dims: tuple[int, ...] | None) -> None:
    x = normal(6, 64).to(dtype)
    amax = x.abs().amax(dims or (0, 1), keepdim=True).float()
    more = {"tensor_dims": dims, "tensor_amax": amax}
    assert_same_bits(quantize(x, NVFP4, **more), quantize(x, NVFP4, tensor_dims=dims))
    assert block_statistics(x, NVFP4, **more) == block_statistics(x, NVFP4, tensor_dims=dims)


@pytest.mark.parametrize("dims", [None, (-1,)], ids=str)
def test_a_part_of_a_tensor_becomes_what_it_does_in_the_whole(dims: tuple[int, ...] | None) -> None:
    """As of q, k and v in one, whose rows share a scale."""
    whole = normal(6, 64) * torch.tensor([1, 1, 9, 9, 100, 100])[:, None]
    more = {"tensor_dims": dims, "tensor_amax": whole.abs().amax()}
    parts = [quantize(part, NVFP4, **more) for part in whole.split(2)]
    assert_same_bits(torch.cat(parts), quantize(whole, NVFP4))
    assert not torch.equal(torch.cat(parts), torch.cat([quantize(part, NVFP4) for part in whole.split(2)]))


def test_codes_and_their_scale_say_so() -> None:
    x, amax = normal(6, 64), torch.tensor(10.0)
    encoded = encode(x, NVFP4, tensor_dims=(-1,), tensor_amax=amax)
    assert encoded.tensor_scale is not None
    assert encoded.tensor_scale.tolist() == [[torch.tensor(2688.0).div(10).item()]] * 6
    assert_same_bits(decode(encoded), quantize(x, NVFP4, tensor_dims=(-1,), tensor_amax=amax))
    assert encode(x[:0], NVFP4, tensor_amax=amax).tensor_scale.shape == (1, 1)  # type: ignore[union-attr]


def test_what_lies_beyond_saturates_and_nan_stays_in_its_block() -> None:
    x = normal(1, 64)
    x[0, 0], x[0, 20] = 100.0, torch.nan
    y = quantize(x, NVFP4, tensor_amax=torch.tensor(1.0))
    assert y[0, 0] == 1.0
    assert y[0, 16:32].isnan().all() and y.isnan().sum() == 16
    assert quantize(x, NVFP4).isnan().all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_what_lies_immeasurably_far_beyond_saturates_too(rounding: str) -> None:
    """The quotient is Inf."""
    fmt = replace(NVFP4, rounding=rounding)
    y = quantize(torch.full((1, 16), -2e38), fmt, tensor_amax=torch.tensor(1e-30), generator=1)
    assert torch.equal(y, quantize(torch.full((1, 16), -1.0), fmt, tensor_amax=torch.tensor(1e-30), generator=1))
    assert y.isfinite().all()


def test_gradients_go_through() -> None:
    x = normal(2, 16).requires_grad_()
    quantize(x, NVFP4, tensor_amax=torch.tensor(1.0)).sum().backward()
    assert x.grad is not None and (x.grad == 1).all()


def test_refusals() -> None:
    x = normal(6, 64)
    with pytest.raises(ValueError, match=ALLOWED):
        quantize(x, NVFP4, tensor_dims=(-1,), tensor_amax=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"^tensor_amax: a tensor does not go with int8-b32-e8m0"):
        quantize(x, MXFormat("int8"), tensor_amax=torch.ones(()))
    for wrong in (1.0, torch.ones((), dtype=torch.float64)):
        with pytest.raises(TypeError, match=r"^tensor_amax: .* is not allowed; allowed: a float32 tensor$"):
            encode(x, NVFP4, tensor_amax=wrong)  # type: ignore[arg-type]
