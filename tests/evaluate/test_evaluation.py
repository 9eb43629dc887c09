"""Tasks, standard errors, and metrics against numbers worked out here."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils as hub
import lm_eval.api.metrics as lm_eval_metrics
import lm_eval.api.task
import numpy as np
import pandas as pd
import pytest
import torch
import tqdm
import transformers.utils.logging as transformers_logging
from lm_eval.api.metrics import mean_stderr
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

from mxsweep import compose, run
from mxsweep.evaluate.evaluation import Evaluation, make_lm
from mxsweep.evaluate.evaluation import evaluate as evaluate_lm
from mxsweep.evaluate.quiet import no_progress_bars
from mxsweep.evaluate.standard_errors import (
    closed_form_perplexity,
    perplexity_stderr,
    weighted_perplexity_stderr,
)
from mxsweep.evaluate.stories import story_task_config
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.files.checkpoints import model_folder
from mxsweep.forward.losses import weighted_mean_stderr
from mxsweep.model.load import LoadedModel, load_model
from mxsweep.report.collection import collect
from mxsweep.results.record import read_record
from mxsweep.terminal.errors import ConfigError


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
    for n in (3, 1000):  # by resampling, by the closed form
        assert perplexity_stderr([-2000.0] * n) == math.inf
        assert perplexity_stderr([-math.inf, *[-1.0] * n]) == math.inf
        assert math.isnan(perplexity_stderr([math.nan, -math.inf, *[-1.0] * n]))
    for stderr in (weighted_mean_stderr, weighted_perplexity_stderr):
        assert stderr([-math.inf, -1.0], [1, 2]) == math.inf
        assert math.isnan(stderr([math.nan, -math.inf], [1, 2]))
    assert weighted_perplexity_stderr([-2000.0, -3000.0], [1, 2]) == math.inf


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


PAGES = ("Irene hid the kettle in the attic . " * 3, "Oscar left the whistle in the stable . ")
ANSWERS_ARE_NAN = "the model's log-likelihoods of {n} of {n} examples are NaN"


@pytest.fixture
def pages(tmp_path: Path) -> str:
    """A task and its data: wikitext's, from a file."""
    file = tmp_path / "pages.jsonl"
    file.write_text("".join(json.dumps({"page": page}) + "\n" for page in PAGES))
    return f"task.data={file}"


