"""hydra/launcher=gpus: each process has a GPU of its own, and takes the next run when it has finished one."""

from __future__ import annotations

import json
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from helpers.stand_in import DIES_ONCE, FAILS, LASTS, Event, command, environment, read_log

from mxsweep.__main__ import main

SWEEP = ("-m", "seed=1,2,3,4,5,6,7", "limit=10", "baseline=false", "hydra/launcher=gpus", "hydra.sweep.dir=s")


def run(*arguments: str, folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=120
    )


def spans(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Of each GPU the times at which evaluations began and ended on it, in order."""
    begun: dict[tuple[int, str], Event] = {}
    found: dict[str, list[tuple[float, float]]] = {}
    for event in read_log(folder / "evaluations.log"):
        if event.what == "begin":
            begun[event.pid, event.config_hash] = event
        else:
            began = begun.pop((event.pid, event.config_hash))
            assert began.gpu == event.gpu
            found.setdefault(event.gpu, []).append((began.at, event.at))
    assert not begun
    return {gpu: sorted(times) for gpu, times in found.items()}


@pytest.mark.parametrize(
    ("visible", "words", "gpus"),
    [
        ("", [], {"0", "1", "2"}),
        ("", ["hydra.launcher.n=2"], {"0", "1"}),
        ("5,3,1", ["hydra.launcher.n=2"], {"5", "3"}),
        ("", ["model.device=cpu"], {"none"}),
    ],
)
def test_one_run_at_a_time_on_each_gpu(visible: str, words: list[str], gpus: set[str], tmp_path: Path) -> None:
    more = {"STAND_IN_GPUS": 3, "STAND_IN_S": 0.4, "CUDA_VISIBLE_DEVICES": visible}
    answer = run(*SWEEP, *words, folder=tmp_path, **more)
    assert answer.returncode == 0, answer.stderr
    used = spans(tmp_path)
    assert set(used) == gpus
    assert sum(map(len, used.values())) == 7
    if gpus != {"none"}:
        for times in used.values():
            assert all(ended <= began for (_, ended), (began, _) in pairwise(times))
    processes = {event.pid for event in read_log(tmp_path / "evaluations.log")}
    assert len(processes) == (2 if gpus == {"none"} else len(gpus))  # which keep their models


def test_work_goes_to_whoever_is_free(tmp_path: Path) -> None:
    """One run that lasts does not hold up the others: its worker does nothing else, the other one does them all."""
    words = ["-m", f"seed={LASTS},1,2,3,4,5", "limit=10", "baseline=false", "hydra/launcher=gpus", "hydra.sweep.dir=s"]
    more = {"STAND_IN_GPUS": 2, "STAND_IN_LASTS_S": 6, "STAND_IN_S": 0.1, "CUDA_VISIBLE_DEVICES": ""}
    answer = run(*words, folder=tmp_path, **more)
    assert answer.returncode == 0, answer.stderr
    assert sorted(map(len, spans(tmp_path).values())) == [1, 5]


def test_a_worker_that_dies_is_replaced_on_its_gpu(tmp_path: Path) -> None:
    words = ["-m", f"seed={DIES_ONCE},1,2,{FAILS}", "limit=10", "baseline=false", "hydra/launcher=gpus"]
    more = {"STAND_IN_GPUS": 1, "CUDA_VISIBLE_DEVICES": "7"}
    answer = run(*words, "hydra.sweep.dir=s", folder=tmp_path, **more)
    assert answer.returncode == 1  # a seed fails
    events = read_log(tmp_path / "evaluations.log")
    assert {event.gpu for event in events} == {"7"}
    assert len({event.pid for event in events}) == 2
    statuses = sorted(json.loads(path.read_text())["status"] for path in tmp_path.glob("s/*/result.json"))
    assert statuses == ["done", "done", "done", "failed"]


@pytest.mark.parametrize(
    ("visible", "words", "message"),
    [
        ("", ["hydra.launcher.n=4"], "hydra.launcher.n: 4 workers need as many GPUs, and 3 can be seen here"),
        ("", ["model.device=cuda:1"], "model.device: 'cuda:1' has no say with hydra/launcher=gpus"),
        ("", ["model.device_map=auto"], "model.device_map: 'auto' takes all GPUs for one run"),
        ("GPU-8f6a", [], "CUDA_VISIBLE_DEVICES: 'GPU-8f6a' names GPUs by UUID"),
    ],
)
def test_what_cannot_be_is_refused(
    visible: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("mxsweep.sweeps.on_host.visible_gpu_count", lambda: 3)
    assert main([*SWEEP, *words]) == 2
    assert f"mxsweep: {message}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
