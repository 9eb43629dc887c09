"""Search for the matrix products to rotate: greedily, forward, by the loss over calibration data.

From no rotation on, each round tries every product that is not rotated yet, keeps the one with which the loss is least,
and the search ends when none lowers it. With n products these are at most n (n + 1) / 2 + 1 losses.

Every loss is kept on disk as soon as it is known, so that an interrupted search goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.calibrate.artefacts import Artefact
from mxsweep.formats.recipe import MATMULS, Recipe, Rotation
from mxsweep.terminal.progress_callback import Progress

LossOf = Callable[[Recipe], float]  # the loss of the model under a recipe, in nats a token

_LOSSES = "losses"


@dataclass(frozen=True)
class Step:
    """Name a product whose rotation was tried on top of those kept before, with the loss, and whether it was kept."""

    round: int
    matmul: str
    loss: float
    kept: bool


@dataclass(frozen=True)
class RotationSearch:
    """Hold what a search found.

    Attributes:
        rotation: None where nothing lowers the loss.
        steps: every loss that was looked at, in order.
        loss_before, loss_after: nats a token.
        computed: how many losses were not kept from before.
    """

    rotation: Rotation | None
    steps: tuple[Step, ...]
    loss_before: float
    loss_after: float
    computed: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for the record."""
        return {
            "found": list(self.rotation.matmuls) if self.rotation else [],
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "cached": self.computed == 0,
        }


def search_rotations(
    recipe: Recipe, candidates: Sequence[Rotation], loss_of: LossOf, artefact: Artefact, progress: Progress
) -> RotationSearch:
    """Search for those of ``candidates``, each of one product, that lower the loss when rotated in ``recipe``.

    Args:
        loss_of: the loss of the model under a recipe; a NaN counts as worse than anything.
        artefact: where losses are kept.
        progress: how many losses are known, and how many there may be.
    """
    losses: dict[str, float] = dict(artefact.load_json(_LOSSES) or {})
    computed = looked_at = 0
    most = len(candidates) * (len(candidates) + 1) // 2 + 1

    def loss(matmuls: frozenset[str]) -> float:
        nonlocal computed, looked_at
        key = "+".join(matmul for matmul in MATMULS if matmul in matmuls) or "none"
        if key not in losses:
            losses[key] = loss_of(dataclasses.replace(recipe, rotation=_rotation(matmuls, candidates)))
            artefact.save_json(_LOSSES, losses)
            computed += 1
        looked_at += 1
        progress(looked_at, most)
        return losses[key]

    kept: frozenset[str] = frozenset()
    before = best = loss(kept)
    steps: list[Step] = []
    not_rotated = [candidate.matmuls[0] for candidate in candidates]
    for number in range(1, len(candidates) + 1):
        tried = {matmul: loss(kept | {matmul}) for matmul in not_rotated}
        winner = min(tried, key=lambda matmul: _or_worst(tried[matmul]))
        better = _or_worst(tried[winner]) < _or_worst(best)
        steps += [Step(number, matmul, value, better and matmul == winner) for matmul, value in tried.items()]
        if not better:
            break
        kept, best = kept | {winner}, tried[winner]
        not_rotated.remove(winner)
    progress(most, most)
    return RotationSearch(_rotation(kept, candidates), tuple(steps), before, best, computed)


def _rotation(matmuls: frozenset[str], candidates: Sequence[Rotation]) -> Rotation | None:
    if not matmuls:
        return None
    return Rotation(tuple(matmul for matmul in MATMULS if matmul in matmuls), candidates[0].block)


def _or_worst(loss: float) -> float:
    return loss if loss == loss else float("inf")
