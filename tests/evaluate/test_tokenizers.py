"""Tokenizers of every kind against lm-eval's own HFLM: equal scores, and what they do to a text is said.

The models are not trained; their tokenizers are made here, small enough to see what each does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.warned import assert_warned_everywhere
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mxsweep import compose, run
from mxsweep.calibrate.texts import calibration_tokens
from mxsweep.evaluate.evaluation import make_lm
from mxsweep.evaluate.input_limits import refuse_missing_special_tokens
from mxsweep.evaluate.lm import FastLM
from mxsweep.model.special_tokens import with_special_tokens
from mxsweep.terminal.errors import ConfigError

SPECIAL = ("[unk]", "[s]", "[/s]", "[pad]")
NAMED = {"unk_token": "[unk]", "bos_token": "[s]", "eos_token": "[/s]", "pad_token": "[pad]"}
WORDS = ("the", "key", "door", "of", "a", "house", "was", "open", "red")


def words(template: str = "$A", **named: str | None) -> PreTrainedTokenizerFast:
    """Words, and what is put around a text."""
    backend = Tokenizer(models.WordLevel(_numbered(*SPECIAL, *WORDS), unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("[s]", 1), ("[/s]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED | named)


def byte_pairs(*merges: str, **named: str | None) -> PreTrainedTokenizerFast:
    """Bytes, some of which are merged: "k ey" makes one token of k and ey; Ġ is a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(merge.split()) for merge in merges]
    vocabulary = _numbered(*SPECIAL, *alphabet, *("".join(pair) for pair in pairs))
    backend = Tokenizer(models.BPE(vocabulary, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED | named)


def pieces() -> PreTrainedTokenizerFast:
    """SentencePiece as of Llama 2: a space in front of the text, ▁ for spaces, [s] before all."""
    scored = [*((token, 0.0) for token in SPECIAL), *((f"▁{word}", -2.0) for word in WORDS)]
    scored += [(letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.Unigram(scored, unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="[s] $A", special_tokens=[("[s]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED)


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


# Over the boundary of "key of" and "f": "ff"; of "the k" and "ey": "key"; of "a " and "red": " r".
MERGES = ("k e", "ke y", "f f", "Ġ r")
NONE = dict.fromkeys(NAMED)
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "words": words,
    "beginning": lambda: words("[s] $A"),
    "end": lambda: words("$A [/s]"),
    "both": lambda: words("[s] $A [/s]"),
    "merges": lambda: byte_pairs(*MERGES),
    "sentencepiece": pieces,
    "bytes in Python": ByT5Tokenizer,  # appends </s>, and has no beginning
}
PAIRS = [
    ("the key of a house", " was open"),
    ("the key of", "f the house"),
    ("the k", "ey of the house"),
    ("the door was ", "red"),
    ("a", " red door"),
    ("", "the door"),
    ("", "[s] the door"),
    ("[s] the key", " of a door"),
    ("the key of a house", " was red"),
]
TEXTS = ["the key of a house was red", "a door", "the house of the open door was red was open a key off"]


def model_of(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama whose answers depend on every token before."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, initializer_range=0.3, **sizes
    )
    return LlamaForCausalLM(config).eval()


def both(tokenizer: PreTrainedTokenizerBase, max_length: int = 16) -> tuple[FastLM, HFLM]:
    model = model_of(tokenizer)
    theirs = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4, max_length=max_length, logits_cache=False
    )
    return make_lm(model, tokenizer, batch_tokens=64, max_length=max_length), theirs


def asked(kind: str, *arguments: Any, task: str = "doors") -> list[Instance]:
    return [Instance(kind, {}, text, 0, (task, row, 1)) for row, text in enumerate(arguments)]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_scores_are_those_of_lm_eval(name: str) -> None:
    ours, theirs = both(TOKENIZERS[name](), 32)
    requests = asked("loglikelihood", *PAIRS)
    assert all(theirs._encode_pair(*pair)[1] for pair in PAIRS if pair[0])
    answers, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    np.testing.assert_allclose([a[0] for a in answers], [e[0] for e in expected], atol=1e-4)
    assert [a[1] for a in answers] == [e[1] for e in expected]
    assert len({round(answer, 3) for answer, _ in answers}) > len(PAIRS) // 2
    for max_length in (5, 64):
        ours, theirs = both(TOKENIZERS[name](), max_length)
        texts = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
        np.testing.assert_allclose(ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts), atol=1e-4)


@pytest.mark.parametrize("add_bos_token", [True, False])
@pytest.mark.parametrize("template", ["$A", "[s] $A", "$A [/s]"])
def test_add_bos_token_is_that_of_lm_eval(add_bos_token: bool, template: str, tmp_path: Path) -> None:
    # lm-eval loads the tokenizer itself, and tells it.
    tokenizer = words(template)
    model_of(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    theirs = HFLM(
        pretrained=str(tmp_path), add_bos_token=add_bos_token, device="cpu", dtype="float32", logits_cache=False,
        max_length=16,
    )  # fmt: skip
    told = with_special_tokens(tokenizer, add_bos_token)
    ours = make_lm(model_of(tokenizer), told, batch_tokens=64, max_length=16)
    requests = asked("loglikelihood", *PAIRS)
    np.testing.assert_allclose(
        [a[0] for a in ours.loglikelihood(requests)], [e[0] for e in theirs.loglikelihood(requests)], atol=1e-4
    )
    texts = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
    np.testing.assert_allclose(ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts), atol=1e-4)
    prompts = asked("generate_until", *((text, {"until": [], "max_gen_toks": 4}) for text in TEXTS[:2]))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
    assert not any("appends" in warning for warning in ours.warnings)


def test_a_token_over_the_boundary_is_named_and_counted() -> None:
    ours, _ = both(byte_pairs(*MERGES), 32)
    ours.loglikelihood(asked("loglikelihood", *PAIRS[:5]))
    assert ours.warnings == [
        "2 of 5 requests have a token that reaches from the context into the answer (doors row 1, doors row 2). They "
        "are scored as lm-eval does it: behind the context as it is encoded alone stand the tokens of the whole text "
        "from so many on, which may leave out the answer's beginning or repeat the context's end"
    ]
    ours.loglikelihood(asked("loglikelihood", *PAIRS[:2]))  # known by now, and warned of again
    assert ours.warnings[1].startswith("1 of 2 requests have a token")
    ours.loglikelihood(asked("loglikelihood", *[("the key of" + " a" * n + " of", "f a") for n in range(5)]))
    assert "(doors row 0, doors row 1, doors row 2 and 2 more rows)" in ours.warnings[2]
    # What is scored of "the k" and "ey of the house" is what follows the fifth token of the whole: all but "ey".
    lost, kept = (
        ours.loglikelihood(asked("loglikelihood", pair))[0] for pair in (PAIRS[2], ("the key", " of the house"))
    )
    assert lost != kept


def test_an_answer_that_is_merged_whole_is_refused_by_its_row() -> None:
    ours, theirs = both(byte_pairs(*MERGES), 32)
    requests = asked("loglikelihood", ("the door", " was"), ("a k", "ey"))
    with pytest.raises(
        ConfigError, match=r"this tokenizer doors row 1 has no token to score: 'ey' after 'a k'; lm-eval fails"
    ):
        ours.loglikelihood(requests)
    with pytest.raises(AssertionError):
        theirs.loglikelihood(requests)


@pytest.mark.parametrize(("template", "bos"), [("$A [/s]", "[s]"), ("[s] $A [/s]", "[s]"), ("$A [/s]", None)])
def test_an_appended_end_is_warned_of(template: str, bos: str | None) -> None:
    ours, _ = both(words(template, bos_token=bos), 32)
    true = ", true with the beginning-of-sequence token alone" if bos else ""
    way_out = f"model.add_bos_token=false reads texts without special tokens{true}"
    ours.loglikelihood(asked("loglikelihood", ("the key", " of"), ("", "the door")))
    assert ours.warnings.pop() == (
        "the tokenizer appends '[/s]' to every text, so that 1 of 2 contexts end in it. They are scored as "
        f"lm-eval does it: behind '[/s]', without the answer's first token, and with '[/s]' as its last. {way_out}"
    )
    ours.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in TEXTS)))
    assert ours.warnings.pop() == (
        f"the tokenizer appends '[/s]' to every text; it is scored at the end of each text (3). {way_out}"
    )
    ours.generate_until(asked("generate_until", ("the key", {"until": [], "max_gen_toks": 2})))
    assert ours.warnings.pop() == (
        f"the tokenizer appends '[/s]' to every text; what is generated stands behind it, in each prompt (1). {way_out}"
    )
    assert not ours.warnings


