"""Make all that is told of runs: the text for a terminal, and the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mxsweep.files.atomic import write_atomically
from mxsweep.report.data_files import run_data, write_run_csv, write_run_parquet
from mxsweep.report.figures.figure_files import draw_figures, make_figures, written_files
from mxsweep.report.latex import latex_text
from mxsweep.report.page.write_page import write_page
from mxsweep.report.result_texts import markdown_text, memory_text, terminal_text
from mxsweep.report.shared_paths import without_homes
from mxsweep.results.groups import Results
from mxsweep.study.group_study import Study
from mxsweep.study.memory_terms import Terms
from mxsweep.study.published import Reference
from mxsweep.terminal.interrupts import raise_lost_interrupt


def report_text(results: Results, studied: Sequence[Study], reference: Reference | None, terms: Terms) -> str:
    """Return what a terminal shows."""
    memory = memory_text(studied, terms)
    return terminal_text(results, reference, studied) + (f"\n\n{memory}" if memory else "")


def write_files(
    results: Results,
    studied: Sequence[Study],
    reference: Reference | None,
    terms: Terms,
    folder: Path,
    files: list[Path],
    *,
    draw: bool = True,
) -> dict[str, str]:
    """Write everything to `folder`, each file by itself and the page last, and note in `files` what is written.

    Args:
        draw: write the figures' pictures, too; else they are made, for the page.

    Returns:
        why a file is missing, by its name; figures that could not be drawn are a warning.
    """
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
    raise_lost_interrupt()  # which comes easily while pyarrow is imported; what is drawn now takes seconds
    drawn = draw_figures(studied, folder, terms) if draw else make_figures(studied, terms)[0]
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
