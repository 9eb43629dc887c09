"""What the numbers mean: sentences, each drawn from the data of the runs that it speaks of and from nothing else.

Significant means p < 0.05 after Holm's correction over a knob's comparisons; see compare.py.

A sentence is left out, never guessed, where what it would rest on was not measured: no statement on single examples
without their outcomes, none on activations, keys or values without diagnostics, none on noise without repeats.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mxsweep.results.groups import Group
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_errors import KIND_TITLES, KINDS, read_tensors, tensor_figures
from mxsweep.study.compare import ALPHA, Comparison, KnobEffect
from mxsweep.study.paired_tests import holm

LEAST_DB = 0.2  # of a change worth a sentence


@dataclass(frozen=True)
class Finding:
    """A sentence or two, and the runs that they rest on."""

    kind: str  # "remedy", "no effect", "effect", "arithmetic", "error", "scale", "distance", "noise"
    text: str
    runs: list[str]


def findings(
    group: Group, against: Mapping[Path, Comparison], effects: Sequence[KnobEffect], shown: Sequence[str] = ()
) -> list[Finding]:
    """What can be said of a group of runs.

    Args:
        against: each run compared with its baseline, by the run's folder.
        effects: neighbours in each knob, compared.
        shown: the knobs that tell runs apart.
    """
    quantized = [row for row in group.rows if not row.is_baseline]
    found = [finding for effect in effects for finding in (*_without_effect(effect), *_with_effect(effect))]
    found += [
        *_cost_of_kv(effects, against),
        *_error_along(effects),
        *_where_error_enters(quantized),
        *_worst_tensors(quantized),
    ]
    found += [*_lost_elements(quantized), *_clamped_scales(quantized), *_unlike_exact(quantized)]
    found += [*_finer_than_accuracy(effects, shown), *_noise(group)]
    return found


def _without_effect(effect: KnobEffect) -> Iterable[Finding]:
    """Neighbours whose every outcome is the same, and, of scale bits, why."""
    for (low, high), pairs in _by_values(effect).items():
        same = [pair for pair in pairs if pair.identical]
        if not same:
            continue
        counts = sorted({pair.n for pair in same})
        text = (
            f"{effect.knob} {low} and {high} are identical in {_of(len(same), len(pairs))} of runs that differ in "
            f"nothing else: every one of the {_span(counts, ',d')} examples has the same outcome to the last digit."
        )
        rows = [row for pair in same for row in (pair.other, pair.row)]
        if effect.knob == "scale_bits" and low.isdigit():
            text += _why_scale_bits_agree(rows, int(low))
        yield Finding("no effect", text, _ids(rows))


def _why_scale_bits_agree(rows: Sequence[Row], bits: int) -> str:
    """Exponents against what the narrower scale holds; nothing where a scale was clamped, or none is known."""
    spans = []
    for kind in KINDS:
        figures = [known[kind] for row in rows if kind in (known := tensor_figures(row))]
        if any(figure.get("clamped") for figure in figures):
            return ""
        if span := _exponents(figures):
            spans.append(f"of {KIND_TITLES[kind]}{_sampled(kind)} span {span}")
    if not spans:
        return ""
    held = 2 ** (bits - 1) - 1
    return f" The scale exponents {_and(spans)}, {bits} bits hold ±{held}: no scale was clamped."


def _with_effect(effect: KnobEffect) -> Iterable[Finding]:
    """What going from one value of a knob to the next does, and whether that is more than chance and noise."""
    for (low, high), pairs in _by_values(effect).items():
        told = [pair for pair in pairs if not pair.identical and pair.why_not is None]
        distinct = list({pair.test: pair for pair in told}.values())
        accuracies = [pair.accuracy.difference for pair in told if pair.accuracy]
        factors = [math.exp(pair.perplexity.difference) for pair in told if pair.perplexity]
        parts = []
        if accuracies:
            verdicts = [(pair.accuracy_significant, pair.accuracy_above_floor) for pair in distinct if pair.accuracy]
            parts.append(f"accuracy by {_span(accuracies, '+.4f')} ({_verdict(verdicts)})")
        if factors:
            verdicts = [
                (pair.perplexity_significant, pair.perplexity_above_floor) for pair in distinct if pair.perplexity
            ]
            parts.append(f"perplexity by a factor of {_span(factors, '.3f')} ({_verdict(verdicts)})")
        if parts:
            text = (
                f"{effect.knob} {low} → {high} changes {' and '.join(parts)}, in {_pairs(len(told))} of runs that "
                f"differ in nothing else{_outcomes(len(distinct), len(told))}."
            )
            yield Finding("effect", text, _ids(row for pair in told for row in (pair.other, pair.row)))


def _verdict(verdicts: Sequence[tuple[bool | None, bool | None]]) -> str:
    """How many differences are significant, and larger than noise makes them where that is known."""
    count = sum(bool(significant) and above is not False for significant, above in verdicts)
    known = any(above is not None for _, above in verdicts)
    return f"{count} of {len(verdicts)} significant{' and larger than the numerical noise' if known else ''}"


def _outcomes(distinct: int, pairs: int) -> str:
    """What a count of pairs does not say: that some came out the same, and were tested once."""
    return "" if distinct == pairs else f", {distinct} of them with different outcomes"


def _cost_of_kv(effects: Sequence[KnobEffect], against: Mapping[Path, Comparison]) -> Iterable[Finding]:
    """What keys and values cost beside what weights and activations cost already."""
    for effect in effects:
        if effect.knob != "kv_quant":
            continue
        for (low, high), pairs in _by_values(effect).items():
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
                    f"Quantizing keys and values to {high} multiplies perplexity by {_span(kv, '.3f')}, on top of the "
                    f"{_span(linear, '.3f')} that the linear layers' formats cost alone."
                )
                yield Finding("effect", text, _ids(rows))


def _error_along(effects: Sequence[KnobEffect]) -> Iterable[Finding]:
    """Of which kinds of tensor the signal over error changes with a knob, and by how much."""
    for effect in effects:
        for (low, high), pairs in _by_values(effect).items():
            parts = []
            for kind in KINDS:
                both = [(_sqnrs(pair.other).get(kind), _sqnrs(pair.row).get(kind)) for pair in pairs]
                changes = [after - before for before, after in both if before is not None and after is not None]
                if changes and max(map(abs, changes)) >= LEAST_DB:
                    parts.append(f"of {KIND_TITLES[kind]}{_sampled(kind)} by {_span(changes, '+.1f')} dB")
            if parts:
                text = f"{effect.knob} {low} → {high} changes the signal over quantization error {_and(parts)}."
                yield Finding("error", text, _ids(row for pair in pairs for row in (pair.other, pair.row)))


def _where_error_enters(rows: Sequence[Row]) -> Iterable[Finding]:
    """Which kind of tensor has the least signal over error; one sentence for runs of which the same is true."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        ratios = _sqnrs(row)
        if len(ratios) > 1:
            alike.setdefault(tuple(sorted(ratios, key=lambda kind: ratios[kind])), []).append(row)
    for order, members in alike.items():
        spans = [f"{KIND_TITLES[kind]} {_span([_sqnrs(row)[kind] for row in members], '.1f')} dB" for kind in order]
        text = (
            f"Signal over quantization error is lowest for {KIND_TITLES[order[0]]} in {_runs(len(members))}: "
            f"{', '.join(spans)}."
        )
        yield Finding("error", text, _ids(members))


