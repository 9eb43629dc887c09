"""Refuse to calibrate on what is evaluated: a model that has seen the questions answers for nothing.

What has the same source is refused by its name or content; any other text by what it says: no run of 32 words of a
calibration sequence may stand in an evaluated document, whatever the case, the punctuation or the line breaks. A
document of 13 to 31 words counts as one such run. (13 words are what GPT-3's authors compared, arXiv 2005.14165,
appendix C; a sentence of so many is quoted in good faith, 32 hardly ever.)

A sequence of fewer words cannot hold such a run. Without its first and last word, which may be parts of words, it
counts as a run where 13 or more are left; a shorter one proves nothing alone, but more than half of all do. Generated
stories are of a split of their own, and their short ones are let be: two stories begin alike by chance.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mxsweep.calibrate.texts import Calibration
from mxsweep.config.calibration_data import refuse_same_file
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.config.task_config import TaskConfig
from mxsweep.terminal.errors import ConfigError

RUN_WORDS = 32
SHORT_WORDS = 13  # documents of fewer words are too likely to be met by chance
LEAST_WORDS = 4  # of a sequence without its ends; fewer are met everywhere
_QUOTED_WORDS = 12

# Letters and digits; of scripts that put no space between words (Thai, Japanese, Chinese) every character.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_UNSPACED}]+|[{_UNSPACED}]")


@dataclass(frozen=True)
class _Words:
    """Hold texts as hashes of their words, one text behind the other.

    Attributes:
        hashes: uint64 (W,), of this process only.
        text_of: int64 (W,), which text a word stands in.
        lengths: int64 (texts,), in words.
    """

    hashes: np.ndarray
    text_of: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> _Words:
        words = [_words(text) for text in texts]
        lengths = np.array([len(text) for text in words], dtype=np.int64)
        hashes = np.fromiter((hash(word) for text in words for word in text), np.int64, int(lengths.sum()))
        return cls(hashes.view(np.uint64), np.repeat(np.arange(len(words)), lengths), lengths)

    def runs(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a hash of each run of ``length`` words within a text, uint64 (R,), and its beginning, int64 (R,)."""
        count = len(self.hashes) - length + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        runs = np.zeros(count, np.uint64)
        for i in range(length):
            runs = runs * _FACTOR + self.hashes[i : i + count]  # modulo 2^64
        (starts,) = np.nonzero(self.text_of[:count] == self.text_of[length - 1 :])
        return runs[starts], starts


_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # any odd number: an even one would forget the first words

# lm-eval's tasks are kept between runs, and so are their words.
_evaluated: WeakKeyDictionary[Any, _Words] = WeakKeyDictionary()


def refuse_evaluated(
    calibration: Calibration, tasks: Mapping[str, Any], task: TaskConfig, config: CalibrationConfig
) -> None:
    """Raise ConfigError if ``calibration`` is, or holds, what is evaluated.

    Args:
        tasks: lm-eval's tasks by name, as :func:`mxsweep.evaluate.tasks.load_tasks` has them: all that is evaluated.
        task: the config that they are of.
        config: the config that the calibration is of.
    """
    refuse_same_file(config, task)
    for name, evaluated in tasks.items():
        _refuse_same_split(config, name, evaluated)
    sequences = _Words.of(calibration.texts)
    for name, evaluated in tasks.items():
        shared = _shared_documents(sequences, _words_of(evaluated))
        if len(shared):
            document = _text_of(evaluated, int(shared[0]))
            count = f"{len(shared):,} of the {len(_words_of(evaluated).lengths):,} documents that {name} evaluates"
            raise ConfigError(
                f"calibration: {calibration.description}: {count} stand{'s' * (len(shared) == 1)} there in "
                f"{RUN_WORDS} words or more, the first of them '{_beginning(document)}'; allowed: texts that are not "
                "evaluated"
            )
    if config.source != "stories":
        _refuse_short_sequences(calibration, sequences, tasks)


