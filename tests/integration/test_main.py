"""The command as people type it, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest

from mxsweep.__main__ import main
from mxsweep.config.option_files import conf_dir


def mxsweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mxsweep", *arguments], cwd=cwd, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what `mxsweep` does, for commands of which nothing depends on a process of their own: seconds less."""
    monkeypatch.chdir(tmp_path)

    def do(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = main(list(arguments))
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return do


def records(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(file.read_text()) for file in sorted(folder.rglob("result.json"))]


def test_help_explains_every_group(tmp_path: Path) -> None:
    answer = mxsweep("--help", cwd=tmp_path)
    assert answer.returncode == 0
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir() and path.name not in ("hydra", "reference")]
    assert len(groups) == 19
    assert "\n  hydra/launcher " in answer.stdout
    for flag in ("-m, --multirun", "--config-dir FOLDER", "--version", "--cfg", "--shell-completion"):
        assert flag in answer.stdout
    for group in groups:
        assert f"\n  {group} " in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path: Path) -> None:
    answer = mxsweep("experiment=ex2", "block_size=16", "dry_run=true", cwd=tmp_path)
    assert answer.returncode == 0
    assert "5 runs planned, nothing run" in answer.stdout  # the baseline is one of them
    assert "fp4_e2m1-b16-e8m0" in answer.stdout
    assert "cuda, exact" in answer.stdout
    assert "4.38" in answer.stdout  # 4 + 6/16 bits a weight
    assert list(tmp_path.iterdir()) == []


