"""Read a line of JSON field by field, so that a field which nobody asks for may be one that cannot be read.

Python reads lists in lists up to the depth that it calls functions to, and whole numbers up to some thousand digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s"\[\]{},:]+')


class FieldTwiceError(ValueError):
    """Say that a field stands twice in an object."""


class Unread:
    """Stand in the place of a value that cannot be read; no column of a data set can hold it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        """Return why it cannot be read."""
        return f"what cannot be read: {self.reason}"


def read_row(line: str) -> Any:
    """Return what a line of JSON holds. Raises ValueError, of it FieldTwiceError, and RecursionError."""
    return json.loads(line, object_pairs_hook=_unique)


def read_fields(line: str) -> dict[str, Any] | None:
    """Return the fields of the object in a line of JSON, each that cannot be read as Unread; None of another line.

    Raises:
        FieldTwiceError: two fields have one name.
    """
    if not (line.lstrip().startswith("{") and line.rstrip().endswith("}")):
        return None
    return _unique([(name, _read(text)) for name, text in _fields(line)])


def _read(text: str) -> Any:
    try:
        return read_row(text)
    except (ValueError, RecursionError) as error:
        return Unread(str(error))


def _fields(line: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each field, by counting brackets."""
    depth, name, begin, before = 0, None, 0, ""
    for match in _TOKEN.finditer(line):
        token = match.group()
        if depth == 1 and token == ":":
            name, begin = json.loads(before), match.end()
        elif depth == 1 and token in (",", "}") and name is not None:
            yield name, line[begin : match.start()]
            name = None
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        before = token


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise FieldTwiceError(next(name for name in names if names.count(name) > 1))
    return fields
