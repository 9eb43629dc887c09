"""Collect runs: make a text, tables, figures and a page of what they leave."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mxsweep.results.record import STATUSES, Folders
from mxsweep.terminal.errors import CommandError
from mxsweep.terminal.escapes import printable

# What compares, draws and writes is imported where it is used: a wrong folder is answered without it.

if TYPE_CHECKING:
    from mxsweep.study.memory_terms import Terms
    from mxsweep.study.published import Reference

log = logging.getLogger(__name__)


class CollectError(CommandError):
    """Refuse to collect where there is nothing; the message names the folder."""


@dataclass(frozen=True)
class CollectResult:
    """Hold what was collected: a text to print, the files written, and how many runs ended how."""

    text: str
    files: list[Path] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    running: int = 0
    missing: int = 0
    unreadable: int = 0
    write_error: str | None = None  # why files are missing; the text is complete all the same


def import_report() -> None:
    """Import what collecting takes, while there is nothing else to do."""
    with contextlib.suppress(Exception):  # of a broken package, of any kind: whoever collects says it, after the runs
        import pandas  # noqa: F401
        import pyarrow.parquet  # noqa: F401

        import mxsweep.report.odd_records
        import mxsweep.report.written_report  # noqa: F401


def collect(
    dirs: Folders,
    output: Path | str | None = None,
    reference: str | Path | None = None,
    terms: Terms | None = None,
) -> CollectResult:
    """Collect the runs at or below `dirs` and write tables, figures and report.html to `output`.

    `output` is by default the folder collected or, if there are several, ./collected. `reference` is published
    numbers to put beside: a name in conf/reference, or a YAML file. `terms` say at which context memory is counted,
    and how much worse than the baseline a run may be. Raises CollectError where there is no run, or no such reference;
    failed, running, missing and unreadable runs are no error but are listed. Where runs have no baseline among them,
    one that lies beside them is taken.
    """
    from mxsweep.report.figures.draw import drawing_ahead
    from mxsweep.report.odd_records import SENSELESS, odd_runs
    from mxsweep.study.memory_terms import DEFAULT_TERMS
    from mxsweep.study.published import BadReferenceError, load_reference

    dirs = [dirs] if isinstance(dirs, Path | str) else list(dirs)
    try:
        published = load_reference(reference) if reference is not None else None
    except (FileNotFoundError, BadReferenceError) as error:
        raise CollectError(str(error)) from error
    terms = terms or DEFAULT_TERMS
    odd: dict[Path, str] = {}
    while True:
        seen: list[Path] = []
        try:
            with drawing_ahead():
                return _collect(dirs, output, published, terms, odd, seen)
        except CommandError:
            raise
        except SENSELESS:
            log.debug("no report can be made: looking for the record", exc_info=True)
            # Of the baselines that were taken, too. Each time it is fewer runs.
            if not (found := odd_runs([*dirs, *seen], odd, published, terms)):
                raise
            odd |= found


def _collect(
    dirs: list[Path | str],
    output: Path | str | None,
    reference: Reference | None,
    terms: Terms,
    unreadable: Mapping[Path, str],
    seen: list[Path],
) -> CollectResult:
    """Collect as `collect` does, but for the runs in `unreadable` folders, which are listed with the reason.

    The baselines that are taken are put into `seen`.
    """
    from mxsweep.report.result_texts import summary
    from mxsweep.report.written_report import report_text, write_files
    from mxsweep.results.baselines import find_baselines
    from mxsweep.results.groups import read_results
    from mxsweep.study.group_study import study_groups

    try:
        results = read_results(dirs, unreadable)
        seen += find_baselines(results)
        if seen:
            results = read_results([*dirs, *seen], unreadable)
    except FileNotFoundError as error:
        raise CollectError(str(error)) from error
    named = ", ".join(map(str, dirs))
    if not results.runs:
        raise CollectError(f"no run in {named}: no folder there holds a result.json or a .hydra folder")
    folder = Path(output) if output is not None else Path(dirs[0]) if len(dirs) == 1 else Path("collected")
    counts = {status: len(results.with_status(status)) for status in STATUSES}
    studied = study_groups(results, terms.context)
    text = f"{named}: {summary(results)}\n\n"
    if taken := [path for path in seen if path.resolve() not in unreadable]:
        text += f"Baseline{'s' * (len(taken) > 1)} from {', '.join(map(str, taken))}\n\n"
    text += report_text(results, studied, reference, terms)
    files: list[Path] = []
    missing: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = write_files(results, studied, reference, terms, folder, files)
    except OSError as error:
        missing = {"all files": error.strerror or str(error)}
    write_error = None
    if missing:
        reasons = ", ".join(dict.fromkeys(missing.values()))
        write_error = (
            f"cannot write to {folder}: {reasons}; missing, or as they were before: {', '.join(missing)}; name another "
            "folder with --output"
        )
    return CollectResult(printable(text), files, write_error=write_error and printable(write_error), **counts)