class TestWithoutSpecialTokens:
    """lm-eval's HFLM raises a TypeError for each of them."""

    def test_an_answer_with_a_context_is_scored(self) -> None:
        tokenizer = byte_pairs(*MERGES, **NONE)
        ours = make_lm(model_of(tokenizer), tokenizer, max_length=32)
        # The same tokens under a name that no text has, for HFLM.
        _, theirs = both(byte_pairs(*MERGES), 32)
        requests = asked("loglikelihood", *(pair for pair in PAIRS if pair[0]))
        np.testing.assert_allclose(
            [a[0] for a in ours.loglikelihood(requests[:5])],
            [e[0] for e in theirs.loglikelihood(requests[:5])],
            atol=1e-4,
        )

    def test_no_token_is_added_that_the_model_has_no_row_for(self) -> None:
        tokenizer = byte_pairs(**NONE)
        size = len(tokenizer)
        make_lm(model_of(tokenizer), tokenizer)
        assert len(tokenizer) == size

    def test_a_task_that_generates_needs_an_end(self) -> None:
        tasks: Any = {"told": SimpleNamespace(OUTPUT_TYPE="generate_until")}
        refuse_missing_special_tokens(tasks, words(bos_token=None))
        with pytest.raises(ConfigError, match=r"task: told generates, and the tokenizer has no end token .*eos_token"):
            refuse_missing_special_tokens(tasks, words(eos_token=None))

    @pytest.mark.parametrize("kind", ["loglikelihood", "loglikelihood_rolling"])
    def test_what_needs_a_token_in_front_is_refused(self, kind: str) -> None:
        ours = make_lm(model_of(byte_pairs(**NONE)), byte_pairs(**NONE), max_length=32)
        text = ("", "the door") if kind == "loglikelihood" else ("the door",)
        with pytest.raises(
            ConfigError, match=r"neither a beginning-of-sequence token nor an end token, and lm-eval puts"
        ):
            getattr(ours, kind)(asked(kind, text))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[PreTrainedTokenizerBase], list[str]]:
    """Save a model with the tokenizer; return the words that name both, and rows of LAMBADA."""

    def save(tokenizer: PreTrainedTokenizerBase, **settings: int | None) -> list[str]:
        model = model_of(tokenizer)
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        rows = "".join(json.dumps({"text": text, "page": text}) + "\n" for text in TEXTS)
        (tmp_path / "rows.jsonl").write_text(rows)
        return [
            "model=hf",
            f"model.path={tmp_path / 'model'}",
            "model.device=cpu",
            f"task.data={tmp_path / 'rows.jsonl'}",
        ]

    return save


