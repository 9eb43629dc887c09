"""Each architecture of the matrix: what was found on it is right, and is what docs/models.md says."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
import transformers

from matrix import cells
from matrix.architectures import ARCHITECTURES, Architecture, by_title
from matrix.cells import COLUMNS, FOLLOWED_BY_VALUES, LENGTHS, MOVED_OF, WRONG, Case, measure
from matrix.page import PAGE, read, render


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(architecture, id=architecture.title, marks=[] if architecture.spans else [pytest.mark.matrix])
        for architecture in ARCHITECTURES
    ],
)
def test_the_row_of(architecture: Architecture) -> None:
    found = measure(architecture)
    wrong = {column: cell for column, cell in found.items() if cell.startswith(WRONG)}
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " not in page:  # another version has other classes
        assert not wrong
        return
    said = dict(zip(found, read(page)[architecture.title], strict=True))
    assert {column: WRONG if column in wrong else cell for column, cell in found.items()} == said, wrong


def test_the_page_has_a_row_for_each_architecture_and_is_written_as_it_is_read() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = read(page)
    assert sorted(rows) == sorted(architecture.title for architecture in ARCHITECTURES)
    if f"transformers {transformers.__version__} " in page:
        assert render(rows) == page


def test_no_cell_of_the_page_is_wrong() -> None:
    for title, row in read(PAGE.read_text(encoding="utf-8")).items():
        assert len(row) == len(COLUMNS) and not any(cell.startswith(WRONG) for cell in row), title


def test_a_plan_that_leaves_open_what_a_text_reaches_is_wrong_but_where_the_matrix_names_the_model() -> None:
    case = Case(by_title("JetMoE"))
    assert cells.dry_run(case) == "left open"
    case.architecture = replace(case.architecture, title="JetMoE of another name")
    with pytest.raises(AssertionError, match="not followed without values: a short pass of tokens through JetMoe"):
        cells.dry_run(case)
    page = read(PAGE.read_text(encoding="utf-8"))
    assert sorted(title for title, row in page.items() if "left open" in row) == sorted(FOLLOWED_BY_VALUES)


def test_scores_of_two_sequences_that_differ_in_a_batch_are_wrong_but_where_the_matrix_names_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(by_title("Llama"))
    (named,) = MOVED_OF
    for moved, title, is_right in ((1, "Llama", True), (2, "Llama", False), (2, named, True), (3, named, False)):
        case.architecture, alone = replace(case.architecture, title=title), count()

        def scores(_: object, sequences: list[object], moved: int = moved, alone: count[int] = alone) -> list[float]:
            return [0.0] * len(LENGTHS) if len(sequences) > 1 else [0.01 * (next(alone) < moved)]

        monkeypatch.setattr(cells, "_scores", scores)
        if is_right:
            assert cells.batches(case) == "ok"
        else:
            with pytest.raises(AssertionError, match=f"differ for {moved} of 6 sequences"):
                cells.batches(case)
