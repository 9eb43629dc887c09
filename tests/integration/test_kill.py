"""Sweeps that are killed, interrupted, or run out of disk: resumed, they end as if nothing had happened.

A plain run kills ten times: once in each of nine kinds, and once with the real model. MXSWEEP_KILLS=200 kills more
often, at other instants.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.stand_in import FAILS, Event, command, environment, processes, read_log

from mxsweep.__main__ import main
from mxsweep.files.locks import CLAIM_NAME

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"),
]

KINDS = 9
KILLS = int(os.environ.get("MXSWEEP_KILLS", KINDS + 1))
REAL_KILLS = 1  # of these, with the real model
# Nine runs: a baseline, and two block sizes by four seeds, of which one is named twice and one fails.
SWEEP = ("-m", "block_size=16,32", f"seed=1,2,3,{FAILS},3", "limit=10", "model.device=cpu")
N_RUNS, N_FAILING = 9, 2
WORKERS = ("hydra/launcher=gpus", "hydra.launcher.n=2")
WORKER = "import serve"  # in a worker's command line
REAL_SWEEP = ("-m", "block_size=16,32,64", "limit=30", "model.device=cpu")
N_REAL_RUNS = 4
# What two sweeps of the same command may differ in.
TIMES_AND_PLACES = (  # and memory: what differs between two runs of the same config
    *("load_s", "quantize_s", "remedies_s", "eval_time_s", "total_s", "examples/sec", "examples/sec_ratio"),
    *("peak_host_bytes", "peak_gpu_bytes", "remedies_gpu_bytes", "started_at", "run_id", "folder"),
    *("baseline", "not_compared"),  # which name runs
)
PATIENCE_S = 120.0


def heed_ctrl_c() -> None:
    """What is started in the background, as these tests may be, ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def start(arguments: list[str], folder: Path, **more: object) -> subprocess.Popen[str]:
    """A command in a process group of its own, in `folder`; what it says goes into the files out and err."""
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment(folder, **more),
            stdout=out,
            stderr=err,
            text=True,
            process_group=0,
            preexec_fn=heed_ctrl_c,
        )


def run(arguments: list[str], folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=PATIENCE_S
    )


def mxsweep(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mxsweep", *arguments]


def table(sweep: Path) -> list[dict[str, str]]:
    """Return results.csv without what may differ."""
    with (sweep / "results.csv").open(newline="") as file:
        rows = [{name: row[name] for name in row if name not in TIMES_AND_PLACES} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: json.dumps(row))


def results(sweep: Path, status: str = "done") -> dict[Path, tuple[int, dict[str, Any]]]:
    """The records of a status, and when they were written (so that one written again can be told)."""
    found = {}
    for path in sweep.glob("*/result.json"):
        written, record = path.stat().st_mtime_ns, json.loads(path.read_text())
        if record["status"] == status:
            found[path] = written, record
    return found


def begins(events: list[Event]) -> Counter[str]:
    return Counter(event.config_hash for event in events if event.what == "begin")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Until it is so, or the process has ended."""
    end = time.monotonic() + PATIENCE_S
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def nothing_is_left(folder: Path) -> bool:
    """Whether all processes ended, some of which need a while to notice that their parent did."""
    end = time.monotonic() + 10
    while processes(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not processes(folder)


def without_traceback(folder: Path) -> bool:
    return not any("Traceback" in (folder / name).read_text() for name in ("out", "err"))


# ----------------------------------------------------------------------------------------------- ten kills


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(command(*SWEEP, "hydra.sweep.dir=sweep"), folder).returncode == 1  # a seed fails
    rows = table(folder / "sweep")
    assert Counter(row["status"] for row in rows) == {"done": N_RUNS - N_FAILING, "failed": N_FAILING}
    assert all(count == 1 for count in begins(read_log(folder / "evaluations.log")).values())
    return rows


@pytest.fixture(scope="module")
def uninterrupted_real(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("uninterrupted_real")
    answer = run(mxsweep(*REAL_SWEEP, "hydra.sweep.dir=sweep"), folder)
    assert answer.returncode == 0, answer.stderr
    rows = table(folder / "sweep")
    assert [row["status"] for row in rows] == ["done"] * N_REAL_RUNS
    assert len({row["ppl"] for row in rows}) == N_REAL_RUNS, "the runs must differ, or nothing is compared"
    return rows


class Fallen:
    """Where the kills fell."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.phases: Counter[str] = Counter()
        self.victims: Counter[str] = Counter()

    def note(self, seed: int, victim: str, phase: str, finished: int, again: int) -> None:
        self.phases[phase] += 1
        self.victims[victim] += 1
        self.lines.append(f"kill {seed}: {victim}, {phase}; {finished} runs had finished, {again} were begun again")


@pytest.fixture(scope="module")
def fallen() -> Iterator[Fallen]:
    fallen = Fallen()
    yield fallen
    # pytest -s shows it, with -n 0.
    print("\n" + "\n".join(fallen.lines))
    print(f"{sum(fallen.phases.values())} kills: {dict(fallen.phases)}; killed: {dict(fallen.victims)}")


def phase(sweep: Path, events: list[Event]) -> str:
    """What the sweep was at, as far as its files tell."""
    if not events:
        return "planning" if not (sweep / "sweep.json").exists() else "starting"
    finished = {path.parent.name for status in ("done", "failed") for path in results(sweep, status)}
    if len(finished) == N_RUNS:
        return "collecting"
    ended = Counter(event.config_hash for event in events if event.what == "end")
    if any(count > ended[digest] for digest, count in begins(events).items()):
        return "evaluating"
    written = [record["config_hash"] for status in ("done", "failed") for _, record in results(sweep, status).values()]
    return "between runs" if set(begins(events)) <= set(written) else "writing a result"


def kill_one(victim: str, process: subprocess.Popen[str], folder: Path, draw: random.Random) -> None:
    if victim == "a worker":
        workers = [pid for pid, line in processes(folder).items() if WORKER in line]
        with contextlib.suppress(ProcessLookupError):  # it ended by itself in this moment
            if workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
        return
    (os.killpg if victim == "all of them" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS - REAL_KILLS))
