"""Read a line of JSON field by field, so that a field which nobody asks for may be one that cannot be read.

Python reads lists in lists up to the depth that it calls functions to, and whole numbers up to some thousand digits.
"""

from __future__ import annotations

import contextlib
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

    Lists that are too deep to be read are looked at for their brackets alone.

    Raises:
        json.JSONDecodeError: a line that is not JSON.
        FieldTwiceError: two fields of an object have one name.
    """
    is_object = line.lstrip().startswith("{")
    try:
        _check(line)
    except RecursionError:
        if is_object:
            _check(_outline(line))
    if not is_object:
        return None
    return _unique([(name, _read(text)) for name, text in _fields(line)])


def _check(line: str) -> None:
    """Refuse what is not JSON, whatever the length of its numbers. Raises what read_row raises."""
    json.loads(line, object_pairs_hook=_unique, parse_int=str)


def _outline(line: str) -> str:
    """Return an object's line with null in place of each list and object in it. Raises JSONDecodeError."""
    parts: list[str] = []
    opened: list[str] = []
    begin = 0
    for match in _TOKEN.finditer(line):
        token = match.group()
        if token in ("[", "{"):
            if len(opened) == 1:
                parts += [line[begin : match.start()], "null"]
            opened.append(token)
        elif token in ("]", "}"):
            if not opened or opened.pop() + token not in ("[]", "{}"):
                raise json.JSONDecodeError(f"Unexpected {token!r}", line, match.start())
            if len(opened) == 1:
                begin = match.end()
    if opened:
        raise json.JSONDecodeError(f"Unclosed {opened[-1]!r}", line, len(line))
    return "".join(parts) + line[begin:]


def _read(text: str) -> Any:
    """Return what the text of a value holds, Unread where it cannot be read. Raises as read_fields does."""
    try:
        return read_row(text)
    except (json.JSONDecodeError, FieldTwiceError):
        raise
    except (ValueError, RecursionError) as error:
        with contextlib.suppress(RecursionError):
            _check(text)
        return Unread(str(error))


def _fields(line: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each field of an object that was checked, by counting brackets."""
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
