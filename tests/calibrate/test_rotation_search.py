"""The greedy rotation search: which losses it asks for, what it keeps, and how it goes on after an interruption."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mxsweep.calibrate.rotation_search import search_rotations
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.numerics import MXFormat

RECIPE = Recipe(linear=LinearFormats(MXFormat("int4"), MXFormat("int4")))
CANDIDATES = [Rotation((matmul,), 32) for matmul in ("q", "o", "down")]


class Kept:
    """An artefact in memory."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def load_json(self, name: str) -> Any:
        return self.values.get(name)

    def save_json(self, name: str, value: Any) -> None:
        self.values[name] = dict(value)


def of_sets(losses: Mapping[str, float], asked: list[str]) -> Callable[[Recipe], float]:
    def loss(recipe: Recipe) -> float:
        key = "+".join(recipe.rotation.matmuls) if recipe.rotation else "none"
        assert recipe.rotation is None or recipe.rotation.block == 32
        asked.append(key)
        return losses[key]

    return loss


def search(losses: Mapping[str, float], kept: Kept | None = None) -> tuple[Any, list[str], list[tuple[int, int]]]:
    asked: list[str] = []
    told: list[tuple[int, int]] = []
    found = search_rotations(
        RECIPE,
        CANDIDATES,
        of_sets(losses, asked),
        kept or Kept(),  # type: ignore[arg-type]
        lambda *progress: told.append(progress[:2]),
    )
    return found, asked, told


LOSSES = {"none": 3.0, "q": 2.9, "o": 2.8, "down": 3.2, "q+o": 2.85, "o+down": 2.5, "q+o+down": 2.6}


def test_each_round_keeps_the_best_and_the_search_ends_when_none_helps() -> None:
    found, asked, told = search(LOSSES)
    assert asked == ["none", "q", "o", "down", "q+o", "o+down", "q+o+down"]
    assert found.rotation == Rotation(("o", "down"), 32)
    assert (found.loss_before, found.loss_after) == (3.0, 2.5)
    assert [(step.round, step.matmul) for step in found.steps if step.kept] == [(1, "o"), (2, "down")]
    assert told[-1] == (7, 7)


def test_nothing_is_rotated_where_nothing_helps() -> None:
    found, asked, told = search({"none": 1.0, "q": 1.0, "o": 1.1, "down": 1.2})
    assert found.rotation is None
    assert found.loss_after == 1.0
    assert asked == ["none", "q", "o", "down"]
    assert told[-1] == (7, 7)  # the end is the end, however early


def test_an_interrupted_search_goes_on_where_it_was() -> None:
    kept = Kept()
    calls = 0

    def interrupted(recipe: Recipe) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return of_sets(LOSSES, [])(recipe)

    with pytest.raises(KeyboardInterrupt):
        search_rotations(RECIPE, CANDIDATES, interrupted, kept, lambda done, total: None)  # type: ignore[arg-type]
    found, asked, _ = search(LOSSES, kept)
    assert asked == ["down", "q+o", "o+down", "q+o+down"]
    assert found.rotation == search(LOSSES)[0].rotation
    again, asked, _ = search(LOSSES, kept)
    assert asked == []
    assert again.as_dict()["cached"]


def test_a_loss_that_is_no_number_never_wins() -> None:
    found, _, _ = search({"none": math.nan, "q": math.nan, "o": 2.0, "down": math.inf, "q+o": math.nan, "o+down": 2.5})
    assert found.rotation == Rotation(("o",), 32)
