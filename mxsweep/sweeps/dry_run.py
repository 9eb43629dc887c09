"""Show what a sweep would do, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mxsweep.config.run_config import RunConfig
from mxsweep.config.runtimes import RUNTIMES
from mxsweep.config.sweep_knobs import NEVER, PROVEN
from mxsweep.formats.export_targets import TARGET_NAMES
from mxsweep.formats.exported_recipe import NO_EXPORT, why_not_recipe
from mxsweep.formats.recipe import LinearFormats
from mxsweep.model.footprint import Footprint, footprint
from mxsweep.results.record import RunFolder
from mxsweep.results.remedies import remedy_text
from mxsweep.results.rows import read_rows
from mxsweep.sweeps.alike import groups_of
from mxsweep.sweeps.dry_run_training import training_lines
from mxsweep.sweeps.impossible import model_without_values, why_impossible, why_not_followed, why_not_here
from mxsweep.sweeps.kept_answers import ANSWERS
from mxsweep.sweeps.plan import PlannedRun
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class DryRun:
    """Hold what a sweep would do, to be printed, and whether a run cannot be done anywhere, or none can be here."""

    text: str
    is_refused: bool


def preview(runs: Sequence[PlannedRun], reuse: str = NEVER) -> DryRun:
    """Show the planned runs with their formats, bits and memory as a table; runs that cannot be, with the reason.

    Args:
        reuse: the knob: whether a run may be proven by another one.
    """
    impossible = [why_impossible(run, with_model=True) for run in runs]
    not_here = [why or why_not_here(run) for run, why in zip(runs, impossible, strict=True)]
    asked_not_here = [why for run, why in zip(runs, not_here, strict=True) if not run.added]
    text = "\n".join([_text(runs, not_here), *(_may_be_proven(runs) if reuse == PROVEN else [])])
    ANSWERS.keep()
    return DryRun(text, any(impossible) or all(asked_not_here))


def _text(runs: Sequence[PlannedRun], problems: Sequence[str | None]) -> str:
    numbered = [(number, run.config) for number, run in enumerate(runs, 1) if run.config is not None]
    rows = [_row(number, config) for number, config in numbered if not config.trains]
    lines = [f"{len(runs)} run{'s' * (len(runs) != 1)} planned, nothing run (dry_run=true).", ""]
    lines += training_lines(numbered)
    if rows:
        lines.append(tabulate(rows, headers="keys", disable_numparse=True))
        lines.append("")
        lines.append(
            "bits/weight: over all weights of the decoder blocks, scales included. stored: the whole model at those "
            "bits. in memory: what simulating it takes, the quantized weights beside the originals."
        )
        if any(run.config and run.config.ptq.budget is not None for run in runs):
            lines.append("Under a budget (≤) bits/weight and stored are the most that may come of it.")
        if any(run.config and run.config.transforms_inputs for run in runs):
            lines.append("Under rotation=wush stored has the matrices of inputs in it, bits/weight has not.")
    for problem, numbers in _numbers_of([(problem,) if problem else () for problem in problems]).items():
        words = f" ({' '.join(runs[numbers[0] - 1].overrides)})" if len(numbers) == 1 else ""
        lines.append(f"{_runs(numbers)}{words} cannot be: {problem}")
    for kind, said_of in (("warning", _warnings), ("note", _notes)):
        known = [
            run.config if kind == "warning" or why is None else None for run, why in zip(runs, problems, strict=True)
        ]
        said = [said_of(config) if config is not None else () for config in known]
        lines += [f"{kind}, of {_runs(numbers)}: {text}" for text, numbers in _numbers_of(said).items()]
    return "\n".join(lines)


def _may_be_proven(runs: Sequence[PlannedRun]) -> list[str]:
    """Return a line for each set of runs of which one may prove the others."""
    groups: dict[str, list[int]] = {}
    for number, group in enumerate(groups_of([run.config for run in runs]), 1):
        if group is not None:
            groups.setdefault(group, []).append(number)
    return [
        f"{_runs(numbers)} differ in scale bits or rounding alone: the first one done may prove others equal, which "
        "are then not evaluated (reuse=proven)"
        for numbers in groups.values()
    ]


def _warnings(config: RunConfig) -> Sequence[str]:
    """Return what a run will warn of."""
    size_of = _footprint(config)
    left_out = [f"the trained model is evaluated without this: {text}" for text in config.not_evaluated]
    return left_out if size_of is None else [*left_out, *size_of.warnings]


def _notes(config: RunConfig) -> Sequence[str]:
    """Return why a run's bits and bytes are not known beforehand, where its model is at hand."""
    notes = _exports(config)
    if (problem := why_not_followed(config)) is not None:
        notes.append(f"bits and bytes are known when it is done, not before: {problem}")
    return notes


