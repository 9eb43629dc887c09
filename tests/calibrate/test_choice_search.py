"""The greedy search: which losses it asks for, what it keeps and why, and how it goes on after an interruption."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mxsweep.calibrate.choice_search import Choices, Judge, confirm_choice, search_choices
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation
from mxsweep.numerics import MXFormat
from mxsweep.terminal.progress_callback import silent

RECIPE = Recipe(linear=LinearFormats(MXFormat("int4"), MXFormat("int4")))
ROTATIONS = [Rotation((matmul,), 32) for matmul in ("q", "o", "down")]
ROTATED = Choices(RECIPE, ROTATIONS)
ROUNDED = Choices(RECIPE, (), {name: RECIPE.with_scale_rounding(name) for name in ("floor", "even", "ceil")})
TOKENS = np.array([10, 20, 10, 40, 20, 10, 30, 20])


class Kept(dict[str, np.ndarray]):
    """Losses that were worked out before, by their recipes."""


def clear(nats: float) -> np.ndarray:
    """Losses of this mean whose differences from one another are far larger than their spread over sequences."""
    return nats * TOKENS.astype(np.float64)


def of_sets(losses: Mapping[str, np.ndarray], asked: list[str]) -> Callable[[Recipe], np.ndarray]:
    def loss(recipe: Recipe) -> np.ndarray:
        rotated = "+".join(recipe.rotation.matmuls) if recipe.rotation else "none"
        assert recipe.rotation is None or recipe.rotation.block == 32
        assert recipe.linear.weight is not None and recipe.linear.activation is not None
        assert recipe.linear.weight.scale_rounding == recipe.linear.activation.scale_rounding
        rounding = recipe.linear.weight.scale_rounding
        key = rotated if rounding == "floor" else f"{rotated} {rounding}"
        asked.append(key)
        return np.atleast_2d(losses[key])

    return loss


def judge(losses_of: Callable[[Recipe], np.ndarray], kept: Kept, weights: str = "clip") -> Judge:
    def kept_or_worked_out(recipe: Recipe) -> tuple[np.ndarray, bool]:
        key = repr(recipe)
        if is_kept := key in kept:
            return kept[key], is_kept
        kept[key] = losses_of(recipe)
        return kept[key], is_kept

    return Judge(weights, kept_or_worked_out)


def search(
    losses: Mapping[str, float | np.ndarray], kept: Kept | None = None, choices: Choices = ROTATED
) -> tuple[Any, list[str], list[tuple[int, int]]]:
    asked: list[str] = []
    told: list[tuple[int, int]] = []
    by_sequence = {name: clear(loss) if isinstance(loss, float) else loss for name, loss in losses.items()}
    found = search_choices(
        choices,
        judge(of_sets(by_sequence, asked), Kept() if kept is None else kept),
        TOKENS[None],
        lambda *progress: told.append(progress[:2]),
    )
    return found, asked, told


LOSSES = {"none": 3.0, "q": 2.9, "o": 2.8, "down": 3.2, "q+o": 2.85, "o+down": 2.5, "q+o+down": 2.6}


def test_each_round_keeps_the_best_and_the_search_ends_when_none_helps() -> None:
    found, asked, told = search(LOSSES)
    assert asked == ["none", "q", "o", "down", "q+o", "o+down", "q+o+down"]
    assert str(found.chosen) == "o+down"
    assert (found.loss_before, found.loss_after) == pytest.approx((3.0, 2.5))
    assert [(step.round, step.change) for step in found.steps if step.kept] == [(1, "o"), (2, "down")]
    assert told[-1] == (7, 7)


def test_nothing_is_rotated_where_nothing_helps() -> None:
    found, asked, told = search({"none": 1.0, "q": 1.0, "o": 1.1, "down": 1.2})
    assert str(found.chosen) == "none"
    assert found.loss_after == 1.0
    assert (found.gain.difference, found.gain.low, found.gain.high) == (0, 0, 0)
    assert asked == ["none", "q", "o", "down"]
    assert told[-1] == (7, 7)  # the end is the end, however early


def test_a_lower_loss_that_may_be_chance_is_not_kept() -> None:
    # Half of the sequences gain much, half lose a little less: the mean is lower, and its interval holds 0.
    change = np.where(np.arange(8) % 2, -0.5, 0.4) * TOKENS
    found, _, _ = search({"none": 3.0, "q": clear(3.0) + change, "o": 3.1, "down": 3.1})
    assert str(found.chosen) == "none"
    (step,) = [step for step in found.steps if step.change == "q"]
    assert step.difference < 0 < step.high and not step.kept


def test_a_difference_is_the_ratio_estimate_and_its_interval_students() -> None:
    # With equal weights that is the paired t test, which scipy has.
    tokens, rng = np.full(12, 7), np.random.default_rng(0)
    before = rng.normal(20, 3, 12)
    after = before + rng.normal(-2, 1, 12)
    kept = Kept()
    losses = {"none": before, "q": after}
    choices = Choices(RECIPE, ROTATIONS[:1])
    found = search_choices(choices, judge(of_sets(losses, []), kept), tokens[None], silent)
    expected = stats.ttest_rel(after / 7, before / 7)
    interval = expected.confidence_interval(0.95)
    (step,) = found.steps
    assert (step.difference, step.low, step.high, step.p) == pytest.approx(
        (float(np.mean(after - before)) / 7, interval.low, interval.high, expected.pvalue)
    )
    assert step.kept and found.gain.high == step.high


def test_the_best_of_many_has_to_be_better_than_chance_makes_one() -> None:
    # By itself it is significant; of three tried it is not.
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, 8)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    change = (-0.95 + noise) * TOKENS  # t about -2.7 with 7 degrees of freedom
    alone = search({"none": 3.0, "q": clear(3.0) + change}, choices=Choices(RECIPE, ROTATIONS[:1]))[0]
    (step,) = alone.steps
    assert step.high < 0 and 0.05 / 3 < step.p < 0.05 and step.kept
    among = search({"none": 3.0, "q": clear(3.0) + change, "o": 3.1 + 0.0, "down": clear(3.0) - change})[0]
    assert str(among.chosen) == "none"
    assert among.steps[0].high == step.high and among.steps[0].p > 0.05


def test_scale_roundings_are_searched_by_the_same_rule() -> None:
    found, asked, _ = search({"none": 3.0, "none even": 2.0, "none ceil": 2.5}, choices=ROUNDED)
    assert asked == ["none", "none even", "none ceil"]
    assert str(found.chosen) == "none even"
    assert found.as_dict()["scale_rounding"] == "even"
    assert [step.change for step in found.steps if step.kept] == ["scale_rounding=even"]
    found, _, _ = search({"none": 3.0, "none even": 3.0, "none ceil": 3.5}, choices=ROUNDED)
    assert str(found.chosen) == "none floor" and found.as_dict()["scale_rounding"] == "floor"


def test_rotations_and_scale_roundings_are_searched_together() -> None:
    choices = Choices(RECIPE, ROTATIONS[:1], dict(ROUNDED.scale_roundings))
    losses = {"none": 3.0, "q": 2.0, "none even": 2.5, "none ceil": 3.5, "q even": 2.2, "q ceil": 1.5}
    found, asked, told = search(losses, choices=choices)
    assert str(found.chosen) == "q ceil"
    assert [step.change for step in found.steps if step.kept] == ["q", "scale_rounding=ceil"]
    assert asked == ["none", "q", "none even", "none ceil", "q even", "q ceil"]  # what is known is not asked again
    assert all(done <= total for done, total in told) and told[-1][0] == told[-1][1]


def test_an_interrupted_search_goes_on_where_it_was() -> None:
    kept = Kept()
    calls = 0

    def interrupted(recipe: Recipe) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return of_sets({name: clear(loss) for name, loss in LOSSES.items()}, [])(recipe)

    with pytest.raises(KeyboardInterrupt):
        search_choices(ROTATED, judge(interrupted, kept), TOKENS[None], silent)
    found, asked, _ = search(LOSSES, kept)
    assert asked == ["down", "q+o", "o+down", "q+o+down"]
    assert found.path == search(LOSSES)[0].path
    again, asked, _ = search(LOSSES, kept)
    assert asked == []
    assert again.as_dict()["cached"]


def test_a_loss_that_is_no_number_never_wins() -> None:
    found, _, _ = search({"none": math.nan, "q": math.nan, "o": 2.0, "down": math.inf, "q+o": math.nan, "o+down": 2.5})
    assert str(found.chosen) == "o"


def test_one_sequence_shows_no_spread_and_changes_nothing() -> None:
    losses = {"none": np.array([30.0]), "q": np.array([1.0])}
    choices = Choices(RECIPE, ROTATIONS[:1])
    found = search_choices(choices, judge(of_sets(losses, []), Kept()), np.array([[10]]), silent)
    assert str(found.chosen) == "none" and found.steps[0].difference == pytest.approx(-2.9)


def of_words(words: float, tokens: float) -> np.ndarray:
    """The losses of two words and of all tokens of each sequence, whose differences are clear."""
    return np.array([np.full(len(TOKENS), 2 * words), clear(tokens)])


def test_what_harms_all_tokens_is_not_kept_for_the_words() -> None:
    losses = {"none": of_words(3.0, 2.0), "q": of_words(1.0, 2.1), "o": of_words(2.5, 1.9), "down": of_words(3.5, 1.0)}
    losses |= {"q+o": of_words(2.0, 2.5), "o+down": of_words(2.6, 0.5)}
    counts = np.array([np.full(len(TOKENS), 2), TOKENS])
    found = search_choices(ROTATED, judge(of_sets(losses, []), Kept()), counts, silent)
    assert str(found.chosen) == "o"
    assert (found.loss_before, found.loss_after) == pytest.approx((3.0, 2.5)) and found.counted == 2 * len(TOKENS)
    record = found.as_dict()
    assert record["all_tokens"] == pytest.approx({"difference": -0.1, "low": -0.1, "high": -0.1})
    first = {step["change"]: step for step in record["steps"] if step["round"] == 1}
    assert first["q"]["all_tokens"]["difference"] == pytest.approx(0.1) and not first["q"]["kept"]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_leaves_all_tokens_no_number_is_not_kept_for_the_words(broken: float) -> None:
    counts = np.array([np.full(len(TOKENS), 2), TOKENS])
    choices = Choices(RECIPE, ROTATIONS[:1])
    one_sequence = of_words(1.0, 2.0)
    one_sequence[1, 3] = broken
    losses = {"none": of_words(3.0, 2.0), "q": one_sequence}
    found = search_choices(choices, judge(of_sets(losses, []), Kept()), counts, silent)
    assert str(found.chosen) == "none" and not found.steps[0].kept
    # What was no number before forbids nothing.
    losses = {"none": of_words(3.0, broken), "q": of_words(1.0, broken)}
    found = search_choices(choices, judge(of_sets(losses, []), Kept()), counts, silent)
    assert str(found.chosen) == "q" and found.steps[0].kept


def test_a_loss_of_all_tokens_that_may_be_as_before_forbids_nothing() -> None:
    noise = np.where(np.arange(8) % 2, -0.5, 0.8) * TOKENS
    losses = {"none": of_words(3.0, 2.0), "q": of_words(1.0, 2.0) + np.array([np.zeros(8), noise])}
    counts = np.array([np.full(len(TOKENS), 2), TOKENS])
    choices = Choices(RECIPE, ROTATIONS[:1])
    found = search_choices(choices, judge(of_sets(losses, []), Kept()), counts, silent)
    (step,) = found.steps
    assert step.kept and step.all_tokens is not None and step.all_tokens["low"] < 0 < step.all_tokens["difference"]


def test_what_is_rotated_to_begin_with_stays_rotated() -> None:
    rotated = dataclasses.replace(RECIPE, rotation=Rotation(("q",), 32))
    roundings = {name: rotated.with_scale_rounding(name) for name in ("floor", "even", "ceil")}
    found, asked, _ = search({"q": 3.0, "q even": 2.0, "q ceil": 2.5}, choices=Choices(rotated, (), roundings))
    assert asked == ["q", "q even", "q ceil"]
    assert str(found.chosen) == "q even" and found.as_dict()["found"] == ["q"]
    found, asked, _ = search({"q": 3.0, "q+o": 2.0}, choices=Choices(rotated, ROTATIONS[1:2]))
    assert asked == ["q", "q+o"] and str(found.chosen) == "q+o"


def test_a_choice_is_a_recipe() -> None:
    together = Choices(RECIPE, ROTATIONS, dict(ROUNDED.scale_roundings))
    assert together.under(together.start) == RECIPE
    changed = together.changes(together.changes(together.start)["o"])["scale_rounding=ceil"]
    assert changed.in_words == "o rotated, scales rounded by ceil"
    rotated = dataclasses.replace(RECIPE.with_scale_rounding("ceil"), rotation=Rotation(("o",), 32))
    assert together.under(changed) == rotated


def confirm(losses: Mapping[str, float | np.ndarray], kept: Kept | None = None) -> tuple[Any, list[str]]:
    """Search by LOSSES, which finds o and down, and confirm it by others."""
    asked: list[str] = []
    found, _, _ = search(LOSSES)
    by_sequence = {name: clear(loss) if isinstance(loss, float) else loss for name, loss in losses.items()}
    own = judge(of_sets(by_sequence, asked), Kept() if kept is None else kept, "gptq")
    return confirm_choice(ROTATED, found, own, TOKENS[None], silent), asked


def test_what_is_better_with_the_runs_own_weights_stays() -> None:
    kept = Kept()
    confirmed, asked = confirm({"none": 2.5, "o+down": 2.4}, kept)
    assert str(confirmed.chosen) == "o+down" and asked == ["none", "o+down"] and confirmed.computed == 2
    (choice,) = confirmed.as_dict()["compared"]
    assert confirmed.as_dict()["loss_before"] == pytest.approx(2.5) and confirmed.weights == "gptq"
    assert choice["found"] == ["o", "down"] and choice["difference"] == pytest.approx(-0.1)
    again, asked = confirm({}, kept)
    assert again.chosen == confirmed.chosen and asked == [] and again.computed == 0


def test_what_is_not_better_with_the_runs_own_weights_is_undone_change_by_change() -> None:
    confirmed, asked = confirm({"none": 2.5, "o+down": 2.5, "o": 2.3})
    assert str(confirmed.chosen) == "o" and asked == ["none", "o+down", "o"]
    assert [choice["found"] for choice in confirmed.as_dict()["compared"]] == [["o", "down"], ["o"]]
    confirmed, _ = confirm({"none": 2.5, "o+down": 2.4 + 0.2, "o": math.nan})
    assert confirmed.chosen == ROTATED.start and not any(one.is_better for _, one in confirmed.compared)


def test_one_of_several_choices_that_is_better_by_chance_is_undone() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, 8)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    change = (-0.95 + noise) * TOKENS  # p by itself between 0.05 / 3 and 0.05
    confirmed, _ = confirm({"none": 3.0, "o+down": clear(3.0) + change, "o": 3.1})
    (_, one), _ = confirmed.compared
    assert one.difference.high < 0 and one.p == pytest.approx(2 * one.difference.p) and one.p > 0.05
    assert confirmed.chosen == ROTATED.start


def test_what_harms_all_tokens_with_the_runs_own_weights_is_undone() -> None:
    counts = np.array([np.full(len(TOKENS), 2), TOKENS])
    choices = Choices(RECIPE, ROTATIONS[:1])
    quick = judge(of_sets({"none": of_words(3.0, 2.0), "q": of_words(1.0, 1.9)}, []), Kept())
    found = search_choices(choices, quick, counts, silent)
    assert str(found.chosen) == "q"
    own = judge(of_sets({"none": of_words(3.0, 2.0), "q": of_words(1.0, 2.1)}, []), Kept(), "gptq")
    assert confirm_choice(choices, found, own, counts, silent).chosen == choices.start
