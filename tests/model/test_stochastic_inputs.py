"""Stochastic rounding of inputs: a score does not depend on the batch, in whatever shape tokens are handed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5_MoeConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.numerics import MXFormat
from mxsweep.terminal.errors import ConfigError

FP4 = MXFormat("fp4_e2m1", block_size=16, rounding="stochastic")
RECIPE = Recipe(LinearFormats(FP4, FP4), arithmetic="exact", seed=3)
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    # a shared expert reads (B T, C), the others (B T, C) and (B T, K, C)
    "qwen2_moe": Qwen2MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32
    ),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "ernie4_5_moe": Ernie4_5_MoeConfig(
        **SIZES, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_intermediate_size=32,
        moe_layer_start_index=0, moe_layer_interval=1,
    ),
    "opt": OPTConfig(  # its MLP reads (B T, C)
        vocab_size=97, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, init_std=0.2,
        max_position_embeddings=64, word_embed_proj_dim=64,
    ),
}  # fmt: skip


def build(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


def llama() -> PreTrainedModel:
    return build(LlamaConfig(**SIZES))


def tokens(batch: int = 3, length: int = 12) -> Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_score_does_not_depend_on_the_batch(architecture: str) -> None:
    model, ids = build(CONFIGS[architecture]), tokens()
    with quantize_model(model, RECIPE):
        alone = logits(model, ids[1:2])
        together = logits(model, ids)[1:2]
        padded = logits(model, F.pad(ids, (0, 5)))[1:2, :12]
    for other in (together, padded):
        torch.testing.assert_close(other, alone, rtol=0, atol=1e-5)


def through(shape: Callable[[Tensor], Tensor], model: PreTrainedModel) -> None:
    """Have the MLPs of ``model`` read their tokens in another shape, and answer in the one that they came in."""
    for layer in model.model.layers:
        forward = layer.mlp.forward
        layer.mlp.forward = lambda x, forward=forward: forward(shape(x)).view(x.shape)


@pytest.mark.parametrize("shape", [lambda x: x.flatten(0, 1), lambda x: x.flatten(0, 1).unsqueeze(0)])
def test_the_shape_of_inputs_has_no_say(shape: Callable[[Tensor], Tensor]) -> None:
    """Flattened, an element gets the random number that it has in (B, T, C)."""
    plain, flattened, ids = llama(), llama(), tokens()
    through(shape, flattened)
    with quantize_model(plain, RECIPE), quantize_model(flattened, RECIPE):
        expected = logits(plain, ids)
        assert torch.equal(logits(flattened, ids), expected)
        (decoded,) = flattened.model(input_ids=ids[:2], use_cache=False, return_dict=False)  # the decoder alone
        torch.testing.assert_close(flattened.lm_head(decoded), expected[:2], rtol=0, atol=1e-5)


def test_inputs_of_some_tokens_only_are_refused_on_entering() -> None:
    model = llama()
    model.model.layers[1].mlp.forward = lambda x: x + model.model.layers[1].mlp.gate_proj(x[x[..., 0] > 0]).mean()
    message = (
        r"^rounding: 'stochastic' is not allowed for the inputs of model\.layers\.1\.mlp\.gate_proj, which come as"
    )
    with pytest.raises(ConfigError, match=message):
        quantize_model(model, RECIPE).__enter__()
    assert not any(module._forward_pre_hooks for module in model.modules())
    with quantize_model(model, Recipe(RECIPE.linear, modules=(("*.1.mlp.gate_proj", LinearFormats()),))):
        assert logits(model, tokens()).isfinite().all()
