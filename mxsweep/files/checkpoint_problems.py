"""Find out what is wrong with a model folder, as far as its files tell without torch: before a run is begun on it."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from mxsweep.files.checkpoints import is_file, read_mapping, stored_quantization, weight_files, weight_roots
from mxsweep.files.safetensors_header import SUFFIX, SafetensorsError, StoredTensor, stored_tensors

_SETTINGS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_FLOATS = ("F64", "F32", "F16", "BF16")
# What quantized weights are called, or come with, in the checkpoints of compressed-tensors, GPTQ, AWQ, bitsandbytes,
# torchao, modelopt, fp8 and mxfp4.
_PACKED = re.compile(
    r"weight_packed|weight_scale(_inv|_2)?|weight_global_scale|weight_zero_point|_weight_(qdata|scale)|qweight|qzeros|"
    r"SCB|absmax|quant_map|bitsandbytes__\w+|\w+_proj_(blocks|scales)"
)


# What config.json calls a number of layers, and sizes that a dimension of some weight has.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads",
    "num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "d_model", "ffn_dim", "n_embd",
    "n_head", "n_inner",
)  # fmt: skip
_MOST_IN_ONE = 16  # elements of packed weights in one that is stored: of 2 bits in 32
_MOST_LAYERS = 10_000  # where the number of weights is not known


def folder_problem(folder: Path) -> str | None:
    """Return what keeps a model folder from being loaded, to be read behind its name; None where nothing is found."""
    for name in _SETTINGS:  # which transformers would take for one that is not there, or wait for
        if (folder / name).exists() and not is_file(folder / name):
            return f"holds a {name} that is no regular file"
    for name in _OBJECTS:
        if (folder / name).exists() and not _is_object(folder / name):
            return f"holds a {name} that is no JSON object"
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        return f"holds a config.json that cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError) as error:
        return f"holds a config.json that is no JSON: {' '.join(str(error).split())}"
    if not isinstance(content, dict) or not content:
        return "holds a config.json without settings: it must be an object that names a model_type"
    if (folder / "adapter_config.json").is_file():
        return None  # whose weights come on top of another model's
    roots = weight_roots(folder)
    if not roots:
        return "holds no weights by a name that transformers reads (model.safetensors, or its parts with their index)"
    try:
        problems = [problem for name in weight_files(folder, roots[0]) if (problem := _problem(folder, name, content))]
    except OSError as error:
        return f"holds weights that cannot be read: {error.strerror or error}"
    return problems[0] if problems else _sizes_problem(folder, weight_files(folder, roots[0]), content)


def _problem(folder: Path, name: str, config: dict[str, Any]) -> str | None:
    """Return what is wrong with one file of a folder's weights, or with their index."""
    file = folder / name
    if not is_file(file):
        return f"is no whole checkpoint: {name} is not there"
    if not file.stat().st_size:
        return f"is no whole checkpoint: {name} is empty"
    if name.endswith(".index.json"):
        return _index_problem(folder, name)
    if name.endswith(SUFFIX):
        try:
            tensors = stored_tensors(file)
        except SafetensorsError as error:
            return f"is no whole checkpoint: {name} {error}"
        return None if stored_quantization(str(folder)) else _packed(tensors)
    with file.open("rb") as stream:
        is_archive = stream.read(2) == b"PK"
    if is_archive and not zipfile.is_zipfile(file):
        return f"is no whole checkpoint: {name} is cut short"
    return None


def _sizes_problem(folder: Path, names: list[str], config: dict[str, Any]) -> str | None:
    """Return which size in config.json no weight of the folder can have; a model of it would be built for ever."""
    weights = [tensor for name in names if name.endswith(SUFFIX) for tensor in stored_tensors(folder / name).values()]
    largest = max((size for tensor in weights for size in tensor.shape), default=0)
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        layers = {name: part[name] for name in _LAYERS if isinstance(part.get(name), int)}
        sizes = {name: part[name] for name in _SIZES if weights and isinstance(part.get(name), int)}
        for name, value in layers.items():
            if value > (len(weights) or _MOST_LAYERS):
                known = f"it holds {len(weights):,} weights" if weights else f"allowed: up to {_MOST_LAYERS:,}"
                return f"holds a config.json with {name}: {value}, and {known}"
        for name, value in sizes.items():
            if value > _MOST_IN_ONE * largest:
                return f"holds a config.json with {name}: {value}, and no dimension of its weights exceeds {largest:,}"
    return None


def _is_object(file: Path) -> bool:
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _index_problem(folder: Path, name: str) -> str | None:
    """Return what is wrong with an index of weights, which transformers takes as it is."""
    if len(weight_files(folder, name)) == 1:
        return f"is no whole checkpoint: {name} names no files"
    index = read_mapping(folder / name)
    if not all(isinstance(part, str) for part in index["weight_map"].values()):
        return f"holds a {name} whose weight_map names files that are no texts"
    if not isinstance(index.get("metadata"), dict):
        return f"holds a {name} without metadata: it must be an object, if an empty one"
    return None


def _packed(tensors: dict[str, StoredTensor]) -> str | None:
    """Return what to say of weights that are stored quantized where config.json says nothing of it."""
    for name, (dtype, _) in tensors.items():
        last = name.rpartition(".")[2]
        if _PACKED.fullmatch(last) or ((last == "weight" or last.endswith("_proj")) and dtype not in _FLOATS):
            return (
                f"is quantized already: it holds {name} ({dtype}), and config.json has no quantization_config that "
                "says how; allowed: weights in float32, bfloat16 or float16, or a checkpoint with that entry and "
                "model.dequantize=true"
            )
    return None
