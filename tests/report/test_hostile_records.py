"""Records that a stranger wrote: whatever stands in them, the others are collected, and each that is not is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile import VALUES, fuzzing, places, with_value
from helpers.made_report import put_study
from hypothesis import given
from hypothesis import strategies as st

from mxsweep.report.collection import collect
from mxsweep.report.figures import figure_files
from mxsweep.report.figures.draw import ChartFiles
from mxsweep.report.status import status_text
from mxsweep.results.record import find_runs


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "s"
    put_study(folder, blocks=(16, 32), scale_bits=(8,), kv=("none",), noise=False)
    return folder


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """The charts are made, and not drawn, which another program does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure_files, "draw_charts", lambda charts, _: json.dumps(charts) and ChartFiles())
        yield


@given(data=st.data())
@fuzzing(12)
def test_a_record_with_anything_anywhere(study: Path, no_pictures: None, tmp_path: Path, data: Any) -> None:
    folder = tmp_path / "s"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(study, folder)
    changed = sorted(folder.glob("*/result.json"))[: data.draw(st.integers(1, 2))]
    for path in changed:
        record = json.loads(path.read_text())
        for _ in range(data.draw(st.integers(1, 3))):
            there = sorted((place for place in places(record) if place), key=str)
            record = with_value(record, data.draw(st.sampled_from(there)), data.draw(VALUES))
        path.write_text(json.dumps(record))
    result = collect(folder)
    assert result.done + result.failed >= 3 - len(changed)
    assert result.done + result.failed + result.unreadable == 3 and result.write_error is None
    status_text(find_runs(folder))


def test_a_record_that_makes_no_sense_is_listed_and_the_others_are_collected(
    study: Path, no_pictures: None, tmp_path: Path
) -> None:
    shutil.copytree(study, tmp_path / "s")
    path = next((tmp_path / "s").glob("block_size16*/result.json"))
    record = json.loads(path.read_text())
    record["diagnostics"]["distance"]["story"]["top1_agreement"] = []
    path.write_text(json.dumps(record))
    result = collect(tmp_path / "s")
    assert (result.done, result.unreadable) == (2, 1)
    assert "Unreadable: 1" in result.text and "makes no sense in its record: TypeError: " in result.text
    assert "block_size=32" in (tmp_path / "s" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "digits", [str(2**63), str(-(2**63) - 1), "1" + "0" * 400, "1" + "0" * 5000], ids=lambda digits: str(len(digits))
)
def test_a_whole_number_that_nothing_holds_makes_its_record_unreadable(
    study: Path, tmp_path: Path, digits: str
) -> None:
    shutil.copytree(study, tmp_path / "s")
    path = next((tmp_path / "s").glob("block_size16*/result.json"))
    path.write_text(path.read_text().replace('"seed": 1234', f'"seed": {digits}', 1))
    result = collect(tmp_path / "s", tmp_path / "out")
    assert result.unreadable == 1 and result.done == 2
    assert f"holds a whole number of {len(digits.lstrip('-'))} digits" in result.text


def test_whole_numbers_that_an_int64_holds_are_read(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    path = next((tmp_path / "s").glob("block_size16*/result.json"))
    path.write_text(path.read_text().replace('"seed": 1234', f'"seed": {2**63 - 1}', 1))
    assert collect(tmp_path / "s", tmp_path / "out").unreadable == 0
