"""Learning rates step by step."""

from __future__ import annotations

import pytest
from helpers.training_jobs import training_job

from mxsweep.training.schedule import learning_rate


def rates(**changes: object) -> list[float]:
    train = training_job(steps=10, lr=1.0, warmup=0.2, decay=0.4, **changes).train
    return [round(learning_rate(train, step), 3) for step in range(1, 11)]


@pytest.mark.parametrize(
    ("schedule", "final_lr", "expected"),
    [
        ("constant", 0.0, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("wsd", 0.0, [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ("wsd", 0.2, [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ("cosine", 0.0, [0.5, 1, 1, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]),
    ],
)
def test_rates_rise_stay_and_fall(schedule: str, final_lr: float, expected: list[float]) -> None:
    assert rates(schedule=schedule, final_lr=final_lr) == expected


def test_without_a_warmup_the_first_step_has_the_highest_rate() -> None:
    train = training_job(steps=4, lr=1.0, warmup=0.0, schedule="linear").train
    assert [learning_rate(train, step) for step in range(1, 5)] == [1, 0.75, 0.5, 0.25]
