"""Quantize a run's weights by the method that it asks for: solved for, tuned, finetuned; kept, and accounted for."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.block_tuning import BlockTuning
from mxsweep.calibrate.encoded_weights import as_tensors, from_tensors
from mxsweep.calibrate.finetuning import finetune
from mxsweep.calibrate.sequential import LEAST_TOKENS, ExpertTokens, SolvedWeights, solve_weights
from mxsweep.calibrate.tuned import Errors, Tuned, Tuning
from mxsweep.calibrate.tuning_steps import Groups
from mxsweep.calibrate.weights import solve_without_data, solver, weight_sites
from mxsweep.calibrate.workbench import Workbench
from mxsweep.config.remedy_config import PTQConfig
from mxsweep.formats.recipe import Recipe
from mxsweep.forward.batches import unpadded_batches
from mxsweep.numerics import Encoded
from mxsweep.terminal.progress_callback import Progress, silent

log = logging.getLogger(__name__)


def solve_for_weights(bench: Workbench) -> None:
    """Quantize the weights by the configured method."""
    ptq, result = bench.config.ptq, bench.result
    artefact, progress = bench.artefact("weights", result.recipe, ptq=ptq.of_weights()), bench.phase(ptq.method)
    with artefact.lock(), bench.accounted("ptq", [artefact]) as account:
        if ptq.start is not None:
            weights, cached, of_finetuning = _kept_finetuned(bench, ptq.start, artefact, progress)
            account |= of_finetuning
        elif ptq.by_output:
            solved = _solved(bench, result.recipe, ptq, artefact, progress)
            weights, cached = solved.weights, solved.blocks_kept == solved.blocks
            if solved.experts is not None:
                account |= _account_for_experts(bench, solved.experts)
            if solved.tuning is not None:
                account |= _account_for_tuning(bench, solved.tuning)
        else:
            kept = artefact.load("weights")
            sites = weight_sites(bench.model, result.recipe, result.prepared)
            known = None if kept is None else from_tensors(kept, sites)
            cached = known is not None
            weights = known or solve_without_data(bench.model, result.recipe, solver(ptq), progress, result.prepared)
            if not cached:
                artefact.save("weights", as_tensors(weights))
        account |= {"method": ptq.method, "layers": len(weights), "cached": cached}
    result.prepared = replace(result.prepared, weights=weights)


def _kept_finetuned(
    bench: Workbench, start: PTQConfig, artefact: Artefact, progress: Progress
) -> tuple[dict[str, Encoded], bool, dict[str, Any]]:
    """Return finetuned weights, whether they were kept, and what is to be told of them.

    Args:
        start: how the weights are quantized that finetuning begins with; they are kept as that method's own.
        artefact: where finetuned weights are kept.
    """
    kept, told = artefact.load("weights"), artefact.load_json("finetuning")
    sites = weight_sites(bench.model, bench.result.recipe, bench.result.prepared)
    known = None if kept is None else from_tensors(kept, sites)
    if known is not None and told is not None:
        experts = None if told["experts"] is None else ExpertTokens(**told["experts"])
        tuned = Tuned(known, Errors(**told["errors"]), told["steps_not_finite"])
        return known, True, _account_for_finetuning(bench, tuned, experts)
    of_start = bench.artefact("weights", bench.result.recipe, ptq=start.of_weights())
    with of_start.lock():
        solved = _solved(bench, bench.result.recipe, start, of_start, bench.phase(start.method))
    artefact.take_over(of_start)
    tuned = _finetuned(bench, bench.result.recipe, solved, progress)
    counted = None if solved.experts is None else asdict(solved.experts)
    # The weights at last: they say that finetuning is finished.
    told = {"errors": asdict(tuned.errors), "steps_not_finite": tuned.steps_not_finite, "experts": counted}
    artefact.save_json("finetuning", told)
    artefact.save("weights", as_tensors(tuned.weights))
    return tuned.weights, False, _account_for_finetuning(bench, tuned, solved.experts)


def _account_for_finetuning(bench: Workbench, tuned: Tuned, experts: ExpertTokens | None) -> dict[str, Any]:
    """Return what finetuning did, for the record; warn where it did nothing, or not what it should."""
    errors, steps = tuned.errors, bench.config.ptq.steps
    warn = bench.result.warnings.warn
    if errors.first is None:
        warn(
            "ptq.method: quantized, with the weights that GPTQ chose, the model has no finite divergence from the "
            "unquantized one on the calibration tokens that are held back; these weights were not finetuned"
        )
    elif tuned.weights and errors.best == errors.first:
        warn(
            f"ptq.method: none of the checks in {steps} steps of finetuning found a smaller divergence on the "
            "calibration tokens that are held back; the weights are those that GPTQ chose. More "
            "calibration.samples may help"
        )
    if tuned.steps_not_finite:
        warn(
            f"ptq.method: in {tuned.steps_not_finite} of {steps} steps of finetuning some gradients were not finite; "
            "weights stay where theirs is NaN"
        )
    account: dict[str, Any] = {
        "divergence_before": errors.first,
        "divergence_after": errors.best,
        "steps_not_finite": tuned.steps_not_finite,
    }
    return account if experts is None else account | _account_for_experts(bench, experts)


def _account_for_experts(bench: Workbench, counted: ExpertTokens) -> dict[str, int | None]:
    """Return what reached the experts, for the record; log it, and warn of those that too few tokens reached."""
    calibration = bench.config.calibration
    if counted.fewest is not None:
        log.info(
            "%d experts were calibrated on the tokens that reach each, %d at the least",
            counted.experts - counted.rounded,
            counted.fewest,
        )
    if counted.few:
        channels = f"{counted.few} of {counted.experts} experts got fewer calibration tokens than they have channels"
        done = "All were calibrated on what they got"
        if counted.rounded:
            done = (
                f"The {counted.rounded} with fewer than {LEAST_TOKENS:.0%} of that were rounded to nearest on the "
                "scales of least weight error, the others calibrated on what they got"
            )
        bench.result.warnings.warn(
            f"ptq.method: {channels}, {counted.unreached} of them none. {done}. More calibration.samples "
            f"({calibration.samples} here) or a larger calibration.length ({calibration.length}) reach more"
        )
    return {f"experts{f'_{name}' * (name != 'experts')}": count for name, count in asdict(counted).items()}


def _account_for_tuning(bench: Workbench, tuning: Tuning) -> dict[str, int | float | None]:
    """Return what tuning did, for the record; warn of blocks that it could not tune."""
    if tuning.not_finite:
        bench.result.warnings.warn(
            f"ptq.method: {len(tuning.not_finite)} of {tuning.tuned + tuning.left} decoder blocks "
            f"({', '.join(map(str, tuning.not_finite))}, counted from 0) have outputs that are not finite on the "
            "calibration tokens; they were not tuned, and have the weights that GPTQ chose"
        )
    return {
        "blocks_tuned": tuning.tuned,
        "blocks_left": tuning.left,
        "blocks_not_finite": len(tuning.not_finite),
        "error_left": tuning.error_left,
    }


def _solved(
    bench: Workbench,
    recipe: Recipe,
    ptq: PTQConfig,
    artefact: Artefact | None = None,
    progress: Progress = silent,
) -> SolvedWeights:
    tune = None
    if steps := ptq.tuning_steps:
        groups = Groups.draw(bench.sequences, bench.model.device)
        batches, tune = groups.batches, BlockTuning(bench.model, steps, groups)
    else:
        batches = unpadded_batches(bench.sequences, bench.model.device)
    return solve_weights(bench.model, recipe, bench.result.prepared, batches, solver(ptq), artefact, progress, tune)


def calibrated_weights(bench: Workbench, recipe: Recipe) -> dict[str, Encoded]:
    """Return the weights as the configured method quantizes them, which is calibrated; nothing is kept."""
    ptq = bench.config.ptq
    solved = _solved(bench, recipe, ptq.start or ptq)
    return solved.weights if ptq.start is None else _finetuned(bench, recipe, solved).weights


def _finetuned(bench: Workbench, recipe: Recipe, solved: SolvedWeights, progress: Progress = silent) -> Tuned:
    steps = bench.config.ptq.steps
    return finetune(bench.model, recipe, bench.result.prepared, bench.sequences, solved.weights, steps, progress)
