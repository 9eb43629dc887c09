"""Answer a command line of runs: a question about the config, a sweep to go on with, or runs to plan and do."""

from __future__ import annotations

import os

from mxsweep.config.command_line import CommandLine
from mxsweep.machine.versions import git_sha, version_of

# What each answer needs is imported where it is given: it takes longer than many a question.


def answer_line(line: CommandLine) -> int:
    """Do what a command line asks for, and return the exit code. Raises ConfigError for words that make no sense."""
    if line.version:
        print(f"mxsweep {version_of('mxsweep') or f'(not installed), commit {git_sha()}'}")
        return 0
    if line.completion is not None or line.asks_hydra:
        from mxsweep.sweeps.hydra_answers import answer_question, answer_shell

        return answer_question(line) if line.completion is None else answer_shell(line.completion)
    return _do_runs(line)


def _do_runs(line: CommandLine) -> int:
    from mxsweep.results.manifest import Command
    from mxsweep.sweeps.begin import begin, plan_command
    from mxsweep.sweeps.on_host import workers_started_early
    from mxsweep.sweeps.resume import SWEEP_DIR, knob_values, manifest_command, resume_sweep

    command = Command(line.overrides, str(line.config_dir) if line.config_dir else None, os.getcwd())
    values = knob_values(command)
    with workers_started_early(values):
        if values.get("resume", "").lower() == "true":
            return resume_sweep(command)
        planned, multirun = plan_command(command, line.multirun)
        return begin(planned, multirun, manifest_command(command), named=SWEEP_DIR in values)
