"""Values that are rounded to a start's, and the steps that they take: against the start, by hand, by brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers.adversarial import assert_same_bits
from helpers.solved_formats import FORMATS
from torch import Tensor

from mxsweep.numerics import MXFormat, decode, encode
from mxsweep.numerics.reference.codes import element_values
from mxsweep.numerics.reference.rounding import spacing
from mxsweep.solvers.autoround import REACH, Unrounded, by_a_margin, rates
from mxsweep.solvers.gptq import solve

OPTIONS = {"clip_loss": "weight", "damping": 0.01, "act_order": True}


def weight() -> Tensor:
    return torch.randn(12, 40, generator=torch.Generator().manual_seed(0)) * 0.1


def hessian() -> Tensor:
    x = torch.randn(160, 40, generator=torch.Generator().manual_seed(1)) * torch.linspace(2, 0.05, 40)
    return 2 * x.T @ x / len(x)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_they_begin_with_the_values_of_the_start(fmt: MXFormat) -> None:
    start = solve(weight(), fmt, hessian(), OPTIONS)
    unrounded = Unrounded.of(weight(), start)
    assert torch.equal(unrounded.values(), decode(start))
    assert_same_bits(decode(unrounded.encoded()), unrounded.values())
    assert torch.equal(unrounded.encoded().scales, start.scales)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_they_may_begin_within_a_margin(fmt: MXFormat) -> None:
    w = weight()
    start = solve(w, fmt, hessian(), OPTIONS)
    unrounded = Unrounded.of(w, start, by_a_margin)
    assert torch.equal(unrounded.values(), decode(start))
    scale, midpoint = unrounded.scales.per_element(fmt, w.shape[1])
    where = unrounded.u * scale.read + (0 if midpoint is None else midpoint)
    assert ((where - w).abs() <= (decode(start) - w).abs() + 1e-6).all()
    ulp = spacing(element_values(start.codes, fmt.element_format), fmt.element_format)
    way = (where - decode(start)).abs() / (scale.read * ulp)
    assert (way <= 0.2501).all() and (way > 0.2499).any() and ((way > 0) & (way < 0.2499)).any()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_they_begin_half_way_to_the_weight_and_on_no_tie(fmt: MXFormat) -> None:
    w = weight()
    start = solve(w, fmt, hessian(), OPTIONS)
    unrounded = Unrounded.of(w, start)
    scale, midpoint = unrounded.scales.per_element(fmt, w.shape[1])
    grid = element_values(torch.arange(2**fmt.element_format.bits, dtype=torch.uint8), fmt.element_format)
    grid = grid[grid.isfinite()].unique()
    q = element_values(start.codes, fmt.element_format)
    way = (w if midpoint is None else w - midpoint) / scale.read - q
    beside = torch.searchsorted(grid, q) + way.sign().long()  # the value on the way
    has_one = (beside >= 0) & (beside < len(grid)) & (way != 0)
    if fmt.rounding == "floor":  # nearer to zero than q would be another value
        has_one &= (way > 0) == (q > 0)
    gap = (grid[beside.clamp(0, len(grid) - 1)] - q).abs()
    wanted = way.sign() * torch.minimum(way.abs() / 2, 0.45 * gap)
    torch.testing.assert_close((unrounded.u - q)[has_one], wanted[has_one], rtol=1e-3, atol=1e-5)
    assert (way.abs() > 0.5 * gap)[has_one].any()  # GPTQ's rounding is not to the nearest value


@pytest.mark.parametrize("fmt", [MXFormat("fp4_e2m1", 8), MXFormat("fp4_e3m0", 8)], ids=str)
def test_a_small_step_changes_few_values(fmt: MXFormat) -> None:
    """Where many stand on ties, or equally far from them, one step of any size changes all of these at once."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1024, 256, generator=torch.Generator().manual_seed(1)) * torch.linspace(2, 0.05, 256)
    start = solve(w, fmt, 2 * x.T @ x / len(x), OPTIONS)
    for sign in (1, -1):
        unrounded, changed = Unrounded.of(w, start), [0.0]
        for _ in range(8):
            unrounded.step(torch.full_like(w, sign), 0.05)
            changed.append(float((unrounded.values() != decode(start)).float().mean()))
        each = [after - before for before, after in pairwise(changed)]
        assert max(each) < 0.1


