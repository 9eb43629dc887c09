"""Declare the architectures of the matrix, each a tiny model with random weights of its real class.

An architecture is named by transformers' ``model_type``. Its config gets those of the common sizes that the config's
class has a field for, and the fields that are declared for it: what makes it itself (its kinds of layers, a window
that is shorter than the texts, experts of which a token gets two), and sizes under names of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 97
POSITIONS = 64
WINDOW = 8  # of sliding attention: shorter than the texts that are read

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": POSITIONS,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, "init_std": 0.2,
    "sliding_window": WINDOW,
    # of experts
    "num_experts": 5, "num_local_experts": 5, "n_routed_experts": 5, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_shared_experts": 1, "num_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    # of latent attention, linear attention and state spaces
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    "index_topk": 4, "index_head_dim": 16, "index_n_heads": 8,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_head_dim": 16, "linear_num_heads": 4,
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_chunk_size": 16, "mamba_expand": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Name an architecture and what its config states beside the common sizes.

    Attributes:
        title: what people call it.
        model_type: transformers' name for it.
        spans: whether it is one of the few that are measured whenever tests are run.
    """

    title: str
    model_type: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    spans: bool = False

    def config(self) -> PreTrainedConfig:
        """Return its config."""
        return _sized(CONFIG_MAPPING[self.model_type], self.fields)

    def build(self, device: str = "cpu") -> PreTrainedModel:
        """Return its model in float32 with the attention that transformers picks; the same weights each time."""
        torch.manual_seed(0)
        with torch.device(device):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config())
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and "norm" not in name and not parameter.any():
                    nn.init.normal_(parameter, std=0.1)  # a bias of zeros would hide that it is left out
        return model.float().eval()