def test_killed_and_resumed(seed: int, tmp_path: Path, uninterrupted: list[dict[str, str]], fallen: Fallen) -> None:
    draw = random.Random(seed)
    kind = seed % KINDS
    victim = {2: "the parent", 4: "a worker", 7: "all of them"}.get(kind, "the process")
    launcher = () if victim == "the process" else WORKERS
    typed = (*SWEEP, *launcher, "hydra.sweep.dir=sweep")
    sweep, log = tmp_path / "sweep", tmp_path / "evaluations.log"
    # Of many samples, so that it takes its time to write them, where the kill is to fall into that.
    samples = 4_000_000 if kind % 3 == 1 else 1000
    # Of kind 8 an evaluation takes a second and more, so that the kill falls into one on a busy machine, too.
    seconds = 2.0 if kind == 8 else 0.1 if launcher else 0.04
    process = start(command(*typed), tmp_path, STAND_IN_S=seconds, STAND_IN_SAMPLES=samples)

    # A random instant, counted from what has happened, so that a busy machine does not move it to another phase.
    if kind == 0:  # while it plans, or starts
        time.sleep(draw.uniform(0.2, 0.8))
    elif kind == 5:  # when the last result was written: the tables
        wait_for(lambda: sum(1 for _ in sweep.glob("*/result.json")) == N_RUNS, process)
        time.sleep(draw.uniform(0.0, 0.3))
    elif kind == 8:  # while it evaluates
        count = draw.choice((1, 3))  # lines: the first evaluation begins, or it has ended and the second begins
        wait_for(lambda: len(read_log(log)) >= count, process)
        time.sleep(draw.uniform(0.0, 0.5))
    elif kind % 3 == 1:  # just after an evaluation: results are being written
        count = draw.randrange(1, N_RUNS)
        wait_for(lambda: sum(event.what == "end" for event in read_log(log)) >= count, process)
        time.sleep(draw.uniform(0.0, 0.01))
    else:
        count = draw.randrange(1, 2 * N_RUNS)
        wait_for(lambda: len(read_log(log)) >= count, process)
        time.sleep(draw.uniform(0.0, 0.06))
    kill_one(victim, process, tmp_path, draw)
    events, before = read_log(log), results(sweep)
    where, finished = phase(sweep, events), len(before) + len(results(sweep, "failed"))
    if victim == "a worker":
        # The sweep does without it.
        assert process.wait(PATIENCE_S) == 1, (tmp_path / "err").read_text()
        assert table(sweep) == uninterrupted
        events, before = read_log(log), results(sweep)
        assert len(before) == N_RUNS - N_FAILING

    if (sweep / "sweep.json").exists() and seed % 4:
        resume = ["resume=true", "hydra.sweep.dir=sweep"]
    else:  # it was killed before it had written down its plan, or it is as good to type it again
        resume = [*typed, "resume=true"]
    answer = run(command(*resume), tmp_path)
    assert answer.returncode == 1, answer.stderr  # a seed fails
    assert "Traceback" not in answer.stderr
    assert nothing_is_left(tmp_path), processes(tmp_path)

    # As if nothing had happened, and nothing that was finished was done again.
    assert table(sweep) == uninterrupted
    assert len(results(sweep)) == N_RUNS - N_FAILING and len(results(sweep, "failed")) == N_FAILING
    after, evaluated = results(sweep), read_log(log)
    assert {path: after[path] for path in before} == before
    for written, record in after.values():
        late = [e for e in evaluated if e.config_hash == record["config_hash"] and e.at > written / 1e9]
        assert not [event for event in late if event.what == "begin"], record["run_id"]
    # Begun again was at most what somebody was at: one run for each process that was killed.
    succeeded = {record["config_hash"] for _, record in after.values()}
    again = sum(count - 1 for digest, count in begins(evaluated).items() if digest in succeeded)
    assert again <= (2 if launcher and victim != "a worker" else 1)
    fallen.note(seed, victim, where, finished, again)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS - REAL_KILLS, KILLS))
