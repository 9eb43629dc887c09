"""Find the records that no report can be made of, so that it is made of the others.

A record that somebody else wrote may hold anything in the place of a number, a text or a mapping, in more places than
could be checked one by one. Where a report fails, each run is tried by itself, and then with those before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mxsweep.results.groups import read_results
from mxsweep.results.record import Folders, find_runs

SENSELESS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
MOST_TOGETHER = 300  # runs that are tried with each other: it takes the square of their number


def odd_runs(dirs: Folders) -> dict[Path, str]:
    """Return why runs cannot be reported, by their resolved folders; none where the fault lies in no record."""
    runs = [run.path for run in find_runs(dirs) if run.record is not None]
    odd = {path.resolve(): why for path in runs if (why := _why_not([path]))}
    left = [path for path in runs if path.resolve() not in odd]
    if len(left) > MOST_TOGETHER or _why_not(left) is None:
        return odd
    kept: list[Path] = []
    for path in left:
        if why := _why_not([*kept, path]):
            odd[path.resolve()] = why
        else:
            kept.append(path)
    return odd


def _why_not(folders: Sequence[Path]) -> str | None:
    """Return why no report can be made of runs; None where it can."""
    from mxsweep.report.data_files import run_data, write_run_csv, write_run_parquet
    from mxsweep.report.figures.error_heat_map import heat_map
    from mxsweep.report.figures.figure_files import group_figures
    from mxsweep.report.latex import latex_text
    from mxsweep.report.page.write_page import write_page
    from mxsweep.report.result_texts import markdown_text, memory_text, terminal_text
    from mxsweep.study.group_study import study_groups
    from mxsweep.study.memory_front import DEFAULT_TERMS

    if not folders:
        return None
    try:
        results = read_results(folders)
        studied = study_groups(results)
        with tempfile.TemporaryDirectory(prefix="mxsweep_") as temporary:
            data = run_data(results, studied)
            write_run_csv(Path(temporary) / "results.csv", data)
            write_run_parquet(Path(temporary) / "results.parquet", data)
            drawn = {each.group.slug: (group_figures(each), heat_map(each)) for each in studied}
            for figures, heat in drawn.values():
                for figure in [*figures, *([heat.figure] if heat else [])]:
                    figure.file_spec()
            write_page(results, studied, drawn, None, Path(temporary))
        markdown_text(results, {}, studied)
        latex_text(studied)
        terminal_text(results, None, studied)
        memory_text(studied, DEFAULT_TERMS)
    except SENSELESS as error:
        return f"makes no sense in its record: {type(error).__name__}: {error}"
    return None
