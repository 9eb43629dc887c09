"""Model folders: which files identify a model, against those that loading it really opens."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mxsweep import compose
from mxsweep.files.checkpoints import model_files, model_folder, model_identity, stored_dtypes
from mxsweep.model.load import load_model

TINY = model_folder("embedded")
assert TINY is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that is `tmp_path`/model."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def index(folder: Path, name: str, part: str) -> None:
    """Write an index by which every weight is in `part`."""
    names = list(load_file(TINY / "model.safetensors"))
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, part)}))


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


# Each puts the weights of a model folder somewhere, and returns where.


def above(folder: Path) -> Path:
    index(folder, "model.safetensors.index.json", "../w.safetensors")
    return (folder / "model.safetensors").rename(folder.parent / "w.safetensors")


def absolute(folder: Path) -> Path:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    index(folder, "model.safetensors.index.json", str(elsewhere / "w.safetensors"))
    return (folder / "model.safetensors").rename(elsewhere / "w.safetensors")


def linked(folder: Path) -> Path:
    weights = (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    return weights


def below(folder: Path) -> Path:
    (folder / "sub").mkdir()
    index(folder, "model.safetensors.index.json", "sub/../sub/w.safetensors")
    return (folder / "model.safetensors").rename(folder / "sub" / "w.safetensors")


def chosen(folder: Path) -> Path:
    change_config(folder, transformers_weights="sub/w.safetensors")
    (folder / "sub").mkdir()
    weights = folder / "sub" / "w.safetensors"
    shutil.copy(folder / "model.safetensors", weights)  # which is there and not read
    return weights


def chosen_by_index(folder: Path) -> Path:
    change_config(folder, transformers_weights="my.safetensors.index.json")
    index(folder, "my.safetensors.index.json", "../w.safetensors")
    return (folder / "model.safetensors").rename(folder.parent / "w.safetensors")


def pickled(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def pickled_by_index(folder: Path) -> Path:
    pickled(folder)
    index(folder, "pytorch_model.bin.index.json", "w.bin")
    return (folder / "pytorch_model.bin").rename(folder / "w.bin")


def pickled_above(folder: Path) -> Path:
    pickled(folder)
    index(folder, "pytorch_model.bin.index.json", "../w.bin")
    return (folder / "pytorch_model.bin").rename(folder.parent / "w.bin")


LAYOUTS = (above, absolute, linked, below, chosen, chosen_by_index, pickled, pickled_by_index, pickled_above)


@contextmanager
def opened(*folders: Path) -> Iterator[set[Path]]:
    """Note which files of these folders anyone opens, Python or not: inotify's word for it (see its manual page)."""
    libc, is_open, is_folder = ctypes.CDLL(None, use_errno=True), 0x20, 0x40000000
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        pytest.skip("no inotify here")
    watched = {libc.inotify_add_watch(descriptor, os.fsencode(each), is_open): each for each in folders}
    assert min(watched) >= 0
    files: set[Path] = set()
    try:
        yield files
        while True:
            try:
                events = os.read(descriptor, 2**16)
            except BlockingIOError:
                break
            while events:
                watch, mask, _, length = struct.unpack_from("iIII", events)
                name = events[16 : 16 + length].rstrip(b"\0").decode()
                events = events[16 + length :]
                if name and not mask & is_folder:
                    files.add(watched[watch] / name)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("place", LAYOUTS)
def test_every_file_that_loading_opens_is_part_of_the_identity(folder: Path, place: Callable[[Path], Path]) -> None:
    weights = place(folder)
    (folder / "README.md").write_text("no file of the model's")
    folders = {weights.parent, *(path for path in folder.parent.rglob("*") if path.is_dir())}
    with opened(*folders) as files:
        load_model(str(folder), device="cpu")
    assert weights.resolve() in {file.resolve() for file in files}  # or the test watches the wrong place
    known = {file.resolve() for file in model_files(folder, code=False).values()}
    assert {file.resolve() for file in files} <= known


@pytest.mark.parametrize("place", LAYOUTS)
def test_other_weights_are_another_model(folder: Path, place: Callable[[Path], Path]) -> None:
    weights = place(folder)
    words = ["model=hf", f"model.path={folder}"]
    before = compose(words).config_hash
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    after = compose(words).config_hash
    content[-2] ^= 1
    weights.write_bytes(content)
    assert compose(words).config_hash == before != after