def test_steps_by_hand() -> None:
    # Of 0.7, 3.2, 5.9 and 0.5 under the scale 1, fp4_e2m1 makes 0.5, 3, 6 and 0.5, with spacings of 0.5, 1, 2 and 0.5.
    fmt = MXFormat("fp4_e2m1", 4)
    w = torch.tensor([[0.7, 3.2, 5.9, 0.5]])
    unrounded = Unrounded.of(w, encode(w, fmt))
    assert unrounded.values().tolist() == [[0.5, 3.0, 6.0, 0.5]]
    torch.testing.assert_close(unrounded.u, torch.tensor([[0.6, 3.1, 5.95, 0.5]]))
    unrounded.step(torch.tensor([[-1e-9, -5.0, 3.0, 0.0]]), 0.32)
    torch.testing.assert_close(unrounded.u, torch.tensor([[0.76, 3.42, 5.31, 0.5]]))
    assert unrounded.values()[0, 0] == 1.0 and unrounded.values()[0, 2:].tolist() == [6.0, 0.5]
    unrounded.step(torch.tensor([[0.0, -5.0, 3.0, torch.nan]]), 0.25)
    torch.testing.assert_close(unrounded.u, torch.tensor([[0.76, 3.67, 4.81, 0.5]]))
    assert unrounded.values().tolist() == [[1.0, 4.0, 4.0, 0.5]]


@pytest.mark.parametrize("fmt", [MXFormat("fp4_e2m1", 8), MXFormat("int4", 8, "fp32")], ids=str)
def test_all_steps_together_go_to_the_next_value_at_most(fmt: MXFormat) -> None:
    element, steps = fmt.element_format, 50
    start = encode(weight(), fmt)
    unrounded = Unrounded.of(weight(), start)
    before = unrounded.u.clone()
    for rate in rates(steps, REACH):
        unrounded.step(torch.ones_like(before), rate)
    scale, _ = unrounded.scales.per_element(fmt, 40)
    grid = element_values(torch.arange(2**element.bits, dtype=torch.uint8), element).unique()
    grid = grid[~grid.isnan()]
    old, new = (((w / scale.read)[..., None] - grid).abs().argmin(dim=-1) for w in (decode(start), unrounded.values()))
    assert set((old - new).unique().tolist()) <= {0, 1} and (old != new).any()


def test_a_block_without_a_scale_stays_so() -> None:
    w, fmt = weight(), MXFormat("fp4_e2m1", 8)
    w[2, 9] = torch.nan
    unrounded = Unrounded.of(w, encode(w, fmt))
    unrounded.step(torch.ones_like(w), 0.5)
    values = unrounded.values()
    assert values.isnan().sum() == 8 and values[2, 8:16].isnan().all()
    assert_same_bits(decode(unrounded.encoded()), values)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_weights_that_are_joined_move_as_each_does_by_itself(fmt: MXFormat) -> None:
    length = fmt.block_size if isinstance(fmt.block_size, int) else fmt.block_size[1]
    drawn = torch.Generator().manual_seed(0)
    shapes = [(12, 3 * length or 40), (7, length or 40), (1, 2 * length or 40)]
    weights = [torch.randn(shape, generator=drawn) * size for shape, size in zip(shapes, (0.1, 3, 1), strict=True)]
    alone = [Unrounded.of(w, encode(w, fmt)) for w in weights]
    assert all(one.is_whole for one in alone)
    whole, parts = Unrounded.joined([Unrounded.of(w, encode(w, fmt)) for w in weights])
    for _ in range(3):
        gradients = [torch.randn(shape, generator=drawn) for shape in shapes]
        gradients[0][0, :5] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, 1e-30])
        for one, gradient in zip(alone, gradients, strict=True):
            one.step(gradient, 0.2)
        whole.step(torch.cat([gradient.flatten() for gradient in gradients]).view(whole.u.shape), 0.2)
        values = whole.values().flatten().split([gradient.numel() for gradient in gradients])
        for one, part, of_one in zip(alone, parts, values, strict=True):
            assert_same_bits(part.u, one.u)
            assert_same_bits(of_one.view(one.u.shape), one.values())
            assert_same_bits(decode(part.encoded()), decode(one.encoded()))


def test_a_short_last_block_has_the_scale_that_it_has() -> None:
    w, fmt = weight(), MXFormat("fp4_e2m1", 16)  # 40 columns
    start = encode(w, fmt)
    unrounded = Unrounded.of(w, start)
    assert not unrounded.is_whole
    assert torch.equal(unrounded.values(), decode(start))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_gpu_takes_the_steps_of_the_host(fmt: MXFormat) -> None:
    w, drawn = weight(), torch.Generator().manual_seed(2)
    start = solve(w, fmt, hessian(), OPTIONS)
    of_host, of_gpu = Unrounded.of(w, start), Unrounded.of(w.cuda(), start.to("cuda"))
    for _ in range(3):
        gradient = torch.randn(w.shape, generator=drawn)
        gradient[0, :4] = torch.tensor([0.0, torch.nan, torch.inf, -1e-30])
        of_host.step(gradient, 0.2)
        of_gpu.step(gradient.cuda(), 0.2)
        assert_same_bits(of_gpu.u.cpu(), of_host.u)
        assert_same_bits(of_gpu.values().cpu(), of_host.values())
