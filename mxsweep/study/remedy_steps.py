"""Arrange the runs of one base configuration in steps, from none to many remedies, to see what each wins back.

A base configuration is all that is swept but remedies: formats, blocks, scales. The step before a run is, of the runs
with remedies that it has too, or with weaker forms of them, the best. The gap of which a run closes a share is that in
log-perplexity which quantizing without remedies opens to the baseline.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.config.knobs import of_run_and_kv
from mxsweep.results.groups import Group, Results
from mxsweep.results.knob_words import goes_with_format, name_rows, value_text
from mxsweep.results.remedies import applied, in_base, is_remedy, ladder_of, no_remedies, remedy_text
from mxsweep.results.rows import Row, label
from mxsweep.statistics.paired_tests import ShareClosed
from mxsweep.study.comparison import Comparison, compare_pairs
from mxsweep.study.finding import Finding
from mxsweep.study.headline import loss, loss_metric
from mxsweep.study.paired_values import compare_share_closed


@dataclass(frozen=True)
class RemedyStep:
    """Hold a run with remedies.

    Attributes:
        text: its remedies.
        before: the run compared with the step before; p values are adjusted over the steps of a group. None of the
            run without remedies.
        before_text: the remedies of the step before.
        closed: None where there is no gap, or it is not known example by example.
    """

    row: Row
    text: str
    before: Comparison | None = None
    before_text: str = ""
    closed: ShareClosed | None = None


@dataclass(frozen=True)
class RemedySteps:
    """Hold a base configuration, named by what tells it from others of the group ("" for the only one).

    Attributes:
        steps: the run without remedies, and those with more and more of them.
    """

    config: str
    baseline: Row | None
    steps: list[RemedyStep]


def arrange_remedy_steps(results: Results, group: Group) -> list[RemedySteps]:
    """Arrange every base configuration of the group that was run without remedies and with some."""
    names = [name for name in results.shown if not is_remedy(name)]
    families: dict[tuple[str | None, ...], list[Row]] = {}
    for row in group.rows:
        if not row.is_baseline:
            key = tuple(label(in_base(name, row.knobs[name])) if name in row.knobs else None for name in names)
            families.setdefault(key, []).append(row)
    metric = loss_metric(group)
    losses = {row.run.path: loss(row, metric) if metric else math.nan for row in group.rows}
    chains = {key: _chain(rows, results.shown, losses) for key, rows in families.items()}
    chains = {key: chain for key, chain in chains.items() if len(chain) > 1}
    pairs = [(row, before) for chain in chains.values() for _, row, before in chain if before is not None]
    compared = {each.row.run.path: each for each in compare_pairs(group, pairs)}
    telling = [name for i, name in enumerate(names) if len({key[i] for key in chains}) > 1]
    bound = goes_with_format(telling, [chain[0][1] for chain in chains.values()])
    telling = [name for name in telling if name not in bound]
    arranged = []
    for chain in chains.values():
        plain = chain[0][1]
        texts = {row.run.path: text for text, row, _ in chain}
        baseline = group.baseline_for(plain)
        steps = [RemedyStep(plain, chain[0][0])]
        for text, row, _ in chain[1:]:
            comparison = compared[row.run.path]
            closed = compare_share_closed(row, plain, baseline) if baseline is not None else None
            steps.append(RemedyStep(row, text, comparison, texts[comparison.other.run.path], closed))
        config = name_rows([plain], telling) if telling else ""
        arranged.append(RemedySteps(config, baseline, steps))
    return arranged


def describe_remedy_steps(arranged: Iterable[RemedySteps]) -> list[Finding]:
    """Say of each base configuration which shares steps close that are significantly better than the one before."""
    findings = []
    for one in arranged:
        better = [step for step in one.steps[1:] if _is_better(step)]
        if not better:
            continue
        verbs = [" wins back", *[""] * (len(better) - 1)]
        parts = [f"{step.text}{verb} {format_share(step.closed)}" for step, verb in zip(better, verbs, strict=True)]
        where = f" of {one.config}" if one.config else ""
        each = "each " if len(parts) > 1 else ""
        text = (
            f"Of the gap in log-perplexity that {one.steps[0].text}{where} leaves to the baseline, "
            f"{', '.join(parts)}, {each}significantly better than the step before."
        )
        runs = [one.steps[0].row, *(step.row for step in better)]
        findings.append(Finding("remedy", text, list(dict.fromkeys(row.run.run_id for row in runs))))
    return findings


def format_share(closed: ShareClosed | None) -> str:
    """Return a share and its 95 % interval as text; nothing of one that is not known."""
    return "" if closed is None else f"{closed.share:.1%} [{closed.low:.1%}, {closed.high:.1%}]".replace("-", "−")


def _is_better(step: RemedyStep) -> bool:
    """Return whether a run closes some of the gap, and is better than the one before, by more than chance and noise."""
    before = step.before
    if before is None or before.perplexity is None or step.closed is None or not step.closed.low > 0:
        return False
    better = before.perplexity.difference < 0 and bool(before.perplexity_significant)
    return better and before.perplexity_above_floor is not False


def _chain(
    rows: Sequence[Row], shown: Sequence[str], losses: Mapping[Path, float]
) -> list[tuple[str, Row, Row | None]]:
    """List remedies in words, run, and step before, from few remedies to many; nothing without a run without any.

    Of runs with the same remedies the first is taken.
    """
    known = {*no_remedies(), *(f"kv_quant.{name}" for name in of_run_and_kv())}  # to `applied`
    how = [name for name in shown if is_remedy(name) and name not in known]
    by_text: dict[str, Row] = {}
    for row in rows:
        more = ", ".join(value_text(name, [label(row.knobs[name])]) for name in how if name in row.knobs)
        by_text.setdefault(remedy_text(row.knobs) + (f" ({more})" if more else ""), row)
    ordered = sorted(by_text.items(), key=lambda item: _height(applied(item[1].knobs)))
    if not ordered or applied(ordered[0][1].knobs):
        return []

    def rank(other: Row) -> tuple[float, tuple[int, int]]:
        lost = losses[other.run.path]
        return -math.inf if math.isnan(lost) else -lost, _height(applied(other.knobs))

    chain: list[tuple[str, Row, Row | None]] = []
    for text, row in ordered:
        below = [other for _, other, _ in chain if _is_below(applied(other.knobs), applied(row.knobs))]
        if below or not chain:
            chain.append((text, row, max(below, key=rank, default=None)))
    return chain


def _height(remedies: Mapping[str, Any]) -> tuple[int, int]:
    """Count the remedies, and how far up their ladders they are."""
    return len(remedies), sum(_rung(name, value) for name, value in remedies.items())


def _is_below(some: Mapping[str, Any], more: Mapping[str, Any]) -> bool:
    """Return whether these remedies are among those, or weaker forms of them, and not the same."""
    return some != more and all(
        name in more and (value == more[name] or _rung(name, value) < _rung(name, more[name]))
        for name, value in some.items()
    )


def _rung(name: str, value: Any) -> int:
    ladder = ladder_of(name)
    return ladder.index(value) if value in ladder else 0
