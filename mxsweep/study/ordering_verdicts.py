"""Say of each published ordering, and of each published difference, whether a study's trainings agree with it.

Two items are compared in runs that have everything else in common. One step of an ordering agrees where the 95 %
interval of the difference is on the published side of 0, disagrees where it is on the other side, and cannot be told
where it holds 0; for two that were published as equal, it agrees where the interval is within what counts as equal.
An ordering disagrees if any of its steps does, and agrees if all do that this study has runs for. Losses of which one
seed is in common are never judged: nothing is known of what another seed would do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mxsweep.results.metrics import LOSS
from mxsweep.results.rows import Row, label
from mxsweep.results.studies import STUDY
from mxsweep.results.trainings import read_roles
from mxsweep.statistics.paired_tests import MeanDifference, compare_means
from mxsweep.study.finding import format_range, run_ids, with_minus_signs
from mxsweep.study.operand_features import BASELINE, Features, meets, operand_features, without
from mxsweep.study.published_orderings import Item, Ordering, PublishedDifference, PublishedTrainings
from mxsweep.study.trained_configs import SEED, LossDifference, TrainedConfig, as_array, loss_values
from mxsweep.study.training_ranking import Ranked, TrainingStudy

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"
ONE_SEED, OVER_OPERANDS = "one seed in common", "operands"
MOST_STEPS = 6  # whose numbers are given
NEAR = 0.005  # nats: published differences are of other models and data, and one study's repeat no better than this
# Knobs that are no difference by themselves: formats, which features tell, who computes, and where a run lies.
OF_FORMATS = {"format", "recipe", "matmuls", "block", "scale", "rounding", "symmetric", "tensor", "ptq", SEED}
OF_FORMATS |= {"custom", "arithmetic", "backend", STUDY}


@dataclass(frozen=True)
class Verdict:
    """Hold what this study says of something published.

    Attributes:
        verdict: AGREES, DISAGREES or CANNOT_TELL.
        ours: the numbers, or what there is no run of.
        runs: ids of those that it rests on.
        is_studied: whether any run here is of what was published.
    """

    name: str
    source: str
    verdict: str
    ours: str
    runs: tuple[str, ...] = ()
    is_studied: bool = True


@dataclass(frozen=True)
class _Found:
    """Hold an item as this study has it: one config, or the two of a gain; `rest` is what else they are."""

    item: Item
    configs: tuple[TrainedConfig, ...]
    rest: Features | None  # None of a baseline, which goes with all


def judge_published(published: PublishedTrainings, study: TrainingStudy) -> list[Verdict]:
    """Judge everything that is published, in its order."""
    features = {id(config): _features(config) for config in study.configs}
    judged = [_judge_ordering(ordering, study, features) for ordering in published.orderings]
    return judged + [_judge_difference(one, study, features) for one in published.differences]


def _features(config: TrainedConfig) -> Features:
    """Return a config's features, those of operands and what else its knobs are."""
    row = next(iter(config.rows.values()))
    others = {
        f"knob {name}": label(value)
        for name, value in row.knobs.items()
        if name.split(".")[0].split("_")[0] not in OF_FORMATS and "digest" not in name
    }
    return {**operand_features(row), **(others if not row.is_baseline else {})}


