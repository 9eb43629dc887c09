"""Load models as they are, once, and keep them between the runs of a process."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mxsweep.config.model_config import ModelConfig
from mxsweep.config.refusals import no_such_gpu, quantized_already
from mxsweep.files.checkpoints import (
    exported_folder,
    gguf_file,
    is_here,
    model_folder,
    model_stamps,
    quantization_of,
    stored_quantization,
    tokenizer_files,
)
from mxsweep.files.gguf_header import read_header
from mxsweep.machine.hub import offline_where_unreachable
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.attention_choice import missing_attention, refuse_another_pick, transformers_name
from mxsweep.model.dequantize import Quantization, load_dequantized
from mxsweep.model.exported import describe_exported, load_exported
from mxsweep.model.gguf import describe_blocks, load_gguf, quantized_from
from mxsweep.model.loading_report import describe_dropped, refuse_partial, refuse_untied_head
from mxsweep.model.special_tokens import describe_special_tokens, with_special_tokens
from mxsweep.terminal.errors import ConfigError


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model in evaluation mode, on its device, and its tokenizer.

    Attributes:
        warnings: what a reader of its results should know of how it was loaded, a sentence each.
        quantized_from: how its weights were stored, where that was quantized: the method, and the weights of each kind.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    warnings: tuple[str, ...] = ()
    quantized_from: dict[str, Any] | None = None


# What transformers and torch raise where a setting or a file is of another kind than they take for granted.
_OF_DAMAGED_FILES = (
    TypeError, KeyError, AttributeError, ArithmeticError, IndexError, RuntimeError, AssertionError,
    StrictDataclassError,
)  # fmt: skip
# At most one: the last model asked for. A folder by its files' stamps, too: one that was written anew is another model.
_kept: dict[tuple[Any, ...], LoadedModel] = {}


def load_model(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    attention: str = "auto",
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer; the same call again returns the same objects.

    Args:
        path: a name on the Hugging Face hub, a folder, a GGUF file, or "embedded" for the model that ships with
            mxsweep.
        attention: "auto" for what transformers picks for the model, "sdpa", "eager", or another that transformers has.
        dtype: "auto" (the checkpoint's own; float32 for a GGUF file), "float32", "bfloat16" or "float16".
        device: "auto" (cuda where there is one), "cpu", "cuda", "cuda:1", "mps"; unused with ``device_map``.
        dequantize: take a checkpoint that is quantized already for plain weights, rather than refuse it.
        device_map: "auto" spreads the model over all GPUs; a model that still does not fit is refused.

    Raises:
        ConfigError: no such model, or not to be had without a token or a network; no such device.
    """
    device = resolve_device(device)
    arguments = (path, revision, dtype, device, device_map, attention, trust_remote_code, dequantize)
    key = (*arguments, model_stamps(path, trust_remote_code))
    if key not in _kept or not _is_whole(_kept[key].model, None if device_map else device):
        _kept.clear()  # before loading: two large models need not fit beside each other
        with nullcontext() if is_here(path) else offline_where_unreachable():
            _kept[key] = _load(*arguments)
    return _kept[key]


def load_configured(config: ModelConfig) -> LoadedModel:
    """Load the model that a config names; models are kept between runs. Raises ConfigError."""
    loaded = load_model(
        config.path,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        attention=config.attention,
        trust_remote_code=config.trust_remote_code,
        dequantize=config.dequantize,
    )
    tokenizer = with_special_tokens(loaded.tokenizer, config.add_bos_token)
    warnings = describe_special_tokens(loaded.model.config, tokenizer, config.add_bos_token)
    return replace(loaded, tokenizer=tokenizer, warnings=(*loaded.warnings, *warnings))


def take_configured(config: ModelConfig) -> LoadedModel:
    """Load a config's model for a caller who changes it: it is loaded anew next time. Raises ConfigError."""
    loaded = load_configured(config)
    forget_models()
    return loaded


def _is_whole(model: PreTrainedModel, device: str | None) -> bool:
    """Return whether all weights are where they belong: a run that failed may have left some in host memory."""
    return device is None or all(parameter.device.type == torch.device(device).type for parameter in model.parameters())


def forget_models() -> None:
    """Keep no model any longer, as where another one needs the memory."""
    _kept.clear()


