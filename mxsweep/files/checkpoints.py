"""What is in a model's files: weights by name and shape, read from headers, and the content that identifies it.

No torch, no weights in memory.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.files.digests import file_digests, json_digest, stamps
from mxsweep.terminal.errors import ConfigError

EMBEDDED = "embedded"  # the model.path of the model that ships with mxsweep

# Of a model folder, what transformers reads beside the weights: the tokenizers' files under every name that they have
# in transformers 5.23, and what generation starts from, for tasks that generate.
_SMALL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "*token*", "*vocab*", "merges.txt", "*.model",
    "*.spm", "*.tiktoken", "tekken.json", "bpe.codes", "dict.txt", "normalizer.json", "byte_maps.json", "emoji.json",
    "word_*.json", "chat_template*", "*.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


@dataclass(frozen=True)
class WeightEntry:
    """One tensor of a checkpoint, or a second name that a tied one has."""

    name: str
    shape: tuple[int, ...]
    bits: int
    tied_to: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def model_folder(path: str) -> Path | None:
    """The folder that a ``model.path`` names; None for a name on the hub."""
    folder = Path(__file__).resolve().parent.parent / "assets" / "tiny" if path == EMBEDDED else Path(path).expanduser()
    return folder if folder.is_dir() else None


def model_identity(path: str, *, revision: str | None, dtype: str, trust_remote_code: bool) -> dict[str, str]:
    """What tells a model from every other, for a run's hash: a hub name with its revision, or a folder's content.

    A folder's revision means nothing. Its dtype "auto" is the one that its config.json names, as transformers has it.

    Raises:
        ConfigError: a file of the folder vanished or cannot be read.
    """
    folder = model_folder(path)
    if folder is None:
        code = {"code": "its own"} if trust_remote_code else {}
        return {"name": path, "revision": revision or "main", "dtype": dtype, **code}
    try:
        files = model_files(folder, trust_remote_code)
        digests = dict(zip(files, file_digests(list(files.values())), strict=True))
    except OSError as error:
        which = f": {Path(error.filename).name}" if error.filename else ""
        raise ConfigError(f"model.path: {path!r} cannot be read{which}: {error.strerror or error}") from None
    return {"files": json_digest(digests), "dtype": _stored_dtype(folder) if dtype == "auto" else dtype}


def model_stamps(path: str, code: bool) -> tuple[Any, ...]:
    """What changes when a model folder's files do, without reading them; the same always for a name on the hub."""
    folder = model_folder(path)
    try:
        files = model_files(folder, code) if folder is not None else {}
    except OSError:
        return ()  # loading the model says what is wrong with it
    return tuple(zip(files, stamps(files.values()), strict=True))


def model_files(folder: Path, code: bool) -> dict[str, Path]:
    """The files of a model folder that decide what it answers, by their names in it; ``code``: its modules too.

    What an index names and is not there is left out: loading the model says so.
    """
    patterns: list[str] = [*_SMALL_FILES, "*.safetensors", "*.safetensors.index.json"]
    # transformers takes pickled weights only where there are no others.
    if not any((folder / f"model.safetensors{suffix}").is_file() for suffix in ("", ".index.json")):
        patterns += _PICKLED_WEIGHTS
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.suffix != ".py"}
    named = {folder / name for name in _named_weights(folder)}
    # Mistral's models come a second time, in a file of another program's.
    found = {file for file in found if not file.name.startswith("consolidated")} | named
    if code:
        found |= {file for file in folder.rglob("*.py") if not _is_hidden(file.relative_to(folder))}
    return {file.relative_to(folder).as_posix(): file for file in sorted(found) if file.is_file()}


def _named_weights(folder: Path) -> set[str]:
    """Weight files that need not lie beside the index, or have a name of the config's choice."""
    names: set[str] = set()
    try:
        chosen = _read_json(folder / "config.json").get("transformers_weights")
        index = folder / (chosen if str(chosen).endswith(".index.json") else "model.safetensors.index.json")
        if index.is_file():
            names |= set(_read_json(index)["weight_map"].values())
        names |= {chosen} - {None}
        return {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()  # loading the model says what is wrong with it


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _stored_dtype(folder: Path) -> str:
    """The dtype that a folder's config.json names; "auto" where it names none, or several, and more than it decides."""
    try:
        config = _read_json(folder / "config.json")
        dtypes = [part.get("dtype") or part.get("torch_dtype") for part in (config, config.get("text_config") or {})]
    except (OSError, ValueError, AttributeError, RecursionError):
        return "auto"
    return dtypes[0] if isinstance(dtypes[0], str) and dtypes[1] in (None, dtypes[0]) else "auto"


def read_inventory(path: str) -> list[WeightEntry] | None:
    """The tensors of a model folder with safetensors files; None where there are none that can be read (a hub name)."""
    folder = model_folder(path)
    if folder is None:
        return None
    try:
        index = folder / "model.safetensors.index.json"
        names = set(_read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
        entries = [entry for name in sorted(names) for entry in _entries(folder / name)]
        return entries + _tied(_read_json(folder / "config.json"), entries)
    except (OSError, ValueError, KeyError, TypeError, struct.error, MemoryError):
        return None  # loading the model says what is wrong with it


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _entries(file: Path) -> list[WeightEntry]:
    # The safetensors format: 8 bytes of little-endian length, then that many bytes of JSON.
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, file.stat().st_size)))
    header.pop("__metadata__", None)
    return [_entry(name, **tensor) for name, tensor in header.items()]


def _entry(name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> WeightEntry:
    size = math.prod(shape)
    return WeightEntry(name, tuple(shape), (data_offsets[1] - data_offsets[0]) * 8 // size if size else 0)


def _tied(config: dict[str, Any], entries: list[WeightEntry]) -> list[WeightEntry]:
    """The lm_head of a model whose config says that it shares the embedding, and whose files therefore lack it."""
    embedding = next((entry for entry in entries if entry.name.endswith("embed_tokens.weight")), None)
    if embedding is None or not config.get("tie_word_embeddings") or any(e.name == "lm_head.weight" for e in entries):
        return []
    return [WeightEntry("lm_head.weight", embedding.shape, embedding.bits, tied_to=embedding.name)]
