"""Read model folders and GGUF files: the content that identifies a model, and the dtypes of its weights, from headers.

Which files of a folder those are follows the rules by which transformers 5.23 finds them. No torch, no weights in
memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mxsweep.files.digests import file_digests, json_digest, stamps
from mxsweep.files.gguf_header import SUFFIX
from mxsweep.files.safetensors_header import stored_tensors
from mxsweep.terminal.errors import ConfigError

EXPORT_MANIFEST = "export.json"  # in the folder of a checkpoint that mxsweep packed: what is stored in it
# Of it what the weights' values depend on; the rest says how the export went.
_LOADED_BY = ("target", "dtype", "weights")
EXPORTED_GGUF = f"model{SUFFIX}"  # and its weights, where they are in one such file
EMBEDDED = "embedded"  # the model.path of the model that ships with mxsweep

# Of a model folder, what transformers reads beside the weights: the tokenizers' files under every name that they have
# in transformers 5.23, and what generation starts from, for tasks that generate.
_SMALL_FILES = (
    "config.json", "generation_config.json", "adapter_config.json", "*token*", "*vocab*", "merges.txt", "*.model",
    "*.spm", "*.tiktoken", "tekken.json", "bpe.codes", "dict.txt", "normalizer.json", "byte_maps.json", "emoji.json",
    "word_*.json", "chat_template*", "*.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json")
# What transformers looks for, the first before the second.
_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PYTORCH_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


def model_folder(path: str) -> Path | None:
    """Return the folder that a ``model.path`` names; None for a file, and for a name on the hub.

    A GGUF file that mxsweep packed names the folder that it was written with: it holds no tokenizer itself.
    """
    folder = Path(__file__).resolve().parent.parent / "assets" / "tiny" if path == EMBEDDED else Path(path).expanduser()
    if folder.name == EXPORTED_GGUF and packed_gguf(folder.parent):
        return folder.parent
    return folder if folder.is_dir() else None


def gguf_file(path: str) -> Path | None:
    """Return the GGUF file that a ``model.path`` names; None for a folder, and for a name on the hub."""
    file = Path(path).expanduser()
    return file if file.suffix.lower() == SUFFIX and is_file(file) and model_folder(path) is None else None


def exported_folder(path: str) -> Path | None:
    """Return the folder of a ``model.path`` that holds a checkpoint which mxsweep packed; None for all else."""
    folder = model_folder(path)
    return folder if folder is not None and (folder / EXPORT_MANIFEST).is_file() else None


def export_manifest(path: str) -> dict[str, Any]:
    """Return what ``export.json`` says of a ``model.path`` that mxsweep packed; an empty mapping for all else."""
    folder = exported_folder(path)
    return {} if folder is None else read_mapping(folder / EXPORT_MANIFEST)


def packed_layers(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of each layer that is stored in codes, by its name."""
    layers = manifest.get("weights")
    return layers if isinstance(layers, dict) else {}


def rotated_layer(folder: Path) -> str | None:
    """Return the first layer that a folder which mxsweep packed has stored rotated, its input to be rotated by the
    loader; None where there is none.
    """
    known = packed_layers(read_mapping(folder / EXPORT_MANIFEST)).items()
    rotated = (name for name, layer in known if isinstance(layer, dict) and "input_rotated_in_blocks_of" in layer)
    return next(rotated, None)


