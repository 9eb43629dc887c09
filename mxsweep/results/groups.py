"""Make records comparable: the rows of many runs, the knobs that tell them apart, and groups.

    group    the rows that may be compared: same model, task and limit, and same conditions of evaluation; where
             records hold identities, the model and the data are the same by their content, whatever their names
    shown    the knobs that vary among the rows; the others are said once, above the tables

Differences from the baseline are computed here, whenever results are collected, and never stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.config import knobs
from mxsweep.config.knob import UNSET, Scope
from mxsweep.config.kv_options import GROUP, is_kv_option, kv_remedies
from mxsweep.config.runtimes import RUNTIMES
from mxsweep.results import identity
from mxsweep.results.guessing import guesses
from mxsweep.results.kv_names import with_kv_options
from mxsweep.results.metrics import betterness, main_metric
from mxsweep.results.record import VALIDATION, Folders, RunFolder, find_runs, natural_key
from mxsweep.results.remedies import ladder_of
from mxsweep.results.rows import Row, label, read_rows
from mxsweep.results.studies import ENVIRONMENT, STUDY, study_names, with_studies, without_repeats

COMPARABLE = knobs.telling_metrics_apart(labelled=True)  # rows that differ in one of these are never compared
# Nor are rows that differ in one of these.
CONDITIONS = (*knobs.telling_metrics_apart(labelled=False), identity.MODEL, identity.DATA, ENVIRONMENT)


@dataclass(frozen=True)
class Group:
    """Hold rows that may be compared with each other; the baselines come first."""

    title: str
    slug: str  # for file names
    rows: list[Row]
    conditions: dict[str, str] = field(default_factory=dict)  # what the group's rows have the same of: knob to label

    def baseline_for(self, row: Row) -> Row | None:
        """Return the row's own baseline, else the one with the nearest config (dtype, seed), the first of equals.

        Of several of its own, which came out differently, that of its study.
        """
        baselines = [other for other in self.rows if other.is_baseline]

        def agreement(baseline: Row) -> tuple[bool, bool, int]:
            same = sum(key in row.knobs and row.knobs[key] == value for key, value in baseline.knobs.items())
            return identity.is_own_baseline(baseline, row), _share_a_study(baseline, row), same

        return max(baselines, key=agreement) if len(baselines) > 1 else next(iter(baselines), None)

    def guessing_baselines(self) -> list[Row]:
        """Return the baselines, of those that quantized rows have, that know no more of the task than a guess does."""
        own = {row.run.path: row for one in self.rows if not one.is_baseline and (row := self.baseline_for(one))}
        return [row for row in own.values() if guesses(row)]

    def metric_names(self) -> list[str]:
        """List the metrics worth a column: the known ones, or all there are if none is known."""
        names = sorted({name for row in self.rows for name in row.metrics if not name.endswith("_stderr")})
        known = sorted((name for name in names if betterness(name)), key=betterness, reverse=True)
        return known or names

    def main_metric(self) -> str | None:
        """Return the metric that says which run is the best, if one does."""
        return main_metric(self.metric_names())


@dataclass(frozen=True)
class Results:
    """Hold everything collected from some folders."""

    runs: list[RunFolder]
    rows: list[Row]  # of all runs: those of done runs first, in the tables' order
    groups: list[Group]  # of done runs
    shown: list[str]
    constants: dict[str, Any]
    studies: list[str] = field(default_factory=list)  # their names, where there are several
    repeats: int = 0  # rows left out, which are others once more

    def with_status(self, status: str) -> list[RunFolder]:
        """Return the runs that ended with this status."""
        return [run for run in self.runs if run.status == status]


def read_results(dirs: Folders, unreadable: Mapping[Path, str] | None = None) -> Results:
    """Read every run at or below `dirs` and sort out what can be compared with what.

    `unreadable` names folders, resolved, whose records are not to be read, and why.
    """
    dirs = [dirs] if isinstance(dirs, Path | str) else list(dirs)
    runs, studies = find_runs(dirs), study_names(dirs)
    runs = [
        RunFolder(run.path, "unreadable", reason=why, overrides=run.overrides)
        if (why := (unreadable or {}).get(run.path.resolve()))
        else run
        for run in runs
    ]
    rows = with_studies([row for run in runs for row in read_rows(run)], studies)
    finished = [row for row in rows if row.run.status == "done"]
    done = identity.with_identities(with_kv_options(without_repeats(finished)))
    repeats = len(finished) - len(done)
    rest = [row for row in rows if row.run.status != "done"]
    shown = [name for name in knobs.labels() if name not in COMPARABLE and len(_values(done, name)) > 1]
    shown += [name for name in _other_knobs(done) if name not in CONDITIONS and _tells(done, name)]
    if distinguishing_knobs(done, (*COMPARABLE, *CONDITIONS, *shown), [STUDY]):
        shown = [STUDY, *shown]
    groups = _groups(done, shown)
    said = [name for group in groups[:1] for name in group.conditions]
    done = [row for group in groups for row in group.rows]
    several = list(studies.values()) if len(studies) > 1 else []
    return Results(runs, done + rest, groups, shown, _constants(done, (*said, *shown)), several, repeats)


def knob_names(results: Results) -> list[str]:
    """Return every knob that files for programs have a column of: the labelled ones, the task, and all further leaves.

    The further leaves are those of done runs: a refused config is recorded as it was asked for, with leaves of its own.
    """
    done = [row for row in results.rows if row.run.status == "done"]
    order = list(knobs.names())
    others = sorted(_other_knobs(done), key=lambda name: order.index(name) if name in order else len(order))
    return [*([STUDY] if results.studies else []), *knobs.labels(), "task", *others]


def _share_a_study(one: Row, other: Row) -> bool:
    ours, theirs = (str(row.knobs.get(STUDY, "")).split(", ") for row in (one, other))
    return not set(ours).isdisjoint(theirs)


def _values(rows: Iterable[Row], name: str) -> list[Any]:
    """Return a knob's different values; runs on which it has no effect count for nothing."""
    return list({label(row.knobs[name]): row.knobs[name] for row in rows if name in row.knobs}.values())


