"""Last words: which tokens of a calibration text they are, and which tasks have a search look at them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mxsweep.calibrate.last_words import find_last_words, positions_for
from mxsweep.calibrate.texts import Calibration, calibration_tokens
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.files.checkpoints import model_folder
from mxsweep.terminal.errors import ConfigError

HF = ModelConfig("hf", "owner/name", None, "auto", "cpu", None, "sdpa", None, False, False, "auto")
TEXT = (
    'The well-known dog ran home. "Did it?" asked Ann; it cost 3.50 there. He said "no." Then\nnothing else (so far!) '
    "happened\u2026 It was Ann's. No end"
)
WORDS = ["home", "it", "there", "no", "far", "happened", "Ann's"]


def bytewise() -> PreTrainedTokenizerFast:
    """Pieces of bytes, as of most decoders, some of which are words with the space in front of them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512)


def calibrated(
    tokenizer: PreTrainedTokenizerBase, length: int, path: Path | None = None, samples: int = 1
) -> Calibration:
    source = "stories" if path is None else "text"
    config = CalibrationConfig(source, None if path is None else str(path), None, "train", "text", samples, length, 0)
    return calibration_tokens(config, HF, tokenizer, 512)


def said(tokenizer: PreTrainedTokenizerBase, calibration: Calibration, number: int = 0) -> str:
    chosen = find_last_words(calibration).tokens[number]
    return str(tokenizer.decode(calibration.sequences[number][1:][chosen]))


def test_last_words_are_those_that_end_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    tokenizer = bytewise()
    calibration = calibrated(tokenizer, 500, file)
    found = find_last_words(calibration)
    assert found.counts.tolist() == [len(WORDS)]
    assert len(found.tokens[0]) == len(calibration.sequences[0]) - 1
    words = [word.strip(' \n("') for word in said(tokenizer, calibration).split()]
    assert "".join(words) == "".join(WORDS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. Ames met Dr. Lee, p. 5. Then J. R. Oak saw the U.S. fleet. Am I? Oh, Ann!", ["5", "fleet", "I", "Ann"]),
        ("So said prof. Oak. The Mrs.\nWhat of Mr.? One v. two.", ["Oak", "Mr", "two"]),
        ("他去了学校。她没有来！我用Python。", ["校", "来", "Python"]),
        ("वह घर गया। तुम कौन हो?", ["गया", "हो"]),
        ("هل أنت هنا؟ نعم.", ["هنا", "نعم"]),
        ("東京に行った…。「はい。」と", ["た", "い"]),
    ],
    ids=["titles", "marks", "chinese", "hindi", "arabic", "japanese"],
)  # fmt: skip
def test_last_words_are_no_titles_and_of_any_script(text: str, words: list[str]) -> None:
    spans = np.array([(0, 0)] + [(place, place + 1) for place in range(len(text))])  # a token a character
    found = find_last_words(Calibration((np.zeros(len(spans), dtype=np.int64),), (text,), {}, "one text", (spans,)))
    assert found.counts.tolist() == [len(words)]
    assert "".join(text[place] for place in np.flatnonzero(found.tokens[0])) == "".join(words)


def test_windows_of_a_text_have_spans_of_their_own_characters(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"One two{i} three four{i}." for i in range(60)))
    tokenizer = bytewise()
    calibration = calibrated(tokenizer, 40, file, samples=5)
    assert calibration.spans is not None and len(calibration.spans) == 5
    for text, spans, sequence in zip(calibration.texts, calibration.spans, calibration.sequences, strict=True):
        pieces = [str(tokenizer.decode([token])).strip() for token in sequence]
        assert [text[start:end].strip() for start, end in spans] == pieces


def test_of_a_story_the_answer_alone_is_taken() -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder("embedded")))
    calibration = calibrated(tokenizer, 200, samples=6)
    found = find_last_words(calibration)
    assert calibration.whole and found.counts.tolist() == [1] * 6
    for number, text in enumerate(calibration.texts):
        assert said(tokenizer, calibration, number) == text.split()[-1]
        assert np.flatnonzero(found.tokens[number]).tolist() == [len(calibration.sequences[number]) - 2]
    # A story that is cut has lost its answer: it is a text like any other.
    cut = calibrated(tokenizer, 30, samples=6)
    assert not cut.whole and find_last_words(cut).counts.sum() > 6


def test_what_has_no_last_words_is_refused() -> None:
    sequences = (np.array([1, 2, 3]),)
    spans = (np.array([[0, 3], [4, 7], [8, 13]]),)
    with pytest.raises(ConfigError, match=r"^rotation.positions: one text: no sentence ends"):
        find_last_words(Calibration(sequences, ("one two three",), {}, "one text", spans))
    with pytest.raises(ConfigError, match=r"^rotation.positions: the tokenizer does not tell .*; allowed: all$"):
        find_last_words(Calibration(sequences, ("one two three.",), {}, "one text"))
    # Nothing predicts the first token.
    with pytest.raises(ConfigError, match="no sentence ends"):
        find_last_words(Calibration(sequences, ("one. two th",), {}, "one text", spans))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["loglikelihood"], "last_words"),
        (["multiple_choice"], "last_words"),
        (["loglikelihood_rolling"], "all"),
        (["generate_until"], "all"),
        (["loglikelihood_rolling", "multiple_choice"], "last_words"),
    ],
    ids=" and ".join,
)
def test_what_a_search_looks_at_follows_from_what_the_task_scores(kinds: list[str], expected: str) -> None:
    tasks = {kind: SimpleNamespace(OUTPUT_TYPE=kind) for kind in kinds}
    assert positions_for("auto", tasks) == expected
    assert positions_for("all", tasks) == "all" and positions_for("last_words", tasks) == "last_words"
