"""Work out what a run asks for before its model is quantized: matrices of inputs, formats under a budget, key factors,
rotations, weights.

Each remedy is kept on disk under a hash of all that it depends on, so that a run that shares it with another does not
work it out again, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.calibrate.budget import spend
from mxsweep.calibrate.budget_recipe import recipe_yaml
from mxsweep.calibrate.choice_search import (
    Choices,
    ChoiceSearch,
    Confirmation,
    Judge,
    confirm_choice,
    search_choices,
)
from mxsweep.calibrate.finetuning import refuse_too_few
from mxsweep.calibrate.inputs import calibrate_inputs, read_calibration
from mxsweep.calibrate.last_words import LastWords, find_last_words, positions_for
from mxsweep.calibrate.leak import refuse_evaluated
from mxsweep.calibrate.sequential import NotSolvable
from mxsweep.calibrate.texts import Calibration, calibration_tokens
from mxsweep.calibrate.transforms import calibrate_transforms
from mxsweep.calibrate.weight_remedy import calibrated_weights, solve_for_weights
from mxsweep.calibrate.weights import clipped, weight_sites
from mxsweep.calibrate.workbench import Preparation, Workbench
from mxsweep.config.rules_config import ALL_TOKENS, LAST_WORDS
from mxsweep.config.run_config import RunConfig
from mxsweep.config.run_identity import SEARCH_RULE
from mxsweep.config.weight_methods import ROUND_TO_NEAREST
from mxsweep.evaluate.input_limits import refuse_unknown_tokens
from mxsweep.formats.recipe import DYNAMIC, STATIC, KVOptions, Recipe
from mxsweep.forward.sequence_loss import measure_loss
from mxsweep.model.attention import refuse_attention
from mxsweep.model.kv import key_factors
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.model.shared_scales import shared_maxima
from mxsweep.model.sites import rotations_of
from mxsweep.numerics import Encoded, MXFormat
from mxsweep.terminal.progress_callback import Progress

log = logging.getLogger(__name__)

READ_FOR_WORDS = 4  # times calibration.samples, by a search that looks at last words: these are few, and spread more


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
    bench = Workbench(model, config, progress)
    if config.needs_calibration:
        refuse_attention(model, config.recipe)  # which quantizing the model would refuse, after it
        calibration = _calibration_of(bench, tokenizer, tasks, max_length)
        bench.use_calibration(calibration)
        if config.ptq.start is not None and config.quantizes_weights:
            refuse_too_few(calibration.sequences)
        if config.searches:  # what it reads is refused before anything is worked out
            read = _read_of_search(bench, calibration, tokenizer, tasks, max_length)
    # In this order: each sees what was worked out before it.
    if config.transforms_inputs:
        calibrate_transforms(bench)
    if config.ptq.budget is not None:
        _spend_budget(bench, config.ptq.budget, overrides)
    if config.recipe.kv.smooth > 0:
        _smooth_keys(bench)
    if config.searches:
        _search_choices(bench, *read)
    if config.calibrates_inputs:
        calibrate_inputs(bench)
    if config.ptq.is_solved and config.quantizes_weights:
        solve_for_weights(bench)
    return bench.result


def _calibration_of(
    bench: Workbench, tokenizer: PreTrainedTokenizerBase, tasks: Mapping[str, Any], max_length: int, times: int = 1
) -> Calibration:
    """Return ``times`` as many sequences as the config says, which are known not to be evaluated."""
    config = bench.config
    wanted = replace(config.calibration, samples=times * config.calibration.samples)
    calibration = calibration_tokens(wanted, config.model, tokenizer, max_length)
    refuse_unknown_tokens(calibration.sequences, bench.model, tokenizer)
    refuse_evaluated(calibration, tasks, config.task, config.calibration)
    return calibration


def _read_of_search(
    bench: Workbench,
    calibration: Calibration,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    max_length: int,
) -> tuple[Calibration, LastWords | None]:
    """Return what the losses of a search are taken of, and its last words where they are of those."""
    if positions_for(bench.config.rotation.positions, tasks) == ALL_TOKENS:
        return calibration, None
    read = _calibration_of(bench, tokenizer, tasks, max_length, READ_FOR_WORDS)
    return read, find_last_words(read)


def _spend_budget(bench: Workbench, budget: float, overrides: Sequence[str]) -> None:
    """Choose a format for each module."""
    result, candidates = bench.result, bench.config.budget_formats
    # The artefact is of the costs, which hold for any budget, and for any keys and values.
    without_kv = replace(result.recipe, key=None, value=None, kv=KVOptions())
    written = {name: repr(formats) for name, formats in candidates.items()}
    artefact = bench.artefact("costs", without_kv, candidates=written)
    with artefact.lock(), bench.accounted("budget", [artefact]) as account:
        known = artefact.load_json("costs")
        result.recipe, choice, spent = spend(
            bench.model,
            result.recipe,
            candidates,
            budget,
            bench.sequences,
            bench.phase("budget"),
            known=known,
            keep=lambda costs: artefact.save_json("costs", costs),
            fuse=bench.config.ptq.fuse,
            prepared=result.prepared,
        )
        costs = spent.pop("costs")
        account |= spent | {"cached": known == costs}
    fixed = bench.config.modules
    result.files["experiment/budget.yaml"] = recipe_yaml(choice, fixed=fixed, overrides=overrides)


def _smooth_keys(bench: Workbench) -> None:
    """Work out what keys are divided by."""
    kv = bench.result.recipe.kv
    artefact = bench.artefact("key_factors", None, smooth=kv.smooth, rope=kv.rope)
    with artefact.lock(), bench.accounted("smooth", [artefact]) as account:
        factors = artefact.load("factors")
        account["cached"] = factors is not None
        if factors is None:
            factors = key_factors(bench.model, lambda: read_calibration(bench), kv.smooth, kv.rope)
            artefact.save("factors", factors)
        account["largest_factor"] = max((float(factor.max()) for factor in factors.values()), default=1.0)
    bench.result.prepared = replace(bench.result.prepared, key_factors=factors)


def _search_choices(bench: Workbench, read: Calibration, words: LastWords | None) -> None:
    """Search for the products to rotate, and for the rounding of scales.

    Args:
        read: what losses are taken of.
        words: of which tokens; None for all.
    """
    config, result = bench.config, bench.result
    positions = ALL_TOKENS if words is None else LAST_WORDS
    # Inputs are calibrated in the basis that is found.
    is_static = result.recipe.activation_scale == STATIC
    before = replace(result.recipe, activation_scale=DYNAMIC) if is_static else result.recipe
    rotations = rotations_of(bench.model, config.candidates) if config.candidates else ()
    choices = Choices(before, rotations, {name: before.with_scale_rounding(name) for name in config.scale_roundings})
    counts = np.array([[len(sequence) - 1 for sequence in read.sequences]])
    if words is not None:
        counts = np.vstack([words.counts, counts])
    asked: list[Artefact] = []  # of each loss
    first, *confirming = (_judge(bench, weights, read, words, asked) for weights in config.judges)
    with bench.accounted("search", asked) as account:
        search = search_choices(choices, first, counts, bench.phase("search"))
        account |= {"positions": positions, "calibration": read.description, **search.as_dict()}
        log.info("%s", _in_words(search, positions))
        chosen = search.chosen
        if chosen != choices.start:
            for judge in confirming:
                confirmed = confirm_choice(choices, search, judge, counts, bench.phase("search, confirmed"))
                log.info("%s", _confirmed_in_words(confirmed))
                chosen = confirmed.chosen
                account |= chosen.as_dict() | {"confirmed": confirmed.as_dict()}
                account["cached"] &= confirmed.computed == 0
    result.recipe = replace(choices.under(chosen), activation_scale=result.recipe.activation_scale)


def _in_words(search: ChoiceSearch, positions: str) -> str:
    """Say what a search chose, and what it gains."""
    gain, all_tokens = search.gain, search.all_tokens
    each, of = ("token", "") if positions == ALL_TOKENS else ("word", f" of {search.counted:,} last words")
    if len(search.path) == 1:
        return (
            f"Search: none of the changes tried ({len(search.steps)}) lowers the calibration loss{of} significantly, "
            f"{search.loss_before:.4f} nats a {each} over {gain.n} sequences; as without it, {search.chosen.in_words}"
        )
    beside = f"; that of all tokens by {all_tokens.difference:+.4f} nats a token" if all_tokens is not None else ""
    return (
        f"Search: {search.chosen.in_words}; the calibration loss{of} goes from "
        f"{search.loss_before:.4f} to {search.loss_after:.4f} nats a {each} ({gain.difference:+.4f} [{gain.low:+.4f}, "
        f"{gain.high:+.4f}] over {gain.n} sequences){beside}"
    )


def _confirmed_in_words(confirmed: Confirmation) -> str:
    """Say what each choice that was compared does with the run's own weights, and which is kept."""
    said = [
        f"{choice.in_words}, from {confirmed.loss_before:.4f} to {one.loss:.4f} ({one.difference.difference:+.4f} "
        f"[{one.difference.low:+.4f}, {one.difference.high:+.4f}]), {'kept' if one.is_better else 'undone'}"
        for choice, one in confirmed.compared
    ]
    return f"With {confirmed.weights}'s weights: {'; '.join(said)}"


