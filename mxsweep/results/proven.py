"""Say of which runs a run proves that they come out the same, from what its blocks wanted.

A run of a sweep with `reuse=proven` records the least and the largest exponent that an `e8m0` scale wanted of any
block, of every tensor in every pass (`numerics/wanted_exponents.py`). Where `scale_bits` is all that another run
differs in, and the bits of both hold these exponents, the two compute the same, step by step: the first number to
differ could only come of an exponent that one of them does not hold.

So it is of `scale_rounding` in exact arithmetic, where no maximum has a significand that either rounding lifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mxsweep.results.record import SAMPLES_NAME

WANTED = "wanted_exponents"  # in a record: [least, largest]; not there where they are not known of all blocks
SIGNIFICAND = "largest_significand"  # of blocks' maxima, likewise; known of exact arithmetic alone
LEAST_LIKE_FLOOR = -100  # the least exponent down to which roundings are told apart by significands
PROVEN_BY = "proven_by"  # in the record of a run that was not evaluated: which run proves it, and why


@dataclass(frozen=True)
class Candidate:
    """Name a run that another one of its sweep may prove, or that may prove the other.

    They differ in the bits and the rounding of scales alone.

    Attributes:
        bits: its scale bits.
        holds: the largest exponent that each of its `e8m0` scales holds.
        rounding: its scale rounding.
        lifts_from: the least `MXFormat.lifted_from` of its `e8m0` scales.
    """

    run_id: str
    folder: Path
    config_hash: str
    bits: int
    holds: int
    rounding: str = "floor"
    lifts_from: float = 2.0


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
    reasons = []
    if run.bits != by.bits:
        narrow, wide = sorted((run.bits, by.bits))
        reasons.append(
            f"in no pass did a block of any tensor want a scale exponent outside {low} to {high}; scale_bits {narrow} "
            f"and {wide} hold ±{held} at least"
        )
    if run.rounding != by.rounding:
        significand = record.get(SIGNIFICAND)
        if type(significand) is not float or significand < 1 or low < LEAST_LIKE_FLOOR:
            return None
        if significand >= min(run.lifts_from, by.lifts_from):
            return None
        one, other = sorted((run.rounding, by.rounding))
        reasons.append(
            f"in no pass was the largest magnitude of a block more than {significand:g} times a power of two, up to "
            f"which scale_rounding {one} and {other} are the same"
        )
    return Proof(by.folder, record, "; ".join(reasons))
