"""Find what quantizing each kind of tensor costs by itself, and whether the costs add up to that of all together.

A run quantizes some kinds of tensor: weights, activations, keys, values. Where another quantizes fewer of them, those
in the same formats, and nothing else is different, its cost is a part of the first one's. The cost is the change of
log-perplexity from the baseline, in nats. Costs add up where a run's is the sum of those of runs that quantize its
kinds between them, each kind once; the excess over that sum is a mean over examples as each cost is, so that its
interval is paired, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.formats.recipe import TENSOR_KINDS, KVOptions
from mxsweep.results.groups import Group, Results
from mxsweep.results.rows import Row, label
from mxsweep.results.tensor_errors import KIND_TITLES
from mxsweep.study.comparison import ALPHA, Comparison, paired_loglikelihoods
from mxsweep.study.finding import Finding, join_with_and, run_ids
from mxsweep.study.paired_tests import LogPerplexityDifference, compare_log_perplexity, holm

Kinds = frozenset[str]
LINEAR, CACHED = ("weight", "activation"), ("key", "value")
VALUE_OPTIONS = ("first", "recent", "scales", "latent")  # of keys and values, those that values by themselves have
# Entries of a run's identity that are of some kinds of tensor only, and those that may differ between run and part.
OF_KINDS = ("layers", "kv", "computed", "kv_options", "ptq", "calibration", "remedies")
MAY_DIFFER = ("quantized", "diagnostics")


@dataclass(frozen=True)
class Sum:
    """Hold a run's cost beside the sum of its parts' costs.

    Attributes:
        whole: the kinds that the run quantizes.
        parts: those of each part.
        excess: the run's log-perplexity minus what it would be if costs added up, nats.
        total: the sum of the parts' costs, nats.
        p: of the excess, adjusted by Holm's method over the sums of the group.
    """

    whole: Kinds
    parts: tuple[Kinds, ...]
    excess: LogPerplexityDifference
    total: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Return whether the costs do not add up, by more than chance in the choice of examples."""
        return self.p < ALPHA


@dataclass(frozen=True)
class Attribution:
    """Hold what costs what under the formats of one run.

    Attributes:
        config: the knobs that tell the run from other quantized ones of its group; "" where none does.
        runs: of each set of kinds the run that quantizes them alone, from single kinds to all of them.
        costs: the same runs compared with their baselines, where they could be.
        sums: of runs of several kinds, by the fewest and by the most parts.
    """

    config: str
    runs: dict[Kinds, Row]
    costs: dict[Kinds, Comparison]
    sums: list[Sum]

    @property
    def whole(self) -> Kinds:
        """Return the kinds that the run of all parts quantizes."""
        return max(self.runs, key=len)


def find_attributions(results: Results, group: Group, comparisons: Mapping[Path, Comparison]) -> list[Attribution]:
    """Find the runs of a group whose kinds of tensor other runs quantize between them; the largest of them only.

    Runs that trained, and those that choose formats under a budget of bits, which are other ones with other kinds, are
    left out. `comparisons` are the runs' comparisons with their baselines, by folder.
    """
    known = [(row, kinds) for row in group.rows if (kinds := kinds_of(row))]
    by_signature: dict[str, Row] = {}
    for row, kinds in known:
        by_signature.setdefault(_signature(row, kinds), row)
    sets = {kinds for _, kinds in known}
    families = []
    for row, kinds in known:
        of_parts = {part: by_signature.get(_signature(row, part)) for part in sets if part < kinds}
        members = {
            part: other for part, other in of_parts.items() if other is not None and _is_calibrated_so(other, row)
        }
        members[kinds] = row
        if by_signature[_signature(row, kinds)] is row and any(_partitions(kinds, members)):
            families.append(dict(sorted(members.items(), key=lambda item: _order(item[0]))))
    inner = {each.run.path for one in families for kinds, each in one.items() if kinds != max(one, key=len)}
    families = [one for one in families if one[max(one, key=len)].run.path not in inner]
    found = []
    for runs in families:
        costs = {kinds: cost for kinds, row in runs.items() if (cost := comparisons.get(row.run.path)) is not None}
        found.append(Attribution("", runs, costs, list(_sums(group, runs))))
    return _named(results, _adjusted(found))


def kinds_of(row: Row) -> Kinds:
    """Return the kinds of tensor that a run quantizes; none of a run of which that is not known, or not so plain."""
    quantized = row.recorded("identity", "quantized")
    if not isinstance(quantized, dict) or "training" in quantized or "formats" in (quantized.get("ptq") or {}):
        return frozenset()
    try:
        layers = [formats for _, *formats in quantized["layers"]]
        formats = {kind: [each[i] for each in layers] for i, kind in enumerate(LINEAR)}
        formats |= {kind: [fmt] for kind, fmt in zip(CACHED, quantized["kv"], strict=True)}
    except (KeyError, TypeError, ValueError, IndexError):  # of another version
        return frozenset()
    return frozenset(kind for kind, each in formats.items() if any(each))


def describe_attributions(found: Sequence[Attribution]) -> Iterable[Finding]:
    """Say of each what its single kinds cost, from the most to the least, and whether that is what all of them cost."""
    for one in found:
        single = [(kinds, one.costs.get(kinds)) for kinds in one.runs if len(kinds) == 1 and kinds != one.whole]
        known = [(kinds, cost.perplexity) for kinds, cost in single if cost is not None and cost.perplexity]
        known.sort(key=lambda item: -item[1].difference)
        parts = [f"{format_nats(cost)} ({kinds_text(kinds)})" for kinds, cost in known]
        if not parts:
            continue
        where = f"With {one.config}, q" if one.config else "Q"
        text = (
            f"{where}uantizing one kind of tensor alone changes log-perplexity by {join_with_and(parts)}, in nats with "
            "95 % intervals."
        )
        of_all = [each for each in one.sums if each.whole == one.whole]
        if of_all:
            text += f" {_sum_text(max(of_all, key=lambda each: len(each.parts)))}"
        yield Finding("attribution", text, run_ids(one.runs.values()))