def _judge(bench: Workbench, weights: str, read: Calibration, words: LastWords | None, asked: list[Artefact]) -> Judge:
    """Return the judge that takes the calibration losses of each sequence with weights of one kind.

    Losses are of all tokens; where there are words, of the words, and of all tokens.

    Args:
        weights: how they are quantized, see `Judge`.
        asked: gets the artefact of each loss that is asked for.
    """
    config = bench.config
    proxies = _ClippedWeights(bench.model, bench.result.prepared)

    def measure(candidate: Recipe) -> np.ndarray:
        encoded: Mapping[str, Encoded] = {}
        if weights == "clip":
            encoded = proxies.under(candidate)
        elif weights != ROUND_TO_NEAREST:
            try:
                encoded = calibrated_weights(bench, candidate)
            except NotSolvable as error:
                log.info("Search: the loss of a choice is no number: %s", error)
                return np.full((1 if words is None else 2, len(read.sequences)), math.nan)
        with quantize_model(bench.model, candidate, prepared=replace(bench.result.prepared, weights=encoded)):
            of_tokens = measure_loss(bench.model, read.sequences).of_tokens
        losses = [[each.sum() for each in of_tokens]]
        if words is not None:
            losses.insert(0, [each[of_words].sum() for each, of_words in zip(of_tokens, words.tokens, strict=True)])
        return np.array(losses)

    on = {
        "judge": [weights, config.ptq.of_weights() if weights not in (ROUND_TO_NEAREST, "clip") else None],
        "positions": ALL_TOKENS if words is None else LAST_WORDS,
        "read": read.identity,
        "rule": SEARCH_RULE,
    }

    def losses_of(candidate: Recipe) -> tuple[np.ndarray, bool]:
        artefact = bench.artefact("losses", candidate, **on)
        asked.append(artefact)
        with artefact.lock():
            kept = artefact.load_json("losses")
            losses = measure(candidate) if kept is None else np.array(kept)
            if kept is None:
                artefact.save_json("losses", losses.tolist())
        return losses, kept is not None

    return Judge(weights, losses_of)


class _ClippedWeights:
    """Hold weights on searched scales, in each basis, worked out once: what a search judges by.

    GPTQ for every candidate would take minutes to hours; searched scales are part of it and take seconds.
    """

    def __init__(self, model: PreTrainedModel, prepared: Prepared) -> None:
        self._model, self._prepared = model, prepared
        self._known: dict[tuple[str, MXFormat, tuple[str, int] | None, float | None], Encoded] = {}

    @torch.no_grad()
    def under(self, recipe: Recipe) -> dict[str, Encoded]:
        """Return the weights by module name under a recipe, in host memory."""
        weights, sites = {}, weight_sites(self._model, recipe, self._prepared)
        maxima = shared_maxima(sites, recipe)
        for site in sites:
            maximum = maxima.get(site.name)
            fmt = site.formats.weight
            assert fmt is not None
            # Which other products are rotated changes nothing of this one.
            basis = None if site.rotation is None else (site.rotation.kind, site.rotation.block)
            key = site.name, fmt, basis, None if maximum is None else float(maximum)
            if key not in self._known:
                self._known[key] = clipped(site.weight(), fmt, maximum).to("cpu")
            weights[site.name] = self._known[key]
        return weights
