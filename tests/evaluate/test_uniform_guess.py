"""A baseline that is not better than a uniform guess over the vocabulary is warned of."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.warned import assert_warned_everywhere
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mxsweep import compose, run
from mxsweep.evaluate.stories import stories
from mxsweep.evaluate.uniform_guess import ScoredTokens, find_guessing
from mxsweep.files.checkpoints import model_folder
from mxsweep.results.record import write_record
from mxsweep.runs.new_record import new_record


def model(vocabulary: int, **settings: int | None) -> LlamaForCausalLM:
    """A Llama that was never trained, and is sure of what it says."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, initializer_range=0.5, **sizes, **settings)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(model_folder("embedded"))
    return loaded


@pytest.fixture(scope="module")
def untrained(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("untrained")
    model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"model.path={folder}"


def test_the_record_and_every_table_warn_of_a_baseline_that_guesses(
    untrained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="mxsweep"):
        done = run(compose(["model=hf", untrained, "model.device=cpu", "format=none", "limit=24"]), tmp_path / "a")
    assert done["status"] == "done", done["error"]
    (warning,) = done["warnings"]
    assert warning in caplog.messages and done["guessed"] == ["story"]
    nats = math.log(done["metrics"]["story"]["perplexity"])  # every answer is a token
    assert f"a scored token costs {nats:,.2f} nats" in warning and warning.startswith("story: this baseline is no")
    assert_warned_everywhere(tmp_path, warning)


def test_a_text_in_windows_is_counted_by_the_token(untrained: str, tmp_path: Path) -> None:
    file = tmp_path / "pages.jsonl"
    file.write_text(json.dumps({"page": "Irene hid the kettle in the attic . " * 30}) + "\n")
    words = ["model=hf", untrained, "model.device=cpu", "format=none", "task=wikitext", f"task.data={file}"]
    done = run(compose([*words, "model.max_length=64"]))
    assert [text.split(":")[0] for text in done["warnings"]] == ["wikitext"]


def test_a_quantized_run_that_guesses_says_so(untrained: str) -> None:
    done = run(compose(["model=hf", untrained, "model.device=cpu", "format=mxfp4", "limit=4"]))
    (warning,) = done["warnings"]
    assert warning.startswith(
        "story: quantized in this way, the model is no better than a guess: a scored token costs "
    )
    assert "a uniform guess over the" in warning and "formats that are too coarse for this model" in warning
    assert done["guessed"] == ["story"] and "too short" not in warning


def test_a_quantized_run_is_held_against_the_uniform_guess_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    guess = math.log(len(tokenizer))
    costs, counting = {"counted": guess - 1, "guessed": guess + 1}, {"counted": guess - 2, "guessed": guess - 2}
    found = find_guessing(costs, counting, model(len(tokenizer)), tokenizer, quantized=True)
    assert found.tasks == ["guessed"] and len(found.warnings) == 1
    assert find_guessing(costs, counting, model(len(tokenizer)), tokenizer).tasks == ["guessed", "counted"]


@pytest.mark.parametrize("quantized", [False, True])
def test_of_a_model_that_was_just_trained_the_first_cause_is_too_short_a_training(
    tokenizer: PreTrainedTokenizerFast, quantized: bool
) -> None:
    found = find_guessing(
        {"story": 99.0}, {}, model(len(tokenizer)), tokenizer, quantized=quantized, trained="30 steps"
    )
    causes = found.warnings[0].partition("Likely causes: ")[2]
    assert "too short (30 steps)" in causes.split("; ")[0].removesuffix(".")
    assert "never trained" not in causes and "another model's tokenizer" not in causes


def test_a_checkpoint_of_a_training_is_held_for_trained_too_short(untrained: str, tmp_path: Path) -> None:
    shutil.copytree(untrained.removeprefix("model.path="), tmp_path / "model")
    training = {"steps": 3, "seconds": 1.0, "tokens_per_s": 9.0}
    write_record(tmp_path, new_record("id", {}) | {"status": "done", "training": training})
    words = ["model=hf", f"model.path={tmp_path / 'model'}", "model.device=cpu", "format=none", "limit=4"]
    (warning,) = run(compose(words))["warnings"]
    causes = warning.partition("Likely causes: ")[2]
    assert causes.startswith("the model was trained for too short (3 steps)") and "never trained" not in causes


def test_a_baseline_that_knows_something_is_not_warned_of() -> None:
    assert run(compose(["model.device=cpu", "format=none", "limit=24"]))["warnings"] == []


def test_a_guess_costs_the_logarithm_of_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    guess = math.log(len(tokenizer))
    costs = {"guess": guess, "worse": 20.0, "better": guess * 0.999, "nothing": math.nan, "never": math.inf}
    (warning,) = find_guessing(costs, {}, model(len(tokenizer)), tokenizer).warnings
    assert warning.startswith("guess, worse: this baseline is no baseline: a scored token costs ")
    assert f"costs {guess:.2f}, 20.00 nats on average" in warning
    assert f"over the {len(tokenizer):,} tokens of the vocabulary {guess:.2f}" in warning
    assert not find_guessing({"better": guess * 0.999}, {}, model(len(tokenizer)), tokenizer).warnings


def test_a_group_of_many_tasks_gives_one_warning(tokenizer: PreTrainedTokenizerFast) -> None:
    costs = {f"subject_{number}": 99.0 for number in range(57)}
    (warning,) = find_guessing(costs, {}, model(len(tokenizer)), tokenizer).warnings
    assert warning.startswith("subject_0, subject_1, subject_2, subject_3, subject_4 and 52 more tasks: this baseline")


def test_causes_that_can_be_seen_come_first(tokenizer: PreTrainedTokenizerFast) -> None:
    def causes(vocabulary: int, bos: int | None, read_by: PreTrainedTokenizerFast = tokenizer) -> str:
        (text,) = find_guessing({"story": 99.0}, {}, model(vocabulary, bos_token_id=bos), read_by).warnings
        return text.partition("Likely causes: ")[2]

    assert causes(len(tokenizer), 5).startswith(
        "the model's configuration names a beginning-of-sequence token (5), which its tokenizer does not put in front "
        "of a text, and models as Gemma know nothing without (model.add_bos_token=true)"
    )
    putting = copy.deepcopy(tokenizer)
    putting.bos_token_id, putting.add_bos_token = 5, True
    assert putting("a").input_ids[0] == 5
    assert "beginning-of-sequence" not in causes(len(tokenizer), 5, putting) + causes(len(tokenizer), None)
    assert "appends its end token" not in causes(len(tokenizer), None)
    putting.add_eos_token = True
    assert "the tokenizer appends its end token to every text (model.add_bos_token=false" in causes(7, None, putting)
    assert causes(7, None).startswith(f"the tokenizer has {len(tokenizer):,} tokens and the model 7: ")


def test_of_several_answers_the_likeliest_by_the_token_counts() -> None:
    scored = ScoredTokens()
    for task, example, nats, tokens in (
        ("chosen", 0, -9.0, 1),
        ("chosen", 0, -8.0, 4),
        ("chosen", 0, -7.0, 2),
        ("chosen", 1, -4.0, 4),
        ("text", 0, -30.0, 10),
    ):
        scored.add(task, example, nats, tokens)
    assert scored.nats_per_token() == {"chosen": 12 / 8, "text": 3.0}


def test_counting_costs_what_a_guess_by_what_came_before_does() -> None:
    scored, rng, vocabulary = ScoredTokens(), np.random.default_rng(0), 40
    texts = [rng.integers(0, 9, size) ** 2 % vocabulary for size in (30, 50)]
    for text in (*texts, texts[0]):  # a repeat counts once
        scored.add_text("pages", text)
    seen: list[int] = []
    nats = 0.0
    for token in np.concatenate(texts).tolist():
        nats -= math.log((seen.count(token) + 1) / (len(seen) + vocabulary))
        seen.append(token)
    assert scored.counting_nats(vocabulary) == pytest.approx({"pages": nats / 80})


def test_a_baseline_below_a_uniform_guess_may_still_know_less_than_counting(tokenizer: PreTrainedTokenizerFast) -> None:
    guess = math.log(len(tokenizer))
    costs = {"counted": guess - 1, "better": guess - 3, "guessed": guess + 1, "answers": guess - 0.5}
    counting = dict.fromkeys(("counted", "better", "guessed"), guess - 2)
    uniform, unigram = find_guessing(costs, counting, model(len(tokenizer)), tokenizer).warnings
    assert uniform.startswith("guessed: this baseline is no baseline")
    assert unigram.startswith(f"counted: this baseline is no baseline: a scored token costs {guess - 1:,.2f} nats on ")
    assert f"a guess by how often each token came before in the same texts {guess - 2:,.2f}, so diff" in unigram


def test_a_model_that_knows_little_of_long_texts_is_warned_of(tmp_path: Path) -> None:
    folder = str(model_folder("embedded"))
    hesitant = AutoModelForCausalLM.from_pretrained(folder)
    hesitant.model.norm.weight.data *= 0.05  # what it knows counts for little: just below a uniform guess
    hesitant.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "model")
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"page": story}) + "\n" for story in stories(40)))
    words = ["model.device=cpu", "format=none", "task=wikitext", f"task.data={tmp_path / 'pages.jsonl'}"]
    (warning,) = run(compose([*words, "model=hf", f"model.path={tmp_path / 'model'}"]))["warnings"]
    assert warning.startswith("wikitext: this baseline is no baseline: ")
    assert "a guess by how often each token came before in the same texts" in warning
    assert run(compose(words))["warnings"] == []  # the embedded model itself, which knows such texts