def packed_gguf(folder: Path) -> Path | None:
    """Return the GGUF file that holds the weights of a folder which mxsweep packed; None for any other folder."""
    file = folder / EXPORTED_GGUF
    return file if is_file(file) and is_file(folder / EXPORT_MANIFEST) else None


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that its tokenizer is read from."""
    return [file for name in _TOKENIZER_FILES for file in sorted(folder.glob(name))]


def is_here(path: str) -> bool:
    """Return whether a ``model.path`` names a folder or a file, rather than something on the hub."""
    return model_folder(path) is not None or gguf_file(path) is not None


def model_identity(
    path: str, *, revision: str | None, dtype: str, trust_remote_code: bool, dequantize: bool = False
) -> dict[str, str]:
    """Return what tells a model from every other: a hub name with its revision, or the content of a folder or a file.

    A folder's revision means nothing, nor does a file's name. A dtype "auto" is what it comes to, as far as the files
    tell without their weights. Of ``export.json`` counts what decides how codes are read, and not how long the export
    took or what was measured then.

    Raises:
        ConfigError: a file vanished or cannot be read.
    """
    if not is_here(path):
        code = {"code": "its own"} if trust_remote_code else {}
        plain = {"weights": "dequantized"} if dequantize else {}  # as they may be there, which its files would tell
        return {"name": path, "revision": revision or "main", "dtype": dtype, **code, **plain}
    try:
        files = _local_files(path, trust_remote_code)
        digests = dict(zip(files, file_digests(list(files.values())), strict=True))
    except OSError as error:
        which = f": {Path(error.filename).name}" if error.filename else ""
        raise ConfigError(f"model.path: {path!r} cannot be read{which}: {error.strerror or error}") from None
    if exported_folder(path) is not None:
        manifest = export_manifest(path)
        digests[EXPORT_MANIFEST] = json_digest({name: manifest.get(name) for name in _LOADED_BY})
    plain = {"weights": "dequantized"} if dequantize and stored_quantization(path) else {}
    return {"files": json_digest(digests), "dtype": _dtype_named(path) if dtype == "auto" else dtype, **plain}


def model_stamps(path: str, code: bool) -> tuple[Any, ...]:
    """Return what changes when a model's files do, without reading them; the same always for a hub name."""
    try:
        files = _local_files(path, code)
    except OSError:
        return ()  # loading the model says what is wrong with it
    if (packed := exported_folder(path)) is not None:
        files[EXPORT_MANIFEST] = packed / EXPORT_MANIFEST
    return tuple(zip(files, stamps(files.values()), strict=True))


def _local_files(path: str, code: bool) -> dict[str, Path]:
    """Return the files that loading a ``model.path`` reads, by names that do not depend on where they lie."""
    if file := gguf_file(path):
        return {f"model{SUFFIX}": file}
    folder = model_folder(path)
    return model_files(folder, code) if folder is not None else {}


def _dtype_named(path: str) -> str:
    """Return the dtype that a model's files name; "auto" where they name none.

    That of a GGUF file is float32: what its blocks stand for, a scale times a whole number, has more digits than
    another dtype holds.
    """
    if gguf_file(path):
        return "float32"
    folder = model_folder(path)
    return "auto" if folder is None else _stored_dtype(folder)


def model_files(folder: Path, code: bool) -> dict[str, Path]:
    """Return the files that loading a model folder reads, wherever they lie, by the folder's names for them.

    More files than loading reads may be among them (weights beside those that are taken); a name that an index or a
    config holds and that is no file is left out: loading the model says so.

    Args:
        code: the folder's own modules are run, and count.

    Raises:
        OSError: the folder cannot be looked through.
    """
    patterns: list[str] = [*_SMALL_FILES, "*.safetensors", "*.safetensors.index.json"]
    # transformers takes pickled weights only where there are no others.
    if not any((folder / name).is_file() for name in _SAFE_WEIGHTS):
        patterns += _PICKLED_WEIGHTS
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.suffix != ".py"}
    # Mistral's models come a second time, in a file of another program's.
    files = {file for file in files if not file.name.startswith("consolidated")}
    if code:
        files |= {file for file in folder.rglob("*.py") if not _is_hidden(file.relative_to(folder))}
    by_name = {file.relative_to(folder).as_posix(): file for file in files}
    named = [*_named_weights(folder), *_versioned_configs(folder), *_adapter_weights(folder)]
    by_name |= {Path(name).as_posix(): folder / name for name in named}
    if code:
        by_name |= _code_elsewhere(folder)
    if packed := packed_gguf(folder):
        by_name[EXPORTED_GGUF] = packed
    return {name: file for name, file in sorted(by_name.items()) if is_file(file)}


def _named_weights(folder: Path) -> list[str]:
    """Return the names of every file that `weight_files` may come to."""
    return [name for root in weight_roots(folder) for name in weight_files(folder, root)]


def weight_roots(folder: Path) -> list[str]:
    """Return the names of what the weights are looked up by: what the config chooses, then the first that is there.

    A name that the config chooses may be of its text model's config alone; which of the two is asked depends on the
    model's class.
    """
    config = read_mapping(folder / "config.json")
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    chosen = [name for part in parts if isinstance(name := part.get("transformers_weights"), str)]
    usual = [name for name in (*_SAFE_WEIGHTS, *_PYTORCH_WEIGHTS) if (folder / name).is_file()]
    return chosen + usual[:1]