def _other_knobs(rows: Iterable[Row]) -> list[str]:
    return sorted({name for row in rows for name in row.knobs} - set(knobs.labels()) - {"task", STUDY})


def _constants(rows: Sequence[Row], elsewhere: Sequence[str]) -> dict[str, Any]:
    """Return the knobs worth saying that have one value in all `rows`, but for those that are said `elsewhere`.

    Those are the labelled ones, the element formats that a name such as w4a6 stands for, whatever a run was told by
    an override, and what is done beyond that: an option may set it, as kv_quant=rescue4 does.
    """
    overridden = {override.split("=")[0].lstrip("+~") for row in rows for override in row.run.overrides}
    constants: dict[str, Any] = {}
    for name in (*knobs.labels(), *_other_knobs(rows)):
        values = _values(rows, name)
        worth = name in knobs.labels() or name in knobs.quantizers() or name in overridden
        if name in elsewhere or name in COMPARABLE or len(values) != 1 or not (worth or _is_on(name, values[0])):
            continue
        if values[0] != constants.get(name.split(".")[0]):  # kv_quant=none says what kv_quant.key=none would
            constants[name] = values[0]
    return constants


def _is_on(name: str, value: Any) -> bool:
    """Return whether a knob of how a model is quantized does something with this value that it does not when off."""
    knob = knobs.names().get(name)
    return (
        knob is not None
        and knob.scope is Scope.RUN
        and knob.off not in (UNSET, "auto")
        and label(value) != label(knob.off)
    )


def _tells(rows: Sequence[Row], name: str) -> bool:
    """Return whether a knob varies more than what decides it: `format.weight` only where it was overridden."""
    # A remedy is none of its group's name, as ptq=gptq has no budget, but of an option's of keys and values.
    by_option = name in kv_remedies() and any(is_kv_option(row.knobs.get(GROUP)) for row in rows)
    deciding = () if name in knobs.remedies() and not by_option else knobs.decided_by(name)
    if name == identity.CALIBRATION:
        deciding = tuple(knob.name for knob in knobs.leaves("calibration"))
    return bool(distinguishing_knobs(rows, deciding, [name]))


