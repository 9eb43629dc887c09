"""Tables of a terminal: never wider than it is, and nothing of them is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.made_report import put_study
from hypothesis import given
from hypothesis import strategies as st

from mxsweep.report.plain_table import TERMINAL_WIDTH, plain
from mxsweep.report.result_texts import memory_text, terminal_text
from mxsweep.report.table import Table, text_cells
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import study_groups
from mxsweep.study.memory_terms import DEFAULT_TERMS

WORDS = st.text("abcdefgh_ .=", max_size=60)


def table(columns: list[str], rows: list[list[str]]) -> Table:
    return Table("", columns, [text_cells(row) for row in rows])


@given(st.data())
def test_no_line_is_wider_and_no_letter_is_lost(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 14))
    columns = [data.draw(WORDS) for _ in range(count)]
    rows = [[data.draw(WORDS) for _ in range(count)] for _ in range(data.draw(st.integers(0, 3)))]
    text = plain(table(columns, rows))
    assert max(map(len, text.splitlines()), default=0) <= TERMINAL_WIDTH
    for letter in "abcdefgh_.=":
        assert text.count(letter) == sum(cell.count(letter) for row in [columns, *rows] for cell in row)


def test_what_fits_is_one_line_a_row() -> None:
    assert plain(table(["format", "acc"], [["none", "0.5 ± 0.1"], ["mxfp4", "–"]])).splitlines() == [
        "format  acc",
        "------  ---------",
        "none    0.5 ± 0.1",
        "mxfp4   –",
    ]


def test_titles_are_broken_before_texts() -> None:
    rows = [["a" * 20] * 4]
    lines = plain(table(["a_title_of_many_words_behind"] * 4, rows)).splitlines()
    assert lines[-1].split() == rows[0]
    assert lines[0].split() == ["a_title_of_many_words_"] * 4 and lines[1].split() == ["behind"] * 4


def test_columns_that_do_not_fit_go_below_with_numbered_rows() -> None:
    columns = [f"metric{i}" for i in range(20)]
    text = plain(table(columns, [[f"{10 * row + i}.12345" for i in range(20)] for row in range(2)]))
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert [block[0].split()[0] for block in blocks] == ["#"] * 3
    assert [title for block in blocks for title in block[0].split()[1:]] == columns
    assert [line.split()[0] for line in blocks[-1][2:]] == ["1", "2"]


@pytest.mark.parametrize("options", [{}, {"baseline": False}, {"modules": {"model.layers.*.self_attn.q_proj": "none"}}])
def test_a_study_fits_a_terminal(options: dict[str, object], tmp_path: Path) -> None:
    put_study(tmp_path, **options)  # type: ignore[arg-type]
    results = read_results(tmp_path)
    studied = study_groups(results)
    texts = [terminal_text(results, studied=studied), memory_text(studied, DEFAULT_TERMS)]
    said = ("  ", "Same in every finished run")  # commands, and knobs, which are one line each
    shown = [line for text in texts for line in text.splitlines() if not line.startswith(said)]
    assert max(map(len, shown)) <= TERMINAL_WIDTH
    assert not any(row.run.run_id in text for text in texts for row in results.rows)
