"""Calibration texts: which sequences a config comes to, that a seed decides all of it, and what is refused."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
from lm_eval.api.task import ConfigurableTask
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import mxsweep.calibrate.documents
from mxsweep.calibrate import texts
from mxsweep.calibrate.texts import Calibration, calibration_tokens
from mxsweep.config.calibration_data import calibration_identity, resolve_calibration
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.named_texts import CHECKED_CHARACTERS
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.evaluate.stories import SPLITS, stories
from mxsweep.files.checkpoints import model_folder
from mxsweep.terminal.errors import ConfigError

HF = ModelConfig("hf", "owner/name", None, "auto", "cpu", None, "sdpa", None, False, False, "auto")
TINY = ModelConfig("tiny", "embedded", None, "float32", "cpu", None, "sdpa", None, False, False, "auto")
BOS = 1


def config(source: str = "text", path: object = None, **knobs: Any) -> CalibrationConfig:
    defaults = {"name": None, "split": "train", "field": "text", "samples": 4, "length": 10, "seed": 0}
    return CalibrationConfig(source=source, path=None if path is None else str(path), **(defaults | knobs))


def words_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """The words w0 to w999, each one token, its number + 2, whatever the case; maybe behind a <s>, as of a Llama."""
    vocabulary = {"<unk>": 0, "<s>": BOS} | {f"w{i}": i + 2 for i in range(1000)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", model_max_length=20)


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(model_folder("embedded")))


def numbered(tmp_path: Path, count: int, name: str = "text.txt") -> Path:
    """A text of the words W0, w1, W2, ..., whose tokens tell their places."""
    file = tmp_path / name
    file.write_text("".join(f"{'wW'[i % 2 == 0]}{i}{chr(10) if i % 5 == 4 else ' '}" for i in range(count)))
    return file


def places(calibration: Calibration) -> list[list[int]]:
    """Which words of a numbered text each sequence is made of, its BOS left out."""
    return [[int(token) - 2 for token in sequence if token != BOS] for sequence in calibration.sequences]


# ---------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("bos", [True, False])
def test_windows_are_whole_apart_and_from_anywhere(bos: bool, tmp_path: Path) -> None:
    found = calibration_tokens(config(path=numbered(tmp_path, 900), samples=30), HF, words_tokenizer(bos), 512)
    assert len(found.sequences) == len(found.texts) == 30 and found.tokens == 300
    for sequence in found.sequences:
        assert sequence.dtype == np.int64 and sequence.shape == (10,) and (sequence[0] == BOS) == bos
    windows = places(found)
    assert all(window == list(range(window[0], window[0] + 10 - bos)) for window in windows)
    used = [place for window in windows for place in window]
    assert len(set(used)) == len(used) and used == sorted(used)
    assert min(used) < 150 and max(used) > 750


def test_windows_fill_a_text_that_has_room_for_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = calibration_tokens(config(path=numbered(tmp_path, 36)), HF, words_tokenizer(), 512)
    assert [place for window in places(found) for place in window] == list(range(36))
    assert caplog.text == ""


def test_windows_lie_in_every_way_that_there_is() -> None:
    """Two windows of 2 in 6 tokens: 2 tokens are spare, which fall before, between or after in 6 ways."""
    drawn = [tuple(part.start for part in texts._windows(config(path="x", samples=2), 6, 0, 2, random.Random(seed)))
             for seed in range(2000)]  # fmt: skip
    assert set(drawn) == {(0, 2), (0, 3), (0, 4), (1, 3), (1, 4), (2, 4)}


def test_the_seed_decides(tmp_path: Path) -> None:
    file = numbered(tmp_path, 900)
    one, again, other = (
        calibration_tokens(config(path=file, seed=seed), HF, words_tokenizer(), 512) for seed in (1, 1, 2)
    )
    assert one is not again and places(one) == places(again) != places(other)
    assert one.identity == again.identity != other.identity
    # As of the first version: what was cached under these numbers must not come to mean others.
    assert [window[0] for window in places(one)] == [33, 236, 313, 479]


def test_the_text_of_a_window_is_the_text_before_it_was_tokenized(tmp_path: Path) -> None:
    found = calibration_tokens(config(path=numbered(tmp_path, 200), samples=3), HF, words_tokenizer(), 512)
    for window, text in zip(places(found), found.texts, strict=True):
        expected = [f"{'wW'[i % 2 == 0]}{i}" for i in window]  # a tokenizer that lowers all does not hide it
        assert text.split() == expected and text == text.strip()


def test_a_short_text_gives_the_windows_that_there_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = calibration_tokens(config(path=numbered(tmp_path, 25)), HF, words_tokenizer(), 512)
    assert [len(sequence) for sequence in found.sequences] == [10, 10]
    assert found.shortage in caplog.messages
    assert found.shortage.endswith("too short for 4 sequences of 10 tokens: there are 2")
    assert found.description.startswith("2 sequences of 10 tokens from text.txt")


def test_a_text_shorter_than_a_window_is_one_sequence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = calibration_tokens(config(path=numbered(tmp_path, 7)), HF, words_tokenizer(), 512)
    assert places(found) == [list(range(7))] and len(found.sequences[0]) == 8
    assert "there is one of 8" in caplog.text and found.description.startswith("1 sequence of 8 tokens")
    found = calibration_tokens(config(path=numbered(tmp_path, 1)), HF, words_tokenizer(), 512)
    assert found.sequences[0].tolist() == [BOS, 2]
    with pytest.raises(ConfigError, match=r"calibration\.path: .* comes to 1 tokens; allowed: a text of at least 2"):
        calibration_tokens(config(path=numbered(tmp_path, 1)), HF, words_tokenizer(bos=False), 512)


def test_a_length_beyond_the_model_is_cut(tmp_path: Path) -> None:
    found = calibration_tokens(config(path=numbered(tmp_path, 100)), HF, words_tokenizer(), 6)
    assert {len(sequence) for sequence in found.sequences} == {6}
    assert "calibration.length 10 is cut to 6, the most that the model takes" in found.description
    with pytest.raises(ConfigError, match=r"calibration\.length: 1 tokens leave no room beside the 1"):
        calibration_tokens(config(path=numbered(tmp_path, 100)), HF, words_tokenizer(), 1)


def test_a_long_text_is_tokenized_quietly_and_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = numbered(tmp_path, 1000)
    calibration_tokens(config(path=file), HF, words_tokenizer(), 512)  # 1000 tokens, where the tokenizer says 20
    assert "longer than" not in capfd.readouterr().err + caplog.text
    monkeypatch.setattr(texts, "LARGE_TEXT", 400)
    monkeypatch.setattr(texts, "CHARACTERS_PER_TOKEN", 6)
    seen: list[int] = []
    whole = texts._tokenize
    monkeypatch.setattr(texts, "_tokenize", lambda of, text: seen.append(len(text)) or whole(of, text))
    firsts = {
        places(calibration_tokens(config(path=file, seed=seed), HF, words_tokenizer(), 512))[0][0] for seed in range(20)
    }
    assert set(seen) == {400} and min(firsts) < 200 and max(firsts) > 700  # a stretch that the seed chooses


def test_the_same_call_again_returns_the_same_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, file = words_tokenizer(), numbered(tmp_path, 200)
    first = calibration_tokens(config(path=file), HF, tokenizer, 512)
    assert calibration_tokens(config(path=file), HF, tokenizer, 512) is first
    copy = numbered(tmp_path, 200, "copy.txt")  # the same content
    assert calibration_tokens(config(path=copy), HF, tokenizer, 512) is first
    assert calibration_tokens(config(path=file), HF, tokenizer, 8) is not first
    assert calibration_tokens(config(path=file), HF, words_tokenizer(), 512) is not first
    file.write_text("w5 " * 300)
    assert set(places(calibration_tokens(config(path=file), HF, tokenizer, 512))[0]) == {5}


def test_the_identity_is_of_the_tokens(tmp_path: Path) -> None:
    file = numbered(tmp_path, 200)
    with_bos, without = (calibration_tokens(config(path=file), HF, words_tokenizer(bos), 512) for bos in (True, False))
    assert with_bos.identity["tokens"] != without.identity["tokens"]
    assert with_bos.identity["sampled"] == without.identity["sampled"] == calibration_identity(config(path=file))
    assert json.loads(json.dumps(with_bos.identity)) == with_bos.identity
    parts = [np.array([1, 2, 3]), np.array([4])], [np.array([1, 2]), np.array([3, 4])]
    assert texts._digest(parts[0]) != texts._digest(parts[1])


def test_rows_of_a_file_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"body": f"w{2 * i} w{2 * i + 1}", "n": i}) + "\n" for i in range(18)))
    found = calibration_tokens(config(path=file, field="body"), HF, words_tokenizer(), 512)
    assert [place for window in places(found) for place in window] == list(range(36))
    assert found.texts[0].startswith("w0 w1\n\nw2 w3\n\n")
    assert calibration_identity(config(path=file, field="body")) != calibration_identity(config(path=file, field="n"))


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".GZ", gzip.compress)])
def test_a_packed_file_is_the_text_that_it_holds(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    plain = numbered(tmp_path, 100)
    rows = "".join(json.dumps({"text": f"w{2 * i} w{2 * i + 1}"}) + "\n" for i in range(18)).encode()
    (tmp_path / "rows.jsonl").write_bytes(rows)
    for name, content in ((plain.name, plain.read_bytes()), ("rows.jsonl", rows)):
        packed = tmp_path / f"{name}{suffix}"
        packed.write_bytes(pack(content))
        resolve_calibration(config(path=packed), HF)
        found = calibration_tokens(config(path=packed), HF, words_tokenizer(), 512)
        of_plain = calibration_tokens(config(path=tmp_path / name), HF, words_tokenizer(), 512)
        assert found.texts == of_plain.texts
    packed.write_bytes(pack(rows)[:20])
    with pytest.raises(ConfigError, match=r"^calibration\.path: .* cannot be read"):
        resolve_calibration(config(path=packed), HF)


# ---------------------------------------------------------------------------------------------------- stories


def test_stories_are_of_their_own_split(tiny: PreTrainedTokenizerBase) -> None:
    found = calibration_tokens(config("auto", samples=50, length=512), TINY, tiny, 256)
    assert list(found.texts) == stories(50, 0, "calibration") and not set(found.texts) & set(stories(1000))
    for sequence, text in zip(found.sequences, found.texts, strict=True):
        assert sequence.tolist() == tiny(text)["input_ids"]
        assert 2 <= len(sequence) <= 256
    assert len({len(sequence) for sequence in found.sequences}) > 1
    assert found.description == "50 generated stories (seed 0)"  # none was cut, so nothing is said of it
    assert "calibration" in SPLITS
    other = calibration_tokens(config("stories", samples=50, length=512, seed=1), TINY, tiny, 256)
    assert not set(other.texts) & set(found.texts)


def test_stories_are_cut(tiny: PreTrainedTokenizerBase) -> None:
    found = calibration_tokens(config("stories", samples=5, length=30), TINY, tiny, 12)
    assert {len(sequence) for sequence in found.sequences} == {12}
    assert "is cut to 12" in found.description
    whole = calibration_tokens(config("stories", samples=5, length=256), TINY, tiny, 256)
    for cut, all_of_it in zip(found.texts, whole.texts, strict=True):
        assert all_of_it.startswith(cut) and len(cut) < len(all_of_it)


def test_any_tokenizer_may_read_stories() -> None:
    found = calibration_tokens(config("stories", length=512), HF, words_tokenizer(), 512)
    assert all(sequence[0] == BOS and len(sequence) > 20 for sequence in found.sequences)


# ------------------------------------------------------------------------------------------------------ tasks


def lm_eval_task(**more: Any) -> ConfigurableTask:
    """A task of lm-eval whose documents are words by number: 0 to 19 to train on, 20 to 24 to validate, 25 to 29."""

    def rows(low: int, high: int) -> datasets.Dataset:
        tens = [10 * i for i in range(low, high)]
        return datasets.Dataset.from_dict({"q": [f"w{i} w{i + 1}" for i in tens], "a": [f"w{i + 2}" for i in tens]})

    split = {"train": rows(0, 20), "val": rows(20, 25), "test": rows(25, 30)}
    return ConfigurableTask(
        config={
            "task": "made",
            "custom_dataset": lambda **_: split,
            "training_split": "train",
            "validation_split": "val",
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "Q {{q}}",
            "doc_to_target": " {{a}}",
        }
        | more
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(**more: Any) -> None:
        task = lm_eval_task(**more)
        monkeypatch.setattr(mxsweep.calibrate.documents, "load_tasks", lambda names: {"tasks": {names[0]: task}})

    return make


def test_a_task_gives_its_training_documents(made: Callable[..., None]) -> None:
    made()
    one = config("task", "made", samples=7, length=11)
    found = calibration_tokens(one, HF, words_tokenizer(False), 512)
    assert found.description == "7 sequences of 11 tokens from the train split of made (seed 0)"
    whole = [text for of_window in found.texts for text in of_window.split("\n\n")[1:-1]]
    assert len(whole) == len(set(whole)) >= 7
    numbers = [int(text.split()[1][1:]) for text in whole]
    assert whole == [f"Q w{i} w{i + 1} w{i + 2}" for i in numbers]
    assert max(numbers) < 200 and numbers != sorted(numbers)  # shuffled
    other = calibration_tokens(config("task", "made", samples=7, length=11, seed=1), HF, words_tokenizer(False), 512)
    assert other.identity["tokens"] != found.identity["tokens"]


def test_a_task_gives_its_validation_documents_where_they_are_asked_for(made: Callable[..., None]) -> None:
    made()
    found = calibration_tokens(config("task", "made", split="validation"), HF, words_tokenizer(), 512)
    read = [place for window in places(found) for place in window if place >= 0]
    assert min(read) >= 200 and max(read) < 250
    with pytest.raises(ConfigError, match=r"calibration\.split: 'test' is not known; allowed: train, validation"):
        resolve_calibration(config("task", "made", split="test"), HF)


CHOICE = {"output_type": "multiple_choice", "doc_to_choice": ["no", "yes"], "doc_to_target": 1}
CONTEXTS = {"doc_to_choice": ["A w5", "B"], "doc_to_text": 0, "doc_to_target": "{{a}}"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "Q w0 w1 w2"),
        ({"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}"}, "w0 w1"),
        ({"output_type": "generate_until", "doc_to_target": "{{a}}"}, "Q w0 w1 w2"),
        (CHOICE, "Q w0 w1 yes"),
        (CHOICE | {"target_delimiter": ":"}, "Q w0 w1:yes"),
        (CHOICE | CONTEXTS, "A w5 w2"),
    ],
)
def test_a_document_is_put_as_the_task_scores_it(more: dict[str, Any], expected: str) -> None:
    task = lm_eval_task(**more)
    document = task.training_docs()[0]
    text = mxsweep.calibrate.documents.text_of(task, document)
    assert text == expected
    if more.get("output_type") == "generate_until" or "doc_to_text" in more:
        return
    request = task.construct_requests(document, task.doc_to_text(document), metadata=("made", 0, 1))
    arguments = [one.args for one in (request if isinstance(request, list) else [request])]
    assert text in ["".join(pair[:2]) for pair in arguments]


def test_a_task_without_training_documents_is_refused(made: Callable[..., None]) -> None:
    made(training_split=None)
    with pytest.raises(ConfigError, match=r"calibration\.path: the task 'made' has no train split; give a task"):
        calibration_tokens(config("task", "made"), HF, words_tokenizer(), 512)


def test_the_story_task_has_none() -> None:
    with pytest.raises(ConfigError, match=r"'story' has no train split; calibration=stories generates stories"):
        calibration_tokens(config("task", "story"), HF, words_tokenizer(), 512)


# -------------------------------------------------------------------------------------------------- data sets


def column(low: int, high: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [f"w{i}" for i in range(low, high)], "n": list(range(low, high))})


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def store(kind: str) -> Path:
        path = tmp_path / kind
        data = column(0, 300)
        if kind == "folder":
            path.mkdir()
            data.to_parquet(path / "train.parquet")
            column(300, 400).to_parquet(path / "test.parquet")
        elif kind == "saved":
            data.save_to_disk(path)
        elif kind == "splits":
            datasets.DatasetDict({"train": data, "test": column(300, 400)}).save_to_disk(path)
        elif kind.endswith("parquet"):
            data.to_parquet(path)
        else:
            data.to_json(path)
        return path

    return store


@pytest.mark.parametrize("kind", ["folder", "saved", "splits", "rows.parquet", "rows.json", "rows.jsonl"])
def test_a_data_set_in_files(kind: str, stored: Callable[[str], Path]) -> None:
    one = config("hub", stored(kind), samples=10)
    found = calibration_tokens(one, HF, words_tokenizer(), 512)
    assert f"from {kind}" in found.description and len(found.sequences) == 10
    read = [place for window in places(found) for place in window]
    assert len(set(read)) == 90 and min(read) >= 0 and max(read) < 300 and read != sorted(read)
    files = calibration_identity(one)["files"]
    assert files and all(len(digest) == 64 for digest in files.values())


def test_documents_are_read_until_there_are_enough(
    stored: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    text = mxsweep.calibrate.documents.ColumnTexts._text
    monkeypatch.setattr(
        mxsweep.calibrate.documents.ColumnTexts,
        "_text",
        lambda self, document: read.append(document) or text(self, document),
    )
    calibration_tokens(config("hub", stored("folder"), samples=2), HF, words_tokenizer(), 512)
    assert 18 <= len(read) < 100


def test_another_split_and_a_part_of_one(stored: Callable[[str], Path]) -> None:
    folder = stored("folder")
    found = calibration_tokens(config("hub", folder, split="test"), HF, words_tokenizer(), 512)
    assert min(place for window in places(found) for place in window) >= 300
    found = calibration_tokens(config("hub", folder, split="train[:50]"), HF, words_tokenizer(), 512)
    assert max(place for window in places(found) for place in window) < 50


def test_what_a_data_set_does_not_have_is_said(stored: Callable[[str], Path], tmp_path: Path) -> None:
    folder = stored("folder")
    for knobs, message in (
        ({"field": "page"}, r"calibration\.field: 'page' is not in '.*folder'; it has 'text', 'n'"),
        ({"field": "n"}, r"calibration\.field: 'n' of '.*folder' holds '\d+'; allowed: a column of texts"),
        ({"split": "dev"}, r"calibration\.path: '.*folder' cannot be loaded \(ValueError: .*check name, split"),
    ):
        with pytest.raises(ConfigError, match=message):
            calibration_tokens(config("hub", folder, **knobs), HF, words_tokenizer(), 512)
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"cannot be loaded \(ValueError: a file of a data set ends in \.parquet"):
        calibration_tokens(config("hub", tmp_path / "x.bin"), HF, words_tokenizer(), 512)


@pytest.mark.parametrize("source", ["hub", "task"])
def test_without_a_network_it_is_tried_once_and_said_what_to_do(source: str, no_network: list[object]) -> None:
    path = "owner/of_nothing" if source == "hub" else "arc_easy"
    with pytest.raises(ConfigError) as raised:
        calibration_tokens(config(source, path), HF, words_tokenizer(), 512)
    assert len(no_network) == 1
    message = str(raised.value)
    assert message.startswith("calibration.path: ") and path in message and "task.data" not in message
    assert message.endswith("without a network, give a text with calibration=text calibration.path=FILE")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


# ---------------------------------------------------------------------------------------------------- checks


def test_auto_is_stories_for_the_embedded_model_only() -> None:
    assert resolve_calibration(config("auto"), TINY) == config("stories")
    with pytest.raises(ConfigError, match=r"calibration: 'auto' .* model\.path is 'owner/name'; give calibration=text"):
        resolve_calibration(config("auto"), HF)
    with pytest.raises(ValueError, match="not resolved"):
        calibration_identity(config("auto"))


def test_files_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    good = numbered(tmp_path, 10)
    assert resolve_calibration(config(path=good), HF) == config(path=good)
    for name, content, message in (
        ("none.txt", None, "is not a file; give a UTF-8 text"),
        ("empty.txt", b" \n", "is empty"),
        ("latin.txt", b"caf\xe9 au lait", "cannot be read as UTF-8 text"),
        ("none.jsonl", None, "is not a file"),
        ("empty.jsonl", b"\n", "holds no rows"),
        ("page.jsonl", b'{"page": "x"}\n', "line 1 has no text field 'text'; it has 'page'"),
        ("broken.jsonl", b"{\n", "line 1 is not JSON"),
        ("number.jsonl", b'{"text": 5}\n', "the field 'text' is 5"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message) as raised:
            resolve_calibration(config(path=tmp_path / name), HF)
        assert str(raised.value).startswith("calibration.path: ") and name in str(raised.value)
    with pytest.raises(ConfigError, match="is not a file"):
        resolve_calibration(config(path=tmp_path), HF)
    late = tmp_path / "late.txt"
    late.write_bytes(b"a " * 2**16 + b"\xe9 ")
    with pytest.raises(ConfigError, match=r"calibration\.path: .* cannot be read as UTF-8"):
        calibration_tokens(config(path=late), HF, words_tokenizer(), 512)


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from mxsweep.config.calibration_data import resolve_calibration, calibration_identity; "
        "from mxsweep.config.model_config import ModelConfig; "
        "from mxsweep.config.remedy_config import CalibrationConfig; "
        "model = ModelConfig('tiny', 'embedded', None, 'auto', 'cpu', None, 'sdpa', None, False, False, 'auto'); "
        f"text = CalibrationConfig('text', {str(numbered(tmp_path, 10))!r}, None, 'train', 'text', 1, 2, 0); "
        "stories = CalibrationConfig('auto', None, None, 'train', 'text', 1, 2, 0); "
        "[calibration_identity(resolve_calibration(one, model)) for one in (text, stories)]; "
        "assert not {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_character_on_the_edge_of_what_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "edge.txt"
    file.write_bytes(b"a" * (CHECKED_CHARACTERS - 1) + "ä ä".encode())
    resolve_calibration(config(path=file), HF)


def test_names_of_data_sets_are_checked(tmp_path: Path) -> None:
    for name in ("wikitext", "Salesforce/wikitext"):
        resolve_calibration(config("hub", name), HF)
    for name in ("./nothing", "/not/there", "a/b/c", "~/nothing/there", "x y"):
        with pytest.raises(ConfigError, match=r"calibration\.path: .* does not exist; give the name of a data set"):
            resolve_calibration(config("hub", name), HF)


def test_the_identity_of_a_config_is_of_what_counts(tmp_path: Path) -> None:
    file = numbered(tmp_path, 10)
    known = calibration_identity(config(path=file))
    assert (
        calibration_identity(config(path=numbered(tmp_path, 10, "copy.txt"), field="x", name="y", split="z")) == known
    )
    for change in ({"samples": 5}, {"length": 11}, {"seed": 1}, {"path": numbered(tmp_path, 11, "other.txt")}):
        assert calibration_identity(config(**({"path": file} | change))) != known
    stories_too = calibration_identity(config("stories"))
    assert stories_too == calibration_identity(config("stories", field="x")) != known
    hub = calibration_identity(config("hub", "owner/data"))
    for change in ({"name": "en"}, {"split": "test"}, {"field": "x"}):
        assert calibration_identity(config("hub", "owner/data", **change)) != hub
    assert calibration_identity(config("task", "piqa")) != calibration_identity(
        config("task", "piqa", split="validation")
    )
    for identity in (known, stories_too, hub):
        assert json.loads(json.dumps(identity)) == identity
    file.unlink()
    with pytest.raises(ConfigError, match=r"calibration\.path: .* cannot be read"):
        calibration_identity(config(path=file))


# ------------------------------------------------------------------------------------------------- real texts


def test_a_real_text_and_tokenizer(shared_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(shared_dir / "models" / "novels-llama-31m"))
    file = shared_dir / "data" / "novels_heldout.txt"
    with caplog.at_level(logging.WARNING):
        found = calibration_tokens(config(path=file, samples=128, length=512), HF, tokenizer, 512)
    assert caplog.text == "" and {len(sequence) for sequence in found.sequences} == {512}
    whole = file.read_text(encoding="utf-8")
    assert all(text in whole for text in found.texts)
    # The window's own text comes to nearly the same tokens; only its edges may differ.
    again = tokenizer(found.texts[0], add_special_tokens=False)["input_ids"]
    assert found.sequences[0].tolist()[5:-5] == again[5:][: len(found.sequences[0]) - 10]


def test_which_file_of_a_data_set_is_which_counts(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    (folder / "test.jsonl").write_text('{"text": "two"}\n', encoding="utf-8")
    known = calibration_identity(config("hub", folder))
    for name, text in (("train", "two"), ("test", "one")):
        (folder / f"{name}.jsonl").write_text(f'{{"text": "{text}"}}\n', encoding="utf-8")
    assert calibration_identity(config("hub", folder)) != known
