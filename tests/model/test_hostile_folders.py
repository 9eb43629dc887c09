"""Model folders that a stranger wrote: they are loaded, or refused in one line that names ``model.path``."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile import VALUES, fuzzing, places, with_value
from hypothesis import given
from hypothesis import strategies as st

from mxsweep.config.checks import check_model_path
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.load import load_model
from mxsweep.model.meta import meta_model
from mxsweep.terminal.errors import ConfigError

SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
WEIGHTS, PART, INDEX = "model.safetensors", "part.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's, with its weights also named by an index."""
    embedded = model_folder("embedded")
    assert embedded is not None
    made = tmp_path_factory.mktemp("model") / "m"
    shutil.copytree(embedded, made)
    (made / WEIGHTS).rename(made / PART)
    names = [name for name in header(made / PART) if name != "__metadata__"]
    (made / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, PART)}))
    (made / "generation_config.json").write_text('{"eos_token_id": 0}')
    return made


def header(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return dict(json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]]))


def put_header(file: Path, new: Any) -> None:
    content = file.read_bytes()
    written = json.dumps(new).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + struct.unpack("<Q", content[:8])[0] :])


def change(value: Any, data: Any) -> Any:
    for _ in range(data.draw(st.integers(1, 2))):
        there = sorted((place for place in places(value) if place and len(place) < 5), key=str)
        value = with_value(value, data.draw(st.sampled_from(there)), data.draw(VALUES)) if there else value
    return value


def change_file(folder: Path, name: str, data: Any) -> None:
    file = folder / name
    if name == PART:
        put_header(file, change(header(file), data))
    else:
        file.write_text(json.dumps(change(json.loads(file.read_text()), data)))
    if data.draw(st.integers(0, 5)) == 0:  # and its bytes
        written = bytearray(file.read_bytes())
        written[data.draw(st.integers(0, min(len(written), 2000) - 1))] = data.draw(st.integers(0, 255))
        file.write_bytes(written[: data.draw(st.sampled_from([None, len(written) // 2]))])


@pytest.mark.parametrize("name", [*SETTINGS, INDEX, PART])
@given(data=st.data())
@fuzzing(8)
def test_a_file_with_anything_anywhere(folder: Path, tmp_path: Path, name: str, data: Any) -> None:
    changed = tmp_path / "m"
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(folder, changed)
    change_file(changed, name, data)
    try:
        check_model_path("model.path", str(changed))
        meta_model(str(changed))
        load_model(str(changed))
    except ConfigError as error:
        assert str(error).startswith("model.path: ") and "\n" not in str(error)