def resolve_device(device: str) -> str:
    """Return the device that "auto" stands for; ConfigError for one that is not there."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count, index = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
        if index >= count:
            raise ConfigError(no_such_gpu(device, count))
        return f"cuda:{index}"
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("model.device: 'mps' is not there; allowed: auto, cpu")
    return device


def _quantization_method(source: str, revision: str | None) -> str | None:
    """Return the method by which a checkpoint's weights are quantized; None where they are not, or nothing is there."""
    try:
        settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError):
        return None  # loading says what is wrong with it
    return quantization_of(settings)


def _load(
    path: str,
    revision: str | None,
    dtype: str,
    device: str,
    device_map: str | None,
    attention: str,
    trust: bool,
    dequantize: bool,
) -> LoadedModel:
    arguments = {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "attn_implementation": transformers_name(attention),
        "device_map": device_map,
    }
    if file := gguf_file(path):
        model, tokenizer, loading = load_gguf(path, file, **arguments)
        header = read_header(file)
        warnings, origin = describe_blocks(path, header, model), quantized_from(header)
    else:
        shared = {"revision": revision, "trust_remote_code": trust}
        packed = exported_folder(path)
        model, tokenizer, loading, quantization = _load_pretrained(path, packed, dequantize, arguments, shared)
        warnings = quantization.describe() if quantization else []
        origin = quantization.record() if quantization else None
        if packed is not None:
            warnings, origin = describe_exported(path, packed)
    refuse_another_pick(attention, model)
    refuse_partial(path, loading)
    refuse_untied_head(path, model)
    if device_map is None:
        torch.nn.Module.to(model, device)
    model.eval()
    return LoadedModel(model, tokenizer, (*describe_dropped(path, loading), *warnings), origin)


def _load_pretrained(
    path: str, packed: Path | None, dequantize: bool, arguments: dict[str, Any], shared: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any], Quantization | None]:
    """Load a folder or a hub name: model and tokenizer, what transformers says of loading, how it was quantized.

    Args:
        packed: the folder where it is one that mxsweep packed, which is no longer quantized when it is loaded.
    """
    source = str(model_folder(path) or path)
    method = stored_quantization(path) or _quantization_method(source, shared["revision"])
    if method and not dequantize and packed is None:
        raise ConfigError(quantized_already(path, method))  # before it is loaded, which takes the method's library
    try:
        tokenizer = _load_tokenizer(path, shared)
        if packed is not None:
            model, loading = load_exported(path, packed, arguments, shared)
            return model, tokenizer, loading, None
        if method:
            model, loading, quantization = load_dequantized(path, source, method, arguments, shared)
            return model, tokenizer, loading, quantization
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **arguments, **shared
        )  # weights of another shape are told, then, and refused by their names
    except ConfigError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _loading_failed(path, arguments["attn_implementation"] or "auto", error) from error
    except _OF_DAMAGED_FILES as error:
        if shared["trust_remote_code"] or _is_of_the_machine(error):
            raise  # of the checkpoint's own code, or of the machine's
        reason = RuntimeError(f"{type(error).__name__}: {error}")
        raise _loading_failed(path, arguments["attn_implementation"] or "auto", reason) from error
    return loaded[0], tokenizer, loaded[1], None


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether an error says that memory ran out or that a GPU failed, which no other files would mend."""
    return is_out_of_memory(error) or any(sign in str(error) for sign in ("CUDA error", "DefaultCPUAllocator"))


def _load_tokenizer(path: str, shared: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or a hub name. Raises ConfigError that names a folder's files."""
    folder = model_folder(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder or path), **shared)
    except MemoryError:
        raise
    except Exception as error:  # tokenizers raises no other class for a file that it cannot read
        if shared["trust_remote_code"] and not isinstance(error, OSError | ValueError | ImportError):
            raise  # of the checkpoint's own code
        names = ""
        if folder is not None and _has_config(folder, shared):
            files = ", ".join(file.name for file in tokenizer_files(folder))
            names = f"its tokenizer ({files}): " if files else "it holds no file by a tokenizer's usual names: "
        kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
        raise _loading_failed(path, "auto", RuntimeError(f"{names}{kind}{error}")) from error
    return tokenizer


def _has_config(folder: Path, shared: dict[str, Any]) -> bool:
    """Return whether a folder's config.json can be read, as it is for the tokenizer, too."""
    try:
        AutoConfig.from_pretrained(str(folder), **shared)
    except Exception:  # as it may raise for its tokenizer
        return False
    return True


def _loading_failed(path: str, attention: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return missing_attention(attention, reason) or ConfigError(
        f"model.path: {path!r} cannot be loaded: {reason[:400]}. Give a folder, or the name of a causal language "
        "model on the hub (a gated one needs its licence accepted there and HF_TOKEN set)"
    )
