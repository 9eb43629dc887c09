"""Rank trained configs by what they lose to the baseline, and say which of them can be told apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import enumerate_names
from mxsweep.results.rows import label
from mxsweep.results.trainings import unread_files
from mxsweep.statistics.paired_tests import ALPHA, Residual, contrast_given, holm, residual_of
from mxsweep.study.finding import Finding, format_runs, run_ids
from mxsweep.study.kept_layers import describe_kept
from mxsweep.study.trained_configs import (
    OVER_SEEDS,
    OVER_SEQUENCES,
    RECIPE,
    SEED,
    LossDifference,
    TrainedConfig,
    as_array,
    compare_configs,
    has_trainings,
    loss_values,
    trained_configs,
)

MOST_PAIRS = 5000
MOST_NAMED = 4  # pairs in a sentence
ONE_SEED = (
    "Configs with one seed in common are compared over the held-out sequences: how far another seed would move them is "
    "not in their intervals."
)


@dataclass(frozen=True)
class Ranked:
    """Hold a config's place.

    Attributes:
        difference: of its validation loss from the baseline's; None without a baseline, or where all diverged.
        p: adjusted by Holm's method over the configs that were compared with the baseline over seeds, or over those of
            one seed in common.
        speed: tokens a second, divided by the baseline's, the mean over seeds; None where not known.
    """

    config: TrainedConfig
    difference: LossDifference | None = None
    p: float | None = None
    speed: float | None = None

    @property
    def on_one_seed(self) -> bool:
        """Return whether it has one seed alone in common with the baseline."""
        return self.difference is not None and self.difference.on_one_seed


@dataclass(frozen=True)
class Pair:
    """Hold two configs compared: `worse` has the higher mean loss; `p` is adjusted over all pairs alike in `over`."""

    worse: TrainedConfig
    better: TrainedConfig
    difference: LossDifference
    p: float

    @property
    def told_apart(self) -> bool:
        """Return whether the two differ by more than chance; with one seed in common, on that seed."""
        return self.p < ALPHA


@dataclass(frozen=True)
class Spread:
    """Hold how much the losses of quantized configs spread from seed to seed, after what config and seed explain.

    A baseline lacks what quantizing adds to a loss from seed to seed, so no spread is taken over it and the others.
    """

    configs: list[TrainedConfig]
    residual: Residual

    def contrast(self, terms: Sequence[tuple[float, TrainedConfig]]) -> LossDifference | None:
        """Test a sum of configs' losses, each times its coefficient, over the seeds that all of them have.

        None where one has no part in the spread, where two seeds are not in common, or where all terms cancel.
        """
        summed: dict[int, float] = {}
        for coefficient, config in terms:
            summed[id(config)] = summed.get(id(config), 0.0) + coefficient
        left = {id(config): config for _, config in terms if summed[id(config)]}
        found = loss_values([config.rows for config in left.values()]) if left else None
        if found is None or found[1] != OVER_SEEDS or any(config not in self.configs for config in left.values()):
            return None
        values = np.array([as_array(each, found[0][0]) for each in found[0]])
        return LossDifference(contrast_given(values, [summed[each] for each in left], self.residual), OVER_SEEDS)


@dataclass(frozen=True)
class TrainingStudy:
    """Hold what a group's trainings say.

    Attributes:
        ranked: the best first, baselines among them; those that diverged with some seed last.
        pairs: all pairs of configs that could be compared, neighbours in the ranking and others, but for a config and
            its own baseline, which the ranking compares.
        spread: of quantized configs from seed to seed; None of too few.
        notes: what a reader of the intervals must know.
        unread: files that could not be read, and why.
    """

    ranked: list[Ranked]
    pairs: list[Pair]
    spread: Spread | None = None
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def configs(self) -> list[TrainedConfig]:
        """Return the configs, the best first."""
        return [each.config for each in self.ranked]


def study_trainings(results: Results, group: Group) -> TrainingStudy | None:
    """Rank the group's trained configs; None of a group of which nothing was trained."""
    if not has_trainings(group):
        return None
    configs = trained_configs(group, results.shown)
    ranked = _ranked(configs)
    finished = [each.config for each in ranked if each.config.losses]
    spread = _spread(finished)
    pairs = _pairs(finished, spread)
    return TrainingStudy(ranked, pairs, spread, _notes(ranked, pairs), unread_files(group.rows))


