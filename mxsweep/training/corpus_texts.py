"""Read the texts of a corpus piece by piece: generated stories, a file, a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mxsweep.calibrate.documents import hub_documents
from mxsweep.config.checks import expanded, rows_of
from mxsweep.config.named_texts import has_rows
from mxsweep.config.refusals import not_utf8, unreadable
from mxsweep.config.train_config import CorpusConfig
from mxsweep.evaluate.stories import stream
from mxsweep.files.digests import file_digests
from mxsweep.files.text_files import UNREADABLE, open_text
from mxsweep.terminal.errors import ConfigError

PIECE_CHARACTERS = 2**16  # of a long text, tokenized at a time; it ends with a line


@dataclass(frozen=True)
class Piece:
    """Hold a part of a document: whether the document begins and ends with it, and how far reading is then."""

    text: str
    begins: bool
    ends: bool
    done: int


@dataclass(frozen=True)
class Texts:
    """Hold documents that can be read again and again.

    Attributes:
        identity: plain data that tells them from all others.
        size: what ``Piece.done`` counts up to.
        pieces: reads them from the beginning. It raises ConfigError.
    """

    identity: dict[str, Any]
    size: int
    pieces: Callable[[], Iterator[Piece]]


def story_texts(split: str, count: int) -> Texts:
    """Return the first ``count`` stories of a split."""

    def pieces() -> Iterator[Piece]:
        for number, story in enumerate(islice(stream(split), count), 1):
            yield Piece(story.text, True, True, number)

    return Texts({"stories": split, "count": count}, count, pieces)


def file_texts(knob: str, name: str, field: str) -> Texts:
    """Return the texts of a file: of rows each a document, else one.

    Args:
        knob: what names the file, for messages.
        field: of a row that holds its text.

    Raises:
        ConfigError: the file is not there or cannot be read.
    """
    path = expanded(knob, name)
    rows = has_rows(path)
    try:
        size, digest = path.stat().st_size, file_digests([path])[0]
    except OSError as error:
        raise ConfigError(unreadable(knob, name, error)) from None
    # A suffix decides how the content is read.
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    identity = {"file": digest, "suffixes": suffixes, "field": field if rows else None}
    return Texts(identity, size, lambda: _rows(knob, name, field) if rows else _parts(knob, name, path))


def hub_texts(config: CorpusConfig) -> Texts:
    """Return the texts of a column of a data set. Raises ConfigError where it cannot be had."""
    documents = hub_documents(config, "corpus")

    def pieces() -> Iterator[Piece]:
        for number in range(len(documents)):
            yield Piece(documents[number], True, True, number + 1)

    return Texts({"data set": documents.fingerprint, "field": config.field}, len(documents), pieces)


def _rows(knob: str, name: str, field: str) -> Iterator[Piece]:
    for row, done in rows_of(name, field, knob=knob):
        yield Piece(row[field], True, True, done)


def _parts(knob: str, name: str, path: Path) -> Iterator[Piece]:
    """Yield a text in parts, each some whole lines (or a long part of one)."""
    try:
        with open_text(path) as opened:
            begins, text = True, opened.lines.read(PIECE_CHARACTERS)
            while text:
                text += opened.lines.readline(PIECE_CHARACTERS)
                following = opened.lines.read(PIECE_CHARACTERS)
                yield Piece(text, begins, not following, opened.position())
                begins, text = False, following
    except UNREADABLE as error:
        raise ConfigError(not_utf8(knob, name, error)) from None
