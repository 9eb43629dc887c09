"""Make tables of what the numbers rest on: what each knob does, where error enters, how far noise reaches."""

from collections.abc import Sequence
from typing import Any

from mxsweep.report.table import Cell, Table, number_cell, share_cell
from mxsweep.report.wording import (
    ABSENT,
    format_value,
    interval,
    p_of,
    p_value,
    paired,
    significance,
    speed,
)
from mxsweep.results.knob_words import knob_title, name_rows, value_word
from mxsweep.results.metrics import LOSS, MARGIN, short_title
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_bases import NOTE, has_own_metric
from mxsweep.results.tensor_errors import KIND_TITLES
from mxsweep.study.change_words import format_change
from mxsweep.study.comparison import Comparison
from mxsweep.study.configs_to_use import count_outcomes
from mxsweep.study.finding import format_pairs, with_minus_signs
from mxsweep.study.group_study import Study
from mxsweep.study.knob_effects import KnobEffect


def effect_view(study: Study, effect: KnobEffect) -> tuple[str, str, Table]:
    """Return a knob in words, how many pairs of runs differ in it only, and the table of them."""
    count = len(effect.comparisons)
    outcomes = count_outcomes(((pair.other, pair.row) for pair in effect.comparisons), study.comparisons)
    pairs = f"{format_pairs(count)} of runs at neighbouring values that differ in nothing else"
    said = f"{pairs}; {count - outcomes} came out as others did" if outcomes < count else pairs
    return knob_title(effect.knob), said, effect_table(study, effect)


def effect_table(study: Study, effect: KnobEffect) -> Table:
    """Return every pair of runs that differ in the knob only."""
    metrics = [
        name for name in study.group.metric_names() if any(p_of(c, name) is not None for c in effect.comparisons)
    ]
    elsewhere = [_elsewhere(study, pair.row, effect.knob) for pair in effect.comparisons]
    columns = [knob_title(effect.knob), *(["at"] if any(elsewhere) else [])]
    for name in metrics:
        title = short_title(name)
        columns += [f"Δ {title}", f"Δ {title}, 95 %", f"p, {title}"]
    columns += ["n", "verdict"]
    rows = []
    for pair, where in zip(effect.comparisons, elsewhere, strict=True):
        low, high = (value_word(effect.knob, label(row.knobs.get(effect.knob))) for row in (pair.other, pair.row))
        cells = [Cell(f"{low} → {high}"), *([Cell(where)] if any(elsewhere) else [])]
        for name in metrics:
            change = _change(pair, name)
            cells += [change, _interval(pair, name), Cell(p_value(p_of(pair, name)), p_of(pair, name))]
        rows.append([*cells, Cell(f"{pair.n:,}" if pair.n else ABSENT, pair.n), Cell(_verdict(pair))])
    return Table(effect.family, columns, rows)


def _elsewhere(study: Study, row: Row, knob: str) -> str:
    """Name the other knobs that tell this pair from other pairs."""
    names = [name for name in study.swept if name != knob and name in row.knobs]
    return name_rows([row], names) if names else ""


def _change(pair: Comparison, name: str) -> Cell:
    measured = paired(pair, name)
    if measured is None:
        return Cell(ABSENT)
    change = format_change(name, measured.difference, measured.low, measured.high)
    return Cell(with_minus_signs(change), measured.difference)


def _interval(pair: Comparison, name: str) -> Cell:
    text, measured = interval(pair, name), paired(pair, name)
    return Cell(with_minus_signs(text), measured.low) if text and measured else Cell(ABSENT)


def _verdict(pair: Comparison) -> str:
    if pair.why_not:
        return pair.why_not
    if pair.identical:
        return "identical to the last digit"
    compared = (pair.row.accuracy_name, MARGIN, pair.row.ppl_name, LOSS)
    names = [name for name in compared if name and significance(pair, name)]
    said = [f"{short_title(name)}: {significance(pair, name)}" for name in names]
    return "; ".join(said) or ABSENT


def error_table(study: Study) -> Table | None:
    """Return a row for each run and kind of tensor; None where no run says anything."""
    figures_by_row = [(row, kind, f) for row in study.rows if not row.is_baseline for kind, f in row.tensors.items()]
    if not figures_by_row:
        return None
    columns = ["config", "tensors", "SQNR, dB", "RMSE", "saturated", "became zero", "scales clamped", "exponents"]
    columns += ["scale holds", "unlike exact", "run_id"]
    rows = []
    for row, kind, figures in figures_by_row:
        elements, blocks = figures.get("elements"), figures.get("blocks")
        limit = _limit(row, figures)
        rows.append(
            [
                Cell(study.config_text(row)),
                Cell(KIND_TITLES.get(kind, kind)),
                number_cell(figures.get("sqnr_db"), ".2f"),
                number_cell(figures.get("rmse"), ".3g"),
                share_cell(figures.get("saturated"), elements),
                share_cell(figures.get("flushed"), elements),
                share_cell(figures.get("clamped"), blocks),
                Cell(_span(figures), figures.get("exponent_max")),
                Cell(ABSENT if limit is None else f"±{limit:g}", limit),
                share_cell(figures.get("unlike_exact"), elements),
                Cell(row.run.run_id),
            ]
        )
    title = "Errors of quantizing, pooled over the layers, by run and kind of tensor"
    own_metric = any(has_own_metric(row, kind) for row, kind, _ in figures_by_row)
    return Table(f"{title}. {NOTE}" if own_metric else title, columns, rows)


