"""Rows of data that a stranger wrote: the field that is asked for is read, or the line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mxsweep.config.checks import check_rows
from mxsweep.evaluate.task_rows import dataset_of
from mxsweep.terminal.errors import ConfigError

DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5001


def written(folder: Path, *lines: str) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


@pytest.mark.parametrize("value", [DEEP, LONG, f'{{"text": {DEEP}}}', f'["a,}}", "\\"", {LONG}]'])
def test_a_field_that_nobody_asks_for_may_be_one_that_cannot_be_read(value: str, tmp_path: Path) -> None:
    file = written(
        tmp_path, f'{{"more": {value}, "text": "a \\"{{b\\", c", "n": 1}}', '{"text": "d", "more": 2, "n": 3}'
    )
    rows = check_rows(file, "text")
    assert [row["text"] for row in rows] == ['a "{b", c', "d"] and [row["n"] for row in rows] == [1, 3]
    assert dataset_of(file, rows, lambda name: name != "more").to_dict() == {"text": ['a "{b", c', "d"], "n": [1, 3]}
    with pytest.raises(ConfigError, match=r"line 1: the field 'more' holds what cannot be read: .*allowed: values of"):
        dataset_of(file, rows, lambda _: True)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f'{{"text": {DEEP}}}', "line 1: the field 'text' cannot be read: maximum recursion"),
        (f'{{"text": {LONG}}}', "line 1: the field 'text' cannot be read: Exceeds the limit"),
        (f'{{"text": "a", "x": {DEEP}, "text": "b"}}', "line 1 has the field 'text' twice"),
        (f'{{"x": {DEEP}}}', "line 1 has no text field 'text'; it has 'x'"),
        (DEEP, "line 1 cannot be read: maximum recursion"),
        (DEEP[:-1], "line 1 cannot be read: maximum recursion"),
        (f'{{"text": "\\ud800", "x": {LONG}}}', "line 1: the field 'text' holds half of a surrogate pair"),
    ],
)
def test_what_is_asked_for_is_refused_by_its_line(line: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^task.data: '.*rows.jsonl' {why}"):
        check_rows(written(tmp_path, line), "text")


@pytest.mark.parametrize("value", ["1", LONG, DEEP, f"[{LONG}]"], ids=["short", "long", "deep", "list"])
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{{"a": {} "text": "x"}}', "is not JSON"),
        ('{{"a": {}, "text": "x"}} {{"text2": 1}}', "is not JSON"),
        ('{{"a": {}, "text": "x",}}', "is not JSON"),
        ('{{"a": {}, "text": "x"}}}}', "is not JSON"),
        ('{{"a": {}, "text": "x"', "is not JSON"),
        ('{{"a": {}, "text" "x"}}', "is not JSON"),
        ('{{"a": {}, text: "x"}}', "is not JSON"),
        ('{{"a": {}, "b": , "text": "x"}}', "is not JSON"),
        ('{{"a": {}, "b": [1 2], "text": "x"}}', "is not JSON"),
        ('{{"a": 1{}, "text": "x",}}', "is not JSON"),
        ('{{"a": {}, "b": [2], "text": "x"]', "is not JSON"),
        ('{{"a": {}, "b": {{"m": 1, "m": 2}}, "text": "x"}}', "has the field 'm' twice"),
    ],
)
def test_a_mistake_is_told_whatever_stands_before_it(line: str, why: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"line 1 {why}"):
        check_rows(written(tmp_path, line.format(value)), "text")


def test_a_field_that_stands_twice_beside_a_long_number_is_told(tmp_path: Path) -> None:
    file = written(tmp_path, f'{{"b": {{"m": {LONG}, "n": 1, "n": 2}}, "text": "x"}}')
    with pytest.raises(ConfigError, match="line 1 has the field 'n' twice"):
        check_rows(file, "text")


@pytest.mark.parametrize(("before", "after"), [("", "1"), ("1", ""), ("", "]"), ("[", ""), ("[", "}"), ("[]", "")])
def test_brackets_that_do_not_match_are_told(before: str, after: str, tmp_path: Path) -> None:
    deep = f"{before}{DEEP}{after}"
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        check_rows(written(tmp_path, f'{{"a": {deep}, "text": "x"}}'), "text")


def test_where_every_text_is_asked_for_every_value_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps({"text": "a"}), f'{{"text": "b", "x": {DEEP}}}')
    with pytest.raises(ConfigError, match="line 2 cannot be read: maximum recursion"):
        check_rows(file, None, all_text=True)