def _sqnrs(row: Row) -> dict[str, float]:
    ratios = {kind: figures.get("sqnr_db") for kind, figures in tensor_figures(row).items()}
    return {kind: ratio for kind, ratio in ratios.items() if isinstance(ratio, float) and math.isfinite(ratio)}


def _worst_tensors(rows: Sequence[Row]) -> Iterable[Finding]:
    """The tensor with the least signal over error, and how far it is below the median of its kind."""
    alike: dict[tuple[str, str], list[tuple[Row, float, float]]] = {}
    for row in rows:
        tensors = [tensor for tensor in read_tensors(row.run) if math.isfinite(tensor.sqnr_db)]
        if len(tensors) < 2:
            continue
        worst = min(tensors, key=lambda tensor: tensor.sqnr_db)
        middle = median(tensor.sqnr_db for tensor in tensors if tensor.kind == worst.kind)
        alike.setdefault((worst.kind, worst.module), []).append((row, worst.sqnr_db, middle))
    for (kind, module), members in alike.items():
        own, middles = [ratio for _, ratio, _ in members], [middle for _, _, middle in members]
        text = (
            f"The tensor with the least signal over error is {KIND_TITLES[kind]} of {module} in {_runs(len(members))}: "
            f"{_span(own, '.1f')} dB, where the median of {KIND_TITLES[kind]} is {_span(middles, '.1f')} dB."
        )
        yield Finding("error", text, _ids(row for row, _, _ in members))


