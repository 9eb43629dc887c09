"""Say what going from one value of a knob to the next does, from pairs of runs that differ in nothing else."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.results.knob_words import knob_title, name_rows, value_text, value_word
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_bases import are_comparable
from mxsweep.results.tensor_errors import KIND_TITLES
from mxsweep.statistics.paired_tests import ALPHA, holm
from mxsweep.study.comparison import Comparison
from mxsweep.study.finding import (
    Finding,
    format_exponents,
    format_pairs,
    format_range,
    join_with_and,
    note_sampling,
    run_ids,
)
from mxsweep.study.knob_effects import KnobEffect
from mxsweep.study.tensor_findings import signal_over_error

LEAST_DB = 0.2  # of a change worth a sentence


def describe_no_effect(effect: KnobEffect) -> Iterable[Finding]:
    """Say where neighbours' every outcome is the same, and, of scale bits, why."""
    for (low, high), pairs in _pairs_by_values(effect).items():
        same = [pair for pair in pairs if pair.identical]
        if not same:
            continue
        counts = sorted({pair.n for pair in same})
        text = (
            f"{_values(effect.knob, low, 'and', high)} are identical in {_share_of_pairs(len(same), len(pairs))} of "
            f"runs that differ in nothing else: every one of the {format_range(counts, ',d')} examples has the "
            "same outcome to the last digit."
        )
        rows = [row for pair in same for row in (pair.other, pair.row)]
        if effect.knob == "scale_bits" and low.isdigit():
            text += _why_scale_bits_agree(rows, int(low))
        text += _how_many_proven(same)
        yield Finding("no effect", text, run_ids(rows))


def _why_scale_bits_agree(rows: Sequence[Row], bits: int) -> str:
    """Set exponents against what the narrower scale holds; nothing where a scale was clamped, or none is known."""
    spans = []
    for kind in TENSOR_KINDS:
        figures = [known[kind] for row in rows if kind in (known := row.tensors)]
        if any(figure.get("clamped") for figure in figures):
            return ""
        if span := format_exponents(figures):
            spans.append(f"of {KIND_TITLES[kind]}{note_sampling(kind)} span {span}")
    if not spans:
        return ""
    held = 2 ** (bits - 1) - 1
    return f" The scale exponents {join_with_and(spans)}, {bits} bits hold ±{held}: no scale was clamped."


def _how_many_proven(pairs: Sequence[Comparison]) -> str:
    """Say of how many pairs one run was not evaluated; nothing where both of all were."""
    proven = sum(bool(pair.row.proven_by or pair.other.proven_by) for pair in pairs)
    if not proven:
        return ""
    return (
        f" In {_share_of_pairs(proven, len(pairs))} one run was not evaluated, but proven to come out as the other "
        "(or as a third that both come out as): no second measurement."
    )


def describe_cost_of_kv(effects: Sequence[KnobEffect], against: Mapping[Path, Comparison]) -> Iterable[Finding]:
    """Say what keys and values cost beside what weights and activations cost already."""
    for effect in effects:
        if effect.knob != "kv_quant":
            continue
        for (low, high), pairs in _pairs_by_values(effect).items():
            lines, rows = [], []
            for pair in pairs:
                before = against.get(pair.other.run.path)
                if low != "none" or pair.other.is_baseline or not (pair.perplexity and before and before.perplexity):
                    continue
                lines.append((math.exp(before.perplexity.difference), math.exp(pair.perplexity.difference)))
                rows += [pair.other, pair.row]
            if lines:
                linear, kv = zip(*lines, strict=True)
                text = (
                    f"Quantizing keys and values to {high} multiplies perplexity by {format_range(kv, '.3f')}, on "
                    f"top of the {format_range(linear, '.3f')} that the linear layers' formats cost alone."
                )
                yield Finding("effect", text, run_ids(rows))


