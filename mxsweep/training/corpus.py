"""Hold a corpus as sequences of tokens: an endless order for training, fixed held-out ones for validation.

A sequence is ``length`` tokens and the one after, each predicted from those before: (length + 1,) ids. The corpus is
cut into sequences that share no target. Every epoch takes all of them once, in an order that follows from the seed and
the number of the epoch, so that what a step reads follows from the seed and the step's number alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from mxsweep.config.refusals import too_little_text
from mxsweep.config.train_config import CorpusConfig, TrainConfig
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress
from mxsweep.training.corpus_texts import Texts, file_texts, hub_texts, story_texts
from mxsweep.training.job import TrainingJob
from mxsweep.training.token_files import tokens_of

TRAINED_STORIES, HELDOUT_STORIES = "train", "calibration"  # splits; the stories of "test" are evaluated
TOKENS_PER_STORY = 50  # at least, on average
MOST_STORIES = 2**16  # different ones that are trained on: about four million tokens


@dataclass(frozen=True)
class Corpus:
    """Hold tokens to train on, (n,), and held-out sequences, (S, length + 1)."""

    tokens: np.ndarray
    heldout: np.ndarray
    length: int
    seed: int

    @property
    def count(self) -> int:
        """Return how many sequences an epoch has."""
        return _count(self.tokens, self.length)

    def sequences(self, first: int, count: int) -> np.ndarray:
        """Return the sequences ``first`` and following of the endless order, (count, length + 1) int64."""
        numbers = range(first, first + count)
        places = [_order(self.seed, number // self.count, self.count)[number % self.count] for number in numbers]
        return _cut(self.tokens, np.array(places, np.int64), self.length)


def load_corpus(job: TrainingJob, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Corpus:
    """Return the corpus of a training in tokens.

    Raises:
        ConfigError: it cannot be read, is too short for one sequence to train on and one held out, or what is held out
            is what is trained on.
    """
    length, config = job.train.length, job.corpus
    tokens = tokens_of(_texts(config, job.train), tokenizer, progress)
    if config.source == "stories":
        stories = story_texts(HELDOUT_STORIES, _stories(job.train.eval_sequences * (length + 1)))
        heldout, origin = tokens_of(stories, tokenizer, progress), "the corpus"
    elif config.heldout is not None:
        texts = file_texts("corpus.heldout", config.heldout, config.field)
        heldout, origin = tokens_of(texts, tokenizer, progress), "corpus.heldout"
        if np.array_equal(heldout, tokens):  # packed otherwise, or in rows
            raise ConfigError(
                f"corpus.heldout: {config.heldout!r} holds the same text as corpus.path; allowed: a text that is not "
                "trained on"
            )
    else:
        kept = len(tokens) - round(config.heldout_share * len(tokens))
        heldout, tokens, origin = tokens[kept:], tokens[:kept], f"corpus.heldout_share={config.heldout_share:g}"
    for part, name in ((tokens, "the corpus"), (heldout, origin)):
        if not _count(part, length):
            raise ConfigError(too_little_text(length, name, len(part)))
    return Corpus(tokens, _spread(heldout, length, job.train.eval_sequences), length, job.seed)


def _texts(config: CorpusConfig, train: TrainConfig) -> Texts:
    if config.source == "stories":
        needed = train.total_steps * train.batch * train.length + 1
        return story_texts(TRAINED_STORIES, min(_stories(needed), MOST_STORIES))
    if config.source == "hub":
        return hub_texts(config)
    return file_texts("corpus.path", str(config.path), config.field)


def _stories(tokens: int) -> int:
    return -(-tokens // TOKENS_PER_STORY)


def _count(tokens: np.ndarray, length: int) -> int:
    return max(0, len(tokens) - 1) // length


def _spread(tokens: np.ndarray, length: int, wanted: int) -> np.ndarray:
    """Return as many sequences as wanted, evenly spaced, or all there are: (S, length + 1) int64."""
    count = _count(tokens, length)
    chosen = min(wanted, count)
    return _cut(tokens, np.arange(chosen) * count // chosen, length)


def _cut(tokens: np.ndarray, places: np.ndarray, length: int) -> np.ndarray:
    return np.stack([tokens[place * length : (place + 1) * length + 1] for place in places]).astype(np.int64)


@lru_cache(maxsize=2)  # a step may span two epochs
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of the sequences in an epoch.

    Of random numbers by counter, whose sequence numpy promises to keep.
    """
    key = hashlib.sha256(f"corpus-{seed}-{epoch}".encode()).digest()
    numbers = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(count)
    return np.argsort(numbers, kind="stable")
