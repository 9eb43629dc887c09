"""Tasks, standard errors, and metrics against numbers worked out here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.metrics import mean_stderr

from mxsweep.errors import ConfigError
from mxsweep.evaluate.evaluate import Evaluation, make_lm
from mxsweep.evaluate.evaluate import evaluate as evaluate_lm
from mxsweep.evaluate.stderr import perplexity_stderr, weighted_mean_stderr, weighted_perplexity_stderr
from mxsweep.evaluate.tasks import _manager_of, load_tasks
from mxsweep.model.load import LoadedModel, load_model


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model("embedded", dtype="float32", device="cpu")


def evaluate(tiny: LoadedModel, tasks: dict[str, Any], limit: float | None = None) -> Evaluation:
    return evaluate_lm(make_lm(tiny.model, tiny.tokenizer, batch_tokens=1000), tasks, limit=limit)


def bootstrap(values: np.ndarray, statistic, iterations: int = 20_000) -> float:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    drawn = [values[rng.integers(0, len(values), len(values))] for _ in range(iterations)]
    return float(np.std([statistic(x) for x in drawn], ddof=1))


@pytest.mark.parametrize(("n", "spread"), [(1000, 1.0), (5153, 4.0), (200, 3.0), (10, 2.0)])
def test_perplexity_stderr_is_what_the_bootstrap_gives(n: int, spread: float) -> None:
    values = -np.abs(np.random.default_rng(1).normal(0, spread, n))
    ours = perplexity_stderr(list(values))
    assert ours == pytest.approx(bootstrap(values, lambda x: math.exp(-x.mean()), 20_000), rel=0.02)


def test_weighted_stderrs_are_what_the_bootstrap_gives() -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(200, 4000, 400).astype(float)
    sums = -weights * rng.normal(3.0, 0.4, 400)
    pairs = np.stack([sums, weights], axis=1)

    def perplexity(x: np.ndarray) -> float:
        return math.exp(-x[:, 0].sum() / x[:, 1].sum())

    assert weighted_perplexity_stderr(sums, weights) == pytest.approx(bootstrap(pairs, perplexity), rel=0.02)
    # Equal weights make a plain mean of it.
    ones = np.ones(400)
    assert weighted_mean_stderr(sums, ones) == pytest.approx(mean_stderr(list(sums)))


def test_stderr_of_too_few_or_of_a_hopeless_model() -> None:
    assert math.isnan(perplexity_stderr([-1.0]))
    assert perplexity_stderr([-2000.0, -1.0, -3000.0]) == math.inf


def test_tasks_are_loaded_once() -> None:
    assert load_tasks(("story",)) is load_tasks(("story",))
    assert load_tasks(("story",), num_fewshot=0) is not load_tasks(("story",))


def test_unknown_task_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"'lambada_openia' is not a task of lm-eval; near it: .*lambada_openai"):
        load_tasks(("lambada_openia",))


def test_a_row_without_the_field_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a b"}\n\n{"txt": "a b"}\n')
    with pytest.raises(ConfigError, match="line 3 has no text field 'text'; it has 'txt'"):
        load_tasks(("lambada_openai",), data={"lambada_openai": str(file)}, fields={"lambada_openai": "text"})


def by_hand(tiny: LoadedModel, text: str) -> tuple[float, bool]:
    """Log-likelihood of the last word given the rest, and whether it is the greedy answer."""
    context, target = text.rsplit(" ", 1)
    prompt, answer = (tiny.tokenizer(words, add_special_tokens=False).input_ids for words in (context, target))
    with torch.no_grad():
        logits = tiny.model(torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    chosen = logits.gather(1, torch.tensor(answer)[:, None])
    return float(chosen.sum()), logits.argmax(-1).tolist() == answer


def test_story_metrics_are_those_worked_out_by_hand(tiny: LoadedModel) -> None:
    tasks = load_tasks(("story",))
    found = evaluate(tiny, tasks, limit=40)
    rows = [by_hand(tiny, tasks["tasks"]["story"].eval_docs[i]["text"]) for i in range(40)]
    loglikelihoods, greedy = [row[0] for row in rows], [row[1] for row in rows]
    metrics = found.metrics["story"]
    assert metrics["acc"] == pytest.approx(np.mean(greedy))
    assert metrics["acc_stderr"] == pytest.approx(mean_stderr(greedy))
    assert metrics["perplexity"] == pytest.approx(math.exp(-np.mean(loglikelihoods)), rel=1e-4)
    assert metrics["perplexity_stderr"] == pytest.approx(perplexity_stderr(loglikelihoods), rel=1e-3)
    assert found.n_effective == {"story": 40}
    assert [row["doc_id"] for row in found.samples] == list(range(40))
    np.testing.assert_allclose([row["loglikelihood"] for row in found.samples], loglikelihoods, atol=1e-4)
    assert [bool(row["acc"]) for row in found.samples] == greedy


def test_evaluating_again_asks_the_model_again(tiny: LoadedModel) -> None:
    tasks = load_tasks(("story",))
    first = evaluate(tiny, tasks, limit=16)
    hook = tiny.model.lm_head.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
    flat = evaluate(tiny, tasks, limit=16)
    hook.remove()
    again = evaluate(tiny, tasks, limit=16)
    assert flat.metrics["story"]["perplexity"] == pytest.approx(tiny.model.config.vocab_size)
    assert again.metrics == first.metrics


def test_every_run_draws_the_same_few_shot_examples(tiny: LoadedModel) -> None:
    def prompts() -> list[str]:
        tasks = load_tasks(("story",), num_fewshot=2)
        task = tasks["tasks"]["story"]
        evaluate(tiny, tasks, limit=12)
        return [instance.args[0] for instance in task.instances]

    first = prompts()
    assert prompts() == first
    assert len(set(first)) == 12


def test_no_few_shot_example_is_the_question_itself(tmp_path: Path, tiny: LoadedModel) -> None:
    rows = [f"Irene hid the kettle in the {place}" for place in ("attic", "barn", "cave")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for names, data in ((("lambada_openai",), {"lambada_openai": str(file)}), (("story",), {})):
        task = load_tasks(names, data=data, num_fewshot=2)["tasks"][names[0]]
        task.build_all_requests(limit=3 if data else 300, rank=0, world_size=1)
        for instance in task.instances:
            assert instance.doc["text"] not in instance.args[0]


def test_a_group_whose_tasks_stand_in_other_folders_is_looked_up_in_the_full_index() -> None:
    manager = _manager_of(("openllm",))
    assert "openllm" in manager.all_groups
    assert {"arc_challenge", "hellaswag"} <= set(manager.all_tasks)
    assert len(_manager_of(("lambada_openai",)).all_tasks) < 50


def test_limit_is_a_fraction_or_a_count(tiny: LoadedModel) -> None:
    tasks = load_tasks(("story",))
    n = len(tasks["tasks"]["story"].eval_docs)
    assert evaluate(tiny, tasks, limit=0.01).n_effective == {"story": math.ceil(n * 0.01)}
    assert evaluate(tiny, tasks, limit=3).n_effective == {"story": 3}


def test_wikitext_from_a_file(tiny: LoadedModel, tmp_path: Path) -> None:
    pages = ["Irene hid the kettle in the attic . " * 3, "Oscar left the whistle in the stable . "]
    file = tmp_path / "pages.jsonl"
    file.write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
    tasks = load_tasks(("wikitext",), data={"wikitext": str(file)}, fields={"wikitext": "page"})
    found = evaluate(tiny, tasks)
    rows, metrics = found.samples, found.metrics["wikitext"]
    total, words = sum(row["loglikelihood"] for row in rows), sum(row["words"] for row in rows)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(-total / words))
    assert metrics["bits_per_byte"] == pytest.approx(-total / sum(row["bytes"] for row in rows) / math.log(2))
    nats = weighted_mean_stderr([row["loglikelihood"] for row in rows], [row["bytes"] for row in rows])
    assert metrics["bits_per_byte_stderr"] == pytest.approx(nats / math.log(2))
    assert metrics["word_perplexity_stderr"] > 0
    assert found.n_effective == {"wikitext": 2}
