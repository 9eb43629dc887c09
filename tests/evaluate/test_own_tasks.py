"""Tasks of one's own, loaded and evaluated; few-shot examples; rows that make no question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mxsweep import compose, run
from mxsweep.config.own_tasks import read_own_tasks
from mxsweep.evaluate.fewshot import check_fewshot
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.terminal.errors import ConfigError

TASK = """\
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {train: data/train.jsonl, test: data/test.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def rows(count: int, what: str) -> list[dict[str, Any]]:
    return [
        {"question": f"{what} {n} took the ring to", "choices": ["the inn", "the cave"], "answer": n % 2}
        for n in range(count)
    ]


def write(file: Path, content: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in content))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "mine" / "data" / "train.jsonl", rows(6, "Nora"))
    write(tmp_path / "mine" / "data" / "test.jsonl", rows(4, "Oscar"))
    (tmp_path / "mine" / "capitals.yaml").write_text(TASK)
    return tmp_path / "mine"


def load(folder: Path, name: str = "capitals", **more: Any) -> Any:
    return load_tasks((name,), own=read_own_tasks(str(folder)), **more)["tasks"]


def contexts(folder: Path, limit: int, **more: Any) -> list[str]:
    """Return what is asked of the first examples, two requests each."""
    task = load(folder, **more)["capitals"]
    task.build_all_requests(limit=limit)
    return [request.args[0] for request in task.instances]


# Loading