def _lost_elements(rows: Sequence[Row]) -> Iterable[Finding]:
    """Shares of elements that became zero or saturated, from the least to the most of the runs."""
    for kind in KINDS:
        known = [(row, figures[kind]) for row in rows if kind in (figures := tensor_figures(row))]
        known = [(row, figure) for row, figure in known if figure.get("elements")]
        if not known:
            continue
        flushed = [figure["flushed"] / figure["elements"] for _, figure in known]
        saturated = [figure["saturated"] / figure["elements"] for _, figure in known]
        if max(flushed) == max(saturated) == 0:
            continue
        text = (
            f"Of the elements of {KIND_TITLES[kind]}{_sampled(kind)}, {_span(flushed, '.2%')} became zero, and "
            f"{_span(saturated, '.2%')} were cut to the largest value that their scale allows."
        )
        yield Finding("error", text, _ids(row for row, _ in known))


def _clamped_scales(rows: Sequence[Row]) -> Iterable[Finding]:
    """Scale bits that did not suffice."""
    alike: dict[tuple[str, str], list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        for kind, figure in tensor_figures(row).items():
            if figure.get("clamped"):
                held = f"scale_bits={row.knobs['scale_bits']}" if "scale_bits" in row.knobs else ""
                alike.setdefault((kind, held or f"scale={label(row.knobs.get('scale'))}"), []).append((row, figure))
    for (kind, scale), members in alike.items():
        shares = [figure["clamped"] / figure["blocks"] for _, figure in members]
        text = f"{scale} clamped the scales of {_span(shares, '.2%')} of the blocks of {KIND_TITLES[kind]}"
        span = _exponents([figure for _, figure in members])
        if span and scale.startswith("scale_bits"):
            held = 2 ** (int(scale.partition("=")[2]) - 1) - 1
            text += f", whose exponents span {span} where ±{held} can be held"
        yield Finding("scale", f"{text}, in {_runs(len(members))}.", _ids(row for row, _ in members))


def _unlike_exact(rows: Sequence[Row]) -> Iterable[Finding]:
    """How many elements the native arithmetic makes something else of than the exact one."""
    alike: dict[str, list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        figures = tensor_figures(row)
        if any(figure.get("unlike_exact") is not None for figure in figures.values()):
            environment = (row.run.record or {}).get("environment")
            dtype = str((isinstance(environment, dict) and environment.get("dtype")) or "the tensors' own dtype")
            alike.setdefault(dtype, []).append((row, figures))
    for dtype, members in alike.items():
        spans = []
        for kind in KINDS:
            known = [figures[kind] for _, figures in members if kind in figures]
            shares = [
                figure["unlike_exact"] / figure["elements"]
                for figure in known
                if figure.get("unlike_exact") is not None
            ]
            if shares:
                spans.append(f"{_span(shares, '.3%')} of the elements of {KIND_TITLES[kind]}{_sampled(kind)}")
        text = (
            f"The native arithmetic, which takes block exponents from a logarithm in {dtype}, gives other values than "
            f"the exact one (of custom_cuda=true) for {_and(spans)}, in {_runs(len(members))}."
        )
        yield Finding("arithmetic", text, _ids(row for row, _ in members))


def _finer_than_accuracy(effects: Sequence[KnobEffect], shown: Sequence[str]) -> Iterable[Finding]:
    """Neighbours that accuracy cannot tell apart, and whose distance from the baseline differs all the same.

    The distances are compared as if they were of different samples, which makes the test too careful, and by Holm's
    method over each knob's pairs.
    """
    for effect in effects:
        told = {pair.test: pair for pair in effect.comparisons if pair.accuracy_significant is False}
        pairs = [pair for pair in told.values() if _has_distance(pair.row) and _has_distance(pair.other)]
        for pair, p in zip(pairs, holm([_distance_p(pair.row, pair.other) for pair in pairs]), strict=True):
            if not p < ALPHA:
                continue
            ours, theirs = pair.row.distance, pair.other.distance
            low, high = (label(row.knobs.get(effect.knob)) for row in (pair.other, pair.row))
            text = (
                f"Accuracy does not tell {effect.knob} {low} from {high}{_elsewhere(pair, effect, shown)} (p = "
                f"{pair.accuracy_p:.2g}), the distance from the baseline does (p = {p:.2g}): Kullback-Leibler "
                f"divergence {theirs['kl_nats']:.3g} against {ours['kl_nats']:.3g} nats, the same most likely token at "
                f"{theirs['top1_agreement']:.1%} against {ours['top1_agreement']:.1%} of the sampled positions."
            )
            yield Finding("distance", text, _ids([pair.other, pair.row]))


def _has_distance(row: Row) -> bool:
    values = [row.distance.get(name) for name in ("kl_nats", "kl_nats_stderr", "top1_agreement")]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _distance_p(row: Row, other: Row) -> float:
    """Two-sided p value of the difference of two independent means, normally distributed; NaN without any error."""
    spread = math.hypot(row.distance["kl_nats_stderr"], other.distance["kl_nats_stderr"])
    difference = abs(row.distance["kl_nats"] - other.distance["kl_nats"])
    return math.erfc(difference / spread / math.sqrt(2)) if spread else math.nan


def _elsewhere(pair: Comparison, effect: KnobEffect, shown: Sequence[str]) -> str:
    """The knobs that tell a pair from the other pairs of its effect."""
    rows = [each.row for each in effect.comparisons]
    names = [name for name in shown if name != effect.knob and name in pair.row.knobs]
    names = [name for name in names if len({label(row.knobs.get(name, "")) for row in rows}) > 1]
    return f" at {', '.join(f'{name}={label(pair.row.knobs[name])}' for name in names)}" if names else ""


def _noise(group: Group) -> Iterable[Finding]:
    """How far repeats of one config differ."""
    repeated = [row for row in group.rows if row.noise]
    for name, rows in (
        ("an unquantized", [row for row in repeated if row.is_baseline]),
        ("a quantized", [row for row in repeated if not row.is_baseline]),
    ):
        accuracies = [spread[0] for row in rows if (spread := _spread(row, row.accuracy_name)) is not None]
        perplexities = [spread[1] for row in rows if (spread := _spread(row, row.ppl_name)) is not None]
        parts = [f"accuracy by up to {max(accuracies):.2g}"] if accuracies else []
        parts += [f"perplexity by up to {max(perplexities):.2%}"] if perplexities else []
        if parts:
            repeats = [len(next(iter(row.noise.values()))) for row in rows]
            text = (
                f"Repeating {name} config with rounding-sized perturbations moves its {_and(parts)} "
                f"({_runs(len(rows))}, {_span(repeats, 'd')} repeats each)."
            )
            yield Finding("noise", text, _ids(rows))


def _spread(row: Row, metric: str | None) -> tuple[float, float] | None:
    """How far repeats are from the unperturbed metric at most, absolutely and relatively; None where none can be."""
    if metric not in row.metrics or metric not in row.noise:
        return None
    value = row.metrics[metric]
    most = max((abs(repeat - value) for repeat in row.noise[metric]), default=math.nan)
    return (most, most / value if value else math.inf) if math.isfinite(most) else None


def _by_values(effect: KnobEffect) -> dict[tuple[str, str], list[Comparison]]:
    """The pairs of an effect by the two values of the knob."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for pair in effect.comparisons:
        low, high = (label(row.knobs[effect.knob]) for row in (pair.other, pair.row))
        found.setdefault((low, high), []).append(pair)
    return found


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return _minus(low if low == high else f"{low} to {high}")


def _exponents(figures: Sequence[dict[str, Any]]) -> str | None:
    """From the smallest to the largest wanted exponent; None where the scales have none."""
    lows = [figure["exponent_min"] for figure in figures if figure.get("exponent_min") is not None]
    highs = [figure["exponent_max"] for figure in figures if figure.get("exponent_max") is not None]
    return _minus(f"{min(lows)}…{max(highs)}") if lows and highs else None


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sampled(kind: str) -> str:
    return "" if kind == "weight" else " (sampled)"


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)}"


def _of(count: int, total: int) -> str:
    return (
        f"all {_pairs(total)}"
        if count == total > 1
        else f"the {_pairs(1)}"
        if total == 1
        else f"{count} of {_pairs(total)}"
    )


def _ids(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.run.run_id for row in rows))