def weight_files(folder: Path, root: str) -> list[str]:
    """Return a weight file's name; of an index also those of the parts that it names.

    A part is named as from the folder, wherever the index lies, and a name may lead out of the folder.
    """
    if not root.endswith(".index.json"):
        return [root]
    parts = read_mapping(folder / root).get("weight_map")
    names = parts.values() if isinstance(parts, dict) else ()
    return [root, *sorted({name for name in names if isinstance(name, str)})]


def _versioned_configs(folder: Path) -> list[str]:
    """Return the names of configs for other versions of transformers, which config.json points to."""
    names = read_mapping(folder / "config.json").get("configuration_files")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _adapter_weights(folder: Path) -> list[str]:
    """Return the name of an adapter's pickled weights where they are taken, for lack of others."""
    has_safe_ones = (folder / "adapter_model.safetensors").is_file()
    return ["adapter_model.bin"] if (folder / "adapter_config.json").is_file() and not has_safe_ones else []


def _code_elsewhere(folder: Path) -> dict[str, Path]:
    """Return the modules of other local folders whose classes a model or a tokenizer takes, by reference and name.

    Such a reference reads ``FOLDER--module.Class``; one to the hub is in the config, which counts as it is.
    """
    modules: dict[str, Path] = {}
    for config in ("config.json", "tokenizer_config.json"):
        for reference in texts_in(read_mapping(folder / config).get("auto_map")):
            other, separator, _ = reference.partition("--")
            if separator and Path(other).is_dir():
                modules |= {f"{other}--{file.relative_to(other)}": file for file in Path(other).rglob("*.py")}
    return modules


def texts_in(value: Any) -> list[str]:
    """Return the texts in plain data, however deep."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in texts_in(item)]
    return [value] if isinstance(value, str) else []


def is_file(file: Path) -> bool:
    """Return whether there is such a file; False of a name that no file can have."""
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _stored_dtype(folder: Path) -> str:
    """Return the dtype that config.json names; "auto" where it names none, or several: then more than it decides."""
    config = read_mapping(folder / "config.json")
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        return "auto"
    dtypes = [part.get("dtype") or part.get("torch_dtype") for part in (config, text)]
    return dtypes[0] if isinstance(dtypes[0], str) and dtypes[1] in (None, dtypes[0]) else "auto"


def stored_quantization(path: str) -> str | None:
    """Return the method that the files of a model folder are quantized by, as its config says; None of all others."""
    folder = model_folder(path)
    if folder is None:
        return None
    name = quantization_of(read_mapping(folder / "config.json"))
    return name or ("modelopt" if read_mapping(folder / "hf_quant_config.json").get("quantization") else None)


def quantization_of(config: dict[str, Any]) -> str | None:
    """Return the method that a checkpoint's config.json says its weights are quantized by; None for none."""
    text = config.get("text_config")
    keys = {"quantization_config": "a method without a name", "compression_config": "compressed-tensors"}
    for part in (config, text if isinstance(text, dict) else {}):
        for key, usual in keys.items():
            if isinstance(settings := part.get(key), dict) and settings:
                bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")  # of old bitsandbytes
                return str(settings.get("quant_method") or ("bitsandbytes" if bits else usual))
    return None


def loading_dtype(path: str) -> str:
    """Return the dtype that "auto" comes to for a model; "auto" where its files do not tell, or are elsewhere.

    Without a dtype in config.json, float16 is told from weights that have no other.
    """
    dtype = _dtype_named(path)
    return "float16" if dtype == "auto" and stored_dtypes(path) == {"F16"} else dtype


def stored_dtypes(path: str) -> set[str]:
    """Return the dtypes of a model folder's weights as safetensors names them ("BF16"); none where none can be read."""
    folder = model_folder(path)
    roots = weight_roots(folder) if folder is not None else []
    if folder is None or not roots:
        return set()
    try:
        files = [name for name in weight_files(folder, roots[0]) if not name.endswith(".index.json")]
        return {tensor.dtype for name in files for tensor in stored_tensors(folder / name).values()}
    except (OSError, ValueError):
        return set()  # loading the model says what is wrong with it


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; an empty one where there is none: loading the model says so."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
