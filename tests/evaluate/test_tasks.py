"""lm-eval's tasks: a file in the place of a task's data, and by lm-eval's public names alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import mxsweep
from mxsweep import compose
from mxsweep.evaluate import tasks
from mxsweep.evaluate.task_names import names_in_files
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.terminal.errors import ConfigError


def test_a_file_takes_the_place_of_every_split(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a b c"}\n{"text": "d e f"}\n')
    loaded = load_tasks(("lambada_openai", "story"), data={"lambada_openai": str(file)})
    assert list(loaded["tasks"]) == ["lambada_openai", "story"] and not loaded["groups"]
    task = loaded["tasks"]["lambada_openai"]
    assert [row["text"] for row in task.eval_docs] == ["a b c", "d e f"]
    assert not task.has_training_docs() and not task.has_validation_docs()
    assert task.OUTPUT_TYPE == "loglikelihood" and task.doc_to_target(task.eval_docs[0]) == " c"


def test_a_group_takes_no_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a b c"}\n')
    with pytest.raises(ConfigError, match=r"^task\.data: 'openllm' is a group of tasks or written in Python; a file"):
        load_tasks(("openllm",), data={"openllm": str(file)})


def test_a_group_whose_tasks_stand_in_other_folders_is_looked_up_in_the_full_index() -> None:
    manager = tasks._manager_of(("openllm",))
    assert "openllm" in manager.all_groups
    assert {"arc_challenge", "hellaswag"} <= set(manager.all_tasks)
    assert len(tasks._manager_of(("lambada_openai",)).all_tasks) < 50


def test_no_private_module_of_lm_eval_is_imported() -> None:
    private = []
    for file in Path(mxsweep.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [name.split(".") for name in names if name.startswith("lm_eval.")]
            private += [(file.name, name) for name in parts if any(part.startswith("_") for part in name)]
    assert private == []


def test_files_have_every_name_of_the_index() -> None:
    assert set(tasks._full_manager().all_tasks) <= names_in_files()


def test_a_name_that_no_file_has_is_refused_without_lm_eval() -> None:
    code = (
        "import sys; from mxsweep.evaluate.task_names import unknown_task;"
        "print(unknown_task(['storyy']), unknown_task(['lambada', 'story']), 'lm_eval' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "task: 'storyy' is not a task of lm-eval; near it: storycloze" in answer.stdout, answer.stderr
    assert answer.stdout.endswith(" None False\n")


def test_a_task_with_a_file_of_its_name_is_known_by_that_file_alone() -> None:
    code = (
        "from mxsweep.evaluate import task_names as t; import pathlib; read = []; true = pathlib.Path.read_bytes;"
        "pathlib.Path.read_bytes = lambda path: read.append(path.name) or true(path);"
        "print(t.unknown_task(['lambada_openai', 'story', 'wikitext']), sorted(read))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert answer.stdout == "None ['lambada_openai.yaml', 'wikitext.yaml']\n", answer.stderr


@pytest.mark.parametrize(
    ("task", "field", "text"), [("lambada_openai", "text", ""), ("wikitext", "page", ""), ("wikitext", "page", " \n")]
)
def test_a_row_without_words_is_named_before_a_model_is_loaded(
    tmp_path: Path, task: str, field: str, text: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({field: words}) for words in ("A cat sat .", text)))
    with pytest.raises(
        ConfigError, match=rf"^task: {task}: '.*' line 2 .*: what is scored is '[ \\n]*', without a word"
    ):
        load_tasks((task,), data={task: str(file)})


def test_a_row_longer_than_any_book_is_named_when_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mxsweep.config.task_config.MOST_CHARACTERS", 20)
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"text": "a cat sat", "x": "as long as it likes, which nobody reads"}\n\n{"text": "a cat sat on a mat now"}'
    )
    with pytest.raises(ConfigError, match=r"line 3: the field 'text' holds 22 characters; allowed: up to 20$"):
        compose(["task=lambada_openai", f"task.data={file}"])
