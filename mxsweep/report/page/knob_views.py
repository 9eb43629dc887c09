"""Make what the page shows of each knob: sentences, and a table of all pairs of its values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mxsweep.config.knobs import element_groups
from mxsweep.report.figures.figure import Figure
from mxsweep.report.figures.lines import KNOB
from mxsweep.report.table import Cell, Table
from mxsweep.report.wording import ABSENT, p_value
from mxsweep.results.knob_words import knob_title, value_word
from mxsweep.results.metrics import short_title
from mxsweep.study.change_words import ends_of, format_change, format_interval
from mxsweep.study.comparison import Comparison
from mxsweep.study.configs_to_use import count_outcomes
from mxsweep.study.finding import with_minus_signs
from mxsweep.study.group_study import Study
from mxsweep.study.value_pairs import KnobValues, ValuePair
from mxsweep.study.value_words import describe_values

VALUES_NOTE = (
    "Each value against each other, averaged over the other knobs, over the same examples: of each example the mean "
    "over all combinations of the other knobs that both values were run in. [low, high] is the 95 % interval of the "
    "difference (of a perplexity: of its ratio); p of a paired t test (of accuracy in one combination McNemar's exact "
    "test), adjusted by Holm's method over the pairs of a knob; intervals are not adjusted. The mean is over "
    "combinations that came out the same as others, too; they are counted once."
)


@dataclass(frozen=True)
class KnobView:
    """Hold what the page shows of a knob."""

    title: str
    lines: list[str]
    table: Table | None
    figures: list[Figure]


def knob_views(study: Study, figures: Sequence[Figure]) -> list[KnobView]:
    """Return what every knob of the group does, each with its figures of these; none where nothing is to be seen."""
    studied = {each.knob: each for each in study.values}
    # What takes configs apart: what it does is what the parts cost.
    of_parts = element_groups() if study.asks_what_costs_what else ()
    drawn: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.about.startswith(KNOB) and figure.in_page:
            drawn.setdefault(figure.about.removeprefix(KNOB), []).append(figure)
    views = []
    for knob in dict.fromkeys([*studied, *drawn]):
        if knob in of_parts:
            continue
        each = studied.get(knob)
        changes = each is None or not all(pair.identical for pair in each.pairs)
        lines, table = ([], None) if each is None else (describe_values(each), value_table(each, study.comparisons))
        views.append(KnobView(knob_title(knob), lines, table, drawn.get(knob, []) if changes else []))
    return views


def value_table(studied: KnobValues, against: Mapping[Path, Comparison]) -> Table:
    """Return a row for each pair of values that are not identical; `against` are runs' comparisons with baselines."""
    columns = [knob_title(studied.knob)]
    for name in studied.metrics:
        columns += [f"Δ {short_title(name)}", f"Δ {short_title(name)}, 95 %", f"p, {short_title(name)}"]
    columns += ["told apart", "combinations"]
    pairs = [pair for pair in studied.pairs if not pair.identical]
    beside = {
        name: ends_of([pair.tests[name].measured for pair in pairs if name in pair.tests]) for name in studied.metrics
    }
    rows = [_cells(studied, pair, against, beside) for pair in pairs]
    more = " Of so many values, neighbours and the two ends are compared." if studied.more_values else ""
    return Table(f"The second value against the first.{more}" if rows else "", columns, rows)


def _cells(
    studied: KnobValues, pair: ValuePair, against: Mapping[Path, Comparison], beside: Mapping[str, Sequence[float]]
) -> list[Cell]:
    cells = [Cell(f"{value_word(studied.knob, pair.low)} → {value_word(studied.knob, pair.high)}")]
    told = []
    for name in studied.metrics:
        test = pair.tests.get(name)
        if test is None:
            cells += [Cell(ABSENT)] * 3
            continue
        measured = test.measured
        change = format_change(name, measured.difference, *beside[name])
        cells.append(Cell(with_minus_signs(change), measured.difference))
        cells.append(Cell(with_minus_signs(format_interval(name, measured, *beside[name])) or ABSENT, measured.low))
        cells.append(Cell(p_value(test.p), test.p))
        told += [short_title(name)] if test.tells_apart else []
    outcomes = count_outcomes(pair.runs, against)
    return [*cells, Cell(" and ".join(told) or "no"), Cell(str(outcomes), outcomes)]
