"""Collect what a packed checkpoint of a run holds: each weight's codes and scales, and every other tensor as it is.

Codes come from where they were chosen: from the weight method, or from rounding the weight as the run does. A weight
that was dequantized is never quantized again, which would give other codes wherever a scale was searched for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.export.targets.expert_names import stored_name
from mxsweep.formats.exported_recipe import why_not_anywhere
from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.model.input_maxima import fixed_maxima
from mxsweep.model.linear import stochastic_key
from mxsweep.model.matrices import Matrix
from mxsweep.model.operands import Operand
from mxsweep.model.prepared import Prepared
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import Encoded, encode
from mxsweep.numerics.reference.scales import tensor_scale_of
from mxsweep.runs.export_place import fused_layers, why_not_experts, why_not_site
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class PackedWeight:
    """Hold the weight of a linear layer, or of an expert's matrix, in host memory.

    Attributes:
        encoded: (N, C), in the basis in which it was quantized.
        formats: of the weight and of its input.
        rotation_block: the order of the rotation that its input gets as the model runs; None for none.
        input_scale: by what the scales of its input's blocks are divided, where that is one number for all tokens: g
            of a per-tensor scale that is fixed, and 1 of e4m3 scales under none.
        is_expert: whether it is an expert's.
    """

    encoded: Encoded
    formats: LinearFormats
    rotation_block: int | None
    input_scale: float | None = None
    is_expert: bool = False


@dataclass(frozen=True)
class PackedModel:
    """Hold a run's model.

    Attributes:
        weights: by name of the linear layer; an expert's matrix is one in a checkpoint (:func:`stored_layer`).
        plain: all other tensors of the model, by name, in host memory; of tensors that are tied, one.
        kept: names of the linear layers that stay as they are, and of what loaders may take for one.
        fused: names of layers that read one tensor, together those that runtimes multiply by at once.
        tied: whether the output layer's weight is the embedding's.
    """

    weights: Mapping[str, PackedWeight]
    plain: Mapping[str, Tensor]
    kept: Sequence[str]
    fused: Sequence[tuple[str, ...]]
    tied: bool


@torch.no_grad()
def collect(model: PreTrainedModel, recipe: Recipe, prepared: Prepared) -> PackedModel:
    """Return what a checkpoint of ``model`` under ``recipe`` holds.

    Args:
        model: unquantized, in the basis in which the run evaluates it.
        prepared: what was worked out for the run.

    Raises:
        ConfigError: something is quantized that no packed checkpoint has a place for, whatever its format.
    """
    if problem := why_not_anywhere(recipe):
        raise ConfigError(f"export: {problem}")
    parts: dict[str, list[tuple[Site, Encoded]]] = defaultdict(list)
    sites = find_sites(model, recipe)
    maxima, input_maxima = shared_maxima(sites, recipe), fixed_maxima(sites, recipe, prepared)
    if problem := why_not_experts(model, sites):
        raise ConfigError(f"export: {problem}")
    for site in sites:
        if problem := why_not_site(site):
            raise ConfigError(f"export: {site.name} {problem}")
        encoded = _encoded(site, recipe, prepared, maxima.get(site.name))
        parts[stored_layer(site.operand, model)].append((site, encoded))
    weights = {
        name: replace(_joined(name, of_layer), input_scale=_input_scale(of_layer[0][0], input_maxima))
        for name, of_layer in parts.items()
    }
    plain = _plain(model, weights)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return PackedModel(
        weights,
        plain,
        _kept(model, weights, plain),
        fused_layers(model),
        # A quantized output layer has values of its own.
        head is not None
        and getattr(head, "weight", None) is getattr(embedding, "weight", None)
        and not any(model.get_submodule(name) is head for name in weights if not weights[name].is_expert),
    )


def stored_layer(operand: Operand, model: PreTrainedModel) -> str:
    """Return the name of the linear layer that a checkpoint holds an operand in, which some target has a place for."""
    return operand.module_name if operand.expert is None else stored_name(operand.name, model.config.model_type)


def _plain(model: PreTrainedModel, weights: Mapping[str, PackedWeight]) -> dict[str, Tensor]:
    """Return the tensors of a model that are not quantized, on the CPU, by the names that they are read by.

    Where experts are quantized, these are the names that checkpoints have, some of them not the model's. Where they are
    not, they stay in one parameter: of a checkpoint that holds packed weights, transformers reads no other plain ones.

    Raises:
        ConfigError: checkpoints call a quantized layer otherwise.
    """
    state = model.state_dict()
    if any(weight.is_expert for weight in weights.values()):
        from transformers.core_model_loading import revert_weight_conversion

        state = revert_weight_conversion(model, state)
    if lost := next((name for name in weights if f"{name}.weight" not in state), None):
        raise ConfigError(f"export: checkpoints of a {type(model).__name__} hold no {lost}; allowed: none for it")
    taken: dict[tuple[int, int] | str, str] = {}
    for name, tensor in state.items():
        if name.removesuffix(".weight") not in weights:
            # Experts are views of one parameter.
            taken.setdefault((tensor.data_ptr(), tensor.numel()) if tensor.numel() else name, name)
    return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in taken.values()}


def _kept(model: PreTrainedModel, weights: Mapping[str, PackedWeight], plain: Mapping[str, Tensor]) -> list[str]:
    """Return the names of linear layers that are not quantized, of a mixture with its routers and experts."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    tables = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    matrices = [
        name.removesuffix(".weight")
        for name, tensor in plain.items()
        if name.endswith(".weight") and tensor.ndim == 2 and name.removesuffix(".weight") not in tables
    ]
    return [name for name in dict.fromkeys((*linear, *matrices)) if name not in weights]


