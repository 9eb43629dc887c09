"""Records that a stranger wrote: whatever stands in them, the others are collected, and each that is not is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.made_report import put_study

from mxsweep.report.collection import collect


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "s"
    put_study(folder, blocks=(16, 32), scale_bits=(8,), kv=("none",), noise=False)
    return folder


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
