"""Find the last words of calibration texts: what a search looks at where a task asks for chosen words.

Most tasks score a few tokens behind a text: LAMBADA the last word of a passage, others an answer. Of such a kind in a
calibration text is the last word of a sentence, or of a generated story, whose last word is its answer. The loss of
all tokens says little of them: it is made of words that the sentence alone tells, and these need the whole text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mxsweep.calibrate.texts import Calibration
from mxsweep.config.rules_config import ALL_TOKENS, LAST_WORDS
from mxsweep.terminal.errors import ConfigError

_CHOSEN = ("loglikelihood", "multiple_choice")  # lm-eval's types of tasks that score words behind a text

# Signs that belong to the letter before them, as vowels in Hindi, which \w leaves out; and joiners within words.
_SIGNS = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c))[0] == "M") + "\u200c\u200d"
# Of Chinese and Japanese, which have no spaces between words, a word is a character, and with it the token that has it.
_SPACELESS = "\u3005\u3041-\u30fa\u30fc-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTERS = rf"(?:[^\W{_SPACELESS}]|[{_SIGNS}])+"
_WORD = rf"(?:[{_SPACELESS}]|(?<![^\W{_SPACELESS}])(?<![{_SIGNS}]){_LETTERS}(?:['\u2019-]{_LETTERS})*)"
# What a full stop behind does not make the end of a sentence: initials ("J.", "p.", "U.S.") and titles.
_TITLES = "mr|mrs|ms|messrs|mme|mlle|dr|prof|rev|hon|capt|col|gen|lt|sgt|maj|st|sr|jr|esq|mt|vs|cf|pp|vol"
_SHORTENED = rf"(?:[^\W\d_]|(?i:{_TITLES}))\.(?![.!?\u2026])"
# With what may stand behind it: marks that end a sentence, quotes and brackets that close, a space. Marks as wide as a
# character need no space.
_STOPS = ".!?\u2026\u0964\u0965\u061f\u06d4"
_CLOSING = "\"'\u201d\u2019\u00bb)\\]"
_END = rf"[{_STOPS}]+[{_CLOSING}]*(?:\s|$)|\u2026*[\u3002\uff01\uff1f\uff61]"
_LAST_OF_SENTENCE = re.compile(rf"(?!(?<!\w){_SHORTENED}){_WORD}(?={_END})")
_LAST_OF_TEXT = re.compile(rf"{_WORD}(?=\W*$)")


@dataclass(frozen=True, eq=False)
class LastWords:
    """Hold which tokens of each sequence belong to last words.

    Attributes:
        tokens: bool (T_i - 1,), of the tokens that are predicted: all but the first.
        counts: int64 (n,), how many words they are.
    """

    tokens: tuple[np.ndarray, ...]
    counts: np.ndarray


def positions_for(asked: str, tasks: Mapping[str, Any]) -> str:
    """Return which tokens a search looks at: ``asked``, or for "auto" last words if a task scores chosen words.

    Args:
        asked: the value of rotation.positions.
        tasks: lm-eval's, by name.
    """
    if asked != "auto":
        return asked
    return LAST_WORDS if any(task.OUTPUT_TYPE in _CHOSEN for task in tasks.values()) else ALL_TOKENS


def find_last_words(calibration: Calibration) -> LastWords:
    """Return the last words of sentences; of texts that are whole, of each text alone.

    Initials and titles before a full stop end no sentence. Of a script without spaces between words a last word is the
    token that has the last character. A word is left out if the sequence begins with it, since nothing predicts it.

    Raises:
        ConfigError: no sequence has one, or the tokenizer cannot tell which characters a token is.
    """
    if calibration.spans is None:
        raise ConfigError(
            "rotation.positions: the tokenizer does not tell which characters a token is, so that last words cannot be "
            "found; allowed: all"
        )
    pattern = _LAST_OF_TEXT if calibration.whole else _LAST_OF_SENTENCE
    tokens, counts = [], []
    for text, spans in zip(calibration.texts, calibration.spans, strict=True):
        starts, ends = spans.T
        chosen, count = np.zeros(len(spans), dtype=bool), 0
        for word in pattern.finditer(text):
            of_word = (starts < word.end()) & (ends > word.start()) & (ends > starts)
            if of_word.any() and not of_word[0]:
                chosen |= of_word
                count += 1
        tokens.append(chosen[1:])
        counts.append(count)
    if not any(counts):
        raise ConfigError(
            f"rotation.positions: {calibration.description}: no sentence ends there in a word with one of "
            ". ! ? \u2026 \u3002 \uff01 \uff1f \u0964 \u061f behind it; allowed: all, or another calibration text"
        )
    return LastWords(tuple(tokens), np.array(counts))
