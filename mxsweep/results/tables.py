"""Results as text: the table in the terminal, results.md, results.csv and results.parquet.

A cell shows as many digits as its standard error makes meaningful; the files for programs hold all of them.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from mxsweep.results.collect import Group, Results, columns
from mxsweep.results.record import RunFolder
from mxsweep.results.rows import Row, betterness, label

ABSENT = "–"
METRIC_TITLES = {"perplexity": "ppl", "word_perplexity": "word ppl"}
NO_BASELINE = (
    "No baseline among these runs, so no differences are given. A baseline is the same model, task and limit "
    "with nothing quantized: run it with `format=none kv_quant=none` and collect both folders together."
)
HEADLINE_NOTE = (
    "A difference is the run minus the baseline, computed when the results were collected; ± is one standard "
    "error of the run by itself. Most accurate and fastest are chosen among the quantized runs."
)
SPEED_NOTE = "examples/sec is the speed of simulating a format on this computer, not of hardware that has the format."
SEVERAL_TASKS_NOTE = "eval_time_s and examples/sec are those of the whole run, all its tasks together."
STATUS_TITLES = {
    "failed": "Failed",
    "running": "Running",
    "missing": "Missing (no result.json)",
    "unreadable": "Unreadable",
}


@dataclass(frozen=True)
class Pick:
    """A run that the headline names, and the baseline that it is compared with."""

    title: str
    row: Row
    baseline: Row | None


def headline(group: Group) -> list[Pick]:
    """The baseline, and of a group's quantized runs the most accurate and the fastest, if there are any."""
    quantized = [row for row in group.rows if not row.is_baseline]
    picks: list[Pick] = []
    metric = group.main_metric()
    measured = [row for row in quantized if math.isfinite(row.metrics.get(metric or "", math.nan))]
    if metric and measured:
        best = max(measured, key=lambda row: betterness(metric) * row.metrics[metric])
        title = "most accurate" if betterness(metric) > 0 else f"lowest {METRIC_TITLES.get(metric, metric)}"
        equals = sum(row.metrics[metric] == best.metrics[metric] for row in measured) - 1
        title += f" ({equals} more equal it)" if equals else ""
        picks.append(Pick(title, best, group.baseline_for(best)))
    timed = [row for row in quantized if row.examples_per_sec is not None and math.isfinite(row.examples_per_sec)]
    if timed:
        fastest = max(timed, key=lambda row: row.examples_per_sec or 0.0)
        picks.append(Pick("fastest to simulate", fastest, group.baseline_for(fastest)))
    references = [pick.baseline for pick in picks] or [row for row in group.rows if row.is_baseline][:1]
    baselines = {row.run.path: Pick("baseline", row, None) for row in references if row is not None}
    return [*baselines.values(), *picks]


def summary(results: Results) -> str:
    """How many runs there are, by what became of them."""
    counts = {status: len(results.with_status(status)) for status in ("done", *STATUS_TITLES)}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "done")


def constants_line(results: Results) -> str:
    """The knobs that the tables leave out because they are the same in every run."""
    knobs = (f"{name}={label(value)}" for name, value in results.constants.items())
    return "Same in every finished run: " + ", ".join(knobs)


def terminal_text(results: Results) -> str:
    """What `python -m mxsweep.collect` prints: a table for each group, then what is not done and why."""
    parts = [constants_line(results)] if results.constants else []
    for group in results.groups:
        table = tabulate(_full_table(results, group), headers="keys", tablefmt="simple", disable_numparse=True)
        parts.append(f"{_heading(group)}\n\n{table}")
        if not any(row.is_baseline for row in group.rows):
            parts.append(NO_BASELINE.replace("`", ""))
    if results.groups:
        parts.append(SPEED_NOTE)
    if _has_several_tasks(results):
        parts.append(SEVERAL_TASKS_NOTE)
    if warned := _warnings(results):
        parts.append("\n".join(["Warnings", *(f"  {line}" for line in warned)]))
    for status, title in STATUS_TITLES.items():
        if runs := results.with_status(status):
            lines = [f"{title}: {len(runs)}"]
            for run in runs:
                lines.append(f"  {run.path}  {' '.join(run.overrides)}".rstrip())
                lines.append(f"      {one_line(run.reason, 300)}")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def markdown_text(results: Results, figures: Mapping[str, Sequence[Path]]) -> str:
    """results.md: for each group headline, full table and `figures` (by slug), then the runs not done."""
    parts = ["# Results", f"Runs: {summary(results)}."]
    if results.constants:
        parts.append(_escape(constants_line(results)) + ".")
    for group in results.groups:
        parts += [
            f"## {_escape(_heading(group))}",
            "### Headline",
            _markdown(_headline_table(results, group)),
        ]
        if not any(row.is_baseline for row in group.rows):
            parts.append(NO_BASELINE)
        parts += [f"{HEADLINE_NOTE} {SPEED_NOTE}", "### All runs", _markdown(_full_table(results, group))]
        if _has_several_tasks(results):
            parts.append(SEVERAL_TASKS_NOTE)
        parts += [
            f"![{path.stem.replace('_', ' ')}]({path.name})"
            for path in figures.get(group.slug, [])
            if path.suffix == ".png"
        ]
    if warned := _warnings(results):
        parts += ["## Warnings", "\n".join(f"- {_escape(line)}" for line in warned)]
    for status, title in STATUS_TITLES.items():
        if runs := results.with_status(status):
            parts += [f"## {title}: {len(runs)}", _markdown([_failure(run) for run in runs])]
    return "\n\n".join(parts) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every row and column. An empty cell has no value; a metric that came out NaN reads nan."""
    table = columns(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Every row and column, typed. Written without pandas, which would make one thing of null and NaN."""
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table(columns(rows)), path)


