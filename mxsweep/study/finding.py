"""Say what was found, in a sentence or two, and the phrases that such sentences are made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mxsweep.results.rows import Row


@dataclass(frozen=True)
class Finding:
    """Hold a sentence or two, and the runs that they rest on."""

    # "attribution", "remedy", "no effect", "effect", "arithmetic", "error", "scale", "distance", "noise", "examples",
    # "training"
    kind: str
    text: str
    runs: list[str]


def format_range(values: Sequence[float], form: str) -> str:
    """Return the least to the greatest value in a number format, as "1 to 3"; one of equals."""
    low, high = format(min(values), form), format(max(values), form)
    return with_minus_signs(low if low == high else f"{low} to {high}")


def format_exponents(figures: Sequence[dict[str, Any]]) -> str | None:
    """Return the smallest to the largest wanted exponent as text; None where the scales have none."""
    lows = [figure["exponent_min"] for figure in figures if figure.get("exponent_min") is not None]
    highs = [figure["exponent_max"] for figure in figures if figure.get("exponent_max") is not None]
    return with_minus_signs(f"{min(lows)}…{max(highs)}") if lows and highs else None


def with_minus_signs(text: str) -> str:
    """Put true minus signs in the place of hyphens."""
    return text.replace("-", "−")


def join_with_and(parts: Sequence[str]) -> str:
    """Join parts of a sentence: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def note_sampling(kind: str) -> str:
    """Say so where figures of a kind of tensor are of a sample: weights alone are measured whole."""
    return "" if kind == "weight" else " (sampled)"


def format_runs(count: int) -> str:
    """Return a number of runs as text."""
    return f"{count} run{'s' * (count != 1)}"


def format_pairs(count: int) -> str:
    """Return a number of pairs as text."""
    return f"{count} pair{'s' * (count != 1)}"


def run_ids(rows: Iterable[Row]) -> list[str]:
    """List the ids of the rows' runs, each once."""
    return list(dict.fromkeys(row.run.run_id for row in rows))
