"""Say when a knob has an effect: conditions on the values of the others.

A knob without effect on a run is no part of its identity, is not recorded, and is no difference between two runs. Each
condition takes a run's values by the knobs' paths, as a config or a record has them. A value may not be there: a record
leaves out those without effect, and knows nothing of knobs that there were not yet. An element format that is not
there counts as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.config.weight_methods import ROUND_TO_NEAREST, WEIGHT_METHODS, Needs
from mxsweep.formats import parse_element, parse_scale
from mxsweep.formats.recipe import HADAMARD, LINEAR_MATMULS, MATMULS, QUERY_KEY, WUSH
from mxsweep.formats.training import OPERANDS

Values = Mapping[str, Any]


def always(_: Values) -> bool:
    """Return True."""
    return True


def quantizes(values: Values) -> bool:
    """Return whether any tensor gets a format."""
    return _quantizes_linear(values) or quantizes_kv(values)


def trains(values: Values) -> bool:
    """Return whether the run trains its model before it evaluates it."""
    return values.get("train.method", "none") != "none"


def decays_at_the_end(values: Values) -> bool:
    """Return whether the learning rate of a training falls in its last steps alone."""
    return trains(values) and values.get("train.schedule") == "wsd"


def quantizes_weights(values: Values) -> bool:
    """Return whether some weight gets a format."""
    return values.get("format.weight") != "none" or any(_of_modules(values, "weight"))


def quantizes_kv(values: Values) -> bool:
    """Return whether keys or values get a format."""
    return any(values.get(f"kv_quant.{name}") != "none" for name in ("key", "value"))


@dataclass(frozen=True)
class SwaysWeights:
    """Say, called with values, whether the weight method has an option of this name, below ``ptq``."""

    option: str

    def __call__(self, values: Values) -> bool:
        """Return whether it does, and some weight gets a format."""
        method = WEIGHT_METHODS.get(values.get("ptq.method", ROUND_TO_NEAREST))
        return quantizes_weights(values) and method is not None and self.option in method.options


def has_budget(values: Values) -> bool:
    """Return whether the formats of weights are chosen under a bit budget."""
    return quantizes_weights(values) and values.get("ptq.budget") is not None


def can_rotate(values: Values) -> bool:
    """Return whether ``rotation`` makes a difference: a product that it names is quantized, and, for a search, not
    rotated anyway, for WUSH one of a linear layer.
    """
    matmuls = _named(values)
    method = values.get("rotation.method")
    is_fixed = method == WUSH or (method == "search" and _rotates_keys(values))
    of_keys = QUERY_KEY in matmuls and values.get("kv_quant.key") != "none" and not is_fixed
    return of_keys or (_quantizes_linear(values) and any(matmul in LINEAR_MATMULS for matmul in matmuls))


def _named(values: Values) -> Sequence[str]:
    """Return the products that ``rotation.matmuls`` names."""
    named = values.get("rotation.matmuls")
    named = named.split("+") if isinstance(named, str) else named  # of a record one text
    return named if isinstance(named, Sequence) else MATMULS  # a config that was refused may have anything


def rotates_products(values: Values) -> bool:
    """Return whether operands of the products that ``rotation`` names are rotated before they are quantized."""
    return can_rotate(values) and values.get("rotation.method", "none") != "none"


def rotates_keys(values: Values) -> bool:
    """Return whether ``rotation`` rotates keys for the cache, which it does with WUSH too, by Hadamard matrices."""
    is_all = values.get("rotation.method") in (HADAMARD, WUSH)
    return is_all and can_rotate(values) and QUERY_KEY in _named(values) and values.get("kv_quant.key") != "none"


def chooses_key_rotation(values: Values) -> bool:
    """Return whether it is ``kv_quant.rotation`` that says if keys or values for the cache are rotated."""
    return quantizes_kv(values) and not rotates_keys(values)


def rotates(values: Values) -> bool:
    """Return whether any operands are rotated before they are quantized."""
    return rotates_products(values) or _rotates_keys(values)


def rounds_scales(values: Values) -> bool:
    """Return whether some tensor has scales whose rounding can be chosen, powers of two of an element that does not say
    it itself; where a budget chooses, that it may.
    """
    scale = values.get("scale", "e8m0")
    of_run = {"scale": scale} | {name: values.get(f"format.{name}") for name in ("weight", "activation")}
    of_kv = {name: values.get(f"kv_quant.{name}") for name in ("key", "value")}
    of_kv["scale"] = values.get("kv_quant.scale", scale)
    modules = values.get("modules")
    groups = [of_run, of_kv, *(modules.values() if isinstance(modules, Mapping) else ())]
    # Operands of a training may have scales of their own, too.
    return has_budget(values) or _quantizes_training(values) or any(map(_rounds_scales_of, groups))


def searches(values: Values) -> bool:
    """Return whether rotations or the rounding of scales are searched."""
    of_rotations = values.get("rotation.method") == "search" and can_rotate(values)
    return of_rotations or (values.get("scale_rounding") == "search" and rounds_scales(values))


def chooses_judge(values: Values) -> bool:
    """Return whether a search may judge by the run's own weights, which a method solves for by a Hessian."""
    return searches(values) and _needs_of_weights(values) is Needs.HESSIAN


