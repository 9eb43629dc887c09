"""Values that a stranger may put into files of a sweep, and how many of them are tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MORE = "MXSWEEP_FUZZ"  # how many times as many examples as in CI


def fuzzing(examples: int) -> settings:
    """Settings of a test that draws the same examples each time, more of them where the variable says so."""
    more = int(os.environ.get(MORE, "1"))
    return settings(
        deadline=None,
        derandomize=more == 1,
        max_examples=examples * more,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


TEXTS = st.sampled_from(
    [
        "",
        "none",
        "../../x",
        "=1+1",
        "\x1b[2J",
        "![t](http://x)",
        "a\nb",
        "NaN",
        "\u202e",
        "</script>",
        "\x00",
        "9" * 400,
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -1, 2**62, 10**18, 1e308, -0.0, 5e-324]),
    st.floats(),
    TEXTS,
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in plain data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_value(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Plain data with something else at a path."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = with_value(value[path[0]], path[1:], new)
    return copied


def keep_from_this_user(file: Path, patch: pytest.MonkeyPatch) -> None:
    """Have a file be one that this user may neither read nor write, who may be root."""
    opens, may = os.open, os.access

    def is_it(path: Any) -> bool:
        return not isinstance(path, int) and os.path.abspath(path) == os.path.abspath(file)

    def opened(path: Any, *words: Any, **more: Any) -> int:
        if is_it(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opens(path, *words, **more)

    patch.setattr(os, "open", opened)
    patch.setattr(os, "access", lambda path, mode, **more: not is_it(path) and may(path, mode, **more))
