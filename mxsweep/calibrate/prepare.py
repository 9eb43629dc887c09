"""The story of what is worked out before a model is quantized: formats under a budget, key factors, rotations, weights.

Each is kept on disk under a hash of all that it depends on, so that a run that shares it with another does not work it
out again, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.budget import recipe_yaml
from mxsweep.calibrate.budget import solve as solve_budget
from mxsweep.calibrate.leak import refuse_evaluated
from mxsweep.calibrate.rotation_search import search_rotations
from mxsweep.calibrate.sequential import SolvedWeights, solve_weights
from mxsweep.calibrate.texts import Calibration, calibration_tokens
from mxsweep.calibrate.weights import clipped, solve_without_data, solver, weight_sites
from mxsweep.config.run_config import REMEDIES_VERSION, RunConfig
from mxsweep.formats.recipe import KVOptions, Prepared, Recipe
from mxsweep.forward.batches import BatchLimits, Passage, batch_tokens_on, unpadded_batches
from mxsweep.forward.engine import Engine
from mxsweep.forward.sequence_loss import TOO_LONG, measure_loss
from mxsweep.model.kv import key_factors
from mxsweep.model.quantize import quantize_model
from mxsweep.numerics import NUMERICS_VERSION
from mxsweep.terminal.progress_callback import Progress, in_phase, silent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What was worked out for a run.

    Attributes:
        recipe: the run's, with what was searched for.
        prepared: what goes into the model with it.
        account: what was done and found, for the record.
        files: texts for the run's folder, by their paths in it.
    """

    recipe: Recipe
    prepared: Prepared = field(default_factory=Prepared)
    account: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    tasks: Mapping[str, Any],
    max_length: int,
    progress: Progress,
    overrides: Sequence[str] = (),
) -> Preparation:
    """Work out what ``config`` asks for on ``model``, which is as it is before and after.

    Args:
        tasks: lm-eval's, by name: what is evaluated must not be calibrated on.
        max_length: tokens that a sequence may have.
        progress: called as it goes, phase by phase.
        overrides: what the user set, for the files.

    Raises:
        ConfigError: calibration data that cannot be had, or that is evaluated; a budget that cannot be met.
    """
    if config.recipe.is_baseline:
        return Preparation(config.recipe)
    work = _Work(model, config, progress)
    if config.needs_calibration:
        calibration = calibration_tokens(config.calibration, config.model, tokenizer, max_length)
        refuse_evaluated(calibration, tasks, config.task, config.calibration)
        work.calibrate(calibration)
    if config.ptq.budget is not None:
        work.spend_budget(overrides)
    if config.recipe.kv.smooth > 0:
        work.smooth_keys()
    if config.candidates:
        work.search_rotations()
    if config.ptq.is_solved and config.quantizes_weights:
        work.solve_weights()
    return work.result