def format_value(value: float | None, stderr: float | None = None, digits: int | None = None) -> str:
    """A metric for reading: to two digits of its standard error or, where given, to `digits` decimals."""
    if value is None:
        return ABSENT
    error = stderr if stderr is not None and math.isfinite(stderr) and stderr > 0 else None
    if not math.isfinite(value):
        text = f"{value:g}"
    elif abs(value) >= 1e7:
        text = f"{value:.3e}"
    elif digits is not None or error:
        digits = digits if digits is not None else min(6, max(0, 1 - math.floor(math.log10(error or 1))))
        text = f"{value:.{digits}f}"
    else:
        text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
    if stderr is None:
        return text
    return f"{text} ± {stderr:.{digits}f}" if digits is not None else f"{text} ± {stderr:.2g}"


def _has_several_tasks(results: Results) -> bool:
    return any(len((run.record or {}).get("metrics", {})) > 1 for run in results.with_status("done"))


def _warnings(results: Results) -> list[str]:
    """What finished runs warn of, each once, with the runs that do: all, or by their ids."""
    done = results.with_status("done")
    by_message: dict[str, list[str]] = {}
    for run in done:
        for message in (run.record or {}).get("warnings") or []:
            by_message.setdefault(one_line(str(message), 300), []).append(run.run_id)
    return [
        f"{'every run' if len(ids) == len(done) else ', '.join(ids)}: {message}" for message, ids in by_message.items()
    ]


def _heading(group: Group) -> str:
    counts = {row.n for row in group.rows}
    return group.title + (f" (n = {counts.pop()})" if len(counts) == 1 and None not in counts else "")


def _knob_cells(results: Results, row: Row) -> dict[str, str]:
    return {name: label(row.knobs[name]) if name in row.knobs else ABSENT for name in results.shown}


def _metric_cell(row: Row, name: str) -> str:
    digits = 4 if betterness(name) > 0 else None
    return format_value(row.metrics.get(name), row.metrics.get(f"{name}_stderr"), digits)


def _speed(value: float | None) -> str:
    return format_value(value, digits=1 if value is not None and value >= 10 else 2)


def _full_table(results: Results, group: Group) -> list[dict[str, str]]:
    same_n = len({row.n for row in group.rows}) == 1
    has_baseline = any(row.is_baseline for row in group.rows)
    table = []
    for row in group.rows:
        cells = _knob_cells(results, row)
        for name in group.metric_names():
            title = METRIC_TITLES.get(name, name)
            cells[title] = _metric_cell(row, name)
            if has_baseline and betterness(name):
                cells[f"Δ {title}"] = _difference(row, group.baseline_for(row), name)
        if not same_n:
            cells["n"] = ABSENT if row.n is None else str(row.n)
        cells["eval_time_s"] = _speed(row.eval_time_s)
        cells["examples/sec"] = _speed(row.examples_per_sec)
        table.append(cells | {"run_id": row.run.run_id})
    return table


def _headline_table(results: Results, group: Group) -> list[dict[str, str]]:
    """The picks, each metric followed by its difference from the pick's baseline."""
    known = [name for name in group.metric_names() if betterness(name)]
    table = []
    for pick in headline(group):
        cells = {"": pick.title, **_knob_cells(results, pick.row)}
        for name in known:
            title = METRIC_TITLES.get(name, name)
            cells[title] = _metric_cell(pick.row, name)
            cells[f"Δ {title}"] = _difference(pick.row, pick.baseline, name)
        cells["examples/sec"] = _speed(pick.row.examples_per_sec)
        base = pick.baseline.examples_per_sec if pick.baseline else None
        speed = pick.row.examples_per_sec
        cells["speed / baseline"] = f"{speed / base:.2f}" if speed is not None and base else ABSENT
        table.append(cells | {"run_id": pick.row.run.run_id})
    return table


def _difference(row: Row, baseline: Row | None, name: str) -> str:
    """The run's metric minus the baseline's, to the digits of the metric; of a perplexity, whose size says little by
    itself, also in %.
    """
    value = row.metrics.get(name)
    base = baseline.metrics.get(name) if baseline and not row.is_baseline else None
    if value is None or base is None or not (math.isfinite(value) and math.isfinite(base)):
        return ABSENT
    if betterness(name) > 0:
        return f"{value - base:+.4f}"
    digits = len(format_value(value, row.metrics.get(f"{name}_stderr")).split(" ")[0].partition(".")[2])
    return f"{value - base:+.{digits}f} ({value / base - 1:+.1%})" if base else f"{value - base:+.{digits}f}"


def _failure(run: RunFolder) -> dict[str, str]:
    overrides = " ".join(run.overrides) or ABSENT
    return {"folder": str(run.path), "overrides": overrides, "reason": one_line(run.reason)}


def one_line(text: str | None, most: int = 2000) -> str:
    """A text for a cell or a list, cut where it is long."""
    line = " ".join((text or "").split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _escape(text: str) -> str:
    return re.sub(r"([|*<`\\])", r"\\\1", text)


def _markdown(table: list[dict[str, str]]) -> str:
    """A GitHub table; of nothing, a sentence."""
    if not table:
        return "None."
    escaped = [{key: _escape(cell) for key, cell in row.items()} for row in table]
    return tabulate(escaped, headers="keys", tablefmt="github", disable_numparse=True)
