"""Sweeps of trainings as a user starts them: whole, killed and resumed, in workers, with a run that diverges."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.small_trainings import SMALL, answers_of
from helpers.stand_in import environment, processes

from mxsweep.train import main as train

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

STEPS = 40
WORDS = [*SMALL, f"train.steps={STEPS}", "train.checkpoint_every=5", "train.eval_every=20", "recipe=mxfp4_sr"]
WORDS += ["task=none"]
SWEEP = "hydra.sweep.dir=sweep"
PATIENCE_S = 240.0

Answers = dict[str, tuple[Any, ...]]


def command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def finished(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=PATIENCE_S
    )


def started(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    with (folder / "out").open("w") as out:
        return subprocess.Popen(
            arguments, cwd=folder, env=environment(folder), stdout=out, stderr=out, text=True, process_group=0
        )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end and process.poll() is None, "waited in vain"
        time.sleep(0.002)


def records(sweep: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The runs that are done, by their recipes."""
    found = {}
    for path in sweep.glob("*/result.json"):
        record = json.loads(path.read_text())
        assert record["status"] == "done", record["error"]
        found[record["config"]["recipe"]["name"]] = path.parent, record
    return found


def answers(sweep: Path) -> Answers:
    return {recipe: answers_of(*run) for recipe, run in records(sweep).items()}


def in_training(folder: Path, recipe: str) -> list[Path]:
    """The checkpoints that a run of this recipe has left so far."""
    return list((folder / "sweep").glob(f"*_{recipe}_*/checkpoints/step_*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, str, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    answer = finished(command("mxsweep.train", *WORDS, SWEEP), folder)
    assert answer.returncode == 0, answer.stderr
    return answers(folder / "sweep"), answer.stdout, folder / "sweep"


@pytest.mark.slow
def test_the_command_trains_evaluates_and_compares(undisturbed: tuple[Answers, str, Path]) -> None:
    answers, said, sweep = undisturbed
    assert set(answers) == {"bf16", "mxfp4_sr"}  # the baseline is added
    assert answers["bf16"] != answers["mxfp4_sr"]
    assert "mxfp4_sr" in said and "loss" in said and "bf16" in said
    with (sweep / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["recipe"], row["task"]) for row in rows} == {(recipe, "validation") for recipe in answers}
    assert all(float(row["loss"]) > 0 for row in rows)
    assert (sweep / "report.html").is_file() and (sweep / "training_curves.png").is_file()
    for folder, _ in records(sweep).values():
        assert (folder / "model").is_dir() and not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_nothing_had_happened(
    undisturbed: tuple[Answers, str, Path], tmp_path: Path
) -> None:
    process = started(command("mxsweep.train", *WORDS, SWEEP), tmp_path)
    wait_for(lambda: in_training(tmp_path, "mxfp4sr") and len(records(tmp_path / "sweep")) == 1, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was over before"
    (before,) = records(tmp_path / "sweep").values()
    answer = finished(command("mxsweep", "resume=true", SWEEP), tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "1 of 2 runs are done and are skipped" in answer.stdout
    runs = records(tmp_path / "sweep")
    assert runs[before[1]["config"]["recipe"]["name"]] == before
    assert {recipe: run["training"]["resumed_from"] is not None for recipe, (_, run) in runs.items()} == {
        "bf16": False,
        "mxfp4_sr": True,
    }
    assert answers(tmp_path / "sweep") == undisturbed[0]
    assert not list((tmp_path / "sweep").glob("*/checkpoints"))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_by_one_that_goes_on(
    undisturbed: tuple[Answers, str, Path], tmp_path: Path
) -> None:
    workers = ["hydra/launcher=gpus", "hydra.launcher.n=2"]
    process = started(command("mxsweep.train", *WORDS, *workers, SWEEP), tmp_path)
    wait_for(lambda: in_training(tmp_path, "mxfp4sr"), process)
    claim = in_training(tmp_path, "mxfp4sr")[0].parents[1] / ".claim"
    victim = json.loads(claim.read_text())["pid"]
    assert victim in processes(tmp_path) and victim != process.pid
    os.kill(victim, signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 0, (tmp_path / "out").read_text()
    assert records(tmp_path / "sweep")["mxfp4_sr"][1]["training"]["resumed_from"] is not None
    assert answers(tmp_path / "sweep") == undisturbed[0]


def test_a_sweep_goes_on_after_a_training_that_diverged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "train.steps=3", "train.clip=null", "train.warmup=0", "train.lr=1e30,1e-2", "recipe=bf16"]
    assert train([*words, f"hydra.sweep.dir={tmp_path}"]) == 0
    rows = {}
    for path in tmp_path.glob("*/result.json"):
        record = json.loads(path.read_text())
        rows[record["config"]["train"]["lr"]] = record
    assert rows[1e30]["training"]["diverged_at"] is not None and rows[1e-2]["training"]["diverged_at"] is None
    assert rows[1e30]["metrics"]["story"]["acc"] == "NaN"
    assert "diverged" in capfd.readouterr().out
