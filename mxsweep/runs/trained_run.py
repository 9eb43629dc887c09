"""Do a run that trains: train its model, then evaluate the checkpoint that comes of it as that of any run."""

from __future__ import annotations

import gc
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mxsweep.config.run_config import RunConfig
from mxsweep.evaluate.quiet import no_progress_bars
from mxsweep.model.load import forget_models, load_configured
from mxsweep.results.record import VALIDATION
from mxsweep.runs.evaluate_config import evaluate_config
from mxsweep.runs.evaluator import load_configured_tasks
from mxsweep.runs.process import describe_device, peak_memory, prepare_process
from mxsweep.runs.run_result import Rows, RunFiles, RunResult
from mxsweep.terminal.progress_callback import Progress
from mxsweep.training.evaluated import as_trained
from mxsweep.training.job import Trained
from mxsweep.training.saved_state import FOLDER as CHECKPOINTS
from mxsweep.training.train_model import MODEL_FOLDER, train_model

log = logging.getLogger(__name__)


def train_and_evaluate(
    config: RunConfig, folder: Path | None, progress: Progress, overrides: Sequence[str] = ()
) -> RunResult:
    """Train the model of a config, or go on where its training was stopped, and evaluate what was trained.

    Of a training that diverged nothing is evaluated: its metrics are NaN.

    Args:
        folder: of the run, where the model stays, and checkpoints until :func:`remove_checkpoints`; None for a
            temporary one.
        progress: hears of the training as a phase of that name, and of the evaluation as any run's.
        overrides: what the user set, for the files.

    Raises:
        ConfigError: what a user can mend; and whatever else may go wrong in a run.
    """
    with _folder(folder) as place, _memory_given_back():
        training = _train(config, place, progress)
        if training.diverged:
            return training.with_evaluation(_diverged(config))
        evaluated = _of_checkpoint(training.evaluated, place / MODEL_FOLDER)
        return training.with_evaluation(evaluate_config(evaluated, progress, overrides))


def _of_checkpoint(config: RunConfig, folder: Path) -> RunConfig:
    """Return the config of a run that evaluates a trained model, loaded as the one that a config names."""
    model = replace(config.model, name="hf", path=str(folder.absolute()), revision=None, dequantize=False)
    return replace(config, model=model)


def evaluated_checkpoint(config: RunConfig, folder: Path) -> RunConfig:
    """Return the config that evaluated what a finished run trained, which is in its folder. Raises ConfigError."""
    config = _of_checkpoint(config, folder / MODEL_FOLDER)
    return as_trained(config, load_configured(config.model).model)


def remove_checkpoints(folder: Path) -> None:
    """Remove the states of a training whose run is recorded; what cannot be removed stays."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


@dataclass(frozen=True)
class _Training:
    """Hold what came of a training, without the model.

    Attributes:
        evaluated: the config, with the formats that each layer was trained in.
        device: where the model was.
        seconds: that the training took in this process.
    """

    summary: dict[str, Any]
    metrics: dict[str, float]
    samples: Rows
    curve: Rows
    roles: Rows
    warnings: list[str]
    evaluated: RunConfig
    device: dict[str, Any]
    memory: dict[str, int | None]
    seconds: float

    @classmethod
    def of(cls, trained: Trained, config: RunConfig, seconds: float) -> _Training:
        """Keep what is recorded, and what evaluating takes, of a model that was trained as ``config`` says."""
        summary = dict(trained.summary)
        metrics = {"loss": summary["validation_loss"], "loss_stderr": summary.pop("validation_stderr")}
        samples: Rows = [{"task": VALIDATION} | row for row in trained.validation]
        if summary["diverged_at"] is not None:
            metrics = dict.fromkeys(metrics, math.nan)
            samples = [row | {"loglikelihood": math.nan} for row in samples]
        return cls(
            summary,
            metrics,
            samples,
            trained.curve,
            trained.roles,
            [*trained.warnings, *config.not_evaluated],
            as_trained(config, trained.model),
            describe_device(trained.model),
            peak_memory(),
            seconds,
        )

    @property
    def diverged(self) -> bool:
        return self.summary["diverged_at"] is not None

    def with_evaluation(self, result: RunResult) -> RunResult:
        """Return the result of the evaluation of what was trained as that of the whole run."""
        entries = result.entries
        entries["training"] = self.summary
        entries["metrics"] = {VALIDATION: self.metrics} | entries["metrics"]
        entries["n_effective"] = {VALIDATION: len(self.samples)} | entries["n_effective"]
        entries["timing"] = {"train_s": self.seconds} | entries["timing"]
        entries["memory"] |= {name: _larger(value, entries["memory"].get(name)) for name, value in self.memory.items()}
        entries["warnings"] = [*self.warnings, *entries["warnings"]]
        files = replace(
            result.files, samples=self.samples + (result.files.samples or []), curve=self.curve, roles=self.roles
        )
        return RunResult(entries, self.device | result.device, files)


def _train(config: RunConfig, folder: Path, progress: Progress) -> _Training:
    """Train; the model is gone from memory afterwards, and on disk."""
    prepare_process(config.seed, config.model.device)
    started = time.perf_counter()
    with no_progress_bars():
        trained = train_model(config, folder, progress)
    training = _Training.of(trained, config, time.perf_counter() - started)
    for warning in training.warnings:
        log.warning(warning)
    return training


def _diverged(config: RunConfig) -> RunResult:
    """Return what is recorded of tasks that are not evaluated: NaN under the names of their metrics."""
    tasks = load_configured_tasks(config)["tasks"]
    metrics = {name: dict.fromkeys(task.aggregation(), math.nan) for name, task in tasks.items()}
    entries: dict[str, Any] = {
        "metrics": metrics,
        "n_effective": dict.fromkeys(metrics, 0),
        "timing": {},
        "diagnostics": {},
        "memory": {},
        "warnings": [],
    }
    return RunResult(entries, {}, RunFiles([]))


def _larger(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return max(known, default=None)


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    """Yield the folder of a run, made if need be, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mxsweep_") as temporary:
        yield Path(temporary)


@contextmanager
def _memory_given_back() -> Iterator[None]:
    """Keep no model and no memory of the GPU once the context is left: another run may need all of it."""
    forget_models()
    try:
        yield
    finally:
        forget_models()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
