"""Write a run's model as a packed checkpoint, laid out for the loaders of one target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.export.folder import SHARD_SIZE, write_gguf, write_manifest, write_tensors
from mxsweep.export.serving import served_activation
from mxsweep.formats.export_targets import GGUF
from mxsweep.runs.lay_out_export import LaidOut, lay_out
from mxsweep.runs.packed_model import PackedModel
from mxsweep.terminal.errors import ConfigError


def write_export(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedModel,
    asked: str,
    manifest: Mapping[str, Any],
    shard_size: str = SHARD_SIZE,
) -> dict[str, Any]:
    """Write the files of a packed checkpoint into an empty folder; return what ``export.json`` is to hold.

    Args:
        model: whose config, generation config and class the checkpoint gets.
        asked: a target, or "auto" for the first that holds the model.
        manifest: what ``export.json`` holds beside what is known here.

    Raises:
        ConfigError: the target has no place for something, or none has.
        OSError: the files cannot be written.
    """
    laid_out = lay_out(packed, asked, model.config.to_dict())
    settings = _write_config(folder, model, packed, laid_out)
    content = {
        **manifest,
        **_account(packed, laid_out.stored, laid_out.target, str(model.dtype).removeprefix("torch.")),
    }
    tensors = {**packed.plain, **laid_out.stored}
    if laid_out.target == GGUF:
        try:
            content["bytes"]["tensors"] = write_gguf(folder, settings, tensors, laid_out.settings)
        except ValueError as error:
            raise ConfigError(f"export: {error}") from None
    else:
        content["bytes"]["tensors"] = write_tensors(folder, tensors, shard_size)
    for name, of_file in laid_out.beside.items():
        (folder / name).write_text(json.dumps(of_file, indent=2) + "\n", encoding="utf-8")
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder, content)
    return content


def _write_config(folder: Path, model: PreTrainedModel, packed: PackedModel, laid_out: LaidOut) -> dict[str, Any]:
    """Write config.json, and return what it holds. A GGUF file says itself how each tensor is quantized."""
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if laid_out.target != GGUF:
        config["quantization_config"] = laid_out.settings
    if config.get("tie_word_embeddings", model.config.tie_word_embeddings) and not packed.tied:
        config["tie_word_embeddings"] = False  # a rotated residual stream, or codes, leave the output layer its own
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return config


def _account(packed: PackedModel, stored: Mapping[str, Tensor], target: str, dtype: str) -> dict[str, Any]:
    """Return what is stored: formats by layer, bytes and bits predicted and stored."""
    weights = predicted = 0
    layers: dict[str, dict[str, str | None]] = {}
    for name, weight in packed.weights.items():
        formats = weight.formats
        assert formats.weight is not None
        weights += weight.encoded.codes.numel()
        predicted += formats.weight.stored_bits(weight.encoded.shape) + 32 * (weight.encoded.tensor_scale is not None)
        layer: dict[str, str | None] = {"weight": str(formats.weight), "activation": None}
        if formats.activation is not None:
            layer["activation"] = str(formats.activation)
            served = served_activation(target, formats.activation)
            layer["activation_as_served"] = None if served is None else str(served)
        if weight.rotation_block is not None:
            layer["input_rotated_in_blocks_of"] = str(weight.rotation_block)
        layers[name] = layer
    of_weights = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    return {
        "target": target,
        "dtype": dtype,
        "weights": layers,
        "kept": list(packed.kept),
        "bytes": {"quantized_weights": of_weights},
        "bits_per_quantized_weight": {
            "predicted": predicted / weights if weights else None,
            "stored": of_weights * 8 / weights if weights else None,
        },
    }