def _exports(config: RunConfig) -> list[str]:
    """Return which packed checkpoint holds a run's formats; where one is asked for and none does, why, by target.

    Nothing of a training that asks for none: it takes building its model, and says nothing of what is trained.
    """
    asked = config.further["export"]
    if config.is_baseline or (config.trains and asked == NO_EXPORT):
        return []
    problems = _why_not_exported(config)
    if asked in problems:
        problems = {asked: problems[asked]}
    target = next((target for target, problem in problems.items() if problem is None), None)
    if target is not None:
        written = "mxsweep.export can write it" if asked == NO_EXPORT else "its model will be written"
        return [f"{written} for {target}, as far as formats tell"]
    if asked == NO_EXPORT:
        return ["mxsweep.export has no target for it; with export=auto a dry run says why"]
    reasons = dict.fromkeys(problem for problem in problems.values() if problem)
    return ["\n  ".join(["export: its model will not be written:", *reasons])]


def _why_not_exported(config: RunConfig) -> Mapping[str, str | None]:
    """Return for each target why it has no place for a run's model; None where it has, as far as formats tell."""
    problems = None
    if config.ptq.budget is None:  # which chooses formats as the run goes
        problems = ANSWERS.ask(config, "why_not_exported", lambda: _why_not_laid_out(config))
    return problems or {target: why_not_recipe(config.recipe, target) for target in TARGET_NAMES}


def _why_not_laid_out(config: RunConfig) -> dict[str, str | None] | None:
    """Return the same of the model's own layers; None where these cannot be looked at, or take no such recipe."""
    try:
        model = model_without_values(config)
        if model is None:
            return None
        from mxsweep.runs.export_place import why_not_model  # with torch, which the model took

        return why_not_model(model, config.recipe)
    except ConfigError:
        return None  # a line below the table says why


def _numbers_of(said: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Return what is said of runs, each text once, with the numbers of the runs that it is of."""
    numbers: dict[str, list[int]] = {}
    for number, texts in enumerate(said, 1):
        for text in texts:
            numbers.setdefault(text, []).append(number)
    return numbers


def _runs(numbers: Sequence[int]) -> str:
    """Name runs by their ascending numbers, three or more in a row by the first and the last."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][-1] + 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    texts = [f"{one[0]} to {one[-1]}" if len(one) > 2 else ", ".join(map(str, one)) for one in stretches]
    return f"run{'s' * (len(numbers) > 1)} {', '.join(texts)}"


def _row(number: int, config: RunConfig) -> dict[str, str]:
    recipe, size = config.recipe, config.format.block_size
    bits, stored, memory = "unknown", "unknown", "unknown"
    if (size_of := _footprint(config)) is not None:
        bits = "-" if size_of.bits_per_weight is None else f"{size_of.bits_per_weight:.2f}"
        stored = f"{size_of.stored_bytes / 1e6:,.1f} MB"
        if config.ptq.budget is not None and size_of.bits_per_weight is not None:
            bits, stored = f"≤ {size_of.bits_per_weight:g}", f"≤ {stored}"
        memory = f"{size_of.simulated_bytes / 1e6:,.1f} MB"
    return {
        "run": str(number),
        "model": config.model.label,
        "task": config.task.name,
        "limit": "all" if config.limit is None else str(config.limit),
        "weights": str(recipe.linear.weight or "none"),
        "activations": str(recipe.linear.activation or "none"),
        "keys": str(recipe.key or "none"),
        "values": str(recipe.value or "none"),
        "remedies": "-" if recipe.is_baseline else _remedies(config),
        "modules": " ".join(f"{pattern}={_formats(linear)}" for pattern, linear in recipe.modules) or "-",
        "block": "x".join(map(str, size)) if isinstance(size, tuple) else str(size),
        "by": "-" if recipe.is_baseline else f"{config.backend}, {config.arithmetic}{_rules_of(config)}",
        "bits/weight": bits,
        "stored": stored,
        "in memory": memory,
    }


def _rules_of(config: RunConfig) -> str:
    """Return whose rules a preset sets; "" where the rules are the run's own."""
    return f" as {RUNTIMES[config.runtime].title}" if config.runtime in RUNTIMES else ""


def _footprint(config: RunConfig) -> Footprint | None:
    """Return the bits and bytes of a run; None where its model cannot be looked at, or takes no such recipe."""
    counted = ANSWERS.ask(config, "footprint", lambda: _counted(config))
    return None if counted is None else Footprint(**counted)


def _counted(config: RunConfig) -> dict[str, Any] | None:
    try:
        model = model_without_values(config)
        return None if model is None else asdict(footprint(model, config.recipe, config.ptq.budget))
    except ConfigError:
        return None  # a line below the table says why


def _remedies(config: RunConfig) -> str:
    """Return the remedies as tables of results call them."""
    record = {"config": config.as_dict(), "metrics": {}}
    return remedy_text(read_rows(RunFolder(Path(), "done", record))[0].knobs)


def _formats(linear: LinearFormats) -> str:
    return f"{linear.weight or 'none'}/{linear.activation or 'none'}"
