"""Choose calibration tokens: what a model reads before it is quantized, and never what it is evaluated on.

Texts become windows of equal length at random places; stories stay whole. Every choice follows from the seed through
`random.Random.random()`, whose sequence Python promises to keep. What needs no tokens is worked out while
runs are planned, by :mod:`mxsweep.config.calibration_data`.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from mxsweep.config.calibration_data import calibration_identity, resolve_calibration
from mxsweep.config.calibration_files import (
    BETWEEN_DOCUMENTS,
    local_files,
    path_of,
    text_of_file,
)
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.evaluate.stories import stream
from mxsweep.files.digests import json_digest
from mxsweep.model.special_tokens import beginning_of
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger(__name__)

# A text much longer than what is asked for is not tokenized whole: about 6 s for so many characters on one core.
LARGE_TEXT = 2**23
# Generous: tokenizers make 3 to 5 characters of most languages one token.
CHARACTERS_PER_TOKEN = 16

_kept: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[str, int], Calibration]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Hold sequences of tokens, each read by itself.

    Attributes:
        sequences: token ids, int64 (T_i,), T_i >= 2; with the tokens that the tokenizer itself puts in front.
        texts: the text behind each sequence, as it was before it was tokenized (of a tokenizer written in Python: the
            tokens decoded).
        identity: plain data that tells these tokens from any others, for the keys of what is worked out on them.
        description: what they are, a phrase for people.
        spans: int64 (T_i, 2), the characters of the text that each token is, from and up to; 0, 0 of a token in front.
            None of a tokenizer that cannot tell.
        whole: whether each text is a story with its end, and no window.
        shortage: what a reader of results should know where the text had fewer sequences than asked for; else empty.
    """

    sequences: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    identity: dict[str, Any]
    description: str
    spans: tuple[np.ndarray, ...] | None = None
    whole: bool = False
    shortage: str = ""

    @property
    def tokens(self) -> int:
        """Count the tokens of all sequences together."""
        return sum(len(sequence) for sequence in self.sequences)


