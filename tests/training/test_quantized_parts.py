"""Fused weights and experts under training layers: as evaluation has them, and each matrix with formats of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.mixtures import build
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, Llama4TextConfig, PreTrainedModel

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.formats.training import LayerFormats, OperandFormat, ProductFormats, TrainingRecipe
from mxsweep.numerics import MXFormat
from mxsweep.training.layers import training_layers
from mxsweep.training.roles import RoleObserver
from mxsweep.training.step import Step

FP4, TILES = MXFormat("fp4_e2m1", 16), MXFormat("fp6_e2m3", (8, 16))
NVFP4 = MXFormat("fp4_e2m1", 16, scale="e4m3", tensor_scale=True)


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(config).float().eval()


def llama4() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, head_dim=16, intermediate_size_mlp=96, num_local_experts=4,
        interleave_moe_layer_step=2, initializer_range=0.1, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.model.layers[1].feed_forward.experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


MODELS: dict[str, Any] = {
    "gpt2": gpt2, "llama4": llama4, **{n: lambda n=n: build(n) for n in ("mixtral", "gpt_oss", "deepseek_v3")}
}  # fmt: skip


def ids(batch: int = 3, tokens: int = 16) -> Tensor:
    return torch.randint(1, 97, (batch, tokens), generator=torch.Generator().manual_seed(1))


def of_fprop(weight: MXFormat | None, activation: MXFormat | None) -> LayerFormats:
    first, second = (None if fmt is None else OperandFormat(fmt) for fmt in (activation, weight))
    return LayerFormats(ProductFormats(first, second))


OWN = {"*.q_proj": (None, None), "*.1.gate_proj": (TILES, None)}


@pytest.mark.parametrize("modules", [{}, OWN], ids=["all", "own"])
@pytest.mark.parametrize("weight", [FP4, TILES, NVFP4], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_forward_is_that_of_evaluation(name: str, weight: MXFormat, modules: dict[str, Any]) -> None:
    model = MODELS[name]()
    activation = FP4 if weight is TILES else weight
    if name == "gpt2":
        modules = {pattern: formats for pattern, formats in modules.items() if "gate" not in pattern}
    elif name == "deepseek_v3":
        modules = {pattern: formats for pattern, formats in modules.items() if "q_proj" not in pattern}
    recipe = Recipe(
        LinearFormats(weight, activation),
        modules=tuple((pattern, LinearFormats(*formats)) for pattern, formats in modules.items()),
        arithmetic="exact",
    )
    trained = TrainingRecipe(
        of_fprop(weight, activation),
        modules=tuple((pattern, of_fprop(*formats)) for pattern, formats in modules.items()),
        arithmetic="exact",
    )
    with quantize_model(model, recipe):
        evaluated = model(ids()).logits
    with training_layers(model, trained, Step()):
        answered = model(ids()).logits
    torch.testing.assert_close(answered, evaluated, rtol=1e-4, atol=1e-4)


def gradients(model: PreTrainedModel, recipe: TrainingRecipe) -> dict[str, Tensor]:
    model.zero_grad()
    with training_layers(model, recipe, Step()):
        model(ids(), labels=ids()).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["gpt2", "llama4", "mixtral", "gpt_oss"])
def test_gradients_through_formats_that_lose_little(name: str) -> None:
    """Of every parameter: experts, biases and routers, too."""
    model = MODELS[name]()
    fine = OperandFormat(MXFormat("fp16_e5m10", 16))
    both = ProductFormats(fine, fine)
    plain = gradients(model, TrainingRecipe())
    found = gradients(model, TrainingRecipe(LayerFormats(both, both, both)))
    assert found.keys() == plain.keys()
    for parameter, gradient in plain.items():
        error = float((found[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-9))
        assert error < 0.01, (parameter, error)


def test_rows_of_a_fused_weight_have_formats_of_their_own() -> None:
    model = gpt2()
    fmt = OperandFormat(FP4)
    only = LayerFormats(wgrad=ProductFormats(fmt, fmt))
    plain = gradients(model, TrainingRecipe())
    found = gradients(model, TrainingRecipe(modules=(("*.c_attn.k_proj", only),)))
    name = "transformer.h.1.attn.c_attn.weight"
    columns = (found[name] - plain[name]).abs().amax(0).split(32)
    assert float(columns[0].max()) < 1e-6 < float(columns[1].max()) and float(columns[2].max()) < 1e-6


def test_experts_with_formats_of_their_own_have_names_of_their_own() -> None:
    """So that what is measured of them stands apart, and they draw apart."""
    own = {"*.0.down_proj": of_fprop(TILES, FP4), "*.1.gate_proj": of_fprop(TILES, FP4)}
    recipe = TrainingRecipe(of_fprop(FP4, FP4), tuple(own.items()))
    model, step = build("mixtral"), Step(observer=RoleObserver())
    with training_layers(model, recipe, step):
        model(input_ids=ids())
    assert step.observer is not None
    weights = [row for row in step.observer.rows(1) if row["operand"] == "fprop.weight"]
    experts = [row for row in weights if ".experts." in row["module"]]
    names = {row["module"].partition(".experts.")[2] for row in experts if "layers.0." in row["module"]}
    assert {"down_proj.0.down_proj", "down_proj.1.down_proj", "gate_up_proj.1.gate_proj"} <= names
    for name in names:
        formats = {
            row["format"] for row in experts if row["module"].endswith(name) and row["operand"] == "fprop.weight"
        }
        assert len(formats) == 1
