"""A run's model in a GGUF file: the run's weights bit for bit, and evaluated again as it stands there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.done_runs import done
from helpers.packed_weights import peer

from mxsweep import compose, run
from mxsweep.config.model_config import ModelConfig
from mxsweep.files.checkpoints import gguf_file, model_folder
from mxsweep.runs import export_run as module
from mxsweep.runs.export_run import export_run
from mxsweep.terminal.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")

FEW = ["limit=24", "model.device=cpu"]
WEIGHTS = ["format.activation=none"]


@pytest.fixture(autouse=True)
def _reader() -> None:
    peer("gguf")


def exported(tmp_path: Path, *words: str, to: str = "gguf") -> tuple[Path, dict[str, Any], dict[str, Any]]:
    config, record = done(*FEW, *words)
    export = export_run(config, record, tmp_path, to, tmp_path / "out")
    return export.folder, export.manifest, record


@pytest.mark.parametrize(
    ("words", "bits", "transformers_reads_it"),
    [
        (["format=mxfp4", "ptq=gptq", "calibration.samples=8", "calibration.length=64"], 4.25, True),
        (["format=nvfp4", "tensor_scale=false"], 4.5, True),
        (["format=nvfp4", "model.dtype=bfloat16"], 4.5, False),
        (
            [
                "format=mxfp4",
                "modules={*.down_proj: {weight: fp4_e2m1, activation: none, block_size: 16, scale: e4m3, tensor_scale: "
                "true}, lm_head: {weight: fp4_e2m1, activation: none}}",
                "model.dtype=bfloat16",
            ],
            None,
            False,
        ),
    ],
    ids=["mxfp4", "nvfp4", "nvfp4-scaled", "mixed"],
)
def test_what_is_written_is_the_runs_model(
    words: list[str], bits: float | None, transformers_reads_it: bool, tmp_path: Path
) -> None:
    out, manifest, record = exported(tmp_path, *words, *WEIGHTS)
    found, stored = manifest["verified"], manifest["bits_per_quantized_weight"]
    assert manifest["target"] == "gguf" and found["weights"].startswith("0 of ")
    assert found["logits"].endswith("are the run's bit for bit")
    assert found["metrics"] == "the run's to the last digit"
    assert found["loader"].startswith(f"the package gguf reads the same {len(manifest['weights'])} weights")
    assert ("answers with the same logits" in found["loader"]) == transformers_reads_it
    assert ("leaves out the scales" in found["loader"]) != transformers_reads_it
    assert "llama.cpp was not run" in found["loader"]
    assert bits is None or stored["stored"] == pytest.approx(bits, rel=0.01)
    assert stored["stored"] == pytest.approx(stored["predicted"], rel=0.01)
    assert not list(out.glob("*.safetensors")) and manifest["bytes"]["tensors"] < (out / "model.gguf").stat().st_size
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    for path in (out, out / "model.gguf"):
        again = run(compose([*FEW, "model=hf", f"model.path={path}", "model.dtype=auto", "format=none"]))
        assert again["status"] == "done", again["error"]
        assert again["metrics"] == record["metrics"]
        assert again["diagnostics"]["quantized_from"]["method"] == "gguf"


def test_auto_goes_on_where_a_target_has_no_place(tmp_path: Path) -> None:
    # In float32 no number over these scales gives the weights in the order in which compressed-tensors multiplies.
    words = ["format=nvfp4", "runtime=modelopt", "format.share_tensor_scale=fused", *WEIGHTS]
    _, manifest, _ = exported(tmp_path, *words, to="auto")
    assert manifest["target"] == "modelopt"


def test_inputs_have_no_place(tmp_path: Path) -> None:
    config, record = done(*FEW, "format=mxfp4")
    with pytest.raises(ConfigError, match=r"^export: .*'s name; name a folder, which model\.gguf is written into"):
        export_run(config, record, tmp_path, "gguf", tmp_path / "out.gguf")
    with pytest.raises(ConfigError, match=r"^export: gguf: activations .* have no place; allowed: none"):
        export_run(config, record, tmp_path, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, record = done(*FEW, "format=mxfp4", *WEIGHTS)
    whole = module.write_export

    def flipped(folder: Path, *arguments: Any) -> dict[str, Any]:
        manifest = whole(folder, *arguments)
        content = bytearray((folder / "model.gguf").read_bytes())
        content[-100] ^= 1
        (folder / "model.gguf").write_bytes(content)
        return manifest

    monkeypatch.setattr(module, "write_export", flipped)
    with pytest.raises(ConfigError, match=r"^export: (what was written for .* does not stand|tensors that were not)"):
        export_run(config, record, tmp_path, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_file_is_read_with_its_folder_and_counts_in_the_hash(tmp_path: Path) -> None:
    out, _, _ = exported(tmp_path, "format=mxfp4", *WEIGHTS)
    file = out / "model.gguf"
    assert model_folder(str(file)) == out and gguf_file(str(file)) is None

    def identity(path: Path) -> dict[str, str]:
        config = compose(["model=hf", f"model.path={path}"]).model
        assert isinstance(config, ModelConfig)
        return config.identity()

    before = identity(file)
    assert before == identity(out)
    file.write_bytes(file.read_bytes() + b"\0")
    assert identity(out) != before
    (out / "export.json").unlink()
    assert model_folder(str(file)) is None and gguf_file(str(file)) == file
    file.write_bytes(b"GGUF")
    (out / "export.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^model\.path: .*model\.gguf' is cut short"):
        compose(["model=hf", f"model.path={out}"])