def _input_scale(site: Site, maxima: Mapping[str, Tensor]) -> float | None:
    """Return by what the block scales of a site's input are divided, where it is one number for all tokens.

    Loaders of e4m3 scales read such a number always: it is 1 where the format has none.
    """
    activation = site.formats.activation
    if activation is None:
        return None
    if site.name in maxima:
        return input_divisor(maxima[site.name], activation, site.operand.parameter.dtype)
    return 1.0 if activation.scale == "e4m3" and not activation.tensor_scale else None


def input_divisor(maximum: Tensor, fmt: MXFormat, dtype: torch.dtype) -> float:
    """Return by what block scales are divided under a per-tensor scale: g, or 1/d of rules that multiply by d.

    Args:
        maximum: float32, that the scale is made from.
        dtype: of the input, in which some rules compute.
    """
    scale = float(tensor_scale_of(maximum, fmt, dtype))
    return scale if fmt.rule.divides_by_tensor_scale else 1 / scale


def _encoded(site: Site, recipe: Recipe, prepared: Prepared, tensor_amax: Tensor | None) -> Encoded:
    """Return a site's weight as the run has it, on the CPU; ``tensor_amax`` is as for `encode`."""
    if (chosen := prepared.weights.get(site.name)) is not None:
        return chosen.to("cpu")
    fmt = site.formats.weight
    assert fmt is not None
    key = stochastic_key(recipe.seed, f"{site.name}.weight") if fmt.rounding == "stochastic" else None
    try:
        encoded = encode(
            site.weight(), fmt, axis=-1, arithmetic=recipe.arithmetic, generator=key, tensor_amax=tensor_amax
        )
    except ValueError as error:
        raise ConfigError(f"export: {site.name}: {error}") from None
    return encoded.to("cpu")


def _joined(name: str, parts: Sequence[tuple[Site, Encoded]]) -> PackedWeight:
    """Return the weight of a module, of the matrices that are fused in it.

    Raises:
        ConfigError: these do not have one format, or scales of their own that one weight has no place for.
    """
    first, encoded = parts[0]
    if first.operand.is_alone or first.operand.expert is not None:
        is_expert = first.operand.expert is not None
        return PackedWeight(encoded, first.formats, first.rotation_block, is_expert=is_expert)
    kinds = {(site.formats, site.rotation_block) for site, _ in parts}
    if len(parts) != len(first.operand.of_module) or len(kinds) > 1:
        raise ConfigError(f"export: the matrices in {name} do not have one format; allowed: one format for all of them")
    fmt = encoded.format
    if fmt.tensor_scale and len({float(part.tensor_scale) for _, part in parts if part.tensor_scale is not None}) > 1:
        raise ConfigError(
            f"export: the matrices in {name} have scales of the tensor of their own; allowed: a shared one"
        )
    if not isinstance(fmt.block_size, int):
        raise ConfigError(
            f"export: the matrices in {name} are quantized in tiles, which do not go on from one to the next"
        )
    rows = first.operand.parameter.shape[0]
    whole = {}
    for part, tensor in encoded.tensors().items():
        if part == "tensor_scale":
            continue
        whole[part] = tensor.new_zeros((rows, tensor.shape[1]))
        for site, of_site in parts:
            _put(site.operand.matrix, whole[part], of_site.tensors()[part])
    return PackedWeight(_with(encoded, whole), first.formats, first.rotation_block)


def _with(encoded: Encoded, tensors: dict[str, Tensor]) -> Encoded:
    return replace(
        encoded,
        codes=tensors["codes"],
        scales=tensors["scales"],
        midpoints=tensors.get("midpoints"),
        negative_zeros=tensors.get("negative_zeros"),
    )


def _put(matrix: Matrix, whole: Tensor, part: Tensor) -> None:
    """Write rows of one matrix to their place among those of a fused weight."""
    place = matrix.view(whole)
    place.copy_(part.view(place.shape))