def calibration_tokens(
    config: CalibrationConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Calibration:
    """Return the sequences of a config; the same object for the same call.

    Windows do not overlap. Where there are fewer than asked for, all there are (with a warning); where the text is
    shorter than one, the whole of it is the only sequence. Stories are cut at ``length``, documents of tasks and hub
    data sets are joined by empty lines in an order of the seed.

    Args:
        max_length: tokens that the model takes; a longer ``length`` is cut to it.

    Raises:
        ConfigError: nothing to calibrate on; a text, task or data set that cannot be had; fewer than 2 tokens.
    """
    config = resolve_calibration(config, model)
    sampled = calibration_identity(config)
    chosen = _kept.setdefault(tokenizer, {})
    key = (json_digest(sampled), max_length)
    if key not in chosen:
        chosen[key] = _sample(config, sampled, tokenizer, max_length)
    return chosen[key]


@dataclass(frozen=True)
class _Tokens:
    """Hold a text in tokens; ``encoding`` says which characters each is, None of a tokenizer that cannot tell."""

    text: str
    ids: np.ndarray
    encoding: Encoding | None

    def __len__(self) -> int:
        return len(self.ids)

    def text_of(self, part: slice, tokenizer: PreTrainedTokenizerBase) -> str:
        first, last = (self._span(index) for index in (part.start, min(part.stop, len(self)) - 1))
        if first is None or last is None:
            return str(tokenizer.decode(self.ids[part]))
        return self.text[first[0] : last[1]]

    def spans_of(self, part: slice, prefix: int) -> np.ndarray:
        """Return the characters of :meth:`text_of` that each token is, behind ``prefix`` tokens that are none."""
        spans = [self._span(index) or (0, 0) for index in range(part.start, min(part.stop, len(self)))]
        begin = spans[0][0]
        return np.array([(0, 0)] * prefix + [(max(0, s - begin), max(0, e - begin)) for s, e in spans], dtype=np.int64)

    def _span(self, index: int) -> tuple[int, int] | None:
        return None if self.encoding is None else self.encoding.token_to_chars(index)


def _sample(
    config: CalibrationConfig, sampled: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Calibration:
    prefix = beginning_of(tokenizer)
    length = min(config.length, max_length)
    room = length - len(prefix)
    if room < 1 or length < 2:
        raise ConfigError(
            f"calibration.length: {length} tokens leave no room beside the {len(prefix)} that the tokenizer puts in "
            f"front; allowed: at least {max(2, len(prefix) + 1)}"
        )
    rng, shortage = random.Random(f"calibration-{config.seed}"), ""
    if config.source == "stories":
        stories = islice(stream("calibration", config.seed), config.samples)
        chosen = [(tokens, slice(0, room)) for tokens in (_tokenize(tokenizer, story.text) for story in stories)]
        cut = any(len(tokens) > room for tokens, _ in chosen)
        description = f"{len(chosen)} generated stories"
    else:
        tokens = _read(config, tokenizer, rng, room)
        windows = _windows(config, len(tokens), len(prefix), room, rng)
        chosen = [(tokens, part) for part in windows]
        if (there := len(tokens) // room) < config.samples:
            wanted = f"{config.samples} sequence{'s' * (config.samples > 1)} of {length} tokens"
            found = f"{'is' if there == 1 else 'are'} {there}" if there else f"is one of {len(tokens) + len(prefix)}"
            shortage = f"calibration: {_origin(config)} is too short for {wanted}: there {found}"
            log.warning("%s", shortage)
        cut = True
        shown = len(chosen[0][0].ids[chosen[0][1]]) + len(prefix)
        description = f"{len(chosen)} sequence{'s' * (len(chosen) > 1)} of {shown} tokens from {_origin(config)}"
    description += f" (seed {config.seed})"
    if cut and length < config.length:
        description += f"; calibration.length {config.length} is cut to {length}, the most that the model takes"
    beginning = np.array(prefix, dtype=np.int64)
    sequences = tuple(np.concatenate([beginning, tokens.ids[part]]) for tokens, part in chosen)
    identity = {"tokens": _digest(sequences), "sequences": len(sequences), "sampled": sampled}
    texts = tuple(tokens.text_of(part, tokenizer) for tokens, part in chosen)
    can_tell = all(tokens.encoding is not None for tokens, _ in chosen)
    spans = tuple(tokens.spans_of(part, len(prefix)) for tokens, part in chosen) if can_tell else None
    whole = config.source == "stories" and not cut
    return Calibration(sequences, texts, identity, description, spans, whole, shortage)


def _windows(config: CalibrationConfig, total: int, prefix: int, room: int, rng: random.Random) -> list[slice]:
    """Return parts of ``total`` tokens, of ``room`` each and apart from one another, in their order."""
    if total + prefix < 2:
        raise ConfigError(f"calibration.path: {config.path!r} comes to {total} tokens; allowed: a text of at least 2")
    count = min(config.samples, total // room)
    if not count:
        return [slice(0, total)]
    # What lies between windows, before the first and after the last, cut at random.
    spare = total - count * room
    gaps = sorted(int(rng.random() * (spare + 1)) for _ in range(count))
    return [slice(gap + i * room, gap + (i + 1) * room) for i, gap in enumerate(gaps)]


def _read(config: CalibrationConfig, tokenizer: PreTrainedTokenizerBase, rng: random.Random, room: int) -> _Tokens:
    """Return the text that windows are drawn from, in tokens, without those that the tokenizer puts in front."""
    wanted = config.samples * room
    if config.source == "text":
        text = text_of_file(config)
        most = max(LARGE_TEXT, wanted * CHARACTERS_PER_TOKEN)
        start = int(rng.random() * (len(text) - most + 1)) if len(text) > most else 0
        return _tokenize(tokenizer, text[start : start + most])
    from mxsweep.calibrate import documents

    get = documents.task_documents if config.source == "task" else documents.hub_documents
    return _joined(tokenizer, _shuffled(get(config), rng), wanted)


def _shuffled(documents: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yield documents that hold something, in random order; those that are not asked for are not read."""
    order = sorted(range(len(documents)), key=[rng.random() for _ in range(len(documents))].__getitem__)
    return (text for text in (documents[index] for index in order) if text.strip())


def _joined(tokenizer: PreTrainedTokenizerBase, documents: Iterator[str], wanted: int) -> _Tokens:
    """Return as many documents as come to ``wanted`` tokens, or all there are."""
    parts: list[str] = []
    characters, limit = 0, wanted * 6
    while True:
        for document in documents:
            parts.append(document)
            characters += len(document)
            if characters >= limit:
                break
        tokens = _tokenize(tokenizer, BETWEEN_DOCUMENTS.join(parts))
        if len(tokens) >= wanted or characters < limit:
            return tokens
        limit = 2 * characters


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> _Tokens:
    import numpy as np

    # Not verbose: that the whole is longer than the model takes is no news, for windows are not.
    encoded = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    encoding = encoded.encodings[0] if tokenizer.is_fast and encoded.encodings else None
    return _Tokens(text, np.array(encoded["input_ids"], dtype=np.int64), encoding)


def _digest(sequences: Sequence[np.ndarray]) -> str:
    """Return SHA-256 (hex) of the tokens and where each sequence ends."""
    content = hashlib.sha256(repr([len(sequence) for sequence in sequences]).encode())
    for sequence in sequences:
        content.update(sequence.astype("<i8").tobytes())
    return content.hexdigest()


def _origin(config: CalibrationConfig) -> str:
    if config.source == "task":
        return f"the {config.split} split of {config.path}"
    return f"{path_of(config).name if local_files(config) is not None else config.path}"
