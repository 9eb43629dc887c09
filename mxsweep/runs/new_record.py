"""Begin the record of a run, fill in an error, and say in a line what came out."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mxsweep.machine.versions import record_environment
from mxsweep.results.proven import PROVEN_BY
from mxsweep.results.record import SCHEMA
from mxsweep.terminal.errors import ConfigError

NOT_SUMMARIZED = ("byte_perplexity", "bits_per_byte")  # they say what word_perplexity says


def new_record(
    run_id: str,
    config: dict[str, Any],
    overrides: Sequence[str] = (),
    config_hash: str | None = None,
    identity: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a record with what is known before a run, its status "failed" until the run is done."""
    return {
        "schema": SCHEMA,
        "status": "failed",
        "run_id": run_id,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "overrides": list(overrides),
        "config_hash": config_hash,
        "identity": identity,
        "metrics": {},
        "n_effective": {},
        "timing": {},
        "examples_per_sec": None,
        "diagnostics": {},
        "memory": {},
        "environment": record_environment() | {"seed": config.get("seed")},
        "warnings": [],
        "error": None,
    }


def describe_error(error: Exception) -> dict[str, str]:
    """Return an error as a record holds it: what the user can mend in a sentence, anything else with its traceback."""
    described = {"type": type(error).__name__, "message": str(error) or type(error).__name__}
    if isinstance(error, ConfigError) or error.__traceback__ is None:
        return described
    return described | {"traceback": "".join(traceback.format_exception(error))}


def summarize_record(record: dict[str, Any], folder: Path | None = None) -> str:
    """Return in one line for a person what came out of a run: its metrics, or why it failed."""
    if record["status"] != "done":
        error = record["error"]
        kind = "" if error["type"] == ConfigError.__name__ else f"{error['type']}: "
        return f"failed: {kind}{error['message']}"
    tasks = "; ".join(f"{task}: {_summarize_metrics(metrics)}" for task, metrics in record["metrics"].items())
    line = f"{tasks} ({', '.join([*_training(record), *_evaluation(record), *_proof(record)])})"
    return line if folder is None else f"{line} -> {folder}"


def _training(record: dict[str, Any]) -> list[str]:
    """Return how long a run trained, and whether that ended early; nothing of a run that did not.

    Steps and seconds are of the whole training, what was done before it was resumed included.
    """
    training = record.get("training")
    if not training:
        return []
    diverged = training["diverged_at"]
    how = f"diverged in step {diverged:,}" if diverged is not None else f"{training['steps']:,} steps"
    if before := training.get("resumed_from"):
        how += f" ({before:,} before it was resumed)"
    return [
        f"training: {how} in {training['seconds']:.1f} s, {training['tokens_per_s']:,.0f} tokens/s in the median step"
    ]


def _evaluation(record: dict[str, Any]) -> list[str]:
    """Return how many examples were evaluated, and how fast; nothing of a run without a task."""
    seconds, speed = record["timing"].get("eval_s"), record["examples_per_sec"]
    if seconds is None or speed is None:
        return []
    return [f"{seconds * speed:,.0f} examples in {seconds:.1f} s, {speed:,.1f}/s simulated"]


def _proof(record: dict[str, Any]) -> list[str]:
    """Return by which run a run that was not evaluated is proven; nothing of another."""
    proof = record.get(PROVEN_BY)
    return [f"not evaluated: proven by {proof['run_id']}"] if proof else []


def _summarize_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics of a task with their standard errors, accuracies first."""
    names = [name for name in metrics if "_stderr" not in name and name.split(",")[0] not in NOT_SUMMARIZED]
    texts = []
    for name in sorted(names, key=lambda name: not name.startswith("acc")):
        base, comma, chosen = name.partition(",")  # lm-eval's "metric,filter"
        stderr = metrics.get(f"{base}_stderr{comma}{chosen}")
        texts.append(f"{name} {metrics[name]:.4g}" + ("" if stderr is None else f" ± {stderr:.2g}"))
    return ", ".join(texts)
