"""What a tokenizer puts around a text: decided in one place, warned of where a model's own beginning is not put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mxsweep import compose
from mxsweep.files.checkpoints import model_folder
from mxsweep.model.load import load_configured
from mxsweep.model.special_tokens import (
    beginning_not_put,
    beginning_of,
    describe_special_tokens,
    ending_of,
    with_padding,
    with_special_tokens,
)
from mxsweep.terminal.errors import ConfigError

VOCABULARY = {word: number for number, word in enumerate(("<unk>", "<s>", "</s>", "<pad>", "a", "b", "c"))}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEMPLATES = {"nothing": "$A", "beginning": "<s> $A", "end": "$A </s>", "both": "<s> $A </s>"}


def words(template: str = "nothing", **named: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer of words, with what it puts around a text."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=TEMPLATES[template], special_tokens=[(token, VOCABULARY[token]) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMED | named)


def ids(tokenizer: PreTrainedTokenizerBase, text: str = "a b") -> list[int]:
    encoded: list[int] = tokenizer(text)["input_ids"]
    assert tokenizer.encode(text) == encoded
    return encoded


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_put_is_found_by_encoding(template: str) -> None:
    tokenizer = words(template)
    assert beginning_of(tokenizer) == ([1] if template in ("beginning", "both") else [])
    assert ending_of(tokenizer) == ([2] if template in ("end", "both") else [])


@pytest.mark.parametrize("template", TEMPLATES)
def test_true_puts_the_beginning_alone_and_false_nothing(template: str) -> None:
    tokenizer = words(template)
    before = ids(tokenizer)
    assert with_special_tokens(tokenizer, "auto") is tokenizer
    assert ids(with_special_tokens(tokenizer, True)) == [1, 4, 5]
    assert ids(with_special_tokens(tokenizer, False)) == [4, 5]
    assert ids(tokenizer) == before  # it is left as it is
    assert with_special_tokens(tokenizer, True) is with_special_tokens(tokenizer, True)  # tokens are kept by it


def test_a_saved_tokenizer_does_as_lm_eval_has_it(tmp_path: Path) -> None:
    # lm-eval gives the word to from_pretrained, and encodes with add_special_tokens=True.
    words("nothing").save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ids(with_special_tokens(loaded, True)) == theirs.encode("a b", add_special_tokens=True) == [1, 4, 5]


def test_a_tokenizer_written_in_python_is_told_too() -> None:
    tokenizer = ByT5Tokenizer(bos_token="<extra_id_0>")
    assert ids(tokenizer, "a") == [100, 1] and ending_of(tokenizer) == [1]
    assert ids(with_special_tokens(tokenizer, False), "a") == [100]
    assert ids(with_special_tokens(tokenizer, True), "a") == [tokenizer.bos_token_id, 100]
    assert ids(tokenizer, "a") == [100, 1]


def test_true_without_a_beginning_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.add_bos_token: true needs .* names none .*; allowed: auto, false"):
        with_special_tokens(words(bos_token=None), True)


class Deaf(PreTrainedTokenizerFast):
    """A tokenizer that puts a beginning whatever it is told."""

    def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
        encoded = super()._encode_plus(*args, **kwargs)
        if kwargs.get("add_special_tokens", True):
            encoded["input_ids"] = [1, *encoded["input_ids"]]
        return encoded


def test_a_tokenizer_that_does_not_listen_is_refused() -> None:
    tokenizer = Deaf(tokenizer_object=words().backend_tokenizer, **NAMED)
    with pytest.raises(ConfigError, match=r"model\.add_bos_token: false has no effect on .* Deaf; allowed: auto"):
        with_special_tokens(tokenizer, False)


def config(bos: int | None, eos: int | list[int] | None = 2) -> LlamaConfig:
    return LlamaConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=None)


def test_a_beginning_that_the_model_names_and_the_tokenizer_does_not_put_is_warned_of() -> None:
    (warning,) = describe_special_tokens(config(1), words(), "auto")
    assert warning.startswith("model.add_bos_token: the model's configuration names the beginning-of-sequence token")
    assert "'<s>' (1)" in warning and "model.add_bos_token=true puts it there" in warning
    assert describe_special_tokens(config(1), words("end"), "auto")
    assert beginning_not_put(config(1), words()) == 1


def test_padding_for_lm_eval_is_of_a_copy_and_warnings_stay() -> None:
    model, tokenizer = config(1, None), words(pad_token="<s>", eos_token=None, unk_token=None)
    assert with_padding(tokenizer) is tokenizer and describe_special_tokens(model, tokenizer, "auto") == []
    tokenizer = words(bos_token="<unk>", pad_token=None, eos_token=None, unk_token=None)
    model = config(0, None)
    before = describe_special_tokens(model, tokenizer, "auto")
    padded = with_padding(tokenizer)
    assert (padded.pad_token_id, tokenizer.pad_token_id) == (0, None) and padded is with_padding(tokenizer)
    assert before and describe_special_tokens(model, tokenizer, "auto") == before


@pytest.mark.parametrize(
    ("model", "tokenizer", "setting"),
    [
        (config(1), words("beginning"), "auto"),  # Llama, Gemma: it is put
        (config(1), words("both"), "auto"),
        (config(1), words(), False),  # the user said so
        (config(2), words(bos_token="</s>"), "auto"),  # GPT-2, Pythia: the end token stands between texts
        (config(1, [2, 1]), words(), "auto"),
        (config(3), words(bos_token="<pad>"), "auto"),
        (config(3), words(bos_token=None), "auto"),  # Qwen: the tokenizer knows of none
        (config(5), words(), "auto"),  # another token than the tokenizer's
        (config(None), words(), "auto"),
        (config(1), words(chat_template="{% for m in messages %}<s>{{ m.content }}{% endfor %}"), "auto"),
    ],
)
def test_models_that_are_meant_to_be_read_without_are_not_warned_of(
    model: LlamaConfig, tokenizer: PreTrainedTokenizerBase, setting: bool | str
) -> None:
    assert describe_special_tokens(model, tokenizer, setting) == []


def test_loading_gives_the_tokenizer_of_the_config_and_warns(tmp_path: Path) -> None:
    loaded = load_configured(compose(["model.device=cpu"]).model)
    assert not loaded.warnings
    tokenizer = AutoTokenizer.from_pretrained(str(model_folder("embedded")), bos_token="kettle")
    bos = tokenizer.bos_token_id
    loaded.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = LlamaConfig.from_pretrained(tmp_path)
    settings.bos_token_id = bos
    settings.save_pretrained(tmp_path)

    def load(setting: str) -> tuple[list[int], int]:
        found = load_configured(compose(["model=hf", f"model.path={tmp_path}", f"model.add_bos_token={setting}"]).model)
        return found.tokenizer("Irene hid")["input_ids"], len(found.warnings)

    plain, warned = load("auto")
    assert warned == 1 and bos not in plain
    assert load("true") == ([bos, *plain], 0)
    assert load("false") == (plain, 0)