def test_killed_and_resumed_with_the_real_model(
    seed: int, tmp_path: Path, uninterrupted_real: list[dict[str, str]], fallen: Fallen
) -> None:
    draw, sweep = random.Random(seed), tmp_path / "sweep"
    process = start(mxsweep(*REAL_SWEEP, "hydra.sweep.dir=sweep"), tmp_path)
    wanted = 1 + seed % (N_REAL_RUNS - 1)

    def is_at_a_run() -> bool:
        claims = [claim for claim in sweep.glob(f"*/{CLAIM_NAME}") if claim.stat().st_size > 2]  # of a done run: {}
        return len(results(sweep)) == wanted and bool(claims)

    wait_for(is_at_a_run, process)
    time.sleep(draw.uniform(0.0, 0.03))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was over before"
    before = results(sweep)
    where = "collecting" if len(before) == N_REAL_RUNS else "real model, in a run"
    claims = [claim for claim in sweep.glob(f"*/{CLAIM_NAME}") if claim.stat().st_size > 2]
    begun = sum(not (claim.parent / "result.json").exists() for claim in claims)
    answer = run(mxsweep("resume=true", "hydra.sweep.dir=sweep"), tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert f"{len(before)} of {N_REAL_RUNS} runs are done and are skipped" in answer.stdout
    assert table(sweep) == uninterrupted_real
    after = results(sweep)
    assert len(after) == N_REAL_RUNS and {path: after[path] for path in before} == before
    fallen.note(seed, "the process", where, len(before), begun)


@pytest.mark.slow
@pytest.mark.parametrize(  # neither is handled: what differs is who has the runs
    ("sent", "launcher"), [(signal.SIGTERM, ()), (signal.SIGHUP, WORKERS)], ids=["SIGTERM", "SIGHUP, workers"]
)
def test_ended_by_a_polite_signal_and_resumed(
    sent: signal.Signals, launcher: tuple[str, ...], tmp_path: Path, uninterrupted: list[dict[str, str]]
) -> None:
    sweep, log = tmp_path / "sweep", tmp_path / "evaluations.log"
    process = start(command(*SWEEP, *launcher, "hydra.sweep.dir=sweep"), tmp_path, STAND_IN_S=0.1)
    wait_for(lambda: len(read_log(log)) >= N_RUNS, process)
    before = results(sweep)
    os.kill(process.pid, sent)
    process.wait(PATIENCE_S)
    wait_for(lambda: nothing_is_left(tmp_path))
    answer = run(command("resume=true", "hydra.sweep.dir=sweep"), tmp_path)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr, answer.stderr  # a seed fails
    assert table(sweep) == uninterrupted
    after = results(sweep)
    assert {path: after[path] for path in before} == before
    assert not list(sweep.rglob("*.tmp"))


def test_the_kills_fell_everywhere(fallen: Fallen) -> None:
    if sum(fallen.phases.values()) < KILLS or KILLS <= KINDS:
        pytest.skip("looks back at a kill of each kind")
    assert {"evaluating", "collecting"} <= set(fallen.phases)
    assert fallen.phases["planning"] + fallen.phases["starting"] > 0
    assert fallen.phases["writing a result"] + fallen.phases["between runs"] > 0
    assert set(fallen.victims) == {"the process", "the parent", "a worker", "all of them"}


# ----------------------------------------------------------------------------------- workers that die


@pytest.mark.slow
def test_a_run_whose_worker_dies_is_begun_again_once(tmp_path: Path) -> None:
    arguments = ["-m", "seed=1,778,2", "model.device=cpu", *WORKERS, "hydra.sweep.dir=sweep"]
    answer = run(command(*arguments), tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert sorted(begins(read_log(tmp_path / "evaluations.log")).values()) == [1, 1, 1, 2]
    assert len(results(tmp_path / "sweep")) == 4
    assert nothing_is_left(tmp_path)


@pytest.mark.slow
def test_a_run_whose_workers_always_die_is_given_up(tmp_path: Path) -> None:
    arguments = ["-m", "seed=1,777,2", "model.device=cpu", *WORKERS, "hydra.sweep.dir=sweep"]
    answer = run(command(*arguments), tmp_path)
    assert answer.returncode == 1
    assert sorted(begins(read_log(tmp_path / "evaluations.log")).values()) == [1, 1, 1, 2]
    assert len(results(tmp_path / "sweep")) == 3
    ((_, record),) = results(tmp_path / "sweep", "failed").values()
    reason = "the process that did this run died 2 times (killed, crashed, or out of host memory)"
    assert record["error"]["message"] == reason
    assert record["config"]["seed"] == 777
    assert reason in answer.stdout and "Traceback" not in answer.stderr
    assert nothing_is_left(tmp_path)


# --------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), WORKERS], ids=["one process", "workers"])
def test_ctrl_c_says_how_to_go_on(
    launcher: tuple[str, ...], tmp_path: Path, uninterrupted: list[dict[str, str]]
) -> None:
    # In a folder whose name a shell would not take as it is.
    arguments = [*SWEEP, *launcher, "hydra.sweep.dir='my sweep'"]
    process = start(command(*arguments), tmp_path, STAND_IN_S=0.3)
    wait_for(lambda: len(read_log(tmp_path / "evaluations.log")) >= 6, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(PATIENCE_S) == 130
    assert without_traceback(tmp_path), (tmp_path / "err").read_text()
    assert nothing_is_left(tmp_path), processes(tmp_path)
    said = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("mxsweep: ")]
    before = results(tmp_path / "my sweep")
    assert 1 <= len(before) < N_RUNS - N_FAILING
    assert len(said) == 1 and f"interrupted; {len(before)} of {N_RUNS} runs are done and kept" in said[0]
    advice = re.search(r"python -m mxsweep (resume=true .*)$", said[0])
    assert advice is not None, said
    answer = run(command(*shlex.split(advice[1])), tmp_path)
    assert answer.returncode == 1, answer.stderr
    assert table(tmp_path / "my sweep") == uninterrupted
    after = results(tmp_path / "my sweep")
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_ctrl_c_when_all_runs_are_done_says_so(tmp_path: Path) -> None:
    typed = ("-m", "seed=1,2", "hydra.sweep.dir=sweep", "model.device=cpu")
    process = start(command(*typed), tmp_path, STAND_IN_COLLECT_S=30)
    wait_for((tmp_path / "sweep" / "results.csv").exists, process)
    process.send_signal(signal.SIGINT)  # pyarrow is being imported, where Python may lose it
    assert process.wait(PATIENCE_S) == 130
    (said,) = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("mxsweep: ")]
    assert "3 of 3 runs are done and kept" in said
    assert without_traceback(tmp_path)


# ------------------------------------------------------------------------------------------ full disks


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), WORKERS], ids=["one process", "workers"])
def test_files_that_cannot_grow_end_a_sweep_with_a_message(
    launcher: tuple[str, ...], tmp_path: Path, uninterrupted: list[dict[str, str]]
) -> None:
    # What the command says goes through pipes, which have no size; what workers say goes into files.
    first = run(command(*SWEEP, *launcher, "hydra.sweep.dir=sweep"), tmp_path, STAND_IN_FULL_AFTER=4)
    assert first.returncode == 1
    said = [line for line in first.stderr.splitlines() if line.startswith("mxsweep: ")]
    assert len(said) == 1 and "To go on: python -m mxsweep resume=true hydra.sweep.dir=sweep" in said[0]
    assert ("workers end without finishing a run" if launcher else "cannot write (File too large") in said[0]
    assert "Traceback" not in first.stdout + first.stderr
    assert nothing_is_left(tmp_path)
    finished, before = len(read_log(tmp_path / "evaluations.log")) // 2, results(tmp_path / "sweep")
    assert len(before) + len(results(tmp_path / "sweep", "failed")) == 4 < finished
    answer = run(command("resume=true", "hydra.sweep.dir=sweep"), tmp_path)
    assert answer.returncode == 1, answer.stderr  # a seed fails
    after = results(tmp_path / "sweep")
    assert {path: after[path] for path in before} == before
    assert table(tmp_path / "sweep") == uninterrupted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here, which takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_sweep_with_a_message(
    small_disk: Path, tmp_path: Path, uninterrupted: list[dict[str, str]]
) -> None:
    ballast = small_disk / "ballast"
    process = start(command(*SWEEP, "hydra.sweep.dir=disk/sweep"), tmp_path)
    wait_for(lambda: len(results(small_disk / "sweep")) >= 2, process)
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), b"x" * 1024)
    assert process.wait(PATIENCE_S) == 1
    said = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("mxsweep: ")]
    assert len(said) == 1 and "No space left on device" in said[0], said
    assert "To go on: python -m mxsweep resume=true hydra.sweep.dir=disk/sweep" in said[0]
    assert without_traceback(tmp_path)
    before = results(small_disk / "sweep")
    assert len(before) >= 2
    ballast.unlink()
    answer = run(command("resume=true", "hydra.sweep.dir=disk/sweep"), tmp_path)
    assert answer.returncode == 1, answer.stderr  # a seed fails
    after = results(small_disk / "sweep")
    assert {path: after[path] for path in before} == before
    assert table(small_disk / "sweep") == uninterrupted


