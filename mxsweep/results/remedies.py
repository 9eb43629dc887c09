"""Describe remedies of the error of quantizing: which knobs they are, what tables call them, what came of them.

A knob is a remedy's if a base configuration (formats, blocks, scales) is the same one with it and without. How scales
are rounded is a base configuration's, but their search is a remedy of the rounding that it begins with.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mxsweep.config import effects, knobs
from mxsweep.config.kv_options import GROUP as KV
from mxsweep.config.kv_options import element_format
from mxsweep.config.rules_config import LAST_WORDS, SEARCHED
from mxsweep.formats.recipe import HADAMARD, QUERY_KEY
from mxsweep.formats.scale import SCALE_ROUNDINGS

PLAIN = "plain"
SCALE_ROUNDING = "scale_rounding"
MOST_LISTED = 8  # modules by name


def is_remedy(name: str) -> bool:
    """Return whether a knob is a remedy, or says how one is applied."""
    knob = knobs.names().get(name)
    return knob is not None and knob.is_of_remedies


def in_base(name: str, value: Any) -> Any:
    """Return a knob's value in the base configuration of a run that has this one."""
    if name == KV:
        return element_format(value)
    return SCALE_ROUNDINGS[0] if (name, value) == (SCALE_ROUNDING, SEARCHED) else value


def no_remedies() -> dict[str, Any]:
    """Return what each remedy is where nothing is done, as records mean that leave it out."""
    return {name: knob.off for name, knob in knobs.remedies().items()}


def ladder_of(name: str) -> Sequence[str]:
    """Return a remedy's values from the least that is done to the most; none where they have no such order."""
    knob = knobs.remedies().get(name)
    return knob.remedy.ladder if knob is not None and knob.remedy is not None else ()


