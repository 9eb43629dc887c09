"""Say where trained configs differ in what stays unquantized, so that their losses compare that, too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mxsweep.results.knob_words import enumerate_names
from mxsweep.study.change_words import format_bits
from mxsweep.study.finding import Finding, join_with_and, run_ids
from mxsweep.study.trained_configs import TrainedConfig

MOST_NAMED = 4  # configs that keep the same


def also_kept(configs: Sequence[TrainedConfig]) -> dict[str, list[str]]:
    """Return what each quantized config, by its name, keeps beside what all of them keep; empty where all are alike."""
    quantized = {one.name: one.kept for one in configs if not one.is_baseline}
    if len(set(quantized.values())) < 2:
        return {}
    common = frozenset.intersection(*quantized.values())
    return {name: sorted(kept - common) for name, kept in quantized.items()}


def bits_differ(configs: Sequence[TrainedConfig]) -> bool:
    """Return whether quantized configs differ in their bits a weight."""
    return len({bits for one in configs if not one.is_baseline and (bits := one.bits_per_weight) is not None}) > 1


def describe_kept(configs: Sequence[TrainedConfig]) -> list[Finding]:
    """Say which layers some quantized configs keep and others do not, and the bits a weight; nothing where none do."""
    kept = also_kept(configs)
    if not kept:
        return []
    by_kept: dict[tuple[str, ...], list[TrainedConfig]] = {}
    for one in configs:
        if not one.is_baseline:
            by_kept.setdefault(tuple(kept[one.name]), []).append(one)
    parts = [_say_kept(words, alike) for words, alike in sorted(by_kept.items(), reverse=True)]
    text = (
        "Configs differ in what they leave unquantized, which their losses and speeds have in them, too: "
        f"{'; '.join(parts)}."
    )
    rows = [row for alike in by_kept.values() for one in alike for row in one.rows.values()]
    return [Finding("training", text, run_ids(rows))]


def _say_kept(words: Sequence[str], configs: Sequence[TrainedConfig]) -> str:
    names = [one.name for one in configs]
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    named = enumerate_names([*names[:MOST_NAMED], *more], "and")
    keep = "keeps" if len(names) == 1 else "keep"
    what = join_with_and([_in_words(word) for word in words]) if words else "none of that"
    bits = sorted({bits for one in configs if (bits := one.bits_per_weight) is not None})
    ends = " to ".join(format_bits(end) for end in dict.fromkeys((bits[0], bits[-1]))) if bits else ""
    return f"{named} {keep} {what}" + (f" ({ends} bits a weight)" if ends else "")


def _in_words(entry: str) -> str:
    """Return an entry of keep_high as a person says it: ``last:4`` is the last 4 blocks."""
    found = re.fullmatch(r"(first|last)(?::(\d+))?", entry)
    if found is None:
        return entry
    end, count = found.group(1), int(found.group(2) or 1)
    return f"the {end} block" if count == 1 else f"the {end} {count} blocks"