def has_scale_bits(values: Values) -> bool:
    """Return whether the width of scales can be chosen, which is so of e8m0 only."""
    # A config that was refused may have "auto" still: no word on which scale there would have been.
    return quantizes(values) and values.get("scale", "e8m0") in ("e8m0", "auto")


def has_tensor_scale(values: Values) -> bool:
    """Return whether some weight or input has a second scale a tensor; where a budget chooses, that it may."""
    modules = values.get("modules")
    of_modules = modules.values() if isinstance(modules, Mapping) else ()
    own = any(isinstance(formats, Mapping) and formats.get("tensor_scale") is True for formats in of_modules)
    return quantizes(values) and (values.get("tensor_scale") is True or own or has_budget(values))


def scales_weights(values: Values) -> bool:
    """Return whether some weight has a second scale a tensor, or may be given one."""
    return has_tensor_scale(values) and quantizes_weights(values)


def scales_inputs(values: Values) -> bool:
    """Return whether some input has a second scale a tensor, or may be given one."""
    quantized = values.get("format.activation") != "none" or any(_of_modules(values, "activation"))
    return has_tensor_scale(values) and (quantized or has_budget(values))


def calibrates(values: Values) -> bool:
    """Return whether something is worked out on calibration data."""
    smooths = values.get("kv_quant.key") != "none" and (values.get("kv_quant.smooth") or 0) > 0
    inputs = scales_inputs(values) and values.get("format.activation_scale") == "static"
    inputs = inputs or _transforms_inputs(values)
    return _solves_by_output(values) or has_budget(values) or smooths or searches(values) or inputs


def _transforms_inputs(values: Values) -> bool:
    """Return whether inputs are multiplied by matrices of their own, which are worked out beforehand."""
    return values.get("rotation.method") == WUSH and can_rotate(values)


def _quantizes_linear(values: Values) -> bool:
    """Return whether something of a linear layer gets a format, in the evaluation or while the model is trained."""
    linear = any(values.get(f"format.{name}") != "none" for name in ("weight", "activation"))
    return linear or any(_of_modules(values, "weight", "activation")) or _quantizes_training(values)


def _rotates_keys(values: Values) -> bool:
    """Return whether keys are rotated for the cache, whatever ``rotation`` is."""
    return values.get("kv_quant.rotation", "none") != "none" and values.get("kv_quant.key") != "none"


def _solves_by_output(values: Values) -> bool:
    return _needs_of_weights(values) is not Needs.NOTHING


def _needs_of_weights(values: Values) -> Needs:
    """Return what the weight method looks at besides the weights; nothing where no weights are quantized."""
    method = WEIGHT_METHODS.get(values.get("ptq.method", ROUND_TO_NEAREST))
    if method is None or not quantizes_weights(values):
        return Needs.NOTHING
    return method.needs({option: values.get(f"ptq.{option}") for option in method.options})


def _quantizes_training(values: Values) -> bool:
    """Return whether some operand gets a format of its own while the model is trained."""
    of_operands = [values.get(f"matmuls.{operand}") for operand in OPERANDS] if trains(values) else []
    # What does not say an element has that of fprop's operand, which has the format's.
    return any(
        value.get("element", "none") not in ("none", None)
        if isinstance(value, Mapping)
        else value not in ("auto", "none", None)
        for value in of_operands
    )


def _rounds_scales_of(formats: Any) -> bool:
    """Return whether a scale of these formats can be rounded one way or another; what is not known may be."""
    if not isinstance(formats, Mapping):  # of a config that was refused
        return formats not in ("none", None)
    scale = str(formats.get("scale", "e8m0"))
    kinds = ("weight", "activation", "key", "value")
    return any(_can_round(str(formats[kind]), scale) for kind in kinds if kind in formats)


def _can_round(element: str, scale: str) -> bool:
    if element == "none":
        return False
    try:
        return parse_scale(scale).is_power_of_two and parse_element(element).scale_rounding is None
    except ValueError:
        return True


def _of_modules(values: Values, *fields: str) -> list[bool]:
    """Return, for each pattern of ``modules``, whether any of these fields is an element format."""
    modules = values.get("modules")
    if not isinstance(modules, Mapping):
        return []
    return [
        any(formats.get(field, "none") not in ("none", None) for field in fields)
        if isinstance(formats, Mapping)
        else formats not in ("none", None)
        for formats in modules.values()
    ]
