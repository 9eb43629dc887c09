"""Collect runs: make a text, tables, figures and a page of what they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
    from mxsweep.report.odd_records import SENSELESS, odd_runs

    try:
        return _collect(dirs, output, reference, terms, {})
    except CommandError:
        raise
    except SENSELESS:
        if not (odd := odd_runs(dirs)):
            raise
    return _collect(dirs, output, reference, terms, odd)


def _collect(
    dirs: Folders,
    output: Path | str | None,
    reference: str | Path | None,
    terms: Terms | None,
    unreadable: Mapping[Path, str],
) -> CollectResult:
    """Collect as `collect` does, but for the runs in `unreadable` folders, which are listed with the reason."""
    from mxsweep.report.result_texts import memory_text, summary, terminal_text
    from mxsweep.results.baselines import find_baselines
    from mxsweep.results.groups import read_results
    from mxsweep.study.group_study import study_groups
    from mxsweep.study.memory_front import DEFAULT_TERMS
    from mxsweep.study.published import BadReferenceError, load_reference

    dirs = [dirs] if isinstance(dirs, Path | str) else list(dirs)
    try:
        published = load_reference(reference) if reference is not None else None
        results = read_results(dirs, unreadable)
        if seen := find_baselines(results):
            results = read_results([*dirs, *seen], unreadable)
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
    missing: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = _write(results, studied, published, terms, folder, files)
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


def _write(
    results: Results,
    studied: Sequence[Study],
    reference: Reference | None,
    terms: Terms,
    folder: Path,
    files: list[Path],
) -> dict[str, str]:
    """Write everything to `folder`, each file by itself and the page last, and note in `files` what is written.

    Returns:
        why a file is missing, by its name; figures that could not be drawn are a warning.
    """
    from mxsweep.report.data_files import run_data, write_run_csv, write_run_parquet
    from mxsweep.report.figures.figure_files import draw_figures, written_files
    from mxsweep.report.latex import latex_text
    from mxsweep.report.page.write_page import write_page
    from mxsweep.report.result_texts import markdown_text
    from mxsweep.report.shared_paths import without_homes

    missing: dict[str, str] = {}

    def write(name: str, act: Callable[[Path], object]) -> None:
        try:
            act(folder / name)
            files.append(folder / name)
        except OSError as error:
            missing[name] = error.strerror or str(error)

    # The data first, so that they are there whatever becomes of the drawing.
    data = run_data(results, studied)
    write("results.csv", lambda path: write_run_csv(path, data))
    write("results.parquet", lambda path: write_run_parquet(path, data))
    drawn = draw_figures(studied, folder, terms)
    for figures, heat in drawn.values():
        for figure in [*figures, *([heat.figure] if heat else [])]:
            missing |= {f"{name}.*": why for name, why in figure.unwritten.items()}
    named = written_files(drawn)
    texts = {
        "results.md": without_homes(markdown_text(results, named, studied, reference, terms)),
        "results.tex": without_homes(latex_text(studied), r"\textasciitilde{}"),
    }
    for name, content in texts.items():
        write(name, partial(write_atomically, content=content, durable=False))
    try:
        files += write_page(results, studied, drawn, reference, folder, terms)
    except OSError as error:
        missing["report.html"] = error.strerror or str(error)
    files += [path for paths in named.values() for path in paths]
    return missing
