"""Checkpoints that are quantized already are known by their files, and refused by the method's name when planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxsweep import compose
from mxsweep.files.checkpoints import model_folder, stored_quantization
from mxsweep.model.load import load_model
from mxsweep.terminal.errors import ConfigError

QUANTIZED: list[tuple[dict[str, Any], str]] = [
    ({"quantization_config": {"quant_method": method, "bits": 4}}, method)
    for method in ("compressed-tensors", "torchao", "gptq", "awq", "bitsandbytes", "mxfp4", "modelopt", "fp8")
] + [
    ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
    ({"compression_config": {"format": "pack-quantized"}}, "compressed-tensors"),
    ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
    ({"quantization_config": {"something": 1}}, "a method without a name"),
]


def embedded_with(folder: Path, more: dict[str, Any]) -> Path:
    source = model_folder("embedded")
    assert source is not None
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder


@pytest.mark.parametrize(("more", "method"), QUANTIZED)
def test_a_quantized_checkpoint_is_refused_by_name_when_planned(
    more: dict[str, Any], method: str, tmp_path: Path
) -> None:
    folder = embedded_with(tmp_path / "m", more)
    assert stored_quantization(str(folder)) == method
    for fmt in ("none", "mxfp4"):
        with pytest.raises(ConfigError, match=f"model.path: '.*' is quantized already, by {method}: .*dequantize"):
            compose(["model=hf", f"model.path={folder}", f"format={fmt}"])


@pytest.mark.parametrize("more", [{}, {"quantization_config": None}, {"quantization_config": {}}, {"text_config": 1}])
def test_other_checkpoints_are_not(more: dict[str, Any], tmp_path: Path) -> None:
    folder = embedded_with(tmp_path / "m", more)
    assert stored_quantization(str(folder)) is None
    compose(["model=hf", f"model.path={folder}"])


def test_modelopt_says_so_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = embedded_with(tmp_path / "m", {})
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert stored_quantization(str(folder)) == "modelopt"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.mlp.up_proj.weight_packed", torch.uint8),
        ("model.layers.0.mlp.up_proj.qweight", torch.int32),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", torch.float32),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", torch.uint8),
        ("model.layers.0.mlp.up_proj.weight", torch.float8_e4m3fn),
        ("model.layers.0.mlp.experts.down_proj", torch.int8),
    ],
)
def test_packed_weights_that_no_config_explains_are_refused_when_planned(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = embedded_with(tmp_path / "m", {})
    weights = load_file(folder / "model.safetensors") | {name: torch.zeros(8, 8, dtype=dtype)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for words in ([], ["model.dequantize=true"]):
        with pytest.raises(ConfigError, match=f"'.*' is quantized already: it holds {name} .*no quantization_config"):
            compose(["model=hf", f"model.path={folder}", *words])


def test_masks_of_old_checkpoints_are_no_packed_weights(tmp_path: Path) -> None:
    folder = embedded_with(tmp_path / "m", {})
    masks = {"h.0.attn.bias": torch.ones(8, 8, dtype=torch.uint8), "position_ids": torch.arange(8)}
    weights = load_file(folder / "model.safetensors") | masks
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    compose(["model=hf", f"model.path={folder}"])


def test_one_of_the_hub_is_refused_before_its_weights_are_loaded(tmp_path: Path) -> None:
    folder = embedded_with(tmp_path / "m", {"quantization_config": {"quant_method": "awq"}})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="is quantized already, by awq"):
        load_model(str(folder), device="cpu")
