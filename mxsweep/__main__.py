"""Run one config or a sweep of them: ``python -m mxsweep [-m] [KNOB=VALUE ...]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mxsweep.config.command_line import parse_command_line
from mxsweep.machine.versions import git_sha, version_of
from mxsweep.results.manifest import Command
from mxsweep.sweeps.begin import begin, plan_command
from mxsweep.sweeps.hydra_answers import answer_question, answer_shell
from mxsweep.sweeps.resume import SWEEP_DIR, knob_values, manifest_command, resume_sweep
from mxsweep.terminal.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a run failed, 2 if nothing could be run, 130 if interrupted."""
    words = sys.argv[1:] if argv is None else argv
    return run_command("mxsweep", lambda: _answer(words), "interrupted before a run began")


def _answer(words: Sequence[str]) -> int:
    line = parse_command_line(words)
    if line.version:
        print(f"mxsweep {version_of('mxsweep') or f'(not installed), commit {git_sha()}'}")
        return 0
    if line.completion is not None:
        return answer_shell(line.completion)
    if line.asks_hydra:
        return answer_question(line)
    command = Command(line.overrides, str(line.config_dir) if line.config_dir else None, os.getcwd())
    values = knob_values(command)
    if values.get("resume", "").lower() == "true":
        return resume_sweep(command)
    planned, multirun = plan_command(command, line.multirun)
    return begin(planned, multirun, manifest_command(command), named=SWEEP_DIR in values)


if __name__ == "__main__":
    sys.exit(main())
