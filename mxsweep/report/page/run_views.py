"""Make the full table of a group: every run with its cells, and the config, command and files it opens to."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mxsweep.report.columns import Output
from mxsweep.report.run_table import run_table
from mxsweep.report.table import Cell, Table
from mxsweep.report.wording import ABSENT
from mxsweep.results.knob_words import knob_title
from mxsweep.results.manifest import MANIFEST_NAME, ManifestError, read_manifest
from mxsweep.results.metrics import short_title
from mxsweep.results.record import (
    CURVES_NAME,
    DIAGNOSTICS_NAME,
    LM_EVAL_NAME,
    LOG_NAME,
    NOISE_NAME,
    RECORD_NAME,
    ROLES_NAME,
    SAMPLES_NAME,
)
from mxsweep.results.remedies import remedy_sentences
from mxsweep.results.rows import Row, label
from mxsweep.study.group_study import Study, count_values

LINKED = (
    RECORD_NAME,
    SAMPLES_NAME,
    CURVES_NAME,
    ROLES_NAME,
    DIAGNOSTICS_NAME,
    NOISE_NAME,
    LM_EVAL_NAME,
    LOG_NAME,
)


@dataclass(frozen=True)
class RunView:
    """Describe a run in the full table: its cells, and what it opens to."""

    number: int
    run_id: str
    cells: list[Cell]
    is_baseline: bool
    values: dict[str, str]  # of the knobs that can be filtered and grouped by
    command: str
    folder: str | None  # relative to the page
    files: list[tuple[str, str]]  # name and link
    config: str
    note: str = ""  # why it cannot be compared
    remedy_outcomes: list[str] = field(default_factory=list)  # what its searches and budgets came to


@dataclass(frozen=True)
class RunTable:
    """Hold the full table of a group.

    Attributes:
        knobs: those worth filtering by, with their values.
        key: the column that stays in view, of the change that runs are ranked by, which is the first; None where
            there is none.
    """

    columns: list[str]
    numeric: set[int]
    knobs: dict[str, list[str]]
    runs: list[RunView] = field(default_factory=list)
    key: int | None = None


def run_views(study: Study, page: Path) -> RunTable:
    """Return every run of the group with what it opens to; links are relative to the folder `page`."""
    group = study.group
    table, key = _with_key_first(study, run_table(study.results, group, Output.PAGE, study.comparisons))
    knobs = [name for name in study.results.shown if name in table.columns]
    folders = _Folders(page)
    runs = []
    for number, (row, cells) in enumerate(zip(group.rows, table.rows, strict=True), 1):
        runs.append(
            folders.view(number, row, cells, {name: label(row.knobs.get(name, ABSENT)) for name in knobs}, study)
        )
    filters = {name: _in_order(runs, name) for name in knobs if count_values(group.rows, name) > 1}
    titles = {name: knob_title(name) for name in knobs}
    columns = [titles.get(name, name) for name in table.columns]
    return RunTable(columns, table.numeric, {titles[name]: values for name, values in filters.items()}, runs, key)


def _with_key_first(study: Study, table: Table) -> tuple[Table, int | None]:
    """Return the table with the change that runs are ranked by in front, so that it covers nothing as it stays."""
    metric = study.verdict.metric or study.group.main_metric()
    titles = [f"Δ {short_title(metric)}", short_title(metric)] if metric else []
    key = next((table.columns.index(title) for title in titles if title in table.columns), None)
    if key is None:
        return table, None
    order = [key, *(index for index in range(len(table.columns)) if index != key)]
    rows = [[row[index] for index in order] for row in table.rows]
    return replace(table, columns=[table.columns[index] for index in order], rows=rows, text_columns=frozenset()), 0


def _in_order(runs: Iterable[RunView], name: str) -> list[str]:
    return list(dict.fromkeys(run.values[name] for run in runs))


@dataclass
class _Folders:
    """Know where runs lie, seen from the page, and what was typed to begin their sweeps."""

    page: Path
    commands: dict[Path, str] = field(default_factory=dict)  # of a sweep: how a command begins

    def view(self, number: int, row: Row, cells: list[Cell], values: dict[str, str], study: Study) -> RunView:
        start = self._command(row.run.path.parent)
        comparison = study.comparisons.get(row.run.path)
        return RunView(
            number,
            row.run.run_id,
            cells,
            row.is_baseline,
            values,
            " ".join([start, *map(shlex.quote, row.run.overrides)]),
            self.link(row.run.path),
            [(name, f"{self.link(row.run.path)}/{name}") for name in _listed(row.run.path)],
            "\n".join(config_lines((row.run.record or {}).get("config") or {})),
            (comparison.why_not or comparison.note or "") if comparison else "",
            remedy_sentences(row.run.record),
        )

    def link(self, path: Path) -> str:
        """Return a path relative to the page, as a link."""
        return quote(Path(os.path.relpath(path.resolve(), self.page.resolve())).as_posix()) or "."

    def _command(self, sweep: Path) -> str:
        if sweep not in self.commands:
            start = "python -m mxsweep"
            try:
                manifest = read_manifest(sweep) if (sweep / MANIFEST_NAME).is_file() else None
            except ManifestError:
                manifest = None
            # Of several commands it is not known which one a run came from.
            if manifest and len(manifest.commands) == 1:
                command = manifest.commands[0]
                if command.config_dir:
                    start += f" --config-dir {shlex.quote(Path(command.config_dir).name)}"
            self.commands[sweep] = start
        return self.commands[sweep]


def _listed(folder: Path) -> list[str]:
    try:
        there = set(os.listdir(folder))
    except OSError:
        return []
    return [name for name in LINKED if name in there]


def config_lines(config: dict[str, Any], indent: str = "") -> list[str]:
    """Return a config as lines of YAML, near enough to read."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *config_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {label(value)}")
    return lines
