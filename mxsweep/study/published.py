"""Put published results beside one's own: which rows go together, how far apart they are, and what was different.

References are YAML files: the package's in conf/reference (where a comment says how to write one), or the user's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mxsweep.config.knobs import is_knob, no_such_knob
from mxsweep.config.kv_options import GROUP as KV
from mxsweep.config.kv_options import done_beyond, element_format
from mxsweep.config.option_files import conf_dir
from mxsweep.results.groups import Results
from mxsweep.results.remedies import no_remedies
from mxsweep.results.rows import Row, label
from mxsweep.study.published_orderings import BadOrderingError, PublishedTrainings, read_published

CONDITIONS = ("model", "task", "limit", "n", "hardware", "library")
# Of several runs with a row's knobs, those whose conditions match best are taken; what comes first here matters most.
_RANKED = ("task", "model", "limit", "n")
_FIELDS = ("source", "conditions", "rows", "orderings", "differences")
_ROW_FIELDS = ("knobs", "conditions", "metrics", "n", "eval_time_s")


class BadReferenceError(ValueError):
    """Say in one sentence that there is no such reference, or that it is none."""


@dataclass(frozen=True)
class Published:
    """Hold one published run.

    Attributes:
        knobs: as in Row.knobs; a row of ours goes with it if it agrees in all of them.
        metrics: with standard errors under the metric's name and _stderr.
        n: examples; None if not known.
        eval_time_s: seconds; None if not known.
        conditions: the reference's, but for those that the row has for itself; without those not known.
    """

    knobs: dict[str, Any]
    metrics: dict[str, float]
    n: int | None
    eval_time_s: float | None
    conditions: dict[str, Any]

    @property
    def is_baseline(self) -> bool:
        """Return whether nothing is quantized."""
        return self.knobs.get("format") == "none" and label(self.knobs.get("kv_quant")) == "none"


@dataclass(frozen=True)
class Reference:
    """Hold published results: where, under which conditions, and the runs in the order of their source."""

    name: str
    source: str
    conditions: dict[str, Any]
    rows: list[Published]
    trainings: PublishedTrainings = field(default_factory=PublishedTrainings)


@dataclass(frozen=True)
class Condition:
    """Hold a condition of a published run and of ours; ``match`` is None where one of the two is not known."""

    theirs: Any
    ours: Any
    match: bool | None


@dataclass(frozen=True)
class ReferenceRow:
    """Hold a published run beside one of ours.

    Attributes:
        theirs: None for a run of ours that the reference has no row for.
        ours: None for a published run with whose knobs we have none.
        difference: ours minus theirs, of each metric that both have, and of eval_time_s; NaN where one is not finite.
        conditions: by name, in the order of CONDITIONS; empty without theirs or ours.
    """

    theirs: Published | None
    ours: Row | None
    difference: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Condition] = field(default_factory=dict)

    @property
    def same_examples(self) -> bool:
        """Return whether no condition that decides the examples is known to differ; else metrics are not comparable."""
        names = ("task", "limit", "n")
        return not any(name in self.conditions and self.conditions[name].match is False for name in names)

    @property
    def note(self) -> str | None:
        """Say what a reader of the row must know: that there is nothing beside it, or which conditions differ."""
        if self.ours is None:
            return "No finished run here has these knobs."
        if self.theirs is None:
            return "The reference has no row with these knobs."
        differing = [
            f"{name} ({label(each.theirs)}; ours: {label(each.ours)})"
            for name, each in self.conditions.items()
            if each.match is False
        ]
        return f"Other conditions: {', '.join(differing)}." if differing else None


def load_reference(name_or_path: str | Path) -> Reference:
    """Read a reference by its name in conf/reference, or from a YAML file.

    Raises BadReferenceError where there is none of that name, or the file is no reference.
    """
    folder = conf_dir() / "reference"
    named = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    path = named.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        known = ", ".join(named) or "none"
        raise BadReferenceError(f"{name_or_path}: there is no reference of this name ({known}) and no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadReferenceError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise BadReferenceError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _reference(path.stem, content)
    except BadReferenceError as error:
        raise BadReferenceError(f"{path}: {error}") from None


def match_reference(results: Results, reference: Reference) -> list[ReferenceRow]:
    """Pair every published run with ours of the same knobs, in the reference's order; then those of ours without one.

    Ours are rows of finished runs, one a task. They go with a published run that agrees in each knob it names,
    baselines with baselines, whatever the conditions. Of several, those whose conditions match best are taken (task
    first, then model, limit and n), all of them where they match equally, and the others are left out.
    """
    ours = [row for row in results.rows if row.run.status == "done"]
    paired: list[ReferenceRow] = []
    matched: set[int] = set()
    for theirs in reference.rows:
        pairs = [_pair(theirs, row) for row in ours if _goes_with(theirs, row)]
        matched |= {id(pair.ours) for pair in pairs}
        best = max(map(_closeness, pairs), default=())
        paired += [pair for pair in pairs if _closeness(pair) == best] or [ReferenceRow(theirs, None)]
    return paired + [ReferenceRow(None, row) for row in ours if id(row) not in matched]


def _goes_with(theirs: Published, row: Row) -> bool:
    if theirs.is_baseline or row.is_baseline:
        shared = {name: value for name, value in theirs.knobs.items() if name in row.knobs}
        return theirs.is_baseline and row.is_baseline and _agrees(shared, row)
    # Who says nothing of remedies had none.
    implied = no_remedies() | done_beyond(theirs.knobs.get(KV))
    return _agrees({name: value for name, value in implied.items() if name in row.knobs} | theirs.knobs, row)


def _agrees(knobs: dict[str, Any], row: Row) -> bool:
    """Return whether a run has these values; an option of keys and values may stand there by what it sets."""
    ours = row.knobs | ({KV: element_format(row.knobs[KV])} if KV in row.knobs else {})
    theirs = knobs | ({KV: element_format(knobs[KV])} if KV in knobs else {})
    return all(name in ours and label(ours[name]) == label(value) for name, value in theirs.items())


def _pair(theirs: Published, row: Row) -> ReferenceRow:
    difference = {
        name: row.metrics[name] - value
        for name, value in theirs.metrics.items()
        if name in row.metrics and not name.endswith("_stderr")
    }
    if theirs.eval_time_s is not None and row.eval_time_s is not None:
        difference["eval_time_s"] = row.eval_time_s - theirs.eval_time_s
    difference = {name: value if math.isfinite(value) else math.nan for name, value in difference.items()}
    return ReferenceRow(theirs, row, difference, _conditions(theirs, row))


def _closeness(pair: ReferenceRow) -> tuple[bool, ...]:
    return tuple(pair.conditions[name].match is True for name in _RANKED if name in pair.conditions)


def _conditions(theirs: Published, row: Row) -> dict[str, Condition]:
    environment = (row.run.record or {}).get("environment") or {}
    version = (environment.get("versions") or {}).get("lm_eval")
    ours = {
        "model": _model_of(row, theirs.conditions.get("model")),
        "task": row.task,
        "limit": row.knobs.get("limit"),
        "n": row.n,
        "hardware": environment.get("device_name"),
        "library": f"lm-eval {version}" if version else None,
    }
    same = {"model": _same_model, "hardware": _same_start, "library": _same_start}
    compared = {}
    for name in CONDITIONS:
        if name not in theirs.conditions:
            compared[name] = Condition(None, ours[name], None)
            continue
        known = theirs.conditions[name]
        if name == "limit":  # null is a limit, too: none
            matches = label(known) == label(ours[name])
        elif known is None or ours[name] is None:
            compared[name] = Condition(known, ours[name], None)
            continue
        else:
            matches = same[name](str(known), str(ours[name])) if name in same else known == ours[name]
        compared[name] = Condition(known, ours[name], matches)
    return compared


def _model_of(row: Row, theirs: Any) -> Any:
    """Return the model's path, or its label where that is what the reference calls it by."""
    return theirs if theirs == row.knobs.get("model") else row.knobs.get("model.path", row.knobs.get("model"))


