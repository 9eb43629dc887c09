"""Say why a target of packed checkpoints has no place for the layers of a model, planned or a run's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mxsweep.export.folder import target_module
from mxsweep.export.targets.expert_names import stored_name
from mxsweep.export.targets.gguf_file import why_not_architecture
from mxsweep.formats.export_targets import GGUF, TARGET_NAMES, why_not, why_not_expert
from mxsweep.formats.exported_recipe import AUTO, FUSING_TARGETS, ROTATING_TARGETS, why_not_anywhere, why_not_rotated
from mxsweep.formats.recipe import DYNAMIC, LinearFormats, Recipe
from mxsweep.model.linear_layers import is_transposed
from mxsweep.model.operands import Operand, find_operands
from mxsweep.model.shared_scales import fused_with
from mxsweep.model.sites import Site, find_sites
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """Hold what decides whether a target has a place for a linear layer, or for an expert's matrix.

    Attributes:
        shape: (N, C) of its weight.
        rotation_block: the order of the rotation that its input gets as the model runs; None for none.
        fixed_input: whether its input has one per-tensor scale for all tokens.
        tensor_scale: what is equal for layers with one per-tensor scale; None for a weight without one.
    """

    formats: LinearFormats
    shape: tuple[int, ...]
    rotation_block: int | None = None
    fixed_input: bool = False
    tensor_scale: Hashable = None
    is_expert: bool = False


def why_not_model(model: PreTrainedModel, recipe: Recipe) -> dict[str, str | None]:
    """Return for each target why it has no place for a model under a recipe; None where it has.

    What values say is not known before: a weight may still have some that the target has no place for.

    Args:
        model: loaded, or on the meta device.

    Raises:
        ConfigError: the recipe has no place in the model.
    """
    sites = find_sites(model, recipe)
    named = (f"{site.name} {why}" for site in sites if (why := why_not_site(site)))
    if problem := why_not_anywhere(recipe) or next(named, None) or why_not_experts(model, sites):
        return dict.fromkeys(TARGET_NAMES, problem)
    layers = {site.name: _planned(site, recipe) for site in sites}
    config, fused = model.config.to_dict(), fused_layers(model)
    return {target: why_not_layers(layers, fused, target, config) for target in TARGET_NAMES}


def refuse_without_place(model: PreTrainedModel, recipe: Recipe, asked: str) -> None:
    """Raise ConfigError where the target that is asked for, or of ``auto`` every one, has no place for a model.

    Args:
        recipe: with its formats chosen, and its rotations.
    """
    problems = why_not_model(model, recipe)
    problems = problems if asked == AUTO else {asked: problems[asked]}
    if None not in problems.values():
        raise ConfigError(f"export: {'; '.join(dict.fromkeys(filter(None, problems.values())))}")


def why_not_site(site: Site) -> str | None:
    """Return why no target holds what a recipe makes of an operand, whatever its format; None where some may."""
    operand = site.operand
    if not operand.is_linear:
        return "is an embedding, which no target holds in codes; allowed: none for it in modules"
    if site.formats.weight is None:
        return (
            "gets a format for its input alone, which no target holds; allowed: a format of its weight as well, or none"
        )
    if operand.expert is None and (is_transposed(operand.module) or not isinstance(operand.module, nn.Linear)):
        return f"is of a {type(operand.module).__name__}, and loaders know linear layers only"
    return None


def why_not_experts(model: PreTrainedModel, sites: Sequence[Site]) -> str | None:
    """Return why no target holds the experts that a recipe changes; None where some may, and where it changes none."""
    changed = [site.name for site in sites if site.operand.expert is not None]
    if not changed:
        return None
    try:
        stored_name(changed[0], model.config.model_type)
    except ValueError as error:
        return f"{error}; experts that stay as they are have a place"
    every = {name for name, operand in find_operands(model).items() if operand.expert is not None}
    if not (kept := every - {*changed}):
        return None
    return (
        f"{min(kept)} stays as it is while other experts are quantized, and loaders read them alike; allowed: one "
        "format for all experts, or none"
    )


def why_not_layers(
    layers: Mapping[str, Layer], fused: Sequence[Sequence[str]], target: str, config: Mapping[str, Any]
) -> str | None:
    """Return why a target has no place for layers, in one sentence; None where it has, as far as formats tell.

    Args:
        layers: by name.
        fused: names of layers, together those that vLLM multiplies by at once.
        config: what config.json holds of the model.
    """
    if target == GGUF and (problem := why_not_architecture(config)):
        return problem
    for name, layer in layers.items():
        if problem := _why_not_layer(target, layer):
            return f"{problem} ({name})"
    return _why_not_fused(layers, fused, target) if target in FUSING_TARGETS else None


def fused_layers(model: PreTrainedModel) -> list[tuple[str, ...]]:
    """Return the names of the layers, of several modules, that vLLM multiplies by at once."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for operand in find_operands(model).values():
        if operand.expert is None and operand.is_alone:
            groups[fused_with(operand)].append(operand.name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def _planned(site: Site, recipe: Recipe) -> Layer:
    weight, activation = site.formats.weight, site.formats.activation
    assert weight is not None
    return Layer(
        site.formats,
        site.operand.shape,
        site.rotation_block,
        activation is not None and activation.tensor_scale and recipe.activation_scale != DYNAMIC,
        _planned_scale(site.operand, recipe) if weight.tensor_scale else None,
        site.operand.expert is not None,
    )


def _planned_scale(operand: Operand, recipe: Recipe) -> Hashable:
    return fused_with(operand) if recipe.shares_tensor_scales else operand.name


def _why_not_layer(target: str, layer: Layer) -> str | None:
    weight, activation = layer.formats.weight, layer.formats.activation
    assert weight is not None
    problem = why_not(target, weight, activation, layer.shape, static_input=layer.fixed_input)
    if problem is None and layer.is_expert:
        problem = why_not_expert(target, weight, activation)
    if problem is None and layer.rotation_block is not None:
        problem = _why_not_rotation(target, layer)
    return problem


def _why_not_rotation(target: str, layer: Layer) -> str | None:
    if target not in ROTATING_TARGETS:
        return why_not_rotated(target)
    if layer.is_expert:
        return f"{target}: experts whose inputs are rotated have no place; allowed: rotation.matmuls without theirs"
    problem: str | None = target_module(target).why_not_rotation(layer.rotation_block)
    return problem


def _why_not_fused(layers: Mapping[str, Layer], fused: Sequence[Sequence[str]], target: str) -> str | None:
    """Return which layers cannot be multiplied by at once, as vLLM does with those that read one tensor."""
    for group in fused:
        together = [layers.get(name) for name in group]
        kinds = {None if one is None else (one.formats, one.rotation_block) for one in together}
        if len(kinds) > 1:
            return (
                f"{target}: {', '.join(group)} are one layer where vLLM loads them, and have several formats; allowed: "
                "one format for all of them"
            )
        if len({one.tensor_scale for one in together if one is not None}) > 1:
            return (
                f"{target}: {', '.join(group)} are one layer where vLLM loads them, and each has a scale of the tensor "
                "of its own; allowed: one for all of them (format.share_tensor_scale=fused), or tensor_scale=false"
            )
    return None
