"""Measure what formats do to a model's weights, as a table and a heat map: `python -m mxsweep.inspect`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mxsweep.config.command_line import check_no_sweep_knobs
from mxsweep.config.overrides import prepare
from mxsweep.files.atomic import write_csv
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.plan import PlannedRun, plan
from mxsweep.terminal.command import run_command, write_output
from mxsweep.terminal.errors import ConfigError

PROGRAM = "mxsweep.inspect"
EPILOG = """\
examples
  python -m mxsweep.inspect format=mxfp4                         the embedded model
  python -m mxsweep.inspect format=mxfp4,nvfp4                   two formats side by side
  python -m mxsweep.inspect format=mxfp4 block_size=16,32,64     any knob can be swept
  python -m mxsweep.inspect format=nvfp4 model=hf model.path=FOLDER --output DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a file could not be written, 2 if nothing could be measured."""
    return run_command(PROGRAM, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mxsweep.inspect",
        usage="%(prog)s [--output DIR] [KNOB=VALUE ...]",
        description="The error of every quantized weight of a model (no task is needed, nothing is evaluated): "
        "signal-to-noise ratio, root mean square error, saturated and flushed elements, clamped scales and their "
        "exponents. The knobs are those of `python -m mxsweep`; several values of one stand side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="as of `python -m mxsweep` (see its --help)")
    parser.add_argument("-m", "--multirun", action="store_true", help="may stand here as it does there; has no effect")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the files go (default: outputs/inspect_<time>)"
    )
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="a further folder of config files")
    arguments = parser.parse_intermixed_args(argv)
    runs = _planned(arguments.knobs, arguments.config_dir)
    # Here, after the knobs are known to be good: torch and transformers take seconds to import.
    import transformers.utils.logging as transformers_logging

    from mxsweep.measure.weight_errors import inspect_weights
    from mxsweep.measure.weight_tables import one_text, side_by_side_text

    transformers_logging.disable_progress_bar()
    labels = _labels(runs)
    inspected = []
    for run, label in zip(runs, labels, strict=True):
        assert run.config is not None
        inspected.append(inspect_weights(label, run.config))
    print(one_text(inspected[0]) if len(inspected) == 1 else side_by_side_text(inspected))
    output = arguments.output or Path("outputs") / f"inspect_{datetime.now().strftime('%Y%m%d_%H%M%S')}"

    def write(folder: Path) -> list[Path]:
        table = folder / "inspect.csv"
        rows = [row for one in inspected for row in one.rows()]
        write_csv(table, rows[0], [row.values() for row in rows])
        from mxsweep.report.figures.panels import draw_weights

        return [table, *draw_weights(inspected, folder)]

    return write_output(PROGRAM, output, write)


def _planned(knobs: list[str], config_dir: Path | None) -> list[PlannedRun]:
    """Return the configs that the knobs mean and that quantize a weight. Raises ConfigError."""
    check_no_sweep_knobs(knobs, config_dir)
    overrides, _ = prepare(knobs, config_dir and config_dir.resolve())
    asked = [run for run in plan(overrides, True, config_dir and config_dir.resolve()).runs if not run.added]
    for run in asked:
        if run.config is None:
            raise ConfigError(run.error or "")
        refuse_unavailable_backend(run.config)
    runs = [run for run in asked if run.config is not None and run.config.quantizes_weights]
    if not runs:
        raise ConfigError(
            "format: no weight is quantized, so there is nothing to measure; give a format, as format=mxfp4"
        )
    return runs


def _labels(runs: Sequence[PlannedRun]) -> list[str]:
    """Return the words that tell each config from the others, as typed; of a single config its format."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    differing = [[word for word in run.overrides if word not in common] for run in runs]
    if len(runs) == 1 or not all(differing):
        return [run.config.format.name for run in runs if run.config is not None]
    knobs = {tuple(word.partition("=")[0] for word in words) for words in differing}
    if len(knobs) == 1 and len(differing[0]) == 1:  # one knob differs: its values say enough
        return [words[0].partition("=")[2] if not _is_number(words[0]) else words[0] for words in differing]
    return [" ".join(words) for words in differing]


def _is_number(word: str) -> bool:
    """Return whether a knob's value means nothing without the knob's name."""
    return re.fullmatch(r"[\d.]+|true|false|none|null", word.partition("=")[2]) is not None


if __name__ == "__main__":
    sys.exit(main())
