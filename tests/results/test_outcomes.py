"""Per-example outcomes read back: what a real run writes, several tasks and filters, and files that are not whole."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import outcomes, put

from mxsweep.results.outcomes import Outcomes, read_outcomes
from mxsweep.results.record import RunFolder, find_runs


def opened(folder: Path) -> RunFolder:
    (run,) = find_runs(folder)
    return run


def read(folder: Path, task: str = "story") -> Outcomes:
    found = read_outcomes(opened(folder), task)
    assert found is not None
    return found


def test_what_a_run_writes_is_read_back(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a", outcomes([-0.5, -3.0, -0.25])))
    assert found.keys.tolist() == ["h0", "h1", "h2"]
    assert found.correct is not None and found.correct.tolist() == [True, False, True]
    assert found.correct.dtype == bool
    assert found.loglikelihood is not None and found.loglikelihood.tolist() == [-0.5, -3.0, -0.25]
    assert found.weights is None and len(found) == 3


def test_a_real_run_is_read(tmp_path: Path) -> None:
    """The metrics of the record come out of the outcomes."""
    from mxsweep import compose, run

    record = run(compose(["limit=8", "block_size=16"]), tmp_path / "a")
    found, metrics = read(tmp_path / "a"), record["metrics"]["story"]
    assert len(found) == 8 and found.correct is not None and found.loglikelihood is not None
    assert found.correct.mean() == metrics["acc"]
    assert math.exp(-found.loglikelihood.mean()) == pytest.approx(metrics["perplexity"], rel=1e-12)


def test_examples_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    samples = outcomes([-0.5, -3.0, -0.25])
    found = read(put(tmp_path / "a", samples.iloc[[2, 0, 1]]))
    assert found.keys.tolist() == ["h0", "h1", "h2"]
    assert found.loglikelihood is not None and found.loglikelihood.tolist() == [-0.5, -3.0, -0.25]


def test_runs_over_the_same_documents_share_their_keys(tmp_path: Path) -> None:
    a, b = (read(put(tmp_path / name, outcomes([-0.5, x]))) for name, x in (("a", -1.0), ("b", -2.0)))
    assert a.keys is b.keys


def test_without_hashes_documents_are_told_apart_by_id(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a", outcomes([-0.5, -3.0]).drop(columns="doc_hash")))
    assert found.keys.tolist() == [0, 1]


def test_the_first_of_rows_that_ask_the_same(tmp_path: Path) -> None:
    """By the document, or by the input, whichever tells fewer rows apart; of a file with neither nothing is known."""
    rows = outcomes([-1.0, -2.0, -3.0, -4.0])
    cases = {
        "all differ": (rows, None),
        "documents": (rows.assign(doc_hash=["a", "b", "a", "b"]), [0, 1]),
        "inputs": (rows.assign(input_hash=["x", "y", "y", "z"]), [0, 1, 3]),
        "few shots": (rows.assign(doc_hash=["a", "b", "b", "b"], input_hash=["x", "y", "y", "z"]), [0, 1]),
        "another order": (rows.assign(input_hash=["x", "y", "y", "z"]).iloc[[3, 2, 1, 0]], [0, 1, 3]),
        "unknown": (rows.drop(columns="doc_hash"), None),
    }
    for name, (samples, firsts) in cases.items():
        read_firsts = read(put(tmp_path / name, samples)).firsts
        assert (None if read_firsts is None else read_firsts.tolist()) == firsts, name


def two_tasks() -> pd.DataFrame:
    words = outcomes([-50.0, -70.0]).drop(columns="acc")
    words = words.assign(task="wikitext", words=[10, 20], bytes=[60, 100])
    return pd.concat([outcomes([-0.5, -3.0, -0.25]), words])


def test_several_tasks_of_one_run(tmp_path: Path) -> None:
    metrics = {"story": {"acc": 0.6, "perplexity": 2.0}, "wikitext": {"word_perplexity": 20.0, "byte_perplexity": 2.0}}
    folder = put(tmp_path / "a", two_tasks(), metrics)
    story, wikitext = read(folder), read(folder, "wikitext")
    assert len(story) == 3 and story.weights is None and story.correct is not None
    assert wikitext.correct is None
    assert wikitext.weights is not None and wikitext.weights.tolist() == [10, 20]
    assert wikitext.loglikelihood is not None and wikitext.loglikelihood.tolist() == [-50, -70]
    assert read_outcomes(opened(folder), "lambada_openai") is None


def test_bytes_are_weights_where_there_are_no_words(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", outcomes([-50.0, -70.0], bytes=[60, 100]), {"story": {"byte_perplexity": 2.0}})
    weights = read(folder).weights
    assert weights is not None and weights.tolist() == [60, 100]


def filtered() -> pd.DataFrame:
    rows = [
        {"task": "gsm8k", "doc_id": i, "doc_hash": f"h{i}", "filter": name, "exact_match": float(i % period == 0)}
        for name, period in (("strict", 3), ("flexible", 2))
        for i in range(6)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("metrics", "right"),
    [
        ({"exact_match,strict": 0.3, "exact_match,flexible": 0.5}, 3),  # the first by name is the main metric
        ({"exact_match,strict": 0.3}, 2),
        ({"exact_match": 0.3}, 2),  # none is named: the first in the file
    ],
)
def test_of_several_filters_that_of_the_main_metric_is_taken(
    tmp_path: Path, metrics: dict[str, float], right: int
) -> None:
    found = read(put(tmp_path / "a", filtered(), {"gsm8k": metrics}), "gsm8k")
    assert len(found) == 6 and found.correct is not None and found.correct.sum() == right
    assert found.loglikelihood is None


def test_points_for_half_right_answers_are_no_right_answers(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a", outcomes([-0.5, -3.0], [1.0, 0.5])))
    assert found.correct is None and found.loglikelihood is not None
    samples = outcomes([-0.5, -3.0], [1.0, 0.5]).drop(columns="loglikelihood")
    folder = put(tmp_path / "b", samples, {"story": {"acc": 0.75}})
    assert read_outcomes(opened(folder), "story") is None


def test_nan_log_likelihoods_stay(tmp_path: Path) -> None:
    """pandas writes NaN as null; of a task that has a perplexity, null is NaN, even if there is nothing else."""
    some = read(put(tmp_path / "a", outcomes([-0.5, math.nan, -math.inf], [1, 0, 0]))).loglikelihood
    assert some is not None and np.array_equal(some, [-0.5, math.nan, -math.inf], equal_nan=True)
    folder = put(tmp_path / "b", outcomes([math.nan] * 3, [0, 0, 0]), {"story": {"acc": 0, "perplexity": math.nan}})
    every = read(folder).loglikelihood
    assert every is not None and np.isnan(every).all()
    folder = put(tmp_path / "c", outcomes([math.nan] * 3, [0, 0, 0]), {"story": {"acc": 0}})
    assert read(folder).loglikelihood is None


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "no rows", "folder", "other columns", "texts"])
def test_a_file_that_is_not_whole_is_no_outcomes(tmp_path: Path, damage: str) -> None:
    folder = put(tmp_path / "a", outcomes([-0.5, -3.0, -0.25]))
    file = folder / "samples.parquet"
    content = file.read_bytes()
    file.unlink()
    replacement: dict[str, Any] = {"empty": b"", "cut": content[: len(content) // 2], "text": b"no parquet file" * 9}
    if damage in replacement:
        file.write_bytes(replacement[damage])
    elif damage == "no rows":
        outcomes([]).to_parquet(file, index=False)
    elif damage == "folder":
        file.mkdir()
    elif damage == "other columns":
        pd.DataFrame({"text": ["a"]}).to_parquet(file, index=False)
    elif damage == "texts":
        outcomes([-0.5, -1.0]).assign(loglikelihood="much", acc="many").to_parquet(file, index=False)
    assert read_outcomes(opened(folder), "story") is None


def test_any_byte_may_be_damaged(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", outcomes([-0.5, -3.0, -0.25]))
    run, file = opened(folder), folder / "samples.parquet"
    content = file.read_bytes()
    for at in range(0, len(content), 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        os.utime(file, ns=(at, at))
        read_outcomes(run, "story")


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", outcomes([-0.5, -3.0]))
    first = read(folder)
    assert read(folder) is first
    outcomes([-0.5]).to_parquet(folder / "new", index=False)
    (folder / "new").replace(folder / "samples.parquet")
    assert len(read(folder)) == 1
