"""Resolve what the operands of a layer's three products become while it is trained, from ``format`` and ``matmuls``.

The run's formats are those of fprop, and the operands of dgrad and wgrad inherit fprop's, each as ``PARENTS`` says.
``matmuls.PRODUCT.OPERAND`` takes their place: ``none``, a format or an element by its name, or a mapping, of which what
is left out is inherited. A pattern of ``modules`` gives elements, blocks and scales of its own to all six operands;
what ``matmuls`` says of roundings, and of operands that stay as they are, holds there, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mxsweep.config import knobs
from mxsweep.config.format_config import (
    OF_AN_OPTION,
    FormatConfig,
    element_name,
    no_format,
    read_format,
    resolve_format,
)
from mxsweep.config.rules_config import FIELDS as RULE_FIELDS
from mxsweep.config.train_knobs import one_kept_word
from mxsweep.config.value_types import Number, as_names
from mxsweep.formats.element import parse_element
from mxsweep.formats.mxformat import BlockSize, MXFormat
from mxsweep.formats.training import OPERANDS, PRODUCTS, LayerFormats, OperandFormat, ProductFormats
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

INHERITED, AS_IT_IS = "auto", "none"
INPUT, WEIGHT = "fprop.input", "fprop.weight"
PARENTS = {"dgrad.grad": INPUT, "dgrad.weight": WEIGHT, "wgrad.grad": INPUT, "wgrad.input": INPUT}
_LEAVES = [(product, name) for product, names in PRODUCTS.items() for name in (*names, "hadamard")]
PRESCALE = Number("2^-24 to 1", 2**-24, 1)  # below, what is multiplied by it loses more than a format would take
ROUNDINGS = ("rounding", "scale_rounding", "prescale")  # how an operand is rounded, whatever its format
# The fields of a mapping, and the check of each.
FIELDS: dict[str, Callable[[str, Any], None]] = {
    "element": lambda name, value: knobs.check("format.weight", value, name),
    "block_size": lambda name, value: knobs.check("format.block_size", value, name),
    "scale": lambda name, value: knobs.check("format.scale", value, name),
    "tensor_scale": lambda name, value: knobs.check("format.tensor_scale", value, name),
    **{
        leaf: (lambda name, value, leaf=leaf: knobs.check(leaf, value, name))  # type: ignore[misc]
        for leaf in ("scale_bits", "symmetric")
    },
    **{name: kind.check for name, kind in RULE_FIELDS.items()},
    **{
        leaf: (lambda name, value, leaf=leaf: knobs.check(leaf, value, name))  # type: ignore[misc]
        for leaf in ("rounding", "scale_rounding")
    },
    "prescale": PRESCALE.check,
}


@dataclass(frozen=True)
class Operand:
    """Hold what an operand becomes, in plain values; the element "none" leaves it as it is."""

    element: str
    block_size: BlockSize
    scale: str
    tensor_scale: bool
    scale_bits: int
    rounding: str
    scale_rounding: str
    symmetric: bool
    scale_rule: str
    scale_floor: str
    scale_emax: bool
    inf: str
    four_over_six: bool
    prescale: float = 1.0

    def made(self, name: str, own: Collection[str] = (), own_name: str = "") -> OperandFormat | None:
        """Return the format; None where the operand stays as it is.

        Args:
            name: of the element, for messages.
            own: the fields that were set for the operand alone, and ``own_name`` what they stand below.

        Raises:
            ConfigError: values that do not go together.
        """
        if self.element == AS_IT_IS:
            return None
        fields = asdict(self)
        prescale, four_over_six = fields.pop("prescale"), fields.pop("four_over_six")
        try:
            fmt = MXFormat(**fields)
        except ValueError as error:
            message = _explain(name, self.element, str(error))
            field_name = message.partition(":")[0]
            raise ConfigError(f"{own_name}.{message}" if field_name in own else message) from None
        if four_over_six and fmt.scale_format.is_power_of_two:
            set_at = "format" if name.startswith("format") and "four_over_six" not in own else own_name or name
            raise ConfigError(
                f"{set_at}.four_over_six: true does not go with {fmt}; allowed: a scale that is no power of "
                "two, as e4m3"
            )
        return OperandFormat(replace(fmt, four_over_six=four_over_six), prescale)


@dataclass(frozen=True)
class MatmulsConfig:
    """Hold what is below ``matmuls``, and the formats that follow from it.

    Attributes:
        fprop, dgrad, wgrad: of each operand what was set, and the order of ``hadamard``.
        linear: formats of linear layers; ``modules`` of those that a pattern of ``modules`` names. Of a run that does
            not train, nothing.
    """

    fprop: dict[str, Any]
    dgrad: dict[str, Any]
    wgrad: dict[str, Any]
    backward: str
    signs: str
    keep_high: tuple[str, ...]
    linear: LayerFormats = field(default_factory=LayerFormats)
    modules: dict[str, LayerFormats] = field(default_factory=dict)

    @property
    def first_set(self) -> str | None:
        """Return the first knob that is not off; None where all are, what is kept apart."""
        values = {f"matmuls.{product}.{name}": getattr(self, product)[name] for product, name in _LEAVES}
        values |= {f"matmuls.{name}": getattr(self, name) for name in ("backward", "signs")}
        off = knobs.switches()
        return next((path for path, value in values.items() if value != off[path]), None)


def resolve_matmuls(
    data: dict[str, Any],
    trains: bool,
    formats: FormatConfig,
    modules: Mapping[str, FormatConfig],
    explicit: dict[str, Any],
    rounded: Mapping[str, dict[str, Any]],
    folders: Sequence[Path] | None = None,
) -> MatmulsConfig:
    """Return what the operands become.

    Args:
        data: what is below ``matmuls``.
        trains: whether there is any use for formats.
        formats: the run's, and ``modules`` those of its patterns.
        explicit: the run's block size and scale where they were set, which win over those of a format by its name.
        rounded: the run's scale_bits, symmetric and rules, of weights and of activations.
        folders: of config groups; None for mxsweep's own.

    Raises:
        ConfigError: no format, or a field that is none, or of a value that is not allowed.
    """
    config = MatmulsConfig(**data | {"keep_high": tuple(map(one_kept_word, as_names(data["keep_high"])))})
    if not trains:
        return config
    own = {operand: _own(f"matmuls.{operand}", operand, data, explicit, folders) for operand in OPERANDS}
    orders = {product: int(data[product]["hadamard"]) for product in PRODUCTS}
    linear = _layer("matmuls", "format", _of_format(formats, rounded), own, orders)
    in_modules = {operand: fields and _of_any_format(fields) for operand, fields in own.items()}
    return replace(
        config,
        linear=linear,
        modules={
            pattern: _layer("matmuls", f"modules[{pattern}]", _of_format(one, rounded), in_modules, orders)
            for pattern, one in modules.items()
        },
    )


def _of_format(formats: FormatConfig, rounded: Mapping[str, dict[str, Any]]) -> dict[str, Operand]:
    """Return fprop's operands as a format has them."""
    fields = {name: getattr(formats, name) for name in ("block_size", "scale", "tensor_scale")}
    return {
        INPUT: Operand(formats.activation, **fields, **rounded["activation"]),
        WEIGHT: Operand(formats.weight, **fields, **rounded["weight"]),
    }


