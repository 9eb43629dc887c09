"""Load a checkpoint that mxsweep packed: plain weights with the values that its codes stand for.

No other library is needed, and nothing is rounded: what is loaded is, bit for bit, what the run that was exported
multiplied by. Inputs that the checkpoint quantizes are not: for that, give their format, with format.weight=none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mxsweep.config.refusals import stored_rotated
from mxsweep.export.folder import read_manifest, read_weights
from mxsweep.files.checkpoints import rotated_layer
from mxsweep.model.dequantize import forget_quantization
from mxsweep.numerics import Encoded, decode
from mxsweep.terminal.errors import ConfigError


def load_exported(
    path: str, folder: Path, arguments: dict[str, Any], shared: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model of a packed checkpoint, and what transformers says of loading it.

    Args:
        path: the ``model.path``, for messages.
        folder: that it names.
        arguments, shared: as ``from_pretrained`` takes them.

    Raises:
        ConfigError: files are missing or do not hold what they say, or inputs are to be rotated as the model runs.
    """
    if layer := rotated_layer(folder):
        raise ConfigError(stored_rotated(path, layer))
    try:
        weights, plain = read_weights(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path: {path!r} cannot be read as what mxsweep.export wrote: {error}") from None
    return load_state(folder, state_of(weights, plain), arguments, shared)


def state_of(weights: Mapping[str, Encoded], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors of a model by name, given those of :func:`mxsweep.export.folder.read_weights`."""
    return dict(plain) | {f"{name}.weight": decode(weight) for name, weight in weights.items()}


def load_state(
    folder: Path, state: dict[str, Tensor], arguments: dict[str, Any], shared: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model of a folder's config with these tensors, and what transformers says of loading them."""
    config = AutoConfig.from_pretrained(folder, **shared)
    forget_quantization(config)
    model_class: Any = AutoModelForCausalLM._model_mapping[type(config)]
    loaded: Any = model_class.from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, **arguments
    )
    loaded[0].config.name_or_path = str(folder)
    return loaded[0], loaded[1]


def describe_exported(path: str, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return what a reader of results should know of a packed checkpoint, and how it was stored, for the record."""
    manifest = read_manifest(folder)
    layers = manifest["weights"].values()
    formats = ", ".join(dict.fromkeys(layer["weight"] for layer in layers))
    inputs = ", ".join(dict.fromkeys(layer["activation"] for layer in layers if layer["activation"]))
    warning = (
        f"model.path: {path!r}: the weights are those of run {manifest['run_id']}, quantized to {formats}; a run that "
        "has a format of weights quantizes them once more, one with format.weight=none does not"
    )
    if inputs:
        warning += f"; inputs, which a loader quantizes to {inputs}, are quantized here only as format.activation says"
    return [warning], {"method": manifest["target"], "format": formats, "run_id": manifest["run_id"]}