def distinguishing_knobs(rows: Sequence[Row], known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return those of `names` that tell apart rows which `known`, and the names before, do not."""
    telling: list[str] = []
    for name in (name for name in names if len(_values(rows, name)) > 1):
        alike: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            key = tuple(label(row.knobs.get(other, "")) for other in (*known, *telling))
            alike.setdefault(key, []).append(row)
        if any(len(_values(same, name)) > 1 for same in alike.values()):
            telling.append(name)
    return telling


def _groups(rows: Sequence[Row], shown: Sequence[str]) -> list[Group]:
    members = comparable_rows(rows)
    # A name that several models of one content go by tells no groups apart.
    names = [name for name in CONDITIONS if all(len(_labels(group, name)) == 1 for group in members)]
    by = (*COMPARABLE, *distinguishing_knobs(rows, COMPARABLE, names))
    named = [name for name in by if name not in identity.NAMES]
    members.sort(key=lambda group: min((row_order(row, named), row.run.run_id) for row in group))
    labels = [[" or ".join(_labels(group, name)) for name in by] for group in members]
    varying = [index for index in range(len(by)) if len({values[index] for values in labels}) > 1]
    made: dict[str, Group] = {}
    all_conditions = [dict(zip(by, values, strict=True)) for values in labels]
    for values, conditions, group in zip(labels, all_conditions, members, strict=True):
        said = _said(conditions, all_conditions)
        title = ", ".join(f"{name}={value}" for name, value in said.items()) + _computed(group)
        slug = "_".join(values[i] if by[i] in ("model", "task") else f"{by[i]}-{values[i]}" for i in varying)
        slug = "".join(c if c.isalnum() or c in "._-" else "-" for c in slug)
        while slug in made:  # names that differ only in what a file name cannot hold
            slug += "-"
        group.sort(key=lambda row: (not row.is_baseline, row_order(row, shown), row.run.run_id))
        made[slug] = Group(title, slug, group, said)
    return list(made.values())


def _said(conditions: dict[str, str], among: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return a group's conditions without the limit where it cuts none of its examples, and tells it from no other.

    A limit is of a run's tasks: a training's held-out sequences are all there whatever it is.
    """
    without = {name: value for name, value in conditions.items() if name != "limit"}
    alone = sum(other.items() >= without.items() for other in among) == 1
    return without if conditions.get("task") == VALIDATION and alone else conditions


def _computed(rows: Sequence[Row]) -> str:
    """Return by which runtime's rules all quantized rows are computed, as an end of a title; "" without one."""
    names = {label(row.knobs.get("runtime")) for row in rows if not row.is_baseline}
    runtime = RUNTIMES.get(names.pop()) if len(names) == 1 else None
    return f", {runtime.phrase}" if runtime else ""


def comparable_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows in parts that may be compared within: by content where it is known, else by names."""
    replaced = [name for names in identity.NAMES.values() for name in names if name not in COMPARABLE]
    others = [name for name in CONDITIONS if name not in (*replaced, *identity.NAMES)]
    by = (*COMPARABLE, *distinguishing_knobs(rows, ("task", "limit"), others))
    by += tuple(distinguishing_knobs(rows, by, replaced))
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(identity.comparable(row, by), []).append(row)
    return list(parts.values())


def _labels(rows: Iterable[Row], name: str) -> list[str]:
    return list(dict.fromkeys(label(row.knobs.get(name)) for row in rows))


def row_order(row: Row, names: Iterable[str]) -> list[tuple[Any, ...]]:
    """Return a sort key of a row: the order of its values of these knobs; see `value_order`."""
    return [value_order(name, row.knobs.get(name)) for name in names]


def value_order(name: str, value: Any) -> tuple[Any, ...]:
    """Return a sort key of a knob's value.

    Numbers by size, then texts in natural order, those of remedies from the least that is done to the most; before all
    of them no value, and "none", which is less than any; and of tasks a training's held-out sequences, whose loss is
    what it was to lower.
    """
    if isinstance(value, int | float):
        return (1, value)
    text = label(value)
    if text in (ladder := ladder_of(name)):
        return (1, ladder.index(text))
    is_first = text == "none" or (name == "task" and text == VALIDATION)
    return (0,) if is_first else (2, natural_key(text))
