"""Measure what formats do to a model's weights, as a table and a heat map: `python -m mxsweep.inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mxsweep.files.atomic import write_csv
from mxsweep.sweeps.configs_to_measure import add_knob_arguments, output_folder, print_warnings, weight_configs
from mxsweep.terminal.command import leave, run_command, write_output
from mxsweep.terminal.escapes import printable

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
    return run_command(PROGRAM, lambda: _inspect(_parser().parse_intermixed_args(argv)))


def _inspect(arguments: argparse.Namespace) -> int:
    configs = weight_configs(arguments.knobs, arguments.config_dir)
    # Here, after the knobs are known to be good: torch and transformers take seconds to import.
    import transformers.utils.logging as transformers_logging

    from mxsweep.measure.weight_errors import inspect_weights
    from mxsweep.measure.weight_tables import one_text, side_by_side_text

    transformers_logging.disable_progress_bar()
    inspected = [inspect_weights(label, config) for label, config in configs]
    print(printable(one_text(inspected[0]) if len(inspected) == 1 else side_by_side_text(inspected)))
    print_warnings(warning for one in inspected for warning in one.warnings)

    def write(folder: Path) -> list[Path]:
        table = folder / "inspect.csv"
        rows = [row for one in inspected for row in one.rows()]
        write_csv(table, rows[0], [row.values() for row in rows])
        from mxsweep.report.figures.panels import draw_weights

        return [table, *draw_weights(inspected, folder)]

    return write_output(PROGRAM, output_folder(arguments, "inspect"), write)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mxsweep.inspect",
        usage="%(prog)s [--output DIR] [KNOB=VALUE ...]",
        description="The error of every quantized weight of a model (no task is needed, nothing is evaluated): "
        "signal-to-noise ratio, root mean square error, saturated and flushed elements, clamped scales and their "
        "exponents. The knobs are those of `python -m mxsweep`; several values of one stand side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="may stand here as it does there; has no effect")
    add_knob_arguments(parser, "inspect")
    return parser


if __name__ == "__main__":
    leave(main())