def describe_trainings(study: TrainingStudy) -> list[Finding]:
    """Say which trained configs lose something to the baseline, which cannot be told from it, and which diverged.

    First of all where they differ in what they leave unquantized.
    """
    compared = [each for each in study.ranked if each.difference is not None and each.p is not None]
    findings = describe_kept(study.configs)
    for each in study.ranked:
        if each.config.diverged:
            rows = [each.config.rows[seed] for seed in each.config.diverged]
            steps = ", ".join(f"{step:g}" for step in each.config.diverged.values() if not math.isnan(step))
            where = f" (step {steps})" if steps else ""
            text = f"{each.config.name} diverged in {len(rows)} of {format_runs(len(each.config.rows))}{where}."
            findings.append(Finding("training", text, run_ids(rows)))
    worse = [each for each in compared if each.p is not None and each.p < ALPHA and _lost(each) > 0]
    equal = [each for each in compared if each.p is not None and each.p >= ALPHA]
    for verdict, alike in (("worse by more than chance than", worse), ("not to be told from", equal)):
        if alike:
            parts = [
                f"{each.config.name} ({format_difference(each.difference)}{', on one seed' * each.on_one_seed})"
                for each in alike
            ]
            text = (
                f"{len(alike)} of {len(compared)} trained configs {'is' if len(alike) == 1 else 'are'} {verdict} the "
                f"baseline, by validation loss in nats a token: {'; '.join(parts)}."
            )
            rows = [row for each in alike for row in each.config.rows.values()]
            findings.append(Finding("training", text, run_ids(rows)))
    return [*findings, *_describe_pairs(study.pairs)]


def _describe_pairs(pairs: Sequence[Pair]) -> list[Finding]:
    """Say whether two quantized configs can be told apart, or which of more can; nothing without such a pair."""
    pairs = [pair for pair in pairs if not (pair.better.is_baseline or pair.worse.is_baseline)]
    apart = [pair for pair in pairs if pair.told_apart]
    by = "by validation loss in nats a token"
    if not pairs:
        return []
    if len(pairs) == 1:
        (pair,) = pairs
        verdict = "worse by more than chance than" if apart else "not to be told from"
        text = f"{pair.worse.name} is {verdict} {pair.better.name}, {by}: {_measured(pair)}."
    else:
        named = "; ".join(f"{one.worse.name} above {one.better.name} ({_measured(one)})" for one in apart[:MOST_NAMED])
        more = f" and {len(apart) - MOST_NAMED} more" if len(apart) > MOST_NAMED else ""
        count = f"{len(apart) or 'None'} of {len(pairs)} pairs of trained configs can be told apart, {by}"
        text = f"{count}: {named}{more}." if apart else f"{count}."
    rows = [row for pair in apart or pairs for one in (pair.worse, pair.better) for row in one.rows.values()]
    return [Finding("training", text, run_ids(rows))]


def _measured(pair: Pair) -> str:
    return format_difference(pair.difference) + ", on one seed" * pair.difference.on_one_seed


def format_difference(difference: LossDifference | None) -> str:
    """Return a difference of losses and its 95 % interval, nats a token; nothing of one that is not known."""
    if difference is None:
        return ""
    one = difference.measured
    interval = "" if math.isnan(one.low) else f" [{one.low:+.4f}, {one.high:+.4f}]"
    return f"{one.difference:+.4f}{interval}".replace("-", "−")


def _lost(each: Ranked) -> float:
    return each.difference.measured.difference if each.difference is not None else math.nan


def _ranked(configs: Sequence[TrainedConfig]) -> list[Ranked]:
    differences = [compare_configs(one.rows, one.baseline) if one.baseline else None for one in configs]
    ranked = [
        Ranked(config, difference, None if math.isnan(p) else p, _speed(config))
        for config, difference, p in zip(configs, differences, _adjusted(differences), strict=True)
    ]

    def place(each: Ranked) -> tuple[int, float, float]:
        share = len(each.config.diverged) / len(each.config.rows)
        lost = 0.0 if each.config.is_baseline else _lost(each)
        return int(share > 0), share, math.inf if math.isnan(lost) else lost

    return sorted(ranked, key=place)


def _adjusted(differences: Sequence[LossDifference | None]) -> list[float]:
    """Return p values adjusted by Holm's method, those over seeds and those of one seed each among themselves."""
    families = [
        holm([one.measured.p if one is not None and one.over == over else math.nan for one in differences])
        for over in (OVER_SEEDS, OVER_SEQUENCES)
    ]
    return [b if math.isnan(a) else a for a, b in zip(*families, strict=True)]


