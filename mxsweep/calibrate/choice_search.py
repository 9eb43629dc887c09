"""Search for matrix products to rotate and for the rounding of scales: greedily, forward, by paired losses.

From no rotation and the recipe's own scale rounding on, each round tries every change of one of them: a product that is
not rotated yet is, or scales are rounded in another way. Losses are of the calibration sequences, and a change counts
as better only where the paired difference over sequences is below 0 and significant: p of the t test below 0.05 after
Holm's correction over the changes tried in the round, since the best of many differences is below 0 by chance alone.
Of those that are better the one of the least loss is kept, and the search ends when none is. A change that makes a loss
finite which was not is better, too, without a test.

Losses of a choice are kept on disk as soon as they are known, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.formats.recipe import MATMULS, Recipe, Rotation
from mxsweep.statistics.paired_tests import ALPHA, MeanDifference, compare_log_perplexity, holm
from mxsweep.terminal.progress_callback import Progress

LossesOf = Callable[[Recipe], np.ndarray]  # the loss of each sequence under a recipe, (n,) float64, nats in all

_LOSSES = "losses"


@dataclass(frozen=True)
class Choices:
    """Hold what may be changed in a recipe.

    Attributes:
        recipe: with which the search begins, nothing rotated.
        rotations: candidates, of one product each.
        scale_roundings: recipes by the way in which scales are rounded, the one to begin with first; empty where that
            is not searched.
    """

    recipe: Recipe
    rotations: Sequence[Rotation] = ()
    scale_roundings: dict[str, Recipe] = field(default_factory=dict)

    @property
    def start(self) -> Chosen:
        """Return what the search begins with."""
        return Chosen(frozenset(), next(iter(self.scale_roundings), None))

    def changes(self, chosen: Chosen) -> dict[str, Chosen]:
        """Return what one change makes of a choice, by what the change is called."""
        rotated = {
            one.matmuls[0]: Chosen(chosen.matmuls | set(one.matmuls), chosen.scale_rounding)
            for one in self.rotations
            if not chosen.matmuls.issuperset(one.matmuls)
        }
        rounded = {
            f"scale_rounding={name}": Chosen(chosen.matmuls, name)
            for name in self.scale_roundings
            if name != chosen.scale_rounding
        }
        return rotated | rounded

    def under(self, chosen: Chosen) -> Recipe:
        """Return the recipe of a choice."""
        recipe = self.recipe if chosen.scale_rounding is None else self.scale_roundings[chosen.scale_rounding]
        return dataclasses.replace(recipe, rotation=self.rotation(chosen))

    def rotation(self, chosen: Chosen) -> Rotation | None:
        """Return the rotation of a choice; None for none."""
        return Rotation(chosen.in_order, self.rotations[0].block) if chosen.matmuls else None

    @property
    def most(self) -> int:
        """Return how many choices a search looks at, if it keeps each rotation and one change of the rounding."""
        rotations, roundings = len(self.rotations), max(0, len(self.scale_roundings) - 1)
        rounds = [number + roundings for number in range(rotations, -1, -1)] + [roundings]
        return 1 + sum(rounds)


@dataclass(frozen=True)
class Chosen:
    """Name the products that are rotated, and how scales are rounded; None where that is not searched."""

    matmuls: frozenset[str]
    scale_rounding: str | None

    @property
    def in_order(self) -> tuple[str, ...]:
        """Return the products in the order of MATMULS."""
        return tuple(matmul for matmul in MATMULS if matmul in self.matmuls)

    def __str__(self) -> str:
        rotated = "+".join(self.in_order) or "none"
        return rotated if self.scale_rounding is None else f"{rotated} {self.scale_rounding}"


@dataclass(frozen=True)
class Step:
    """Say what a change did on top of those that were kept before.

    Attributes:
        change: a product that was rotated, or "scale_rounding=NAME".
        loss: nats a token.
        difference, low, high: of the loss from that before the change, and its paired 95 % interval over sequences.
        p: adjusted over the changes of the round.
        kept: whether the search went on with it.
    """

    round: int
    change: str
    loss: float
    difference: float
    low: float
    high: float
    p: float
    kept: bool


@dataclass(frozen=True)
class ChoiceSearch:
    """Hold what a search found.

    Attributes:
        chosen: what is rotated, and how scales are rounded.
        recipe: that of the choice.
        steps: every change that was looked at, in order.
        loss_before, loss_after: nats a token.
        gain: what was chosen, compared with what the search began with; a difference of 0 where nothing was, and NaN
            where what it began with has no finite loss.
        looked_at: how many choices the losses were asked of, what the search began with among them.
        computed: how many losses were not kept from before.
    """

    chosen: Chosen
    recipe: Recipe
    steps: tuple[Step, ...]
    loss_before: float
    loss_after: float
    gain: MeanDifference
    looked_at: int
    computed: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        gain = {name: getattr(self.gain, name) for name in ("difference", "low", "high")}
        rounding = {} if self.chosen.scale_rounding is None else {"scale_rounding": self.chosen.scale_rounding}
        return {
            "found": list(self.chosen.in_order),
            **rounding,
            "sequences": self.gain.n,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            **gain,
            "looked_at": self.looked_at,
            "cached": self.computed == 0,
        }


def search_choices(
    choices: Choices, losses_of: LossesOf, tokens: np.ndarray, artefact: Artefact, progress: Progress
) -> ChoiceSearch:
    """Search for the changes that lower the loss.

    Args:
        losses_of: the losses of the sequences under a recipe; one that is no number is worse than any that is.
        tokens: how many of each sequence are predicted, (n,).
        artefact: where losses are kept.
        progress: how many choices were looked at, and how many there may be.
    """
    losses = _Losses(choices, losses_of, artefact, progress)
    chosen = choices.start
    before = losses[chosen]
    steps: list[Step] = []
    number = 0
    while changes := choices.changes(chosen):
        number += 1
        tried = {name: losses[choice] for name, choice in changes.items()}
        compared = _compare(losses[chosen], tried, tokens)
        better = [name for name, one in compared.items() if one.is_better]
        winner = min(better, key=lambda name: compared[name].loss, default=None)
        for name, one in compared.items():
            difference = one.difference
            values = (one.loss, difference.difference, difference.low, difference.high, one.p)
            steps.append(Step(number, name, *values, kept=name == winner))
        if winner is None:
            break
        chosen = changes[winner]
    after, total = losses[chosen], float(tokens.sum())
    progress(choices.most, choices.most)
    gain = compare_log_perplexity(-before, -after, tokens)
    means = float(before.sum()) / total, float(after.sum()) / total
    return ChoiceSearch(chosen, choices.under(chosen), tuple(steps), *means, gain, losses.looked_at, losses.computed)


class _Losses:
    """Hold the losses of choices, (n,) each: those kept on disk, and those worked out when they are asked for."""

    def __init__(self, choices: Choices, losses_of: LossesOf, artefact: Artefact, progress: Progress) -> None:
        self._choices, self._losses_of, self._artefact, self._progress = choices, losses_of, artefact, progress
        self._known: dict[str, list[float]] = dict(artefact.load_json(_LOSSES) or {})
        self._looked_at: set[str] = set()
        self.computed = 0

    @property
    def looked_at(self) -> int:
        """Return how many choices the losses were asked of."""
        return len(self._looked_at)

    def __getitem__(self, chosen: Chosen) -> np.ndarray:
        key = str(chosen)
        if key not in self._known:
            self._known[key] = [float(loss) for loss in self._losses_of(self._choices.under(chosen))]
            self._artefact.save_json(_LOSSES, self._known)
            self.computed += 1
        self._looked_at.add(key)
        self._progress(min(len(self._looked_at), self._choices.most), self._choices.most)
        return np.asarray(self._known[key], dtype=np.float64)


@dataclass(frozen=True)
class _Compared:
    loss: float
    difference: MeanDifference
    p: float
    is_better: bool


def _compare(before: np.ndarray, tried: dict[str, np.ndarray], tokens: np.ndarray) -> dict[str, _Compared]:
    """Compare the losses of each change with those before it; p values are adjusted over the changes."""
    differences = {name: compare_log_perplexity(-before, -after, tokens) for name, after in tried.items()}
    adjusted = holm([one.p for one in differences.values()])
    total = float(tokens.sum())
    compared = {}
    for (name, one), p in zip(differences.items(), adjusted, strict=True):
        loss = float(tried[name].sum()) / total
        mends = math.isfinite(loss) and not math.isfinite(float(before.sum()))
        compared[name] = _Compared(loss, one, p, mends or (one.difference < 0 and p < ALPHA))
    return compared
