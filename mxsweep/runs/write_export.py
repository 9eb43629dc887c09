"""Write a run's model as a packed checkpoint, for the loaders of one target."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.export.folder import SHARD_SIZE, target_module, write_manifest, write_tensors
from mxsweep.export.serving import served_activation
from mxsweep.formats.export_targets import why_not
from mxsweep.formats.exported_recipe import AUTO, FOLDER_TARGETS, FUSING_TARGETS, ROTATING_TARGETS, why_not_rotated
from mxsweep.runs.packed_model import PackedModel, PackedWeight
from mxsweep.terminal.errors import ConfigError

# Tensors of one number, of which a layer has one wherever it came from several.
_OF_A_LAYER = ("weight_global_scale", "weight_scale_2", "input_global_scale", "input_scale")


def choose_target(packed: PackedModel, asked: str) -> str:
    """Return the target to write: the one asked for, or of ``auto`` the first that holds the model.

    Raises:
        ConfigError: it has no place for something, or none has; the message says what, of each target.
    """
    if asked not in (AUTO, *FOLDER_TARGETS):
        raise ConfigError(f"export: {asked!r} is not known; allowed: {', '.join((AUTO, *FOLDER_TARGETS))}")
    problems = {}
    for target in FOLDER_TARGETS if asked == AUTO else (asked,):
        problem = why_not_here(packed, target)
        if problem is None:
            return target
        problems[target] = problem
    raise ConfigError(f"export: {'; '.join(problems.values())}")


def why_not_here(packed: PackedModel, target: str) -> str | None:
    """Return why a target has no place for a model, in one sentence; None where it has."""
    for name, weight in packed.weights.items():
        formats = weight.formats
        assert formats.weight is not None
        fixed = weight.input_scale is not None
        if problem := why_not(target, formats.weight, formats.activation, weight.encoded.shape, static_input=fixed):
            return f"{problem} ({name})"
        if weight.rotation_block is not None and (problem := _why_not_rotation(target, weight.rotation_block)):
            return f"{problem} ({name})"
    return _why_not_fused(packed, target) if target in FUSING_TARGETS else None


def _why_not_rotation(target: str, block: int) -> str | None:
    if target not in ROTATING_TARGETS:
        return why_not_rotated(target)
    problem: str | None = target_module(target).why_not_rotation(block)
    return problem


def _why_not_fused(packed: PackedModel, target: str) -> str | None:
    """Return which layers cannot be multiplied by at once, as vLLM does with those that read one tensor."""
    for group in packed.fused:
        together = [packed.weights.get(name) for name in group]
        kinds = {None if one is None else (one.formats, one.rotation_block) for one in together}
        if len(kinds) > 1:
            return (
                f"{target}: {', '.join(group)} are one layer where vLLM loads them, and have several formats; allowed: "
                "one format for all of them"
            )
        scales = {_tensor_scale(one) for one in together if one is not None}
        if len(scales) > 1:
            return (
                f"{target}: {', '.join(group)} are one layer where vLLM loads them, and each has a scale of the tensor "
                "of its own; allowed: one for all of them (format.share_tensor_scale=fused), or tensor_scale=false"
            )
    return None


def _check_fused(packed: PackedModel, target: str, stored: Mapping[str, Tensor]) -> None:
    """Raise ConfigError for layers that are one where vLLM loads them, and are stored with several numbers of what it
    has one of.

    Equal formats, and equal scales of the tensor, may be stored so: powers of two are moved by what a weight needs.
    """
    for group in packed.fused if target in FUSING_TARGETS else ():
        for part in _OF_A_LAYER:
            numbers = {float(stored[f"{name}.{part}"]) for name in group if f"{name}.{part}" in stored}
            if len(numbers) > 1:
                found = ", ".join(f"{number:g}" for number in sorted(numbers))
                raise ConfigError(
                    f"export: {target}: {', '.join(group)} are one layer where vLLM loads them, and would be stored "
                    f"with several numbers as its one {part} ({found}); allowed: formats that are stored with one, as "
                    "e4m3 scales under format.share_tensor_scale=fused, or tensor_scale=false"
                )


def _tensor_scale(weight: PackedWeight) -> float | None:
    scale = weight.encoded.tensor_scale
    return None if scale is None else float(scale)


def write_export(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    packed: PackedModel,
    target: str,
    manifest: Mapping[str, Any],
    shard_size: str = SHARD_SIZE,
) -> dict[str, Any]:
    """Write the files of a packed checkpoint into an empty folder; return what ``export.json`` is to hold.

    Args:
        model: whose config, generation config and class the checkpoint gets.
        manifest: what ``export.json`` holds beside what is known here.

    Raises:
        ConfigError: a weight's values have no place in the target, or layers that are fused differ in a number.
        OSError: the files cannot be written.
    """
    module = target_module(target)
    stored: dict[str, Tensor] = {}
    formats = {name: weight.formats for name, weight in packed.weights.items()}
    try:
        for name, weight in packed.weights.items():
            stored |= module.tensors(name, weight.encoded, weight.input_scale)
        settings = module.quantization_config(formats, packed.kept)
    except ValueError as error:
        raise ConfigError(f"export: {error}") from None
    _check_fused(packed, target, stored)
    rotations: dict[int, list[str]] = defaultdict(list)
    for name, weight in packed.weights.items():
        if weight.rotation_block is not None:
            rotations[weight.rotation_block].append(name)
    if rotations:
        settings["transform_config"] = module.transform_config(rotations)
    content = {**manifest, **_account(packed, stored, target, str(model.dtype).removeprefix("torch."))}
    content["bytes"]["tensors"] = write_tensors(folder, {**packed.plain, **stored}, shard_size)
    _write_config(folder, model, packed, settings)
    beside = module.extra_files(formats, packed.kept) if hasattr(module, "extra_files") else {}
    for name, of_file in beside.items():
        (folder / name).write_text(json.dumps(of_file, indent=2) + "\n", encoding="utf-8")
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder, content)
    return content


def _write_config(folder: Path, model: PreTrainedModel, packed: PackedModel, settings: Mapping[str, Any]) -> None:
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = settings
    if config.get("tie_word_embeddings", model.config.tie_word_embeddings) and not packed.tied:
        config["tie_word_embeddings"] = False  # a rotated residual stream, or codes, leave the output layer its own
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
