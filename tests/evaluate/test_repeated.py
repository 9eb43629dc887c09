"""Rows that ask the same are known as such, whatever else they hold; few of them are no cause to warn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mxsweep import compose, run
from mxsweep.evaluate.repeated import explain_repeated, input_hash
from mxsweep.evaluate.stories import stories


def sample(number: int, text: str = "a b", target: str = " c", filter: str = "none") -> dict[str, Any]:
    return {"doc_id": number, "arguments": [(text, target)], "target": target, "filter": filter}


def test_the_digest_is_of_all_that_is_asked() -> None:
    same = input_hash(sample(0))
    assert input_hash(sample(7)) == same
    assert input_hash(sample(0, "a c")) != same and input_hash(sample(0, target=" d")) != same
    choices = sample(0) | {"arguments": [("a b", " c"), ("a b", " d")]}
    assert input_hash(choices) != input_hash(choices | {"arguments": [("a b", " c"), ("a b", " e")]}) != same
    generated = sample(0) | {"arguments": [("a b", {"until": ["\n"], "temperature": 0.0})]}
    assert input_hash(generated) == input_hash(json.loads(json.dumps(generated)))


@pytest.mark.parametrize(("repeats", "warns"), [(0, False), (1, False), (2, True)])
def test_more_than_one_in_a_hundred_are_warned_of(repeats: int, warns: bool) -> None:
    rows = [sample(i, f"text {max(i, repeats)}") for i in range(100)]
    of_two_filters = [row | {"filter": name} for name in ("strict", "flexible") for row in rows]
    for samples in (rows, of_two_filters):
        text = explain_repeated("made", samples)
        assert (text is not None) == warns
        assert text is None or text.startswith(f"made: {repeats} of 100 examples ask the same as another one.")
    assert explain_repeated("made", []) is None


def test_a_run_notes_what_it_asked_and_warns(tmp_path: Path) -> None:
    """Rows with numbers of their own are documents of their own to lm-eval."""
    rows = [{"text": text, "number": i} for i, text in enumerate(stories(4, seed=5) * 3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"task.data={tmp_path / 'rows.jsonl'}"
    record = run(compose(["task=lambada_openai", data, "model.device=cpu", "format=none"]), tmp_path / "run")
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert samples["doc_hash"].nunique() == 12 and samples["input_hash"].nunique() == 4
    assert samples["input_hash"].tolist() == samples["input_hash"][:4].tolist() * 3
    (warning,) = record["warnings"]
    assert warning == (
        "lambada_openai: 8 of 12 examples ask the same as another one. Metrics count each, and their standard errors "
        "take them for independent, which makes them too small; tests of differences are over the 4 that differ"
    )
