"""Write values as a person types them: on a command line, and in a config file."""

from __future__ import annotations

from typing import Any


def written(value: Any) -> str:
    """Return a value as it is typed behind ``KNOB=``: what has a word in YAML by that, a text as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(key)}: {written(item)}' for key, item in value.items())}}}"
    return str(value)


def quoted(value: Any) -> str:
    """Return a value as a message has it: as it is typed, but a text in quotes, which tell it from the message's."""
    return repr(value) if isinstance(value, str) else written(value)
