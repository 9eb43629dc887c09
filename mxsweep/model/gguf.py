"""Load a GGUF file as plain weights: transformers reads config, tokenizer and tensors, the package `gguf` the blocks.

transformers maps a file's metadata to a config by a list of keys for each architecture, and its tensors to weights by
name; what is on neither list it leaves out without a word. Here what is left out is looked for: scaled rotary
frequencies are put in, or refused, and a count of weights that does not come out is warned of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mxsweep.config.refusals import gguf_missing
from mxsweep.files.digests import Stamp, stamp_of
from mxsweep.files.gguf_header import GGUFHeader, has_package, read_header
from mxsweep.model.attention_choice import missing_attention
from mxsweep.terminal.errors import ConfigError

_NAME = "model.gguf"
_FREQUENCIES = "rope_freqs.weight"  # by which llama.cpp divides each rotary frequency, as of Llama 3.1
_LONG_FREQUENCIES = ("rope_factors_long.weight", "rope_factors_short.weight")  # of longrope, as of Phi-3

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, Mapping[str, Any]]


def load_gguf(path: str, file: Path, **arguments: Any) -> Loaded:
    """Return the model and the tokenizer of a GGUF file, and what transformers says of the loading.

    Weights are dequantized in float32, then rounded once to the dtype asked for.

    Args:
        path: the ``model.path``, for messages.
        file: the file that it names.
        **arguments: as ``from_pretrained`` takes them; of ``dtype`` "auto" is float32.

    Raises:
        ConfigError: the package `gguf` is missing, or transformers cannot make a model of the file.
    """
    if not has_package():
        raise ConfigError(gguf_missing(path))
    header = read_header(file)
    dtype = arguments.pop("dtype")
    try:
        with _alone(file) as folder:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_NAME)
            arguments |= {"config": gguf_config(file), "gguf_file": _NAME, "dtype": torch.float32, **dequantizing()}
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    except MemoryError:
        raise
    except Exception as error:
        # Whatever transformers and gguf make of a header that they do not know, or of damaged blocks.
        said = isinstance(error, OSError | ValueError | ImportError) and str(error)
        reason = " ".join((said or f"{type(error).__name__}: {error}").split())
        asked = arguments.get("attn_implementation") or "auto"
        raise missing_attention(asked, reason) or ConfigError(
            f"model.path: {path!r} cannot be loaded: {reason[:400]} (its architecture, as llama.cpp calls it: "
            f"{header.architecture!r}); a folder of the same model may do"
        ) from error
    model: PreTrainedModel = loaded[0]
    model.config.name_or_path = tokenizer.name_or_path = path
    _scale_frequencies(path, file, header, model)
    if dtype not in ("auto", torch.float32):
        _round_weights(model, dtype)
    return model, tokenizer, loaded[1]


def gguf_config(file: Path) -> PreTrainedConfig:
    """Return the config that transformers makes of a GGUF file's header; it raises whatever errors it likes.

    Read once while the file is the same: a large vocabulary takes many seconds.
    """
    return deepcopy(_config(file, stamp_of(file.stat())))


@lru_cache(maxsize=2)
def _config(file: Path, _stamp: Stamp) -> PreTrainedConfig:
    with _alone(file) as folder:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, gguf_file=_NAME)
    return config


def quantized_from(header: GGUFHeader) -> dict[str, Any] | None:
    """Return what a file's weights were quantized to, for the record; None where they are plain values."""
    if not header.is_quantized:
        return None
    return {"method": "gguf", "format": header.mix, "weights": header.weights_by_type()}


def describe_blocks(path: str, header: GGUFHeader, model: PreTrainedModel) -> list[str]:
    """Warn of what a reader of results should know of a GGUF file: what its weights were rounded to, what is left out.

    Args:
        path: the ``model.path``.
        header: the file's.
        model: what was loaded from the file.
    """
    warnings = []
    if header.is_quantized:
        counts = header.weights_by_type()
        total = sum(counts.values())
        shares = ", ".join(f"{name} {count / total:.1%}" for name, count in counts.items())
        mix = "GGUF" if header.mix is None else f"GGUF {header.mix}"
        warnings.append(
            f"model.path: {path!r}: the weights come from {mix} ({shares} of them), which rounded them once: the "
            "unquantized model is what that left, and a format of as few bits starts near a grid that it fits"
        )
    held = sum(tensor.weights for tensor in header.tensors if tensor.name != _FREQUENCIES)
    taken = sum(parameter.numel() for parameter in model.parameters())
    if held > taken:
        warnings.append(
            f"model.path: {path!r} holds {held:,} weights, and the model that transformers makes of it has {taken:,}: "
            "some are left out"
        )
    return warnings


def dequantizing() -> dict[str, Any]:
    """Return what ``from_pretrained`` takes to make plain weights of a file's blocks.

    transformers 5.23 and later would leave some in their blocks.
    """
    settings: Any = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


@contextmanager
def _alone(file: Path) -> Iterator[str]:
    """Yield a folder that holds a file and nothing else: transformers reads tokenizers and adapters beside it, too."""
    with tempfile.TemporaryDirectory(prefix="mxsweep-gguf-") as folder:
        (Path(folder) / _NAME).symlink_to(file.resolve())
        yield folder


def _scale_frequencies(path: str, file: Path, header: GGUFHeader, model: PreTrainedModel) -> None:
    """Divide the rotary frequencies by those factors of the file that transformers does not read.

    Raises:
        ConfigError: they are scaled in a way that one factor for each frequency does not say.
    """
    names = {tensor.name for tensor in header.tensors}
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    rotary = [module for module in model.modules() if isinstance(getattr(module, "inv_freq", None), Tensor)]
    kinds = {str(getattr(module, "rope_type", "default")) for module in rotary}
    left_out = scaling not in ("none", "", *kinds) or names.intersection(_LONG_FREQUENCIES)
    if left_out or (_FREQUENCIES in names and (len(rotary) != 1 or kinds != {"default"})):
        how = scaling if scaling not in ("none", "") else "longrope"
        raise ConfigError(
            f"model.path: {path!r} scales rotary positions ({how}), which transformers does not read from a GGUF "
            "file; take a folder of the same model"
        )
    if _FREQUENCIES in names:
        from gguf import GGUFReader

        (tensor,) = (tensor for tensor in GGUFReader(file).tensors if tensor.name == _FREQUENCIES)
        _divide(rotary[0], torch.tensor(tensor.data, dtype=torch.float32))


def _divide(rotary: nn.Module, factors: Tensor) -> None:
    """Divide the frequencies of a rotary embedding; those that it starts from are the same tensor or a copy."""
    for name in ("inv_freq", "original_inv_freq"):
        frequencies = getattr(rotary, name, None)
        if isinstance(frequencies, Tensor):
            rotary.register_buffer(name, frequencies / factors.to(frequencies.device), persistent=False)


def _round_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round parameters and saved buffers to ``dtype``, but those that the class keeps in float32."""
    kept = model._get_dtype_plan(dtype)
    saved = model.state_dict(keep_vars=True)
    for name, tensor in saved.items():
        if tensor.is_floating_point() and not any(part in name for part in kept):
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype
