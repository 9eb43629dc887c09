"""The story of one run: load, quantize, evaluate, record.

Not called run.py: a submodule of that name would take the place of the function ``mxsweep.run``.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxsweep.config.model_config import ModelConfig
from mxsweep.config.run_config import RunConfig
from mxsweep.files.atomic import write_atomically
from mxsweep.machine.versions import record_environment
from mxsweep.numerics import backend_problem
from mxsweep.results.record import SCHEMA, write_record
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mxsweep.evaluate.evaluate import Evaluation
    from mxsweep.evaluate.lm import FastLM
    from mxsweep.model.load import LoadedModel

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    folder: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    stamp: str | None = None,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate one config.

    Args:
        config: what to run; see :func:`mxsweep.compose`.
        folder: where ``result.json`` (last), ``samples.parquet``, ``lm_eval.json`` and, where they are asked for,
            ``diagnostics.parquet`` and ``noise.parquet`` go; None to write nothing.
        overrides: what the user set, for the record.
        stamp: the time in the run's id, ``%Y%m%d_%H%M%S``; None for now.
        run_id: the run's id; None for one made of the stamp and the config.
        progress: called now and then: while something is worked out before the model is quantized, with how much of it
            is done, how much there is and what it is called; while requests are scored, with how many are answered and
            how many there are.

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
            found = _evaluate(config, progress or silent, overrides)
        record["environment"] |= found.pop("device")
        record |= found | {"status": "done"}
    except Exception as error:
        # Whatever stops one run is that run's result: it must neither be lost nor stop a sweep.
        record["error"] = describe_error(error)
    record["timing"]["total_s"] = time.perf_counter() - started
    details = record.pop("details", None)
    if folder is not None:
        if details is not None:
            record["warnings"] += _write_details(folder, details)
        write_record(folder, record)
    return record


def _evaluate(config: RunConfig, progress: Progress, overrides: Sequence[str]) -> dict[str, Any]:
    from mxsweep.calibrate.prepare import prepare
    from mxsweep.evaluate.evaluate import evaluate
    from mxsweep.model.linear import quantize_model
    from mxsweep.model.residual import rotated_residual
    from mxsweep.numerics.kernels.cuda import launch_count
    from mxsweep.runs import environment
    from mxsweep.runs.diagnostics import Diagnostics

    clock = _Clock()
    environment.seed_and_count_memory(config.seed)
    model, lm, tasks = _load(config)
    load_s = clock.lap()
    of_all = _counted_together(progress, 1 + config.noise)
    asked: dict[str, Any] = {"limit": config.limit, "apply_chat_template": config.task.apply_chat_template}
    diagnostics = None
    with ExitStack() as stack:
        if config.rotation.residual and not config.recipe.is_baseline:
            stack.enter_context(rotated_residual(model))
        made = prepare(model, lm.tokenizer, config, tasks["tasks"], lm.max_length, progress, overrides)
        remedies_s = clock.lap()
        launched_before = launch_count()
        report = stack.enter_context(
            quantize_model(model, made.recipe, prepared=made.prepared, compare_exact=config.diagnostics)
        )
        quantize_s = clock.lap()
        for line in report.lines():
            log.info(line)
        launched = launch_count() - launched_before
        lm.warm_up(made.recipe)
        warm_up_s = clock.lap()
        launched_before = launch_count()
        found = evaluate(lm, tasks, **asked, progress=of_all(0))
        # Here, so that of what follows nothing is counted.
        memory, launched = environment.peak_memory(), launched + launch_count() - launched_before
        repeats = [
            _evaluate_perturbed(model, lm, tasks, config.seed, repeat, **asked, progress=of_all(repeat))
            for repeat in range(1, 1 + config.noise)
        ]
        clock.lap()
        if config.diagnostics and not config.recipe.is_baseline:
            diagnostics = Diagnostics(lm, tasks["tasks"], config.seed)
            diagnostics.read_quantized(model, report, made.recipe)
        diagnostics_s = clock.lap()
    details: dict[str, Any] = {"samples": found.samples, "lm_eval": found.results, "files": made.files}
    answer: dict[str, Any] = {
        "details": details,
        "metrics": found.metrics,
        "n_effective": found.n_effective,
        "timing": {
            "load_s": load_s,
            "quantize_s": quantize_s,
            "warm_up_s": warm_up_s,
            "prepare_s": found.prepare_s,
            "eval_s": found.eval_s,
        },
        "examples_per_sec": sum(found.n_effective.values()) / found.eval_s,
        "diagnostics": report.as_dict() | {"cuda_kernel_launches": launched},
        "memory": memory | {"batch_tokens": found.batch_tokens},
        "warnings": found.warnings,
        "device": environment.describe_device(model),
    }
    if made.account:
        answer["remedies"] = made.account
        answer["timing"]["remedies_s"] = remedies_s
    if diagnostics is not None:
        clock.lap()
        diagnostics.read_unquantized(model)
        answer["timing"]["diagnostics_s"] = diagnostics_s + clock.lap()
        answer["diagnostics"] |= diagnostics.as_dict()
        answer["warnings"] = found.warnings + diagnostics.warnings
        details["diagnostics"] = diagnostics.rows()
    if repeats:
        answer["noise"] = _noise(repeats)
        details["noise"] = [row | {"repeat": repeat} for repeat, one in enumerate(repeats, 1) for row in one.samples]
    return answer


def _load(config: RunConfig) -> tuple[PreTrainedModel, FastLM, dict[str, Any]]:
    """The model as it is, lm-eval's class around it, and the tasks."""
    from mxsweep.evaluate.evaluate import make_lm
    from mxsweep.evaluate.tasks import load_tasks

    task, model = config.task, config.model
    tasks = load_tasks(task.names, data=task.data, fields=task.fields, num_fewshot=task.num_fewshot, seed=config.seed)
    loaded = load_configured(model)
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
    return loaded.model, lm, tasks


