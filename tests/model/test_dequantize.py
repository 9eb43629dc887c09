"""Quantized checkpoints as plain weights: exactly what their blocks stand for, and nothing quantized left of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

from mxsweep import compose, run
from mxsweep.config.overrides import prepare
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.dequantize import _what_is_left
from mxsweep.model.load import load_model
from mxsweep.sweeps.dry_run import preview
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
BLOCK = 32
FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic", "fmt": "e4m3"}


def embedded() -> Path:
    folder = model_folder("embedded")
    assert folder is not None
    return folder


def checkpoint(folder: Path, settings: dict[str, Any], change: Any) -> Path:
    """Copy the embedded model with other weights, `change` of its own, and settings of quantization."""
    shutil.copytree(embedded(), folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def in_fp8(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store linear layers as transformers stores fp8: codes, and a scale for each tile."""
    stored = {}
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        tiles = weight.view(weight.shape[0] // BLOCK, BLOCK, weight.shape[1] // BLOCK, BLOCK)
        scale = tiles.abs().amax((1, 3)) / 448
        stored[name] = (tiles / scale[:, None, :, None]).view(weight.shape).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    return stored


def in_fp8_channels(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Store linear layers as compressed-tensors' FP8_DYNAMIC does: codes, and a scale for each row."""
    stored = dict(weights)
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        scale = (weights[name].abs().amax(-1, keepdim=True) / 448).bfloat16()
        stored[name] = (weights[name] / scale.float()).to(torch.float8_e4m3fn)
        stored[f"{name}_scale"] = scale
        stored[name.replace("weight", "input_scale")] = torch.ones(1)
    return stored


def channels(*groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    usual = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "format": "float-quantized"}
    named = {f"group_{number}": usual | group for number, group in enumerate(groups or ({},))}
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": named}
    return settings | {"ignore": ["lm_head"], "quantization_status": "compressed"} | more


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("fp8") / "tiny-fp8", FP8, in_fp8)


def test_fp8_is_codes_times_scales_and_plain_afterwards(fp8: Path) -> None:
    loaded = load_model(str(fp8), device="cpu", dequantize=True)
    stored = load_file(fp8 / "model.safetensors")
    weights = loaded.model.state_dict()
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        scale = stored[f"{name}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        assert torch.equal(weights[name], stored[name].float() * scale)
    assert type(loaded.model.model.layers[0].mlp.up_proj) is nn.Linear
    assert not hasattr(loaded.model.config, "quantization_config") and not loaded.model.is_quantized
    plain = LlamaForCausalLM(LlamaConfig.from_pretrained(embedded()))
    plain.load_state_dict(weights)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, plain.eval()(ids).logits)


def test_mxfp4_of_gpt_oss_is_its_closed_form(tmp_path: Path) -> None:
    """Two codes a byte, the low one first; a scale of two to the byte minus 127 for 32 of them along the inputs."""
    hidden, inner, experts = 64, 32, 2
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config = GptOssConfig(
        vocab_size=568, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=experts, num_experts_per_tok=1, dtype=torch.bfloat16,
        layer_types=["full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = GptOssForCausalLM(config).bfloat16()
    shutil.copytree(embedded(), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {}
    for part, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        name = f"model.layers.0.mlp.experts.{part}"
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(115, 125, (experts, rows, columns // 32), dtype=torch.uint8)
        codes = torch.stack([blocks & 15, blocks >> 4], -1).view(experts, rows, columns // 32, 32).long()
        values = FP4[codes] * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = values.view(experts, rows, columns).transpose(1, 2).bfloat16()  # inputs first, as in the model
        del weights[name]
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "m" / "config.json").write_text(json.dumps(config.to_dict() | {"quantization_config": settings}))
    loaded = load_model(str(tmp_path / "m"), device="cpu", dequantize=True, attention="eager")
    held = loaded.model.state_dict()
    assert all(torch.equal(held[name], values) for name, values in expected.items())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    (text,) = loaded.warnings
    assert "the weights come from mxfp4, which rounded them once" in text and "activations" not in text
    assert loaded.quantized_from is not None and loaded.quantized_from["method"] == "mxfp4"


def test_compressed_tensors_are_codes_times_scales(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    folder = checkpoint(tmp_path / "m", channels(), in_fp8_channels)
    loaded = load_model(str(folder), device="cpu", dequantize=True)
    stored, weights = load_file(folder / "model.safetensors"), loaded.model.state_dict()
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        exact = stored[name].float() * stored[f"{name}_scale"].float()
        torch.testing.assert_close(weights[name], exact, rtol=2**-8, atol=0)  # the library multiplies in bfloat16
    (text,) = loaded.warnings  # and none of the scales of activations, which have no place any more
    assert text.endswith("activations are no longer quantized as that checkpoint says")
    assert "from compressed-tensors (float-quantized)" in text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (channels({}, {"weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}), "has 2 kinds of quantized"),
        (channels(transform_config={"config_groups": {"R1": {}}}), "its weights are rotated"),
        (channels(sparsity_config={"format": "sparse-24-bitmask"}), r"stored as sparse ones \(sparse-24-bitmask\)"),
        ({"quant_method": "gptq", "bits": 4}, "quantized by gptq, and transformers has no way back"),
        ({"quant_method": "awq", "bits": 4}, "quantized by awq, and transformers has no way back"),
        ({"quant_method": "something"}, "quantized by something, and transformers does not know it"),
        ({"something": 1}, "an unnamed method, and transformers does not know it"),
    ],
)
def test_what_cannot_be_dequantized_is_refused_by_name(settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", settings, in_fp8_channels)
    with pytest.raises(ConfigError, match=rf"^model.dequantize: '.*' is .*{why}"):
        load_model(str(folder), device="cpu", dequantize=True)
    words = ["model=hf", f"model.path={folder}", "model.dequantize=true", "format=mxfp4"]
    shown = preview(plan(prepare(words)[0], False).runs)
    assert shown.is_refused and "cannot be: model.dequantize: " in shown.text


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = checkpoint(tmp_path / "m", settings, lambda weights: weights)
    with pytest.raises(
        ConfigError, match=r"^model.dequantize: .* bitsandbytes, whose library is needed .*bitsandbytes"
    ):
        load_model(str(folder), device="cpu", dequantize=True)


def test_modelopt_in_a_file_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {}, lambda weights: weights)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(
        ConfigError,
        match=r"^model.dequantize: .* by modelopt, and its config.json has no quant",
    ):
        load_model(str(folder), device="cpu", dequantize=True)


def test_what_is_left_of_a_quantization_is_found() -> None:
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)

    def left(change: Any) -> str | None:
        model = LlamaForCausalLM(config)
        change(model.model.layers[0].mlp)
        return _what_is_left(model)

    class Other(nn.Linear):
        pass

    at = "model.layers.0.mlp.up_proj"
    assert left(lambda mlp: None) is None
    assert left(lambda mlp: setattr(mlp, "up_proj", Other(32, 32))) == f"{at} is a Other"
    assert left(lambda mlp: setattr(mlp.up_proj, "forward", lambda x: x)) == f"{at} has a forward of its own"
    assert left(lambda mlp: mlp.up_proj.register_forward_pre_hook(print)) == f"{at} has a forward of its own"
    assert left(lambda mlp: mlp.up_proj.to(torch.float64)) == f"{at}.weight is a Tensor of torch.float64"
    assert left(lambda mlp: setattr(mlp, "up_proj", nn.Linear(16, 32))) == f"{at}.weight has the shape [32, 16]"


def test_a_run_says_it_in_its_record_and_its_hash(fp8: Path, tmp_path: Path) -> None:
    words = ["model=hf", f"model.path={fp8}", "model.dequantize=true", "model.device=cpu", "limit=4"]
    record = run(compose([*words, "format=mxfp4"]), tmp_path)
    assert record["status"] == "done", record["error"]
    (text,) = [text for text in record["warnings"] if text.startswith("model.dequantize: ")]
    assert "the weights come from fp8 (e4m3)" in text and "activations are no longer quantized" in text
    assert record["diagnostics"]["quantized_from"]["settings"]["weight_block_size"] == [BLOCK, BLOCK]
    assert record["identity"]["model"]["weights"] == "dequantized"
    assert record["diagnostics"]["bits_per_weight"] == 4.25
    assert " 4.25 " in preview(plan(prepare([*words, "format=mxfp4"])[0], False).runs).text
    with pytest.raises(ConfigError, match=r"is quantized already, by fp8: .*: model.dequantize=true"):
        compose(["model=hf", f"model.path={fp8}"])


def test_it_means_nothing_to_another_model() -> None:
    assert compose(["model.dequantize=true"]).config_hash == compose([]).config_hash
    hub = ["model=hf", "model.path=someone/something"]
    assert compose([*hub, "model.dequantize=true"]).config_hash != compose(hub).config_hash
