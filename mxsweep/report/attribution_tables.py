"""Make the tables of what each kind of tensor costs by itself, and of whether costs add up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mxsweep.report.table import Cell, Table
from mxsweep.report.wording import ABSENT, p_value
from mxsweep.results.rows import Row
from mxsweep.statistics.paired_tests import t_quantile
from mxsweep.study.attribution import Attribution, Cost, Sum, format_nats, kinds_text
from mxsweep.study.finding import format_range
from mxsweep.study.paired_values import ACCURACY, LOG_PERPLEXITY, MARGIN
from mxsweep.study.tensor_kinds import Kinds

COST_TITLES = {LOG_PERPLEXITY: "Δ log-perplexity", MARGIN: "mean margin lost", ACCURACY: "accuracy lost"}
COST_NOTE = (
    "Each line quantizes these tensors and no others, in the formats of the run that quantizes all. The cost is the "
    "change of log-perplexity from the baseline in nats or, of a task without a perplexity, the mean margin (nats) or "
    "the accuracy that is lost, with its 95 % interval, paired over the same examples; p is adjusted by Holm's method "
    "over the runs of a group. KL is the mean divergence of the unquantized model's next-token distribution from the "
    "run's over the sampled positions, nats a position, with a 95 % interval over examples. Signal over "
    "error, and the shares of elements that were cut to the largest value and that became zero, are of tensors of one "
    "kind, and measured with diagnostics=true (of weights, the shares always)."
)
SUM_NOTE = (
    "The excess is the cost of tensors quantized together minus the sum of the costs of the parts, with its 95 % "
    "interval, paired over the same examples; p is adjusted by Holm's method over these sums. Costs add up where it is "
    "0. That it cannot be told from 0 does not show that they do: the interval says how far they may be from it."
)


def cost_table(found: Sequence[Attribution]) -> Table:
    """Return of each attribution what its runs cost, from single kinds to all, beside what became of the tensors."""
    titles = [
        "quantized",
        " or ".join(dict.fromkeys(COST_TITLES[one.quantity] for one in found)),
        "p",
        "KL, nats",
        "SQNR, dB",
        "saturated",
        "became zero",
    ]
    rows = [
        [Cell(one.config), Cell(kinds_text(kinds)), *_cost_cells(one.costs.get(kinds)), *_why_cells(kinds, row)]
        for one in found
        for kinds, row in one.runs.items()
    ]
    return _without_empty_config(Table("", ["config", *titles], rows, frozenset({0, 1}), _rules(found)))


def sum_table(found: Sequence[Attribution]) -> Table:
    """Return of each attribution the runs of several kinds beside the sums of their parts."""
    titles = ["together", "cost", "parts", "sum of costs", "excess", "p", "is"]
    rows = [[Cell(one.config), *_sum_cells(each)] for one in found for each in one.sums]
    return _without_empty_config(Table("", ["config", *titles], rows, frozenset({0, 1, 3})))


def brief_tables(found: Sequence[Attribution]) -> list[Table]:
    """Return both tables as narrow as a terminal wants them."""
    sums = sum_table(found)
    for title in ("cost", "sum of costs", "is"):
        sums = sums.without(title)
    return [cost_table(found).without("KL, nats"), *([sums] if sums.rows else [])]


def _cost_cells(cost: Cost | None) -> list[Cell]:
    if cost is None:
        return [Cell(ABSENT), Cell(ABSENT)]
    return [Cell(format_nats(cost), cost.difference), Cell(p_value(cost.p), cost.p)]


def _why_cells(kinds: Kinds, row: Row) -> list[Cell]:
    figures = row.tensors.get(next(iter(kinds)), {}) if len(kinds) == 1 else {}
    sqnr, elements = figures.get("sqnr_db"), figures.get("elements")
    shares = [figures[name] / elements if elements else None for name in ("saturated", "flushed")]
    return [
        _divergence_cell(row),
        Cell(f"{sqnr:.1f}", sqnr) if isinstance(sqnr, float) and math.isfinite(sqnr) else Cell(ABSENT),
        *(Cell(ABSENT) if share is None else Cell(f"{share:.2%}", share) for share in shares),
    ]


def _divergence_cell(row: Row) -> Cell:
    """Return the divergence with its 95 % interval: Student's t, over the examples that positions were sampled of."""
    kl, stderr, examples = (row.distance.get(name) for name in ("kl_nats", "kl_nats_stderr", "examples"))
    if not isinstance(kl, int | float) or not math.isfinite(kl):
        return Cell(ABSENT)
    half = math.nan
    if isinstance(stderr, int | float) and isinstance(examples, int) and examples > 1:
        half = t_quantile(examples - 1) * stderr
    interval = f" [{kl - half:.3g}, {kl + half:.3g}]".replace("-", "−") if math.isfinite(half) else ""
    return Cell(f"{kl:.3g}{interval}", kl)


def _sum_cells(each: Sum) -> list[Cell]:
    cost, excess = each.total + each.excess.difference, each.excess
    more = "more than the sum" if excess.difference > 0 else "less than the sum"
    return [
        Cell(kinds_text(each.whole)),
        Cell(format_range([cost], "+.3g"), cost),
        Cell(" + ".join(map(kinds_text, each.parts))),
        Cell(format_range([each.total], "+.3g"), each.total),
        Cell(format_nats(excess), excess.difference),
        Cell(p_value(each.p), each.p),
        Cell(more if each.is_significant else "not told apart"),
    ]


def _rules(found: Sequence[Attribution]) -> frozenset[int]:
    starts = [sum(len(one.runs) for one in found[:index]) for index in range(1, len(found))]
    return frozenset(starts)


def _without_empty_config(table: Table) -> Table:
    """Return the table without the column of configs where it would say nothing or the same in every row."""
    return table if len({row[0].text for row in table.rows}) > 1 else table.without("config")
