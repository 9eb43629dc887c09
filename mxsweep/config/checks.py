"""Check single values: each check raises ConfigError naming the field, the value and what is allowed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mxsweep.config.json_rows import FieldTwiceError, Unread, read_fields, read_row
from mxsweep.config.refusals import unreadable
from mxsweep.files.checkpoint_problems import folder_problem
from mxsweep.files.checkpoints import EMBEDDED, is_file, packed_gguf
from mxsweep.files.digests import file_digests
from mxsweep.files.gguf_header import SUFFIX, GGUFError, read_header
from mxsweep.files.text_files import UNREADABLE, open_text
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted

NAME_MAX = 255  # bytes of a file's name on the file systems of Linux and macOS
# What a checkpoint's weights are called, whoever wrote it: a folder without any of these is not worth loading.
_WEIGHTS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack")


def expanded(field: str, path: str) -> Path:
    """Return the path with its ~ replaced. Raises ConfigError where there is no such home, or a name is too long."""
    try:
        full = Path(path).expanduser() if path.startswith("~") else Path(path)  # ./~x is no home
    except RuntimeError:
        raise ConfigError(f"{field}: {path!r} is below a home that cannot be found; give the full path") from None
    if any(len(os.fsencode(part)) > NAME_MAX for part in full.parts):  # an OSError for whoever looks for it
        raise ConfigError(f"{field}: {path!r} does not exist: a name in it is longer than {NAME_MAX} bytes")
    return full


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; False of a name too long for one, or that may not be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_choice(field: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{field}: {quoted(value)} is not known; allowed: {', '.join(allowed)}")


def check_flag(field: str, value: Any) -> None:
    """Raise ConfigError unless the value is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{field}: {quoted(value)} is not a yes or no; allowed: true, false")


def check_integer(field: str, value: Any, low: int, high: int | None, allowed: str) -> None:
    """Raise ConfigError unless the value is a whole number from ``low`` to ``high`` (None: without end)."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        raise ConfigError(f"{field}: {quoted(value)} is not allowed; allowed: {allowed}")


def check_activation_scale(field: str, value: Any) -> None:
    """Raise ConfigError unless the value is one of two words, or a number that float32 holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value not in ("dynamic", "static") and not (number and 2.0**-126 <= value < 2.0**128):
        raise ConfigError(f"{field}: {quoted(value)} is not allowed; allowed: dynamic, static, a number above 0")


def check_model_path(field: str, path: Any) -> None:
    """Raise ConfigError unless the path is a folder or a GGUF file with a model, a name on the hub, or "embedded"."""
    hint = "the name of a model on the Hugging Face hub (owner/name), a folder with a config.json or a GGUF file"
    if path is None:
        raise ConfigError(f"{field}: is not given; give {hint}")
    if path == "":
        raise ConfigError(f"{field}: '' is empty; give {hint}")
    if not isinstance(path, str):
        raise ConfigError(f"{field}: {quoted(path)} is not a name; give {hint}")
    if path == EMBEDDED:
        return
    folder = expanded(field, path)
    if is_folder(folder):
        if packed := packed_gguf(folder):
            return _check_gguf(field, str(packed), packed)
        if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS) and (
            there := sorted(folder.glob(f"*{SUFFIX}"))
        ):
            raise ConfigError(
                f"{field}: {path!r} holds GGUF files; name the one that is meant, as {field}={path}/{there[0].name}"
            )
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{field}: {path!r} is a folder without a config.json; give {hint}")
        if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
            raise ConfigError(
                f"{field}: {path!r} is a folder without weights; give one that holds a model.safetensors (or its "
                "parts with their index, or a pytorch_model.bin)"
            )
        if problem := folder_problem(folder):
            raise ConfigError(f"{field}: {path!r} {problem}")
    elif folder.suffix.lower() == SUFFIX:
        _check_gguf(field, path, folder)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise ConfigError(f"{field}: {path!r} does not exist; give {hint}")


def _check_gguf(field: str, path: str, file: Path) -> None:
    """Raise ConfigError for a GGUF file that is not there, damaged, or a part of a model."""
    if not is_file(file):
        raise ConfigError(f"{field}: {path!r} is not a file; give a GGUF file, a folder or a name on the hub")
    try:
        header = read_header(file)
    except GGUFError as error:
        raise ConfigError(f"{field}: {path!r} {error}") from None
    except OSError as error:
        raise ConfigError(unreadable(field, path, error)) from None
    if header.parts > 1:
        raise ConfigError(
            f"{field}: {path!r} is one of {header.parts} parts of a model; join them into one file first "
            "(llama-gguf-split --merge FIRST-PART OUT.gguf)"
        )