# What needs no process of its own: main() answers before Hydra starts anything.
BAD_INPUT = [
    ("block_size=-1", "block_size: -1 is not a block; allowed: "),
    ("scale_bits=40", "scale_bits: 40 is not allowed; allowed: 2 to 8"),
    ("format=banana", "format: 'banana' is no format; allowed: mint4, mxfp4, "),
    (
        "model=tiny2",
        "model: 'tiny2' is not known; near it: tiny; allowed: hf, llama3_2_1b, tiny, a folder, or a name on",
    ),
    ("model=./banana", "model.path: './banana' does not exist; give the name"),
    (f"model={'x' * 300}", "does not exist: a name in it is longer than 255 bytes"),
    (f"ptq=gptq calibration=text calibration.path={'x' * 300}", "calibration.path: 'xxx"),
    (f"task=lambada_openai task.data={'x' * 300}", "task.data: 'xxx"),
    ("model=gpt2,tiny", "model: model=gpt2,tiny names several values; add -m"),
    ("experiment=ex9", "experiment: 'ex9' is not known; allowed: attribution, ex1, ex2, ex3"),
    ("model=hf", "model.path: is not given; give the name"),
    ("blocksize=16", "blocksize: there is no such knob (near it: block_size); `python -m mxsweep --help` lists"),
    ("model.pth=x", "model.pth: there is no such knob"),
    ("+blocksize=16", "blocksize: there is no such knob"),
    ("+model.pth=x", "model.pth: there is no such knob"),
    ("~scale_bits", "scale_bits: was taken away"),
    ("block_size=16,32", "block_size: block_size=16,32 names several values; add -m"),
    ("-m block_size=-1,-2", "block_size: -2"),
    ("task=lambada_openai task.data=nowhere.jsonl", "task.data: 'nowhere.jsonl' is not a file"),
    ("block_size=[", "block_size=[: cannot be read as KNOB=VALUE"),
    ("=3", "=3: cannot be read as KNOB=VALUE"),
    ("formät=3", "formät=3: cannot be read as KNOB=VALUE"),
    ("block_size", "block_size: cannot be read as KNOB=VALUE"),
    ("limit=5 -m block_size=-1,-2", "block_size: -2"),
    (
        "hydra.run.dir=/proc/nowhere",
        "hydra.run.dir: '/proc/nowhere' cannot be made or written (No such file or directory)",
    ),
    ("-m seed=1,2 hydra.sweep.dir=/proc/nowhere", "hydra.sweep.dir: '/proc/nowhere' cannot be made"),
    ("--config-dir nowhere block_size=16", "--config-dir: 'nowhere' is not a folder"),
    ("modules={nowhere.*:none}", "modules: the pattern 'nowhere.*' matches no linear layer or embedding: no module"),
    (
        "-m modules={nowhere.*:none} block_size=16,32",
        "modules: the pattern 'nowhere.*' matches no linear layer or embedding: no module",
    ),
    (
        "task.num_fewshot=1000",
        "task.num_fewshot: 1000 examples are more than story has rows for: its split 'test' holds 999 beside the one",
    ),
    ("model.device=cuda:99", "model.device: 'cuda:99' is not there; allowed: auto"),
    ("task.apply_chat_template=true", "task.apply_chat_template: true needs a tokenizer with a chat template; that of"),
    ("hydra.verbose=true", "hydra.verbose: has no effect here: the log has one level"),
    ("hydra.job.chdir=true", "hydra.job.chdir: has no effect here: a run stays in the folder"),
    ("hydra/sweeper=basic", "hydra/sweeper: has no effect here: a sweep is every combination"),
    ("hydra.mode=MULTIRUN", "hydra.mode: has no effect here: -m makes a sweep"),
    ("--config-name x", "--config-name: has no use here: mxsweep's own config is always read"),
    ("--experimental-rerun x", "--experimental-rerun: has no use here: a run is repeated by its overrides"),
    ("--package model", "--package: names a part of the config that --cfg job shows"),
    ("--cfg job --package nope", "--package: 'nope' is no part of the config"),
    ("--shell-completion", "--shell-completion: takes install=SHELL"),
    ("--nope", "unrecognized arguments: --nope; `python -m mxsweep --help` lists the flags"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[arguments for arguments, _ in BAD_INPUT])
def test_bad_input_is_refused_before_anything_runs(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_input_leaves_no_traceback_and_imports_no_torch(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mxsweep", "block_size=-1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.returncode == 2
    assert "mxsweep: block_size: -1 is not a block" in answer.stderr
    assert "Traceback" not in answer.stderr
    for module in ("torch", "transformers", "lm_eval", "pandas"):
        assert not re.search(rf"\| +{module}$", answer.stderr, re.MULTILINE), module


@pytest.mark.parametrize(
    "words", [["modules={nowhere: none}"], ["-m", "modules={nowhere: none},null"], ["scale_bits=1"]]
)
def test_a_dry_run_of_what_cannot_be_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "dry_run=true"]) == 2
    said = capsys.readouterr().out
    assert "planned, nothing run" in said and ") cannot be: " in said
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_is_none_is_refused_before_a_model_is_loaded(
    in_this_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mxsweep.model.load.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for words in (["task=storyy"], ["-m", "task=storyy", "block_size=16,32"]):
        answer = in_this_process(*words)
        assert answer.returncode == 2
        assert "mxsweep: task: 'storyy' is not a task of lm-eval; near it: " in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_version_and_a_part_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mxsweep {version('mxsweep')}\n"
    assert main(["--cfg", "job", "--package", "ptq", "ptq.damping=0.5"]) == 0
    assert "# @package ptq\n" in (said := capsys.readouterr().out) and "damping: 0.5\n" in said and "seed" not in said


def test_tab_completion_of_the_installed_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/mxsweep"])
    assert main(["-sc", "install=bash"]) == 0
    assert "hydra_bash_completion mxsweep\n" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "mxsweep -m custom_cuda=")
    assert main(["-sc", "query=bash"]) == 0
    assert {"custom_cuda=false", "custom_cuda=true"} <= set(capsys.readouterr().out.split())
    monkeypatch.setattr("sys.argv", ["/somewhere/mxsweep/__main__.py"])
    assert main(["-sc", "install=bash"]) == 2
    assert "is for the installed command" in capsys.readouterr().err


def test_single_run(tmp_path: Path) -> None:
    answer = mxsweep("limit=16", "hydra.run.dir=here", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    (record,) = records(tmp_path / "here")
    assert record["status"] == "done"
    assert record["overrides"] == ["limit=16"]
    assert "story: acc" in answer.stdout + answer.stderr
    # A second run into the same folder would overwrite the first.
    again = mxsweep("limit=8", "hydra.run.dir=here", cwd=tmp_path)
    assert again.returncode == 2
    assert "hydra.run.dir: 'here' already holds a run" in again.stderr
    assert records(tmp_path / "here") == [record]


def test_sweep_with_ad_hoc_values_ends_in_a_table(
    in_this_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    answer = in_this_process("-m", "block_size=16,48", "limit=16", "format=none,w4a6")
    assert answer.returncode == 0, answer.stderr
    (sweep,) = (tmp_path / "multirun").iterdir()
    assert len(records(sweep)) == 3  # the baseline has no block size, and is run once
    assert "block_size=48 limit=16 format=none: is the same run as block_size=16 limit=16 format=none" in answer.stdout
    assert {path.name.split("_")[3] for path in sweep.iterdir() if "_" in path.name and path.is_dir()} == {
        "bs16",
        "bs48",
    }
    table = pd.read_csv(sweep / "results.csv")
    assert sorted(table["block_size"].dropna()) == [16, 48]  # a baseline has none
    assert (sweep / "accuracy_vs_block_size.png").stat().st_size > 1000
    assert "How sure: " in answer.stdout


def test_runs_that_differ_in_nothing_that_matters_are_run_once(
    in_this_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    answer = in_this_process("-m", "batch_size=4,8", "limit=8", "baseline=false")
    assert answer.returncode == 0, answer.stderr
    assert "batch_size=8 limit=8: is the same run as batch_size=4 limit=8" in answer.stdout
    (record,) = records(tmp_path)
    assert record["config"]["batch_size"] == 4


def test_a_failing_run_does_not_stop_a_sweep(
    in_this_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    answer = in_this_process("-m", "scale_bits=1,8", "block_size=16", "limit=8")
    assert answer.returncode == 1
    statuses = {record["status"]: record for record in records(tmp_path)}
    assert set(statuses) == {"done", "failed"}
    assert statuses["failed"]["environment"]["versions"]["torch"]
    assert statuses["failed"]["error"]["message"] == "scale_bits: 1 is not allowed; allowed: 2 to 8"
    assert "scale_bits: 1 is not allowed" in answer.stdout
    assert "Traceback" not in answer.stderr + answer.stdout