def _sum_text(each: Sum) -> str:
    names = join_with_and([kinds_text(part) for part in each.parts])
    excess = format_nats(each.excess)
    if not each.is_significant:
        return (
            f"Together they cost {each.total + each.excess.difference:.3g}, which cannot be told from the sum of the "
            f"costs of {names}, {each.total:.3g} (difference {excess})."
        )
    more = "more" if each.excess.difference > 0 else "less"
    return (
        f"Together they cost {each.total + each.excess.difference:.3g}, {more} than the sum of the costs of {names}, "
        f"{each.total:.3g} (difference {excess}): the costs do not add up."
    )


def format_nats(difference: LogPerplexityDifference) -> str:
    """Return a difference and its 95 % interval, nats, as text."""
    low, high = difference.low, difference.high
    return f"{difference.difference:+.3g} [{low:+.3g}, {high:+.3g}]".replace("-", "−")


def kinds_text(kinds: Kinds) -> str:
    """Name kinds of tensor: "keys and values", "linear layers" (their weights and activations), "all"."""
    if len(kinds) == len(TENSOR_KINDS):
        return "all"
    if kinds == set(LINEAR):
        return "linear layers"
    return join_with_and([KIND_TITLES[kind] for kind in TENSOR_KINDS if kind in kinds])


def _order(kinds: Kinds) -> tuple[int, list[int]]:
    return len(kinds), [TENSOR_KINDS.index(kind) for kind in TENSOR_KINDS if kind in kinds]


def _signature(row: Row, kinds: Kinds) -> str:
    """Return what decides the result of a run that quantizes these of its kinds and is the same in all else.

    Two runs of one signature are one, whatever else is quantized in the run that it was taken of. What calibration
    both have is left to `_is_calibrated_so`, since a run may need none where one of more kinds does.
    """
    identity = row.recorded("identity")
    quantized = identity["quantized"]
    layers = [
        [name, *(fmt if kind in kinds else None for kind, fmt in zip(LINEAR, formats, strict=True))]
        for name, *formats in quantized["layers"]
    ]
    options = KVOptions().as_dict() | (quantized.get("kv_options") or {})
    said = options if "key" in kinds else VALUE_OPTIONS if "value" in kinds else ()
    parts = [
        _without(identity, MAY_DIFFER),
        _without(quantized, OF_KINDS),
        quantized["computed"][:2],
        layers if kinds & set(LINEAR) else None,
        quantized.get("ptq") if "weight" in kinds else None,
        [fmt if kind in kinds else None for kind, fmt in zip(CACHED, quantized["kv"], strict=True)],
        {name: options.get(name) for name in said},
    ]
    return json.dumps(parts, sort_keys=True)


def _is_calibrated_so(row: Row, whole: Row) -> bool:
    ours, theirs = (each.recorded("identity", "quantized") for each in (row, whole))
    return all(ours[name] == theirs.get(name) for name in ("calibration", "remedies") if name in ours)


def _without(entries: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


def _partitions(kinds: Kinds, members: Mapping[Kinds, Row]) -> Iterator[tuple[Kinds, ...]]:
    """Yield the ways to make kinds of two or more sets that have a run each and no kind in common."""
    for part in members:
        if part < kinds and min(kinds, key=TENSOR_KINDS.index) in part:
            rest = kinds - part
            if rest in members:
                yield part, rest
            yield from ((part, *others) for others in _partitions(rest, members))


def _sums(group: Group, runs: Mapping[Kinds, Row]) -> Iterator[Sum]:
    for kinds, row in runs.items():
        ways = sorted(_partitions(kinds, runs), key=len)
        baseline = group.baseline_for(row)
        for parts in {tuple(way): None for way in (ways[:1] + ways[-1:])}:
            if baseline is None:
                continue
            paired = paired_loglikelihoods([baseline, row, *(runs[part] for part in parts)])
            if paired is None:
                continue
            base, together, *alone = paired.values
            expected = base + sum(each - base for each in alone)
            excess = compare_log_perplexity(expected, together, paired.weights)
            total = compare_log_perplexity(base, expected, paired.weights).difference
            yield Sum(kinds, tuple(sorted(parts, key=_order)), excess, total, excess.p)


def _adjusted(found: Sequence[Attribution]) -> list[Attribution]:
    """Return the attributions with the p values of their sums adjusted over all of them."""
    adjusted = iter(holm([each.p for one in found for each in one.sums]))
    return [
        Attribution(
            one.config,
            one.runs,
            one.costs,
            [Sum(each.whole, each.parts, each.excess, each.total, next(adjusted)) for each in one.sums],
        )
        for one in found
    ]


def _named(results: Results, found: Sequence[Attribution]) -> list[Attribution]:
    """Return the attributions with names, which are those of the knobs that tell their runs of all parts apart."""
    wholes = [one.runs[one.whole] for one in found]
    telling = [name for name in results.shown if len({label(row.knobs.get(name, "")) for row in wholes}) > 1]
    names = telling or [name for name in ("format", "kv_quant") if name in results.shown]
    configs = [" ".join(f"{name}={label(row.knobs[name])}" for name in names if name in row.knobs) for row in wholes]
    return [Attribution(name, one.runs, one.costs, one.sums) for name, one in zip(configs, found, strict=True)]