def check_limit(field: str, limit: Any) -> None:
    """Raise ConfigError unless the limit is a count of examples, a fraction of them, or None."""
    whole = isinstance(limit, int) and not isinstance(limit, bool) and 0 < limit < 2**63
    share = isinstance(limit, float) and 0 < limit < 1
    if limit is not None and not whole and not share:
        raise ConfigError(
            f"{field}: {quoted(limit)} is not allowed; give none (all), a fraction between 0 and 1, or a whole count"
        )


def file_digest(file: str) -> str:
    """Return the SHA-256 (hex) of a data file's content: what it holds decides a result, not where it lies.

    Raises:
        ConfigError: a file that is not there any more, or cannot be read.
    """
    try:
        return file_digests([Path(file).expanduser()])[0]
    except OSError as error:
        raise ConfigError(unreadable("task.data", file, error)) from None


def check_rows(
    file: str, field: str | None, first_only: bool = False, knob: str = "task.data", all_text: bool = False
) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, each an object that holds ``field`` (where one is known).

    A value that cannot be read, of another field, is an Unread, unless every text is asked for.

    Args:
        file: a path.
        field: that each row must hold, as a text.
        first_only: look at the first row alone.
        knob: what names the file, for messages.
        all_text: whether every text of a row must be one that UTF-8 can write, not that of ``field`` alone.

    Raises:
        ConfigError: a missing, unreadable or empty file, or a row of another shape, with its line number.
    """
    return [row for row, _ in islice(rows_of(file, field, knob, all_text), 1 if first_only else None)]


def rows_of(
    file: str, field: str | None, knob: str = "task.data", all_text: bool = False
) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the rows that :func:`check_rows` returns one by one, each with the bytes of the file read until then."""
    path = expanded(knob, file)
    if not is_file(path):
        raise ConfigError(f"{knob}: {file!r} is not a file; give a JSON-lines file, one document a row")
    empty = True
    try:
        with open_text(path) as opened:
            for number, line in _numbered(opened.lines):
                yield _row(f"{knob}: {file!r} line {number}", line, field, all_text), opened.position()
                empty = False
    except UNREADABLE as error:
        raise ConfigError(f"{knob}: {file!r} cannot be read: {error}") from None
    if empty:
        raise ConfigError(f"{knob}: {file!r} holds no rows; give a JSON-lines file, one document a row")


def line_of_row(file: str, number: int) -> int:
    """Return the line, from 1, of a row of a file of :func:`check_rows`, by its number among the rows, from 0."""
    with open_text(expanded("task.data", file)) as opened:
        return next(line for row, (line, _) in enumerate(_numbered(opened.lines)) if row == number)


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not empty with their numbers, from 1."""
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _row(where: str, line: str, field: str | None, all_text: bool) -> dict[str, Any]:
    try:
        try:
            row = read_row(line)
        except (json.JSONDecodeError, FieldTwiceError):
            raise
        except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
            row = read_fields(line)
            if row is None or all_text:
                raise
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON ({error.msg}); give JSON lines") from None
    except FieldTwiceError as twice:
        raise ConfigError(f"{where} has the field {str(twice)!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is not an object with named fields")
    if isinstance(unread := row.get(field), Unread):
        raise ConfigError(f"{where}: the field {field!r} cannot be read: {unread.reason}")
    if field in row and not isinstance(row[field], str):
        held = json.dumps(row[field], ensure_ascii=False)
        raise ConfigError(f"{where}: the field {field!r} is {held[:50]}; allowed: text, in quotes")
    halved = [
        name
        for name, value in row.items()
        if (all_text or name == field) and not _is_text(json.dumps([name, value], ensure_ascii=False))
    ]
    if halved:
        raise ConfigError(
            f"{where}: the field {halved[0]!r} holds half of a surrogate pair, as \\ud800, which is no character; "
            "allowed: UTF-8 text"
        )
    if field is not None and field not in row:
        there = ", ".join(map(repr, row)) or "none"
        raise ConfigError(f"{where} has no text field {field!r}; it has {there}")
    return row


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
