"""hydra/launcher=slurm, against a real Slurm of one node on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.stand_in import command, environment

from mxsweep.config.overrides import prepare
from mxsweep.results.record import RunFolder, find_runs
from mxsweep.sweeps import launch, launchers, on_slurm
from mxsweep.sweeps.plan import plan

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[2]
COMMANDS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol")
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=0")
SLOW = ("batch_tokens=64", "limit=300")  # runs of some seconds, long enough to be stopped in
SHORT_OF_TIME = 40  # runs of the stand-in
SLEEPS_S = 4.0  # what a run of the stand-in takes, of the processor nothing


class Cluster:
    """A Slurm that is up, and commands in its environment."""

    def __init__(self, conf: str, folder: Path) -> None:
        # A cluster without accounting has no sacct; submitit would ask it.
        self.asked_sacct = folder / "asked_sacct"
        fake = folder / "bin" / "sacct"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\ntouch {self.asked_sacct}\nexit 1\n")
        fake.chmod(0o755)
        self.env = os.environ | {"SLURM_CONF": conf, "PATH": f"{fake.parent}:{os.environ['PATH']}"}

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=300)

    def start(self, *arguments: str, cwd: Path, stand_in: bool = False) -> subprocess.Popen[str]:
        """`mxsweep -m`, or the same with a stand-in for the evaluation, where only what is around it is of interest."""
        words = ["-m", *arguments, "hydra.sweep.dir=sweep"]
        return subprocess.Popen(
            command(*words) if stand_in else [sys.executable, "-m", "mxsweep", *words],
            cwd=cwd,
            env=environment(cwd, **self.env, STAND_IN_S=SLEEPS_S) if stand_in else self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # What is started in the background, as these tests may be, ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def sweep(self, *arguments: str, cwd: Path, code: int = 0, stand_in: bool = False) -> str:
        """What `mxsweep -m` says, and that it exits with `code`."""
        process = self.start(*arguments, cwd=cwd, stand_in=stand_in)
        text = process.communicate(timeout=300)[0]
        assert process.returncode == code, text
        return text

    def collect(self, *arguments: str, cwd: Path) -> str:
        answer = self.run(sys.executable, "-m", "mxsweep.collect", *arguments, "sweep", cwd=cwd)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def in_queue(self, job: str) -> str:
        return self.run("squeue", "-h", "-j", job, "-o", "%T").stdout.strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The Slurm that SLURM_CONF names, if it answers, or one of our own."""
    folder = tmp_path_factory.mktemp("slurm")
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        pytest.skip(f"no Slurm: {', '.join(missing)} not installed")
    named = os.environ.get("SLURM_CONF")
    if named and subprocess.run(["sinfo", "-h"], capture_output=True, timeout=60).returncode == 0:
        yield Cluster(named, folder)
        return
    tools = Path(os.environ.get("MXSWEEP_SHARED", REPOSITORY.parent / "shared")) / "tools" / "slurm"
    if not (tools / "up.sh").exists():
        pytest.skip(f"no Slurm: no recipe to start one at {tools}")
    if os.geteuid() != 0:
        pytest.skip("no Slurm: only root can start one")
    with socket.socket() as port:
        if port.connect_ex(("127.0.0.1", 6817)) == 0:
            pytest.skip("no Slurm of our own: another one is up on this machine (set SLURM_CONF to use it)")
    log = folder / "up.log"
    # conftest.py's OMP_NUM_THREADS=1 is for computing: by it, nproc would say that this machine has one CPU.
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with log.open("w") as file:  # not a pipe: the daemons keep it open
        subprocess.run([tools / "up.sh", folder / "cluster"], env=env, stdout=file, stderr=file, timeout=120)
    own = Cluster(str(folder / "cluster" / "slurm.conf"), folder)
    try:
        assert "idle" in own.run("sinfo", "-h").stdout, log.read_text()
        yield own
    finally:
        subprocess.run([tools / "down.sh", folder / "cluster"], capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def short_of_time(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sweep of `SHORT_OF_TIME` runs, more than two minutes, in a job of two, begun first: it takes its time.

    Slurm gives notice up to a minute early: of a job of one minute, at times before its first run is done.
    """
    folder = tmp_path_factory.mktemp("time")
    seeds = ",".join(map(str, range(1, SHORT_OF_TIME + 1)))
    options = ("hydra.launcher.wait=false", "hydra.launcher.time_min=2", f"hydra.launcher.runs_per_job={SHORT_OF_TIME}")
    said = cluster.sweep(f"seed={seeds}", "baseline=false", *SLURM, *options, cwd=folder, stand_in=True)
    yield folder
    cluster.run("scancel", job_of(said))


def job_of(said: str) -> str:
    """The id of the job that was submitted."""
    return said.partition("submitted to Slurm: job ")[2].split(" ")[0].split("_")[0]


def runs(folder: Path, status: str | None = None) -> list[RunFolder]:
    if not (folder / "sweep").is_dir():
        return []
    return [run for run in find_runs(folder / "sweep") if status in (None, run.status)]


def wait_for(what: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def in_the_middle(folder: Path, done: int = 1) -> bool:
    """Whether some runs are done and another one is at it."""
    return len(runs(folder, "done")) >= done and bool(runs(folder, "running"))


def output(folder: Path, kind: str = "out") -> str:
    """What all jobs of all launches wrote."""
    files = sorted((folder / "sweep" / ".launches").rglob(f"*_log.{kind}"))
    return "".join(file.read_text() for file in files)


def written(folder: Path) -> dict[str, int]:
    return {run.run_id: (run.path / "result.json").stat().st_mtime_ns for run in runs(folder, "done")}


def loads(folder: Path) -> int:
    """How many of the runs had to load the model and tokenize, a hundred times as slow as finding both there.

    Either alone may be slow on a busy machine.
    """
    timings = [run.record["timing"] for run in runs(folder) if run.record]
    return sum(min(timing["load_s"], timing["prepare_s"]) > 0.03 for timing in timings)


@pytest.mark.slurm
def test_three_jobs_go_through(cluster: Cluster, short_of_time: Path, tmp_path: Path) -> None:
    knobs = ("block_size=16,32,64", "baseline=false", "limit=20")
    options = ("hydra.launcher.runs_per_job=1", "hydra.launcher.wait=false")
    said = cluster.sweep(*knobs, *SLURM, *options, cwd=tmp_path)
    job = job_of(said)
    assert f"submitted to Slurm: job {job}_[0-2]" in said
    wait_for(lambda: cluster.in_queue(job) == "")
    assert output(tmp_path).count("Starting with JobEnvironment") == 3
    assert output(tmp_path).count("Job completed successfully") == 3
    assert [run.status for run in runs(tmp_path)] == ["done"] * 3
    assert [run.record["environment"]["device"] for run in runs(tmp_path) if run.record] == ["cpu"] * 3
    # Nothing is left to do: the sweep's table, which a later collect prints as well, and no job.
    again = cluster.sweep("resume=true", cwd=tmp_path)
    assert "3 of 3 runs are done" in again and "submitted" not in again
    table = cluster.collect(cwd=tmp_path).partition("\n\nWritten")[0]
    assert "w4a6" in table and table in again


@pytest.mark.slurm
def test_a_job_cancelled_and_requeued_resumes(cluster: Cluster, tmp_path: Path) -> None:
    options = ("hydra.launcher.wait=false", "hydra.launcher.runs_per_job=4")
    said = cluster.sweep("block_size=16,32,64", *SLOW, *SLURM, *options, cwd=tmp_path)
    job = job_of(said)
    assert f"scancel {job} ends it" in said and "collect --status sweep" in said
    wait_for(lambda: in_the_middle(tmp_path))
    cluster.run("scancel", "--signal=USR2", job)
    wait_for(lambda: cluster.in_queue(job) == "PENDING")
    status = cluster.collect("--status", cwd=tmp_path)
    assert "1 missing" in status or "2 missing" in status or "3 missing" in status, status
    assert ", 0 running, 0 failed" in status
    before = written(tmp_path)
    assert 1 <= len(before) < 4
    wait_for(lambda: len(runs(tmp_path, "done")) == 4)
    assert before.items() <= written(tmp_path).items()  # done once
    assert output(tmp_path).count("stopped by Slurm (SIGUSR2)") == 1
    assert loads(tmp_path) == output(tmp_path).count("Starting with JobEnvironment") == 2  # once per allocation
    assert "4 runs: 4 done" in cluster.collect("--status", cwd=tmp_path)
    assert cluster.collect(cwd=tmp_path).startswith("sweep: 4 done")


@pytest.mark.slurm
def test_a_preempted_job_resumes_while_its_parent_waits(cluster: Cluster, tmp_path: Path) -> None:
    if "high" not in cluster.run("sinfo", "-h", "-o", "%R").stdout:
        pytest.skip("no Slurm to preempt with: it has no partition 'high'")
    # By GPUs, of which the sweep that is short of time has none.
    options = ("model.device=cpu", "hydra.launcher.runs_per_job=4")
    slurm = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=1")
    parent = cluster.start("block_size=16,32,64", *SLOW, *slurm, *options, cwd=tmp_path)
    wait_for(lambda: in_the_middle(tmp_path))
    high = cluster.run("sbatch", "-p", "high", "--gpus=2", "-o", "/dev/null", "--wrap", "sleep 1")
    assert high.returncode == 0, high.stderr
    said = parent.communicate(timeout=180)[0]
    assert parent.returncode == 0, said
    assert "stopped by Slurm" in output(tmp_path)
    assert cluster.collect(cwd=tmp_path).partition("\n\nWritten")[0] in said  # a later collect is the same
    assert "sweep: 4 done" in said
    assert not cluster.asked_sacct.exists()
    assert loads(tmp_path) == output(tmp_path).count("Starting with JobEnvironment") == 2


@pytest.mark.slurm
def test_a_killed_process_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    options = ("hydra.launcher.wait=false", "baseline=false")
    cluster.sweep("block_size=16,32", *SLURM, *options, cwd=tmp_path, stand_in=True)
    wait_for(lambda: in_the_middle(tmp_path))
    (stopped,) = runs(tmp_path, "running")
    os.kill(json.loads((stopped.path / ".claim").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not runs(tmp_path, "running"))
    assert json.loads((stopped.path / ".claim").read_text())["deaths"] == 1
    wait_for(lambda: len(runs(tmp_path, "done")) == 2)


@pytest.mark.slurm
def test_ctrl_c_leaves_the_jobs_and_scancel_ends_them(cluster: Cluster, tmp_path: Path) -> None:
    parent = cluster.start("block_size=16,32", "baseline=false", *SLURM, cwd=tmp_path, stand_in=True)
    wait_for(lambda: in_the_middle(tmp_path))
    parent.send_signal(signal.SIGINT)
    said = parent.communicate(timeout=60)[0]
    job = job_of(said)
    assert parent.returncode == 130
    assert f"Slurm's job {job} goes on; scancel {job} ends it" in said
    assert "1 of 2 runs are done and kept. To go on: python -m mxsweep resume=true hydra.sweep.dir=sweep" in said
    assert cluster.in_queue(job) == "RUNNING"
    cluster.run("scancel", job)
    wait_for(lambda: cluster.in_queue(job) == "")
    assert [run.status for run in runs(tmp_path)].count("missing") == 1
    said = cluster.sweep("resume=true", cwd=tmp_path, stand_in=True)
    assert "1 of 2 runs are done and are skipped, 1 are missing" in said
    assert job_of(said) != job and "sweep: 2 done" in said
    assert len(list((tmp_path / "sweep" / ".launches").iterdir())) == 2


@pytest.mark.slurm
def test_a_setup_line_that_fails_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    setup = "hydra.launcher.setup=['echo first', 'ls /nowhere', 'echo never']"
    cluster.sweep("block_size=16", "limit=20", *SLURM, setup, "hydra.launcher.wait=false", cwd=tmp_path)
    wait_for(lambda: "hydra.launcher.setup: ls /nowhere: exit code 2" in output(tmp_path, "err"))
    assert output(tmp_path) == "first\n"


@pytest.mark.slurm
def test_what_sbatch_refuses_is_said_in_its_words(cluster: Cluster, tmp_path: Path) -> None:
    said = cluster.sweep("block_size=16", "limit=20", *SLURM, "hydra.launcher.partition=nope", cwd=tmp_path, code=1)
    assert said.startswith("mxsweep: Slurm did not take the jobs: ")
    assert said.count("Invalid partition name specified") == 1
    assert len(said.splitlines()) == 1
    assert [run.status for run in runs(tmp_path)] == ["missing"] * 2  # planned: what to resume


@pytest.mark.slurm
def test_a_job_out_of_time_is_requeued(cluster: Cluster, short_of_time: Path) -> None:
    wait_for(lambda: "stopped by Slurm (SIGUSR2)" in output(short_of_time) and written(short_of_time))
    before = written(short_of_time)
    # On a slow machine the tests before this one may take so long that the requeued job has done the rest already.
    wait_for(lambda: len(runs(short_of_time, "done")) > min(len(before), SHORT_OF_TIME - 1))
    assert output(short_of_time).count("Starting with JobEnvironment") >= 2
    assert before.items() <= written(short_of_time).items()
    assert runs(short_of_time, "failed") == []


@pytest.mark.slurm
def test_two_tasks_of_a_job_share_runs_of_which_some_fail(cluster: Cluster, tmp_path: Path) -> None:
    """The GPUs are pretended: they can be asked for, and CUDA finds none."""
    slurm = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=2")
    knobs = ("block_size=16,32", "model.device=cpu,auto", *SLOW, "baseline=false")
    said = cluster.sweep(*knobs, *slurm, "hydra.launcher.runs_per_job=2", cwd=tmp_path, code=1)
    assert "PENDING" not in cluster.in_queue(job_of(said))  # the second job, for which no GPU was left
    logs = sorted((tmp_path / "sweep" / ".launches").rglob("*_log.out"))
    # On a slow machine the second job begins before it is cancelled, when the first one has left it nothing to do.
    replaced = [file.read_text().count("Replaced 21 layers") for file in logs]
    assert replaced[:2] == [1, 1] and not any(replaced[2:])
    assert "2 done, 2 failed" in said
    for run in runs(tmp_path, "failed"):
        assert "model.device=auto" in run.overrides
        assert run.record and "model.device: 'cuda' is not there" in run.record["error"]["message"]


def test_the_device_is_the_jobs_not_this_hosts() -> None:
    def devices(*words: str) -> list[str]:
        overrides, _ = prepare(["-m", *words][1:], None)
        return [run.config.model.device if run.config else run.error or "" for run in plan(overrides, True).runs]

    assert devices("hydra/launcher=slurm") == ["cuda"] * 2  # the baseline, too
    assert devices("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0") == ["cpu"] * 2
    assert devices("hydra/launcher=slurm", "model.device=cpu") == ["cpu"] * 2
    assert devices() == ["auto"] * 2
    (said,) = devices("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0", "custom_cuda=true")
    assert said.endswith("with hydra.launcher.gpus_per_node=0, auto is the CPU")


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 10), (5, 30), (10, 60), (15, 90), (240, 90)])
def test_slurm_gives_notice_in_time(minutes: int, seconds: int) -> None:
    assert on_slurm._warning_s(minutes) == seconds


def test_jobs_that_ended_without_results_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ["PENDING PartitionTimeLimit\n", "PENDING PartitionTimeLimit\n", "RUNNING None\n"]
    asked: list[tuple[str, ...]] = []

    def squeue(command: tuple[str, ...], **_: Any) -> SimpleNamespace:
        asked.append(command)
        text = answers.pop(0) if answers else ""
        return SimpleNamespace(returncode=0, stdout=text, stderr="")

    monkeypatch.setattr(on_slurm, "_submit", lambda *_: ["7_0", "7_1"])
    monkeypatch.setattr(on_slurm, "ASK_SLURM_EVERY_S", 0.0)
    monkeypatch.setattr(on_slurm, "SLURM_POLL_S", 0.01)
    monkeypatch.setattr(on_slurm.subprocess, "run", squeue)
    (tmp_path / "7_0_0_log.err").write_text("Traceback\nOSError: disk full\n\n")
    planned = SimpleNamespace(run_id="r", folder=tmp_path / "r", config_hash="0", old_failure=None)
    with caplog.at_level("INFO"), pytest.raises(launch.LaunchError) as raised:
        on_slurm.work_on_slurm(SimpleNamespace(wait=True), [planned], launch.Launch("l", tmp_path), [])  # type: ignore
    assert len(asked) == 5
    assert list(asked[0][:4]) == ["squeue", "-h", "-j", "7"]
    assert caplog.text.count("Slurm's job 7 waits: PartitionTimeLimit") == 1
    assert "job 7_[0-1] has ended" in str(raised.value)
    assert f"1 of 1 runs have no result: OSError: disk full (see {tmp_path})" in str(raised.value)


def test_a_slurm_that_does_not_answer_may_still_have_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(message: str) -> Callable[..., SimpleNamespace]:
        return lambda *_, **__: SimpleNamespace(returncode=1, stdout="", stderr=message)

    monkeypatch.setattr(on_slurm.subprocess, "run", failing("squeue: error: Unable to contact slurm controller"))
    assert on_slurm._Queue("7").holds_any()
    monkeypatch.setattr(on_slurm.subprocess, "run", failing("slurm_load_jobs error: Invalid job id specified"))
    assert not on_slurm._Queue("7").holds_any()


def test_missing_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = plan([["hydra/launcher='slurm'"]], True).settings
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="there is no sbatch here"):
        launchers.check_launcher(settings.launcher, [])