def load_configured(model: ModelConfig) -> LoadedModel:
    """The model that a config names, kept between runs. Raises ConfigError."""
    from mxsweep.model.load import load_model

    return load_model(
        model.path,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        device_map=model.device_map,
        attention=model.attention,
        trust_remote_code=model.trust_remote_code,
    )


def _evaluate_perturbed(
    model: PreTrainedModel, lm: FastLM, tasks: dict[str, Any], seed: int, repeat: int, **asked: Any
) -> Evaluation:
    from mxsweep.evaluate.evaluate import evaluate
    from mxsweep.model.perturbation import perturbed

    with perturbed(model, seed, repeat):
        return evaluate(lm, tasks, **asked)


def _counted_together(progress: Progress, evaluations: int) -> Callable[[int], Progress]:
    """Return, for each of several evaluations, the first being number 0, the callback that hears its progress."""

    def of(number: int) -> Progress:
        def report(done: int, total: int, _phase: str = "", /) -> None:
            progress(number * total + done, evaluations * total)

        return report

    return of


def _noise(repeats: Sequence[Evaluation]) -> dict[str, Any]:
    """The metrics of the perturbed evaluations, for the record."""
    metrics = {
        task: {name: [repeat.metrics[task][name] for repeat in repeats] for name in of_task if "_stderr" not in name}
        for task, of_task in repeats[0].metrics.items()
    }
    seconds = sum(repeat.prepare_s + repeat.eval_s for repeat in repeats)
    return {"repeats": len(repeats), "metrics": metrics, "seconds": seconds}


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


def _write_details(folder: Path, details: dict[str, Any]) -> list[str]:
    """Write what goes beside the record; the metrics are in the record, so that trouble here costs no result."""
    import pandas as pd
    from lm_eval.utils import handle_non_serializable

    def table(rows: list[dict[str, Any]], types: dict[str, str] | None = None) -> Callable[[Path], object]:
        frame = pd.DataFrame(rows) if types is None else pd.DataFrame(rows, columns=list(types)).astype(types)
        return lambda path: frame.to_parquet(path, index=False)

    results = json.dumps(details["lm_eval"], indent=2, default=handle_non_serializable, ensure_ascii=False)
    files: dict[str, str | Callable[[Path], object]] = {
        "samples.parquet": table(details["samples"]),
        "lm_eval.json": results,
    }
    if "diagnostics" in details:
        from mxsweep.model.tensor_statistics import COLUMNS

        files["diagnostics.parquet"] = table(details["diagnostics"], COLUMNS)
    if "noise" in details:
        files["noise.parquet"] = table(details["noise"])
    files |= details.get("files", {})
    warnings = []
    for name, content in files.items():
        try:
            write_atomically(folder / name, content, durable=False)
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
