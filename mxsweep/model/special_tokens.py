"""Decide which special tokens a tokenizer puts around a text, and say what they do to a model.

The tokenizer itself holds the answer, so that scoring, generating, calibration and sensitivity read the same tokens:
``model.add_bos_token`` makes a copy of it that puts the beginning-of-sequence token alone (true), or nothing (false).
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.written_values import written

_PROBES = ("a", "0", "A", ".")  # the first that the vocabulary has a token for

# By tokenizer, whose copies must not refer to it: the same answer for the same tokenizer, for tokens are kept by it.
_copies: WeakKeyDictionary[PreTrainedTokenizerBase, dict[bool, PreTrainedTokenizerBase]] = WeakKeyDictionary()
_padded: WeakKeyDictionary[PreTrainedTokenizerBase, PreTrainedTokenizerBase] = WeakKeyDictionary()


def with_special_tokens(tokenizer: PreTrainedTokenizerBase, add_bos_token: bool | str) -> PreTrainedTokenizerBase:
    """Return the tokenizer as ``model.add_bos_token`` asks: "auto" leaves it as it is, else a copy that does as told.

    Raises:
        ConfigError: the tokenizer has no beginning-of-sequence token, or nothing can be told to it.
    """
    if isinstance(add_bos_token, str):
        return tokenizer
    if add_bos_token and tokenizer.bos_token_id is None:
        raise ConfigError(
            "model.add_bos_token: true needs a tokenizer with a beginning-of-sequence token, and this one names none "
            "(bos_token in tokenizer_config.json); allowed: auto, false"
        )
    made = _copies.setdefault(tokenizer, {})
    if add_bos_token not in made:
        made[add_bos_token] = _told(copy.deepcopy(tokenizer), add_bos_token)
    return made[add_bos_token]


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, or of one that has nothing to pad with a copy that pads with token 0.

    lm-eval adds a token to such a tokenizer, which the model has no row for. What is padded is masked.
    """
    if {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id} - {None}:
        return tokenizer
    if tokenizer not in _padded:
        _padded[tokenizer] = copy.deepcopy(tokenizer)
        _padded[tokenizer].pad_token_id = 0
    return _padded[tokenizer]


def _told(tokenizer: PreTrainedTokenizerBase, add_bos_token: bool) -> PreTrainedTokenizerBase:
    front = [tokenizer.bos_token_id] if add_bos_token else []
    teller: Any = tokenizer
    if tokenizer.is_fast:
        teller.add_eos_token, teller.add_bos_token = False, add_bos_token  # each writes the post-processor anew
    else:
        teller.build_inputs_with_special_tokens = lambda ids, more=None: [*front, *ids, *(more or [])]
    if any(whole != [*front, *plain] for whole, plain in (_encoded(tokenizer, text) for text in _PROBES)):
        raise ConfigError(
            f"model.add_bos_token: {written(add_bos_token)} has no effect on a tokenizer of the class "
            f"{type(tokenizer).__name__}; allowed: auto"
        )
    return tokenizer


def beginning_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer by itself puts in front of a text."""
    return _around(tokenizer)[0]


def ending_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer by itself appends to a text."""
    return _around(tokenizer)[1]


def beginning_not_put(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the beginning-of-sequence token of a model's config that its tokenizer does not put; None where it does.

    None, too, where the config names none.
    """
    bos = getattr(config.get_text_config(), "bos_token_id", None)
    return bos if isinstance(bos, int) and beginning_of(tokenizer)[:1] != [bos] else None


def describe_special_tokens(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, add_bos_token: bool | str
) -> list[str]:
    """Warn of a beginning-of-sequence token that model and tokenizer both know, and that no text begins with.

    No warning where the token is also the end or the padding, which begins no text by itself (GPT-2, Pythia, Qwen),
    where the chat template spells it out, as one does with what begins every turn (SmolLM2), and where the user said
    what is wanted. Nor where the tokenizer has another or none: configurations name token 1 by their class's default.
    """
    bos = beginning_not_put(config, tokenizer)
    if bos is None or bos != tokenizer.bos_token_id or add_bos_token != "auto":
        return []
    ends = getattr(config.get_text_config(), "eos_token_id", None)
    others = {tokenizer.eos_token_id, tokenizer.pad_token_id, *(ends if isinstance(ends, list) else [ends])}
    token = str(tokenizer.bos_token)
    if bos in others or token in str(tokenizer.chat_template or ""):
        return []
    return [
        f"model.add_bos_token: the model's configuration names the beginning-of-sequence token {token!r} ({bos}), and "
        "its tokenizer does not put it in front of a text. A model that was trained with it knows little without: "
        "model.add_bos_token=true puts it there, false says that none is meant to be"
    ]


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens before a text and those after it; none of a tokenizer that has no token for any probe."""
    for text in _PROBES:
        whole, plain = _encoded(tokenizer, text)
        if plain:
            start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Return the tokens of a text as the tokenizer gives it, and without special tokens."""
    return list(tokenizer(text)["input_ids"]), list(tokenizer(text, add_special_tokens=False)["input_ids"])