def test_data_count_from_the_folder_of_the_yaml(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no data/
    tasks = load(folder)
    assert [row["question"][:7] for row in tasks["capitals"].eval_docs] == [f"Oscar {n}" for n in range(4)]
    assert tasks["capitals"].config.metadata["config_source"] == str(folder / "capitals.yaml")


def test_a_group_of_ones_own_with_python_and_a_task_of_lm_eval(folder: Path) -> None:
    (folder / "sub").mkdir()
    text = "include: ../capitals.yaml\ntask: halves\nprocess_docs: !function utils.half\n"
    (folder / "sub" / "halves.yaml").write_text(text)
    (folder / "sub" / "utils.py").write_text("def half(docs):\n    return docs.select(range(len(docs) // 2))\n")
    (folder / "group.yaml").write_text("group: mine\ntask: [capitals, halves]\n")
    tasks = load(folder, "mine")
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {"capitals": 4, "halves": 2}


def test_a_file_takes_the_place_of_the_rows_of_ones_own_task(folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(3, "Irene"))
    task = load(folder, data={"capitals": str(file)})["capitals"]
    assert [row["question"][:7] for row in task.eval_docs] == ["Irene 0", "Irene 1", "Irene 2"]


def test_a_task_that_is_written_anew_is_loaded_anew(folder: Path) -> None:
    assert len(load(folder)["capitals"].eval_docs) == 4
    write(folder / "data" / "test.jsonl", rows(5, "Oscar"))
    assert len(load(folder)["capitals"].eval_docs) == 5


def test_python_that_fails_is_one_line(folder: Path) -> None:
    (folder / "capitals.yaml").write_text(TASK + "process_docs: !function utils.change\n")
    (folder / "utils.py").write_text("def change(docs):\n    raise AssertionError('no\\nrows')\n")
    with pytest.raises(ConfigError, match=r"^task: capitals cannot be loaded \(AssertionError: no rows\)"):
        load(folder)


def test_a_run_of_ones_own_task_has_margins(folder: Path, tmp_path: Path) -> None:
    words = [f"task={folder}/capitals.yaml", "model.device=cpu", "format=none", "task.num_fewshot=1"]
    record = run(compose(words), tmp_path / "run")
    assert record["status"] == "done" and record["n_effective"] == {"capitals": 4}
    assert {"acc", "margin", "margin_stderr"} <= set(record["metrics"]["capitals"])
    assert record["identity"]["own_tasks"]["capitals"].keys() == {
        "capitals.yaml",
        "data/train.jsonl",
        "data/test.jsonl",
    }
    assert not record["warnings"]


# Few-shot examples


def test_examples_come_from_the_training_split_whatever_the_limit(folder: Path) -> None:
    asked = contexts(folder, 4, num_fewshot=2)
    assert all(text.count("Nora") == 2 and text.count("Oscar") == 1 for text in asked)
    assert contexts(folder, 2, num_fewshot=2) == asked[:4]
    assert contexts(folder, 4, num_fewshot=2) == asked, "drawn anew from the same seed"
    assert contexts(folder, 4, num_fewshot=2, seed=5) != asked


ONE_SPLIT = TASK.replace("training_split: train\n", "")


@pytest.mark.parametrize("text", [ONE_SPLIT, ONE_SPLIT.replace("test_split", "validation_split")])
def test_examples_from_the_evaluated_rows_are_refused(folder: Path, text: str) -> None:
    (folder / "capitals.yaml").write_text(text)
    tasks = load(folder, num_fewshot=2)
    with pytest.raises(ConfigError, match=r"capitals has no rows beside those that it evaluates \('test'\) to take 2"):
        check_fewshot(tasks, from_evaluated=False)
    assert check_fewshot(load(folder), from_evaluated=False) == []


@pytest.mark.parametrize("split", ["test_split", "validation_split"])
@pytest.mark.parametrize("named", [True, False])
def test_the_asked_row_is_never_among_its_own_examples(folder: Path, split: str, named: bool) -> None:
    text = ONE_SPLIT.replace("test_split", split) + ("fewshot_split: test\n" if named else "")
    (folder / "capitals.yaml").write_text(text)
    tasks = load(folder, num_fewshot=3)
    assert check_fewshot(tasks, from_evaluated=not named) == [
        "capitals: the 3 examples in front of a question are other rows of 'test', the split that is evaluated"
    ]
    task = tasks["capitals"]
    task.build_all_requests(limit=4)
    for request in task.instances:
        assert sorted(int(n) for n in range(4) if f"Oscar {n}" in request.args[0]) == [0, 1, 2, 3]
        assert request.args[0].count("Oscar") == 4


def test_rows_of_a_file_are_all_evaluated(folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", rows(3, "Irene"))
    tasks = load(folder, data={"capitals": str(file)}, num_fewshot=1)
    with pytest.raises(ConfigError, match=r"^task\.num_fewshot: capitals has no rows beside those that it evaluates"):
        check_fewshot(tasks, from_evaluated=False, fed=["capitals"])
    assert len(check_fewshot(tasks, from_evaluated=True, fed=["capitals"])) == 1


@pytest.mark.parametrize(("text", "most"), [(TASK, "holds 6"), (ONE_SPLIT, "holds 3 beside the one that is asked")])
def test_more_examples_than_rows_are_refused(folder: Path, text: str, most: str) -> None:
    (folder / "capitals.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"7 examples are more than capitals has rows for: its split .* {most}; "):
        check_fewshot(load(folder, num_fewshot=7), from_evaluated=True)
    allowed = 6 if text == TASK else 3
    check_fewshot(load(folder, num_fewshot=allowed), from_evaluated=True)


def test_evaluated_rows_among_those_of_the_training_split_are_told(folder: Path) -> None:
    write(folder / "data" / "train.jsonl", [*rows(6, "Nora"), *rows(2, "Oscar")])
    assert check_fewshot(load(folder, num_fewshot=1), from_evaluated=False) == [
        "capitals: 2 of 4 evaluated rows also stand among those that examples are taken from (its split 'train'); "
        "none is among its own"
    ]


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_a_row_that_both_splits_hold_is_never_its_own_example(folder: Path, sampler: str) -> None:
    (folder / "capitals.yaml").write_text(f"{TASK}fewshot_config: {{sampler: {sampler}}}\n")
    write(folder / "data" / "train.jsonl", rows(4, "Oscar"))
    tasks = load(folder, num_fewshot=3)
    assert len(check_fewshot(tasks, from_evaluated=False)) == 1
    tasks["capitals"].build_all_requests(limit=4)
    for request in tasks["capitals"].instances:
        assert [request.args[0].count(f"Oscar {n} ") for n in range(4)] == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"4 examples are more than .* holds 3 beside the one that is asked; "):
        check_fewshot(load(folder, num_fewshot=4), from_evaluated=False)


# Rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "a", "choices": ["b", "c"], "answer": 0, "answer": 1}', "line 3 has the field 'answer' twice"),
        ("[1, 2]", "line 3 is not an object with named fields"),
        ('{"question": "a"', "line 3 is not JSON"),
        ("[" * 100_000, "line 3 cannot be read: "),
        ('{"question": "a", "choices": ["b", "c"], "answer": [0]}', "line 3: the field 'answer' is a list, and"),
        ('{"question": "\\ud800", "choices": ["b", "c"], "answer": 0}', "line 3: the field 'question' holds '.ud800'"),
        ('{"question": "a", "choices": ["b", "c"], "answer": null}', "line 3 is no question of this task: .*right"),
        ('{"question": "a", "choices": [], "answer": 0}', r"line 3 is no question of this task: its choices are \[\]"),
        ('{"question": "a", "answer": 0}', "line 3 is no question of this task: its choices are None"),
        ('{"question": 5, "choices": ["b", "c"], "answer": 0}', "line 3: the field 'question' is a number, and a text"),
    ],
)  # fmt: skip
def test_a_row_that_makes_no_sense_is_named_by_its_line(folder: Path, tmp_path: Path, row: str, message: str) -> None:
    file = write(tmp_path / "rows.jsonl", [rows(1, "Irene")[0], "", row])
    with pytest.raises(ConfigError, match=message) as refused:
        load(folder, data={"capitals": str(file)})
    assert "\n" not in str(refused.value) and str(refused.value).startswith("task")