def _limit(row: Row, figures: dict[str, Any]) -> float | None:
    """Return the largest exponent, either way, that the scale holds; without diagnostics, from the scale bits."""
    if figures.get("exponent_limit") is not None:
        return float(figures["exponent_limit"])
    bits = row.knobs.get("scale_bits")
    return 2 ** (bits - 1) - 1 if isinstance(bits, int) and row.knobs.get("scale") == "e8m0" else None


def _span(figures: dict[str, Any]) -> str:
    low, high = figures.get("exponent_min"), figures.get("exponent_max")
    return ABSENT if low is None or high is None else f"{low}…{high}".replace("-", "−")


def distance_table(study: Study) -> Table | None:
    """Return how far each run's next-token distributions are from the unquantized model's."""
    measured = [(row, row.distance) for row in study.rows if row.kl_nats is not None]
    if not measured:
        return None
    columns = ["config", "KL divergence, nats", "same most likely token", "positions", "examples", "run_id"]
    rows = []
    for row, distance in measured:
        kl, same = distance.get("kl_nats"), distance.get("top1_agreement")
        rows.append(
            [
                Cell("baseline" if row.is_baseline else study.config_text(row)),
                Cell(format_value(kl, distance.get("kl_nats_stderr")), kl),
                Cell(format_value(same, distance.get("top1_agreement_stderr"), 4), same),
                number_cell(distance.get("positions"), ","),
                number_cell(distance.get("examples"), ","),
                Cell(row.run.run_id),
            ]
        )
    return Table(
        "Distance from the unquantized model's next-token distribution, at the sampled positions", columns, rows
    )


def sample_descriptions(study: Study) -> list[str]:
    """Say how the diagnostics' samples were taken, each way once."""
    texts = [row.diagnostics.get("sample") for row in study.rows]
    return list(dict.fromkeys(str(text) for text in texts if text))


def speed_table(study: Study) -> Table:
    """Return how long each run's evaluation took: the speed of simulating formats, of which nothing is concluded.

    Runs that were not evaluated, since others prove what they come to, are left out.
    """
    rows = [
        [
            Cell("baseline" if row.is_baseline else study.config_text(row)),
            Cell(speed(row.eval_time_s), row.eval_time_s),
            Cell(speed(row.examples_per_sec), row.examples_per_sec),
            Cell(row.run.run_id),
        ]
        for row in study.rows
        if not row.proven_by
    ]
    return Table("", ["config", "eval_time_s", "examples/sec", "run_id"], rows)


def noise_table(study: Study) -> Table | None:
    """Return what repeats of one config differ by."""
    repeated = [row for row in study.rows if row.noise]
    if not repeated:
        return None
    columns = ["config", "metric", "unperturbed", "repeats", "lowest", "highest", "farthest from it", "run_id"]
    rows, metrics = [], study.group.metric_names()
    for row in repeated:
        for name in metrics:
            values = row.noise.get(name)
            if not values:
                continue
            rows.append(
                [
                    Cell("baseline" if row.is_baseline else study.config_text(row)),
                    Cell(short_title(name)),
                    Cell(format_value(row.metrics.get(name), digits=4), row.metrics.get(name)),
                    Cell(str(len(values)), len(values)),
                    Cell(format_value(min(values), digits=4), min(values)),
                    Cell(format_value(max(values), digits=4), max(values)),
                    number_cell(_farthest(row.metrics.get(name), values), ".2g"),
                    Cell(row.run.run_id),
                ]
            )
    return Table("Repeats of the same config, each with a perturbation of the size of a rounding", columns, rows)


def _farthest(value: float | None, repeats: Sequence[float]) -> float | None:
    return None if value is None else max((abs(repeat - value) for repeat in repeats), default=None)


def floor_table(study: Study) -> Table | None:
    """Return each run's differences from its baseline beside what noise makes by itself."""
    with_floor = [c for c in study.comparisons.values() if c.floor is not None]
    if not with_floor:
        return None
    has_margins = any(c.margin is not None for c in with_floor)
    of_margins = ["Δ margin", "its floor", "above it"] if has_margins else []
    columns = ["config", "Δ acc", "its floor", "above it", "Δ log ppl", "its floor", "above it", *of_margins]
    columns.append("estimated from")
    rows = []
    for c in with_floor:
        floor = c.floor
        if floor is None:
            continue
        above = {None: ABSENT, True: "yes", False: "no"}
        rows.append(
            [
                Cell(study.config_text(c.row)),
                number_cell(c.accuracy and c.accuracy.difference, "+.4f"),
                number_cell(floor.accuracy, ".2g"),
                Cell(above[c.accuracy_above_floor]),
                number_cell(c.perplexity and c.perplexity.difference, "+.4f"),
                number_cell(floor.log_perplexity, ".2g"),
                Cell(above[c.perplexity_above_floor]),
            ]
        )
        if has_margins:
            change = number_cell(c.margin and c.margin.difference, "+.4f")
            rows[-1] += [change, number_cell(floor.margin, ".2g"), Cell(above[c.margin_above_floor])]
        rows[-1].append(Cell(floor.source))
    return Table("Differences from the baseline and their noise floor", columns, rows)
