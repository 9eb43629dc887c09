"""Do runs in an array of jobs on a cluster, each of which does one run after another: hydra/launcher=slurm."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mxsweep.config.sweep_settings import Slurm
from mxsweep.sweeps.execute import SweepObserver, SweepRun
from mxsweep.sweeps.launch import Launch, LaunchError, Watch
from mxsweep.sweeps.worker import Worker
from mxsweep.terminal.errors import ConfigError

log = logging.getLogger("mxsweep")

SLURM_POLL_S = 2.0
ASK_SLURM_EVERY_S = 10.0
SLURM_PATIENCE_S = 60.0  # a busy cluster answers late


def check_commands() -> None:
    """Refuse where Slurm's commands are not there. Raises ConfigError."""
    for command in ("sbatch", "srun", "squeue", "scancel"):  # submitit looks for srun, too
        if shutil.which(command) is None:
            raise ConfigError(f"hydra/launcher: 'slurm' needs the commands of Slurm, and there is no {command} here")


def work_on_slurm(
    launcher: Slurm, runs: Sequence[SweepRun], launch: Launch, observers: Sequence[SweepObserver]
) -> str | None:
    """Submit the jobs and, unless told not to wait, watch them; return a sentence on how to follow jobs that go on.

    Raises:
        LaunchError: Slurm does not take the jobs, or they end and leave runs without a result.
    """
    jobs = _submit(launcher, runs, launch)
    array = jobs[0].split("_")[0]
    which = array if len(jobs) == 1 else f"{array}_[0-{len(jobs) - 1}]"
    log.info("submitted to Slurm: job %s (its output: %s)", which, launch.folder)
    follow = f"Slurm's job {which} goes on; scancel {array} ends it"
    if not launcher.wait:
        return follow
    watch, queue = Watch(runs, observers), _Queue(array)
    asked, gone_since = time.monotonic(), 0
    try:
        while True:
            watch.look()
            if not watch.unsettled:
                queue.clear()
                return None
            if time.monotonic() - asked > ASK_SLURM_EVERY_S:
                asked = time.monotonic()
                gone_since = 0 if queue.holds_any() or watch.running else gone_since + 1
                if gone_since >= 2:  # a file system may show the last results late
                    raise LaunchError(
                        f"Slurm's job {which} has ended (cancelled, killed, or as its output says), and "
                        f"{len(watch.unsettled)} of {len(runs)} runs have no result{_last_lines(launch.folder)}"
                    )
            time.sleep(SLURM_POLL_S)
    except KeyboardInterrupt:
        log.info("%s", follow)
        raise


def _submit(launcher: Slurm, runs: Sequence[SweepRun], launch: Launch) -> list[str]:
    """Submit the jobs, as an array if there are several; return their ids."""
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    count = -(-len(runs) // launcher.runs_per_job)
    # A model over all GPUs is for one process.
    all_gpus = any(run.config is not None and run.config.model.device_map is not None for run in runs)
    optional = {name: getattr(launcher, name) for name in ("partition", "account", "qos", "constraint")}
    # Where the jobs start, the folder this process is in may not be theirs.
    runs = [replace(run, folder=run.folder.absolute()) for run in runs]
    worker = Worker(runs, launch.name, launcher.retries, threads=launcher.cpus_per_task, all_gpus=all_gpus)
    try:
        executor = submitit.SlurmExecutor(folder=launch.folder.absolute() / "%j")
        executor.update_parameters(
            **{name: str(value) for name, value in optional.items() if value is not None},
            job_name="mxsweep",
            time=launcher.time_min,
            signal_delay_s=_warning_s(launcher.time_min),
            gpus_per_node=launcher.gpus_per_node or None,
            ntasks_per_node=1 if all_gpus else max(1, launcher.gpus_per_node),
            cpus_per_task=launcher.cpus_per_task,
            mem=None if launcher.mem_gb is None else f"{int(launcher.mem_gb * 1024)}M",
            array_parallelism=launcher.array_parallelism,
            setup=_setup_lines(launcher.setup),
            # srun asks for one CPU by itself since Slurm 22.05. A task that ends must not take the others with it,
            # whatever the cluster's defaults.
            srun_args=[f"--cpus-per-task={launcher.cpus_per_task}", "--kill-on-bad-exit=0", "--wait=0"],
            teardown=_requeue_lines(launcher.max_requeues),
            additional_parameters={"requeue": True, **launcher.sbatch},
        )
        # submitit says on stderr what the error says, too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            jobs = [executor.submit(worker) for _ in range(count)]
        return [job.job_id for job in jobs]
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        reason = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines())
        raise LaunchError(f"Slurm did not take the jobs: {reason[:500]}") from error


def _warning_s(time_min: int) -> int:
    """Return how many seconds before a job's time is over Slurm is to say so.

    That is enough to end a batch, and little of the time there is. Slurm sends the signal up to a minute before that.
    """
    return max(10, min(90, time_min * 60 // 10))


def _setup_lines(lines: Sequence[str]) -> list[str] | None:
    """Return the user's lines, guarded: where one fails, nothing is evaluated in an environment that was not meant."""
    if not lines:
        return None
    begin = "trap 'echo \"hydra.launcher.setup: $BASH_COMMAND: exit code $?\" >&2' ERR; set -e"
    return [begin, *lines, "set +e; trap - ERR"]


def _requeue_lines(times: int) -> list[str]:
    """Return lines that queue a job again whose processes were stopped or died by a signal, unless Slurm ends it.

    This covers a time-out and a preemption, both with a signal first, and a process that was killed or crashed. When
    somebody cancels the job, or Slurm queues it again itself, its state is no longer RUNNING.
    """
    return [
        "code=$?",
        'if [ $code -gt 128 ] && scontrol show job -o "$SLURM_JOB_ID" | grep -q "JobState=RUNNING"; then',
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {times} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" && sleep 60',
        "  else",
        f'    echo "not queued again: it was {times} times (hydra.launcher.max_requeues)" >&2',
        "  fi",
        "fi",
        "exit $code",
    ]


class _Queue:
    """Ask Slurm about an array of jobs."""

    def __init__(self, array: str) -> None:
        self._array = array
        self._said = ""

    def clear(self) -> None:
        """Take out the jobs that did not start, since others have done their share."""
        self._ask("scancel", "--quiet", "--state=PENDING", self._array)

    def holds_any(self) -> bool:
        """Return whether anything is left to run, or Slurm does not answer; log why jobs wait, should they all."""
        answer = self._ask("squeue", "-h", "-j", self._array, "-o", "%T %r")
        if answer is None:
            return True
        if answer.returncode != 0:
            return "Invalid job id" not in answer.stderr  # of jobs that ended a while ago
        states = [line.partition(" ")[::2] for line in answer.stdout.splitlines()]
        reasons = ", ".join(dict.fromkeys(reason for _, reason in states if reason != "None"))
        if states and all(state == "PENDING" for state, _ in states) and reasons not in ("", self._said):
            self._said = reasons
            log.info("Slurm's job %s waits: %s", self._array, reasons)
        return bool(states)

    @staticmethod
    def _ask(*command: str) -> subprocess.CompletedProcess[str] | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SLURM_PATIENCE_S)
        return None


def _last_lines(folder: Path) -> str:
    """Return the last line of each job's error output, as far as they differ, with the folder's name."""
    said: dict[str, None] = {}
    for path in sorted(folder.rglob("*_log.err")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        said |= dict.fromkeys([line for line in lines if line.strip()][-1:])
    return f": {'; '.join(said)[:500]} (see {folder})" if said else f" (see {folder})"
