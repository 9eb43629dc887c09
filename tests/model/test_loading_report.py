"""Weights that a checkpoint holds and a model drops are named; a head that would be dropped later is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mxsweep import compose, inspect, run, sensitivity
from mxsweep.files.checkpoints import model_folder, tokenizer_files
from mxsweep.model.load import load_model
from mxsweep.model.loading_report import describe_dropped
from mxsweep.terminal.errors import ConfigError

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def changed(folder: Path, change: Change) -> Path:
    """Copy the embedded model, its config and weights changed."""
    embedded = model_folder("embedded")
    assert embedded is not None
    shutil.copytree(embedded, folder)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, weights)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def fewer_layers(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    config["num_hidden_layers"] = 2


def unknown_bias(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.full((128,), 9.0)


def head_of_its_own(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = torch.randn(weights["model.embed_tokens.weight"].shape)


def head_like_the_embedding(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def rotary_frequencies(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as old checkpoints have them


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (fewer_layers, "holds 9 weights that the model has no place for, left out: model.layers.2."),
        (unknown_bias, "1 weight that the model has no place for, left out: model.layers.1.self_attn.q_proj.bias"),
        (head_like_the_embedding, None),
        (rotary_frequencies, None),
        (lambda config, weights: None, None),
    ],
)
def test_what_the_model_drops_is_named(change: Change, warning: str | None, tmp_path: Path) -> None:
    warnings = load_model(str(changed(tmp_path / "m", change)), device="cpu").warnings
    if warning is None:
        assert warnings == ()
    else:
        (text,) = warnings
        assert warning in text and (" and 6 more. " in text) == (change is fewer_layers)


def test_a_head_of_its_own_where_weights_are_tied_is_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", head_of_its_own)
    with pytest.raises(ConfigError, match=r"holds a head of its own, unlike the embedding, .*tie_word_embeddings"):
        load_model(str(folder), device="cpu")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    model = load_model(str(folder), device="cpu").model
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_a_machine_without_memory_is_no_damaged_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    loader = AutoTokenizer if isinstance(error, MemoryError) else AutoModelForCausalLM
    monkeypatch.setattr(loader, "from_pretrained", fail)
    with pytest.raises(type(error)):
        load_model(str(changed(tmp_path / "m", lambda config, weights: None)))


def test_many_are_counted() -> None:
    (text,) = describe_dropped("m", {"unexpected_keys": {f"w{i}" for i in range(1, 6)}})
    assert "holds 5 weights" in text and ": w1, w2, w3 and 2 more. " in text
    assert describe_dropped("m", {"unexpected_keys": set()}) == describe_dropped("m", {}) == []


def test_the_record_warns(tmp_path: Path) -> None:
    """Of every run of the process, though the model is loaded once."""
    path = changed(tmp_path / "m", unknown_bias)
    for fmt in ("none", "mxfp8_e4m3"):
        words = ["model=hf", f"model.path={path}", "model.device=cpu", "task=story", "limit=4", f"format={fmt}"]
        record = run(compose(words), tmp_path / fmt)
        assert record["status"] == "done"
        assert [text for text in record["warnings"] if "model.layers.1.self_attn.q_proj.bias" in text]


@pytest.mark.parametrize("command", [inspect.main, sensitivity.main])
def test_the_commands_without_a_run_warn(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, however many formats stand side by side."""
    path = changed(tmp_path / "m", unknown_bias)
    words = ["model=hf", f"model.path={path}", "model.device=cpu", "--output", str(tmp_path / "out")]
    if command is inspect.main:
        words += ["format=mxfp4,mxfp8_e4m3"]
    else:
        words += ["format=mxfp4", "--by", "kind", "calibration=stories", "calibration.samples=2"]
    assert command(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("warning: model.path: ") == printed.count("model.layers.1.self_attn.q_proj.bias") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config, weights: weights.update({"model.norm.weight": torch.ones(7)}),
            r"of shape \[7\] in its files, and",
        ),
        (
            lambda config, weights: config.update(hidden_size=256),
            r"29 weights are mismatched, model.embed_tokens.weight",
        ),
        (
            lambda config, weights: config.update(hidden_size="128"),
            "cannot be loaded: Strict.*'hidden_size' expected int",
        ),
        (lambda config, weights: config.update(num_attention_heads=0), "cannot be loaded: ZeroDivisionError: "),
        (lambda config, weights: config.update(hidden_act="x"), "cannot be loaded: KeyError: 'x'"),
        (lambda config, weights: config.update(model_type=[1]), "cannot be loaded: TypeError: unhashable"),
        (lambda config, weights: config.update(head_dim=-1), "cannot be loaded: RuntimeError: .*negative dimension"),
        (lambda config, weights: config.update(pad_token_id=10**9), "cannot be loaded: AssertionError: Padding_idx"),
        (lambda config, weights: config.update(dtype="int9"), "cannot be loaded: AttributeError: .*int9"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_folder(change: Change, message: str, tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", change)
    with pytest.raises(ConfigError, match=rf"^model.path: '.*/m' .*{message}") as refused:
        load_model(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", ['{"version": "1.0"', "[]", '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": {}}}}']
)
def test_a_damaged_tokenizer_is_named_by_its_files(content: str, tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", lambda config, weights: None)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"^model.path: '.*/m' cannot be loaded: its tokenizer \(tokenizer.json, "):
        load_model(str(folder))


def test_a_folder_without_a_tokenizer_is_said_to_hold_none(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", lambda config, weights: None)
    for file in tokenizer_files(folder):
        file.unlink()
    with pytest.raises(ConfigError, match=r"/m' cannot be loaded: it holds no file by a tokenizer's usual names: "):
        load_model(str(folder))
