"""Tokenize a corpus once: token ids in a file of the cache folder, mapped into memory.

A file's name is a digest of the texts and of the tokenizer; a digest of its content lies beside it, and one that does
not agree is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from mxsweep.files.atomic import write_atomically
from mxsweep.files.cache import cache_folder
from mxsweep.files.digests import file_digests, json_digest
from mxsweep.files.locks import one_at_a_time
from mxsweep.model.special_tokens import beginning_of, ending_of
from mxsweep.terminal.progress_callback import Progress
from mxsweep.training.corpus_texts import Piece, Texts

log = logging.getLogger(__name__)

FOLDER = "tokens"
VERSION = 1  # of how texts become tokens
AT_A_TIME = 64  # pieces, tokenized in parallel


def tokens_of(texts: Texts, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> np.ndarray:
    """Return all tokens of the texts, (n,) uint16 or uint32, read-only; every document ends in an end token.

    Args:
        progress: hears of what is read, where the texts have to be tokenized.

    Raises:
        ConfigError: the texts cannot be read.
    """
    key = json_digest({"texts": texts.identity, "tokenizer": _digest_of(tokenizer), "version": VERSION})
    made = None
    try:
        path = cache_folder(FOLDER) / f"{key}.npy"
        with one_at_a_time(path.with_suffix(".lock")):  # of several runs that begin at once, one tokenizes
            tokens = _read(path)
            if tokens is None:
                made = _tokenize(texts, tokenizer, progress)
                _write(path, made)
                tokens = _read(path)
            if tokens is not None:
                return tokens
    except OSError as error:
        log.warning("corpus: its tokens are not kept, and made again next time: %s", error)
    return _tokenize(texts, tokenizer, progress) if made is None else made


def _tokenize(texts: Texts, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> np.ndarray:
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    front, back = beginning_of(tokenizer), ending_of(tokenizer)
    if not back and tokenizer.eos_token_id is not None:
        back = [tokenizer.eos_token_id]
    parts = [np.empty(0, dtype)]
    source = texts.pieces()
    while pieces := list(islice(source, AT_A_TIME)):
        for piece, ids in zip(pieces, _encode(tokenizer, pieces), strict=True):
            parts.append(np.array([*front * piece.begins, *ids, *back * piece.ends], dtype))
        progress(pieces[-1].done, texts.size, "tokenizing")
    return np.concatenate(parts)


def _encode(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> list[list[int]]:
    # Not verbose: that a piece is longer than the model takes is no news.
    texts = [piece.text for piece in pieces]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _digest_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what tells a tokenizer from one that makes other tokens."""
    whole = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    ends = [beginning_of(tokenizer), ending_of(tokenizer), tokenizer.eos_token_id]
    return json_digest([type(tokenizer).__name__, whole, ends])


def _write(path: Path, tokens: np.ndarray) -> None:
    def write(unfinished: Path) -> None:
        with unfinished.open("wb") as file:
            np.save(file, tokens)

    write_atomically(path, write)
    write_atomically(_seal(path), file_digests([path])[0])


def _read(path: Path) -> np.ndarray | None:
    """Return the tokens in a file; None where it is not there, or is not what was written."""
    try:
        if file_digests([path]) != [_seal(path).read_text(encoding="utf-8")]:
            return None
        tokens: np.ndarray = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError):
        return None
    return tokens


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")