def test_a_run_without_special_tokens_is_done_where_answers_have_a_context(saved: Any) -> None:
    named = [*saved(byte_pairs(**NONE)), "format=none"]
    done = run(compose([*named, "task=lambada_openai"]))
    assert done["status"] == "done", done["error"]
    refused = run(compose([*named, "task=wikitext"]))
    assert refused["error"]["type"] == "ConfigError"
    assert refused["error"]["message"].startswith("task: wikitext: model.path: the tokenizer has neither")


def test_a_record_says_what_tokenizers_do_in_every_table(saved: Any, tmp_path: Path) -> None:
    named = saved(words("$A [/s]"), bos_token_id=1, eos_token_id=2)
    done = run(compose([*named, "task=lambada_openai", "format=mxfp4", "model.max_length=16"]), tmp_path / "runs" / "a")
    assert done["status"] == "done", done["error"]
    beginning, end = done["warnings"]
    assert "names the beginning-of-sequence token '[s]' (1)" in beginning and "3 of 3 contexts end in it" in end
    for warning in (beginning, end):
        assert_warned_everywhere(tmp_path / "runs", warning)
    told = run(
        compose([*named, "task=lambada_openai", "format=mxfp4", "model.max_length=16", "model.add_bos_token=true"])
    )
    (guess,) = told["warnings"]
    assert "no better than a guess" in guess  # its weights are random
    assert told["config"]["model"]["add_bos_token"] is True
    assert told["config_hash"] != done["config_hash"]
    assert told["metrics"] != done["metrics"]


