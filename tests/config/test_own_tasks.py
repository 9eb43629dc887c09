"""Tasks of one's own: what is planned of them, what identifies a run, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mxsweep import compose
from mxsweep.config.overrides import as_typed, prepare
from mxsweep.config.own_tasks import read_own_tasks
from mxsweep.evaluate.task_names import unknown_task
from mxsweep.sweeps.impossible import why_impossible
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.errors import ConfigError

TASK = """\
task: capitals
tag: geography
dataset_path: json
dataset_kwargs: {data_files: {test: data/capitals.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""
ROWS = '{"question": "Nora took the ring to the", "answer": " inn"}\n{"question": "In the", "answer": " cave"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one task, its data, and a YAML file that is none."""
    root = tmp_path / "mine"
    (root / "data").mkdir(parents=True)
    (root / "capitals.yaml").write_text(TASK)
    (root / "data" / "capitals.jsonl").write_text(ROWS)
    (root / "notes.yaml").write_text("a: list\n")
    return root


def of(*words: str) -> str:
    return compose(list(words)).config_hash


def test_a_file_is_the_folder_of_one_with_the_name_in_it(folder: Path) -> None:
    by_file = compose([f"task={folder}/capitals.yaml"])
    by_folder = compose(["task=capitals", f"task.include_path={folder}"])
    assert by_file.task.names == by_folder.task.names == ("capitals",)
    assert by_file.config_hash == by_folder.config_hash != of("task=lambada_openai")
    assert compose([f"task=[story,{folder}/capitals.yaml]"]).task.names == ("story", "capitals")
    assert by_file.as_dict()["task"]["include_path"] == f"{folder}/capitals.yaml"


def test_the_command_is_told_as_it_was_typed(folder: Path) -> None:
    (words,), _ = prepare([f"task={folder}/capitals.yaml"])
    assert [as_typed(word) for word in words] == [f"task={folder}/capitals.yaml"]


def test_a_folder_of_tasks_that_is_not_used_changes_no_run(folder: Path) -> None:
    assert of("task=story", f"task.include_path={folder}") == of("task=story")


def test_content_identifies_a_task_and_not_where_it_lies(folder: Path, tmp_path: Path) -> None:
    before = of("task=capitals", f"task.include_path={folder}")
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "moved")
    assert of("task=capitals", f"task.include_path={moved}") == before
    (moved / "notes.yaml").write_text("b: list\n")
    assert of("task=capitals", f"task.include_path={moved}") == before, "which the task does not read"
    (moved / "data" / "capitals.jsonl").write_text(ROWS + ROWS)
    with_rows = of("task=capitals", f"task.include_path={moved}")
    (moved / "capitals.yaml").write_text(TASK + "description: Where?\n")
    assert len({before, with_rows, of("task=capitals", f"task.include_path={moved}")}) == 3


def test_python_that_a_task_names_and_files_that_it_includes_identify_it(folder: Path) -> None:
    (folder / "base.yaml").write_text(TASK)
    text = "include: base.yaml\ntask: other\nprocess_docs: !function utils.change\n"
    (folder / "other.yaml").write_text(text)
    (folder / "utils.py").write_text("import helper\n\n\ndef change(docs):\n    return docs\n")
    (folder / "helper.py").write_text("N = 1\n")
    (folder / "capitals.yaml").unlink()
    names = sorted(read_own_tasks(str(folder)).files("other"))
    assert names == ["base.yaml", "data/capitals.jsonl", "helper.py", "other.yaml", "utils.py"]
    hashes = {of(f"task={folder}/other.yaml")}
    for name in ("helper.py", "base.yaml"):
        (folder / name).write_text((folder / name).read_text() + "\n# more\n")
        hashes.add(of(f"task={folder}/other.yaml"))
    assert len(hashes) == 3


def test_python_that_makes_rows_may_read_whatever_lies_beside_it(folder: Path) -> None:
    (folder / "made.yaml").write_text(
        TASK.replace("task: capitals", "task: made\ncustom_dataset: !function utils.rows")
    )
    (folder / "utils.py").write_text("def rows(**_):\n    return {}\n")
    assert "notes.yaml" in read_own_tasks(str(folder)).files("made")


def test_groups_and_tags_are_their_members(folder: Path) -> None:
    (folder / "second.yaml").write_text(TASK.replace("capitals\n", "rivers\n", 1))
    (folder / "group.yaml").write_text("group: mine\ntask: [capitals, rivers, lambada_openai]\n")
    own = read_own_tasks(str(folder))
    assert own.members("geography") == ["capitals", "rivers"]
    assert {"capitals.yaml", "second.yaml", "group.yaml", "data/capitals.jsonl"} == set(own.files("mine"))
    task = compose(["task=mine", f"task.include_path={folder}"]).task
    assert task.names_of_lm_eval == ["lambada_openai"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.yaml", "task.include_path: 'nowhere.yaml' does not exist; give a folder"),
        ("notes.yaml", "is no task of lm-eval: it has no `task:` with a name, and a$"),
        ("broken.yaml", "broken.yaml' cannot be read: while parsing"),
        ("list.yaml", "list.yaml' is no task of lm-eval: it holds no mapping"),
        ("empty", "'empty' holds no task of lm-eval: no YAML file with `task:`"),
        ("missing.yaml", "missing: its data file '.*nothing.jsonl' does not exist; data_files count from the"),
        ("includes.yaml", "includes 'gone.yaml', which does not exist"),
        ("itself.yaml", "itself.yaml' includes itself"),
        ("code.yaml", "code: !function gone.rows names no gone.py beside"),
        ("twice", "two files of .* are called 'capitals': a.yaml and b.yaml"),
        ("data/capitals.jsonl", "is no YAML file; allowed: a folder, or a .yaml file"),
    ],
)
def test_what_is_no_task_is_refused_in_a_line(
    path: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken.yaml").write_text("task: [\n")
    (folder / "list.yaml").write_text("- task\n")
    (folder / "missing.yaml").write_text(TASK.replace("capitals", "missing").replace("data/missing", "nothing"))
    (folder / "includes.yaml").write_text("include: gone.yaml\ntask: x\n")
    (folder / "itself.yaml").write_text("include: itself.yaml\ntask: x\n")
    (folder / "code.yaml").write_text("task: code\nprocess_docs: !function gone.rows\n")
    for name in ("empty", "twice"):
        (folder / name).mkdir()
    for name in ("a", "b"):
        (folder / "twice" / f"{name}.yaml").write_text(TASK)
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message) as refused:
        own = read_own_tasks(path)
        own.files(own.names[0])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("task=missing.yaml", "missing: its data file '.*nothing.jsonl' does not exist"),
        ("task=[capitals.yaml,missing.yaml]", "are several files; allowed: one, or task.include_path=FOLDER"),
        ("task=capitals.yaml task.include_path=.", "is a file and task.include_path a folder; give the file alone"),
        ("task.names=[capitals.yaml]", "task.names: 'capitals.yaml' is a file; write task=capitals.yaml"),
        ("task=data/capitals.jsonl", "'data/capitals.jsonl' is no name of a task; allowed: one, FILE.yaml"),
    ],
)
def test_words_that_make_no_sense_are_refused_when_planned(
    words: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "missing.yaml").write_text(TASK.replace("capitals", "missing").replace("data/missing", "nothing"))
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message):
        compose(words.split())


