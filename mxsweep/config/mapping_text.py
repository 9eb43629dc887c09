"""Read mappings whose keys Hydra's grammar does not know: ``{model.layers.[01].*: none, "*.down_proj": mxfp8_e4m3}``.

Hydra takes keys of letters, digits and a few signs only, while a glob pattern may hold brackets, an exclamation mark
or quotes. Such a mapping travels through Hydra as one text, in JSON, and becomes a mapping again once the config is
composed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.types import QuotedString

from mxsweep.config.override_grammar import read_override, verbatim

_CLOSING = {"[": "]", "{": "}", "(": ")"}


def mappings_as_texts(text: str) -> str:
    """Rewrite the mappings in ``text``, several of a sweep between commas, as quoted texts for Hydra, each JSON.

    Raises:
        ValueError: anything but mappings and null, or a value that Hydra cannot read.
    """
    parts = [part.strip() for part in _split(text, ",")]
    return ",".join(
        part if part == "null" else verbatim(json.dumps(_mapping(part), ensure_ascii=False)) for part in parts
    )


def _mapping(text: str) -> dict[str, Any]:
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError(f"{text!r} is no mapping")
    mapping = {}
    for item in _split(text[1:-1], ",") if text[1:-1].strip() else []:
        key, *values = _split(item, ":")
        key = key.strip()
        if not key or not values:
            raise ValueError(f"{item!r} is no KEY: VALUE")
        quoted = len(key) > 1 and key[0] == key[-1] and key[0] in "'\""
        mapping[key[1:-1] if quoted else key] = _value(":".join(values).strip())
    return mapping


def _value(text: str) -> Any:
    if text.startswith("{"):
        return _mapping(text)
    override = read_override(f"x={text}")
    if override.is_sweep_override():
        raise ValueError(f"{text!r} names several values")
    return _plain(override.value())


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _split(text: str, separator: str) -> Iterator[str]:
    """Yield the parts of ``text`` between separators that stand in no brackets and no quotes."""
    open_brackets: list[str] = []
    quote, start = "", 0
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _CLOSING:
            open_brackets.append(_CLOSING[character])
        elif open_brackets and character == open_brackets[-1]:
            open_brackets.pop()
        elif character == separator and not open_brackets:
            yield text[start:position]
            start = position + 1
    if quote or open_brackets:
        raise ValueError(f"{text!r}: {quote or open_brackets[-1]} is missing")
    yield text[start:]
