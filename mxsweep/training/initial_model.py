"""Make the model that a training begins with: a Llama with random weights, or the run's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from mxsweep.config.checks import expanded
from mxsweep.config.refusals import longer_than_the_model
from mxsweep.config.train_config import InitConfig
from mxsweep.files.checkpoints import EMBEDDED, model_folder
from mxsweep.machine.memory import physical_memory
from mxsweep.model.load import take_configured
from mxsweep.model.positions import most_positions
from mxsweep.model.random_llama import llama_config
from mxsweep.terminal.errors import ConfigError
from mxsweep.training.job import TrainingJob

END = "<|end|>"
MOST_PARAMETERS = 10  # for each token that is seen, without a warning
WARNED_FROM = 1_000_000  # parameters; who trains fewer is trying things out


@dataclass(frozen=True)
class InitialModel:
    """Hold a model to train, in its master dtype, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    warnings: Sequence[str] = ()


def load_initial(job: TrainingJob) -> InitialModel:
    """Return the model that a training begins with, all of it trainable; random weights are in host memory.

    Raises:
        ConfigError: a model or tokenizer that cannot be had, random weights that do not fit in this machine's memory,
            or sequences longer than the model takes.
    """
    dtype = getattr(torch, job.train.master_dtype)
    if job.init.source == "random":
        tokenizer = _tokenizer(job)
        _check_fits(job.init, len(tokenizer))
        model: PreTrainedModel = random_llama(job.init, tokenizer, job.train.length, job.seed)
        warnings: Sequence[str] = _warnings(job)
    else:
        loaded = take_configured(job.model)
        model, tokenizer, warnings = loaded.model, loaded.tokenizer, loaded.warnings
        longest = most_positions(model)
        if longest is not None and longest < job.train.length:
            raise ConfigError(longer_than_the_model(job.train.length, job.model.label, longest))
    torch.nn.Module.to(model, dtype)
    return InitialModel(model.requires_grad_(True), tokenizer, warnings)


def random_llama(init: InitConfig, tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> LlamaForCausalLM:
    """Return a Llama with random weights in float32, drawn on the CPU: the same whatever device it is trained on."""
    config = llama_config(init, length, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the bytes of UTF-8, by their value, and one for the end of a text."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def _check_fits(init: InitConfig, vocabulary: int) -> None:
    """Refuse random weights that are more than the machine has memory for, before the system ends the process."""
    needed = 4 * (init.parameters + 2 * vocabulary * init.hidden)  # float32, embeddings and logits apart
    if needed > (memory := physical_memory()):
        raise ConfigError(
            f"init: the weights of {init.label} take {needed / 2**30:,.1f} GiB in float32, and this machine has "
            f"{memory / 2**30:,.1f} GiB; allowed: smaller sizes, as init=60m"
        )


def _warnings(job: TrainingJob) -> list[str]:
    """Say that a model with random weights sees too little text for a comparison of formats to mean anything."""
    tokens = job.train.total_steps * job.train.batch * job.train.length
    if job.init.parameters < WARNED_FROM or tokens * MOST_PARAMETERS >= job.init.parameters:
        return []
    return [
        f"train: {job.init.label} sees {tokens:,} tokens, which is {tokens / job.init.parameters:.2g} for each of its "
        f"{job.init.parameters:,} parameters: too short a training to compare formats by. The steps, the rate and the "
        "optimizer that train=from_scratch sets suit init=tiny; larger models take train.tokens=, train.lr= and "
        "train.optimizer= of their own"
    ]


def _tokenizer(job: TrainingJob) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model with random weights."""
    name = job.init.tokenizer
    if name == "bytes" or (name == "auto" and job.corpus.source != "stories"):
        return bytes_tokenizer()
    source = model_folder(EMBEDDED) if name == "auto" else expanded("init.tokenizer", name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source))
    except Exception as error:  # tokenizers raises no other class for a file that it cannot read
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"init.tokenizer: {name!r} cannot be loaded: {reason}; allowed: auto, bytes, or a folder with a tokenizer"
        ) from error
    return tokenizer
