"""What a packed checkpoint stores beside codes: scales of inputs, what fused layers have one of, and ties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.done_runs import done
from safetensors.torch import load_file, save_file

from mxsweep.numerics import MXFormat
from mxsweep.runs import export_run as module
from mxsweep.runs.export_run import export_run
from mxsweep.runs.lay_out_export import why_not_fused_stored
from mxsweep.runs.packed_model import input_divisor
from mxsweep.terminal.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")

FEW = ["limit=8", "model.device=cpu"]
MODELOPT = ["format=nvfp4", "runtime=modelopt", "format.share_tensor_scale=fused", "format.activation_scale=10"]
NVFP4 = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)


@pytest.mark.parametrize(
    ("rule", "dtype", "expected"),
    [
        ("mxsweep", torch.float32, torch.tensor(2688.0) / 10),
        ("modelopt", torch.bfloat16, 1 / (torch.tensor(10.0) / 2688)),
        ("compressed_tensors", torch.float32, 2688 * (1 / torch.tensor(10.0))),
        ("compressed_tensors", torch.bfloat16, 270.0),
        ("vllm", torch.bfloat16, 2688 * (1 / torch.tensor(10.0))),
    ],
)
def test_every_rules_scale_of_an_input_is_what_is_divided_by(rule: str, dtype: torch.dtype, expected: Any) -> None:
    fmt = MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, scale_rule=rule)
    assert input_divisor(torch.tensor(10.0), fmt, dtype) == pytest.approx(float(expected), rel=2**-23)


def test_modelopt_gets_the_factor_of_its_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, record = done(*FEW, *MODELOPT, "model.dtype=bfloat16")
    export = export_run(config, record, tmp_path, "modelopt", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    scales = [tensor for name, tensor in tensors.items() if name.endswith(".input_scale")]
    assert len(scales) == len(export.manifest["weights"]) == 21
    assert all(torch.equal(scale, torch.tensor(10.0) / 2688) for scale in scales)
    assert export.manifest["verified"]["input_scales"] == "21 layers have the run's scale of the input's tensor"

    whole = module.write_export

    def inverted(folder: Path, *arguments: Any) -> dict[str, Any]:
        manifest = whole(folder, *arguments)
        stored = load_file(folder / "model.safetensors")
        changed = {name: 1 / tensor if name.endswith(".input_scale") else tensor for name, tensor in stored.items()}
        save_file(changed, folder / "model.safetensors")
        return manifest

    monkeypatch.setattr(module, "write_export", inverted)
    with pytest.raises(ConfigError, match=r"^export: the input of .* is stored with "):
        export_run(config, record, tmp_path, "modelopt", tmp_path / "other")


@pytest.mark.parametrize(
    ("target", "part"), [("compressed-tensors", "input_global_scale"), ("modelopt", "input_scale")]
)
def test_inputs_without_a_scale_of_the_tensor_have_one_of_1(target: str, part: str, tmp_path: Path) -> None:
    config, record = done(*FEW, "format=nvfp4", "tensor_scale=false")
    export_run(config, record, tmp_path, target, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    scales = [tensor for name, tensor in tensors.items() if name.endswith(f".{part}")]
    assert len(scales) == 21 and all(float(scale) == 1 for scale in scales)


def test_fused_layers_stored_with_several_numbers_are_refused() -> None:
    stored = {"q.weight_global_scale": torch.tensor([512.0]), "k.weight_global_scale": torch.tensor([64.0])}
    said = why_not_fused_stored([("q", "k")], "compressed-tensors", stored)
    assert said and "q, k are one layer" in said and "its one weight_global_scale (64, 512)" in said
    assert why_not_fused_stored([("q",), ("k",)], "compressed-tensors", stored) is None
    equal = dict.fromkeys(stored, torch.tensor([64.0]))
    assert why_not_fused_stored([("q", "k")], "compressed-tensors", equal) is None


@pytest.mark.parametrize(
    ("target", "part"), [("compressed-tensors", "weight_global_scale"), ("modelopt", "weight_scale_2")]
)
def test_powers_of_two_in_blocks_of_16_are_stored_under_one_scale_a_layer(
    target: str, part: str, tmp_path: Path
) -> None:
    config, record = done(*FEW, "format=mxfp4", "block_size=16", "format.activation=none")
    export = export_run(config, record, tmp_path, target, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for reader in ("self_attn.{}_proj", "mlp.{}_proj"):
        together = [name for name in ("q", "k", "v", "gate", "up") if (name in "qkv") == reader.startswith("self")]
        names = [f"model.layers.0.{reader.format(name)}" for name in together]
        assert len({float(tensors[f"{name}.{part}"]) for name in names}) == 1
    assert len({float(tensor) for name, tensor in tensors.items() if name.endswith(part)}) > 1
    assert export.manifest["verified"]["weights"].startswith("0 of ")
    assert export.manifest["verified"]["metrics"] == "the run's to the last digit"


def test_a_quantized_output_layer_is_not_tied(tmp_path: Path) -> None:
    config, record = done(*FEW, "format=mxfp4", "modules={lm_head: mxfp4}")
    export = export_run(config, record, tmp_path, "compressed-tensors", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head" in export.manifest["weights"]
    assert export.manifest["verified"]["metrics"] == "the run's to the last digit"
