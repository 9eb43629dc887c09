"""Find the last words of calibration texts: what a search looks at where a task asks for chosen words.

Most tasks score a few tokens behind a text: LAMBADA the last word of a passage, others an answer. Of such a kind in a
calibration text is the last word of a sentence, or of a generated story, whose last word is its answer. The loss of
all tokens says little of them: it is made of words that the sentence alone tells, and these need the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mxsweep.calibrate.texts import Calibration
from mxsweep.config.rules_config import ALL_TOKENS, LAST_WORDS
from mxsweep.terminal.errors import ConfigError

_CHOSEN = ("loglikelihood", "multiple_choice")  # lm-eval's types of tasks that score words behind a text

_WORD = r"\w+(?:['\u2019-]\w+)*"
# With what may stand behind it: marks that end a sentence, quotes and brackets that close, a space.
_LAST_OF_SENTENCE = re.compile(rf"{_WORD}(?=[.!?\u2026]+[\"'\u201d\u2019)\]]*(?:\s|$))")
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

    A word is left out if the sequence begins with it, since nothing predicts it.

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
            f"rotation.positions: {calibration.description}: no sentence ends there in a word (. ! ? or \u2026 behind "
            "it); allowed: all, or another calibration text"
        )
    return LastWords(tuple(tokens), np.array(counts))
