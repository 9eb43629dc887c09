"""Curves and roles read back: whole ones as arrays, and of all others why they were not read."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.made_trainings import BATCH_TOKENS, SEQUENCES, STEPS, put_training

from mxsweep.files.training_columns import CURVE_COLUMNS
from mxsweep.results import trainings
from mxsweep.results.groups import read_results
from mxsweep.results.outcomes import read_outcomes
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row
from mxsweep.results.trainings import has_trained, read_curve, read_roles, unread_files


def only_row(folder: Path) -> Row:
    (row,) = read_results(folder).rows
    return row


def run_in(folder: Path) -> RunFolder:
    return only_row(folder).run


def test_a_curve_is_read_back(tmp_path: Path) -> None:
    curve = read_curve(run_in(put_training(tmp_path / "a", cost=0.2)))
    assert curve is not None
    assert curve.step.tolist() == list(range(1, STEPS + 1)) and curve.tokens[-1] == STEPS * BATCH_TOKENS
    assert np.flatnonzero(~np.isnan(curve.validation_loss)).tolist() == [9, 19]
    assert curve.loss[-1] < curve.loss[0]


def test_a_step_that_was_done_again_after_resuming_counts_once(tmp_path: Path) -> None:
    folder = put_training(tmp_path / "a")
    frame = pd.read_parquet(folder / "curves.parquet")
    again = frame.iloc[8:10].assign(loss=9.0)
    pd.concat([frame.iloc[:10], again, frame.iloc[10:]]).to_parquet(folder / "curves.parquet", index=False)
    curve = read_curve(run_in(folder))
    assert curve is not None and len(curve.step) == STEPS
    assert curve.loss[8:10].tolist() == [9.0, 9.0] and curve.loss[10] < 9


def test_roles_are_read_back(tmp_path: Path) -> None:
    roles = read_roles(run_in(put_training(tmp_path / "a", roles={"dgrad.grad": 15.0, "dW": 12.0})))
    assert roles is not None and set(roles.step.tolist()) == {1, STEPS}
    gradients = roles.texts["operand"] == "dW"
    assert roles.measures["snr_db"][~gradients].min() == 15.0
    assert np.isnan(roles.measures["underflow"][gradients]).all()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is not there"),
        (b"PAR1 no more", "is damaged"),
        (pd.DataFrame({"step": [1], "loss": [2.0]}), "has no column tokens"),
        (pd.DataFrame({name: ["many"] for name in CURVE_COLUMNS}), "is damaged"),
        (pd.DataFrame({name: [math.nan] for name in CURVE_COLUMNS}), "has rows without a step"),
    ],
)
def test_a_file_that_is_no_curve_says_so_and_nothing_more(
    tmp_path: Path, content: pd.DataFrame | bytes | None, why: str
) -> None:
    folder = put_training(tmp_path / "a")
    path = folder / "curves.parquet"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.to_parquet(path, index=False)
    row = only_row(folder)
    assert read_curve(row.run) is None
    assert unread_files([row]) == [f"id_a: curves.parquet {why}"]


def test_a_file_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_training(tmp_path / "a")
    monkeypatch.setattr(trainings, "MOST_ROWS", 10)
    assert unread_files([only_row(folder)]) == ["id_a: curves.parquet has 20 rows, more than the 10 that are read"]


def test_held_out_sequences_weigh_by_their_tokens(tmp_path: Path) -> None:
    row = only_row(put_training(tmp_path / "a"))
    assert has_trained(row) and row.task == "validation" and row.n == SEQUENCES
    outcomes = read_outcomes(row.run, "validation")
    assert outcomes is not None and outcomes.weights is not None and outcomes.loglikelihood is not None
    assert -outcomes.loglikelihood.sum() / outcomes.weights.sum() == pytest.approx(row.metrics["loss"])