def _sized(config_class: type[PreTrainedConfig], fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a config of these fields, and of the common sizes for all others that the class has fields for.

    Of a model of several parts the common sizes are those of each part that is declared.
    """
    renamed = config_class.attribute_map
    known = {field.name for field in dataclasses.fields(config_class)} | set(renamed)
    stated = {renamed.get(name, name) for name in fields}
    parts = {name: config_class.sub_configs[name] for name in fields if name in config_class.sub_configs}
    if parts:
        of_parts = {name: _sized(_part_class(part, fields[name]), fields[name]) for name, part in parts.items()}
        return config_class(**{**fields, **of_parts})
    common = {name: size for name, size in SIZES.items() if name in known and renamed.get(name, name) not in stated}
    return config_class(**common, **fields)


def _part_class(declared: type, fields: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """Return the class of a part's config: the declared one, or that of its ``model_type``."""
    return CONFIG_MAPPING[fields["model_type"]] if declared is AutoConfig else declared


def _mixed(*types: str) -> dict[str, Any]:
    """Return the fields of a model whose layers attend in different ways."""
    return {"layer_types": list(types), "num_hidden_layers": len(types)}


_SLIDING_AND_FULL = _mixed("sliding_attention", "full_attention")
_ALL_HEADS = {"num_key_value_heads": 4}
_NO_SLIDING = {"sliding_window": None}

ARCHITECTURES = (
    # Built as Llama is.
    Architecture("Llama", "llama", spans=True),
    Architecture("Mistral", "mistral"),
    Architecture("Ministral", "ministral", _SLIDING_AND_FULL),
    Architecture("Ministral 3", "ministral3"),
    Architecture("Qwen2", "qwen2"),
    Architecture("Qwen3", "qwen3"),
    Architecture("Granite", "granite", {"embedding_multiplier": 2.0, "logits_scaling": 0.5}),
    Architecture("SmolLM3", "smollm3", {"no_rope_layers": [1, 0]}),
    Architecture("Seed-OSS", "seed_oss"),
    Architecture("Helium", "helium"),
    Architecture("Ernie 4.5", "ernie4_5"),
    Architecture("CWM", "cwm", _SLIDING_AND_FULL),
    Architecture("HyperCLOVA X", "hyperclovax"),
    Architecture("InternLM3", "internlm3"),
    # Other norms, caps, scales and windows.
    Architecture("Gemma", "gemma"),
    Architecture("Gemma 2", "gemma2", _SLIDING_AND_FULL, spans=True),
    Architecture("Gemma 3 (text)", "gemma3_text", _SLIDING_AND_FULL),
    Architecture("VaultGemma", "vaultgemma", _SLIDING_AND_FULL),
    Architecture("OLMo", "olmo"),
    Architecture("OLMo 2", "olmo2"),
    Architecture("OLMo 3", "olmo3", _SLIDING_AND_FULL),
    Architecture("Cohere", "cohere", {"logit_scale": 1.0}),
    Architecture("Cohere 2", "cohere2", _SLIDING_AND_FULL | {"logit_scale": 1.0}),
    Architecture("StableLM", "stablelm"),
    Architecture("EXAONE 4", "exaone4", _SLIDING_AND_FULL),
    Architecture("HunYuan (dense)", "hunyuan_v1_dense"),
    Architecture("nanochat", "nanochat"),
    Architecture("DiffLlama", "diffllama"),
    Architecture("BitNet", "bitnet"),
    # Two matrices in the MLP, or several in one weight.
    Architecture("Phi", "phi"),
    Architecture("Phi-3", "phi3", spans=True),
    Architecture("GPT-NeoX", "gpt_neox", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                                                               "rope_type": "default"}}),
    Architecture("GLM", "glm"),
    Architecture("GLM-4", "glm4"),
    Architecture("StarCoder2", "starcoder2"),
    Architecture("Nemotron", "nemotron"),
    Architecture("Arcee", "arcee"),
    Architecture("Apertus", "apertus"),
    Architecture("Jais 2", "jais2"),
    Architecture("GPT-BigCode", "gpt_bigcode"),
    Architecture("Persimmon", "persimmon"),
    Architecture("OPT", "opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}, spans=True),
    Architecture("BioGPT", "biogpt"),
    Architecture("XGLM", "xglm", {"ffn_dim": 128}),
    # Layers of other classes, and attention of their own.
    Architecture("GPT-2", "gpt2", spans=True),
    Architecture("Falcon", "falcon", spans=True),
    Architecture("Falcon (grouped)", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Architecture("GPT-J", "gptj", {"rotary_dim": 8}),
    Architecture("GPT-Neo", "gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}),
    Architecture("CodeGen", "codegen", {"rotary_dim": 8}),
    Architecture("Bloom", "bloom"),
    Architecture("MPT", "mpt"),
    # Mixtures of experts.
    Architecture("Mixtral", "mixtral", spans=True),
    Architecture("Qwen2-MoE", "qwen2_moe", spans=True),
    Architecture("Qwen3-MoE", "qwen3_moe", _NO_SLIDING),
    Architecture("GPT-OSS", "gpt_oss", _SLIDING_AND_FULL | {"intermediate_size": 64}, spans=True),
    Architecture("OLMoE", "olmoe"),
    Architecture("FlexOlmo", "flex_olmo"),
    Architecture("GraniteMoE", "granitemoe"),
    Architecture("GraniteMoE (shared)", "granitemoeshared", {"shared_intermediate_size": 32}),
    Architecture("MiniMax-M2", "minimax_m2", {"intermediate_size": 32}),
    Architecture("Phi-3.5-MoE", "phimoe", _NO_SLIDING),
    Architecture("Llama 4 (text)", "llama4_text", {"intermediate_size": 32, "intermediate_size_mlp": 128,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0],
        "attention_chunk_size": WINDOW}, spans=True),
    Architecture("Ernie 4.5 MoE", "ernie4_5_moe", {"moe_num_shared_experts": 1}),
    Architecture("HunYuan-MoE", "hunyuan_v1_moe", spans=True),
    Architecture("dots.llm1", "dots1", _SLIDING_AND_FULL | _ALL_HEADS),
    Architecture("GLM-4.5", "glm4_moe"),
    Architecture("JetMoE", "jetmoe", {"kv_channels": 16, "num_key_value_heads": 2}),
    Architecture("LFM2-MoE", "lfm2_moe", _mixed("conv", "full_attention")),
    Architecture("AFMoE", "afmoe", _SLIDING_AND_FULL),
    Architecture("EXAONE MoE", "exaone_moe", _SLIDING_AND_FULL),
    Architecture("Solar Open", "solar_open"),
    Architecture("MiMo-V2-Flash", "mimo_v2_flash", _SLIDING_AND_FULL),
    # A cache of latents.
    Architecture("DeepSeek-V2", "deepseek_v2", _ALL_HEADS | {"n_group": None, "topk_group": None}),
    Architecture("DeepSeek-V3", "deepseek_v3", _ALL_HEADS, spans=True),
    Architecture("DeepSeek-V3.2", "deepseek_v32", _ALL_HEADS | {"head_dim": 8}),
    Architecture("GLM-MoE-DSA", "glm_moe_dsa", _ALL_HEADS),
    Architecture("GLM-4.7-Flash", "glm4_moe_lite", _ALL_HEADS),
    Architecture("Youtu", "youtu", _ALL_HEADS),
    Architecture("MiniCPM3", "minicpm3", _ALL_HEADS),
    Architecture("LongCat-Flash", "longcat_flash", _ALL_HEADS | {"head_dim": 8, "zero_expert_num": 2,
        "num_layers": 2, "expert_ffn_hidden_size": 32}),
    Architecture("DeepSeek-V4", "deepseek_v4", {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 16}),
    # Linear attention, convolutions and state spaces, alone or between layers that attend.
    Architecture("Qwen3-Next", "qwen3_next", _mixed("linear_attention", "full_attention"), spans=True),
    Architecture("Qwen3.5 (text)", "qwen3_5_text", _mixed("linear_attention", "full_attention")),
    Architecture("Qwen3.5-MoE (text)", "qwen3_5_moe_text", _mixed("linear_attention", "full_attention")),
    Architecture("LFM2", "lfm2", _mixed("conv", "full_attention")),
    Architecture("Bamba", "bamba", {"attn_layer_indices": [1]}),
    Architecture("Falcon-H1", "falcon_h1", {"mamba_d_ssm": 128}),
    Architecture("GraniteMoE (hybrid)", "granitemoehybrid", _mixed("mamba", "attention")
        | {"shared_intermediate_size": 32}),
    Architecture("Jamba", "jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}),
    Architecture("Nemotron-H", "nemotron_h", {"layers_block_type": ["mamba", "attention", "moe"],
        "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1, "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 32}),
    Architecture("MiniMax-01", "minimax", _mixed("linear_attention", "full_attention") | {"block_size": 16}),
    Architecture("Kimi-Linear", "kimi_linear", _mixed("linear_attention", "full_attention") | _ALL_HEADS),
    Architecture("OLMo (hybrid)", "olmo_hybrid", _mixed("linear_attention", "full_attention")),
    Architecture("RecurrentGemma", "recurrent_gemma", {"block_types": ["recurrent", "attention"]}),
    Architecture("Mamba", "mamba", spans=True),
    Architecture("Falcon-Mamba", "falcon_mamba"),
    Architecture("Mamba-2", "mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16,
        "chunk_size": 16}),
    Architecture("RWKV", "rwkv"),
    # Parts that a text alone does not reach, and streams beside the residual one.
    Architecture("Gemma 3n (text)", "gemma3n_text", _SLIDING_AND_FULL | {"num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.0], "intermediate_size": [128, 128]}),
    Architecture("Gemma 4 (text)", "gemma4_text", _SLIDING_AND_FULL | {"hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCABULARY}),
    Architecture("Gemma 3 (with images)", "gemma3", {"text_config": _SLIDING_AND_FULL, "vision_config": {
        "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 16, "vision_use_head": False},
        "mm_tokens_per_image": 4}, spans=True),
    Architecture("Gemma 4 (with images)", "gemma4", {"text_config": _SLIDING_AND_FULL | {
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY}, "vision_config": {}}),
    Architecture("Llama 4 (with images)", "llama4", {"text_config": {"intermediate_size": 32,
        "intermediate_size_mlp": 128, "num_experts_per_tok": 1, "attention_chunk_size": WINDOW},
        "vision_config": {"image_size": 32, "patch_size": 16, "projector_input_dim": 64, "projector_output_dim": 64,
        "vision_output_dim": 64}}),
    Architecture("Llama 3.2 (with images)", "mllama", {"text_config": {"num_hidden_layers": 3,
        "cross_attention_layers": [1]}, "vision_config": {"num_global_layers": 1,
        "attention_heads": 4, "image_size": 32, "patch_size": 16, "vision_output_dim": 64,
        "intermediate_layers_indices": [0]}}),
)  # fmt: skip


def by_title(title: str) -> Architecture:
    """Return the architecture of this title."""
    return next(architecture for architecture in ARCHITECTURES if architecture.title == title)
