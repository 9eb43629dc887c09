"""What a sweep's folder names that may run code, or lies elsewhere, is typed again by who resumes it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mxsweep.__main__ import main
from mxsweep.results.manifest import Command
from mxsweep.sweeps import resume
from mxsweep.sweeps.given_again import remember_typed, was_typed_here
from mxsweep.sweeps.plan import Plan

RESUME = ["resume=true", "hydra.sweep.dir=s"]
TASK = "task: mine\ndataset_path: json\noutput_type: multiple_choice\n"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Plan]:
    """The plans that would have been done, in a folder with a model, data and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("s/model", "outside"):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").write_text('{"model_type": "llama"}')
        save_file({folder.replace("/", "."): torch.zeros(1)}, Path(folder, "model.safetensors"))
    Path("rows.jsonl").write_text('{"text": "one two"}\n')
    plans: list[Plan] = []

    def begin(planned: Plan, *_: Any, **__: Any) -> int:
        plans.append(planned)
        return 0

    monkeypatch.setattr(resume, "begin", begin)
    return plans


def receive(*commands: list[str], cwd: str | None = None, config_dir: str | None = None) -> list[Command]:
    """A sweep.json in the folder s, of somebody else."""
    made = [Command(words, config_dir, cwd) for words in commands]
    content = [{"overrides": each.overrides, "config_dir": each.config_dir, "cwd": each.cwd} for each in made]
    Path("s/sweep.json").write_text(json.dumps({"schema": 1, "commands": content, "runs": []}))
    return made


@pytest.mark.parametrize(
    "words",
    [
        ["block_size=16,32"],
        ["model=s/model", "limit=4"],
        ["model=hf", "model.path=s/model", "format=mxfp4"],
        ["calibration=task", "calibration.path=wikitext", "ptq=gptq"],
        ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"],
    ],
)
def test_what_cannot_execute_and_lies_in_the_folder_is_taken(begun: list[Plan], words: list[str]) -> None:
    receive(words)
    assert main(RESUME) == 0
    assert len(begun) == 1 and begun[0].runs


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["model=s/model", "model.trust_remote_code=true"], ["model.trust_remote_code=true"]),
        (["model=s/model", "++model.trust_remote_code=True"], ["model.trust_remote_code=true"]),
        (
            ["model=s/model", "diagnostics=true", "model.trust_remote_code=${diagnostics}"],
            ["model.trust_remote_code=true"],
        ),
        (["model=s/model", "task.apply_chat_template=true"], ["task.apply_chat_template=true"]),
        (["model=outside"], ["model.path=outside"]),
        (["model=s/model,outside", "block_size=16,32"], ["model.path=outside"]),
        (["model=owner/name"], ["model.path=owner/name"]),
        (["model.attention=owner/kernel"], ["model.attention=owner/kernel"]),
        (["task=lambada_openai", "task.data=rows.jsonl"], ["task.data=rows.jsonl"]),
        (["hydra/launcher=slurm", "hydra.launcher.setup=[id]"], ["hydra.launcher.setup=['id']"]),
        (["hydra/launcher=slurm", "++hydra.launcher.sbatch={wrap: id}"], ["++hydra.launcher.sbatch={wrap: id}"]),
        (["hydra/launcher=slurm", "hydra.launcher.sbatch={wrap: id}"], ["++hydra.launcher.sbatch={wrap: id}"]),
        (["hydra/launcher=slurm", "hydra.launcher.sbatch.wrap=id"], ["++hydra.launcher.sbatch={wrap: id}"]),
    ],
)
def test_the_rest_is_given_again(
    begun: list[Plan], capsys: pytest.CaptureFixture[str], words: list[str], again: list[str]
) -> None:
    receive(words)
    assert main(RESUME) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith("if you trust it: python -m mxsweep " + shlex.join([*RESUME, *again]))
    assert not begun
    # What it says to type is what goes on with the whole of the sweep.
    assert main(shlex.split(said.partition("python -m mxsweep ")[2])) == 0
    asked = {run.overrides for run in begun[0].runs if not run.added}
    assert len(asked) == (4 if "block_size=16,32" in words else 1)


