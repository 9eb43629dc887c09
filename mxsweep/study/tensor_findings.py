"""Say what quantizing did to weights, activations, keys and values, from what each run recorded of its tensors."""

import math
from collections.abc import Iterable, Sequence
from functools import cmp_to_key
from statistics import median
from typing import Any

from mxsweep.formats.recipe import TENSOR_KINDS
from mxsweep.results.knob_words import value_text
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_bases import NOTE, has_own_metric
from mxsweep.results.tensor_errors import KIND_TITLES, read_tensors
from mxsweep.statistics.decibels import compare_db
from mxsweep.study.finding import (
    Finding,
    format_exponents,
    format_range,
    format_runs,
    join_with_and,
    note_sampling,
    run_ids,
)

_BY_RATIO = cmp_to_key(compare_db)


def describe_largest_error(rows: Sequence[Row]) -> Iterable[Finding]:
    """Say which kind of tensor has the least signal over error, in one sentence for runs of which the same is true."""
    alike: dict[tuple[bool, tuple[str, ...]], list[Row]] = {}
    for row in rows:
        ratios = signal_over_error(row)
        if len(ratios) > 1:
            own_metric = any(has_own_metric(row, kind) for kind in ratios)
            alike.setdefault((own_metric, tuple(sorted(ratios, key=lambda kind: _BY_RATIO(ratios[kind])))), []).append(
                row
            )
    for (own_metric, order), members in alike.items():
        ratios_by_kind = {kind: [signal_over_error(row)[kind] for row in members] for kind in order}
        spans = [f"{KIND_TITLES[kind]} {format_range(values, '.1f')} dB" for kind, values in ratios_by_kind.items()]
        text = (
            f"Signal over quantization error is lowest for {KIND_TITLES[order[0]]} in {format_runs(len(members))}: "
            f"{', '.join(spans)}." + (f" {NOTE}" if own_metric else "")
        )
        yield Finding("error", text, run_ids(members))


def signal_over_error(row: Row) -> dict[str, float]:
    """Return the signal over quantization error in dB by kind of tensor, where finite."""
    ratios = {kind: figures.get("sqnr_db") for kind, figures in row.tensors.items()}
    return {kind: ratio for kind, ratio in ratios.items() if isinstance(ratio, float) and math.isfinite(ratio)}


def describe_worst_tensor(rows: Sequence[Row]) -> Iterable[Finding]:
    """Name the tensor with the least signal over error, and how far it is below the median of its kind."""
    alike: dict[tuple[str, str, bool], list[tuple[Row, float, float]]] = {}
    for row in rows:
        tensors = [tensor for tensor in read_tensors(row.run) if math.isfinite(tensor.sqnr_db)]
        if len(tensors) < 2:
            continue
        worst = min(tensors, key=lambda tensor: _BY_RATIO(tensor.sqnr_db))
        middle = median(tensor.sqnr_db for tensor in tensors if tensor.kind == worst.kind)
        own_metric = any(has_own_metric(row, tensor.kind) for tensor in tensors)
        alike.setdefault((worst.kind, worst.module, own_metric), []).append((row, worst.sqnr_db, middle))
    for (kind, module, own_metric), members in alike.items():
        lowest, middles = [ratio for _, ratio, _ in members], [middle for _, _, middle in members]
        text = (
            f"The tensor with the least signal over error is {KIND_TITLES[kind]} of {module} in "
            f"{format_runs(len(members))}: {format_range(lowest, '.1f')} dB, "
            f"where the median of {KIND_TITLES[kind]} is {format_range(middles, '.1f')} dB."
            + (f" {NOTE}" if own_metric else "")
        )
        yield Finding("error", text, run_ids(row for row, _, _ in members))


def describe_lost_elements(rows: Sequence[Row]) -> Iterable[Finding]:
    """Give the shares of elements that became zero or saturated, from the least to the most of the runs."""
    for kind in TENSOR_KINDS:
        known = [(row, figures[kind]) for row in rows if kind in (figures := row.tensors)]
        known = [(row, figure) for row, figure in known if figure.get("elements")]
        if not known:
            continue
        flushed = [figure["flushed"] / figure["elements"] for _, figure in known]
        saturated = [figure["saturated"] / figure["elements"] for _, figure in known]
        if max(flushed) == max(saturated) == 0:
            continue
        text = (
            f"Of the elements of {KIND_TITLES[kind]}{note_sampling(kind)}, {format_range(flushed, '.2%')} became zero, "
            f"and {format_range(saturated, '.2%')} were cut to the largest value that their scale allows."
        )
        yield Finding("error", text, run_ids(row for row, _ in known))


def describe_clamped_scales(rows: Sequence[Row]) -> Iterable[Finding]:
    """Name the scale bits that did not suffice."""
    alike: dict[tuple[str, str], list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        for kind, figure in row.tensors.items():
            if figure.get("clamped"):
                held = f"scale_bits={row.knobs['scale_bits']}" if "scale_bits" in row.knobs else ""
                alike.setdefault((kind, held or f"scale={label(row.knobs.get('scale'))}"), []).append((row, figure))
    for (kind, scale), members in alike.items():
        shares = [figure["clamped"] / figure["blocks"] for _, figure in members]
        blocks = f"{format_range(shares, '.2%')} of the blocks of {KIND_TITLES[kind]}"
        text = f"{_scale_text(scale)} clamped the scales of {blocks}"
        span = format_exponents([figure for _, figure in members])
        if span and scale.startswith("scale_bits"):
            held = 2 ** (int(scale.partition("=")[2]) - 1) - 1
            text += f", whose exponents span {span} where ±{held} can be held"
        yield Finding("scale", f"{text}, in {format_runs(len(members))}.", run_ids(row for row, _ in members))


def _scale_text(scale: str) -> str:
    """Return a knob of scales and its value in words, as the start of a sentence: "Scale bits 4"."""
    knob, _, value = scale.partition("=")
    text = value_text(knob, [value])
    return f"{text[0].upper()}{text[1:]}"


def describe_native_arithmetic(rows: Sequence[Row]) -> Iterable[Finding]:
    """Say how many elements the native arithmetic makes something else of than the exact one."""
    alike: dict[str, list[tuple[Row, dict[str, Any]]]] = {}
    for row in rows:
        figures = row.tensors
        if any(figure.get("unlike_exact") is not None for figure in figures.values()):
            environment = (row.run.record or {}).get("environment")
            dtype = str((isinstance(environment, dict) and environment.get("dtype")) or "the tensors' own dtype")
            alike.setdefault(dtype, []).append((row, figures))
    for dtype, members in alike.items():
        spans = []
        for kind in TENSOR_KINDS:
            known = [figures[kind] for _, figures in members if kind in figures]
            shares = [
                figure["unlike_exact"] / figure["elements"]
                for figure in known
                if figure.get("unlike_exact") is not None
            ]
            if any(shares):
                size = format_range(shares, ".3%") if max(shares) >= 5e-6 else "less than 0.001%"
                spans.append(f"{size} of the elements of {KIND_TITLES[kind]}{note_sampling(kind)}")
        if not spans:
            continue
        text = (
            f"The native arithmetic, which takes block exponents from a logarithm in {dtype}, gives other values than "
            f"the exact one (of custom_cuda=true) for {join_with_and(spans)}, in {format_runs(len(members))}."
        )
        yield Finding("arithmetic", text, run_ids(row for row, _ in members))
