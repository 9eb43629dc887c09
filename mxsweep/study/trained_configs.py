"""Take the trainings of one config together, a run a seed, and compare two configs seed by seed.

Seeds are what differs between trainings of one config: initial weights, order of the data, random numbers. Two configs
are compared over the seeds that both have, since the same seed gives both the same weights and data to begin with. With
one seed alone they are compared over the held-out sequences, and then nothing is known of what another seed would do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mxsweep.config.value_types import as_names
from mxsweep.results.groups import Group, distinguishing_knobs
from mxsweep.results.identity import is_own_baseline
from mxsweep.results.metrics import LOSS
from mxsweep.results.outcomes import read_outcomes
from mxsweep.results.record import VALIDATION
from mxsweep.results.rows import Row, label
from mxsweep.results.trainings import has_trained
from mxsweep.statistics.paired_tests import MeanDifference, compare_means

SEED, RECIPE, KEPT = "seed", "recipe", "matmuls.keep_high"
DERIVED = ("arithmetic", "backend", "format.", "matmuls.")  # knobs that name a config last
OVER_SEEDS, OVER_SEQUENCES = "seeds", "held-out sequences"
BASELINE_NAME = "baseline"
Values = Mapping[Hashable, float]  # nats a token, by seed or by held-out sequence


@dataclass(frozen=True, eq=False)
class TrainedConfig:
    """Hold the trainings of one config.

    Attributes:
        name: the knobs that tell it from others.
        rows: by seed, those that diverged included; of several with one seed the first.
        baseline: the rows, by seed, with nothing quantized and all else the same; empty for a baseline.
    """

    name: str
    rows: Mapping[Hashable, Row]
    baseline: Mapping[Hashable, Row] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Return whether nothing is quantized."""
        return next(iter(self.rows.values())).is_baseline

    @cached_property
    def losses(self) -> dict[Hashable, float]:
        """Return the validation loss by seed, without trainings that diverged."""
        return finite_losses(self.rows)

    @property
    def loss(self) -> float:
        """Return the mean over the seeds; NaN where all diverged."""
        return float(np.mean(list(self.losses.values()))) if self.losses else math.nan

    @cached_property
    def kept(self) -> frozenset[str]:
        """Return the words and patterns of what stays as it is; none of a baseline, of which all does."""
        row = next(iter(self.rows.values()))
        return frozenset() if self.is_baseline else frozenset(map(str, as_names(row.knobs.get(KEPT, ()))))

    @property
    def bits_per_weight(self) -> float | None:
        """Return the bits of a weight of the decoder blocks, what stays as it is included; None where not known."""
        return next((bits for row in self.rows.values() if (bits := row.bits_per_weight) is not None), None)

    @property
    def diverged(self) -> dict[Hashable, float]:
        """Return the step at which a training diverged, by seed; NaN where it is not known."""
        return {
            seed: step if (step := row.number("training", "diverged_at")) is not None else math.nan
            for seed, row in self.rows.items()
            if seed not in self.losses
        }


@dataclass(frozen=True)
class LossDifference:
    """Hold a difference of validation losses, nats a token, or of what else trainings are compared by.

    Attributes:
        measured: its n is of seeds or of held-out sequences.
        over: OVER_SEEDS or OVER_SEQUENCES.
    """

    measured: MeanDifference
    over: str

    @property
    def on_one_seed(self) -> bool:
        """Return whether one seed alone is in common, so that the spread of seeds is not in the interval."""
        return self.over == OVER_SEQUENCES


def has_trainings(group: Group) -> bool:
    """Return whether the group is of the held-out losses of models that its runs trained."""
    return any(row.task == VALIDATION and has_trained(row) for row in group.rows)


def has_seeds(group: Group) -> bool:
    """Return whether the group's trainings have several seeds, so that no two runs say what their configs do.

    That holds of every task that such models are evaluated on.
    """
    return len({label(row.knobs.get(SEED)) for row in group.rows if has_trained(row)}) > 1


