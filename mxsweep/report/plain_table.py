"""Write a table as a terminal shows it: no line longer than 100 letters, whatever the table holds.

What does not fit is made narrower: titles are broken first, then the texts of the widest columns. Where that is not
enough, the columns go into blocks below each other, whose rows are numbered.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from mxsweep.report.table import Table

TERMINAL_WIDTH = 100
GAP = "  "
LONGEST_WORD = 24  # that is not broken
NUMBER = "#"


def plain(table: Table, width: int = TERMINAL_WIDTH) -> str:
    """Return the table with no line longer than `width`, left-aligned; nothing of one without columns."""
    if not table.columns:
        return ""
    columns = [[title, *texts] for title, *texts in zip(table.columns, *table.texts, strict=True)]
    widths = _narrowed(columns, width)
    if _total(widths) <= width:
        return _block(columns, widths)
    number = [NUMBER, *(str(row) for row in range(1, len(table.rows) + 1))]
    of_number = len(number[-1])
    room = width - of_number - len(GAP)
    blocks: list[list[int]] = [[]]
    for index, each in enumerate(widths):
        if blocks[-1] and _total([*(widths[other] for other in blocks[-1]), each]) > room:
            blocks.append([])
        blocks[-1].append(index)
    return "\n\n".join(
        _block([number, *(columns[i] for i in block)], [of_number, *(widths[i] for i in block)]) for block in blocks
    )


def _narrowed(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the widths of columns, whose first texts are titles, narrowed towards `width` as far as words allow."""
    widths = [max(map(len, texts)) for texts in columns]
    of_titles = [_longest_word(texts[0], r"[ _]") for texts in columns]
    wrapping_titles = [max(title, *map(len, texts[1:]), 1) for title, texts in zip(of_titles, columns, strict=True)]
    wrapping_all = [
        max(title, *(_longest_word(text, " ") for text in texts[1:]), 1)
        for title, texts in zip(of_titles, columns, strict=True)
    ]
    for least in (wrapping_titles, wrapping_all):
        while _total(widths) > width:
            over = [index for index, each in enumerate(widths) if each > least[index]]
            if not over:
                break
            widths[max(over, key=widths.__getitem__)] -= 1
    return [min(each, width // 2) for each in widths] if _total(widths) > width else widths


def _longest_word(text: str, at: str) -> int:
    return min(LONGEST_WORD, max((len(word) + (at != " ") for word in re.split(at, text)), default=1))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _block(columns: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    head, *rows = zip(*columns, strict=True)
    lines = [*_lines(head, widths, is_head=True), GAP.join("-" * width for width in widths)]
    for row in rows:
        lines += _lines(row, widths)
    return "\n".join(line.rstrip() for line in lines)


def _lines(row: Sequence[str], widths: Sequence[int], is_head: bool = False) -> Iterator[str]:
    """Yield the lines of a row, as many as its highest cell has."""
    cells = [_wrapped(text, width, is_head) for text, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*cells, fillvalue=""):
        yield GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True))


def _wrapped(text: str, width: int, is_head: bool) -> list[str]:
    if len(text) <= width:
        return [text]
    parts = re.findall(r"[^ _]*[ _]|[^ _]+", text) if is_head else []
    if not parts or max(len(part.rstrip()) for part in parts) > width:
        return textwrap.wrap(text, width, break_on_hyphens=False)
    lines = [""]
    for part in parts:  # a title is broken behind an underscore, too
        if len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]
