"""Say of which runs a run proves that they come out the same, from the exponents that its blocks wanted.

A run of a sweep with `reuse=proven` records the least and the largest exponent that an `e8m0` scale wanted of any
block, of every tensor in every pass (`numerics/wanted_exponents.py`). Where `scale_bits` is all that another run
differs in, and the bits of both hold these exponents, the two compute the same, step by step: the first number to
differ could only come of an exponent that one of them does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.results.record import SAMPLES_NAME

WANTED = "wanted_exponents"  # in a record: [least, largest]; not there where they are not known of all blocks
PROVEN_BY = "proven_by"  # in the record of a run that was not evaluated: which run proves it, and why


@dataclass(frozen=True)
class Candidate:
    """Name a run that another one of its sweep may prove, or that may prove the other: they differ in scale bits alone.

    Attributes:
        bits: its scale bits.
        holds: the largest exponent that each of its `e8m0` scales holds.
    """

    run_id: str
    folder: Path
    config_hash: str
    bits: int
    holds: int


@dataclass(frozen=True)
class Proof:
    """Hold what the run left that proves what another one comes to, and why it does."""

    folder: Path
    record: Mapping[str, Any]
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Return what a record says of it."""
        return {
            "run_id": self.record["run_id"],
            "config_hash": self.record["config_hash"],
            "reason": self.reason,
        }


def prove(run: Candidate, by: Candidate, record: Mapping[str, Any]) -> Proof | None:
    """Return the proof that ``run`` comes to what ``by`` did, which left ``record``; None where there is none."""
    is_measured = record["status"] == "done" and record.get("config_hash") == by.config_hash
    wanted = record.get(WANTED)
    if not is_measured or PROVEN_BY in record or not (by.folder / SAMPLES_NAME).is_file():
        return None
    if not (isinstance(wanted, list) and len(wanted) == 2 and all(type(end) is int for end in wanted)):
        return None
    (low, high), held = wanted, min(run.holds, by.holds)
    if not -held <= low <= high <= held:
        return None
    narrow, wide = sorted((run.bits, by.bits))
    reason = (
        f"in no pass did a block of any tensor want a scale exponent outside {low} to {high}; scale_bits {narrow} and "
        f"{wide} hold ±{held} at least"
    )
    return Proof(by.folder, record, reason)
