"""Write the files of a packed checkpoint, and say what a folder of them holds. No model is needed for either."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mxsweep.export.targets.gguf_file import read_file, write_file
from mxsweep.files.atomic import write_atomically
from mxsweep.files.checkpoints import EXPORT_MANIFEST as MANIFEST
from mxsweep.files.checkpoints import EXPORTED_GGUF as GGUF_FILE
from mxsweep.formats.export_targets import GGUF, TARGET_NAMES
from mxsweep.numerics import Encoded

SHARD_SIZE = "5GB"
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
DTYPES = ("float32", "bfloat16", "float16")  # of a model that is exported


def _module_name(target: str) -> str:
    return f"mxsweep.export.targets.{target.replace('-', '_')}"


def target_module(target: str) -> ModuleType:
    """Return the module that lays weights out as a target's loader wants them."""
    return import_module(_module_name(target))


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_size: str = SHARD_SIZE) -> int:
    """Write tensors as safetensors, in shards with an index where one file would be larger, as transformers does.

    Returns:
        The bytes of all tensors.
    """
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=shard_size)
    for name, keys in split.filename_to_tensors.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o666 & ~_umask())  # safetensors makes files that only their owner reads
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if split.is_sharded:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def write_gguf(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> int:
    """Write tensors as one GGUF file.

    Args:
        config: what config.json holds.
        settings: what `quantization_config` of the target returned.

    Returns:
        The bytes of all tensors.

    Raises:
        ValueError: the model has no place in such a file.
    """
    return write_file(folder / GGUF_FILE, config, tensors, settings["types"])


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``export.json``."""
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what ``export.json`` holds.

    Raises:
        OSError, ValueError: it cannot be read, or is no such file.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not {"target", "weights", "dtype", "run_id"} <= manifest.keys():
        raise ValueError(f"{folder / MANIFEST} is no file of mxsweep.export")
    for name, allowed in (("target", TARGET_NAMES), ("dtype", DTYPES)):
        if manifest[name] not in allowed:
            raise ValueError(
                f"{folder / MANIFEST}: {name}: {manifest[name]!r} is not known; allowed: {', '.join(allowed)}"
            )
    layers = manifest["weights"]
    if not isinstance(layers, dict) or not all(map(_is_layer, layers.values())):
        raise ValueError(f"{folder / MANIFEST}: weights: does not say of each layer in which formats it is stored")
    return manifest


def _is_layer(layer: Any) -> bool:
    if not isinstance(layer, dict) or not isinstance(layer.get("weight"), str):
        return False
    return isinstance(layer.get("activation"), str | None)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint's files, on the CPU. Raises OSError."""
    index = folder / _INDEX
    names = [_WEIGHTS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    return tensors


def read_weights(folder: Path) -> tuple[dict[str, Encoded], dict[str, Tensor]]:
    """Return (weights by name of their layer, all other tensors by name) of a packed checkpoint.

    Raises:
        OSError, ValueError: a file is missing, or does not hold what ``export.json`` and ``config.json`` say, or a
            package is missing that reads it.
    """
    manifest = read_manifest(folder)
    config, dtype = json.loads((folder / "config.json").read_text(encoding="utf-8")), getattr(torch, manifest["dtype"])
    target = target_module(manifest["target"])
    if manifest["target"] == GGUF:
        tensors, settings = read_file(folder / GGUF_FILE, config, dtype)
    else:
        tensors, settings = read_tensors(folder), config["quantization_config"]
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    plain = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        if layer in manifest["weights"] and part != "bias":
            parts[layer][key] = tensor
        else:
            plain[key] = tensor
    return {name: target.decode(name, parts[name], settings, dtype) for name in manifest["weights"]}, plain
