"""Write a run's config as its record holds it, and as plain values by the paths of knobs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mxsweep.config import knobs
from mxsweep.config.run_parts import RunParts
from mxsweep.config.runtimes import OF_RUNTIMES
from mxsweep.config.weight_methods import ROUND_TO_NEAREST
from mxsweep.formats.recipe import QUERY_KEY


def recorded(config: RunParts) -> dict[str, Any]:
    """Return the config for the record: nested, JSON-able, with the labels that tables use as ``name``."""
    data = dataclasses.asdict(config)
    linear, further = data.pop("format"), data.pop("further")
    data.pop("rules")
    training = {name: data.pop(name) for name in ("train", "corpus", "init", "matmuls")}
    data.pop("recipe_name")
    _say_runtime(data, config)
    for formats in (*data["modules"].values(), *data["ptq"]["formats"].values()):
        formats.pop("name")
    rotated = config.rotation.is_fixed and QUERY_KEY in config.rotated_matmuls
    data["kv_quant"] = config.kv_quant.as_dict(config.format, rotated=rotated)
    data |= _remedies(config)
    data["model"]["name"] = config.model_label
    if config.trains:
        data |= {"recipe": {"name": config.recipe_label}} | training
        for derived in ("linear", "modules"):
            data["matmuls"].pop(derived)
    data["task"] = {"name": config.task.name, **data["task"]}
    data["task"].pop("fields")
    # The run's block size and scale are knobs of the run; they live at the top as they do in conf/.
    data = {
        "format": {"name": config.format.name, "weight": linear["weight"], "activation": linear["activation"]}
        | config.rules.changed(),
        **{leaf: linear[leaf] for leaf in ("block_size", "scale", "tensor_scale")},
        **data,
    }
    for path, value in further.items():
        if knobs.is_unsaid(path, value):
            continue
        group, _, leaf = path.rpartition(".")
        values = data.setdefault(group, {}) if group else data
        if values is not None:  # None: nothing is calibrated, and no knob below calibration has an effect
            values[leaf] = value
    plain: dict[str, Any] = json.loads(json.dumps(data))
    return plain


def _say_runtime(data: dict[str, Any], config: RunParts) -> None:
    """Keep of the knobs that a runtime decides what all formats of the run have."""
    if config.predicts is None:
        del data["runtime"]
        return
    for leaf in OF_RUNTIMES:
        values = {getattr(fmt, leaf) for fmt in config.formats()}
        if len(values) == 1:
            data[leaf] = values.pop()
        elif values:
            del data[leaf]


def _remedies(config: RunParts) -> dict[str, Any]:
    """Return the remedies that have an effect: tables show a knob that is there, and none that could be anything."""
    data: dict[str, Any] = {"ptq": config.ptq.as_dict() if config.quantizes_weights else {"method": ROUND_TO_NEAREST}}
    matmuls = config.rotated_matmuls
    data["rotation"] = {"method": config.rotation.method if matmuls else "none"}
    data["rotation_block"] = config.rotation_block if matmuls or config.kv_quant.is_rotated else None
    if matmuls:
        data["rotation"]["matmuls"] = "+".join(matmuls)
    if config.searches and config.judges[0] not in (ROUND_TO_NEAREST, "clip"):
        data["rotation"]["judge"] = config.rotation.judge
    if config.searches:
        data["rotation"]["positions"] = config.rotation.positions
    if config.rotation.residual:
        data["rotation"]["residual"] = True
    data["calibration"] = dataclasses.asdict(config.calibration) if config.needs_calibration else None
    return data


def values_of(config: RunParts) -> dict[str, Any]:
    """Return the values by the paths of their knobs, each as it was resolved, whether it has an effect or not."""
    data = dataclasses.asdict(config)
    data |= data.pop("further")
    linear = data["format"]
    linear |= data.pop("rules")["values"]
    data |= {leaf: linear[leaf] for leaf in ("block_size", "scale", "tensor_scale")}
    data["recipe.name"] = data.pop("recipe_name")
    return _flat(data)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, dict) and path not in knobs.mappings() else {path: value}
    return flat