def _speed(config: TrainedConfig) -> float | None:
    speeds = [
        (row.number("training", "tokens_per_s"), config.baseline[seed].number("training", "tokens_per_s"))
        for seed, row in config.rows.items()
        if seed in config.baseline
    ]
    ratios = [ours / theirs for ours, theirs in speeds if ours is not None and theirs]
    return float(np.mean(ratios)) if ratios else None


def _pairs(configs: Sequence[TrainedConfig], spread: Spread | None) -> list[Pair]:
    """Compare all pairs of configs but those of the ranking, quantized ones with the spread that all of these show.

    A baseline is compared by the paired t test, here as in the ranking.
    """
    found: list[tuple[TrainedConfig, TrainedConfig, LossDifference]] = []
    asked = ((a, b) for a, b in itertools.combinations(configs, 2) if not (_has(a, b) or _has(b, a)))
    for a, b in itertools.islice(asked, MOST_PAIRS):
        pooled = None if spread is None else spread.contrast([(-1.0, a), (1.0, b)])
        difference = pooled or compare_configs(b.rows, a.rows)
        if difference is not None and not math.isnan(difference.measured.p):
            found.append((a, b, difference))
    adjusted = _adjusted([difference for _, _, difference in found])
    pairs = []
    for (a, b, difference), p in zip(found, adjusted, strict=True):
        if difference.measured.difference < 0:
            a, b, difference = b, a, _turned(difference)
        pairs.append(Pair(b, a, difference, p))
    return pairs


def _has(config: TrainedConfig, baseline: TrainedConfig) -> bool:
    """Return whether a config is compared with this baseline in the ranking."""
    return any(baseline.rows.get(seed) is row for seed, row in config.baseline.items())


def _spread(configs: Sequence[TrainedConfig]) -> Spread | None:
    """Return the spread of the quantized configs with two seeds or more, not all of which need have all seeds.

    None of fewer than three such configs.
    """
    quantized = [one for one in configs if len(one.losses) > 1 and not one.is_baseline]
    if len(quantized) < 3:
        return None
    seeds = list(dict.fromkeys(seed for one in quantized for seed in one.losses))
    losses = [[one.losses.get(seed, math.nan) for seed in seeds] for one in quantized]
    residual = residual_of(np.array(losses))
    return None if residual is None else Spread(quantized, residual)


def _turned(difference: LossDifference) -> LossDifference:
    one = difference.measured
    return LossDifference(type(one)(one.n, -one.difference, -one.high, -one.low, one.p), difference.over)


def _notes(ranked: Sequence[Ranked], pairs: Sequence[Pair]) -> list[str]:
    overs = {each.difference.over for each in ranked if each.difference} | {pair.difference.over for pair in pairs}
    notes = [*_over_seeds(ranked), *([ONE_SEED] if OVER_SEQUENCES in overs else [])]
    alone = [each.config.name for each in ranked if not each.config.is_baseline and not each.config.baseline]
    if shared := _shared_recipe([each.config for each in ranked if not each.config.is_baseline]):
        notes.append(f"Same in every quantized run: {shared}.")
    if alone:
        named = enumerate_names(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        notes.append(f"Without a baseline of the same {SEED}: {named}.")
    return notes


def _over_seeds(ranked: Sequence[Ranked]) -> list[str]:
    """Say that intervals of the ranking are over seeds, how many, and what those of single runs are over."""
    counts = sorted({each.difference.measured.n for each in ranked if each.difference and not each.on_one_seed})
    if not counts:
        return []
    seeds, degrees = (" or ".join(f"{count - less:g}" for count in counts) for less in (0, 1))
    return [
        f"Intervals and p of configs here are over seeds (a paired t test of {seeds} seeds, {degrees} "
        f"degree{'s' * (counts != [2])} of freedom), those of single runs over the held-out sequences of one seed: how "
        "far another seed would move a loss is in the first alone."
    ]


def _shared_recipe(configs: Sequence[TrainedConfig]) -> str:
    """Return the recipe, else the format, that all have and none is named by; nothing where there is no such."""
    knobs = [row.knobs for config in configs for row in config.rows.values()]
    for name in (RECIPE, "format"):
        texts = {label(each[name]) if name in each else "" for each in knobs}
        if len(texts) == 1 and (text := texts.pop()):
            named = any({text, f"{name}={text}"} & set(config.name.split()) for config in configs)
            return "" if named else f"{name}={text}"
    return ""
