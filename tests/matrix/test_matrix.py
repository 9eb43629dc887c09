"""Each architecture of the matrix: what was found on it is right, and is what docs/models.md says."""

from __future__ import annotations

import pytest
import transformers

from matrix.architectures import ARCHITECTURES, Architecture
from matrix.cells import COLUMNS, WRONG, measure
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
    for title, cells in read(PAGE.read_text(encoding="utf-8")).items():
        assert len(cells) == len(COLUMNS) and not any(cell.startswith(WRONG) for cell in cells), title