def _own(
    name: str, operand: str, data: dict[str, Any], explicit: dict[str, Any], folders: Sequence[Path] | None
) -> dict[str, Any]:
    """Return the fields that were set for an operand. Raises ConfigError."""
    product, _, side = operand.partition(".")
    value = data[product][side]
    if value == INHERITED:
        return {}
    if not isinstance(value, dict):
        if value in (None, AS_IT_IS):
            return {"element": AS_IT_IS}
        elements = {"weight": value, "activation": value}
        formats = read_format(str(value), explicit, f"{name}.", folders)
        formats = formats or resolve_format(OF_AN_OPTION | elements, explicit, f"{name}.")
        element = formats.weight if side == "weight" else formats.activation
        leaves = {leaf: getattr(formats, leaf) for leaf in ("block_size", "scale", "tensor_scale")}
        return {"element": element, **leaves}
    for key, given in value.items():
        if key not in FIELDS:
            raise ConfigError(f"{name}: {quoted(key)} is not a field; allowed: {', '.join(FIELDS)}")
        FIELDS[key](f"{name}.{key}", given)
    fields = dict(value)
    if "element" in fields:
        fields["element"] = _element_of_mapping(name, fields["element"])
    if isinstance(fields.get("block_size"), list):
        fields["block_size"] = tuple(fields["block_size"])
    return fields


def _element_of_mapping(name: str, value: Any) -> str:
    """Return the element that a mapping names. Raises ConfigError for anything else, as the name of a format."""
    element = element_name(value)
    if element != AS_IT_IS:
        try:
            parse_element(element)
        except ValueError as error:
            allowed = str(error).partition("allowed: ")[2]
            raise ConfigError(f"{name}.element: {quoted(value)} is not an element; allowed: none, {allowed}") from None
    return element


def _of_any_format(fields: dict[str, Any]) -> dict[str, Any]:
    """Return those of an operand's fields that hold whatever its format is."""
    if fields.get("element") == AS_IT_IS:
        return fields
    return {name: value for name, value in fields.items() if name in ROUNDINGS}


def _layer(
    name: str, format_name: str, base: dict[str, Operand], own: dict[str, dict[str, Any]], orders: dict[str, int]
) -> LayerFormats:
    """Return a layer's formats from fprop's operands as a format has them, and from what was set for each operand."""
    operands: dict[str, Operand] = {}
    for operand in OPERANDS:
        inherited = base[operand] if operand in base else operands[PARENTS[operand]]
        operands[operand] = _with(inherited, own[operand])
    made = {}
    both = format_name == "format" and base[INPUT].element == base[WEIGHT].element  # as format= sets them
    for operand, plain in operands.items():
        kind = "weight" if operand == WEIGHT else "activation"
        inherits = "element" not in own[operand]
        own_name = f"{name}.{operand}"
        of_format = inherits and operand in base
        of_element = format_name if both else f"{format_name}.{kind}"
        made[operand] = plain.made(of_element if of_format else own_name, own[operand], own_name)
    products = {}
    for product, sides in PRODUCTS.items():
        first, second = (made[f"{product}.{side}"] for side in sides)
        is_plain = first is None and second is None
        products[product] = ProductFormats(first, second, 0 if is_plain else orders[product])
    return LayerFormats(**products)


def _with(inherited: Operand, fields: dict[str, Any]) -> Operand:
    fields = dict(fields)
    if fields.get("scale", inherited.scale) != inherited.scale:
        fields.setdefault("tensor_scale", False)  # which belongs to the scale that it lies over
    if "element" in fields and fields["element"] != inherited.element:
        fields = {"prescale": 1.0, "four_over_six": False} | fields  # which belong to the element
    return replace(inherited, **fields)


def _explain(name: str, element: str, message: str) -> str:
    """Return a refusal under the knob that was set, where MXFormat calls the field ``element``."""
    if message.startswith("element") and name.startswith(("matmuls", "format")):
        return no_format(name, "format", element, message)
    return re.sub(r"^element\b", name, message)
