"""Make the table of what memory buys, and the sentence on the least memory within a share of the baseline."""

from __future__ import annotations

from mxsweep.report.table import Cell, Table
from mxsweep.report.wording import ABSENT, size
from mxsweep.results.knob_words import name_rows
from mxsweep.study.change_words import format_measured
from mxsweep.study.group_study import Study
from mxsweep.study.memory_front import MemoryFront, Placed, find_memory_front
from mxsweep.study.memory_terms import Terms

MEMORY_TITLE = "What memory buys"


def memory_front(study: Study, terms: Terms) -> tuple[Table, str] | None:
    """Return the front of memory and cost as a table, and a sentence; None where memory or cost is not known."""
    found = find_memory_front(study.group, study.comparisons, terms)
    if found is None:
        return None
    limit = f"within {_percent(terms)}"
    titles = ["config", "parameters, MB", "KV cache, MB", "total, MB", "Δ perplexity", limit]
    rows = [_cells("baseline", *found.baseline, Cell(ABSENT), ABSENT)] if found.baseline is not None else []
    for one in found.front:
        cost = Cell(format_measured("perplexity", one.cost), one.cost.difference)
        rows.append(_cells(_name(study, one), one.parameter_bytes, one.kv_bytes, cost, _verdict(one, terms)))
    rules = frozenset({1} if found.baseline is not None else ())
    return Table("", titles, rows, frozenset({0, 5}), rules), _said(study, found, terms.context)


def _cells(config: str, parameters: float, cache: float, cost: Cell, verdict: str) -> list[Cell]:
    sizes = [Cell(size(each), each) for each in (parameters, cache, parameters + cache)]
    return [Cell(config), *sizes, cost, Cell(verdict)]


def _name(study: Study, one: Placed) -> str:
    return name_rows([one.row], study.naming, study.usual)


def _verdict(one: Placed, terms: Terms) -> str:
    if one.is_within(terms.within, proven=True):
        return "yes"
    return "by the estimate alone" if one.is_within(terms.within, proven=False) else "no"


def _said(study: Study, found: MemoryFront, asked: int) -> str:
    share, context = _percent(found.terms), found.terms.context
    held = " (the model holds no more)" if context < asked else ""
    text = (
        f"The runs that no other beats in memory and in perplexity, with the keys and values of one sequence of "
        f"{context:,} tokens{held}; […] is the paired 95 % interval. Least memory within {share} of the "
        "baseline's perplexity: "
    )
    if found.by_estimate is None:
        return f"{text}none, not even by the estimate."
    text += f"{_name(study, found.by_estimate)} by the estimate"
    if found.by_interval is None:
        return f"{text}; of no run is the whole interval within it."
    same = found.by_interval is found.by_estimate
    return text + (", and by the whole interval." if same else f", {_name(study, found.by_interval)} by the interval.")


def _percent(terms: Terms) -> str:
    return f"{terms.within * 100:g} %"
