"""Say what a study is of, in words: the page's title, and the title of a group."""

from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import knob_title

MOST_NAMED = 3  # models, tasks or knobs in a title


def study_title(results: Results) -> str:
    """Return models, tasks and what was swept, as "tiny on story: block size, scale bits"."""
    of = {
        name: list(dict.fromkeys(group.conditions.get(name, "") for group in results.groups))
        for name in ("model", "task")
    }
    if not results.groups:
        return "No finished run"
    title = " on ".join(_listed([value for value in values if value]) for values in of.values() if any(values))
    swept = _listed([knob_title(name) for name in results.shown if _is_swept(results, name)])
    return f"{title}: {swept}" if swept else title or "Results"


def _is_swept(results: Results, name: str) -> bool:
    """Return whether a knob differs among quantized runs: formats differ from the baseline's in every study."""
    rows = [row for group in results.groups for row in group.rows if not row.is_baseline and name in row.knobs]
    return len({str(row.knobs[name]) for row in rows}) > 1


def about_group(group: Group, alone: bool = False) -> str:
    """Return what a group's runs answer and measured, as a person says it; below a title, of a group that is alone."""
    return f"What quantizing costs{', on ' if alone else ': '}{measured_text(group, alone)}"


def measured_text(group: Group, alone: bool = False) -> str:
    """Return a group's conditions as a person says them: "model tiny, task story, 1,000 examples".

    Model and task are left out of a group that is `alone`: the title has them.
    """
    known = dict(group.conditions)
    model, task, limit = (known.pop(name, "") for name in ("model", "task", "limit"))
    counts = {row.n for row in group.rows}
    n = counts.pop() if len(counts) == 1 else None
    examples = f"{n:,.0f} example{'s' * (n != 1)}" if n is not None else ""
    if limit not in ("", "none") and str(n) != limit:
        examples = f"{examples}, limit {limit}".lstrip(", ")
    parts = [examples, *(f"{knob_title(name)} {value}" for name, value in known.items())]
    detail = ", ".join(filter(None, parts))
    named = ", ".join(f"{name} {value}" for name, value in (("model", model), ("task", task)) if value)
    return ", ".join(filter(None, ("" if alone and detail else named, detail)))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