class TestNonFinite:
    """A model whose logits are NaN, or so far apart that a perplexity is more than a float64 holds."""

    @pytest.fixture(scope="class")
    def changed(self, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
        """The embedded model with its last normalization, and so all its logits, times a number."""

        def change(factor: float) -> str:
            folder = tmp_path_factory.mktemp("model") / f"times_{factor}"
            shutil.copytree(model_folder("embedded"), folder)
            weights = load_file(folder / "model.safetensors")
            weights["model.norm.weight"] *= factor
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            return f"model.path={folder}"

        return change

    def run(self, changed: str, folder: Path, *overrides: str) -> dict[str, Any]:
        config = compose(["model=hf", changed, "model.device=cpu", "format=none", *overrides])
        record = run(config, folder)
        assert record["status"] == "done", record["error"]
        read = read_record(folder / "result.json")
        np.testing.assert_equal(read, record)  # to which NaN equals NaN
        return read

    @pytest.mark.parametrize("limit", [24, 600])  # standard errors by resampling, by the closed form
    def test_nan(self, limit: int, changed: Callable[[float], str], tmp_path: Path) -> None:
        record = self.run(changed(math.nan), tmp_path, f"limit={limit}")
        metrics = record["metrics"]["story"]
        assert math.isnan(metrics["perplexity"])
        assert math.isnan(metrics["perplexity_stderr"])
        assert metrics["acc"] == 0
        assert record["warnings"] == [f"story: perplexity is NaN: {ANSWERS_ARE_NAN.format(n=limit)}"]
        samples = pd.read_parquet(tmp_path / "samples.parquet")
        assert len(samples) == limit
        assert samples["loglikelihood"].isna().all()
        text = collect([tmp_path]).text
        assert "nan ± nan" in text
        assert record["warnings"][0] in text

    @pytest.mark.parametrize("limit", [24, 600])
    def test_overflow(self, limit: int, changed: Callable[[float], str], tmp_path: Path) -> None:
        record = self.run(changed(-3000.0), tmp_path, f"limit={limit}")
        metrics = record["metrics"]["story"]
        samples = pd.read_parquet(tmp_path / "samples.parquet")
        mean = samples["loglikelihood"].mean()
        assert -math.inf < mean < -710
        assert metrics["perplexity"] == metrics["perplexity_stderr"] == math.inf
        assert record["warnings"] == [
            f"story: perplexity is infinite: the model's log-likelihood is {mean:,.1f} nats an example on average, "
            f"and exp({-mean:,.1f}) is more than a 64-bit float holds"
        ]
        assert "inf ± inf" in collect([tmp_path]).text

    def test_nan_a_word(self, changed: Callable[[float], str], tmp_path: Path, pages: str) -> None:
        record = self.run(changed(math.nan), tmp_path, "task=wikitext", pages)
        names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
        metrics = record["metrics"]["wikitext"]
        assert all(math.isnan(metrics[name]) and math.isnan(metrics[f"{name}_stderr"]) for name in names)
        assert record["warnings"] == [
            f"wikitext: word_perplexity, byte_perplexity and bits_per_byte are NaN: {ANSWERS_ARE_NAN.format(n=2)}"
        ]

    def test_overflow_a_word(self, changed: Callable[[float], str], tmp_path: Path, pages: str) -> None:
        record = self.run(changed(-100.0), tmp_path, "task=wikitext", pages)
        metrics = record["metrics"]["wikitext"]
        assert metrics["word_perplexity"] == metrics["word_perplexity_stderr"] == math.inf
        assert math.isfinite(metrics["byte_perplexity"])
        (warning,) = record["warnings"]
        assert warning.startswith("wikitext: word_perplexity is infinite: the model's log-likelihood is -")
        assert " nats a word on average, and exp(" in warning

    def test_a_probability_of_zero_and_a_nan_among_others(self, tiny: LoadedModel) -> None:
        def spoil(value: float) -> Evaluation:
            def spoiled(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
                return logits.index_fill(-1, torch.tensor(target), value)

            hook = tiny.model.lm_head.register_forward_hook(spoiled)
            found = evaluate(tiny, tasks, limit=24)
            hook.remove()
            return found

        tasks = load_tasks(("story",))
        answer = tasks["tasks"]["story"].eval_docs[0]["text"].rsplit(" ", 1)[1]
        target = tiny.tokenizer(answer, add_special_tokens=False).input_ids
        found = spoil(-math.inf)
        count = sum(row["loglikelihood"] == -math.inf for row in found.samples)
        assert 0 < count < 24
        assert found.metrics["story"]["perplexity"] == found.metrics["story"]["perplexity_stderr"] == math.inf
        assert found.warnings == [
            f"story: perplexity is infinite: the model's log-likelihoods of {count} of 24 examples are infinite"
        ]
        found = spoil(math.nan)  # the maximum of a row is its NaN, and here that is the target
        assert found.metrics["story"]["acc"] == 0
        assert found.warnings == [f"story: perplexity is NaN: {ANSWERS_ARE_NAN.format(n=24)}"]

    def test_answers_chosen_among_nan_are_warned_of(self, tiny: LoadedModel) -> None:
        asked = story_task_config() | {
            "task": "story_chosen",
            "output_type": "multiple_choice",
            "doc_to_target": 0,
            "doc_to_choice": "{{[text.split(' ')[-1], 'kettle']}}",
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc",)],
        }
        tasks: Any = TaskManager(include_defaults=False).load([asked])
        assert not evaluate(tiny, tasks, limit=12).warnings
        hook = tiny.model.lm_head.register_forward_hook(lambda _m, _i, logits: logits * math.nan)
        found = evaluate(tiny, tasks, limit=12)
        hook.remove()
        assert found.warnings == [
            f"story_chosen: margin is NaN: {ANSWERS_ARE_NAN.format(n=12)}",
            f"story_chosen: acc took NaN for the likeliest answer: {ANSWERS_ARE_NAN.format(n=12)}",
        ]

    def test_lm_eval_is_as_before_afterwards(self, tiny: LoadedModel) -> None:
        evaluate(tiny, load_tasks(("story",)), limit=2)
        assert lm_eval_metrics.math is math
        with pytest.raises(OverflowError):
            lm_eval_metrics.perplexity([-800.0])


class TestQuiet:
    """Other libraries' progress bars, while a run lasts."""

    def shown(self) -> list[bool]:
        return [
            transformers_logging.is_progress_bar_enabled(),
            not hub.are_progress_bars_disabled(),
            datasets.is_progress_bar_enabled(),
            lm_eval.api.task.tqdm is tqdm.tqdm,
        ]

    def test_bars_are_hidden_and_shown_again(self, capfd: pytest.CaptureFixture[str]) -> None:
        before = self.shown()
        with pytest.raises(KeyboardInterrupt), no_progress_bars():
            assert self.shown() == [False] * 4
            list(lm_eval.api.task.tqdm(range(3), disable=False))
            raise KeyboardInterrupt
        assert self.shown() == before
        assert not capfd.readouterr().err

    def test_what_a_user_had_hidden_stays_hidden(self) -> None:
        before = self.shown()
        hub.disable_progress_bars()
        datasets.disable_progress_bars()
        try:
            hidden = self.shown()
            with no_progress_bars():
                pass
            assert self.shown() == hidden
        finally:
            (hub.enable_progress_bars if before[1] else hub.disable_progress_bars)()
            (datasets.enable_progress_bars if before[2] else datasets.disable_progress_bars)()

    def test_the_bootstrap_says_nothing(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DISABLE_MULTIPROC", "1")
        with closed_form_perplexity():
            stderr = lm_eval_metrics.stderr_for_metric(lm_eval_metrics.median, 2000)
            assert stderr is not None
            assert stderr([float(x) for x in range(50)]) > 0
        assert capfd.readouterr() == ("", "")
