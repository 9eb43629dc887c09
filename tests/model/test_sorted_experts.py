"""Llama 4's experts, which are called with rows sorted by expert: as a loop that is written out here has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Llama4TextConfig, PreTrainedModel

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.calibrate.sequential import solve_weights
from mxsweep.formats.recipe import Rotation
from mxsweep.model.experts import MXSortedExperts
from mxsweep.model.footprint import footprint
from mxsweep.model.operands import find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import left_out
from mxsweep.numerics import Encoded, MXFormat, encode, quantize
from mxsweep.numerics.hadamard import hadamard

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "head_dim": 16,
    "intermediate_size_mlp": 96, "num_local_experts": 4, "interleave_moe_layer_step": 2, "initializer_range": 0.1,
}  # fmt: skip
FP4, FP6 = MXFormat("fp4_e2m1", 16), MXFormat("fp6_e2m3", 16)
NAME = "model.layers.1.feed_forward.experts"


def build() -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Llama4TextConfig(**SIZES)).float().eval()
    for parameter in model.model.layers[1].feed_forward.experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def by_hand(experts: Any, x: Tensor, weight: Any, read: Any) -> Tensor:
    """Each expert's rows times its matrices, (N, C) as they are passed to ``weight``."""
    answers = []
    for expert, rows in enumerate(x.view(len(experts.down_proj), -1, 64)):
        first = experts.gate_up_proj[expert].T
        gate, up = weight(first[: len(first) // 2]), weight(first[len(first) // 2 :])
        rows = read(rows)
        hidden = torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)
        answers.append(read(hidden) @ weight(experts.down_proj[expert].T).T)
    return torch.cat(answers)


def exact(fmt: MXFormat) -> Any:
    return lambda x: quantize(x.contiguous(), fmt, arithmetic="exact")


@pytest.mark.parametrize("rotated", [False, True], ids=["plain", "rotated"])
@torch.no_grad()
def test_rows_are_multiplied_as_by_hand_and_the_module_is_put_back(rotated: bool) -> None:
    model = build()
    experts = model.model.layers[1].feed_forward.experts
    operands = [operand for operand in find_operands(model).values() if operand.module is experts]
    x = torch.randn(4 * 7, 64)
    x[[0, 3, 9, 27]] = 0  # tokens that are not for an expert
    assert torch.allclose(by_hand(experts, x, lambda w: w, lambda w: w), experts(x), atol=1e-5)
    rotation = Rotation(("q", "k", "v", "o", "gate", "up", "down"), 16) if rotated else None
    recipe = Recipe(LinearFormats(FP4, FP6), arithmetic="exact", rotation=rotation)
    turn: Any = (lambda w: hadamard(w.contiguous(), 16)) if rotated else (lambda w: w)
    expected = by_hand(experts, x, lambda w: exact(FP4)(turn(w)), lambda w: exact(FP6)(turn(w)))
    with quantize_model(model, recipe):
        stand_in = model.get_submodule(NAME)
        assert isinstance(stand_in, MXSortedExperts)
        torch.testing.assert_close(stand_in(x), expected, rtol=1e-4, atol=1e-5)
        assert not stand_in(x)[[0, 3, 9, 27]].any()
        with left_out(model, operands):
            torch.testing.assert_close(stand_in(x), experts(x), rtol=1e-5, atol=1e-5)
    assert model.get_submodule(NAME) is experts


def test_matrices_are_named_counted_and_planned() -> None:
    model = build()
    operands = {name: operand for name, operand in find_operands(model).items() if operand.expert is not None}
    assert list(operands)[:3] == [f"{NAME}.0.{role}_proj" for role in ("gate", "up", "down")] and len(operands) == 12
    assert {operand.role: operand.shape for operand in operands.values()} == {
        "gate": (96, 64),
        "up": (96, 64),
        "down": (64, 96),
    }
    recipe = Recipe(LinearFormats(FP4, FP6))
    planned = footprint(model, recipe)
    with quantize_model(model, recipe) as report:
        assert planned.bits_per_weight == report.bits_per_weight
        assert report.bits_per_quantized_weight == FP4.bits_per_element
    assert not report.warnings and set(report.stored.left) == {"feed_forward.router"}


@torch.no_grad()
def test_only_tokens_that_reach_an_expert_are_calibrated_on() -> None:
    model = build()
    experts = model.model.layers[1].feed_forward.experts
    read: list[Tensor] = []
    experts.register_forward_pre_hook(lambda _module, args: read.append(args[0].view(4, -1, 64)))
    batches = [torch.randint(1, 97, (3, 16), generator=torch.Generator().manual_seed(number)) for number in range(30)]
    for batch in batches:
        model(batch)
    rows = torch.cat(read, dim=1)
    reached = [x[(x != 0).any(dim=1)] for x in rows]
    assert sum(map(len, reached)) == 30 * 3 * 16  # each token reaches one
    asked: list[Tensor] = []

    def solve(weight: Tensor, hessian: Tensor | None, fmt: MXFormat) -> Encoded:
        assert hessian is not None
        asked.append(hessian.clone())
        return encode(weight, fmt)

    names = ("*.experts.*.gate_proj", LinearFormats(MXFormat("fp8_e4m3"), None))
    solve_weights(model, Recipe(modules=(names,)), Prepared(), batches, solve)
    for hessian, x in zip(asked, reached, strict=True):
        torch.testing.assert_close(hessian, 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch_under_stochastic_rounding() -> None:
    model = build()
    stochastic = MXFormat("fp4_e2m1", 16, rounding="stochastic")
    ids = torch.randint(1, 97, (3, 9), generator=torch.Generator().manual_seed(0))
    with quantize_model(model, Recipe(LinearFormats(FP4, stochastic), arithmetic="exact")):
        together = model(ids, use_cache=False).logits
        alone = torch.cat([model(row[None], use_cache=False).logits for row in ids])
    assert (together - alone).abs().max() < 1e-3
