"""Values in messages are written as a person types them, not as Python has them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mxsweep.terminal.written_values import quoted, written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0.5, "0.5"),
        ([16, None], "[16,null]"),
        ((16, 32), "[16,32]"),
        (
            {"*.down_proj": {"weight": "int8", "tensor_scale": False}},
            "{*.down_proj: {weight: int8, tensor_scale: false}}",
        ),
    ],
)
def test_a_value_is_written_as_it_is_typed(value: Any, text: str) -> None:
    assert written(value) == quoted(value) == text


def test_a_text_is_in_quotes_in_a_message_alone() -> None:
    assert (written("int8"), quoted("int8")) == ("int8", "'int8'")


def test_yaml_reads_what_was_written() -> None:
    value = {"a": [1, 0.5, True, None, "x"], "b": {}}
    assert yaml.safe_load(written(value)) == value
