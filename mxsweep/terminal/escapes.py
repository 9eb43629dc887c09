"""Write a text that is somebody else's so that whatever shows it shows it, and does nothing.

Records, names of files and messages of libraries hold any text. A terminal takes some for orders, a spreadsheet for
formulas, a viewer of Markdown for images, links and headings. One function for each; LaTeX's is in report/table.py, and
the page's is Jinja's.
"""

from __future__ import annotations

import re
import unicodedata

# Controls, invisible formatting (of which some turn the direction of what follows), separators of lines, halves of
# surrogate pairs, and codes that stand for nothing.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # which letters of some scripts and emoji need
_MARKUP = re.compile(
    r"([|*<>`\\~$]"
    r"|\](?=[(\[:])"  # the end of what a link, an image or a definition names
    r"|(?<![^\W_])_|_(?![^\W_]))"  # a_b is no markup, _a_ is
)
_ADDRESS = re.compile(r"(?i)\b((?:https?|ftp|mailto|xmpp):|www\.)")
_BLOCK = re.compile(r"\A(#{1,6}(?=\s|\Z)|[-+](?=\s|\Z)|[-=]{2,}\Z|=\Z|\[(?=[ xX]\]))")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBERED = re.compile(r"\A(\d+)([.)])(?=\s|\Z)")


def printable(text: str) -> str:
    r"""Return a text as a terminal may print it: what would steer it as an escape (``\x1b``); lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _is_shown(c) else _escape(c) for c in text)


def for_csv(value: object) -> object:
    """Return a cell's value so that a spreadsheet takes no text for a formula: one that could be stands behind a '."""
    if not isinstance(value, str) or _is_number(value):
        return value
    # Spreadsheets pass over blanks before a sign, and take the full-width signs for the usual ones.
    return f"'{value}" if value.startswith(("\t", "\r")) or value.lstrip().startswith(_FORMULA) else value


def for_markdown(text: str) -> str:
    """Return a text, of one line, that GitHub's Markdown shows as it stands: no image, link, heading, list or HTML."""
    text = _MARKUP.sub(r"\\\1", " ".join(printable(text).split()))
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text).replace("@", r"\@")
    # An address becomes a link without any markup.
    text = _ADDRESS.sub(lambda match: f"{match[1][:-1]}\\{match[1][-1]}", text)
    return _NUMBERED.sub(r"\1\\\2", _BLOCK.sub(r"\\\1", text))


def _is_shown(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in _UNSHOWN


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
