"""Look at a text file that a knob names, as far as planning does: whether it is there, and begins as a text."""

from __future__ import annotations

from pathlib import Path

from mxsweep.config.checks import check_rows, expanded
from mxsweep.config.refusals import not_utf8
from mxsweep.files.checkpoints import is_file
from mxsweep.files.text_files import UNREADABLE, open_text, unpacked_suffix
from mxsweep.terminal.errors import ConfigError

ROWS_SUFFIX = ".jsonl"
CHECKED_CHARACTERS = 2**16  # of a text, before it is read


def has_rows(path: Path) -> bool:
    """Return whether each line of the file, which may be packed, is a document of its own, in JSON."""
    return unpacked_suffix(path) == ROWS_SUFFIX


def check_text_file(knob: str, name: str, field: str) -> None:
    """Raise ConfigError for a file that is not there, is empty or no UTF-8, or whose first row lacks the field.

    Args:
        knob: the knob that names the file, for messages.
        name: the file's, as it was typed.
        field: which holds the text of a row.
    """
    path = expanded(knob, name)
    if not is_file(path):
        raise ConfigError(
            f"{knob}: {name!r} is not a file; give a UTF-8 text (also .xz, .gz), or {ROWS_SUFFIX} with the field "
            f"{field!r}"
        )
    if has_rows(path):
        check_rows(name, field, first_only=True, knob=knob)
        return
    try:
        with open_text(path) as opened:
            beginning = opened.lines.read(CHECKED_CHARACTERS)
    except UNREADABLE as error:
        raise ConfigError(not_utf8(knob, name, error)) from None
    if not beginning.strip():
        raise ConfigError(f"{knob}: {name!r} is empty; give a UTF-8 text")