def applied(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the remedies among a row's knobs; none where tensors are quantized as they are."""
    chosen = {name: values[name] for name, none in no_remedies().items() if name in values and values[name] != none}
    of_kv = {name: values.get(f"kv_quant.{name}") for name in knobs.of_run_and_kv()}
    searched = {SCALE_ROUNDING: SEARCHED} if values.get(SCALE_ROUNDING) == SEARCHED else {}
    return (
        chosen
        | searched
        | {f"kv_quant.{name}": value for name, value in of_kv.items() if value not in (None, values.get(name))}
    )


def remedy_text(values: Mapping[str, Any]) -> str:
    """Return a run's remedies in words, as "gptq + rotation search"; without any "rtn", of keys and values "plain"."""
    remedies = ({"ptq": values["ptq"]} if "ptq" in values else {}) | applied(values)
    words = [_text(name, value) for name, value in remedies.items()]
    if values.get("rotation.matmuls") != QUERY_KEY and effects.rotates_keys(knobs.by_place(values)):
        words.append(_text("kv_quant.rotation", HADAMARD))  # which rotation does, and kv_quant.rotation is not asked
    return " + ".join(words) or PLAIN


def remedy_words(name: str, value: Any) -> str:
    """Return what a remedy with this value is called, as "last 32 tokens kept"; nothing where it is off, or none."""
    there = name in knobs.remedies() and value != no_remedies()[name]
    return _text(name, value) if there else ""


def _text(name: str, value: Any) -> str:
    knob = knobs.remedies().get(name)
    if knob is None or knob.remedy is None:
        return f"{name}={value}"
    text = dict(knob.remedy.names).get(value, knob.remedy.text)
    is_number = isinstance(value, int | float)
    return text.format(value) if is_number or ":g" not in text else f"{name}={value}"


def remedy_sentences(record: Mapping[str, Any] | None) -> list[str]:
    """Say what a run's remedies came to, a sentence each; nothing of what the record does not say."""
    account = (record or {}).get("remedies")
    account = account if isinstance(account, dict) else {}
    # rotation: of older records
    writers = {"rotation": _search_text, "search": _search_text, "wush": _wush_text, "budget": _budget_text}
    sentences = [write(account[name]) for name, write in writers.items() if isinstance(account.get(name), dict)]
    return [sentence for sentence in sentences if sentence]


def _search_text(search: dict[str, Any]) -> str:
    """Say in which order a search made changes, and the loss with each, with its difference where that is known."""
    steps = [step for step in search.get("steps") or [] if isinstance(step, dict)]
    if not steps:
        return ""
    # Records of before scale roundings were searched call a change by the product that it rotates.
    named = [(str(step.get("change", step.get("matmul"))), step) for step in steps]
    taken = {name: step for name, step in named if step.get("kept")}
    left = dict.fromkeys(name for name, _ in named if name not in taken)
    order = ", then ".join(f"{name} ({_nats(step.get('loss'))}{_change(step)})" for name, step in taken.items())
    rest = f"; not {', '.join(left)}" if left else ""
    looked_at = search.get("looked_at")
    if not isinstance(looked_at, int):
        looked_at = len(steps) + 1  # in older records each step was a loss of its own
    of, each = (" of last words", "word") if search.get("positions") == LAST_WORDS else ("", "token")
    searched = f"{looked_at} losses{_cost(search)}"
    if not taken:
        return (
            f"The search changed nothing: none of {', '.join(left)} lowers the calibration loss{of} of "
            f"{_nats(search.get('loss_before'))} nats a {each} significantly ({searched})."
        )
    return (
        f"The search took, from a calibration loss{of} of {_nats(search.get('loss_before'))} nats a {each} on, "
        f"{order}{rest} ({searched}).{_confirmed_text(search.get('confirmed'))}"
    )


def _confirmed_text(confirmed: Any) -> str:
    """Say of each choice that was compared what the loss is with the run's own weights, and whether it was kept."""
    if not isinstance(confirmed, dict):
        return ""
    compared = [one for one in confirmed.get("compared") or [] if isinstance(one, dict)]
    choices = [
        f"{one.get('choice')} ({_nats(one.get('loss'))}{_change(one)}), {'kept' if one.get('kept') else 'undone'}"
        for one in compared
    ]
    weights, before = confirmed.get("weights"), _nats(confirmed.get("loss_before"))
    return f" With {weights}'s weights, from a loss of {before} on: {'; '.join(choices)}."


def _change(step: dict[str, Any]) -> str:
    values = [step.get(name) for name in ("difference", "low", "high")]
    known = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    if len(known) < len(values):
        return ""
    return ", {:+.4f} [{:+.4f}, {:+.4f}]".format(*known)


def _wush_text(account: dict[str, Any]) -> str:
    """Say how many inputs have matrices of their own, what these take, and how far from orthogonal they are."""
    inputs, elements, condition = (account.get(name) for name in ("inputs", "matrix_elements", "largest_condition"))
    if not isinstance(inputs, int) or not isinstance(elements, int) or not isinstance(condition, int | float):
        return ""
    return (
        f"WUSH gives the blocks of {inputs:,} inputs matrices of their own, {elements:,} numbers beside the weights, "
        f"with condition numbers up to {condition:.3g}{_cost(account)}."
    )


def _budget_text(budget: dict[str, Any]) -> str:
    """Say what a budget was spent on: each format with its modules, the commonest last and only counted."""
    modules = budget.get("modules")
    if not isinstance(modules, dict) or not modules:
        return ""
    by_format: dict[str, list[str]] = {}
    for module, fmt in modules.items():
        by_format.setdefault(str(fmt), []).append(str(module))
    *few, (commonest, others) = sorted(by_format.items(), key=lambda item: len(item[1]))
    parts = [f"{fmt} to {_listed(names)}" for fmt, names in few]
    parts.append(f"{commonest} to {'the other' if few else 'all'} {len(others)}")
    bits = budget.get("bits_per_weight")
    spent = f"{bits:.3g} bits a weight" if isinstance(bits, int | float) else "bits unknown"
    return f"The budget ({spent}{_cost(budget)}) gives {', '.join(parts)}."


def _listed(names: list[str]) -> str:
    shown = ", ".join(name.removeprefix("model.") for name in names[:MOST_LISTED])
    return f"{shown} and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else shown


def _nats(loss: Any) -> str:
    return f"{loss:.4f}" if isinstance(loss, int | float) else "unknown"


def _cost(account: dict[str, Any]) -> str:
    seconds, kept = account.get("seconds"), account.get("kept_seconds")
    if account.get("cached"):
        return f", kept from before, {kept:.1f} s then" if isinstance(kept, int | float) else ", kept from before"
    before = f" and {kept:.1f} s before" if isinstance(kept, int | float) else ""
    return f", {seconds:.1f} s{before}" if isinstance(seconds, int | float) else ""
