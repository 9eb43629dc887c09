"""Search for matrix products to rotate and for the rounding of scales: greedily, forward, by paired losses.

From no rotation and the recipe's own scale rounding on, each round tries every change of one of them: a product that is
not rotated yet is, or scales are rounded in another way. Losses are of the calibration sequences, and a change counts
as better only where the paired difference over sequences is below 0 and significant: p of the t test below 0.05 after
Holm's correction over the changes tried in the round, since the best of many differences is below 0 by chance alone.
Of those that are better the one of the least loss is kept, and the search ends when none is. A change that makes a loss
finite which was not is better, too, without a test.

Where the loss is of chosen words alone, that of all tokens stands beside it, and a change that makes the latter
significantly worse, or makes it no number where it was one, is not kept, whatever it does for the former.

A search whose losses are of other weights than the run will have, which are faster to work out, is confirmed with those
that it will have: what was found is compared with what the search began with by the same rule, and where it is not
better the last change is undone, until what is left is better, or nothing is.

Who measures losses keeps them, so that an interrupted search goes on where it was, and one that asks for what another
has asked for finds it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mxsweep.formats.recipe import MATMULS, Recipe, Rotation
from mxsweep.statistics.paired_tests import ALPHA, MeanDifference, compare_log_perplexity, holm
from mxsweep.terminal.progress_callback import Progress


@dataclass(frozen=True)
class Judge:
    """Measure what a choice is worth: by losses, with weights that are quantized in one way.

    Attributes:
        weights: how they are quantized: "rtn", "clip", or a method's name.
        losses_of: returns the losses of the sequences under a recipe, (k, n) float64, nats in all: the loss that is
            searched by, and maybe that of all tokens; and whether they were kept from before. A loss that is no
            number is worse than any that is.
    """

    weights: str
    losses_of: Callable[[Recipe], tuple[np.ndarray, bool]]


@dataclass(frozen=True)
class Choices:
    """Hold what may be changed in a recipe.

    Attributes:
        recipe: with which the search begins; what is rotated there stays rotated.
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
        rotated = frozenset(self.recipe.rotation.matmuls) if self.recipe.rotation is not None else frozenset()
        return Chosen(rotated, next(iter(self.scale_roundings), None))

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
        if not chosen.matmuls:
            return None
        if self.recipe.rotation is not None:
            return dataclasses.replace(self.recipe.rotation, matmuls=chosen.in_order)
        return Rotation(chosen.in_order, self.rotations[0].block)

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

    @property
    def in_words(self) -> str:
        """Return the choice as part of a sentence."""
        rounding = "" if self.scale_rounding is None else f", scales rounded by {self.scale_rounding}"
        return f"{', '.join(self.in_order) or 'nothing'} rotated{rounding}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        rounding = {} if self.scale_rounding is None else {"scale_rounding": self.scale_rounding}
        return {"found": list(self.in_order), **rounding}

    def __str__(self) -> str:
        rotated = "+".join(self.in_order) or "none"
        return rotated if self.scale_rounding is None else f"{rotated} {self.scale_rounding}"


@dataclass(frozen=True)
class Compared:
    """Hold a choice's loss, and the difference from that of another choice; Step says what each value is."""

    loss: float
    difference: MeanDifference
    p: float
    all_tokens: MeanDifference | None
    is_better: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        all_tokens = None if self.all_tokens is None else _as_dict(self.all_tokens)
        return {"loss": self.loss, **_as_dict(self.difference), "p": self.p, "all_tokens": all_tokens}


@dataclass(frozen=True)
class Step:
    """Say what a change did on top of those that were kept before.

    Attributes:
        change: a product that was rotated, or "scale_rounding=NAME".
        loss: nats a token, or a word where the search looks at words.
        difference, low, high: of the loss from that before the change, and its paired 95 % interval over sequences.
        p: adjusted over the changes of the round.
        all_tokens: by how much the loss of all tokens changes, with its interval, where the search looks at words.
        kept: whether the search went on with it.
    """

    round: int
    change: str
    loss: float
    difference: float
    low: float
    high: float
    p: float
    all_tokens: dict[str, float] | None
    kept: bool


@dataclass(frozen=True)
class ChoiceSearch:
    """Hold what a search found.

    Attributes:
        path: what is rotated, and how scales are rounded, to begin with and after each change that was kept.
        steps: every change that was looked at, in order.
        loss_before, loss_after: nats a token, or a word.
        counted: how many tokens or words.
        gain: what was chosen, compared with what the search began with; a difference of 0 where nothing was, and NaN
            where what it began with has no finite loss.
        all_tokens: the same of all tokens, where the search looked at words.
        looked_at: how many choices the losses were asked of, what the search began with among them.
        computed: how many losses were not kept from before.
    """

    path: tuple[Chosen, ...]
    steps: tuple[Step, ...]
    loss_before: float
    loss_after: float
    counted: int
    gain: MeanDifference
    all_tokens: MeanDifference | None
    looked_at: int
    computed: int

    @property
    def chosen(self) -> Chosen:
        """Return what the search ended with."""
        return self.path[-1]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        all_tokens = {} if self.all_tokens is None else {"all_tokens": _as_dict(self.all_tokens)}
        return {
            **self.chosen.as_dict(),
            "sequences": self.gain.n,
            "counted": self.counted,
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            **_as_dict(self.gain),
            **all_tokens,
            "looked_at": self.looked_at,
            "cached": self.computed == 0,
        }


