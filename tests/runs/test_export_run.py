"""A run's model exported: what is on disk is the run's bit for bit, and what cannot be stored is refused."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.done_runs import done
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from mxsweep import compose, run
from mxsweep.__main__ import main
from mxsweep.export.__main__ import main as export_command
from mxsweep.export.folder import read_manifest, read_weights
from mxsweep.model.load import load_model
from mxsweep.numerics import decode, quantize
from mxsweep.runs import export_run as module
from mxsweep.runs.export_run import export_run, read_finished
from mxsweep.runs.verify_export import compare_metrics
from mxsweep.terminal.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")

FEW = ["limit=24", "model.device=cpu"]
CALIBRATED = ["ptq=gptq", "calibration.samples=8", "calibration.length=64"]
WEIGHTS = ["format.activation=none"]


def exported(tmp_path: Path, *words: str, **arguments: Any) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    config, record = done(*FEW, *words)
    out = tmp_path / "out"
    export = export_run(config, record, tmp_path, "auto", out, **arguments)
    return out, export.manifest, record


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        (["format=mxfp4", *CALIBRATED], 4.25),
        (["format=mxfp4", *CALIBRATED, "ptq=qat", "ptq.steps=4"], 4.25),
        (["format=mxfp4", "ptq=clip", "ptq.clip_loss=weight", "model.dtype=bfloat16"], 4.25),
        (["format=mxfp8_e4m3", "runtime=transformers"], 8.25),
        (["format=mxfp6_e2m3", "format.activation=none", "block_size=128"], 6.25),
        (["format=mxfp4", *WEIGHTS, "block_size=[4,32]", *CALIBRATED], 4.25),
        (["format=mxfp4", "rotation=hadamard", "rotation.residual=true", *CALIBRATED], 4.25),
        (["format=mxint4", *WEIGHTS], 4.5),
        (["format=mxfp4", "modules={*.down_proj: mxfp8_e4m3}"], None),
    ],
    ids=["gptq", "qat", "clip-bfloat16", "runtime", "blocks-of-128", "tiles", "rotated", "integers", "mixed"],
)
def test_what_is_written_is_the_runs_model(words: list[str], bits: float | None, tmp_path: Path) -> None:
    out, manifest, record = exported(tmp_path, *words)
    assert manifest["target"] == "compressed-tensors"
    assert manifest["verified"]["weights"].startswith("0 of 442,368 quantized weights differ")
    assert manifest["verified"]["logits"].endswith("are the run's bit for bit")
    assert manifest["verified"]["metrics"] == "the run's to the last digit"
    stored = manifest["bits_per_quantized_weight"]
    assert bits is None or stored["stored"] == pytest.approx(bits, rel=0.01)
    assert manifest["run_id"] == record["run_id"] and manifest["config_hash"] == record["config_hash"]
    tensors = load_file(out / "model.safetensors")
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == manifest["bytes"]["tensors"]
    assert (out / "tokenizer.json").is_file() and (out / "generation_config.json").is_file()
    assert read_manifest(out) == json.loads(json.dumps(manifest))
    assert not list(tmp_path.glob(".out*"))


def test_codes_are_those_of_the_weight_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    out, _, _ = exported(tmp_path, "format=mxfp4", verify=False)
    model = load_model("embedded", device="cpu").model
    weights, plain = read_weights(out)
    fmt = compose(["format=mxfp4"]).recipe.linear.weight
    assert fmt is not None
    for name, weight in weights.items():
        assert torch.equal(
            decode(weight), quantize(model.get_submodule(name).weight.detach(), fmt, arithmetic="native")
        )
    own = model.state_dict()
    assert plain and all(torch.equal(tensor, own[name]) for name, tensor in plain.items())
    assert {*plain, *(f"{name}.weight" for name in weights)} | {"lm_head.weight"} == {*own} | {"lm_head.weight"}


def test_an_export_is_a_model_whose_weights_are_quantized_already(tmp_path: Path) -> None:
    out, _, record = exported(tmp_path, "format=mxfp4", *WEIGHTS, *CALIBRATED)
    again = run(compose([*FEW, "model=hf", f"model.path={out}", "format=none"]))
    assert again["status"] == "done", again["error"]
    assert again["metrics"] == record["metrics"]
    assert any(record["run_id"] in warning and "once more" in warning for warning in again["warnings"])
    assert again["diagnostics"]["quantized_from"]["method"] == "compressed-tensors"


def test_inputs_of_an_export_can_be_quantized_without_its_weights(tmp_path: Path) -> None:
    out, _, record = exported(tmp_path, "format=mxfp4", *CALIBRATED, verify=False)
    words = ["model=hf", f"model.path={out}", "format=mxfp4", "format.weight=none"]
    assert run(compose([*FEW, *words]))["metrics"] == record["metrics"]


def test_large_checkpoints_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, record = done(*FEW, "format=mxfp4")
    whole = module.write_export

    def small_shards(*arguments: Any) -> dict[str, Any]:
        return whole(*arguments, shard_size="100KB")

    monkeypatch.setattr(module, "write_export", small_shards)
    export = export_run(config, record, tmp_path, "auto", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == export.manifest["bytes"]["tensors"]
    assert export.manifest["verified"]["metrics"] == "the run's to the last digit"


def test_a_rotated_residual_stream_unties_the_output_layer(tmp_path: Path) -> None:
    words = ["format=mxfp4", "rotation=hadamard", "rotation.residual=true"]
    out, manifest, _ = exported(tmp_path, *words, verify=False)
    assert AutoConfig.from_pretrained(out).tie_word_embeddings is False
    assert "lm_head.weight" in load_file(out / "model.safetensors")
    rotated = [layer for layer in manifest["weights"].values() if "input_rotated_in_blocks_of" in layer]
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert rotated and "transform_config" in settings
    assert "Only vLLM" in (out / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"^model\.path: .* stored rotated"):
        load_model(str(out), device="cpu")
    with pytest.raises(ConfigError, match=r"^model\.path: .* stored rotated"):  # so that a dry run says it
        compose(["model=hf", f"model.path={out}", "format=none"])


def test_a_damaged_checkpoint_is_found_out_and_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, record = done(*FEW, "format=mxfp4")
    whole = module.write_export

    def flipped(folder: Path, *arguments: Any) -> dict[str, Any]:
        manifest = whole(folder, *arguments)
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in tensors if name.endswith("weight_packed"))
        tensors[name][0, 0] ^= 1
        save_file(tensors, folder / "model.safetensors")
        return manifest

    monkeypatch.setattr(module, "write_export", flipped)
    with pytest.raises(ConfigError, match=r"^export: what was written for .* does not stand for the run's weight$"):
        export_run(config, record, tmp_path, "auto", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=none"], "^export: nothing is quantized in this run"),
        (["format=mxfp8_e5m2"], "^export: compressed-tensors: elements fp8_e5m2 have no place"),
        (["format=mxfp4", "scale=fp32"], "scales fp32 of fp4_e2m1 have no place"),
        (["format=mxint4", "symmetric=false"], "midpoints of blocks"),
        (["format=mxfp4", "kv_quant=fp4_e2m1"], "^export: keys and values in blocks have no place"),
        (["format=nvfp4"], "would need the scale of each token"),
        (["format=nvfp4", *WEIGHTS], "each has a scale of the tensor of its own"),
        (["format=mxfp4", "modules={*.q_proj: mxfp8_e4m3}"], "are one layer where vLLM loads them, and have several"),
        (["format=mxfp4", *WEIGHTS, "modules={lm_head: mxfp4, model.embed_tokens: mxfp4}"], "is an embedding"),
        (["format=mxfp4", "format.weight=none"], "gets a format for its input alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_has_no_place_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    config, record = done(*FEW, *words)
    with pytest.raises(ConfigError, match=message):
        export_run(config, record, tmp_path, "compressed-tensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_no_place_is_refused_before_anything_is_worked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, record = done(*FEW, "format=mxfp8_e5m2", *CALIBRATED)
    monkeypatch.setattr(module, "prepare", lambda *_: pytest.fail("weights were chosen again"))
    for target in ("auto", "quark"):
        with pytest.raises(ConfigError, match=r"^export: .*elements fp8_e5m2 have no place"):
            export_run(config, record, tmp_path, target, tmp_path / "out")


def test_a_folder_that_holds_something_and_a_target_that_is_none(tmp_path: Path) -> None:
    config, record = done(*FEW, "format=mxfp4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("here")
    with pytest.raises(ConfigError, match="is there already; name another folder"):
        export_run(config, record, tmp_path, "auto", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"^export: 'onnx' is not known; allowed: auto, compressed-tensors"):
        export_run(config, record, tmp_path, "onnx", tmp_path / "new")
    assert (tmp_path / "out" / "mine").read_text() == "here"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main([*FEW, "format=mxfp4", f"hydra.run.dir={folder}"]) == 0
    assert export_command([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "compressed-tensors: 21 layers, 4.250 bits a weight stored, 4.250 predicted" in said
    assert (folder / "export" / "export.json").is_file()
    card = (folder / "export" / "README.md").read_text()
    assert "## Metrics" in card and "W4A16" in card and "442,368" in card
    assert export_command([str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    record = json.loads((folder / "result.json").read_text())
    composed: Any = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for newer in ("reuse", "export", "ptq.fuse"):  # knobs that there were not yet when a run was done
        parent, _, leaf = newer.rpartition(".")
        (OmegaConf.select(composed, parent) if parent else composed).pop(leaf)
    OmegaConf.save(composed, folder / ".hydra" / "config.yaml")
    assert read_finished(folder)[0].config_hash == record["config_hash"]
    for change, message in (
        ({"config_hash": "0" * 64}, "has changed since"),
        ({"status": "failed", "error": {"type": "ValueError", "message": "so it was"}}, "failed .so it was."),
    ):
        (folder / "result.json").write_text(json.dumps(record | change))
        with pytest.raises(ConfigError, match=message):
            read_finished(folder)
    with pytest.raises(ConfigError, match="holds no finished run"):
        read_finished(tmp_path)


def test_a_run_writes_its_model_where_it_is_asked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mxsweep")
    plain, asked = (compose([*FEW, "format=mxfp4", *more]) for more in ([], ["export=auto"]))
    assert plain.config_hash == asked.config_hash and "export" not in plain.as_dict()
    record = run(asked, tmp_path / "run")
    assert record["status"] == "done" and record["config"]["export"] == "auto"
    assert record["export"]["target"] == "compressed-tensors"
    assert record["export"]["verified"]["metrics"] == "the run's to the last digit"
    assert read_manifest(tmp_path / "run" / "export")["run_id"] == record["run_id"]
    assert f"Exported the model for compressed-tensors to {tmp_path / 'run' / 'export'}" in caplog.messages
    assert record["metrics"] == run(plain)["metrics"]


def test_a_run_whose_model_has_no_place_is_done_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = run(compose([*FEW, "format=mxfp4", "export=modelopt"]), tmp_path)
    assert record["status"] == "done" and record["metrics"]
    assert "modelopt" in record["export"]["error"]["message"]
    (warning,) = (text for text in record["warnings"] if text.startswith("export: "))
    assert warning.startswith("export: the model was not written: modelopt: ")
    assert ("mxsweep.runs.run", logging.WARNING, warning) in caplog.record_tuples
    assert not (tmp_path / "export").exists()


def test_a_run_is_done_where_what_writes_checkpoints_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mxsweep.runs.export_run", None)
    record = run(compose([*FEW, "format=mxfp4", "export=auto"]), tmp_path)
    assert record["status"] == "done" and record["export"]["error"]["type"] == "ModuleNotFoundError"
    assert json.loads((tmp_path / "result.json").read_text())["metrics"] == record["metrics"]


def test_metrics_that_are_not_the_records_are_named() -> None:
    recorded = {"story": {"acc": 0.5, "perplexity": float("nan")}}
    assert compare_metrics(recorded, recorded) == "the run's to the last digit"
    said = compare_metrics({"story": {"acc": 0.25, "perplexity": float("nan")}}, recorded)
    assert said == "not the record's to the last digit: story acc 0.5 -> 0.25"
