"""List what runs warn of, each warning once with the runs that give it, as every table's output shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mxsweep.report.wording import one_line
from mxsweep.results.knob_words import enumerate_names
from mxsweep.results.rows import Row

PROVEN_TITLE = "Not evaluated: proven to come out the same"
MOST_LETTERS = 1000  # of a warning
SEED = ", seed "  # in the names of runs that differ in it


def list_warnings(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    """Return the warnings of finished runs, in front of each the names of its runs, or "every run".

    Args:
        rows: of one run there may be several, one for each task.
        name: what a row's run is called.
    """
    runs = {row.run.path: row for row in rows}
    by_message: dict[str, list[str]] = {}
    for row in runs.values():
        for message in row.warnings:
            by_message.setdefault(one_line(message, MOST_LETTERS), []).append(name(row))
    return [
        f"{'every run' if len(names) == len(runs) else _enumerated(names)}: {message}"
        for message, names in by_message.items()
    ]


def _enumerated(names: Sequence[str]) -> str:
    """Return names one after another, those that differ in the seed alone as one."""
    seeds: dict[tuple[str, bool], list[str]] = {}  # a name without a seed is another than with some
    for name in names:
        config, _, seed = name.rpartition(SEED)
        if seed.isdigit():
            seeds.setdefault((config, True), []).append(seed)
        else:
            seeds[name, False] = []
    return enumerate_names([f"{name}{SEED}{' and '.join(of)}" if of else name for (name, _), of in seeds.items()])


def list_proven(rows: Sequence[Row], name: Callable[[Row], str]) -> list[str]:
    """Return the runs that were not evaluated, each with the run that proves what it comes to, and why.

    Args:
        rows: of one run there may be several, one for each task.
        name: what a row's run is called.
    """
    runs = {row.run.path: row for row in rows}
    names = {row.run.run_id: name(row) for row in runs.values()}
    lines = []
    for row in runs.values():
        if proof := row.proven_by:
            prover = str(proof.get("run_id"))
            reason = one_line(str(proof.get("reason")), MOST_LETTERS)
            lines.append(f"{name(row)}, by {names.get(prover, prover)}: {reason}")
    return lines
