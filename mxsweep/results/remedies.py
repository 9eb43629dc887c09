"""What was done about the error of quantizing: which knobs are remedies, what a run's are called, what they found.

A knob is a remedy's if a base configuration (formats, blocks, scales) is the same one with it and without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mxsweep.config.weight_methods import WEIGHT_METHOD_NAMES
from mxsweep.formats.recipe import KVOptions

# What each remedy is where nothing is done, which is also what the records of runs from before there were any mean by
# leaving it out.
NO_REMEDY: dict[str, Any] = {
    **{"ptq": "rtn", "ptq.budget": None, "rotation": "none", "rotation.residual": False},
    **{f"kv_quant.{name}": value for name, value in asdict(KVOptions()).items()},
}
# Values from the least that is done to the most.
LADDERS: dict[str, Sequence[str]] = {"ptq": WEIGHT_METHOD_NAMES, "rotation": ("none", "hadamard", "search")}
KV_FORMAT = ("block_size", "scale", "tensor_scale")  # of keys and values: the run's, where a record has none of theirs
PLAIN = "plain"
MOST_LISTED = 8  # modules by name

_WORDS = {
    "ptq": "{}",
    "ptq.budget": "budget of {:g} bits",
    "rotation.residual": "residual stream rotated",
    "kv_quant.key_axis": "keys by {}",
    "kv_quant.rope": "keys {} RoPE",
    "kv_quant.first": "first {} tokens kept",
    "kv_quant.recent": "last {} tokens kept",
    "kv_quant.scales": "scales by {}",
    "kv_quant.smooth": "keys smoothed by {:g}",
}
_ROTATIONS = {"hadamard": "rotation", "search": "rotation search"}


def is_remedy(name: str) -> bool:
    """Whether a knob is a remedy, or says how one is applied."""
    group, _, leaf = name.partition(".")
    if group == "kv_quant":
        return name in NO_REMEDY or leaf in KV_FORMAT
    return group in ("ptq", "rotation", "rotation_block", "calibration")


def with_remedies(knobs: dict[str, Any], is_baseline: bool) -> dict[str, Any]:
    """The knobs with every remedy that has an effect on the run, and none without."""
    weights = knobs.get("format.weight") != "none" or bool(knobs.get("modules"))
    kv = any(knobs.get(f"kv_quant.{name}") != "none" for name in ("key", "value"))

    def has_effect(name: str) -> bool:
        has = {"ptq": weights, "kv_quant": kv}.get(name.partition(".")[0], True)
        return not is_remedy(name) or (has and not is_baseline)

    implied = NO_REMEDY | {f"kv_quant.{name}": knobs[name] for name in KV_FORMAT if name in knobs}
    unset = {name for name in ("calibration", "rotation_block") if knobs.get(name) is None}  # nothing needs them
    return {name: value for name, value in (implied | knobs).items() if name not in unset and has_effect(name)}


def applied(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The remedies that a run has; empty where its tensors are quantized as they are."""
    found = {name: knobs[name] for name, none in NO_REMEDY.items() if name in knobs and knobs[name] != none}
    own = {name: knobs.get(f"kv_quant.{name}") for name in KV_FORMAT}
    return found | {f"kv_quant.{name}": value for name, value in own.items() if value not in (None, knobs.get(name))}


def remedy_text(knobs: Mapping[str, Any]) -> str:
    """A run's remedies in words, as "gptq + rotation search"; "rtn" or, of keys and values alone, "plain" without."""
    remedies = ({"ptq": knobs["ptq"]} if "ptq" in knobs else {}) | applied(knobs)
    words = [_word(name, value) for name, value in remedies.items()]
    return " + ".join(words) or PLAIN


def _word(name: str, value: Any) -> str:
    if name == "rotation":
        return _ROTATIONS.get(value, str(value))
    number = isinstance(value, int | float)
    return _WORDS[name].format(value) if name in _WORDS and (number or ":g" not in _WORDS[name]) else f"{name}={value}"


def what_was_found(record: Mapping[str, Any] | None) -> list[str]:
    """What a run's remedies found, a sentence each; nothing of what the record does not say."""
    account = (record or {}).get("remedies")
    account = account if isinstance(account, dict) else {}
    told = {"rotation": _search_text, "budget": _budget_text}
    sentences = [tell(account[name]) for name, tell in told.items() if isinstance(account.get(name), dict)]
    return [sentence for sentence in sentences if sentence]


def _search_text(found: dict[str, Any]) -> str:
    """In which order a search took rotations, and the loss with each."""
    steps = [step for step in found.get("steps") or [] if isinstance(step, dict)]
    if not steps:
        return ""
    taken = {str(step.get("matmul")): step.get("loss") for step in steps if step.get("kept")}
    left = dict.fromkeys(name for step in steps if (name := str(step.get("matmul"))) not in taken)
    order = ", then ".join(f"{matmul} ({_nats(loss)})" for matmul, loss in taken.items()) or "none"
    rest = f"; not {', '.join(left)}" if left else ""
    return (
        f"The rotation search took, from a calibration loss of {_nats(found.get('loss_before'))} nats a token on, "
        f"{order}{rest} ({len(steps) + 1} losses{_cost(found)})."
    )


def _budget_text(found: dict[str, Any]) -> str:
    """What a budget was spent on: each format with its modules, the commonest last and only counted."""
    modules = found.get("modules")
    if not isinstance(modules, dict) or not modules:
        return ""
    by_format: dict[str, list[str]] = {}
    for module, fmt in modules.items():
        by_format.setdefault(str(fmt), []).append(str(module))
    *few, (commonest, others) = sorted(by_format.items(), key=lambda item: len(item[1]))
    parts = [f"{fmt} to {_listed(names)}" for fmt, names in few]
    parts.append(f"{commonest} to {'the other' if few else 'all'} {len(others)}")
    bits = found.get("bits_per_weight")
    spent = f"{bits:.3g} bits a weight" if isinstance(bits, int | float) else "bits unknown"
    return f"The budget ({spent}{_cost(found)}) gives {', '.join(parts)}."


def _listed(names: list[str]) -> str:
    shown = ", ".join(name.removeprefix("model.") for name in names[:MOST_LISTED])
    return f"{shown} and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else shown


def _nats(loss: Any) -> str:
    return f"{loss:.4f}" if isinstance(loss, int | float) else "unknown"


def _cost(found: dict[str, Any]) -> str:
    seconds = found.get("seconds")
    if found.get("cached"):
        return ", kept from before"
    return f", {seconds:.1f} s" if isinstance(seconds, int | float) else ""