def _same_model(theirs: str, ours: str) -> bool:
    """Compare a hub name with ours; a local folder by its own name, or as the hub's cache names it."""
    parts = ours.rstrip("/").split("/")
    last = theirs.rsplit("/", 1)[-1].lower()
    return parts[-1].lower() == last or "models--" + theirs.replace("/", "--") in parts


def _same_start(theirs: str, ours: str) -> bool:
    """Return whether ours is theirs, perhaps said more exactly: `lm-eval` and `lm-eval 0.4.13`."""
    a, b = theirs.lower().split(), ours.lower().split()
    return b[: len(a)] == a


def _reference(name: str, content: Any) -> Reference:
    of_trainings = isinstance(content, dict) and (content.get("orderings") or content.get("differences"))
    has_rows = isinstance(content, dict) and isinstance(content.get("rows"), list) and content["rows"]
    if not has_rows and not (of_trainings and "rows" not in content):
        raise BadReferenceError("a reference is a mapping of source, conditions and rows, and this has no list of rows")
    _check_names("", content, _FIELDS)
    try:
        trainings = read_published(content)
    except BadOrderingError as error:
        raise BadReferenceError(str(error)) from None
    conditions = _mapping("conditions", content.get("conditions"))
    _check_names("conditions.", conditions, CONDITIONS)
    rows = [_published(f"rows[{i}]", row, conditions) for i, row in enumerate(content.get("rows") or [])]
    source = " ".join(str(content.get("source") or "no source given").split())
    return Reference(name, source, conditions, rows, trainings)


def _published(where: str, content: Any, conditions: dict[str, Any]) -> Published:
    row = _mapping(where, content)
    _check_names(f"{where}.", row, _ROW_FIELDS)
    overriding = _mapping(f"{where}.conditions", row.get("conditions"))
    _check_names(f"{where}.conditions.", overriding, CONDITIONS)
    knobs, metrics = (_mapping(f"{where}.{name}", row.get(name)) for name in ("knobs", "metrics"))
    for name in knobs:
        if not is_knob(name):
            raise BadReferenceError(f"{where}.knobs: {no_such_knob(name)}")
    if not knobs:
        raise BadReferenceError(f"{where} has no knobs, so that no run goes with it")
    for name, value in [*metrics.items(), ("eval_time_s", row.get("eval_time_s"))]:
        if not _is_number(value) and not (value is None and name == "eval_time_s"):
            raise BadReferenceError(f"{where}.{name}: {value!r} is no number")
    all_conditions = conditions | overriding | ({"n": row["n"]} if "n" in row else {})
    n = all_conditions.get("n")
    if n is not None and (not _is_number(n) or n != int(n)):
        raise BadReferenceError(f"{where}: n = {n!r} is no number of examples")
    return Published(
        knobs=knobs,
        metrics={name: float(value) for name, value in metrics.items()},
        n=None if n is None else int(n),
        eval_time_s=None if row.get("eval_time_s") is None else float(row["eval_time_s"]),
        conditions=all_conditions,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise BadReferenceError(f"{where}: {value!r} is no mapping of names")
    return value


def _check_names(prefix: str, content: dict[str, Any], allowed: Sequence[str]) -> None:
    for name in content:
        if name not in allowed:
            raise BadReferenceError(f"{prefix}{name} is not known; allowed: {', '.join(allowed)}")
