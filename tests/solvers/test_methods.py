"""Weight methods by their names: each is solved as its file says, and each leaves no more loss than the one before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.hessian_loss import hessian_loss
from torch import Tensor

from mxsweep.config.weight_methods import WEIGHT_METHODS, Needs
from mxsweep.numerics import MXFormat, decode, quantize
from mxsweep.solvers.clip import search_scales
from mxsweep.solvers.gptq import gptq
from mxsweep.solvers.methods import load_method

OPTIONS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "clip": {"clip_loss": "output"},
    "gptq": {"clip_loss": "weight", "damping": 0.02, "act_order": False},
    "autoround": {"clip_loss": "weight", "damping": 0.02, "act_order": False, "steps": 10},
    "qat": {"clip_loss": "weight", "damping": 0.02, "act_order": False, "steps": 10},
}
FMT = MXFormat("fp4_e2m1", 16)


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 48, generator=generator) @ torch.randn(48, 48, generator=generator)
    return torch.randn(24, 48, generator=generator), 2 * x.T @ x / len(x)


def test_options_are_those_that_are_declared() -> None:
    assert {name: set(options) for name, options in OPTIONS.items()} == {
        name: set(method.options) for name, method in WEIGHT_METHODS.items()
    }


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("rtn", {}, Needs.NOTHING),
        ("clip", {"clip_loss": "output"}, Needs.SECOND_MOMENTS),
        ("clip", {"clip_loss": "weight"}, Needs.NOTHING),
        ("gptq", OPTIONS["gptq"], Needs.HESSIAN),
        ("autoround", OPTIONS["autoround"], Needs.HESSIAN),
        ("qat", OPTIONS["qat"], Needs.HESSIAN),
    ],
)
def test_what_a_method_needs_is_enough(
    name: str, options: dict[str, Any], needs: Needs, problem: tuple[Tensor, Tensor]
) -> None:
    weight, hessian = problem
    assert WEIGHT_METHODS[name].needs(options) is needs
    solve = load_method(name)
    expected = decode(solve(weight, FMT, hessian, options))
    if needs is Needs.NOTHING:
        assert torch.equal(decode(solve(weight, FMT, None, options)), expected)
    if needs is Needs.SECOND_MOMENTS:
        assert torch.equal(decode(solve(weight, FMT, hessian.diagonal().diag(), options)), expected)


def test_methods_are_their_algorithms(problem: tuple[Tensor, Tensor]) -> None:
    weight, hessian = problem
    solved = {name: decode(load_method(name)(weight, FMT, hessian, options)) for name, options in OPTIONS.items()}
    assert torch.equal(solved["rtn"], quantize(weight, FMT, arithmetic="exact"))
    assert torch.equal(solved["clip"], search_scales(weight, FMT, hessian.diagonal()).quantize(weight, FMT))
    by_weight = search_scales(weight, FMT)
    expected = gptq(weight, hessian, FMT, by_weight, damping=0.02, act_order=False)
    assert torch.equal(solved["gptq"], expected)
    for tuned in ("autoround", "qat"):
        assert torch.equal(solved.pop(tuned), expected)  # which tuning and finetuning begin with
    losses = [hessian_loss(weight, q, hessian) for q in solved.values()]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3
