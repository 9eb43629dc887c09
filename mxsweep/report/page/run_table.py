"""The full table of a group: every run with its cells, and the config, command and files that it opens to."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mxsweep.report.page.cells import Cell, interval_cell
from mxsweep.report.wording import (
    ABSENT,
    difference,
    format_value,
    metric_cell,
    p_of,
    p_value,
    significance,
    size,
    speed,
)
from mxsweep.results.manifest import MANIFEST_NAME, ManifestError, read_manifest
from mxsweep.results.metrics import betterness, short_title
from mxsweep.results.remedies import what_was_found
from mxsweep.results.rows import Row, label
from mxsweep.study.group_study import Study, values_of

LINKED = ("result.json", "samples.parquet", "diagnostics.parquet", "noise.parquet", "lm_eval.json", "mxsweep.log")


@dataclass(frozen=True)
class RunView:
    """A run in the full table: its cells, and what it opens to."""

    number: int
    run_id: str
    cells: list[Cell]
    is_baseline: bool
    values: dict[str, str]  # of the knobs that can be filtered and grouped by
    command: str
    where: str  # the folder that the command was typed in, if known
    folder: str | None  # relative to the page
    files: list[tuple[str, str]]  # name and link
    config: str
    note: str = ""  # why it cannot be compared
    found: list[str] = field(default_factory=list)  # by its remedies


@dataclass(frozen=True)
class RunTable:
    """The full table of a group."""

    columns: list[str]
    numeric: set[int]
    knobs: dict[str, list[str]]  # those worth filtering by, with their values
    runs: list[RunView] = field(default_factory=list)


def run_table(study: Study, page: Path) -> RunTable:
    """Every run of the group; links are relative to the folder `page`."""
    results, group = study.results, study.group
    metrics = group.metric_names()
    compared = {name for name in metrics for c in study.against.values() if p_of(c, name) is not None}
    knobs = [name for name in results.shown if any(name in row.knobs for row in group.rows)]
    has = {
        "bits": any(row.bits_per_weight is not None for row in group.rows),
        "size": any(row.parameter_bytes is not None for row in group.rows),
        "kl": any(row.kl_nats is not None for row in group.rows),
    }
    columns: list[str] = list(knobs)
    for name in metrics:
        title = short_title(name)
        columns.append(title)
        if study.has_baseline and betterness(name):
            columns.append(f"Δ {title}")
        if name in compared:
            columns += [f"Δ {title}, 95 %", f"p, {title}"]
    columns += ["KL, nats", "same top token"] * has["kl"] + ["bits/weight"] * has["bits"] + ["MB"] * has["size"]
    columns += ["n", "eval_time_s", "examples/sec", "run_id"]
    folders = _Folders(page)
    runs = []
    for number, row in enumerate(group.rows, 1):
        cells = [_knob_cell(row, name) for name in knobs]
        for name in metrics:
            cells += _metric_cells(study, row, name, name in compared)
        cells += _measured(row, has)
        runs.append(
            folders.view(number, row, cells, {name: label(row.knobs.get(name, ABSENT)) for name in knobs}, study)
        )
    filters = {name: _in_order(runs, name) for name in knobs if values_of(group.rows, name) > 1}
    table = RunTable(columns, set(), filters, runs)
    table.numeric.update(i for i in range(len(columns)) if any(run.cells[i].key is not None for run in runs))
    return table


def _in_order(runs: Iterable[RunView], name: str) -> list[str]:
    return list(dict.fromkeys(run.values[name] for run in runs))


def _knob_cell(row: Row, name: str) -> Cell:
    if name not in row.knobs:
        return Cell(ABSENT)
    value = row.knobs[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(label(value), float(value) if number else None)


def _metric_cells(study: Study, row: Row, name: str, compared: bool) -> list[Cell]:
    value = row.metrics.get(name)
    cells = [Cell(metric_cell(row, name), value)]
    baseline = study.baselines[row.run.path]
    if study.has_baseline and betterness(name):
        base = baseline.metrics.get(name) if baseline and not row.is_baseline else None
        change = value - base if value is not None and base is not None else None
        cells.append(Cell(difference(row, baseline, name), change))
    if compared:
        comparison = study.against.get(row.run.path)
        p = p_of(comparison, name)
        verdict = significance(comparison, name)
        cells.append(interval_cell(comparison, name))
        cells.append(Cell(p_value(p) + (f" {_mark(verdict)}" if verdict else ""), p))
    return cells


def _mark(verdict: str) -> str:
    return "○ noise" if "noise" in verdict else "●" if verdict.startswith("significant") else "○"


def _measured(row: Row, has: dict[str, bool]) -> list[Cell]:
    cells = []
    if has["kl"]:
        kl, same = row.kl_nats, row.top1_agreement
        cells += [
            Cell(ABSENT if kl is None else f"{kl:.4g}", kl),
            Cell(ABSENT if same is None else f"{same:.2%}", same),
        ]
    if has["bits"]:
        cells.append(Cell(format_value(row.bits_per_weight), row.bits_per_weight))
    if has["size"]:
        cells.append(Cell(size(row.parameter_bytes), row.parameter_bytes))
    return [
        *cells,
        Cell(ABSENT if row.n is None else f"{row.n:g}", row.n),
        Cell(speed(row.eval_time_s), row.eval_time_s),
        Cell(speed(row.examples_per_sec), row.examples_per_sec),
        Cell(row.run.run_id),
    ]


@dataclass
class _Folders:
    """Where runs lie, seen from the page; what was typed to begin their sweeps."""

    page: Path
    commands: dict[Path, tuple[str, str]] = field(default_factory=dict)  # of a sweep: the start of a command, and where

    def view(self, number: int, row: Row, cells: list[Cell], values: dict[str, str], study: Study) -> RunView:
        start, where = self._command(row.run.path.parent)
        comparison = study.against.get(row.run.path)
        return RunView(
            number,
            row.run.run_id,
            cells,
            row.is_baseline,
            values,
            " ".join([start, *map(shlex.quote, row.run.overrides)]),
            where,
            self.link(row.run.path),
            [(name, f"{self.link(row.run.path)}/{name}") for name in _listed(row.run.path)],
            "\n".join(config_lines((row.run.record or {}).get("config") or {})),
            (comparison.why_not or comparison.note or "") if comparison else "",
            what_was_found(row.run.record),
        )

    def link(self, path: Path) -> str:
        """A path relative to the page, as a link."""
        return quote(Path(os.path.relpath(path.resolve(), self.page.resolve())).as_posix()) or "."

    def _command(self, sweep: Path) -> tuple[str, str]:
        if sweep not in self.commands:
            start, where = "python -m mxsweep", ""
            try:
                manifest = read_manifest(sweep) if (sweep / MANIFEST_NAME).is_file() else None
            except ManifestError:
                manifest = None
            # Of several commands it is not known which one a run came from.
            if manifest and len(manifest.commands) == 1:
                command = manifest.commands[0]
                where = command.cwd or ""
                start += f" --config-dir {shlex.quote(command.config_dir)}" if command.config_dir else ""
            self.commands[sweep] = start, where
        return self.commands[sweep]


def _listed(folder: Path) -> list[str]:
    try:
        there = set(os.listdir(folder))
    except OSError:
        return []
    return [name for name in LINKED if name in there]


def config_lines(config: dict[str, Any], indent: str = "") -> list[str]:
    """A config as YAML would have it, near enough to read."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *config_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {label(value)}")
    return lines