@dataclass(frozen=True)
class Confirmation:
    """Hold what is left of a search's choice once the run's own weights were asked.

    Attributes:
        weights: the judge's, see `Judge`.
        chosen: what is rotated, and how scales are rounded.
        compared: each choice that was asked for, what the search found first, with its loss and the difference from
            what the search began with; the last is ``chosen`` unless that is what the search began with.
        loss_before: of what the search began with, nats a token, or a word.
        computed: how many losses were not kept from before.
    """

    weights: str
    chosen: Chosen
    compared: tuple[tuple[Chosen, Compared], ...]
    loss_before: float
    computed: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        compared = [
            {"choice": choice.in_words, **choice.as_dict(), **one.as_dict(), "kept": one.is_better}
            for choice, one in self.compared
        ]
        return {"weights": self.weights, "loss_before": self.loss_before, "compared": compared}


def search_choices(choices: Choices, judge: Judge, counts: np.ndarray, progress: Progress) -> ChoiceSearch:
    """Search for the changes that lower the loss.

    Args:
        counts: of how many tokens or words of each sequence each loss is, (k, n).
        progress: how many choices were looked at, and how many there may be.
    """
    losses = _Losses(choices, judge, progress, choices.most)
    path = [choices.start]
    before = losses[path[0]]
    steps: list[Step] = []
    number = 0
    while changes := choices.changes(path[-1]):
        number += 1
        tried = {name: losses[choice] for name, choice in changes.items()}
        compared = _compare(losses[path[-1]], tried, counts)
        better = [name for name, one in compared.items() if one.is_better]
        winner = min(better, key=lambda name: compared[name].loss, default=None)
        steps += [Step(number, name, **one.as_dict(), kept=name == winner) for name, one in compared.items()]
        if winner is None:
            break
        path.append(changes[winner])
    after, total = losses[path[-1]], int(counts[0].sum())
    progress(choices.most, choices.most)
    means = float(before[0].sum()) / total, float(after[0].sum()) / total
    gain, all_tokens = _differences(before, after, counts)
    found = tuple(path), tuple(steps)
    return ChoiceSearch(*found, *means, total, gain, all_tokens, losses.looked_at, losses.computed)


def confirm_choice(
    choices: Choices, search: ChoiceSearch, judge: Judge, counts: np.ndarray, progress: Progress
) -> Confirmation:
    """Undo changes that a search made, the last first, until what is left is better than what it began with.

    Args:
        judge: has the run's own weights.
        counts, progress: as for ``search_choices``.
    """
    start, *changed = search.path
    losses = _Losses(choices, judge, progress, 1 + len(changed))
    compared: list[tuple[Chosen, Compared]] = []
    chosen = start
    for choice in reversed(changed):
        # As many comparisons may be made, and each of them may be won by chance alone.
        before, tried = losses[start], {str(choice): losses[choice]}
        ((_, one),) = _compare(before, tried, counts, comparisons=len(changed)).items()
        compared.append((choice, one))
        if one.is_better:
            chosen = choice
            break
    loss_before = float(losses[start][0].sum()) / int(counts[0].sum())
    progress(1 + len(changed), 1 + len(changed))
    return Confirmation(judge.weights, chosen, tuple(compared), loss_before, losses.computed)


class _Losses:
    """Hold the losses of the choices that were asked for, (k, n) each."""

    def __init__(self, choices: Choices, judge: Judge, progress: Progress, most: int) -> None:
        self._choices, self._judge, self._progress, self._most = choices, judge, progress, most
        self._known: dict[Chosen, np.ndarray] = {}
        self.computed = 0

    @property
    def looked_at(self) -> int:
        """Return how many choices the losses were asked of."""
        return len(self._known)

    def __getitem__(self, chosen: Chosen) -> np.ndarray:
        if chosen not in self._known:
            self._known[chosen], kept = self._judge.losses_of(self._choices.under(chosen))
            self.computed += not kept
        self._progress(min(len(self._known), self._most), self._most)
        return self._known[chosen]


def _compare(
    before: np.ndarray, tried: dict[str, np.ndarray], counts: np.ndarray, comparisons: int = 1
) -> dict[str, Compared]:
    """Compare the losses of each change with those before it; p values are adjusted over the changes.

    Args:
        comparisons: how many such calls are made until one finds something better: p values are multiplied by it.
    """
    differences = {name: _differences(before, after, counts) for name, after in tried.items()}
    adjusted = [min(1.0, comparisons * p) for p in holm([one.p for one, _ in differences.values()])]
    total = float(counts[0].sum())
    compared = {}
    for (name, (one, all_tokens)), p in zip(differences.items(), adjusted, strict=True):
        loss = float(tried[name][0].sum()) / total
        mends = math.isfinite(loss) and not math.isfinite(float(before[0].sum()))
        breaks = bool(np.isfinite(before.sum(axis=1)[1:]).any()) and not np.isfinite(tried[name]).all()
        harms = all_tokens is not None and all_tokens.difference > 0 and not all_tokens.p >= ALPHA
        is_better = mends or (one.difference < 0 and p < ALPHA and not (breaks or harms))
        compared[name] = Compared(loss, one, p, all_tokens, is_better)
    return compared


def _differences(
    before: np.ndarray, after: np.ndarray, counts: np.ndarray
) -> tuple[MeanDifference, MeanDifference | None]:
    """Return by how much the loss that is searched by changes, and that of all tokens where it stands beside it."""
    first, *others = (compare_log_perplexity(-old, -new, n) for old, new, n in zip(before, after, counts, strict=True))
    return first, next(iter(others), None)


def _as_dict(difference: MeanDifference) -> dict[str, float]:
    return {name: getattr(difference, name) for name in ("difference", "low", "high")}
