"""Choices of multiple-choice tasks: what is kept of each, and margins against log-likelihoods that HFLM computes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from mxsweep.evaluate.choices import margin_metrics
from mxsweep.evaluate.evaluation import Evaluation, evaluate, make_lm
from mxsweep.model.load import LoadedModel, load_model

STORY = "Irene hid the kettle in the attic . Oscar left the whistle in the stable . In the evening the whistle was in"
ROWS: list[dict[str, Any]] = [
    {"question": STORY, "choices": ["the stable", "the attic", "the old granary"], "answer": 0, "right": [0, 2]},
    {"question": STORY, "choices": ["the attic", "the stable", "Oscar"], "answer": 2, "right": [2]},
    {"question": "Nora took the ring to", "choices": ["the inn", "the cave", "a"], "answer": 1, "right": [1, 0]},
    {"question": "Nora took the ring to", "choices": ["Felix", "the quarry", "the"], "answer": 0, "right": [0]},
]
BASE: dict[str, Any] = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model("embedded", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def reference(tiny: LoadedModel) -> HFLM:
    return HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, backend="causal", batch_size=1)


def answered(tiny: LoadedModel, metrics: tuple[str, ...], rows: list[dict[str, Any]] = ROWS, **more: Any) -> Evaluation:
    listed = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics]
    data = {"test": Dataset.from_list(rows)}
    config = BASE | {"task": "chosen", "custom_dataset": lambda **_: data, "metric_list": listed} | more
    tasks: Any = TaskManager(include_defaults=False).load([config])
    return evaluate(make_lm(tiny.model, tiny.tokenizer, batch_tokens=1000), tasks)


def loglikelihoods(reference: HFLM, pairs: list[tuple[str, str]]) -> list[float]:
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
    return [value for value, _ in reference.loglikelihood(requests, disable_tqdm=True)]


def check(samples: list[dict[str, Any]], number: int, values: list[float], right: list[int]) -> float:
    """Compare a row with the values of its choices; return its margin, worked out here."""
    row = samples[number]
    assert row["choice_loglikelihoods"] == pytest.approx(values, abs=1e-4)
    assert row["right_choices"] == right
    margin = max(values[i] for i in right) - max(value for i, value in enumerate(values) if i not in right)
    assert row["margin"] == pytest.approx(margin, abs=1e-4)
    return margin


def test_margins_are_those_of_log_likelihoods_that_hflm_computes(tiny: LoadedModel, reference: HFLM) -> None:
    found = answered(tiny, ("acc", "acc_norm"))
    margins, by_length = [], []
    for number, row in enumerate(ROWS):
        values = loglikelihoods(reference, [(row["question"], f" {choice}") for choice in row["choices"]])
        margins.append(check(found.samples, number, values, [row["answer"]]))
        normed = [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        right = normed.pop(row["answer"])
        by_length.append(right - max(normed))
        assert found.samples[number]["margin_norm"] == pytest.approx(by_length[-1], abs=1e-4)
        assert (margins[-1] > 0) == found.samples[number]["acc"]
        assert (by_length[-1] > 0) == found.samples[number]["acc_norm"]
    metrics = found.metrics["chosen"]
    assert metrics["margin"] == pytest.approx(np.mean(margins), abs=1e-4)
    assert metrics["margin_stderr"] == pytest.approx(np.std(margins, ddof=1) / math.sqrt(4), abs=1e-4)
    assert metrics["margin_norm"] == pytest.approx(np.mean(by_length), abs=1e-4)
    assert 0 < metrics["acc"] < 1 and not found.warnings, "neither all right nor all wrong"


def test_where_choices_are_contexts_each_is_scored_with_the_same_ending(tiny: LoadedModel, reference: HFLM) -> None:
    found = answered(
        tiny,
        ("acc",),
        doc_to_text="answer",
        doc_to_choice="{{[question ~ ' ' ~ choices[0], question ~ ' ' ~ choices[1]]}}",
        doc_to_target="and then to the cellar",
        rows=[row | {"answer": row["answer"] % 2} for row in ROWS],
    )
    for number, row in enumerate(ROWS):
        pairs = [(f"{row['question']} {choice}", " and then to the cellar") for choice in row["choices"][:2]]
        check(found.samples, number, loglikelihoods(reference, pairs), [row["answer"] % 2])
    assert "margin_norm" not in found.metrics["chosen"]


def test_of_several_right_choices_the_likeliest_counts(tiny: LoadedModel, reference: HFLM) -> None:
    found = answered(tiny, ("acc",), doc_to_target="right")
    for number, row in enumerate(ROWS):
        values = loglikelihoods(reference, [(row["question"], f" {choice}") for choice in row["choices"]])
        margin = check(found.samples, number, values, row["right"])
        assert (margin > 0) == found.samples[number]["acc"]


def test_requests_without_the_question_are_no_choices(tiny: LoadedModel, reference: HFLM) -> None:
    found = answered(tiny, ("acc", "acc_mutual_info"))
    for number, row in enumerate(ROWS):
        values = loglikelihoods(reference, [(row["question"], f" {choice}") for choice in row["choices"]])
        check(found.samples, number, values, [row["answer"]])


def test_answers_in_words_are_found_among_the_choices(tiny: LoadedModel) -> None:
    rows = [row | {"answer": row["choices"][row["answer"]]} for row in ROWS]
    assert [row["right_choices"] for row in answered(tiny, ("acc",), rows).samples] == [[0], [2], [1], [0]]


def test_there_is_no_margin_where_the_right_choice_is_none_of_the_choices(tiny: LoadedModel) -> None:
    found = answered(tiny, ("acc",), [ROWS[0], ROWS[1] | {"answer": 7}])
    assert "margin" not in found.metrics["chosen"] and math.isnan(found.samples[1]["margin"])
    assert found.warnings == [
        "chosen: 1 of 2 examples have no right choice among their choices, or no wrong one, so that there is no margin "
        "of the right choice"
    ]


def test_code_of_a_task_says_itself_what_is_right(tiny: LoadedModel) -> None:
    found = answered(tiny, ("acc",), process_results=lambda doc, results: {"acc": 1.0})
    assert len(found.samples[0]["choice_loglikelihoods"]) == 3
    assert "margin" not in found.samples[0] and "margin" not in found.metrics["chosen"]


def test_infinite_log_likelihoods_make_infinite_margins_and_nan_makes_nan() -> None:
    def mean(*margins: float) -> float:
        rows = [
            {"doc_id": i, "choice_loglikelihoods": [0.0, 0.0], "right_choices": [0], "margin": margin}
            for i, margin in enumerate(margins)
        ]
        return margin_metrics("chosen", rows)[0]["margin"]

    assert mean(1.0, 2.5) == 1.75 and mean(1.0, -math.inf) == -math.inf and math.isnan(mean(1.0, math.nan))


def test_pandas_reads_the_choices_of_a_file(tiny: LoadedModel, tmp_path: Path) -> None:
    samples = answered(tiny, ("acc",)).samples
    other = {"task": "story", "doc_id": 0, "loglikelihood": -1.0}
    pd.DataFrame([*samples, other]).to_parquet(tmp_path / "samples.parquet", index=False)
    read = pd.read_parquet(tmp_path / "samples.parquet")
    assert list(read.choice_loglikelihoods[0]) == samples[0]["choice_loglikelihoods"]
    assert list(read.right_choices[1]) == [2] and read.choice_loglikelihoods[4] is None