def test_a_pipe_among_the_files_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.yaml")
    os.mkfifo(folder / "data" / "pipe.jsonl")
    (folder / "made.yaml").write_text(
        TASK.replace("task: capitals", "task: made\ncustom_dataset: !function utils.rows")
    )
    (folder / "utils.py").write_text("def rows(**_):\n    return {}\n")
    assert "capitals.yaml" in read_own_tasks(str(folder)).digests("made")


def test_a_name_that_nobody_has_is_refused_with_those_near_it(folder: Path) -> None:
    message = unknown_task(["captials"], read_own_tasks(str(folder)).names)
    assert message is not None
    assert message.startswith("task: 'captials' is not a task of lm-eval or of task.include_path; near it: capitals")


def test_a_sweep_goes_on_from_another_folder(folder: Path, tmp_path: Path) -> None:
    def planned(cwd: Path, paths_from: Path | None) -> list[str]:
        before = os.getcwd()
        os.chdir(cwd)
        try:
            grids, _ = prepare(["task=mine/capitals.yaml", "format=none,mxfp4"])
            return [run.config_hash for run in plan(grids, True, paths_from=paths_from).runs]
        finally:
            os.chdir(before)

    there = planned(tmp_path, None)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    assert planned(elsewhere, tmp_path) == there and len(there) == 2


def test_planning_imports_no_lm_eval(folder: Path) -> None:
    code = (
        "import sys; from mxsweep import compose; compose(sys.argv[1:]).config_hash; "
        "print(sorted({'torch', 'lm_eval', 'datasets'} & set(sys.modules)))"
    )
    words = ["task=capitals", f"task.include_path={folder}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_nothing_speaks_against_a_task_of_ones_own(folder: Path) -> None:
    grids, _ = prepare([f"task={folder}/capitals.yaml"])
    (run,) = plan(grids, multirun=False).runs
    assert why_impossible(run) is None


@pytest.mark.parametrize("nested", [False, True])
def test_data_files_that_a_group_gives_a_member_are_refused(folder: Path, nested: bool) -> None:
    """lm-eval reads them from the current folder, and the hash would not know them."""
    member: dict[str, object] = {"task": "capitals", "dataset_kwargs": {"data_files": {"test": "data/other.jsonl"}}}
    members = [{"group": "inner", "task": [member]}] if nested else [member]
    (folder / "all.yaml").write_text(json.dumps({"group": "all", "task": members}))
    with pytest.raises(ConfigError, match=r"the group '.*all\.yaml' gives its member 'capitals' data files of its own"):
        compose(["task=all", f"task.include_path={folder}"])