@pytest.mark.slow
def test_a_sweep_that_became_read_only_is_refused(small_disk: Path, tmp_path: Path) -> None:
    assert run(command("-m", "seed=1,2", "hydra.sweep.dir=disk/sweep", "model.device=cpu"), tmp_path).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    answer = run(command("resume=true", "hydra.sweep.dir=disk/sweep"), tmp_path)
    assert answer.returncode == 2
    (said,) = answer.stderr.strip().splitlines()
    assert said.startswith("mxsweep: hydra.sweep.dir: 'disk/sweep' cannot be made or written (")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/file/sweep"]) == 2
    assert "cannot be made or written (Not a directory)" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- order does not matter


@pytest.mark.slow
def test_order_and_company_of_runs_change_nothing(
    tmp_path: Path, uninterrupted_real: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-m", "block_size=64,16,32", "limit=30", "model.device=cpu", "hydra.sweep.dir=shuffled"]) == 0
    assert table(tmp_path / "shuffled") == uninterrupted_real
    in_sweep = {record["config_hash"]: record["metrics"] for _, record in results(tmp_path / "shuffled").values()}
    for number, size in enumerate((32, 64, 16)):
        folder = tmp_path / "single" / str(number)
        assert main([f"block_size={size}", "limit=30", "model.device=cpu", f"hydra.run.dir={folder}"]) == 0
    for _, record in results(tmp_path / "single").values():
        assert record["metrics"] == in_sweep[record["config_hash"]]
