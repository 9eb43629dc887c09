"""Operands in another basis: blocks by hand, and the product that stays what it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxsweep.numerics.bases import Basis, BlockTransform, HadamardBasis
from mxsweep.numerics.hadamard import hadamard

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])
WIDTHS = [pytest.param(64, id="whole blocks"), pytest.param(72, id="a shorter last"), pytest.param(16, id="one")]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transform(width: int, order: int = 16) -> BlockTransform:
    rest = width % order
    whole = randn(width // order, order, order, seed=1).float()
    return BlockTransform(whole, randn(rest, rest, seed=2).float() if rest else None)


def as_one(basis: BlockTransform) -> Tensor:
    blocks = [*basis.whole.double(), *([] if basis.rest is None else [basis.rest.double()])]
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("width", WIDTHS)
def test_each_block_is_multiplied_by_its_matrix(width: int) -> None:
    basis, x, weight = transform(width), randn(2, 5, width), randn(7, width)
    t = as_one(basis)
    torch.testing.assert_close(basis.of_input(x), x @ t.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(basis.of_weight(weight), weight @ torch.linalg.inv(t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_computed_in_float32_is_rounded_once(width: int, dtype: torch.dtype, device: str) -> None:
    basis = transform(width).to(torch.device(device))
    x, weight = randn(2, 5, width).to(device, dtype), randn(7, width).to(device, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for computed, rounded in ((basis.of_input, x), (basis.of_weight, weight)):
        answer = computed(rounded)
        assert answer.shape == rounded.shape and answer.dtype == dtype and answer.device == rounded.device
        assert torch.equal(answer, computed(rounded.to(wide)).to(dtype))


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_product_stays_what_it_is(width: int, dtype: torch.dtype, device: str) -> None:
    x, weight = randn(20, width).to(device, dtype), randn(7, width).to(device, dtype)
    bases: list[Basis] = [transform(width).to(torch.device(device)), HadamardBasis(16)]
    for basis in bases:
        product = basis.of_input(x) @ basis.of_weight(weight).T
        # The matrices are random: of condition numbers of some hundreds, by which rounding errors grow.
        torch.testing.assert_close(product, x @ weight.T, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-9)


def test_a_hadamard_basis_rotates_both() -> None:
    x = randn(4, 48)
    assert torch.equal(HadamardBasis(32).of_input(x), hadamard(x, 32))
    assert torch.equal(HadamardBasis(32).of_weight(x), hadamard(x, 32))
    assert HadamardBasis(32) == HadamardBasis(32) != HadamardBasis(16)


def test_the_condition_is_that_of_the_worst_block() -> None:
    basis = BlockTransform(torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 8.0]))]), torch.tensor([[3.0]]))
    assert basis.condition == pytest.approx(8)


def test_the_gradient_goes_through_both() -> None:
    basis = transform(72)
    with torch.inference_mode():  # what is kept from here serves a gradient, too
        basis.of_weight(randn(3, 72))
    for computed in (basis.of_input, basis.of_weight):
        assert torch.autograd.gradcheck(computed, randn(3, 72).requires_grad_())
