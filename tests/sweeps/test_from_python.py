"""A sweep from Python leaves and returns what one of the command line does."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import mxsweep
from mxsweep.terminal.errors import ConfigError


def test_a_sweep_returns_its_folder_and_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    folder, runs = mxsweep.sweep(["format=mxfp4", "block_size=16,32", "limit=4"])
    assert (folder / "report.html").is_file() and folder.resolve().is_relative_to(tmp_path)
    assert list(runs["status"]) == ["done"] * 3 and list(runs["is_baseline"]) == [True, False, False]
    assert runs.equals(mxsweep.load(folder))
    assert list(mxsweep.compare(runs.iloc[0], runs.iloc[1])["n"]) == [4, 4]
    assert logging.getLogger().handlers == handlers


def test_runs_that_fail_are_among_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, runs = mxsweep.sweep(["format=mxfp4", "block_size=32,-1", "limit=2", "baseline=false"])
    assert sorted(runs["status"]) == ["done", "failed"]
    assert "block_size" in runs.set_index("status").reason["failed"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["format=nonesuch"], "no format"),
        (["blocksize=3"], "no such knob"),
        ("format=mxfp4", "one text"),
        (["format=mxfp4", "resume=true"], "resume: is for the command line"),
        (["format=mxfp4", "dry_run=true"], "dry_run: is for the command line"),
    ],
)
def test_words_that_make_no_sense_leave_nothing(
    words: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=why):
        mxsweep.sweep(words)
    assert list(tmp_path.iterdir()) == []
