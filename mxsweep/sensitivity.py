"""Measure the loss that each part of a model brings when it is quantized: `python -m mxsweep.sensitivity`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mxsweep.files.atomic import write_csv
from mxsweep.sweeps.configs_to_measure import add_knob_arguments, loss_config, output_folder, print_warnings
from mxsweep.terminal.command import leave, run_command, write_output
from mxsweep.terminal.escapes import printable
from mxsweep.terminal.progress_bars import progress_bars

PROGRAM = "mxsweep.sensitivity"
EPILOG = """\
examples
  python -m mxsweep.sensitivity format=mxfp4                          every module of the embedded model
  python -m mxsweep.sensitivity --by kind format=mxfp4 kv_quant=fp4_e2m1
  python -m mxsweep.sensitivity --by layer format=mxfp4 model=hf model.path=FOLDER \\
      calibration=text calibration.path=FILE.txt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 if a file could not be written, 2 if nothing could be measured."""
    return run_command(PROGRAM, lambda: _measure(_parser().parse_intermixed_args(argv)))


def _measure(arguments: argparse.Namespace) -> int:
    config = loss_config(arguments.knobs, arguments.config_dir)
    # Here, after the knobs are known to be good: torch and transformers take seconds to import.
    import transformers.utils.logging as transformers_logging

    from mxsweep.measure.configured_sensitivity import measure_config
    from mxsweep.measure.sensitivity_table import text

    transformers_logging.disable_progress_bar()
    with progress_bars() as progress:
        measured, calibration, warnings = measure_config(config, arguments.by, progress)
    keys_and_values = "" if config.kv_quant.name == "none" else f", keys and values {config.kv_quant.name}"
    formats = f"{config.format.name}{keys_and_values}"
    print(printable(f"{config.model.label}, {formats}\nCalibration: {calibration}\n\n{text(measured)}"))
    print_warnings(warnings)

    def write(folder: Path) -> list[Path]:
        table = folder / "sensitivity.csv"
        rows = measured.rows()
        write_csv(table, rows[0], [row.values() for row in rows])
        from mxsweep.report.figures.panels import draw_sensitivity

        return [table, *draw_sensitivity(rows, formats, folder)]

    return write_output(PROGRAM, output_folder(arguments, "sensitivity"), write)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mxsweep.sensitivity",
        usage="%(prog)s [--by module|layer|kind] [--output DIR] [KNOB=VALUE ...]",
        description="What each part of a model costs when it is quantized, on calibration data: the KL divergence from "
        "the unquantized model and the change of the loss when the part alone is quantized, and when everything but "
        "it is. A ranked table, a CSV and a heat map; nothing is evaluated. The knobs are those of one run of "
        "`python -m mxsweep`; calibration= says on what, which a model other than the embedded one needs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--by",
        choices=("module", "layer", "kind"),
        default="module",
        help="a part is a linear layer (default), a decoder block, or all layers of a kind (q, k, ... down); keys and "
        "values, where kv_quant quantizes them, are a part each",
    )
    add_knob_arguments(parser, "sensitivity")
    return parser


if __name__ == "__main__":
    leave(main())
