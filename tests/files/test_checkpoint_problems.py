"""A model folder that cannot be loaded is refused when it is planned, in one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mxsweep import compose
from mxsweep.files.checkpoint_problems import folder_problem
from mxsweep.files.checkpoints import model_folder
from mxsweep.terminal.errors import ConfigError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, by: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by])


def in_parts(index: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        (folder / f"{WEIGHTS}.index.json").write_text(index)

    return change


def pickled(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def pickle(folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
        change(folder)

    return pickle


def setting(name: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(content | {name: value}))

    return change


BOTH = json.dumps({"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
PROBLEMS = [
    (write(CONFIG, ""), "holds a config.json that is no JSON: Expecting value"),
    (write(CONFIG, "{'model_type': 1}"), "holds a config.json that is no JSON: "),
    (write(CONFIG, b"\xff\xfe{}"), "holds a config.json that is no JSON: "),
    (write(CONFIG, "[]"), "holds a config.json without settings"),
    (write("tokenizer_config.json", "[1]"), "holds a tokenizer_config.json that is no JSON object"),
    (write("special_tokens_map.json", "{"), "holds a special_tokens_map.json that is no JSON object"),
    (write("generation_config.json", "3"), "holds a generation_config.json that is no JSON object"),
    (write(CONFIG, "{}"), "holds a config.json without settings"),
    (write(WEIGHTS, ""), "is no whole checkpoint: model.safetensors is empty"),
    (write(WEIGHTS, "version https://git-lfs.github.com/spec/v1"), "model.safetensors is cut short, or no safetensors"),
    (write(WEIGHTS, b"\x02" + bytes(7) + b"[]" + bytes(9)), "model.safetensors has a damaged header"),
    (cut(WEIGHTS, 1), r"model.safetensors is cut short: it holds [\d,]+ bytes, and its tensors end at [\d,]+"),
    (lambda folder: (folder / WEIGHTS).rename(folder / "other.safetensors"), "holds no weights by a name that"),
    (in_parts(BOTH), "is no whole checkpoint: b.safetensors is not there"),
    (in_parts('{"weight_map": {"x": "a.safetensors", "y": 3}}'), "index.json whose weight_map names files that are no"),
    (in_parts('{"weight_map": {"x": "a.safetensors"}}'), "holds a model.safetensors.index.json without metadata"),
    (
        in_parts('{"metadata": [], "weight_map": {"x": "a.safetensors"}}'),
        "model.safetensors.index.json without metadata",
    ),
    (in_parts("{}"), "is no whole checkpoint: model.safetensors.index.json names no files"),
    (setting("num_hidden_layers", 10**9), "holds a config.json with num_hidden_layers: 1000000000, and it holds 29 w"),
    (setting("text_config", {"n_layer": 30}), "holds a config.json with n_layer: 30, and it holds 29 weights"),
    (setting("vocab_size", 10**12), r"with vocab_size: 1000000000000, and no dimension of its weights exceeds 568"),
    (pickled(setting("num_hidden_layers", 10**9)), "with num_hidden_layers: 1000000000, and allowed: up to 10,000"),
    (pickled(write("pytorch_model.bin", "")), "is no whole checkpoint: pytorch_model.bin is empty"),
    (pickled(cut("pytorch_model.bin", 100)), "is no whole checkpoint: pytorch_model.bin is cut short"),
]


def copied(folder: Path) -> Path:
    embedded = model_folder("embedded")
    assert embedded is not None
    shutil.copytree(embedded, folder)
    return folder


@pytest.mark.parametrize(("change", "message"), PROBLEMS)
def test_it_is_refused_when_planned(change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "m")
    compose([f"model={folder}"])
    change(folder)
    with pytest.raises(ConfigError, match=f"^model.path: '.*/m' .*{message}") as error:
        compose([f"model={folder}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        in_parts(BOTH.replace("b.safetensors", "a.safetensors")),
        pickled(lambda folder: None),
        write("generation_config.json", "{\n}"),
        write("special_tokens_map.json", "\t{ }\n"),
    ],
)
def test_others_are_not(change: Callable[[Path], object], tmp_path: Path) -> None:
    folder = copied(tmp_path / "m")
    change(folder)
    compose([f"model={folder}"])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_pipe_or_a_folder_in_the_place_of_settings_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    os.mkfifo(tmp_path / name)
    assert folder_problem(tmp_path) == f"holds a {name} that is no regular file"
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert folder_problem(tmp_path) == f"holds a {name} that is no regular file"
