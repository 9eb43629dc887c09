"""Weights stored in the blocks of GGUF: read back by our reader, by the package, and by transformers from a file."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.packed_folder import formats_by_layer, tiny_llama
from helpers.packed_weights import DTYPES, encoded_weight, mismatches, peer, with_nan_block

from mxsweep.export.targets import gguf as target
from mxsweep.export.targets.gguf_file import (
    model_name,
    read_file,
    stored_name,
    why_not_architecture,
    write_file,
)
from mxsweep.formats.recipe import LinearFormats
from mxsweep.numerics import MXFormat, decode, encode

NAME = "model.layers.0.mlp.down_proj"
MXFP4 = MXFormat("fp4_e2m1")
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)
PLAIN = replace(NVFP4, tensor_scale=False)
MX = [MXFormat("fp4_e2m1", size) for size in (32, 64, 0, (8, 32))]
EXACT = [*MX, PLAIN, MXFormat("fp4_e2m1", 16)]  # in any dtype


def config_of(fmt: MXFormat) -> dict[str, Any]:
    return target.quantization_config({NAME: LinearFormats(fmt)}, ["lm_head"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", EXACT, ids=str)
def test_what_is_stored_is_read_back_bit_for_bit(fmt: MXFormat, dtype: torch.dtype) -> None:
    encoded = encoded_weight(fmt, dtype)
    assert decode(encoded).count_nonzero() > 500
    assert mismatches(target, NAME, encoded, config_of(fmt)) == 0


@pytest.mark.parametrize("fmt", [NVFP4, replace(NVFP4, block_size=(2, 16))], ids=str)
def test_under_a_scale_of_the_tensor_bfloat16_is_read_back_bit_for_bit(fmt: MXFormat) -> None:
    assert mismatches(target, NAME, encoded_weight(fmt, torch.bfloat16), config_of(fmt)) == 0


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    # A scale of the tensor is exact in 16 bits.
    [*itertools.product(EXACT, DTYPES), *((NVFP4, dtype) for dtype in DTYPES if dtype != torch.float32)],
    ids=str,
)
def test_the_package_reads_the_same_weights(fmt: MXFormat, dtype: torch.dtype) -> None:
    gguf = peer("gguf")
    encoded = encoded_weight(fmt, dtype)
    stored = target.tensors(NAME, encoded)
    kind = gguf.GGMLQuantizationType[config_of(fmt)["types"][NAME]]
    read = torch.from_numpy(gguf.quants.dequantize(stored[f"{NAME}.weight"].numpy(), kind))
    read = read * stored.get(f"{NAME}.scale", torch.ones(1))
    assert torch.equal(read.to(dtype), decode(encoded))  # the signs of zeros are lost


def test_what_has_no_place_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"^{NAME}: gguf: blocks that are NaN"):
        target.tensors(NAME, with_nan_block(MXFP4))
    with pytest.raises(ValueError, match=f"^{NAME}: gguf: 48 input channels are no multiple of the 64"):
        target.tensors(NAME, encode(torch.randn(4, 48), PLAIN))
    with pytest.raises(ValueError, match=f"^{NAME}: gguf: activations .* have no place"):
        target.quantization_config({NAME: LinearFormats(MXFP4, MXFP4)})
    for change in (
        {"model_type": "gemma3_text"},
        {"attention_bias": True},
        {"hidden_act": "gelu"},
        {"sliding_window": 4096},
        {"rope_parameters": {"rope_type": "llama3"}},
    ):
        config = tiny_llama(torch.float32, 1).config.to_dict() | change
        assert "allowed" in (why_not_architecture(config) or "")


@pytest.mark.parametrize("kind", ("llama", "qwen2", "qwen3"))
def test_names_are_those_of_the_package(kind: str) -> None:
    gguf = peer("gguf")
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(numbers[kind], 4)
    for name in model_of(kind, torch.float32).state_dict():
        assert stored_name(name) == known.get_name(name, try_suffixes=(".weight", ".bias"))
        assert model_name(stored_name(name)) == name
    for foreign in ("model.layers.x.mlp.up_proj.weight", "model.rotary.weight", "layers.0.mlp.up_proj.weight"):
        with pytest.raises(ValueError, match="has no name in a file"):
            stored_name(foreign)
    for foreign in ("blk.0.ffn_gate_exps.weight", "blk.0.attn_q_extra.weight", "token_types.weight"):
        with pytest.raises(ValueError, match="is no tensor of such a model"):
            model_name(foreign)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("llama", "qwen2", "qwen3"))
def test_transformers_reads_the_same_model_from_a_file(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    peer("gguf")
    from transformers import AutoModelForCausalLM, GgufConfig

    model = model_of(kind, dtype)
    layers = formats_by_layer(model, [LinearFormats(MXFP4), LinearFormats(PLAIN)])
    config = target.quantization_config(layers)
    stored = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, formats in layers.items():
        assert formats.weight is not None
        parameter = model.get_parameter(f"{name}.weight")
        encoded = encode(parameter, formats.weight)
        parameter.data.copy_(decode(encoded))
        del stored[f"{name}.weight"]
        stored |= target.tensors(name, encoded)
    size = write_file(tmp_path / "model.gguf", model.config.to_dict(), stored, config["types"])
    assert 0 < size <= (tmp_path / "model.gguf").stat().st_size
    read, types = read_file(tmp_path / "model.gguf", model.config.to_dict(), dtype)
    assert types == {"types": config["types"]} and read.keys() == stored.keys()
    assert all(read[name].dtype == of.dtype and torch.equal(read[name], of) for name, of in stored.items())
    plain = {"quantization_config": GgufConfig(dequantize=True)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=dtype, **plain).eval()
    different = [
        name for name, parameter in model.named_parameters() if not torch.equal(loaded.get_parameter(name), parameter)
    ]
    assert different == []
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def model_of(kind: str, dtype: torch.dtype) -> Any:
    """Return a model of a type with random weights, norms and biases among them."""
    if kind == "llama":
        return tiny_llama(dtype)
    from transformers import AutoConfig, AutoModelForCausalLM

    llama = tiny_llama(dtype, 1).config
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "head_dim")
    sizes = {name: getattr(llama, name) for name in names}
    if kind == "qwen3":
        sizes["head_dim"] = 128  # which transformers does not read from the file
    config = AutoConfig.for_model(kind, **sizes, num_hidden_layers=4, tie_word_embeddings=False)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5 if "norm" in name else -1.0, 1.5)
    return model