def describe_error_change(effects: Sequence[KnobEffect]) -> Iterable[Finding]:
    """Say of which kinds of tensor the signal over error changes with a knob, and by how much.

    Nothing of a pair whose errors are in two metrics, as those of weights with and without matrices of their inputs'.
    """
    for effect in effects:
        for (low, high), pairs in _pairs_by_values(effect).items():
            parts = []
            for kind in TENSOR_KINDS:
                both = [
                    (signal_over_error(pair.other).get(kind), signal_over_error(pair.row).get(kind))
                    for pair in pairs
                    if are_comparable(pair.other, pair.row, kind)
                ]
                changes = [after - before for before, after in both if before is not None and after is not None]
                if changes and max(map(abs, changes)) >= LEAST_DB:
                    parts.append(f"of {KIND_TITLES[kind]}{note_sampling(kind)} by {format_range(changes, '+.1f')} dB")
            if parts:
                changed = f"changes the signal over quantization error {join_with_and(parts)}"
                text = f"{_values(effect.knob, low, '→', high)} {changed}."
                yield Finding("error", text, run_ids(row for pair in pairs for row in (pair.other, pair.row)))


def describe_distance(effects: Sequence[KnobEffect], shown: Sequence[str]) -> Iterable[Finding]:
    """Name neighbours that accuracy cannot tell apart, and whose distance from the baseline differs all the same.

    The distances are compared as if they were of different samples, which makes the test too careful, and by Holm's
    method over each knob's pairs.
    """
    for effect in effects:
        undecided = {pair.test: pair for pair in effect.comparisons if pair.accuracy_significant is False}
        pairs = [pair for pair in undecided.values() if _has_distance(pair.row) and _has_distance(pair.other)]
        for pair, p in zip(pairs, holm([_distance_p(pair.row, pair.other) for pair in pairs]), strict=True):
            if not p < ALPHA:
                continue
            ours, theirs = pair.row.distance, pair.other.distance
            low, high = (label(row.knobs.get(effect.knob)) for row in (pair.other, pair.row))
            text = (
                f"Accuracy does not tell {value_text(effect.knob, [low])} from {value_word(effect.knob, high)}"
                f"{_elsewhere(pair, effect, shown)} (p = {pair.accuracy_p:.2g}), the distance from the baseline does "
                f"(p = {p:.2g}): Kullback-Leibler divergence {theirs['kl_nats']:.3g} against {ours['kl_nats']:.3g} "
                f"nats, the same most likely token at {theirs['top1_agreement']:.1%} against "
                f"{ours['top1_agreement']:.1%} of the sampled positions."
            )
            yield Finding("distance", text, run_ids([pair.other, pair.row]))


def _has_distance(row: Row) -> bool:
    values = [row.distance.get(name) for name in ("kl_nats", "kl_nats_stderr", "top1_agreement")]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _distance_p(row: Row, other: Row) -> float:
    """Return the two-sided p value of a difference of independent, normally distributed means; NaN without error."""
    spread = math.hypot(row.distance["kl_nats_stderr"], other.distance["kl_nats_stderr"])
    difference = abs(row.distance["kl_nats"] - other.distance["kl_nats"])
    return math.erfc(difference / spread / math.sqrt(2)) if spread else math.nan


def _elsewhere(pair: Comparison, effect: KnobEffect, shown: Sequence[str]) -> str:
    """Name the knobs that tell a pair from the other pairs of its effect."""
    rows = [each.row for each in effect.comparisons]
    names = [name for name in shown if name != effect.knob and name in pair.row.knobs]
    names = [name for name in names if len({label(row.knobs.get(name, "")) for row in rows}) > 1]
    return f" at {name_rows([pair.row], names)}" if names else ""


def _values(knob: str, low: str, between: str, high: str) -> str:
    """Return a knob and two of its values in words, as the start of a sentence."""
    text = f"{knob_title(knob)} {value_word(knob, low)} {between} {value_word(knob, high)}"
    return f"{text[0].upper()}{text[1:]}"


def _pairs_by_values(effect: KnobEffect) -> dict[tuple[str, str], list[Comparison]]:
    """Return the pairs of an effect by the two values of the knob."""
    by_values: dict[tuple[str, str], list[Comparison]] = {}
    for pair in effect.comparisons:
        low, high = (label(row.knobs[effect.knob]) for row in (pair.other, pair.row))
        by_values.setdefault((low, high), []).append(pair)
    return by_values


def _share_of_pairs(count: int, total: int) -> str:
    return (
        f"all {format_pairs(total)}"
        if count == total > 1
        else f"the {format_pairs(1)}"
        if total == 1
        else f"{count} of {format_pairs(total)}"
    )
