"""Say at which context memory is counted, and how much worse than the baseline a run of less memory may be.

What is said here is asked on the command line, which is read without what compares runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from mxsweep.formats.cached_bits import USUAL_CONTEXT

WITHIN = 0.01


@dataclass(frozen=True)
class Terms:
    """Hold the tokens whose keys and values count, and the share of the baseline's perplexity (0.01 for 1 %)."""

    context: int = USUAL_CONTEXT
    within: float = WITHIN


DEFAULT_TERMS = Terms()