def test_what_is_typed_is_all_that_jobs_are_submitted_with(
    begun: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    receive(["hydra/launcher=slurm", "++hydra.launcher.sbatch.prolog=/evil.sh"])
    assert main([*RESUME, "++hydra.launcher.sbatch={account: me}"]) == 2
    said = capsys.readouterr().err
    assert "prolog: /evil.sh" in said and "account: me" in said and not begun
    assert main(shlex.split(said.partition("python -m mxsweep ")[2])) == 0  # who types them means them


def test_a_chat_template_is_taken_where_this_user_typed_it(begun: list[Plan]) -> None:
    (command,) = receive(["model=s/model", "task.apply_chat_template=true"], cwd=os.getcwd())
    assert main(RESUME) == 2 and not begun
    remember_typed(command)
    assert main(RESUME) == 0


def test_python_of_tasks_is_given_again_even_from_the_folder_and_by_who_typed_it(
    begun: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s/mine.yaml").write_text(TASK + "doc_to_text: !function mine.text\n")
    Path("s/mine.py").write_text("open('ran', 'w')\ndef text(doc): return 'a'\n")
    (command,) = receive(["task=s/mine.yaml", "limit=1"], cwd=os.getcwd())
    remember_typed(command)
    assert main(RESUME) == 2
    assert "task.include_path=s/mine.yaml" in capsys.readouterr().err
    assert main([*RESUME, "task=s/mine.yaml"]) == 0
    assert not Path("ran").exists()


def test_config_files_of_the_folder_are_not_even_read(begun: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    Path("s/conf/experiment").mkdir(parents=True)
    experiment = Path("s/conf/experiment/mine.yaml")
    experiment.write_text(
        "# @package _global_\ndefaults: [{override /model: hf}]\nmodel: {path: s/model, trust_remote_code: true}\n"
    )
    receive(["experiment=mine"], config_dir=str(Path("s/conf").resolve()))
    assert main(RESUME) == 2
    assert f"--config-dir {Path('s/conf').resolve()}" in capsys.readouterr().err
    assert main([*RESUME, "--config-dir", "s/conf"]) == 2
    assert capsys.readouterr().err.endswith("resume=true hydra.sweep.dir=s model.trust_remote_code=true\n")
    assert main([*RESUME, "model.trust_remote_code=true", "--config-dir", "s/conf"]) == 0
    experiment.write_text(": no YAML")
    assert main(RESUME) == 2
    assert "--config-dir" in capsys.readouterr().err


def test_who_typed_a_command_resumes_its_paths_without(begun: list[Plan], tmp_path: Path) -> None:
    (command,) = receive(["model=outside", "block_size=16"], cwd=str(tmp_path))
    assert not was_typed_here(command)
    remember_typed(command)
    assert main(RESUME) == 0
    (changed,) = receive(["model=outside", "block_size=32"], cwd=str(tmp_path))
    assert not was_typed_here(changed)
    assert main(RESUME) == 2
    receive([*command.overrides, "model.trust_remote_code=true"], cwd=str(tmp_path))
    remember_typed(Command([*command.overrides, "model.trust_remote_code=true"], None, str(tmp_path)))
    assert main(RESUME) == 2  # code is given again in any case


def test_words_of_runs_mean_these_runs_alone(begun: list[Plan]) -> None:
    receive(["model=outside", "block_size=16,32"])
    assert main([*RESUME, "-m", "model=outside", "block_size=64"]) == 0
    assert {run.config.format.block_size for run in begun[0].runs if run.config} == {64, 32}  # 32: the baseline's
    assert main([*RESUME, "model=s/model"]) == 0  # a model that the sweep does not have
    assert all(run.config is None or run.config.model.path == "s/model" for run in begun[1].runs)


def test_a_word_for_the_cluster_is_one_line(begun: list[Plan], capsys: pytest.CaptureFixture[str]) -> None:
    receive(["hydra/launcher=slurm", "hydra.launcher.partition='x\nid'"])
    assert main(RESUME) == 2
    assert "hydra.launcher.partition" in capsys.readouterr().err
    assert not begun
