"""Make docs/knobs.md from the table of knobs and the defaults: `python -m mxsweep.config.knob_page` prints it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mxsweep.config import effects, knob_defaults, knobs
from mxsweep.config.knob import UNSET, Kind, Knob, Scope
from mxsweep.config.knob_help import named_values
from mxsweep.terminal.written_values import written

HEAD = """\
# Knobs

What can be set, on the command line as `KNOB=VALUE` and in recipes. This page is made from the declarations in
`mxsweep/config/knob_table.py`. A **group** is chosen by the name of an option (`block_size=16`, `model=hf`); where it
makes sense, a value without a name works, too (`block_size=48`, `limit=500`, `format=fp6_e3m2`, `task=arc_easy`). A
**leaf** is set by its path (`rounding=even`, `model.dtype=bfloat16`), and wins over what its group says. An explicit
value wins over a format's own. Defaults are those of the default options: `model.dtype` and `model.path` of
`model=tiny`, `format.weight` of `format=w4a6`; other options of a group have others.

The last column says whose identity a knob is part of: that of a run and of its baseline, that of a quantized run alone,
or none (-). Runs that differ in it are different runs; where it has no effect, they are one run.
"""
COLUMNS = ("knob", "what it is", "values", "default", "part of")
SCOPES = {Scope.BASELINE: "run and baseline", Scope.RUN: "run", Scope.NONE: "-", Scope.SWEEP: "-"}
KINDS = {
    Kind.PLAIN: "",
    Kind.PATH: "; a path, which counts from the folder where it was typed",
    Kind.FOLDER: "; a folder that is written",
    Kind.TEXT: "; taken as typed, whatever it looks like",
}
TITLES = {
    "format": "Formats of weights and activations",
    "kv_quant": "Keys and values",
    "ptq": "How weights are quantized",
    "rotation": "Rotations",
    "calibration": "Calibration data",
    "model": "The model",
    "task": "The task",
    "recipe": "Formats of a training",
    "matmuls": "Formats of a training",
    "matmuls.fprop": "Formats of a training",
    "matmuls.dgrad": "Formats of a training",
    "matmuls.wgrad": "Formats of a training",
    "train": "Training",
    "corpus": "Text of a training",
    "init": "Weights that a training begins with",
    "logging": "Logging",
    "hydra": "Folders",
    "hydra.launcher": "Launchers",
}
WHEN: dict[Callable[[effects.Values], bool], str] = {
    effects.always: "",
    effects.quantizes: "something is quantized",
    effects.quantizes_weights: "weights are quantized",
    effects.quantizes_kv: "keys or values are quantized",
    effects.chooses_key_rotation: "keys or values are quantized, and no hadamard or wush rotates qk anyway",
    effects.has_scale_bits: "scales are e8m0",
    effects.rounds_scales: "scales are powers of two, whose rounding the element leaves open",
    effects.has_budget: "there is a budget",
    effects.can_rotate: "something of a product in rotation.matmuls (for wush, of a linear layer) is quantized and not "
    "rotated anyway",
    effects.rotates_products: "rotation is not none, with something of these products quantized and not rotated anyway",
    effects.rotates: "something is rotated",
    effects.searches: "something is searched",
    effects.chooses_judge: "something is searched and weights are quantized by gptq, autoround or qat",
    effects.calibrates: "something is calibrated",
    effects.trains: "the run trains",
    effects.decays_at_the_end: "train.schedule is wsd",
    effects.scales_weights: "weights have a per-tensor scale",
    effects.scales_inputs: "activations have a per-tensor scale",
}


def words_of(effect: Callable[[effects.Values], bool]) -> str:
    """Return where a knob of this condition has an effect, to stand behind "where"; nothing for everywhere.

    Raises:
        KeyError: a condition that there are no words for.
    """
    return "the weight method has it" if isinstance(effect, effects.SwaysWeights) else WHEN[effect]


def knob_page() -> str:
    """Return the page."""
    defaults = knob_defaults.defaults()
    everything = [knob for knob in knobs.all_knobs() if knob.path != "sweep"]
    sections = {"Groups": [knob for knob in everything if knob.is_group]}
    for knob in everything:
        if not knob.is_group:
            group = "hydra" if knob.path.startswith(("hydra.run", "hydra.sweep")) else knob.group
            sections.setdefault(TITLES.get(group, "Leaves of the top level"), []).append(knob)
    parts = [HEAD]
    for title, members in sections.items():
        rows = "\n".join(_row(knob, defaults) for knob in members)
        head = "\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS)))
        parts.append(f"## {title}\n\n{head}\n{rows}\n")
    return "\n".join(parts)


def _row(knob: Knob, defaults: dict[str, Any]) -> str:
    values = ", ".join(f"`{value}`" for value in named_values(knob)) or _escaped(knob.type.allowed)
    default = defaults.get(knob.path, UNSET)
    shown = "" if default is UNSET else f"`{written(default)}`"
    when = words_of(knob.effect)
    scope = SCOPES[knob.scope] + (f", where {when}" if when else "")
    return f"| `{knob.path}` | {_escaped(knob.help + KINDS[knob.kind])} | {values} | {shown} | {scope} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


if __name__ == "__main__":
    print(knob_page(), end="")