def _judge_ordering(ordering: Ordering, study: TrainingStudy, features: Mapping[int, Features]) -> Verdict:
    steps: list[tuple[str, str]] = []
    rows: list[Row] = []
    found = {item: list(_find(item, ordering, study, features)) for level in ordering.levels for item in level}
    # What stands beside the baseline alone says nothing of an order.
    needed = min(2, sum(not item.is_baseline for item in found))
    rests = {tuple(sorted(one.rest.items())) for many in found.values() for one in many if one.rest is not None}
    for rest in sorted(rests):
        levels = [
            [
                one
                for item in level
                for one in found[item]
                if one.rest is None or tuple(sorted(one.rest.items())) == rest
            ]
            for level in ordering.levels
        ]
        there = [level for level in levels if level]
        if len({one.item for level in there for one in level if one.rest is not None}) < needed:
            continue
        pairs = [(a, b, False) for worse, better in itertools.pairwise(there) for a in worse for b in better]
        pairs += [(a, b, True) for level in there for a, b in itertools.combinations(level, 2)]
        for a, b, equal in pairs:
            if not _go_together(a, b):
                continue
            step = _step(a, b, equal, ordering, study)
            if step is not None:
                where = f" ({a.configs[0].name})" if len(rests) > 1 and a.rest is not None else ""
                steps.append((step[0], step[1] + where))
                rows += [row for one in (a, b) for config in one.configs for row in config.rows.values()]
    if not steps:
        missing = [item.name for item, many in found.items() if not many]
        ours = f"no run here of {', '.join(missing)}" if missing else "no two runs here that differ in this alone"
        is_studied = any(many for item, many in found.items() if not item.is_baseline)
        return Verdict(ordering.name, ordering.source, CANNOT_TELL, ours, is_studied=is_studied)
    verdicts = {verdict for verdict, _ in steps}
    verdict = DISAGREES if DISAGREES in verdicts else AGREES if verdicts == {AGREES} else CANNOT_TELL
    # What decides comes first.
    told = [text for verdict_of, text in steps if verdict_of == verdict]
    told += [text for verdict_of, text in steps if verdict_of != verdict]
    ours = "; ".join(told[:MOST_STEPS]) + (f"; and {len(told) - MOST_STEPS} more" if len(told) > MOST_STEPS else "")
    return Verdict(ordering.name, ordering.source, verdict, ours, tuple(run_ids(rows)))


def _go_together(a: _Found, b: _Found) -> bool:
    """Return whether two can be compared: no two baselines, and a baseline only with configs whose own it is."""
    if a.rest is not None and b.rest is not None:
        return True
    if a.rest is None and b.rest is None:
        return False
    baseline, other = (a, b) if a.rest is None else (b, a)
    own = [id(row) for config in other.configs for row in config.baseline.values()]
    return any(id(row) in own for row in baseline.configs[0].rows.values())


def _find(item: Item, ordering: Ordering, study: TrainingStudy, features: Mapping[int, Features]) -> Iterator[_Found]:
    """Yield the configs that an item names; of a gain the pairs that differ in nothing else."""
    if item.is_baseline:
        yield from (_Found(item, (one,), None) for one in study.configs if one.is_baseline)
        return
    items = [one for level in ordering.levels for one in level]
    conditions_of = [conditions for one in items for conditions in (one.conditions, one.to or {})]
    varied = {pattern for conditions in conditions_of for pattern in conditions} - {BASELINE}
    # An operand that one of the items leaves as it is has no block, scale and rounding there.
    varied |= {
        pattern.removesuffix("element") + "*"
        for conditions in conditions_of
        for pattern, wanted in conditions.items()
        if pattern.endswith(".element") and "none" in (wanted if isinstance(wanted, list) else [wanted])
    }

    def those(conditions: Mapping[str, Any]) -> list[tuple[TrainedConfig, Features]]:
        wanted = {**ordering.where, **conditions}
        named = [one for one in study.configs if not one.is_baseline and meets(features[id(one)], wanted)]
        return [(one, without(features[id(one)], varied)) for one in named]

    if item.to is None:
        yield from (_Found(item, (one,), rest) for one, rest in those(item.conditions))
        return
    for (before, rest), (after, other) in itertools.product(those(item.conditions), those(item.to)):
        if rest == other:
            yield _Found(item, (before, after), rest)


def _step(
    worse: _Found, better: _Found, equal: bool, ordering: Ordering, study: TrainingStudy
) -> tuple[str, str] | None:
    """Return a verdict on two items and its numbers; None where they cannot be compared."""
    a, b = worse.item.name, better.item.name
    diverged = [not all(config.losses for config in each.configs) for each in (worse, better)]
    if ordering.measure == LOSS and any(diverged):
        if all(diverged):
            return CANNOT_TELL, f"{a} and {b} diverged"
        said = f"{a if diverged[0] else b} diverged, {b if diverged[0] else a} did not"
        return (AGREES if diverged[0] and not equal else DISAGREES), said
    measured = _measured(worse, better, ordering, study)
    if measured is None:
        return None
    unit = "dB" if ordering.measure != LOSS else "nats"
    sign = "of gains " if worse.item.to is not None else ""
    said = f"{a} against {b}: {sign}{_numbers(measured.measured)} {unit}"
    if measured.on_one_seed:
        return CANNOT_TELL, f"{said}, {ONE_SEED}"
    return _side(measured.measured, ordering.within if equal else None), said


def _numbers(measured: MeanDifference) -> str:
    interval = "" if math.isnan(measured.low) else f" [{measured.low:+.4f}, {measured.high:+.4f}]"
    return with_minus_signs(f"{measured.difference:+.4f}{interval}")


