"""A rotation goes by roles: what has none stays as it is, and is counted and told."""

from __future__ import annotations

import pytest
import torch
from helpers.input_formats import input_formats
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3_5TextConfig

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.formats.recipe import LINEAR_MATMULS, Rotation
from mxsweep.model.footprint import footprint
from mxsweep.model.linear import MXLinear
from mxsweep.numerics import MXFormat

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
LLAMA = LlamaConfig(**SIZES, num_hidden_layers=2)
# Three of its four layers have linear attention, of five projections each.
QWEN = Qwen3_5TextConfig(
    **SIZES, num_hidden_layers=4, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2,
    linear_num_value_heads=4,
)  # fmt: skip
FP4 = MXFormat("fp4_e2m1", 16)
FORMATS = LinearFormats(FP4, FP4)


def build(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.float().eval()


@pytest.mark.parametrize(
    ("config", "matmuls", "rotated", "products"),
    [
        pytest.param(LLAMA, LINEAR_MATMULS, 14, 14, id="all"),
        pytest.param(LLAMA, ("q", "down"), 4, 14, id="those asked for"),
        pytest.param(QWEN, LINEAR_MATMULS, 4 + 4 * 3, 4 + 4 * 3 + 3 * 5, id="in some blocks"),
    ],
)
def test_how_many_products_are_rotated(
    config: PretrainedConfig, matmuls: tuple[str, ...], rotated: int, products: int
) -> None:
    model = build(config)
    recipe = Recipe(FORMATS, rotation=Rotation(matmuls, 16), modules=(("lm_head", FORMATS),))
    planned = footprint(model, recipe)
    with quantize_model(model, recipe) as report:
        layers = [module for module in model.modules() if isinstance(module, MXLinear)]
        assert (
            sum(formats.basis is not None for layer in layers for formats in input_formats(layer).values()) == rotated
        )
    data = report.as_dict()
    assert (data["products_rotated"], data["products"]) == (rotated, products)
    assert f"Rotated {rotated} of {products} quantized products in the decoder blocks" in report.lines()
    assert planned.warnings == tuple(report.warnings)
    warnings = [text for text in report.warnings if text.startswith("rotation")]
    if config is LLAMA:
        assert not warnings
        return
    (warning,) = warnings
    assert warning.startswith("rotation: 16 of 31 quantized products in the decoder blocks are rotated. The others are")
    assert "in_proj_qkv (3), " in warning and "out_proj (3)" in warning


@pytest.mark.parametrize(("kind", "verb"), [("hadamard", "Rotated"), ("wush", "Transformed")])
@pytest.mark.parametrize(
    ("matmuls", "left", "key", "said"),
    [
        (LINEAR_MATMULS, "*.layers.*", None, "in this run, where none of q, k, v, o, gate, up, down is quantized"),
        (("q",), "*.q_proj", None, "in this run, where none of q is quantized"),
        (("q", "qk"), "*.q_proj", FP4, "on linear layers in this run, where none of q is quantized; keys are rotated"),
    ],
)
def test_a_rotation_of_what_stays_as_it_is_is_said_to_have_no_effect(
    kind: str, verb: str, matmuls: tuple[str, ...], left: str, key: MXFormat | None, said: str
) -> None:
    model = build(LLAMA)
    modules = ((left, LinearFormats()), ("lm_head", FORMATS))
    recipe = Recipe(FORMATS, key=key, rotation=Rotation(matmuls, 16, kind), modules=modules)
    assert f"rotation={kind}: has no effect {said}" in footprint(model, recipe).warnings
    with quantize_model(model, recipe) as report:
        assert f"rotation={kind}: has no effect {said}" in report.warnings
    inside = 0 if matmuls == LINEAR_MATMULS else 12
    assert f"{verb} 0 of {inside} quantized products in the decoder blocks" in report.lines()


def test_a_recipe_without_a_rotation_says_nothing_of_any() -> None:
    model = build(LLAMA)
    with quantize_model(model, Recipe(FORMATS)) as report:
        assert "products_rotated" not in report.as_dict() and not any("Rotated" in line for line in report.lines())
