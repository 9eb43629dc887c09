"""Experts stored as the linear layers that checkpoints have them as, which plain transformers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.packed_folder import load_folder
from helpers.packed_weights import peer
from safetensors.torch import save_file

from mxsweep.export.targets import compressed_tensors as target
from mxsweep.export.targets.expert_names import stored_name
from mxsweep.formats.export_targets import why_not_expert
from mxsweep.formats.recipe import LinearFormats
from mxsweep.model.operands import find_operands
from mxsweep.numerics import MXFormat, decode, encode

NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "tie_word_embeddings": False,
}


def test_names() -> None:
    down, gate = "model.layers.0.mlp.experts.3.down_proj", "model.layers.0.mlp.experts.3.gate_proj"
    assert stored_name(down, "qwen3_moe") == down
    assert stored_name(gate, "mixtral") == "model.layers.0.block_sparse_moe.experts.3.w1"
    assert stored_name(down, "mixtral") == "model.layers.0.block_sparse_moe.experts.3.w2"
    for model_type in ("gpt_oss", "granitemoe"):
        with pytest.raises(ValueError, match=rf"^{gate}: checkpoints of type '{model_type}' hold no linear layer"):
            stored_name(gate, model_type)


def test_formats_of_experts() -> None:
    for fmt in (MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3"), MXFormat("int4")):
        assert why_not_expert(target.NAME, fmt) is None
    assert "nvfp4-pack-quantized have no place" in (why_not_expert(target.NAME, NVFP4) or "")
    assert "mxfp8-quantized have no place" in (why_not_expert(target.NAME, MXFormat("fp8_e4m3")) or "")
    assert "inputs" in (why_not_expert(target.NAME, MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1")) or "")
    assert "quark: experts" in (why_not_expert("quark", MXFormat("fp4_e2m1")) or "")
    layers = {f"model.layers.0.mlp.experts.{n}.up_proj": LinearFormats(MXFormat(f"int{4 + n}")) for n in (0, 1)}
    with pytest.raises(ValueError, match="experts have 2 formats"):
        target.quantization_config(layers)


@pytest.mark.parametrize("element", ("fp4_e2m1", "fp6_e2m3", "int4"))
@pytest.mark.parametrize("model_type", ("qwen3_moe", "mixtral"))
def test_plain_transformers_loads_the_same_experts(tmp_path: Path, model_type: str, element: str) -> None:
    peer("compressed_tensors")
    from transformers import AutoConfig, AutoModelForCausalLM

    more = {"moe_intermediate_size": 96, "num_experts": 4, "head_dim": 16, "num_experts_per_tok": 2}
    of_type = {"qwen3_moe": more, "mixtral": {"num_local_experts": 4}}[model_type]
    config = AutoConfig.for_model(model_type, **SIZES, **of_type)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    stored = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    layers = {}
    for operand in find_operands(model).values():
        if operand.block is None or not operand.is_linear or operand.role == "router":
            continue
        fmt = MXFormat(element) if operand.expert is not None else NVFP4
        encoded = encode(operand.weight.detach(), fmt)
        operand.weight.data.copy_(decode(encoded))
        name = operand.name if operand.expert is None else stored_name(operand.name, model_type)
        stored |= target.tensors(name, encoded)
        layers[name] = LinearFormats(fmt)
        whole = next(name for name, parameter in model.named_parameters() if parameter is operand.parameter)
        stored.pop(whole, None)
    assert sum(".experts." in name for name in layers) == 2 * 4 * 3
    written = config.to_dict() | {"quantization_config": target.quantization_config(layers, ["lm_head"])}
    (tmp_path / "config.json").write_text(json.dumps(written))
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_folder(tmp_path, torch.bfloat16)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    different = [n for n, parameter in model.named_parameters() if not torch.equal(loaded.get_parameter(n), parameter)]
    assert different == []