def _side(measured: MeanDifference, within: float | None) -> str:
    """Return the verdict on a difference that is to be above 0 or, with `within`, as small as that."""
    low, high = measured.low, measured.high
    if math.isnan(low):
        return CANNOT_TELL
    if within is None:
        return AGREES if low > 0 else DISAGREES if high < 0 else CANNOT_TELL
    return AGREES if -within <= low and high <= within else DISAGREES if low > within or high < -within else CANNOT_TELL


def _measured(worse: _Found, better: _Found, ordering: Ordering, study: TrainingStudy) -> LossDifference | None:
    """Return how much better the second is: of losses how much lower, of gains and ratios how much higher."""
    if ordering.measure != LOSS:
        ratios = [_ratios(each.configs[0], ordering.operands) for each in (worse, better)]
        keys = [key for key in ratios[0] if key in ratios[1]]
        if not keys:
            return None
        return LossDifference(compare_means(*(np.array([each[key] for key in keys]) for each in ratios)), OVER_OPERANDS)
    a, b = worse.configs, better.configs
    if len(a) == len(b) == 1:
        for pair in study.pairs:  # which know the spread of all
            if {id(pair.worse), id(pair.better)} == {id(a[0]), id(b[0])}:
                one = pair.difference.measured
                turned = MeanDifference(one.n, -one.difference, -one.high, -one.low, one.p)
                return LossDifference(one if pair.worse is a[0] else turned, pair.difference.over)
    found = loss_values([config.rows for config in (*a, *b)])
    if found is None or len(a) != len(b):
        return None
    values = [as_array(each, found[0][0]) for each in found[0]]
    if len(a) == 1:
        return LossDifference(compare_means(-values[0], -values[1]), found[1])
    terms = list(zip((-1.0, 1.0, 1.0, -1.0), (*a, *b), strict=True))
    if study.spread is not None and (pooled := study.spread.contrast(terms)) is not None:
        return pooled
    return LossDifference(compare_means(values[0] - values[1], values[2] - values[3]), found[1])


def _ratios(config: TrainedConfig, operands: Sequence[str]) -> dict[Hashable, float]:
    """Return the mean signal over error in dB of each operand of each module, over measured steps and seeds."""
    sums: dict[Hashable, list[float]] = {}
    for row in config.rows.values():
        roles = read_roles(row.run)
        if roles is None:
            continue
        columns = roles.texts["module"], roles.texts["operand"], roles.measures["snr_db"]
        for module, operand, ratio in zip(*columns, strict=True):
            if operand in operands and math.isfinite(ratio):
                sums.setdefault((module, operand), []).append(float(ratio))
    return {key: sum(values) / len(values) for key, values in sums.items()}


def _judge_difference(one: PublishedDifference, study: TrainingStudy, features: Mapping[int, Features]) -> Verdict:
    """Judge a difference from the baseline: it agrees where ours is within what was reported, give or take NEAR."""
    theirs = format_range([one.low, one.high], "+.4f")
    alike = [each for each in study.ranked if meets(features[id(each.config)], one.conditions)]
    known = [each for each in alike if each.difference is not None]
    if not known:
        return Verdict(one.name, one.source, CANNOT_TELL, f"theirs {theirs}; no run here of it", is_studied=False)
    verdicts = {_near(each, one) for each in known}
    verdict = DISAGREES if verdicts == {DISAGREES} else AGREES if AGREES in verdicts else CANNOT_TELL
    parts = []
    for each in known[:MOST_STEPS]:
        assert each.difference is not None
        alone = f" ({ONE_SEED})" if each.on_one_seed else ""
        parts.append(f"{each.config.name} {_numbers(each.difference.measured)}{alone}")
    rows = [row for each in known for row in each.config.rows.values()]
    ours = f"theirs {theirs}; ours {'; '.join(parts)} nats"
    return Verdict(one.name, one.source, verdict, ours, tuple(run_ids(rows)))


def _near(each: Ranked, one: PublishedDifference) -> str:
    assert each.difference is not None
    measured = each.difference.measured
    if math.isnan(measured.low) or each.on_one_seed:
        return CANNOT_TELL
    if measured.high < one.low - NEAR or measured.low > one.high + NEAR:
        return DISAGREES
    return AGREES if one.low - NEAR <= measured.difference <= one.high + NEAR else CANNOT_TELL
