"""Make docs/models.md: measure every architecture, and write what was found (``make models``).

Architectures of which the same was found share a line. Messages of refusals are notes below the table, without what
is of one architecture alone (the name of its class, the number of a layer).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import transformers

from matrix.architectures import ARCHITECTURES, SIZES, Architecture, by_title
from matrix.cells import COLUMNS, REFUSED, UNASKED, WRONG, measure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"

Rows = dict[str, tuple[str, ...]]
"""By an architecture's title: of each column what was found; "refused: MESSAGE" where mxsweep refuses."""

HEAD = """# What happens on which model

{count} architectures, each a tiny model with random weights (hidden size {hidden}, two or three layers, {experts}
experts of which a token gets two, float32 on a CPU) of the class that transformers {version} has for it, with its own
attention, masks and experts. A cell is what was measured on that model (`tests/matrix/`); where it does not hold, a
test fails. That it holds at this size says that the right tensors are quantized in the right way; it says nothing of
what a format costs.

*weights*, *inputs* and *KV* are compared with the logits of plain transformers after tensors were quantized by hand, in
a second model of the same weights or where torch is called; only what rounds a tensor is mxsweep's own (tests in
`tests/numerics/` compare that with microxcaling). *rotation* is, too, and takes more from mxsweep, as its line says.
*scores* are compared with plain transformers' as it is, *residual* with the model's own logits, *budget* with bits
counted by hand, *GPTQ* with rounding. *causal*, *batch*, *stochastic*, *dry run* and *restored* compare mxsweep with
itself: with other tokens, alone, planned, and before.

`make models` makes the page again, in minutes. A test compares each row with what it measures
([working on mxsweep](../CONTRIBUTING.md#the-matrix-of-models)).

*ok*: all of what the column says holds. *n of m*: it holds, and n of the m matrices take part; under *weights* and
*inputs* the others stay as they are, of which a run warns where they are more than {unasked:.0%} of the weights.
*refused*: before a model is evaluated, with the message of that number, below.

"""


def render(rows: Rows) -> str:
    """Return the page."""
    sizes = {"count": len(ARCHITECTURES), "hidden": SIZES["hidden_size"], "experts": SIZES["num_experts"]}
    sizes["unasked"] = UNASKED
    lines = [HEAD.format(version=transformers.__version__, **sizes)]
    lines.append("| column | what holds |\n| --- | --- |")
    lines += [f"| {column.title} | {column.meaning} |" for column in COLUMNS]
    notes: dict[str, int] = {}
    together: dict[tuple[str, ...], list[str]] = {}
    for title, cells in rows.items():
        together.setdefault(cells, []).append(title)
    lines.append("\n| architectures | " + " | ".join(column.title for column in COLUMNS) + " |")
    lines.append("| --- |" + " --- |" * len(COLUMNS))
    for cells, titles in together.items():
        shown = [_with_note(cell, notes) for cell in cells]
        lines.append(f"| {', '.join(titles)} | {' | '.join(shown)} |")
    lines.append("\nThe messages, without what is of one model alone:\n")
    lines += [f"{number}. {note}" for note, number in notes.items()]
    return "\n".join(lines) + "\n"


def read(page: str) -> Rows:
    """Return the rows of a page."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    rows = {}
    for line in page.partition("| architectures |")[2].splitlines()[2:]:
        titles, *shown = line.strip("| ").split(" | ")
        if len(shown) != len(COLUMNS):
            break
        row = tuple(re.sub(r"^refused \[(\d+)\]$", lambda found: f"{REFUSED}{notes[found[1]]}", cell) for cell in shown)
        rows |= dict.fromkeys(titles.split(", "), row)
    return rows


def _with_note(cell: str, notes: dict[str, int]) -> str:
    if not cell.startswith(REFUSED):
        return WRONG if cell.startswith(WRONG) else cell
    return f"refused [{notes.setdefault(cell.removeprefix(REFUSED), len(notes) + 1)}]"


def _row(title: str) -> tuple[str, tuple[str, ...]]:
    logging.disable(logging.WARNING)  # warnings of runs are in their reports
    return title, tuple(measure(by_title(title)).values())


def measure_all(architectures: Sequence[Architecture]) -> Rows:
    """Return the rows of these architectures, measured in as many processes as there are cores."""
    titles = [architecture.title for architecture in architectures]
    rows = {}
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        for title, cells in pool.imap(_row, titles):
            rows[title] = cells
            print(f"{len(rows)} of {len(titles)}: {title}", *(c for c in cells if c.startswith(WRONG)), file=sys.stderr)
    return rows


def main(titles: Sequence[str]) -> int:
    """Print the page; answer 1 where something is wrong.

    Args:
        titles: the architectures to measure, the others' rows staying as they are on the page; none for all.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that measure
    found = measure_all([architecture for architecture in ARCHITECTURES if not titles or architecture.title in titles])
    known = read(PAGE.read_text(encoding="utf-8")) | found if titles else found
    rows = {architecture.title: known[architecture.title] for architecture in ARCHITECTURES}
    print(render(rows), end="")
    return int(any(cell.startswith(WRONG) for cells in rows.values() for cell in cells))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
