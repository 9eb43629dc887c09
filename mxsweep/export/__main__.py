"""Write a finished run's model as a packed checkpoint: ``python -m mxsweep.export RUN_FOLDER``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mxsweep.formats.export_targets import TARGET_NAMES
from mxsweep.terminal.command import leave, run_command
from mxsweep.terminal.escapes import printable

PROGRAM = "mxsweep.export"
EPILOG = """\
examples
  python -m mxsweep.export RUN_FOLDER                   into RUN_FOLDER/export, for the first target that holds it
  python -m mxsweep.export RUN_FOLDER --to compressed-tensors --out /data/my-model-mxfp4
  python -m mxsweep.export RUN_FOLDER --to gguf --out /data/my-model-gguf     a folder that holds model.gguf
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 if nothing was written or a check failed."""
    return run_command(PROGRAM, lambda: _export(_parser().parse_args(argv)))


def _export(arguments: argparse.Namespace) -> int:
    # Here, after the words are known to be good: torch and transformers take seconds to import.
    import transformers.utils.logging as transformers_logging

    from mxsweep.runs.export_run import EXPORT_FOLDER, export_run, read_finished

    transformers_logging.disable_progress_bar()
    config, record = read_finished(arguments.run)
    out = arguments.out or arguments.run / EXPORT_FOLDER
    export = export_run(
        config,
        record,
        arguments.run,
        arguments.to,
        out,
        verify=not arguments.no_verify,
        say=lambda text: print(printable(text)),
    )
    manifest = export.manifest
    bits = manifest["bits_per_quantized_weight"]
    print(
        f"{manifest['target']}: {len(manifest['weights'])} layers, {bits['stored']:.3f} bits a weight stored, "
        f"{bits['predicted']:.3f} predicted, {manifest['bytes']['tensors']:,} bytes -> {export.folder}"
    )
    for name, found in manifest.get("verified", {}).items():
        print(printable(f"  {name}: {found}"))
    for note in export.notes:
        print(printable(f"note: {note}"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mxsweep.export",
        description="Write the model of a finished run as a packed checkpoint, bit for bit what the run multiplied by, "
        "and check that it is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path, help="a finished run's folder, with its result.json")
    parser.add_argument("--to", metavar="TARGET", default="auto", help=f"auto (default), {', '.join(TARGET_NAMES)}")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write, a new folder (default: RUN_FOLDER/export)"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not read it back and evaluate it")
    return parser


if __name__ == "__main__":
    leave(main())
