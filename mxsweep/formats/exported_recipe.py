"""Say which target of a packed checkpoint holds a recipe, as far as formats tell without a model. No torch."""

from __future__ import annotations

from mxsweep.formats.export_targets import GGUF, TARGET_NAMES, why_not
from mxsweep.formats.recipe import DYNAMIC, LINEAR_MATMULS, WUSH, LinearFormats, Recipe

# Which vLLM loads, where q, k and v are one layer, and gate and up another.
FUSING_TARGETS = tuple(name for name in TARGET_NAMES if name != GGUF)
ROTATING_TARGETS = ("compressed-tensors",)  # whose loaders rotate inputs as the model runs
NO_EXPORT, AUTO = "none", "auto"
EXPORTS = (NO_EXPORT, AUTO, *TARGET_NAMES)  # values of the knob ``export``


def why_not_anywhere(recipe: Recipe) -> str | None:
    """Return what of a recipe no checkpoint holds, whatever the formats of its weights; None where some may."""
    if recipe.key is not None or recipe.value is not None:
        return "keys and values in blocks have no place in a packed checkpoint; allowed: kv_quant=none"
    if recipe.rotation is not None and recipe.rotation.kind == WUSH:
        return (
            "inputs whose blocks are multiplied by matrices of their own as the model runs (rotation=wush) have no "
            "place in a packed checkpoint; allowed: rotation=none, hadamard"
        )
    return None


def why_not_recipe(recipe: Recipe, target: str) -> str | None:
    """Return why a target has no place for a recipe's formats, in whatever model; None where it has."""
    if problem := why_not_anywhere(recipe):
        return problem
    weight, rotation = recipe.linear.weight, recipe.rotation
    if rotation is not None and set(rotation.matmuls) & set(LINEAR_MATMULS) and target not in ROTATING_TARGETS:
        return why_not_rotated(target)
    for formats in dict.fromkeys((recipe.linear, *(formats for _, formats in recipe.modules))):
        if formats == LinearFormats():
            continue
        if formats.weight is None:
            return f"{target}: a format of inputs alone has no place; allowed: one of weights as well, or none"
        is_fixed = recipe.activation_scale != DYNAMIC
        if problem := why_not(target, formats.weight, formats.activation, static_input=is_fixed):
            return problem
    if target in FUSING_TARGETS and weight is not None and weight.tensor_scale and not recipe.shares_tensor_scales:
        return (
            f"{target}: weights that are one layer where vLLM loads them would each have a scale of the tensor of "
            "its own; allowed: one for all of them (format.share_tensor_scale=fused), or tensor_scale=false"
        )
    return None


def why_not_rotated(target: str) -> str:
    """Return why a target that is not one of ROTATING_TARGETS has no place for inputs that are rotated."""
    held = ", ".join(ROTATING_TARGETS)
    return f"{target}: inputs that are rotated as the model runs have no place; allowed: rotation=none, or {held}"
