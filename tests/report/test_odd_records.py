"""A run that fails beside others only is told from those that it stands beside, in few reports."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from mxsweep.report.odd_records import MOST_TOGETHER, odd_together

RUNS = [Path(f"{number:03}") for number in range(100)]


class Reports:
    """Reports that cannot be made with an odd run beside enough others."""

    def __init__(self, odd: set[Path], beside: int = 1) -> None:
        self.odd, self.beside, self.made = odd, beside, 0

    def why_not(self, runs: Sequence[Path]) -> str | None:
        self.made += 1
        return "no" if len(runs) > self.beside and self.odd & set(runs) else None


@pytest.mark.parametrize("beside", [1, 2, 7])
@pytest.mark.parametrize("place", [0, 1, 50, 98, 99])
def test_it_is_found_wherever_it_stands(place: int, beside: int) -> None:
    reports = Reports({RUNS[place]}, beside)
    assert odd_together(RUNS, reports.why_not) == {RUNS[place]: "no"}
    assert reports.made < 40


@pytest.mark.parametrize("number", [2, 5])
def test_several_are_found(number: int) -> None:
    odd = set(random.Random(number).sample(RUNS, number)) | {RUNS[0]}
    assert set(odd_together(RUNS, Reports(odd).why_not)) == odd


def test_of_two_one_is_left() -> None:
    assert len(odd_together(RUNS[:2], Reports({RUNS[0]}).why_not)) == 1


def test_where_the_fault_is_of_no_record_it_ends() -> None:
    reports = Reports(set(RUNS))
    assert len(odd_together(RUNS, reports.why_not)) == MOST_TOGETHER
    assert reports.made < MOST_TOGETHER * 40
    assert odd_together(RUNS, Reports(set()).why_not) == {}