class _Work:
    """What is worked out, one thing after the other; each sees what was found before it."""

    def __init__(self, model: PreTrainedModel, config: RunConfig, progress: Progress) -> None:
        self._model, self._config, self._progress = model, config, progress
        self._calibration: Calibration | None = None
        self._key: dict[str, Any] = {
            "model": config.model.identity(),
            "attention": config.model.attention,
            "device": model.device.type,
            "residual": config.rotation.residual,
            "versions": [REMEDIES_VERSION, NUMERICS_VERSION],
        }
        self.result = Preparation(config.recipe)

    def calibrate(self, calibration: Calibration) -> None:
        """Have calibration data from here on."""
        self._calibration = calibration
        self._key["calibration"] = calibration.identity
        self._account(calibration=calibration.description)
        log.info("Calibration: %s", calibration.description)

    def spend_budget(self, overrides: Sequence[str]) -> None:
        """Choose a format for each module."""
        config, recipe = self._config, self.result.recipe
        assert config.ptq.budget is not None
        candidates = config.budget_formats
        # Of the costs, which hold for any budget.
        alone = dataclasses.replace(recipe, key=None, value=None, kv=KVOptions())
        artefact = self._artefact(
            "costs", alone, candidates={name: repr(formats) for name, formats in candidates.items()}
        )
        with artefact.lock(), self._measured("budget") as found:
            known = artefact.load_json("costs")
            recipe, choice, account = solve_budget(
                self._model,
                recipe,
                candidates,
                config.ptq.budget,
                self._sequences,
                self._phase("budget"),
                known=known,
                keep=lambda costs: artefact.save_json("costs", costs),
            )
            costs = account.pop("costs")
            found |= account | {"cached": known == costs}
        text = recipe_yaml(choice, fixed=config.modules, overrides=overrides)
        self._update(recipe=recipe, files=self.result.files | {"experiment/budget.yaml": text})

    def smooth_keys(self) -> None:
        """Work out what keys are divided by."""
        recipe = self.result.recipe
        artefact = self._artefact("key_factors", None, smooth=recipe.kv.smooth, rope=recipe.kv.rope)
        with artefact.lock(), self._measured("smooth") as found:
            factors = artefact.load("factors")
            found["cached"] = factors is not None
            if factors is None:
                factors = key_factors(self._model, self._run_all, recipe.kv.smooth, recipe.kv.rope)
                artefact.save("factors", factors)
            found["largest_factor"] = max((float(own.max()) for own in factors.values()), default=1.0)
        self._update(prepared=Prepared(key_factors=factors))

    def search_rotations(self) -> None:
        """Find out which products to rotate."""
        config, recipe = self._config, self.result.recipe
        judge = [config.judge, config.ptq.of_weights() if config.judge not in ("rtn", "clip") else None]
        artefact = self._artefact("rotations", recipe, block=config.candidates[0].block, judge=judge)
        proxies = _Proxies(self._model)

        def loss_of(candidate: Recipe) -> float:
            weights: Mapping[str, Tensor] = {}
            if config.judge == "clip":
                weights = proxies.of(candidate)
            elif config.judge != "rtn":
                weights = self._solved(candidate).weights
            prepared = dataclasses.replace(self.result.prepared, weights=weights)
            with quantize_model(self._model, candidate, prepared=prepared):
                return measure_loss(self._model, self._sequences.sequences).nats

        with artefact.lock(), self._measured("rotation") as account:
            found = search_rotations(recipe, config.candidates, loss_of, artefact, self._phase("rotation search"))
            account |= found.as_dict()
        log.info(
            "Rotations: %s lower the calibration loss from %.4f to %.4f nats a token",
            ", ".join(found.rotation.matmuls) if found.rotation else "none",
            found.loss_before,
            found.loss_after,
        )
        self._update(recipe=dataclasses.replace(recipe, rotation=found.rotation))

    def solve_weights(self) -> None:
        """Quantize the weights."""
        ptq, recipe = self._config.ptq, self.result.recipe
        artefact = self._artefact("weights", recipe, ptq=ptq.of_weights())
        progress = self._phase(ptq.method)
        with artefact.lock(), self._measured("ptq") as found:
            if ptq.by_output:
                solved = self._solved(recipe, artefact, progress)
                weights, cached = solved.weights, solved.blocks_kept == solved.blocks
            else:
                kept = artefact.load("weights")
                weights = solve_without_data(self._model, recipe, solver(ptq), progress) if kept is None else kept
                cached = kept is not None
                if kept is None:
                    artefact.save("weights", weights)
            found |= {"method": ptq.method, "layers": len(weights), "cached": cached}
        self._update(prepared=dataclasses.replace(self.result.prepared, weights=weights))

    def _solved(self, recipe: Recipe, artefact: Artefact | None = None, progress: Progress = silent) -> SolvedWeights:
        batches = unpadded_batches(self._sequences.sequences, self._model.device)
        solve = solver(self._config.ptq)
        return solve_weights(self._model, recipe, self.result.prepared, batches, solve, artefact, progress)

    @contextmanager
    def _measured(self, name: str) -> Iterator[dict[str, Any]]:
        """Account for what happens in the context under ``name``: what is put into the mapping, its time and memory."""
        found: dict[str, Any] = {}
        on_gpu = self._model.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._model.device)
        began = time.perf_counter()
        yield found
        found["seconds"] = time.perf_counter() - began
        if on_gpu:
            found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(self._model.device)
            torch.cuda.reset_peak_memory_stats(self._model.device)  # the run's own peak is without it
        self._account(**{name: found})

    @property
    def _sequences(self) -> Calibration:
        assert self._calibration is not None
        return self._calibration

    def _run_all(self) -> None:
        limits = BatchLimits(batch_tokens_on(self._model.device), padded=False)
        Engine(self._model, limits, TOO_LONG).decode([Passage(one) for one in self._sequences.sequences])

    def _artefact(self, kind: str, recipe: Recipe | None, **settings: Any) -> Artefact:
        """What depends on ``recipe``, besides the model and the calibration. Key factors follow from these."""
        if recipe is not None and not any(fmt.rounding == "stochastic" for fmt in recipe.formats()):
            recipe = dataclasses.replace(recipe, seed=0)  # nothing draws from it
        return Artefact(self._key | {"kind": kind, "recipe": repr(recipe), **settings})

    def _phase(self, name: str) -> Progress:
        return in_phase(self._progress, name)

    def _update(self, **changes: Any) -> None:
        self.result = dataclasses.replace(self.result, **changes)

    def _account(self, **found: Any) -> None:
        self._update(account=self.result.account | found)


class _Proxies:
    """Weights on searched scales, rotated and not, each worked out once: what a rotation search judges by.

    GPTQ for every candidate would take minutes to hours; searched scales are part of it and take seconds.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._known: dict[tuple[str, int | None], Tensor] = {}

    @torch.no_grad()
    def of(self, recipe: Recipe) -> dict[str, Tensor]:
        weights = {}
        for site in weight_sites(self._model, recipe):
            key = site.name, site.rotation_block
            if key not in self._known:
                self._known[key] = clipped(site.weight(), site.formats.weight).to("cpu")
            weights[site.name] = self._known[key]
        return weights
