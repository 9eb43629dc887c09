"""Collect runs: make a text, tables, figures and a page of what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mxsweep.files.atomic import write_atomically
from mxsweep.results.record import STATUSES, Folders
from mxsweep.terminal.errors import CommandError
from mxsweep.terminal.escapes import printable

# What compares, draws and writes is imported where it is used: a wrong folder is answered without it.

if TYPE_CHECKING:
    from mxsweep.results.groups import Results
    from mxsweep.study.group_study import Study
    from mxsweep.study.memory_front import Terms
    from mxsweep.study.published import Reference


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
    from mxsweep.report.result_texts import memory_text, summary, terminal_text
    from mxsweep.results.baselines import find_baselines
    from mxsweep.results.groups import read_results
    from mxsweep.study.group_study import study_groups
    from mxsweep.study.memory_front import DEFAULT_TERMS
    from mxsweep.study.published import BadReferenceError, load_reference

    dirs = [dirs] if isinstance(dirs, Path | str) else list(dirs)
    try:
        published = load_reference(reference) if reference is not None else None
        results = read_results(dirs)
        if seen := find_baselines(results):
            results = read_results([*dirs, *seen])
    except (FileNotFoundError, BadReferenceError) as error:
        raise CollectError(str(error)) from error
    named = ", ".join(map(str, dirs))
    if not results.runs:
        raise CollectError(f"no run in {named}: no folder there holds a result.json or a .hydra folder")
    folder = Path(output) if output is not None else Path(dirs[0]) if len(dirs) == 1 else Path("collected")
    counts = {status: len(results.with_status(status)) for status in STATUSES}
    studied, terms = study_groups(results), terms or DEFAULT_TERMS
    text = f"{named}: {summary(results)}\n\n"
    if seen:
        text += f"Baseline{'s' * (len(seen) > 1)} from {', '.join(map(str, seen))}\n\n"
    text += terminal_text(results, published, studied)
    if memory := memory_text(studied, terms):
        text += f"\n\n{memory}"
    files: list[Path] = []
    write_error = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(results, studied, published, terms, folder, files)
    except OSError as error:
        files = []
        reason = error.strerror or str(error)
        write_error = f"cannot write to {folder}: {reason}; name another folder with --output"
    return CollectResult(printable(text), files, write_error=write_error, **counts)


def _write(
    results: Results,
    studied: Sequence[Study],
    reference: Reference | None,
    terms: Terms,
    folder: Path,
    files: list[Path],
) -> None:
    """Write everything to `folder`, and note in `files` what is written. Raises OSError."""
    from mxsweep.report.data_files import run_data, write_run_csv, write_run_parquet
    from mxsweep.report.figures.figure_files import draw_figures, written_files
    from mxsweep.report.latex import latex_text
    from mxsweep.report.page.write_page import write_page
    from mxsweep.report.result_texts import markdown_text
    from mxsweep.report.shared_paths import without_homes

    # The data first, so that they are there whatever becomes of the drawing.
    files += [folder / "results.csv", folder / "results.parquet"]
    data = run_data(results, studied)
    write_run_csv(files[0], data)
    write_run_parquet(files[1], data)
    drawn = draw_figures(studied, folder, terms)
    named = written_files(drawn)
    texts = {
        "results.md": markdown_text(results, named, studied, reference, terms),
        "results.tex": latex_text(studied),
    }
    for name, content in texts.items():
        files.append(folder / name)
        sign = r"\textasciitilde{}" if name.endswith(".tex") else "~"
        write_atomically(files[-1], without_homes(content, sign), durable=False)
    files += write_page(results, studied, drawn, reference, folder, terms)
    files += [path for paths in named.values() for path in paths]
