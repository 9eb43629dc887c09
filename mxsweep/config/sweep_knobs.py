"""Declare the knobs of a sweep, which decide no result: how a sweep is gone about, where its runs are done and logged.

They are entries of the table in ``knob_table.py``, which holds the knobs of runs.
"""

from __future__ import annotations

from typing import Any

from mxsweep.config.knob import Kind, Knob, Scope
from mxsweep.config.value_types import WORD, WORD_OR_NULL, Checked, Choice, Flag, Number, Text, ValueType, Whole
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import quoted


def sweep_knob(path: str, help: str, type: ValueType, **more: Any) -> Knob:
    """Declare a knob of how a sweep is gone about."""
    return Knob(path, help, type, Scope.SWEEP, **more)


def _launcher(path: str, help: str, type: ValueType, **more: Any) -> Knob:
    """Declare a knob of a launcher."""
    return Knob(f"hydra.launcher.{path}", help, type, Scope.SWEEP, **more)


def check_shell_lines(knob: str, value: Any) -> None:
    """Raise ConfigError unless the value is a list of texts."""
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ConfigError(f"{knob}: {quoted(value)} must be a list of shell lines, as '[module load x]'")


def check_sbatch(knob: str, value: Any) -> None:
    """Raise ConfigError unless the value is a mapping."""
    if not isinstance(value, dict):
        raise ConfigError(f"{knob}: {quoted(value)} must be a mapping, as {{reservation: NAME}}")


def check_text_or_number(knob: str, value: Any) -> None:
    """Raise ConfigError unless the value is a word, a number that stands for one, or None.

    It becomes a line of a job's script, so that what ends a line would begin another one.
    """
    text = isinstance(value, str | int) and str(value).strip() and str(value).isprintable()
    if value is not None and not text:
        raise ConfigError(f"{knob}: {quoted(value)} must be a word or null")


TEXT_OR_NUMBER = Checked("a word, or null", check_text_or_number)
AT_LEAST_1 = Whole("a whole number, at least 1", 1)
COUNT = Whole("0 or more", 0)
SBATCH = "hydra.launcher.sbatch"
PROVEN, NEVER = "proven", "never"  # of reuse

SWEEPS = (
    sweep_knob("dry_run", "true: print the planned runs, run nothing", Flag("true, false")),
    sweep_knob(
        "baseline",
        "a sweep also runs the unquantized model, once per model, task, limit and dtype",
        Flag("true, false"),
    ),
    sweep_knob(
        "resume",
        "true: go on with a sweep, hydra.sweep.dir or the newest; finished runs are not run again",
        Flag("true, false"),
    ),
    sweep_knob(
        "reuse",
        "proven: a run is not evaluated that a finished one of the sweep proves to come out the same bit for bit, as "
        "scale_bits 6 by 8 where no scale wanted more; never: every run is",
        Choice(words=(PROVEN, NEVER)),
    ),
    sweep_knob("logging.name", "as logging", Choice(words=("none", "wandb"))),
    sweep_knob("logging.project", "of Weights & Biases", WORD, kind=Kind.TEXT),
    sweep_knob("logging.entity", "of Weights & Biases; null: the account's own", WORD_OR_NULL, kind=Kind.TEXT),
    sweep_knob(
        "logging.mode",
        "offline: kept in the run's folder, until `wandb sync` uploads it",
        Choice(words=("online", "offline")),
    ),
    Knob("stamp", "how folders and run ids begin", Text("letters, digits and _.+-"), Scope.NONE, kind=Kind.TEXT),
    Knob("sweep", "set by experiments: the knobs that they sweep", ValueType(), Scope.NONE),
    sweep_knob("hydra.run.dir", "the folder of a single run", Text("a folder"), kind=Kind.FOLDER),
    sweep_knob("hydra.sweep.dir", "the folder of a sweep", Text("a folder"), kind=Kind.FOLDER),
    sweep_knob("hydra.sweep.subdir", "a run's folder below the sweep's", Text("a folder below the sweep's")),
)

LAUNCHERS = (
    _launcher(
        "n",
        "of gpus: null: every visible GPU, or 2 processes on the CPU",
        Whole("a whole number of processes, at least 1, or null", 1, words=(None,)),
    ),
    _launcher("retries", "times that a run is begun again after its process died", COUNT),
    _launcher("partition", "of slurm", TEXT_OR_NUMBER, kind=Kind.TEXT),
    _launcher("account", "of slurm", TEXT_OR_NUMBER, kind=Kind.TEXT),
    _launcher("qos", "of slurm", TEXT_OR_NUMBER, kind=Kind.TEXT),
    _launcher("constraint", "of slurm", TEXT_OR_NUMBER, kind=Kind.TEXT),
    _launcher(
        "time_min",
        "of slurm: minutes of one job, more than a run takes; a job out of time is queued again and goes on",
        AT_LEAST_1,
    ),
    _launcher(
        "gpus_per_node",
        "of slurm: as many runs at a time in each job (one with model.device_map=auto); 0: on the CPU",
        COUNT,
    ),
    _launcher("cpus_per_task", "of slurm: for each run at a time", AT_LEAST_1),
    _launcher(
        "mem_gb",
        "of slurm; null: the cluster's default",
        Number("gigabytes above 0, or null", 0, with_low=False, or_null=True),
    ),
    _launcher(
        "runs_per_job",
        "of slurm: how many jobs there are: as many as it takes, were each to do so many runs",
        AT_LEAST_1,
    ),
    _launcher("array_parallelism", "of slurm: jobs at a time", AT_LEAST_1),
    _launcher(
        "setup",
        "of slurm: shell lines before Python starts, as '[module load cuda]'; one that fails ends the job",
        Checked("a list of shell lines", check_shell_lines),
    ),
    _launcher(
        "sbatch", "of slurm: further options of sbatch, as {reservation: NAME}", Checked("a mapping", check_sbatch)
    ),
    _launcher(
        "wait", "of slurm: false: submit and return; `python -m mxsweep.collect --status` follows", Flag("true, false")
    ),
    _launcher(
        "max_requeues",
        "of slurm: times that a job is queued again that was preempted, out of time, or whose process died",
        COUNT,
    ),
)
