"""Lay a run's model out for the loaders of a target: the one that is asked for, or the first that holds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mxsweep.export.folder import target_module
from mxsweep.export.targets.bits import checked_packing, under_one_scale
from mxsweep.export.targets.gguf_file import stored_name, why_not_installed
from mxsweep.formats.export_targets import GGUF, TARGET_NAMES
from mxsweep.formats.exported_recipe import AUTO, FUSING_TARGETS
from mxsweep.numerics import Encoded
from mxsweep.runs.export_place import Layer, why_not_layers
from mxsweep.runs.packed_model import PackedModel, PackedWeight
from mxsweep.terminal.errors import ConfigError

# Tensors of one number, of which a layer has one wherever it came from several.
_OF_A_LAYER = ("weight_global_scale", "weight_scale_2", "input_global_scale", "input_scale")


@dataclass(frozen=True)
class LaidOut:
    """Hold what a target stores of a model.

    Attributes:
        stored: the tensors of quantized weights, by full name.
        settings: what `quantization_config` of the target returned, with its transform config where inputs are rotated.
        beside: what further JSON files hold, by name.
    """

    target: str
    stored: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)


def lay_out(packed: PackedModel, asked: str, config: Mapping[str, Any]) -> LaidOut:
    """Return what is stored of a model by the target that is asked for, or of ``auto`` by the first that holds it.

    Args:
        config: what config.json will hold.

    Raises:
        ConfigError: the target has no place for something, or none has; the message says what, of each.
    """
    layers = {name: _layer(weight) for name, weight in packed.weights.items()}
    problems = []
    for target in TARGET_NAMES if asked == AUTO else (asked,):
        if (problem := why_not_layers(layers, packed.fused, target, config)) is None:
            try:
                return _laid_out(packed, target)
            except ValueError as error:
                problem = str(error)
        problems.append(problem)
    raise ConfigError(f"export: {'; '.join(problems)}")


def _laid_out(packed: PackedModel, target: str) -> LaidOut:
    """Return what a target stores.

    Raises:
        ValueError: a weight's values have no place in the target, layers that are fused differ in a number, a tensor
            has no name there, or a package is missing that writes it.
    """
    module = target_module(target)
    formats = {name: weight.formats for name, weight in packed.weights.items()}
    stored: dict[str, Tensor] = {}
    one_scale = _under_one_scale(packed, target)
    for name, weight in packed.weights.items():
        stored |= module.tensors(name, one_scale.get(name, weight.encoded), weight.input_scale)
    settings = module.quantization_config(formats, packed.kept)
    if target == GGUF:
        for name in packed.plain:
            stored_name(name)
        if problem := why_not_installed(settings["types"].values()):
            raise ValueError(problem)
    if problem := why_not_fused_stored(packed.fused if target in FUSING_TARGETS else (), target, stored):
        raise ValueError(problem)
    rotations: dict[int, list[str]] = defaultdict(list)
    for name, weight in packed.weights.items():
        if weight.rotation_block is not None:
            rotations[weight.rotation_block].append(name)
    if rotations:
        settings["transform_config"] = module.transform_config(rotations)
    beside = module.extra_files(formats, packed.kept) if hasattr(module, "extra_files") else {}
    return LaidOut(target, stored, settings, beside)


def _under_one_scale(packed: PackedModel, target: str) -> dict[str, Encoded]:
    """Return the weights whose powers of two are stored under a scale of the tensor that fused layers have one of.

    Raises:
        ValueError: they are too far apart, or one has blocks that are NaN.
    """
    moved: dict[str, Encoded] = {}
    for group in packed.fused if target in FUSING_TARGETS else ():
        together = {name: packed.weights[name].encoded for name in group if name in packed.weights}
        if all(encoded.format.scale_format.is_power_of_two for encoded in together.values()):
            packings = [checked_packing(target, name, encoded) for name, encoded in together.items()]
            if packings and packings[0].tensor_scale:
                moved |= under_one_scale(together, packings[0].group)
    return moved


def why_not_fused_stored(fused: Sequence[Sequence[str]], target: str, stored: Mapping[str, Tensor]) -> str | None:
    """Return which layers are one where vLLM loads them, and are stored with several numbers of what it has one of.

    Equal formats, and equal scales of the tensor, may be stored so, by loaders that multiply in another order.

    Args:
        fused: names of layers, together those that are one.
    """
    for group in fused:
        for part in _OF_A_LAYER:
            numbers = {float(stored[f"{name}.{part}"]) for name in group if f"{name}.{part}" in stored}
            if len(numbers) > 1:
                found = ", ".join(f"{number:g}" for number in sorted(numbers))
                return (
                    f"{target}: {', '.join(group)} are one layer where vLLM loads them, and would be stored "
                    f"with several numbers as its one {part} ({found}); allowed: formats that are stored with one, as "
                    "e4m3 scales under format.share_tensor_scale=fused, or tensor_scale=false"
                )
    return None


def _layer(weight: PackedWeight) -> Layer:
    scale = weight.encoded.tensor_scale
    return Layer(
        weight.formats,
        weight.encoded.shape,
        weight.rotation_block,
        weight.input_scale is not None,
        None if scale is None else tuple(scale.flatten().tolist()),
        weight.is_expert,
    )
