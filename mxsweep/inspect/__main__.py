"""`python -m mxsweep.inspect [KNOB=VALUE ...]`: what formats do to a model's weights, as a table and a heat map."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from mxsweep import streams
from mxsweep.checks import is_folder
from mxsweep.config import SWEEP_KNOBS
from mxsweep.errors import ConfigError
from mxsweep.overrides import excerpt, prepare
from mxsweep.run_one import check_backend
from mxsweep.sweep.plan import PlannedRun, plan

EXIT_UNWRITABLE = 1
EXIT_USAGE = 2  # nothing was measured: the command line makes no sense
EXIT_INTERRUPTED = 130
EPILOG = """\
examples
  python -m mxsweep.inspect format=mxfp4                         the embedded model
  python -m mxsweep.inspect format=mxfp4,nvfp4                   two formats side by side
  python -m mxsweep.inspect format=mxfp4 block_size=16,32,64     any knob can be swept
  python -m mxsweep.inspect format=nvfp4 model=hf model.path=FOLDER --output DIR
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0, 1 if a file could not be written, 2 if nothing could be measured."""
    return streams.steadily(lambda: _answered(argv))


def _answered(argv: Sequence[str] | None) -> int:
    try:
        return _main(argv)
    except ConfigError as error:
        print(f"mxsweep.inspect: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        why = f"{error.filename!r}: {error.strerror}" if error.filename else str(error)
        print(f"mxsweep.inspect: {why}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


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

    from mxsweep.inspect.measure import inspect_weights
    from mxsweep.inspect.tables import one_text, side_by_side_text

    transformers_logging.disable_progress_bar()
    labels = _labels(runs)
    found = []
    for run, label in zip(runs, labels, strict=True):
        assert run.config is not None
        found.append(inspect_weights(label, run.config))
    print(one_text(found[0]) if len(found) == 1 else side_by_side_text(found))
    output = arguments.output or Path("outputs") / f"inspect_{datetime.now().strftime('%Y%m%d_%H%M%S')}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        files = [output / "inspect.csv"]
        _write_csv(files[0], [row for one in found for row in one.rows()])
        from mxsweep.inspect.heat_map import draw

        files += draw(found, output)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"mxsweep.inspect: cannot write to {output}: {reason}; name another --output", file=sys.stderr)
        return EXIT_UNWRITABLE
    print("\nWritten:\n" + "\n".join(f"  {path}" for path in files))
    return 0


def _planned(knobs: list[str], config_dir: Path | None) -> list[PlannedRun]:
    """The configs that the knobs mean and that quantize a weight. Raises ConfigError."""
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError(f"--config-dir: {str(config_dir)!r} is not a folder")
    for knob in knobs:
        key = knob.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in SWEEP_KNOBS or key.startswith("hydra"):
            raise ConfigError(f"{excerpt(key)}: has no use here, where nothing is run")
    overrides, _ = prepare(knobs, config_dir and config_dir.resolve())
    asked = [run for run in plan(overrides, True, config_dir and config_dir.resolve()).runs if not run.added]
    for run in asked:
        if run.config is None:
            raise ConfigError(run.error or "")
        check_backend(run.config)
    runs = [run for run in asked if run.config is not None and _quantizes_weights(run)]
    if not runs:
        raise ConfigError(
            "format: no weight is quantized, so there is nothing to measure; give a format, as format=mxfp4"
        )
    return runs


def _quantizes_weights(run: PlannedRun) -> bool:
    assert run.config is not None
    recipe = run.config.recipe
    return any(formats.weight is not None for formats in (recipe.linear, *(formats for _, formats in recipe.modules)))


def _labels(runs: Sequence[PlannedRun]) -> list[str]:
    """What tells each config from the others, as typed; of a single one its weights' format."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    own = [[word for word in run.overrides if word not in common] for run in runs]
    if len(runs) == 1 or not all(own):
        return [run.config.format.name for run in runs if run.config is not None]
    knobs = {tuple(word.partition("=")[0] for word in words) for words in own}
    if len(knobs) == 1 and len(own[0]) == 1:  # one knob differs: its values say enough
        return [words[0].partition("=")[2] if not _is_number(words[0]) else words[0] for words in own]
    return [" ".join(words) for words in own]


def _is_number(word: str) -> bool:
    """Whether a knob's value means nothing without the knob's name."""
    return re.fullmatch(r"[\d.]+|true|false|none|null", word.partition("=")[2]) is not None


def _write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