def _refuse_short_sequences(calibration: Calibration, sequences: _Words, tasks: Mapping[str, Any]) -> None:
    """Raise ConfigError if sequences too short for a run of 32 words are evaluated, or none can be judged."""
    inner = sequences.lengths - 2
    if (inner < LEAST_WORDS).all():
        raise ConfigError(
            f"calibration.length: {calibration.description}: sequences of {sequences.lengths.max(initial=0)} words are "
            f"too short to tell whether they are evaluated; allowed: sequences of {LEAST_WORDS + 2} words or more"
        )
    judged = (inner >= LEAST_WORDS) & (inner < RUN_WORDS)
    for name, evaluated in tasks.items():
        stands = judged & _stand_in(sequences, _words_of(evaluated))
        alone = stands & (inner >= SHORT_WORDS)
        if alone.any() or 2 * stands.sum() > len(stands):
            first = calibration.texts[int(np.argmax(alone if alone.any() else stands))]
            raise ConfigError(
                f"calibration: {calibration.description}: {stands.sum():,} of the {len(stands):,} sequences stand in "
                f"documents that {name} evaluates, the first of them '{_beginning(first)}'; allowed: texts that are "
                "not evaluated, or longer sequences, of which more can be told (calibration.length)"
            )


def _stand_in(sequences: _Words, documents: _Words) -> np.ndarray:
    """Return of each sequence, bool (texts,), whether all but its first and last word stand in a document in a row."""
    firsts = np.cumsum(sequences.lengths) - sequences.lengths
    stands = np.zeros(len(firsts), bool)
    for length in np.unique(sequences.lengths):
        if LEAST_WORDS <= length - 2 < RUN_WORDS:
            (numbers,) = np.nonzero(sequences.lengths == length)
            runs, starts = sequences.runs(int(length) - 2)
            inner = runs[np.searchsorted(starts, firsts[numbers] + 1)]
            stands[numbers] = np.isin(inner, documents.runs(int(length) - 2)[0])
    return stands


def _refuse_same_split(config: CalibrationConfig, name: str, evaluated: Any) -> None:
    split = "test" if evaluated.has_test_docs() else "validation"
    if config.source == "task" and config.path == name and config.split == split:
        raise ConfigError(
            f"calibration.split: {config.split!r} is what {name} evaluates; allowed: another split, or another task"
        )
    if config.source == "hub" and evaluated.get_config("dataset_path") == config.path:
        names = {config.name, evaluated.get_config("dataset_name")} - {None}  # without a name, the only configuration
        parts = {part.partition("[")[0].strip() for part in config.split.split("+")}  # "train[:10%]+test"
        if len(names) < 2 and parts & {evaluated.get_config(f"{split}_split"), "all"}:
            raise ConfigError(
                f"calibration.split: {config.split!r} of {config.path!r} is what {name} evaluates; allowed: another "
                "split, or another data set"
            )


def _shared_documents(sequences: _Words, documents: _Words) -> np.ndarray:
    """Return the numbers of the documents that share a run of words with a sequence, ascending."""
    numbers = [_shared_runs(sequences, documents, RUN_WORDS)]
    for length in np.unique(documents.lengths):
        if SHORT_WORDS <= length < RUN_WORDS:
            of_length = documents.lengths == length
            words = of_length[documents.text_of]
            short = _Words(documents.hashes[words], documents.text_of[words], documents.lengths)
            numbers.append(_shared_runs(sequences, short, int(length)))
    return np.unique(np.concatenate(numbers))


def _shared_runs(sequences: _Words, documents: _Words, length: int) -> np.ndarray:
    runs, starts = documents.runs(length)
    return documents.text_of[starts[np.isin(runs, sequences.runs(length)[0])]]


def _words_of(task: Any) -> _Words:
    if task not in _evaluated:
        # Here, since it imports lm-eval.
        from mxsweep.calibrate.documents import text_of

        _evaluated[task] = _Words.of(text_of(task, document) for document in task.eval_docs)
    return _evaluated[task]


def _text_of(task: Any, number: int) -> str:
    from mxsweep.calibrate.documents import text_of

    return text_of(task, next(islice(task.eval_docs, number, None)))


def _words(text: str) -> list[str]:
    """Return the words of a text in a form that case, punctuation and spelling of the same characters leave alone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _beginning(document: str) -> str:
    words = document.split()
    return " ".join(words[:_QUOTED_WORDS]) + " ..." * (len(words) > _QUOTED_WORDS)
