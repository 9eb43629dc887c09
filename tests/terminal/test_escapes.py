"""Texts of strangers are shown, and do nothing: on a terminal, in a spreadsheet, in Markdown."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mxsweep.files.atomic import write_csv
from mxsweep.terminal.escapes import for_csv, for_markdown, printable

SHOWN = {"paragraph_open", "paragraph_close", "inline", "text"}


def rendered(source: str) -> tuple[set[str], str]:
    """The kinds of what a viewer of GitHub's Markdown makes of a source, and the text that it shows."""
    # Its rule that makes links of addresses needs a further package: what the rule looks for is looked for by hand.
    viewer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    assert not re.search(r"(?i)\b(https?|ftp|mailto|xmpp):|\bwww\.|[\w.+-]@", source)
    tokens = viewer.parse(source)
    inner = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inner)} - {"text_special"}
    return kinds, "".join(token.content for token in inner)


@pytest.mark.parametrize("usual", ["w4a6 ± 0.012", "Δ −1.2 %", "naïve 語", "a\n\tb", "👩\u200d🔬", ""])
def test_what_is_no_order_is_printed_as_it_is(usual: str) -> None:
    assert printable(usual) == usual


@given(st.text())
@settings(deadline=None, derandomize=True)
def test_nothing_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", shown)
    shown.encode()


def test_orders_are_named() -> None:
    assert printable("\x1b[2J\x07\r\x9b\u202e\u2028\ud800\U000e0001") == (
        r"\x1b[2J\x07\x0d\x9b\u202e\u2028\ud800\U000e0001"
    )


def test_a_spreadsheet_finds_no_formula(tmp_path: Path) -> None:
    rows = [
        ["=1+1", "+a", "-a", "@a", "\ta", "\r=1", " =1", "\n\u00a0@a", "\uff1d1"],
        ["-1.5", "-inf", "1e-3", "none", -1, None, " a", " -2", "\n"],
    ]
    write_csv(tmp_path / "x.csv", ["=name", *"bcdefghi"], rows)
    with (tmp_path / "x.csv").open(newline="") as file:
        names, formulas, usual = csv.reader(file)
    assert names[0] == "'=name"
    assert formulas == [f"'{text}" for text in rows[0]]
    assert usual == ["-1.5", "-inf", "1e-3", "none", "-1", "", " a", " -2", "\n"]
    assert for_csv(True) is True


@pytest.mark.parametrize(
    "text",
    [
        "![t](http://evil.example/track.png)",
        "[click](javascript:alert(1))",
        "[click][1]",
        "[1]: http://evil.example",
        "http://evil.example and https://evil.example, www.evil.example, mailto:a@evil.example, a@evil.example",
        "<img src=x onerror=alert(1)> &lt;b&gt; <!-- x",
        "# a heading",
        "- an item",
        "+ an item",
        "1. an item",
        "2) an item",
        "[ ] a task",
        "> a quote",
        "---",
        "===",
        "~~gone~~ **loud** __loud__ _em_ *em* `code` ```",
        "a | b",
        "a\n\n# b\n| c |",
        "\\[x](y) \\",
        "    code",
    ],
)
def test_markdown_shows_a_text_as_it_stands(text: str) -> None:
    kinds, shown = rendered(for_markdown(text))
    assert kinds <= SHOWN
    assert shown == " ".join(text.split())
    item_kinds, item = rendered(f"- {for_markdown(text)}")
    assert item_kinds <= SHOWN | {"bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"}
    assert item == " ".join(text.split())


@given(st.text(alphabet="[]()!#*_`~<>|\\-+=.1a :/@&;\nwhtps", max_size=40))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_no_text_is_markup(text: str) -> None:
    kinds, shown = rendered(for_markdown(text))
    assert kinds <= SHOWN and shown == " ".join(text.split())


@pytest.mark.parametrize("usual", ["fp4_e2m1-b32-e8m0", "[-0.1, 0.2]", "w4a6 (n = 8)", "-0.5", "a: b", "x #1"])
def test_usual_texts_have_no_backslashes(usual: str) -> None:
    assert for_markdown(usual) == usual
