"""A model with fused weights is calibrated, budgeted and measured as the same model with a layer for each role."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoded import decoded
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedModel

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.calibrate.budget import counted_modules, measure_costs
from mxsweep.calibrate.sequential import solve_weights
from mxsweep.formats.recipe import Rotation
from mxsweep.forward.batches import unpadded_batches
from mxsweep.forward.sequence_loss import Divergence
from mxsweep.measure.sensitivity import measure, parts_of
from mxsweep.model.operands import find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.numerics import Encoded, MXFormat, encode

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.1,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
FP4, FP8 = MXFormat("fp4_e2m1", 16), MXFormat("fp8_e4m3", 16)
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
RECIPES = {
    "one format": Recipe(LinearFormats(FP4, FP8), arithmetic="exact"),
    "a scale per tensor": Recipe(LinearFormats(NVFP4, FP8), arithmetic="exact"),
    "several, rotated": Recipe(
        LinearFormats(FP4, FP8), arithmetic="exact", rotation=Rotation(("q", "k", "up", "down"), 16),
        modules=(("*.k_proj", LinearFormats(FP8, None)), ("*.gate_proj", LinearFormats(FP8, FP4))),
    ),
}  # fmt: skip


def short(name: str) -> str:
    return name.replace("qkv_proj.", "").replace("gate_up_proj.", "")


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A Phi-3, and the Llama that computes the same."""
    torch.manual_seed(0)
    fused = AutoModelForCausalLM.from_config(Phi3Config(**SIZES)).float().eval()
    split = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).float().eval()
    state = {name: value for name, value in fused.state_dict().items() if "qkv" not in name and "gate_up" not in name}
    for number, layer in enumerate(fused.model.layers):
        block = f"model.layers.{number}"
        rows = dict(zip("qkv", layer.self_attn.qkv_proj.weight.split([64, 32, 32]), strict=True))
        state |= {f"{block}.self_attn.{role}_proj.weight": weight for role, weight in rows.items()}
        gate, up = layer.mlp.gate_up_proj.weight.chunk(2)
        state |= {f"{block}.mlp.gate_proj.weight": gate, f"{block}.mlp.up_proj.weight": up}
    split.load_state_dict(state)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(fused(ids).logits, split(ids).logits)
    return fused, split


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 97, 24) for _ in range(6)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_weights_are_solved_with_the_same_hessians_and_formats(
    models: tuple[PreTrainedModel, PreTrainedModel], sequences: list[np.ndarray], recipe: Recipe
) -> None:
    asked: list[list[tuple[Tensor, Tensor, MXFormat]]] = []

    def solved(model: PreTrainedModel) -> dict[str, Tensor]:
        asked.append([])

        def solve(weight: Tensor, hessian: Tensor | None, fmt: MXFormat) -> Encoded:
            assert hessian is not None
            asked[-1].append((weight.clone(), hessian.clone(), fmt))
            return encode(weight, fmt)

        batches = unpadded_batches(sequences, torch.device("cpu"))
        weights = solve_weights(model, recipe, Prepared(), batches, solve).weights
        with quantize_model(model, recipe, prepared=Prepared(weights=weights)) as report:
            assert all(layer.prepared for layer in report.layers)
        return {short(name): weight for name, weight in decoded(weights).items()}

    of_fused, of_split = (solved(model) for model in models)
    assert of_fused.keys() == of_split.keys() and len(of_fused) == 14
    for name, weight in of_fused.items():
        assert torch.equal(weight, of_split[name])
    assert len(asked[0]) == len(asked[1])
    of_first_block = len(asked[0]) // 2  # beyond it a value that rounds the other way moves what follows
    for fused, split in zip(asked[0][:of_first_block], asked[1][:of_first_block], strict=True):
        assert fused[2] == split[2] and torch.equal(fused[0], split[0])
        assert (fused[1] - split[1]).norm() < 0.05 * split[1].norm()


def test_weights_prepared_under_other_names_are_refused(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    model, name = models[0], "model.layers.0.self_attn.qkv_proj"
    before = dict(model.named_modules())
    weights = {name: model.get_submodule(name).weight.detach()}  # of the whole layer, which rounding would pass over
    with pytest.raises(ValueError, match=rf"^prepared\.weights: no operand of Phi3ForCausalLM has the name {name}$"):
        quantize_model(model, RECIPES["one format"], prepared=Prepared(weights=weights)).__enter__()
    assert dict(model.named_modules()) == before


def test_a_budget_counts_and_measures_each_role(
    models: tuple[PreTrainedModel, PreTrainedModel], sequences: list[np.ndarray]
) -> None:
    recipe = Recipe(
        LinearFormats(FP4, FP4), arithmetic="exact", modules=(("*.1.mlp.gate_up_proj", LinearFormats(FP8)),)
    )
    candidates = {"fp4": LinearFormats(FP4, None)}
    sizes, fixed = counted_modules(models[0], recipe, candidates)
    assert {short(name) for name in sizes} == {
        short(name)
        for name, operand in find_operands(models[0]).items()
        if operand.block and ".1.mlp.gate_up" not in name
    }
    assert fixed == (2 * 96 * FP8.stored_bits((1, 64)), 2 * 96 * 64)
    of_fused, of_split = (
        measure_costs(model, replace(recipe, modules=()), candidates, Divergence(model, sequences)) for model in models
    )
    own = {short(name): cost["fp4"] for name, cost in of_fused.items()}
    assert own == {name: pytest.approx(cost["fp4"], rel=1e-3) for name, cost in of_split.items()}


def test_sensitivity_measures_each_role(
    models: tuple[PreTrainedModel, PreTrainedModel], sequences: list[np.ndarray]
) -> None:
    recipe = Recipe(LinearFormats(FP4, None), arithmetic="exact")
    kinds = [{part.name: part.weights for part in parts_of(model, recipe, "kind")} for model in models]
    assert kinds[0] == kinds[1] and set(kinds[0]) == {"q", "k", "v", "o", "gate", "up", "down"}
    of_fused, of_split = (
        {
            loss.part.name: loss
            for loss in measure(model, recipe, Divergence(model, sequences), "kind", Prepared(), print).parts
        }
        for model in models
    )
    for name, loss in of_fused.items():
        assert loss.alone.kl == pytest.approx(of_split[name].alone.kl, rel=1e-3)
        assert loss.without.kl == pytest.approx(of_split[name].without.kl, rel=1e-3)
