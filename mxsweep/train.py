"""Train models under formats, evaluate and compare them: ``python -m mxsweep.train [KNOB=VALUE ...]``.

It is ``python -m mxsweep -m train=from_scratch recipe=mxfp4 KNOB=VALUE ...``, each of the two where nothing says other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from mxsweep.config.command_line import parse_command_line
from mxsweep.config.option_files import config_folders
from mxsweep.config.train_help import training_help
from mxsweep.config.train_words import training_words
from mxsweep.sweeps.answer import answer_line
from mxsweep.terminal.command import leave, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a run failed, 2 if nothing could be run, 130 if interrupted."""
    words = sys.argv[1:] if argv is None else argv
    return run_command("mxsweep.train", lambda: _answer(words), "interrupted before a run began")


def _answer(words: Sequence[str]) -> int:
    line = parse_command_line(words)
    if "--help" in line.asks_hydra:
        print(training_help(config_folders(line.config_dir), line.overrides))
        return 0
    return answer_line(replace(line, overrides=training_words(line.overrides, line.config_dir), multirun=True))


if __name__ == "__main__":
    leave(main())
