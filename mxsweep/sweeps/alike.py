"""Find the runs of a sweep that may come out the same: those that differ in their scales' bits or rounding alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mxsweep.config.run_config import RunConfig
from mxsweep.files.digests import json_digest
from mxsweep.formats.scale import DEFAULT_SCALE_BITS
from mxsweep.results.proven import Candidate
from mxsweep.sweeps.execute import SweepRun
from mxsweep.terminal.errors import ConfigError


def groups_of(configs: Sequence[RunConfig | None]) -> list[str | None]:
    """Return the group of each config, of two or more that may come out the same; None of one in no group."""
    keys = [None if config is None else _key(config) for config in configs]
    counts = Counter(keys)
    return [key if counts[key] > 1 else None for key in keys]


def largest_held(config: RunConfig) -> int:
    """Return the largest exponent that every `e8m0` scale of a config holds; its negative is the smallest."""
    return min(fmt.max_scale_exponent for fmt in config.recipe.formats() if fmt.scale_format.is_power_of_two)


def least_lifted(config: RunConfig) -> float:
    """Return the least significand of a block's maximum for which an `e8m0` scale of a config is not as by `floor`."""
    return min(fmt.lifted_from for fmt in config.recipe.formats() if fmt.scale_format.is_power_of_two)


def with_provers(runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Return the runs with those that may prove them, each to keep what it takes to prove another."""
    groups: dict[str, list[Candidate]] = {}
    candidates: list[tuple[str, Candidate] | None] = []
    for run, group in zip(runs, groups_of([run.config for run in runs]), strict=True):
        if run.config is None or group is None:
            candidates.append(None)
            continue
        held = largest_held(run.config)
        candidate = Candidate(
            run.run_id,
            run.folder,
            run.config_hash,
            run.config.scale_bits,
            held,
            run.config.scale_rounding,
            least_lifted(run.config),
        )
        groups.setdefault(group, []).append(candidate)
        candidates.append((group, candidate))
    return [
        dataclasses.replace(run, keeps_exponents=True)
        if found is None
        else dataclasses.replace(
            run,
            keeps_exponents=True,
            candidate=found[1],
            provers=tuple(other for other in groups[found[0]] if other is not found[1]),
        )
        for run, found in zip(runs, candidates, strict=True)
    ]


def provers_first(runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Put, among the runs on each model, the first of each group before all others, which wait for none all the same.

    Where several processes take runs in turn, two of one group would begin at the same time, and prove nothing. Each
    rounding of scales has a first one, as it seldom comes to the same as another.
    """
    models: dict[Any, int] = {}
    seen: set[str] = set()
    places = []
    for run in runs:
        model = models.setdefault(run.config.model if run.config else None, len(models))
        rounding = run.candidate.rounding if run.candidate else None
        is_led = any(prover.run_id in seen for prover in run.provers if prover.rounding == rounding)
        seen.add(run.run_id)
        places.append((model, is_led))
    return [run for _, run in sorted(zip(places, runs, strict=True), key=lambda placed: placed[0])]


def _key(config: RunConfig) -> str | None:
    """Return what a config has in common with those that may come out the same; None where no proof is tried.

    What is worked out before a model is quantized depends on its formats, and may come from a cache: nothing of it is
    proven.
    """
    scaled = any(fmt.scale_format.is_power_of_two for fmt in config.recipe.formats())
    if config.trains or not scaled or _works_out(config):
        return None
    # How scales are rounded may decide whether arithmetic is native, but where exact is asked for.
    rounding = "floor" if config.recipe.arithmetic == "exact" else config.scale_rounding
    try:
        alike = dataclasses.replace(config, scale_bits=DEFAULT_SCALE_BITS, scale_rounding=rounding)
        return json_digest(alike.identity)
    except ConfigError:  # as of a preset that goes with some scale bits only
        return None


def _works_out(config: RunConfig) -> bool:
    """Return whether something is worked out for a run before its model is quantized."""
    return config.needs_calibration or config.ptq.is_solved or config.ptq.budget is not None
