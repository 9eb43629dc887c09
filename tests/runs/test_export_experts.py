"""A mixture exported: its experts are linear layers of the checkpoint, under the names that checkpoints have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.done_runs import done
from helpers.mixtures import ARCHITECTURES, SIZES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mxsweep
from mxsweep import compose, run
from mxsweep.model.meta import meta_model
from mxsweep.runs.export_place import why_not_model
from mxsweep.runs.export_run import export_run
from mxsweep.terminal.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = Path(mxsweep.__file__).parent / "assets" / "tiny"
FEW = ["limit=8", "model.device=cpu"]
WEIGHTS = ["format=mxfp4", "format.activation=none"]


def mixture(tmp_path: Path, kind: str) -> list[str]:
    """Return the words for a run of a tiny mixture with random weights, which is written as transformers writes it."""
    sizes = ARCHITECTURES[kind].to_dict() | {"vocab_size": 568, "max_position_embeddings": 256, "head_dim": 16}
    config = type(ARCHITECTURES[kind]).from_dict(sizes)
    assert config.hidden_size == SIZES["hidden_size"]
    mxsweep_seeded(config).save_pretrained(tmp_path / "mixture")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, tmp_path / "mixture" / file)
    return [*FEW, "model=hf", f"model.path={tmp_path / 'mixture'}"]


def mxsweep_seeded(config: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize(
    ("kind", "expert", "router"),
    [
        ("mixtral", "block_sparse_moe.experts.3.w1", "block_sparse_moe.gate"),
        ("qwen3_moe", "mlp.experts.3.gate_proj", "mlp.gate"),
        ("qwen2_moe", "mlp.experts.3.gate_proj", "mlp.gate"),
    ],
)
def test_what_is_written_is_the_runs_model(kind: str, expert: str, router: str, tmp_path: Path) -> None:
    words = mixture(tmp_path, kind)
    config, record = done(*words, *WEIGHTS)
    export = export_run(config, record, tmp_path, "auto", tmp_path / "out")
    found = export.manifest["verified"]
    assert export.manifest["target"] == "compressed-tensors"
    assert found["weights"].startswith("0 of ") and found["logits"].endswith("are the run's bit for bit")
    assert found["metrics"] == "the run's to the last digit"
    stored = export.manifest["bits_per_quantized_weight"]
    assert stored["stored"] == pytest.approx(stored["predicted"], rel=0.01)
    assert f"model.layers.1.{expert}" in export.manifest["weights"]
    assert f"model.layers.1.{router}" in export.manifest["kept"]
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    written = load_file(tmp_path / "mixture" / "model.safetensors").keys()
    packed = {f"{name}.weight" for name in export.manifest["weights"]}
    assert packed <= written and f"model.layers.1.{expert}.weight_packed" in names
    assert written - packed == {
        name for name in names if name.rpartition(".")[2] not in ("weight_packed", "weight_scale")
    }
    again = run(compose([*FEW, "model=hf", f"model.path={tmp_path / 'out'}", "format=none"]))
    assert again["status"] == "done", again["error"]
    assert again["metrics"] == record["metrics"]


def test_experts_that_stay_as_they_are(tmp_path: Path) -> None:
    config, record = done(*mixture(tmp_path, "mixtral"), "format=mxfp4", "modules={*.experts.*: none}")
    export = export_run(config, record, tmp_path, "auto", tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert names["model.layers.1.mlp.experts.gate_up_proj"].shape == (4, 2 * 96, 64)
    assert export.manifest["verified"]["metrics"] == "the run's to the last digit"
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.layers.1.mlp.gate" in ignored


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("gpt_oss", WEIGHTS, "checkpoints of type 'gpt_oss' hold no linear layer for each expert"),
        ("mixtral", ["format=mxfp4"], "compressed-tensors: experts' inputs in fp4_e2m1-b32-e8m0 have no place"),
        ("mixtral", [*WEIGHTS, "modules={*.experts.3.*: none}"], "stays as it is while other experts are quantized"),
        (
            "mixtral",
            [*WEIGHTS, "modules={*.experts.3.*: {weight: mxfp6_e2m3, activation: none}}"],
            "experts have 2 formats",
        ),
        ("mixtral", ["format=mxfp8_e4m3", "format.activation=none"], "experts in mxfp8-quantized have no place"),
    ],
    ids=["stacked", "inputs", "some", "mixed", "fp8"],
)
def test_what_has_no_place_is_refused(kind: str, words: list[str], message: str, tmp_path: Path) -> None:
    config, record = done(*mixture(tmp_path, kind), *words)
    model = meta_model(str(tmp_path / "mixture"))
    assert model is not None
    if "experts have 2 formats" not in message:  # which is found as the config is written
        assert message in str(why_not_model(model, config.recipe)["compressed-tensors"])
    with pytest.raises(ConfigError, match=f"^export: .*{message}"):
        export_run(config, record, tmp_path, "compressed-tensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
