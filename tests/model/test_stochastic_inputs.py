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
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)

from mxsweep import LinearFormats, Recipe, quantize_model
from mxsweep.model.linear import stochastic_key
from mxsweep.model.quantize import observed
from mxsweep.numerics import MXFormat, quantize
from mxsweep.terminal.errors import ConfigError

FP4 = MXFormat("fp4_e2m1", block_size=16, rounding="stochastic")
RECIPE = Recipe(LinearFormats(FP4, FP4), arithmetic="exact", seed=3)
SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
LLAMA_4: dict[str, Any] = SIZES | {
    "head_dim": 16, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1, "num_experts_per_tok": 1,
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
    # one expert a token: of four, of four called with rows sorted by expert, and of one
    "top_1": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=1),
    "sorted_top_1": Llama4TextConfig(**LLAMA_4, num_local_experts=4),
    "sorted_top_1_of_1": Llama4TextConfig(**LLAMA_4, num_local_experts=1),
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


@pytest.mark.parametrize("name", [name for name in CONFIGS if "top_1" in name])
def test_tokens_with_one_expert_each_get_the_random_numbers_of_their_places(name: str) -> None:
    """As the rows of a tensor (B, T, C) do, and not all tokens the same."""
    model, seen = build(CONFIGS[name]), 0

    def compare(_kind: str, of_input: str, x: Tensor, fmt: MXFormat, quantized: Tensor, _: Any) -> None:
        nonlocal seen
        if ".experts." in of_input:
            seen += 1
            by_place = x.reshape(3, 12, -1)
            key = stochastic_key(RECIPE.seed, of_input)
            expected = quantize(by_place, fmt, arithmetic="exact", generator=key, tensor_dims=(-1,), example_dims=1)
            assert torch.equal(quantized.reshape(by_place.shape), expected), of_input

    with quantize_model(model, RECIPE), observed(model, compare):
        logits(model, tokens())
    assert seen >= 4  # what the experts of two layers read, and what their second matrices do


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
