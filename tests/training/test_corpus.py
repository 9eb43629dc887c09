"""Corpora as tokens: what is read, cached, cut, ordered and held out."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from helpers.training_jobs import training_job

import mxsweep.training.corpus_texts as corpus_texts
from mxsweep.evaluate.stories import TEST_STORIES, stories
from mxsweep.files.cache import cache_folder
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import silent
from mxsweep.training import token_files
from mxsweep.training.corpus import Corpus, load_corpus
from mxsweep.training.initial_model import bytes_tokenizer, load_initial

pytestmark = pytest.mark.usefixtures("own_cache")

TEXT = "".join(f"Line {number} of a long text, with an é.\n" for number in range(300))


def corpus_of(path: Path | None = None, source: str = "text", progress: Any = silent, **changes: Any) -> Corpus:
    corpus = {"source": source, "path": path and str(path)} | changes
    return load_corpus(training_job(corpus=corpus), bytes_tokenizer(), progress)


def decoded(corpus: Corpus) -> str:
    text = bytes_tokenizer().decode(corpus.tokens)
    assert isinstance(text, str)
    return text


def test_bytes_are_tokens() -> None:
    tokenizer = bytes_tokenizer()
    text = "Ein é, ein 漢.\n\n\ttab"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.eos_token_id) == (257, 256)


def test_a_text_is_the_same_whatever_packs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_texts, "PIECE_CHARACTERS", 1000)  # several pieces
    plain, packed, small = tmp_path / "a.txt", tmp_path / "a.txt.xz", tmp_path / "a.txt.gz"
    plain.write_text(TEXT, encoding="utf-8")
    packed.write_bytes(lzma.compress(TEXT.encode()))
    small.write_bytes(gzip.compress(TEXT.encode()))
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1], encoding="utf-8")
    read = [corpus_of(path, heldout=str(other)) for path in (plain, packed, small)]
    for corpus in read:
        assert corpus.tokens.dtype == np.uint16
        assert corpus.tokens.tolist() == [*TEXT.encode(), 256]
    with pytest.raises(ConfigError, match=r"corpus\.heldout: .*a\.txt' holds the same text as corpus\.path"):
        corpus_of(packed, heldout=str(plain))


def test_rows_and_columns_are_documents(tmp_path: Path) -> None:
    rows = [{"body": f"Document {number} has a few words."} for number in range(40)]
    expected = "<|end|>".join(row["body"] for row in rows) + "<|end|>"
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows[1:])))
    assert decoded(corpus_of(path, field="body", heldout=str(other))) == expected
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    assert decoded(corpus_of(tmp_path / "set", "hub", field="body", heldout=str(other))) == expected
    with pytest.raises(ConfigError, match=r"corpus.field: 'text' is not in"):
        corpus_of(tmp_path / "set", "hub")
    with pytest.raises(ConfigError, match=r"corpus.path: .* line 1 has no text field 'text'"):
        corpus_of(path)


def test_what_cannot_be_read_is_refused_by_its_knob(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus.path: .* cannot be read"):
        corpus_of(tmp_path / "nowhere.txt")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(TEXT.encode())[:-40])
    with pytest.raises(ConfigError, match=r"corpus.path: .* cannot be read"):
        corpus_of(tmp_path / "a.txt.xz")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(ConfigError, match=r"train.length: 32 is more than"):
        corpus_of(tmp_path / "short.txt")


def test_tokens_are_kept_by_what_their_file_is_read_as(tmp_path: Path) -> None:
    """A text that is named as if it were packed is not one, though its tokens are known from another name."""
    plain, misnamed = tmp_path / "a.txt", tmp_path / "a.txt.xz"
    for path in (plain, misnamed):
        path.write_text(TEXT, encoding="utf-8")
    assert len(corpus_of(plain).tokens) > 1000
    with pytest.raises(ConfigError, match=r"corpus.path: .* cannot be read"):
        corpus_of(misnamed)


def test_tokens_are_kept_and_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    heard: list[str] = []

    def progress(done: int, total: int, phase: str = "") -> None:
        assert 0 < done <= total
        heard.append(phase)

    first = corpus_of(path, progress=progress)
    assert set(heard) == {"tokenizing"}
    heard.clear()
    again = corpus_of(path, progress=progress)
    assert not heard and np.array_equal(first.tokens, again.tokens)
    assert isinstance(again.tokens, np.memmap)
    (kept,) = cache_folder(token_files.FOLDER).glob("*.npy")
    content = bytearray(kept.read_bytes())
    content[-3] ^= 1
    kept.write_bytes(content)
    assert np.array_equal(corpus_of(path, progress=progress).tokens[:], [*TEXT.encode(), 256][: len(again.tokens)])
    assert heard


def test_without_a_cache_a_corpus_is_tokenized_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # no folder
    assert len(corpus_of(path).tokens) > 1000


def test_an_epoch_takes_every_sequence_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    corpus = corpus_of(path)
    count = corpus.count
    first, second = (corpus.sequences(epoch * count, count) for epoch in (0, 1))
    assert first.shape == (count, 33) and first.dtype == np.int64
    expected = {bytes(corpus.tokens[n * 32 : n * 32 + 33].tolist()) for n in range(count)}
    assert {bytes(row.tolist()) for row in first} == {bytes(row.tolist()) for row in second} == expected
    assert not np.array_equal(first, second)
    spanning = corpus.sequences(count - 2, 4)
    assert np.array_equal(spanning, np.concatenate([first[-2:], second[:2]]))


def test_the_end_of_a_text_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    corpus = corpus_of(path, heldout_share=0.2)
    every = [*TEXT.encode(), 256]
    assert corpus.tokens.tolist() == every[: round(0.8 * len(every))]
    assert corpus.heldout.shape == (4, 33)
    start = len(corpus.tokens)
    assert corpus.heldout[0].tolist() == every[start : start + 33]


def test_stories_are_trained_on_that_are_not_evaluated() -> None:
    job = training_job(steps=40)
    tokenizer = load_initial(job).tokenizer
    corpus = load_corpus(job, tokenizer, silent)
    ends = tokenizer.eos_token_id
    told = [
        tokenizer.decode(part[part != ends]) for part in np.split(corpus.tokens, np.where(corpus.tokens == ends)[0])
    ]
    assert len(told) > 50
    assert corpus.count >= 40 * job.train.batch  # each is read once
    evaluated = {tokenizer.decode(tokenizer(text)["input_ids"]) for text in stories(TEST_STORIES)}
    assert not evaluated & set(told)
    assert tokenizer.unk_token_id not in corpus.tokens


def test_the_seed_decides_the_order_of_the_data_and_the_first_weights() -> None:
    from dataclasses import replace

    one, other = training_job(), replace(training_job(), seed=2)
    first, again, second = (load_initial(job) for job in (one, one, other))
    weights = [initial.model.state_dict()["model.embed_tokens.weight"] for initial in (first, again, second)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    a, b = (load_corpus(job, first.tokenizer, silent) for job in (one, other))
    assert np.array_equal(a.heldout, b.heldout)
    assert not np.array_equal(a.sequences(0, 8), b.sequences(0, 8))