def trained_configs(group: Group, names: Sequence[str]) -> list[TrainedConfig]:
    """Take the group's trainings together by config, in the order of its rows; `names` are knobs that tell apart."""
    names = [name for name in names if name != SEED]
    members: dict[tuple[bool, tuple[str | None, ...]], dict[Hashable, Row]] = {}
    for row in group.rows:
        if has_trained(row):
            values = tuple(label(row.knobs[name]) if name in row.knobs else None for name in names)
            members.setdefault((row.is_baseline, values), {}).setdefault(row.knobs.get(SEED), row)
    configs = []
    for flag in (True, False):
        alike = [rows for (is_baseline, _), rows in members.items() if is_baseline == flag]
        for text, rows in zip(_names([next(iter(rows.values())) for rows in alike], names), alike, strict=True):
            if flag:
                configs.append(TrainedConfig(f"{BASELINE_NAME} {text}".strip(), rows))
                continue
            own = {seed: base for seed, row in rows.items() if (base := _own(group, row))}
            row = next(iter(rows.values()))
            configs.append(TrainedConfig(text or _text(row, RECIPE) or _text(row, "format"), rows, own))
    return configs


def _names(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Name each of these rows by the recipe, else the format, and what not more than half of its recipe have."""
    ordered = sorted(names, key=lambda name: (name != RECIPE, name.startswith(DERIVED)))
    telling = distinguishing_knobs(rows, (), ordered)
    always = RECIPE if RECIPE in telling else "format"
    of_recipe = Counter((_text(row, always), name, _text(row, name)) for row in rows for name in telling)
    sizes = Counter(_text(row, always) for row in rows)

    def is_usual(row: Row, name: str) -> bool:
        recipe = _text(row, always)
        return 2 * of_recipe[recipe, name, _text(row, name)] > sizes[recipe]

    texts = []
    for row in rows:
        of_all = [name for name in telling if name == always or len(telling) == 1]
        words = [_text(row, name) for name in telling if name in of_all or not is_usual(row, name)]
        texts.append(" ".join(filter(None, words)) or " ".join(filter(None, (_text(row, name) for name in telling))))
    return texts


def _text(row: Row, name: str) -> str:
    if name not in row.knobs:
        return ""
    value = row.knobs[name]
    text = f"{{{label(value)}}}" if isinstance(value, dict) else label(value)
    return text if name == RECIPE else f"{name.removeprefix('matmuls.')}={text}"


def _own(group: Group, row: Row) -> Row | None:
    baseline = group.baseline_for(row)
    return baseline if baseline is not None and is_own_baseline(baseline, row) else None


def finite_losses(rows: Mapping[Hashable, Row]) -> dict[Hashable, float]:
    """Return the validation losses that are finite, by seed."""
    values = {seed: row.metrics.get(LOSS, math.nan) for seed, row in rows.items()}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def loss_values(all_rows: Sequence[Mapping[Hashable, Row]]) -> tuple[list[Values], str] | None:
    """Return the losses of several configs by what all of them share: seeds or, of one seed, held-out sequences.

    None where they share no seed, or share one whose sequences are not known.
    """
    losses = [finite_losses(rows) for rows in all_rows]
    seeds = [seed for seed in losses[0] if all(seed in each for each in losses)]
    if len(seeds) > 1:
        return [{seed: each[seed] for seed in seeds} for each in losses], OVER_SEEDS
    if not seeds:
        return None
    found = [_by_sequence(rows[seeds[0]]) for rows in all_rows]
    values: list[Values] = [each for each in found if each]
    if len(values) < len(found) or any(each.keys() != values[0].keys() for each in values):
        return None
    return values, OVER_SEQUENCES


def compare_configs(config: Mapping[Hashable, Row], other: Mapping[Hashable, Row]) -> LossDifference | None:
    """Compare two configs' trainings, by seed: the first's losses minus the other's; None where nothing is shared.

    The interval is that of the paired t test.
    """
    found = loss_values((other, config))
    if found is None:
        return None
    (a, b), over = found
    return LossDifference(compare_means(as_array(a, a), as_array(b, a)), over)


def as_array(values: Values, keys: Iterable[Hashable]) -> np.ndarray:
    """Return values in the order of these keys."""
    return np.array([values[key] for key in keys], dtype=np.float64)


def _by_sequence(row: Row) -> Values:
    """Return what each held-out sequence adds to the loss, so that the mean is the loss; nothing where unknown."""
    outcomes = read_outcomes(row.run, VALIDATION)
    if outcomes is None or outcomes.loglikelihood is None or not np.isfinite(outcomes.loglikelihood).all():
        return {}
    tokens = outcomes.weights if outcomes.weights is not None else np.ones(len(outcomes))
    if not tokens.sum() > 0:
        return {}
    nats = -outcomes.loglikelihood / tokens.mean()
    return dict(zip(outcomes.keys.tolist(), nats.tolist(), strict=True))
