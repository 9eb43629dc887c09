"""Several processes at one sweep, or about to make a folder of the same name."""

from __future__ import annotations

import csv
import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from helpers.stand_in import command, environment, read_log

SWEEP = ("-m", "block_size=16,32,auto,64", "seed=1,2", "limit=10", "model.device=cpu")
N_RUNS = 7  # a baseline, and three block sizes (auto is 32) by two seeds
IN_SWEEP = "hydra.sweep.dir=sweep"

pytestmark = pytest.mark.slow


def together(folder: Path, *commands: tuple[str, ...], **more: object) -> list[subprocess.CompletedProcess[str]]:
    """Commands that set out at the same moment: each when all have imported what they need."""
    start_line = folder / "start_line"
    start_line.mkdir()
    surroundings = environment(folder, STAND_IN_TOGETHER=f"{start_line}:{len(commands)}", **more)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command(*arguments), cwd=folder, env=surroundings, **pipes)  # type: ignore[call-overload]
        for arguments in commands
    ]
    said = [process.communicate(timeout=120) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process, (out, err) in zip(started, said, strict=True)
    ]


def evaluated(folder: Path, processes: int = 2) -> Counter[str]:
    """How often each config was evaluated, by at least so many processes: had one done it all, nothing were shown."""
    events = read_log(folder / "evaluations.log")
    assert len({event.pid for event in events}) >= processes
    return Counter(event.config_hash for event in events if event.what == "begin")


def rows(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("how", [(), ("resume=true",)], ids=["the same command", "both resume"])
def test_two_processes_share_a_sweep(how: tuple[str, ...], tmp_path: Path) -> None:
    typed = (*SWEEP, IN_SWEEP, *how)
    answers = together(tmp_path, typed, typed, STAND_IN_S=0.4)
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    assert not any("Traceback" in answer.stderr for answer in answers)
    assert sorted(evaluated(tmp_path).values()) == [1] * N_RUNS
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["done"] * N_RUNS
    # Whoever is done first may leave before the other's last run is; the other prints the whole table.
    assert any(f"sweep: {N_RUNS} done" in answer.stdout for answer in answers)
    planned = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(planned["runs"]) == N_RUNS and len(planned["commands"]) == 1
    assert len(list((tmp_path / "sweep").glob("*/result.json"))) == N_RUNS


def test_two_processes_resume_a_sweep_without_knobs(tmp_path: Path) -> None:
    # A sweep whose process died in its third run: after the baseline and the first seed.
    killed = subprocess.run(
        command("-m", "seed=1,778,2,3,4,5", "model.device=cpu", IN_SWEEP), cwd=tmp_path, env=environment(tmp_path)
    )
    assert killed.returncode == -9
    before = evaluated(tmp_path, processes=1)
    assert sorted(before.values()) == [1, 1, 1]
    answers = together(tmp_path, ("resume=true", IN_SWEEP), ("resume=true", IN_SWEEP), STAND_IN_S=0.4)
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    assert sorted((evaluated(tmp_path, processes=3) - before).values()) == [1] * 5
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["done"] * 7


def test_two_commands_that_overlap_share_a_folder(tmp_path: Path) -> None:
    first = ("-m", "block_size=16,32", "seed=1,2", "model.device=cpu", IN_SWEEP)
    second = ("-m", "block_size=32,64", "seed=1,2", "model.device=cpu", IN_SWEEP)
    answers = together(tmp_path, first, second, STAND_IN_S=0.4)
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    assert sorted(evaluated(tmp_path).values()) == [1] * N_RUNS
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["done"] * N_RUNS
    planned = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert len(planned["runs"]) == N_RUNS and len(planned["commands"]) == 2
    # Whoever is last finds nothing left to do of either command.
    again = subprocess.run(
        command("resume=true", IN_SWEEP), cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True
    )
    assert again.returncode == 0
    assert f"{N_RUNS} of {N_RUNS} runs are done and are skipped" in again.stdout
    assert sorted(evaluated(tmp_path).values()) == [1] * N_RUNS


def test_a_process_that_helps_workers(tmp_path: Path) -> None:
    workers = ("hydra/launcher=gpus", "hydra.launcher.n=2")
    answers = together(tmp_path, (*SWEEP, IN_SWEEP, *workers), (*SWEEP, IN_SWEEP), STAND_IN_S=0.3)
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    assert sorted(evaluated(tmp_path).values()) == [1] * N_RUNS
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["done"] * N_RUNS


def test_two_sweeps_of_the_same_second_have_a_folder_each(tmp_path: Path) -> None:
    stamp = "stamp='20260207_220640'"  # as if both had begun in that second
    typed = ("-m", "seed=1,2", "model.device=cpu", stamp)
    answers = together(tmp_path, typed, typed)
    assert [answer.returncode for answer in answers] == [0, 0], [answer.stderr for answer in answers]
    assert sorted(evaluated(tmp_path).values()) == [2] * 3
    first, second = sorted((tmp_path / "multirun").iterdir())
    assert second.name.startswith(first.name)
    for sweep in (first, second):
        assert [row["status"] for row in rows(sweep)] == ["done"] * 3


def test_a_finished_sweep_is_not_gone_on_with_unasked(tmp_path: Path) -> None:
    typed = command("-m", "seed=1,2", "model.device=cpu", IN_SWEEP)
    assert subprocess.run(typed, cwd=tmp_path, env=environment(tmp_path), capture_output=True).returncode == 0
    again = subprocess.run(typed, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert again.returncode == 2
    assert "already holds a sweep; add resume=true to go on with it" in again.stderr
    assert len(read_log(tmp_path / "evaluations.log")) == 6
