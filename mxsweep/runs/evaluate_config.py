"""Evaluate a config: load its model, quantize it, evaluate it, take everything out again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mxsweep.calibrate.prepare import prepare
from mxsweep.calibrate.workbench import Preparation
from mxsweep.config.run_config import RunConfig
from mxsweep.evaluate.evaluation import Evaluation
from mxsweep.evaluate.quiet import no_progress_bars
from mxsweep.evaluate.uniform_guess import Guessing, find_guessing
from mxsweep.files.checkpoints import model_folder
from mxsweep.machine.versions import record_environment
from mxsweep.model.quantization_report import QuantizationReport
from mxsweep.model.quantize import quantize_model
from mxsweep.model.residual import rotated_residual
from mxsweep.numerics import native_triton
from mxsweep.numerics.kernels import elementwise_cuda
from mxsweep.numerics.kernels.compile import launch_count
from mxsweep.numerics.kernels.cpu import call_count
from mxsweep.numerics.kernels.cpu_library import LIBRARY
from mxsweep.numerics.wanted_exponents import keeping_exponents
from mxsweep.results.guessing import GUESSED
from mxsweep.results.proven import PROVEN_BY, SIGNIFICAND, WANTED, Proof
from mxsweep.results.record import LM_EVAL_NAME, NOISE_NAME, SAMPLES_NAME
from mxsweep.results.studies import same_environment
from mxsweep.results.trainings import steps_of_checkpoint
from mxsweep.runs.diagnostics import Diagnostics
from mxsweep.runs.evaluator import Evaluator, load_evaluator
from mxsweep.runs.noise_repeats import describe_repeats, evaluate_perturbed, in_turn, repeat_rows
from mxsweep.runs.process import describe_device, peak_memory, prepare_process
from mxsweep.runs.run_result import RunFiles, RunResult
from mxsweep.runs.stored_products import refuse_plain_products
from mxsweep.terminal.progress_callback import Progress

log = logging.getLogger(__name__)


def evaluate_config(config: RunConfig, progress: Progress, overrides: Sequence[str] = ()) -> RunResult:
    """Evaluate a config; afterwards the model is as it was before.

    Args:
        progress: hears of what is worked out before the model is quantized, phase by phase, and of scored requests.
        overrides: what the user set, for the files.

    Raises:
        ConfigError: what a user can mend; and whatever else may go wrong in a run.
    """
    with no_progress_bars():
        return _Steps(config).do(progress, overrides)


def evaluate_proving(config: RunConfig, progress: Progress, overrides: Sequence[str]) -> RunResult:
    """Evaluate a config as :func:`evaluate_config`, and keep the range of exponents that its scales wanted.

    By it the run may prove others. To keep it takes 3 to 19 % of quantizing on a CPU.
    """
    with no_progress_bars():
        return _Steps(config, keeps_exponents=True).do(progress, overrides)


def evaluate_proven(config: RunConfig, progress: Progress, overrides: Sequence[str], proof: Proof) -> RunResult:
    """Quantize a config's model, and take over what another run came to when it was evaluated.

    In another environment than the other run's it is evaluated after all, as by :func:`evaluate_proving`.
    """
    with no_progress_bars():
        return _Steps(config, proof, keeps_exponents=True).do(progress, overrides)


def _kernel_counts() -> dict[str, int]:
    """Return how often this process launched kernels that quantize, called Triton's and the library built for the CPU,
    and had kernels stand in for a model's own operations.
    """
    return {
        "cuda_kernel_launches": launch_count(),
        "triton_kernel_calls": native_triton.call_count(),
        "cpu_kernel_calls": call_count(),
        "elementwise_kernel_calls": elementwise_cuda.call_count(),
    }


class _Steps:
    """Do the steps of a run, timed, with the kernels counted that they launch."""

    def __init__(self, config: RunConfig, proof: Proof | None = None, keeps_exponents: bool = False) -> None:
        self._config = config
        self._proof = proof
        self._keeps_exponents = keeps_exponents
        self._seconds: dict[str, float] = {}
        self._kernel_counts = Counter[str]()

    def do(self, progress: Progress, overrides: Sequence[str]) -> RunResult:
        config = self._config
        prepare_process(config.seed, config.model.device)
        with self._timed("load_s"):
            evaluator = load_evaluator(config)
        model, lm = evaluator.model, evaluator.lm
        proof = self._proof if self._proof and _is_of_here(self._proof.record, model) else None
        diagnostics = None
        with ExitStack() as stack:
            with self._timed("remedies_s"):
                preparation = self._prepare(evaluator, stack, progress, overrides)
            # Of what was worked out, perhaps on other formats and long ago, nothing could be proven.
            provable = proof is None and not config.recipe.is_baseline and not preparation.account
            keeps = self._keeps_exponents and provable
            with keeping_exponents() if keeps else nullcontext() as wanted:
                report = self._quantize(model, preparation, stack)
                result = (
                    self._evaluate(evaluator, preparation, report, progress)
                    if proof is None
                    else self._take_over(proof, evaluator, preparation, report)
                )
            if config.diagnostics and not config.recipe.is_baseline:
                with self._timed("diagnostics_s"):
                    diagnostics = Diagnostics(lm, evaluator.tasks["tasks"], config.seed)
                    diagnostics.read_quantized(model, report, preparation.recipe)
        if diagnostics is not None:
            with self._timed("diagnostics_s"):
                diagnostics.read_unquantized(model)
        entries, files = result.entries, result.files
        if wanted is not None and (span := wanted.range()) is not None:
            entries[WANTED] = list(span)
            if (significand := wanted.largest_significand()) is not None:
                entries[SIGNIFICAND] = significand
        if proof is None:
            entries["timing"] |= {"diagnostics_s": self._seconds["diagnostics_s"]} if diagnostics is not None else {}
        if computed_as := self._computed_as():
            entries["diagnostics"]["computed"] = computed_as
        if evaluator.quantized_from is not None:
            entries["diagnostics"]["quantized_from"] = evaluator.quantized_from
        if diagnostics is not None:
            entries["diagnostics"] |= diagnostics.as_dict()
            entries["warnings"] += diagnostics.warnings
            files = replace(files, tensors=diagnostics.rows())
        return RunResult(entries, describe_device(model), files)

    def _quantize(self, model: PreTrainedModel, preparation: Preparation, stack: ExitStack) -> QuantizationReport:
        """Quantize the model until the stack ends, and log what that did."""
        refuse_plain_products(model, self._config)
        with self._timed("quantize_s"), self._kernels_counted():
            report = stack.enter_context(
                quantize_model(
                    model,
                    preparation.recipe,
                    prepared=preparation.prepared,
                    compare_exact=self._config.diagnostics,
                )
            )
        if computed_as := self._computed_as():
            log.info("Weights and inputs are quantized %s", computed_as)
        for line in report.lines():
            log.info(line)
        for warning in report.warnings:
            log.warning(warning)
        return report

    def _evaluate(
        self, evaluator: Evaluator, preparation: Preparation, report: QuantizationReport, progress: Progress
    ) -> RunResult:
        """Evaluate the quantized model, and again under noise where that is asked for."""
        config = self._config
        with self._timed("warm_up_s"):
            evaluator.lm.warm_up(preparation.recipe)
        with self._kernels_counted():
            evaluation = evaluator.evaluate(config, in_turn(progress, 0, 1 + config.noise))
        warnings = [*evaluator.warnings, *preparation.warnings, *report.warnings, *evaluation.warnings]
        guessing = self._guessing(evaluator, evaluation)
        warnings += guessing.warnings + self._zeros_in_float16(evaluator.model, evaluation)
        memory = peak_memory()  # here: what follows takes memory that is not the run's
        repeats = evaluate_perturbed(evaluator, config, progress)
        entries = self._entries(preparation, report, evaluation, memory, warnings)
        entries |= {GUESSED: guessing.tasks} if guessing.tasks else {}
        files = RunFiles(evaluation.samples, evaluation.results or None, texts=preparation.files)
        if repeats:
            entries["noise"] = describe_repeats(repeats)
            files = replace(files, noise=repeat_rows(repeats))
        return RunResult(entries, {}, files)

    def _take_over(
        self, proof: Proof, evaluator: Evaluator, preparation: Preparation, report: QuantizationReport
    ) -> RunResult:
        """Return what evaluating the quantized model comes to, as another run's record and files have it: no times."""
        log.info("Not evaluated: proven by %s: %s", proof.record["run_id"], proof.reason)
        own = [*evaluator.warnings, *preparation.warnings, *report.warnings]
        taken = {name: proof.record[name] for name in ("metrics", "n_effective", "memory")}
        noise = proof.record.get("noise")
        launches = {name: proof.record["diagnostics"].get(name) for name in self._kernels()}
        taken |= {GUESSED: proof.record[GUESSED]} if GUESSED in proof.record else {}
        entries = taken | {
            "timing": {},
            "examples_per_sec": None,
            "diagnostics": report.as_dict() | launches,
            "warnings": own + [warning for warning in proof.record["warnings"] if warning not in own],
            PROVEN_BY: proof.as_dict(),
            **({"noise": {name: value for name, value in noise.items() if name != "seconds"}} if noise else {}),
        }
        names = (SAMPLES_NAME, LM_EVAL_NAME, NOISE_NAME)
        there = [path for name in names if (path := proof.folder / name).is_file()]
        return RunResult(entries, {}, RunFiles(None, copies=there, texts=preparation.files))

    def _prepare(
        self, evaluator: Evaluator, stack: ExitStack, progress: Progress, overrides: Sequence[str]
    ) -> Preparation:
        """Work out what the config asks for, on the model in the basis in which it is evaluated."""
        if self._config.rotation.residual and not self._config.recipe.is_baseline:
            stack.enter_context(rotated_residual(evaluator.model))
        return prepare(
            evaluator.model,
            evaluator.lm.tokenizer,
            self._config,
            evaluator.tasks["tasks"],
            evaluator.lm.max_length,
            progress,
            overrides,
        )

    def _computed_as(self) -> str:
        """Return by whose rules the run is quantized, as "as vLLM computes it"; "" where by its own."""
        runtime = self._config.predicts
        return "" if runtime is None or self._config.recipe.is_baseline else runtime.phrase

    def _guessing(self, evaluator: Evaluator, evaluation: Evaluation) -> Guessing:
        """Return of which tasks the model knows no more than a guess does, and log what is to be said of that."""
        train, folder = self._config.train, model_folder(self._config.model.path)
        steps = train.total_steps if train.trains else steps_of_checkpoint(folder) if folder is not None else None
        guessing = find_guessing(
            evaluation.nats_per_token,
            evaluation.counting_nats,
            evaluator.model,
            evaluator.lm.tokenizer,
            quantized=not self._config.is_baseline,  # gradients of a training alone, too
            trained="" if steps is None else f"{steps:,} steps",
        )
        for warning in guessing.warnings:
            log.warning(warning)
        return guessing

    def _zeros_in_float16(self, model: PreTrainedModel, evaluation: Evaluation) -> list[str]:
        """Return, and log, why log-likelihoods are NaN in float16, and what to do; nothing of another run."""
        recipe = self._config.recipe
        native = recipe.arithmetic == "native" and any(fmt.has_native_arithmetic for fmt in recipe.formats())
        if not native or model.dtype != torch.float16 or not any("NaN" in text for text in evaluation.warnings):
            return []
        warning = (
            "arithmetic: native arithmetic in float16 makes NaN of a block of zeros (as after a ReLU); "
            "arithmetic=exact or model.dtype=bfloat16 leaves it at zeros"
        )
        log.warning(warning)
        return [warning]

    def _entries(
        self,
        preparation: Preparation,
        report: QuantizationReport,
        evaluation: Evaluation,
        memory: dict[str, int | None],
        warnings: list[str],
    ) -> dict[str, Any]:
        """Return the record's entries of every run."""
        evaluated = {"prepare_s": evaluation.prepare_s, "eval_s": evaluation.eval_s}
        seconds = self._seconds | (evaluated if evaluation.metrics else {})
        remedies_s = seconds.pop("remedies_s")
        entries: dict[str, Any] = {
            "metrics": evaluation.metrics,
            "n_effective": evaluation.n_effective,
            "timing": seconds,
            "examples_per_sec": evaluation.examples_per_sec,
            "diagnostics": report.as_dict() | self._kernels(),
            "memory": memory | {"batch_tokens": evaluation.batch_tokens},
            "warnings": warnings,
        }
        if preparation.account:
            entries["remedies"] = preparation.account
            seconds["remedies_s"] = remedies_s
        return entries

    def _kernels(self) -> dict[str, int | str | None]:
        """Return how many kernels the run took, and by which compiler the CPU's were built; None where it took none.

        That is no part of the environment, by which runs are grouped: a run may be over before the library is built.
        """
        compiler = LIBRARY.built_by if self._kernel_counts["cpu_kernel_calls"] else None
        return {**self._kernel_counts, "cpu_kernel_compiler": compiler}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Add the seconds that something takes to those of ``name``."""
        started = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    @contextmanager
    def _kernels_counted(self) -> Iterator[None]:
        """Count the kernels that quantizing something takes."""
        before = _kernel_counts()
        yield
        for name, count in _kernel_counts().items():
            self._kernel_counts[name] += count - before[name]


def _is_of_here(record: Mapping[str, Any], model: PreTrainedModel) -> bool:
    """Return whether a record is of a run in this environment, of the same commit, too."""
    here = record_environment() | describe_device(model)
    same_commit = (record.get("environment") or {}).get("git_sha") == here["git_sha"]
    return same_commit and same_environment(record, {"environment": here})