@pytest.mark.parametrize(
    "extra", [[1, "two"], [1, None], ["\ud800", "x"], [float("nan"), 2.0], [{"a": 1}, [2]], [2**70, 1]]
)
def test_what_a_task_does_not_read_may_be_anything(folder: Path, tmp_path: Path, extra: list[Any]) -> None:
    given = [row | {"source": value} for row, value in zip(rows(2, "Irene"), extra, strict=True)]
    file = write(tmp_path / "rows.jsonl", given)
    task = load(folder, data={"capitals": str(file)})["capitals"]
    assert [task.doc_to_target(row) for row in task.eval_docs] == [0, 1]


def test_a_row_of_ones_own_data_that_makes_no_sense_is_named(folder: Path) -> None:
    write(folder / "data" / "test.jsonl", [*rows(2, "Oscar"), {"question": "a", "choices": ["b"], "answer": None}])
    with pytest.raises(
        ConfigError, match=r"^task: capitals: row 3 is no question of this task: its right choice is None"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "a"', "line 3 is not JSON"),
        ("[1, 2]", "line 3 is not an object with named fields"),
        ('{"question": "\\ud800", "choices": ["b", "c"], "answer": 0}', "line 3: the field 'question' holds half of a"),
        ('{"question": "a", "choices": ["b", "\\udc00"], "answer": 0}', "line 3: the field 'choices' holds half of a"),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": [0]}',
            "line 3: the field 'answer' is a list, and a number",
        ),
    ],
)
@pytest.mark.parametrize("name", ["test.jsonl", "test.json"])
def test_a_row_of_ones_own_data_that_cannot_be_read_is_named_by_its_file_and_line(
    folder: Path, row: str, message: str, name: str
) -> None:
    (folder / "capitals.yaml").write_text(TASK.replace("test.jsonl", name))
    file = write(folder / "data" / name, [rows(1, "Oscar")[0], "", row])
    with pytest.raises(ConfigError, match=f"^task: capitals: '{file}' {message}") as refused:
        load(folder)
    assert "network" not in str(refused.value) and "\n" not in str(refused.value)


def test_data_that_are_no_json_lines_are_left_to_datasets(folder: Path) -> None:
    text = TASK.replace("test.jsonl", "test.json").replace("train: data/train.jsonl, ", "")
    (folder / "capitals.yaml").write_text(text.replace("training_split: train\n", ""))
    file = folder / "data" / "test.json"
    file.write_text(json.dumps(rows(3, "Oscar"), indent=1))
    assert len(load(folder)["capitals"].eval_docs) == 3
    file.write_text('[{"question": "a"},')
    with pytest.raises(ConfigError, match=f"^task: capitals cannot be loaded .*; the data are read from {file}$"):
        load(folder)
    (folder / "capitals.yaml").write_text(TASK.replace("kwargs: {", "kwargs: {field: rows, "))
    for split, who in (("train", "Nora"), ("test", "Oscar")):
        (folder / "data" / f"{split}.jsonl").write_text(json.dumps({"rows": rows(2, who)}, indent=1))
    assert len(load(folder)["capitals"].eval_docs) == 2