def test_calibration_reads_what_is_evaluated(saved: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(WORDS * 40))
    named = [
        *saved(words("$A")),
        "format=mxfp4",
        "ptq=gptq",
        "calibration=text",
        f"calibration.path={tmp_path}/text.txt",
    ]
    named += ["calibration.length=12", "calibration.samples=3", "task=lambada_openai"]
    read = [run(compose([*named, f"model.add_bos_token={setting}"])) for setting in ("true", "false")]
    assert [record["status"] for record in read] == ["done", "done"], [record["error"] for record in read]
    config = compose(named)
    sequences = [
        calibration_tokens(config.calibration, config.model, with_special_tokens(words("$A"), told), 16).sequences
        for told in (True, False)
    ]
    assert all(sequence[0] == 1 and len(sequence) == 12 for sequence in sequences[0])
    assert all(1 not in sequence and len(sequence) == 12 for sequence in sequences[1])


def test_calibration_past_the_embedding_is_refused(saved: Any, tmp_path: Path) -> None:
    tokenizer = words()
    named = saved(tokenizer)
    assert tokenizer.add_tokens(["zebra"]) == 1
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("zebra the key " * 40)
    named += ["format=mxfp4", "ptq=gptq", "calibration=text", f"calibration.path={tmp_path}/text.txt"]
    refused = run(compose([*named, "calibration.length=12", "task=lambada_openai"]))
    assert refused["error"]["type"] == "ConfigError" and "('zebra')" in refused["error"]["message"]


def test_prompts_past_the_embedding_are_refused() -> None:
    tokenizer = words()
    model = model_of(tokenizer)
    tokenizer.add_tokens(["zebra"])
    ours = make_lm(model, tokenizer, max_length=16)
    with pytest.raises(ConfigError, match=r"the token 13 \('zebra'\)"):
        ours.generate_until(asked("generate_until", ("the zebra", {"until": [], "max_gen_toks": 2})))


def test_prompts_that_are_cut_are_counted_and_no_room_for_one_is_refused() -> None:
    ours, theirs = both(words(), 8)
    prompts = asked("generate_until", *((text, {"until": [], "max_gen_toks": 2}) for text in (TEXTS[0], TEXTS[1])))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)
    assert ours.warnings == [
        "1 of 2 prompts are longer than model.max_length (8 tokens) less what may be generated after them, and were "
        "read without their beginning"
    ]
    with pytest.raises(
        ConfigError, match=r"model\.max_length: 8 leaves no token to a prompt beside the 256 that the task"
    ):
        ours.generate_until(asked("generate_until", (TEXTS[0], {"until": []})))
    with pytest.raises(AssertionError):
        theirs.generate_until(asked("generate_until", (TEXTS[0], {"until": []})))
