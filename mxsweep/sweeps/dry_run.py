"""What a sweep would do, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from mxsweep.config.run_config import RunConfig
from mxsweep.formats.recipe import LinearFormats
from mxsweep.model.footprint import footprint
from mxsweep.results.record import RunFolder
from mxsweep.results.remedies import remedy_text
from mxsweep.results.rows import read_rows
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.plan import PlannedRun
from mxsweep.terminal.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dry_run_text(runs: Sequence[PlannedRun]) -> str:
    """The planned runs with their formats, bits and memory; runs that cannot be, with the reason."""
    rows = [_row(number, run.config) for number, run in enumerate(runs, 1) if run.config is not None]
    lines = [f"{len(runs)} run{'s' * (len(runs) != 1)} planned, nothing run (dry_run=true).", ""]
    if rows:
        lines.append(tabulate(rows, headers="keys", disable_numparse=True))
        lines.append("")
        lines.append(
            "bits/weight: of the weights that are quantized, scales included. stored: the whole model at those bits. "
            "in memory: what simulating it takes, the quantized weights beside the originals."
        )
        if any(run.config and run.config.ptq.budget is not None for run in runs):
            lines.append("Under a budget (≤) stored is what the run's own format would take.")
    for number, run in enumerate(runs, 1):
        if problem := problem_of(run):
            lines.append(f"run {number} ({' '.join(run.overrides)}) cannot be: {problem}")
    return "\n".join(lines)


def problem_of(run: PlannedRun) -> str | None:
    """Why a planned run would fail, as far as can be told without loading a model or a task; None if it can not."""
    if run.config is None:
        return run.error
    from mxsweep.model.meta import recipe_problem  # which takes seconds to import

    model = _meta_model(run.config)
    if model is not None and (problem := recipe_problem(model, run.config.recipe)):
        return problem
    try:
        refuse_unavailable_backend(run.config)
    except ConfigError as error:
        return str(error)
    return None


def _row(number: int, config: RunConfig) -> dict[str, str]:
    recipe, size = config.recipe, config.format.block_size
    from mxsweep.model.meta import recipe_problem

    model = _meta_model(config)
    bits, stored, memory = "unknown", "unknown", "unknown"
    if model is not None and recipe_problem(model, recipe) is None:
        size_of = footprint(model, recipe)
        bits = "-" if size_of.bits_per_weight is None else f"{size_of.bits_per_weight:.2f}"
        stored = f"{size_of.stored_bytes / 1e6:,.1f} MB"
        if config.ptq.budget is not None and bits != "-":
            bits = f"≤ {config.ptq.budget:g}"
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
        "by": "-" if recipe.is_baseline else f"{config.backend}, {config.arithmetic}",
        "bits/weight": bits,
        "stored": stored,
        "in memory": memory,
    }


def _meta_model(config: RunConfig) -> PreTrainedModel | None:
    """Return the config's model without values; None where it is not in a folder or cannot be built."""
    from mxsweep.model.meta import meta_model

    model = config.model
    return meta_model(
        model.path, dtype=model.dtype, attention=model.attention, trust_remote_code=model.trust_remote_code
    )


def _remedies(config: RunConfig) -> str:
    """As tables of results call them."""
    record = {"config": config.as_dict(), "metrics": {}}
    return remedy_text(read_rows(RunFolder(Path(), "done", record))[0].knobs)


def _formats(linear: LinearFormats) -> str:
    return f"{linear.weight or 'none'}/{linear.activation or 'none'}"
