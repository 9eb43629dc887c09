"""Build tiny mixtures of experts of several architectures, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
CHOSEN: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **CHOSEN, num_experts=4, head_dim=16),
    # Transposed, with biases, and gate and up interleaved.
    "gpt_oss": GptOssConfig(**SIZES, num_experts_per_tok=2, num_local_experts=4, head_dim=16),
    "olmoe": OlmoeConfig(**SIZES, num_experts_per_tok=2, num_experts=4),
    "deepseek_v3": DeepseekV3Config(**SIZES | {"num_key_value_heads": 4}, **CHOSEN, q_lora_rank=16, kv_lora_rank=16,
                                    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=4,
                                    n_shared_experts=1, first_k_dense_replace=1, n_group=1, topk_group=1),
    # With linear layers that read tokens without a batch.
    "qwen2_moe": Qwen2MoeConfig(**SIZES, **CHOSEN, num_experts=4, shared_expert_intermediate_size=32),
    "phimoe": PhimoeConfig(**SIZES, num_experts_per_tok=2, num_local_experts=4),
}  # fmt: skip
ATTENTION = {"gpt_oss": "eager"}


def build(name: str, device: str = "cpu") -> PreTrainedModel:
    """Return a model in float32; biases of experts are not zero."""
    torch.manual_seed(0)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("_bias") and device == "cpu":
            nn.init.normal_(parameter, std=0.1)
    return model.float().eval()
