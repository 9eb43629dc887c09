"""Hold the rules of formats, one for all tensors or one for weights and one for what a run quantizes as it goes.

A knob below ``format`` says each: one value, or ``{weight: X, activation: Y}``. What is said of activations holds for
keys and values, too: a checkpoint holds weights, as whoever wrote it chose, and a runtime makes the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from mxsweep.config.value_types import ByTensor, Choice, Flag, Pattern, ValueType
from mxsweep.formats import ROUNDINGS
from mxsweep.formats.mxformat import INF_IS_NAN, INFS
from mxsweep.formats.scale import SCALE_ROUNDINGS, SCALE_ROUNDINGS_ALLOWED
from mxsweep.formats.scale_rules import OWN_FLOOR, OWN_RULE, SCALE_FLOORS, SCALE_RULE_NAMES

THE_RUNS = "auto"  # of a rounding: the run's
SEARCHED = "search"  # of scale_rounding: chosen on calibration data
ALL_TOKENS, LAST_WORDS = "all", "last_words"  # of rotation.positions: what a search looks at
SCALE_ROUNDING = Pattern(SCALE_ROUNDINGS_ALLOWED, f"{'|'.join(SCALE_ROUNDINGS)}|even([0-9]|1[0-9]|2[0-2])", "known")
# The leaves below ``format``, which are fields of MXFormat: the type of one value, and that at which nothing changes.
RULES: dict[str, tuple[ValueType, Any]] = {
    "rounding": (Choice(words=ROUNDINGS, or_auto=True), THE_RUNS),
    "scale_rounding": (
        Pattern(f"auto, {SCALE_ROUNDINGS_ALLOWED}", f"auto|{SCALE_ROUNDING.expression}", "known"),
        THE_RUNS,
    ),
    "scale_rule": (Choice(words=SCALE_RULE_NAMES), OWN_RULE),
    "scale_floor": (Choice(words=SCALE_FLOORS), OWN_FLOOR),
    "scale_emax": (Flag("true, false"), True),
    "inf": (Choice(words=INFS), INF_IS_NAN),
    "four_over_six": (Flag("true, false"), False),
}
# Those that no knob of the run says, as mxsweep has them.
OWN_RULES = {name: off for name, (_, off) in RULES.items() if off != THE_RUNS}
FIELDS = {name: kind for name, (kind, _) in RULES.items()}


@dataclass(frozen=True)
class RulesConfig:
    """Hold the values of the rules by their names, each one value or a mapping; those at which nothing changes, too."""

    values: dict[str, Any] = field(default_factory=lambda: {name: off for name, (_, off) in RULES.items()})

    def of(self, kind: str, rounding: str, scale_rounding: str) -> dict[str, Any]:
        """Return fields of MXFormat for a tensor.

        Args:
            kind: "weight" or "activation".
            rounding, scale_rounding: the run's; of a search the first that it tries.
        """
        fields = {name: value[kind] if isinstance(value, dict) else value for name, value in self.values.items()}
        begun = SCALE_ROUNDINGS[0] if scale_rounding == SEARCHED else scale_rounding  # a search begins with it
        for name, of_run in (("rounding", rounding), ("scale_rounding", begun)):
            fields[name] = of_run if fields[name] == THE_RUNS else fields[name]
        return fields

    def changed(self) -> dict[str, Any]:
        """Return the values that change something, for a record."""
        return {name: value for name, value in self.values.items() if value != RULES[name][1]}


def take_rules(of_format: dict[str, Any]) -> RulesConfig:
    """Take the rules out of what is below ``format``; a mapping that says one value twice is that value."""
    values = {name: of_format.pop(name) for name in RULES}
    for name, value in values.items():
        if isinstance(value, dict) and value["weight"] == value["activation"]:
            values[name] = value["weight"]
    return RulesConfig(values)


def by_its_knob(message: str) -> str:
    """Return a refusal of MXFormat with the rule that it begins with called by its knob."""
    return re.sub(rf"^({'|'.join(OWN_RULES)}):", r"format.\1:", message)


def rule_type(name: str) -> ValueType:
    """Return the type of the knob of a rule."""
    kind, _ = RULES[name]
    words = ", ".join(kind.choices()) if isinstance(kind, Choice) else kind.allowed
    return ByTensor(f"{words}; or {{weight: X, activation: Y}}", kind)