@pytest.mark.parametrize("place", [place for place in LAYOUTS if not place.__name__.startswith("pickled")])
def test_stored_dtypes_are_of_the_weights_that_are_loaded(folder: Path, place: Callable[[Path], Path]) -> None:
    weights = place(folder)
    assert stored_dtypes(str(folder)) == {"F32"}
    save_file({"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.zeros(2, dtype=torch.float16)}, weights)
    assert stored_dtypes(str(folder)) == {"BF16", "F16"}


def test_without_readable_weights_there_are_no_dtypes(folder: Path) -> None:
    assert stored_dtypes("someone/on-the-hub") == set()
    for rubbish in (b"", b"rubbish" * 100, b"\x02" + bytes(7) + b"[]", b"\x07" + bytes(7) + b'{"a":1}'):
        (folder / "model.safetensors").write_bytes(rubbish)
        assert stored_dtypes(str(folder)) == set()
    shutil.copy(TINY / "model.safetensors", folder)
    pickled(folder)
    assert stored_dtypes(str(folder)) == set()
    (folder / "pytorch_model.bin").unlink()
    assert stored_dtypes(str(folder)) == set()


def test_an_adapters_pickled_weights_count_where_they_are_read(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"1")
    assert "adapter_model.bin" not in model_files(folder, code=False)
    (folder / "adapter_config.json").write_text("{}")
    assert {"adapter_config.json", "adapter_model.bin"} <= model_files(folder, code=False).keys()
    (folder / "adapter_model.safetensors").write_bytes(b"2")
    assert "adapter_model.bin" not in model_files(folder, code=False)


def test_configs_of_other_versions_count_where_config_json_names_them(folder: Path) -> None:
    (folder / "config.4.0.0.json").write_text("{}")
    assert "config.4.0.0.json" not in model_files(folder, code=False)
    change_config(folder, configuration_files=["config.json", "config.4.0.0.json", "config.9.0.0.json", 5])
    assert "config.4.0.0.json" in model_files(folder, code=False)


def test_code_of_another_folder_counts_where_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "code"
    (other / "deep").mkdir(parents=True)
    (other / "modeling.py").write_text("1")
    (other / "deep" / "parts.py").write_text("2")
    reference = {"AutoModelForCausalLM": f"{other}--modeling.Model", "AutoConfig": "someone/hub--configuration.Config"}
    change_config(folder, auto_map=reference)
    assert not any(name.endswith(".py") for name in model_files(folder, code=False))
    trusted = model_files(folder, code=True)
    assert {file for file in trusted.values() if file.suffix == ".py"} == {*other.rglob("*.py")}


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 5, "b": ["c"], "d": null}}',
                '{"weight_map": {"a": "..", "b": "", "c": "/", "d": "missing", "e": "\\u0000"}}',
                '{"weight_map": {"a": "' + "x" * 5000 + '"}}', "[" * 100_000]
)  # fmt: skip
def test_an_index_that_names_no_file_names_none(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    without = model_files(folder, code=False)
    (folder / "model.safetensors.index.json").write_text(content)
    assert model_files(folder, code=False).keys() - without.keys() == {"model.safetensors.index.json"}
    assert stored_dtypes(str(folder)) == set()


@pytest.mark.parametrize("content", ["{", "[]", '{"transformers_weights": 5}', '{"configuration_files": {"a": 1}}'])
def test_a_config_that_makes_no_sense_stops_nothing(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert {"config.json", "model.safetensors"} <= model_files(folder, code=True).keys()


# Of the version before this test: sweeps that it began are resumed, and what it did is not done again.
IDENTITIES = {
    "one file": "8ef2d1700291f147d2723d6defcb762b7d5cfcee206424bbccf736359c2020f7",
    "shards": "0f4c3bde7a0b9da74a3b69d18fc4367ce85c7660033f4d4ccce5d3f8d459ce25",
    "pickled shards": "f78d3cb9ee427818585687d97302793d769e96509141d6e62a81ce4efce3675e",
    "code": "051ecbb40ee81ec24aed2a3197277d6a58e6f374db72034d14b6610cdd6203c0",
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_the_identity_of_ordinary_folders_stays(tmp_path: Path, kind: str) -> None:
    files = {"config.json": '{"dtype": "bfloat16"}', "tokenizer.json": "{}", "merges.txt": "a b", "README.md": "?"}
    if kind in ("one file", "code"):
        files |= {"model.safetensors": "1", "pytorch_model.bin": "?", "modeling.py": "2", "deep/parts.py": "3"}
    else:
        stem, suffix = ("model", "safetensors") if kind == "shards" else ("pytorch_model", "bin")
        parts = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
        weights = {"metadata": {}, "weight_map": {"a": parts[0], "b": parts[1]}}
        files |= {part: part for part in parts} | {f"{stem}.{suffix}.index.json": json.dumps(weights)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    identity = model_identity(str(tmp_path), revision=None, dtype="auto", trust_remote_code=kind == "code")
    assert identity == {"files": IDENTITIES[kind], "dtype": "bfloat16"}
