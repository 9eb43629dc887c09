"""Measure the loss that each part of a model brings when it is quantized: `python -m mxsweep.sensitivity`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mxsweep.config.command_line import check_no_sweep_knobs
from mxsweep.config.override_grammar import excerpt, read_override
from mxsweep.config.overrides import prepare
from mxsweep.config.run_config import RunConfig
from mxsweep.files.atomic import write_csv
from mxsweep.runs.backend_check import refuse_unavailable_backend
from mxsweep.sweeps.plan import plan
from mxsweep.terminal.command import run_command, write_output
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, in_phase

if TYPE_CHECKING:
    from mxsweep.measure.sensitivity import Sensitivity

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
    return run_command(PROGRAM, lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_intermixed_args(argv)
    config = _planned(arguments.knobs, arguments.config_dir)
    # Here, after the knobs are known to be good: torch and transformers take seconds to import.
    import transformers.utils.logging as transformers_logging

    from mxsweep.measure.sensitivity_table import text

    transformers_logging.disable_progress_bar()
    measured, calibration = _measure_losses(config, arguments.by)
    formats = (
        f"{config.format.name}{'' if config.kv_quant.name == 'none' else f', keys and values {config.kv_quant.name}'}"
    )
    print(f"{config.model.label}, {formats}\nCalibration: {calibration}\n\n{text(measured)}")
    output = arguments.output or Path("outputs") / f"sensitivity_{datetime.now().strftime('%Y%m%d_%H%M%S')}"

    def write(folder: Path) -> list[Path]:
        table = folder / "sensitivity.csv"
        rows = measured.rows()
        write_csv(table, rows[0], [row.values() for row in rows])
        from mxsweep.report.figures.panels import draw_sensitivity

        return [table, *draw_sensitivity(rows, formats, folder)]

    return write_output(PROGRAM, output, write)


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
    parser.add_argument("knobs", nargs="*", metavar="KNOB=VALUE", help="as of `python -m mxsweep` (see its --help)")
    parser.add_argument(
        "--by",
        choices=("module", "layer", "kind"),
        default="module",
        help="a part is a linear layer (default), a decoder block, or all layers of a kind (q, k, ... down); keys and "
        "values, where kv_quant quantizes them, are a part each",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the files go (default: outputs/sensitivity_<time>)"
    )
    parser.add_argument("--config-dir", type=Path, metavar="FOLDER", help="a further folder of config files")
    return parser


def _planned(knobs: list[str], config_dir: Path | None) -> RunConfig:
    """Return the one config that the knobs mean. Raises ConfigError."""
    check_no_sweep_knobs(knobs, config_dir)
    for knob in knobs:
        if knob.partition("=")[0].lstrip("+~") == "by":
            raise ConfigError(f"{excerpt(knob)}: is an option of this command and no knob; write --{excerpt(knob)}")
    folder = config_dir and config_dir.resolve()
    grids, sweeps = prepare(knobs, folder)
    if sweeps:
        raise ConfigError("experiment: is a sweep, and one run's knobs are measured here; give its knobs themselves")
    for override in map(read_override, grids[0]):
        if override.is_sweep_override():
            raise ConfigError(f"{override.key_or_group}: has several values; allowed here: one of each knob")
    (run,) = plan(grids, False, folder).runs
    if run.config is None:
        raise ConfigError(run.error or "")
    if run.config.recipe.is_baseline:
        raise ConfigError(
            f"format: {run.config.format.name!r} with kv_quant=none quantizes nothing, so there is nothing to measure; "
            "give a format, as format=mxfp4"
        )
    refuse_unavailable_backend(run.config)
    return run.config


def _measure_losses(config: RunConfig, by: str) -> tuple[Sensitivity, str]:
    """Return the losses, and a description of the texts that they were measured on. Raises ConfigError."""
    from mxsweep.calibrate.texts import calibration_tokens
    from mxsweep.config.calibration_data import resolve_calibration
    from mxsweep.formats.recipe import Prepared
    from mxsweep.forward.sequence_loss import Divergence
    from mxsweep.measure.sensitivity import measure
    from mxsweep.model.load import load_configured

    calibrated_on = resolve_calibration(config.calibration, config.model)  # whatever else needs it, this does
    loaded = load_configured(config.model)
    model = loaded.model
    length = config.model.max_length or model.config.get_text_config().max_position_embeddings
    with _progress_bars() as progress, ExitStack() as stack:
        if config.rotation.residual:
            from mxsweep.model.residual import rotated_residual

            stack.enter_context(rotated_residual(model))
        recipe, prepared = config.recipe, Prepared()
        if config.needs_calibration or config.ptq.is_solved:
            from mxsweep.calibrate.prepare import prepare as work_out

            made = work_out(model, loaded.tokenizer, config, {}, length, progress)
            recipe, prepared = made.recipe, made.prepared
        calibration = calibration_tokens(calibrated_on, config.model, loaded.tokenizer, length)
        divergence = Divergence(model, calibration.sequences)
        measured = measure(model, recipe, divergence, by, prepared, in_phase(progress, f"losses by {by}"))
    return measured, calibration.description


@contextmanager
def _progress_bars() -> Iterator[Progress]:
    """Show how much of a phase is done at the foot of a terminal, and nothing elsewhere; yield what to call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(done: int, total: int, phase: str = "", /) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield progress


if __name__ == "__main__":
    sys.exit(main())
