"""What is evaluated is never calibrated on: by name, by content, by 32 words in common; and anything else may be."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from lm_eval.api.task import ConfigurableTask
from transformers import AutoTokenizer

from mxsweep.calibrate import leak
from mxsweep.calibrate.leak import refuse_evaluated, refuse_same_file
from mxsweep.calibrate.texts import Calibration, calibration_tokens
from mxsweep.config.model_config import ModelConfig
from mxsweep.config.remedy_config import CalibrationConfig
from mxsweep.config.task_config import TaskConfig
from mxsweep.evaluate.stories import stories
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.terminal.errors import ConfigError

HF = ModelConfig("hf", "owner/name", None, "auto", "cpu", None, "sdpa", None, False, False, "auto")


def config(source: str = "stories", path: object = None, **knobs: Any) -> CalibrationConfig:
    defaults = {"name": None, "split": "train", "field": "text", "samples": 128, "length": 512, "seed": 0}
    return CalibrationConfig(source=source, path=None if path is None else str(path), **(defaults | knobs))


def task_config(data: dict[str, str] | None = None, fields: dict[str, str] | None = None) -> TaskConfig:
    names = tuple(data or {"made": ""})
    return TaskConfig(names, fields or {}, data or {}, None, False)


def made(documents: list[str], **more: Any) -> ConfigurableTask:
    """A task whose documents are these texts, the last word being the answer."""
    split = {"rows": datasets.Dataset.from_dict({"text": documents})}
    return ConfigurableTask(
        config={
            "task": "made",
            "custom_dataset": lambda **_: split,
            "test_split": "rows",
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        }
        | more
    )


def read(*texts: str) -> Calibration:
    return Calibration(tuple(np.zeros(2, np.int64) for _ in texts), texts, {}, "some texts")


def words(n: int, seed: int = 0, many: int = 5000) -> list[str]:
    draw = random.Random(seed)
    return [f"word{int(draw.random() * many)}" for _ in range(n)]


def check(calibration: Calibration, documents: list[str]) -> None:
    refuse_evaluated(calibration, {"made": made(documents)}, task_config(), config())


LONG = words(200)
OTHER = "words enough to tell something of"
DOCUMENTS = [" ".join(words(100, seed)) for seed in range(1, 30)] + [" ".join(LONG)]


@pytest.mark.parametrize("start", [0, 50, 168])
def test_32_words_in_common_are_refused_and_31_are_not(start: int) -> None:
    for length, refused in ((32, True), (31, False)):
        text = " ".join([*words(60, 99), *LONG[start : start + length], *words(60, 98)])
        if refused:
            with pytest.raises(ConfigError, match="1 of the 30 documents that made evaluates stands there in 32 words"):
                check(read("nothing of note", text), DOCUMENTS)
        else:
            check(read("nothing of note", text), DOCUMENTS)


@pytest.mark.parametrize(
    "disguise",
    [
        str.upper,
        str.title,
        lambda text: text.replace(" ", "\n"),
        lambda text: text.replace(" ", "  \t"),
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: text.replace(" ", ", "),
        lambda text: f'"{text.replace(" ", " - ")}."',
        lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isalnum() else c for c in text),  # full-width forms
    ],
)
def test_case_spaces_and_punctuation_hide_nothing(disguise: Any) -> None:
    with pytest.raises(ConfigError, match="1 of the 30 documents"):
        check(read(disguise(" ".join(LONG[20:60]))), DOCUMENTS)
    check(read(disguise(" ".join(reversed(LONG)))), DOCUMENTS)


def test_a_run_must_stand_in_one_text_on_either_side() -> None:
    half, other = " ".join(LONG[40:60]), " ".join(LONG[60:80])
    check(read(half, other), DOCUMENTS)
    check(read(half, other), [" ".join(LONG[:60]), " ".join(LONG[60:])])
    check(read(f"{half} {other}"), [" ".join(LONG[:60]), " ".join(LONG[60:])])
    with pytest.raises(ConfigError):
        check(read(f"{half} {other}"), DOCUMENTS)


def test_the_answer_is_part_of_a_document() -> None:
    with pytest.raises(ConfigError):
        check(read(" ".join(LONG[-32:])), DOCUMENTS)


def test_a_short_document_counts_whole() -> None:
    for length, refused in ((12, False), (13, True), (31, True)):
        documents = [*DOCUMENTS, " ".join(words(length, 77))]
        for text in (words(40, 99) + words(length, 77) + words(40, 98), words(length, 77)):
            if refused:
                with pytest.raises(ConfigError, match="1 of the 31 documents"):
                    check(read(" ".join(text)), documents)
            else:
                check(read(" ".join(text)), documents)
        check(read(" ".join(words(length, 77)[:-1])), documents)  # but for a word


def test_the_message_says_what_is_shared_and_which_comes_first() -> None:
    with pytest.raises(ConfigError) as raised:
        check(read(DOCUMENTS[7], DOCUMENTS[3], DOCUMENTS[-1]), DOCUMENTS)
    first = " ".join(DOCUMENTS[3].split()[:12])
    assert str(raised.value) == (
        "calibration: some texts: 3 of the 30 documents that made evaluates stand there in 32 words or more, the "
        f"first of them '{first} ...'; allowed: texts that are not evaluated"
    )


def windows(text: list[str], length: int, count: int = 12) -> list[str]:
    """Sequences of a text as tokens cut it: each begins and ends within a word."""
    return [" ".join(text[i : i + length])[2:-2] for i in range(0, length * count, length)]


def check_text(sequences: list[str], documents: list[str] = DOCUMENTS) -> None:
    refuse_evaluated(read(*sequences), {"made": made(documents)}, task_config(), config("task", "another"))


@pytest.mark.parametrize("length", [6, 10, 14, 15, 20, 31, 33])
def test_the_evaluated_texts_in_short_sequences_are_refused(length: int) -> None:
    sequences = windows(LONG, length, 200 // length)
    with pytest.raises(ConfigError, match="sequences stand in documents that made evaluates") as raised:
        check_text(sequences)
    assert f": {len(sequences)} of the {len(sequences)} sequences" in str(raised.value)
    check_text(windows(words(200, 99), length, 200 // length))
    check_text(sequences, DOCUMENTS[:-1])


@pytest.mark.parametrize(("length", "refused"), [(14, False), (15, True), (33, True)])
def test_one_short_sequence_among_many_counts_from_13_whole_words(length: int, refused: bool) -> None:
    other = words(500, 99)
    sequences = [*windows(other, length, 12), *windows(LONG[40:], length, 1)]
    if refused:
        with pytest.raises(ConfigError, match="1 of the 13 sequences stand") as raised:
            check_text(sequences)
        assert f"'{' '.join(sequences[-1].split()[:12])} ...'" in str(raised.value)
    else:
        check_text(sequences)
        check_text([*windows(other, length, 5), *windows(LONG, length, 5)])
        with pytest.raises(ConfigError, match="6 of the 11 sequences"):
            check_text([*windows(other, length, 5), *windows(LONG, length, 6)])


def test_sequences_in_which_nothing_can_be_told_are_refused() -> None:
    for sequences in (["", "a"], ["one two three four five"] * 3):
        with pytest.raises(ConfigError, match=r"calibration\.length: .* words are too short to tell whether they are"):
            check_text(sequences)
        check(read(*sequences), DOCUMENTS)  # stories are of a split of their own
    check_text(["one two three four five", "one two three four five six"])


def test_nothing_is_shared_with_nothing() -> None:
    check(read("", "a"), DOCUMENTS)
    check(read(*DOCUMENTS), ["", "a b", "..."])
    refuse_evaluated(read(*DOCUMENTS), {}, task_config(), config())


def test_scripts_without_spaces_are_compared_by_character() -> None:
    draw = random.Random(0)
    text = "".join(chr(0x4E00 + int(draw.random() * 5000)) for _ in range(100))
    with pytest.raises(ConfigError):
        check(read(text[30:62]), [text + " 。"])
    check(read(text[30:61]), [text + " 。"])


def test_as_a_search_by_hand_finds() -> None:
    """Texts of a few words over and over, so that many runs nearly agree: against comparing every run by itself."""
    for seed in range(30):
        documents = [words(int(20 + 7 * i), 100 * seed + i, many=2) for i in range(8)]
        sequences = [words(45, 1000 * seed + i, many=2) for i in range(3)]
        for i in range(0, 8, 3):  # some that do agree
            sequences[0][5 : 5 + 20 + 4 * i] = documents[i][: 20 + 4 * i]
        of_sequences = leak._Words.of(map(" ".join, sequences))
        found = leak._shared_documents(of_sequences, leak._Words.of(map(" ".join, documents)))
        expected = []
        for number, document in enumerate(documents):
            size = min(32, len(document))
            if size >= 13 and runs(document, size) & set().union(*(runs(sequence, size) for sequence in sequences)):
                expected.append(number)
        assert found.tolist() == expected and expected


def runs(text: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}


def test_a_document_is_what_the_task_makes_of_a_row() -> None:
    """What process_docs and templates add or leave out is not in the file, but is evaluated."""
    task = made([" ".join(LONG)], doc_to_text="", doc_to_target=lambda doc: " ".join(reversed(doc["text"].split())))
    with pytest.raises(ConfigError):
        refuse_evaluated(read(" ".join(LONG[::-1])), {"made": task}, task_config(), config())
    refuse_evaluated(read(" ".join(LONG)), {"made": task}, task_config(), config())


def test_a_task_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = made(DOCUMENTS)
    refuse_evaluated(read("a"), {"made": task}, task_config(), config())
    monkeypatch.setattr(task, "doc_to_text", None)
    refuse_evaluated(read("b"), {"made": task}, task_config(), config())


# ------------------------------------------------------------------------------------------------ same source


def test_the_file_that_is_evaluated_is_refused_by_its_content(tmp_path: Path) -> None:
    rows, copy, other = (tmp_path / name for name in ("rows.jsonl", "copy.jsonl", "other.jsonl"))
    for file in (rows, copy):
        file.write_text(json.dumps({"text": "a b c"}) + "\n")
    other.write_text(json.dumps({"text": "a b d"}) + "\n")
    task = task_config({"made": str(rows)})
    for source, path in (("text", rows), ("text", copy), ("hub", copy), ("hub", tmp_path)):
        with pytest.raises(ConfigError, match=r"calibration\.path: .* holds the same as '.*rows.jsonl', which made"):
            refuse_same_file(config(source, path), task)
        with pytest.raises(ConfigError, match="holds the same"):
            refuse_evaluated(read("nothing"), {}, task, config(source, path))
    for source, path in (("text", other), ("stories", None), ("task", "made"), ("hub", "owner/name")):
        refuse_same_file(config(source, path), task)
    refuse_same_file(config("text", rows), task_config())


def test_the_split_that_is_evaluated_is_refused() -> None:
    both = made(["a b"], validation_split="rows")
    only_validation = made(["a b"], validation_split="rows", test_split=None)
    refuse_evaluated(read(OTHER), {"made": both}, task_config(), config("task", "made", split="validation"))
    refuse_evaluated(read(OTHER), {"made": only_validation}, task_config(), config("task", "made"))
    refuse_evaluated(read(OTHER), {"made": only_validation}, task_config(), config("task", "other", split="validation"))
    with pytest.raises(ConfigError, match=r"calibration\.split: 'validation' is what made evaluates"):
        refuse_evaluated(
            read(OTHER), {"made": only_validation}, task_config(), config("task", "made", split="validation")
        )


@pytest.mark.parametrize(
    ("knobs", "refused"),
    [
        ({"split": "rows"}, True),
        ({"split": "rows[:10%]"}, True),
        ({"split": "train+rows[5:]"}, True),
        ({"split": "all"}, True),
        ({"split": "rows", "name": "en"}, True),
        ({"split": "rows", "name": "fr"}, False),
        ({"split": "train"}, False),
        ({"split": "rows", "path": "owner/other"}, False),
    ],
)
def test_the_data_set_that_is_evaluated_is_refused(knobs: dict[str, Any], refused: bool) -> None:
    task = made(["a b"], dataset_path="owner/data", dataset_name="en")
    one = config("hub", **({"path": "owner/data"} | knobs))
    if refused:
        with pytest.raises(ConfigError, match=r"calibration\.split: '.*' of 'owner/data' is what made evaluates"):
            refuse_evaluated(read(OTHER), {"made": task}, task_config(), one)
    else:
        refuse_evaluated(read(OTHER), {"made": task}, task_config(), one)


# ------------------------------------------------------------------------------------------------- real texts


def test_generated_stories_are_no_leak() -> None:
    tasks = load_tasks(("story",))["tasks"]
    task = TaskConfig(("story",), {}, {}, None, False)
    refuse_evaluated(read(*stories(2000, 0, "calibration")), tasks, task, config())
    with pytest.raises(ConfigError, match="1 of the 1,000 documents that story evaluates stands there"):
        refuse_evaluated(read(stories(1000)[500]), tasks, task, config())


@pytest.fixture(scope="module")
def real(shared_dir: Path) -> tuple[dict[str, Any], TaskConfig, Any]:
    fields = {"lambada_openai": "text", "wikitext": "page"}
    files = {"lambada_openai": "lambada_openai_test.jsonl", "wikitext": "wikitext2_raw_test.jsonl"}
    data = {name: str(shared_dir / "data" / file) for name, file in files.items()}
    tasks = load_tasks(tuple(data), data=data, fields=fields)["tasks"]
    tokenizer = AutoTokenizer.from_pretrained(str(shared_dir / "models" / "novels-llama-31m"))
    return tasks, task_config(data, fields), tokenizer


def test_held_out_novels_are_no_leak(real: tuple[dict[str, Any], TaskConfig, Any], shared_dir: Path) -> None:
    tasks, task, tokenizer = real
    one = config("text", shared_dir / "data" / "novels_heldout.txt")
    calibration = calibration_tokens(one, HF, tokenizer, 512)
    refuse_evaluated(calibration, tasks, task, one)  # raises nothing


@pytest.mark.parametrize("name", ["lambada_openai", "wikitext"])
def test_what_is_evaluated_is_refused_in_any_spelling(
    name: str, real: tuple[dict[str, Any], TaskConfig, Any], tmp_path: Path
) -> None:
    tasks, task, tokenizer = real
    rows = [json.loads(line)[task.fields[name]] for line in Path(task.data[name]).read_text().splitlines()]
    for spelling in (str, str.upper, lambda text: "\n".join(text.split())):
        file = tmp_path / "text.txt"
        file.write_text("\n\n".join(map(spelling, rows[: 300 if name == "lambada_openai" else 5])))
        one = config("text", file, samples=4)
        with pytest.raises(ConfigError, match=rf"calibration: 4 sequences .* documents that {name} evaluates"):
            refuse_evaluated(calibration_tokens(one, HF, tokenizer, 512), tasks, task, one)


def test_the_embedded_tokenizer_hides_nothing(real: tuple[dict[str, Any], TaskConfig, Any], tmp_path: Path) -> None:
    """It knows few words of a real text: what it reads is mostly unknown, but what the text says is looked at."""
    from mxsweep.files.checkpoints import model_folder

    tasks, task, _ = real
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder("embedded")))
    rows = [json.loads(line)["text"] for line in Path(task.data["lambada_openai"]).read_text().splitlines()[:100]]
    (tmp_path / "text.txt").write_text("\n\n".join(rows))
    one = config("text", tmp_path / "text.txt", samples=4, length=256)
    with pytest.raises(ConfigError, match="documents that lambada_openai evaluates"):
        refuse_evaluated(calibration_tokens(one, HF, tokenizer, 256), tasks, task, one)
