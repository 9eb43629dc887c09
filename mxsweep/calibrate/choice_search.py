"""Search for matrix products to rotate and for the rounding of scales: greedily, forward, by paired losses.

From no rotation and the recipe's own scale rounding on, each round tries every change of one of them: a product that is
not rotated yet is, or scales are rounded in another way. Losses are of the calibration sequences, and a change counts
as better only where the paired difference over sequences is below 0 and significant: p of the t test below 0.05 after
Holm's correction over the changes tried in the round, since the best of many differences is below 0 by chance alone.
Of those that are better the one of the least loss is kept, and the search ends when none is. A change that makes a loss
finite which was not is better, too, without a test.

Where the loss is of chosen words alone, that of all tokens stands beside it, and a change that makes the latter
significantly worse, or makes it no number where it was one, is not kept, whatever it does for the former.

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

# Of each sequence under a recipe, (k, n) float64, nats in all: what is searched by, and maybe that of all tokens.
LossesOf = Callable[[Recipe], np.ndarray]

_LOSSES = "losses"


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

    def __str__(self) -> str:
        rotated = "+".join(self.in_order) or "none"
        return rotated if self.scale_rounding is None else f"{rotated} {self.scale_rounding}"


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
        chosen: what is rotated, and how scales are rounded.
        recipe: that of the choice.
        steps: every change that was looked at, in order.
        loss_before, loss_after: nats a token, or a word.
        counted: how many tokens or words.
        gain: what was chosen, compared with what the search began with; a difference of 0 where nothing was, and NaN
            where what it began with has no finite loss.
        all_tokens: the same of all tokens, where the search looked at words.
        looked_at: how many choices the losses were asked of, what the search began with among them.
        computed: how many losses were not kept from before.
    """

    chosen: Chosen
    recipe: Recipe
    steps: tuple[Step, ...]
    loss_before: float
    loss_after: float
    counted: int
    gain: MeanDifference
    all_tokens: MeanDifference | None
    looked_at: int
    computed: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        all_tokens = {} if self.all_tokens is None else {"all_tokens": _as_dict(self.all_tokens)}
        rounding = {} if self.chosen.scale_rounding is None else {"scale_rounding": self.chosen.scale_rounding}
        return {
            "found": list(self.chosen.in_order),
            **rounding,
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


def search_choices(
    choices: Choices, losses_of: LossesOf, counts: np.ndarray, artefact: Artefact, progress: Progress
) -> ChoiceSearch:
    """Search for the changes that lower the loss.

    Args:
        losses_of: the losses of the sequences under a recipe; one that is no number is worse than any that is.
        counts: of how many tokens or words of each sequence each loss is, (k, n).
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
        compared = _compare(losses[chosen], tried, counts)
        better = [name for name, one in compared.items() if one.is_better]
        winner = min(better, key=lambda name: compared[name].loss, default=None)
        for name, one in compared.items():
            difference = one.difference
            values = (one.loss, difference.difference, difference.low, difference.high, one.p)
            beside = None if one.all_tokens is None else _as_dict(one.all_tokens)
            steps.append(Step(number, name, *values, beside, kept=name == winner))
        if winner is None:
            break
        chosen = changes[winner]
    after, total = losses[chosen], int(counts[0].sum())
    progress(choices.most, choices.most)
    means = float(before[0].sum()) / total, float(after[0].sum()) / total
    gain, all_tokens = _differences(before, after, counts)
    found = chosen, choices.under(chosen), tuple(steps)
    return ChoiceSearch(*found, *means, total, gain, all_tokens, losses.looked_at, losses.computed)


class _Losses:
    """Hold the losses of choices, (k, n) each: those kept on disk, and those worked out when they are asked for."""

    def __init__(self, choices: Choices, losses_of: LossesOf, artefact: Artefact, progress: Progress) -> None:
        self._choices, self._losses_of, self._artefact, self._progress = choices, losses_of, artefact, progress
        self._known: dict[str, list[list[float]]] = dict(artefact.load_json(_LOSSES) or {})
        self._looked_at: set[str] = set()
        self.computed = 0

    @property
    def looked_at(self) -> int:
        """Return how many choices the losses were asked of."""
        return len(self._looked_at)

    def __getitem__(self, chosen: Chosen) -> np.ndarray:
        key = str(chosen)
        if key not in self._known:
            self._known[key] = self._losses_of(self._choices.under(chosen)).tolist()
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
    all_tokens: MeanDifference | None
    is_better: bool


def _compare(before: np.ndarray, tried: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, _Compared]:
    """Compare the losses of each change with those before it; p values are adjusted over the changes."""
    differences = {name: _differences(before, after, counts) for name, after in tried.items()}
    adjusted = holm([one.p for one, _ in differences.values()])
    total = float(counts[0].sum())
    compared = {}
    for (name, (one, all_tokens)), p in zip(differences.items(), adjusted, strict=True):
        loss = float(tried[name][0].sum()) / total
        mends = math.isfinite(loss) and not math.isfinite(float(before[0].sum()))
        breaks = bool(np.isfinite(before.sum(axis=1)[1:]).any()) and not np.isfinite(tried[name]).all()
        harms = all_tokens is not None and all_tokens.difference > 0 and not all_tokens.p >= ALPHA
        is_better = mends or (one.difference < 0 and p < ALPHA and not (breaks or harms))
        compared[name] = _Compared(loss, one, p, all_tokens, is_better)
    return compared


def _differences(
    before: np.ndarray, after: np.ndarray, counts: np.ndarray
) -> tuple[MeanDifference, MeanDifference | None]:
    """Return by how much the loss that is searched by changes, and that of all tokens where it stands beside it."""
    first, *others = (compare_log_perplexity(-old, -new, n) for old, new, n in zip(before, after, counts, strict=True))
    return first, next(iter(others), None)


def _as_dict(difference: MeanDifference) -> dict[str, float]:
    return {name: getattr(difference, name) for name in ("difference", "low", "high")}
