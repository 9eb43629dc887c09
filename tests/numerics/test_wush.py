"""WUSH's matrices: what they are derived to do, on moments of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mxsweep.numerics.hadamard import matrix
from mxsweep.numerics.wush import DAMPING, wush

BLOCKS, ORDER = 3, 32


def moments(order: int = ORDER, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Second moments (3, b, b) of inputs with outlier channels, and of weights that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BLOCKS, 500, order, generator=generator, dtype=torch.float64)
    x *= torch.logspace(-1, 1.5, order, dtype=torch.float64)
    w = torch.randn(BLOCKS, 200, order, generator=generator, dtype=torch.float64) * 0.02
    w = w + w @ torch.randn(order, order, generator=generator, dtype=torch.float64) * 0.2
    return x.mT @ x / 500, w.mT @ w / 200


def damped(moment: Tensor) -> Tensor:
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    return moment + DAMPING * mean[:, None, None] * torch.eye(moment.shape[-1], dtype=torch.float64)


def of_inputs(t: Tensor, moment: Tensor) -> Tensor:
    return t @ damped(moment) @ t.mT


def of_weights(t: Tensor, moment: Tensor) -> Tensor:
    inverse = torch.linalg.inv(t)
    return inverse.mT @ damped(moment) @ inverse


def error(t: Tensor, inputs: Tensor, weights: Tensor) -> Tensor:
    """What the error of a product of quantized operands is in proportion to, of each block."""
    traces = [one.diagonal(dim1=-2, dim2=-1).sum(-1) for one in (of_inputs(t, inputs), of_weights(t, weights))]
    return traces[0] * traces[1]


@pytest.mark.parametrize("order", [1, 2, 7, 12, 32])
def test_both_operands_get_one_second_moment(order: int) -> None:
    inputs, weights = moments(order)
    t = wush(inputs, weights)
    assert t.shape == inputs.shape and t.dtype == torch.float64
    torch.testing.assert_close(of_inputs(t, inputs), of_weights(t, weights), rtol=1e-9, atol=1e-12)


def test_the_hadamard_matrix_spreads_it_evenly_over_the_channels() -> None:
    inputs, weights = moments()
    t, h = wush(inputs, weights), matrix(ORDER, torch.float64)
    moment = of_inputs(t, inputs)
    channels = moment.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(channels, channels.mean(-1, keepdim=True).expand_as(channels), rtol=1e-9, atol=0)
    plain = h.mT @ moment @ h  # diagonal, the singular values in their order
    values = plain.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(plain, torch.diag_embed(values), rtol=0, atol=1e-9 * float(values.max()))
    assert bool((values.diff(dim=-1) <= 0).all()) and float(values.max()) > 100 * float(values.min())


def test_no_other_matrices_make_a_smaller_error() -> None:
    inputs, weights = moments()
    best = wush(inputs, weights)
    least = error(best, inputs, weights)
    roots = [torch.linalg.cholesky(damped(one)) for one in (inputs, weights)]
    values = torch.linalg.svdvals(roots[1].mT @ roots[0])
    torch.testing.assert_close(least, values.sum(-1).square(), rtol=1e-9, atol=0)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(BLOCKS, ORDER, ORDER, generator=generator, dtype=torch.float64)
    others = {
        "plain": torch.eye(ORDER, dtype=torch.float64).expand_as(best),
        "hadamard": matrix(ORDER, torch.float64).expand_as(best),
        "random": noise,
        "near": best @ torch.linalg.matrix_exp(0.05 * noise / ORDER**0.5),
    }
    for name, other in others.items():
        assert bool((error(other, inputs, weights) > 1.0001 * least).all()), name


def test_a_moment_that_says_nothing_of_some_channels_leaves_an_inverse() -> None:
    inputs, weights = moments()
    inputs[0, :5], inputs[0, :, :5] = 0, 0  # channels that are always zero
    inputs[1] = 0  # a block that is
    weights[1] = 0
    row = torch.ones(ORDER, dtype=torch.float64)
    inputs[2] = weights[2] = torch.outer(row, row)  # one token, one row
    t = wush(inputs, weights)
    assert bool(t.isfinite().all()) and float(torch.linalg.cond(t).max()) < 1e4
    torch.testing.assert_close(t[1], matrix(ORDER, torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_moment_is_shared_by_both_operands(scale: float) -> None:
    inputs, weights = moments()
    t, scaled = wush(inputs, weights), wush(inputs * scale**2, weights)
    torch.testing.assert_close(scaled * scale**0.5, t, rtol=1e-6, atol=1e-9)
