"""Tell examples that ask the same from one another: a file with every row ten times holds no more than with it once.

Standard errors and tests take examples for independent. lm-eval's doc_hash is of the whole row, its number included;
the digest here is of what the model is asked and of the answer, whatever else the row holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

NEGLIGIBLE = 0.01  # the share of repeated examples that is no cause to warn: LAMBADA repeats 2 of 5,153
_DIGITS = 16


def input_hash(sample: dict[str, Any]) -> str:
    """Return a digest of all that an example of lm-eval's samples asks of the model, and of its answer."""
    asked = json.dumps([sample["arguments"], sample["target"]], default=str, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:_DIGITS]


def explain_repeated(task: str, samples: Sequence[dict[str, Any]]) -> str | None:
    """Say how many examples of a task ask what others ask; None where they are few."""
    hashes = {sample["doc_id"]: input_hash(sample) for sample in samples}  # a task with several filters has more rows
    repeats = len(hashes) - len(set(hashes.values()))
    if repeats <= NEGLIGIBLE * len(hashes):
        return None
    return (
        f"{task}: {repeats:,} of {len(hashes):,} examples ask the same as another one. Metrics count each, and their "
        f"standard errors take them for independent, which makes them too small; tests of differences are over the "
        f"{len(set(hashes.values())):,} that differ"
    )
