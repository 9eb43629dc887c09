"""Say what one run cost: against its baseline where one lies beside it, else by which command there will be one."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mxsweep.report.odd_records import SENSELESS
from mxsweep.report.plain_table import TERMINAL_WIDTH
from mxsweep.results.baselines import baseline_command, find_baselines
from mxsweep.results.groups import Results, read_results
from mxsweep.results.rows import Row
from mxsweep.study.group_study import BASELINE, TASK, Study, study_groups
from mxsweep.terminal.escapes import printable

log = logging.getLogger(__name__)

COST = "Cost"


def cost_text(folder: Path) -> str:
    """Return what a quantized run's tasks say of its cost, as a terminal shows it; empty of a run that is not done."""
    results = read_results(folder)
    try:
        seen = find_baselines(results)
        return _text(read_results([folder, *seen]) if seen else results, seen)
    except SENSELESS:  # of a baseline, whose record may be anybody's
        log.debug("no run is compared with %s", folder, exc_info=True)
        return _text(results, [])


def _text(results: Results, seen: Sequence[Path]) -> str:
    studied = study_groups(results)
    said = [_cost_line(study, len(studied) > 1) for study in studied if not all(row.is_baseline for row in study.rows)]
    commands = {command: None for study in studied if not study.has_baseline for command in _commands(study.rows)}
    lines = [textwrap.fill(line, TERMINAL_WIDTH, subsequent_indent="  ") for line in said if line]
    lines += [f"Compared with {path}" for path in seen]
    lines += [f"To know what this cost, run its baseline as well:\n  {command}" for command in commands]
    return printable("\n".join(lines))


def _cost_line(study: Study, named: bool) -> str | None:
    line = next((line for line in study.verdict.lines if line.title in (COST, BASELINE, TASK)), None)
    if line is None:
        return None
    return f"{line.title}{f' in {study.group.title}' if named else ''}: {line.text}"


def _commands(rows: list[Row]) -> list[str]:
    return [command for row in rows if (command := baseline_command(row)) is not None]
