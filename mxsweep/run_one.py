"""The story of one run: load, quantize, evaluate, record.

Not called run.py: a submodule of that name would take the place of the function ``mxsweep.run``.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mxsweep.config import RunConfig
from mxsweep.errors import ConfigError
from mxsweep.numerics import backend_problem
from mxsweep.results.record import SCHEMA, write_record
from mxsweep.versions import record_environment

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    stamp: str | None = None,
    run_id: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Evaluate one config.

    Args:
        config: what to run; see :func:`mxsweep.compose`.
        folder: where ``result.json`` (last), ``samples.parquet`` and ``lm_eval.json`` go; None to write nothing.
        overrides: what the user set, for the record.
        stamp: the time in the run's id, ``%Y%m%d_%H%M%S``; None for now.
        run_id: the run's id; None for one made of the stamp and the config.
        progress: called now and then while requests are scored, with how many are answered and how many there are.

    Returns:
        The record. Its ``status`` is "done" or "failed"; a run that fails for any reason is recorded with its error.

    Raises:
        OSError: the record cannot be written.
        KeyboardInterrupt, SystemExit: as they came; such a run leaves no record, and the model as it was.
    """
    if run_id is None:
        run_id = config.run_id(stamp or datetime.now().strftime("%Y%m%d_%H%M%S"))
    record = new_record(run_id, config.as_dict(), overrides, config.config_hash)
    started = time.perf_counter()
    try:
        check_backend(config)
        # Here, after the config is known to be good: torch, transformers and lm-eval take seconds to import.
        from mxsweep.evaluate.quiet import no_progress_bars

        with no_progress_bars():
            found = _evaluate(config, progress)
        record["environment"] |= found.pop("device")
        record |= found | {"status": "done"}
    except Exception as error:
        # Whatever stops one run is that run's result: it must neither be lost nor stop a sweep.
        record["error"] = describe_error(error)
    record["timing"]["total_s"] = time.perf_counter() - started
    details = record.pop("details", None)
    if folder is not None:
        if details is not None:
            record["warnings"] += _write_details(folder, *details)
        write_record(folder, record)
    return record


def _evaluate(config: RunConfig, progress: Callable[[int, int], object] | None) -> dict[str, Any]:
    from mxsweep import environment
    from mxsweep.evaluate.evaluate import evaluate, make_lm
    from mxsweep.evaluate.tasks import load_tasks
    from mxsweep.model.layers import quantize_model
    from mxsweep.model.load import load_model
    from mxsweep.numerics.cuda import launch_count

    clock = _Clock()
    launched_before = launch_count()
    environment.start(config.seed)
    task, model = config.task, config.model
    tasks = load_tasks(task.names, data=task.data, fields=task.fields, num_fewshot=task.num_fewshot, seed=config.seed)
    loaded = load_model(
        model.path,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        device_map=model.device_map,
        attention=model.attention,
        trust_remote_code=model.trust_remote_code,
    )
    if task.apply_chat_template and not loaded.tokenizer.chat_template:
        raise ConfigError(
            f"task.apply_chat_template: true needs a tokenizer with a chat template; that of {model.label} has none"
        )
    lm = make_lm(
        loaded.model,
        loaded.tokenizer,
        batch_tokens=None if config.batch_tokens == "auto" else config.batch_tokens,
        batch_size=config.batch_size,
        max_length=model.max_length,
    )
    load_s = clock.lap()
    with quantize_model(loaded.model, config.recipe) as report:
        quantize_s = clock.lap()
        for line in report.lines():
            log.info(line)
        found = evaluate(lm, tasks, limit=config.limit, apply_chat_template=task.apply_chat_template, progress=progress)
    return {
        "details": (found.samples, found.results),
        "metrics": found.metrics,
        "n_effective": found.n_effective,
        "timing": {
            "load_s": load_s,
            "quantize_s": quantize_s,
            "prepare_s": found.prepare_s,
            "eval_s": found.eval_s,
        },
        "examples_per_sec": sum(found.n_effective.values()) / found.eval_s,
        "diagnostics": report.as_dict() | {"cuda_kernel_launches": launch_count() - launched_before},
        "memory": environment.peak_memory() | {"batch_tokens": found.batch_tokens},
        "warnings": found.warnings,
        "device": environment.describe_device(loaded.model),
    }


def check_backend(config: RunConfig) -> None:
    """Refuse a backend that cannot work here: the one check that needs torch, made before a model is loaded."""
    if config.recipe.is_baseline or config.backend == "torch":
        return
    problem = backend_problem(config.backend)
    if problem is not None:
        field = (
            "custom_cuda: true" if config.custom_cuda and config.backend == "cuda" else f"backend: {config.backend!r}"
        )
        raise ConfigError(f"{field} cannot be had here: {problem}; custom_cuda=false backend=torch works anywhere")


def new_record(
    run_id: str, config: dict[str, Any], overrides: Sequence[str] = (), config_hash: str | None = None
) -> dict[str, Any]:
    """A record with what is known before a run, its status "failed" until the run is done."""
    return {
        "schema": SCHEMA,
        "status": "failed",
        "run_id": run_id,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "overrides": list(overrides),
        "config_hash": config_hash,
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
    """An error for the record: what the user can mend in a sentence, anything else with its traceback."""
    described = {"type": type(error).__name__, "message": str(error) or type(error).__name__}
    if isinstance(error, ConfigError) or error.__traceback__ is None:
        return described
    return described | {"traceback": "".join(traceback.format_exception(error))}


def final_line(record: dict[str, Any], folder: Path | None = None) -> str:
    """What came out of a run, in one line for a person."""
    if record["status"] != "done":
        error = record["error"]
        kind = "" if error["type"] == ConfigError.__name__ else f"{error['type']}: "
        return f"failed: {kind}{error['message']}"
    parts = []
    for task, metrics in record["metrics"].items():
        names = sorted(filter(_shown, metrics), key=lambda name: not name.startswith("acc"))
        shown = [f"{name} {metrics[name]:.4g}{_plus_minus(metrics, name)}" for name in names]
        parts.append(f"{task}: {', '.join(shown)}")
    n, seconds = sum(record["n_effective"].values()), record["timing"]["eval_s"]
    line = f"{'; '.join(parts)} ({n:,} examples in {seconds:.1f} s, {record['examples_per_sec']:,.1f}/s simulated)"
    return line if folder is None else f"{line} -> {folder}"


def _shown(name: str) -> bool:
    return "_stderr" not in name and name.split(",")[0] not in ("byte_perplexity", "bits_per_byte")


def _plus_minus(metrics: dict[str, float], name: str) -> str:
    base, _, chosen = name.partition(",")
    stderr = metrics.get(f"{base}_stderr" + (f",{chosen}" if chosen else ""))
    return "" if stderr is None else f" ± {stderr:.2g}"


def _write_details(folder: Path, samples: list[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    """Write what goes beside the record; the metrics are in the record, so that trouble here costs no result."""
    import pandas as pd
    from lm_eval.utils import handle_non_serializable

    warnings = []
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
    for name, write in (
        ("samples.parquet", lambda path: pd.DataFrame(samples).to_parquet(path, index=False)),
        ("lm_eval.json", lambda path: path.write_text(text, encoding="utf-8")),
    ):
        try:
            partial = folder / f".{name}.partial"
            write(partial)
            partial.replace(folder / name)
        except (OSError, ValueError) as error:
            warnings.append(f"{name} was not written: {type(error).__name__}: {error}")
            log.warning(warnings[-1])
    return warnings


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last
