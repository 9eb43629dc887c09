"""Collect what a packed checkpoint of a run holds: each weight's codes and scales, and every other tensor as it is.

Codes come from where they were chosen: from the weight method, or from rounding the weight as the run does. A weight
that was dequantized is never quantized again, which would give other codes wherever a scale was searched for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.mxformat import MXFormat
from mxsweep.formats.recipe import LinearFormats, Recipe
from mxsweep.model.input_maxima import fixed_maxima
from mxsweep.model.linear import stochastic_key
from mxsweep.model.linear_layers import is_transposed
from mxsweep.model.matrices import Matrix
from mxsweep.model.operands import find_operands
from mxsweep.model.prepared import Prepared
from mxsweep.model.shared_scales import fused_with, shared_maxima
from mxsweep.model.sites import Site, find_sites
from mxsweep.numerics import Encoded, encode
from mxsweep.numerics.reference.scales import tensor_scale_of
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
    """

    encoded: Encoded
    formats: LinearFormats
    rotation_block: int | None
    input_scale: float | None = None


@dataclass(frozen=True)
class PackedModel:
    """Hold a run's model.

    Attributes:
        weights: by name of the linear layer, or of the expert's matrix.
        plain: all other tensors of the model, by name, in host memory; of tensors that are tied, one.
        kept: names of the linear layers that stay as they are.
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
    if recipe.key is not None or recipe.value is not None:
        raise ConfigError(
            "export: keys and values in blocks have no place in a packed checkpoint; allowed: kv_quant=none"
        )
    parts: dict[str, list[tuple[Site, Encoded]]] = defaultdict(list)
    sites = find_sites(model, recipe)
    maxima, input_maxima = shared_maxima(sites, recipe), fixed_maxima(sites, recipe, prepared)
    for site in sites:
        if problem := _why_not(site):
            raise ConfigError(f"export: {site.name} {problem}")
        encoded = _encoded(site, recipe, prepared, maxima.get(site.name))
        parts[site.operand.module_name].append((site, encoded))
    weights = {
        name: replace(_joined(name, of_module), input_scale=_input_scale(of_module[0][0], input_maxima))
        for name, of_module in parts.items()
    }
    state = model.state_dict()
    taken: dict[int, str] = {}
    for name, tensor in state.items():
        if name.removesuffix(".weight") not in weights:
            taken.setdefault(tensor.data_ptr() if tensor.numel() else -len(taken), name)
    plain = {name: state[name].detach().to("cpu", copy=True).contiguous() for name in taken.values()}
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return PackedModel(
        weights,
        plain,
        [name for name in linear if name not in weights],
        _fused(model),
        # A quantized output layer has values of its own.
        head is not None
        and getattr(head, "weight", None) is getattr(embedding, "weight", None)
        and not any(model.get_submodule(name) is head for name in weights),
    )


def _why_not(site: Site) -> str | None:
    operand = site.operand
    if not operand.is_linear:
        return "is an embedding, which no target holds in codes; allowed: none for it in modules"
    if site.formats.weight is None:
        return (
            "gets a format for its input alone, which no target holds; allowed: a format of its weight as well, or none"
        )
    if operand.expert is not None:
        return "is an expert's, and experts have no place yet; allowed: modules={*.experts.*: none}"
    if is_transposed(operand.module) or not isinstance(operand.module, nn.Linear):
        return f"is of a {type(operand.module).__name__}, and loaders know linear layers only"
    return None


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
    if first.operand.is_alone:
        return PackedWeight(encoded, first.formats, first.rotation_block)
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


def _fused(model: PreTrainedModel) -> list[tuple[str, ...]]:
    """Return the names of the layers, of several modules, that runtimes multiply by at once."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for operand in find_operands(model).values():
        if operand.expert is None and operand.is_alone:
            groups[fused_with(operand)].append(operand.name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
