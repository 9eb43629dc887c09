"""Build the model that a folder holds on the meta device: every module and shape, and no values.

A plan is checked with it, and bits and bytes are counted, before anything is loaded: with the operands that the run
will find, since it is the same model, and the same pass through it says what a text reaches
(:mod:`mxsweep.model.probe`). Building one takes milliseconds, importing torch and transformers seconds.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mxsweep.files.checkpoints import (
    exported_folder,
    gguf_file,
    is_here,
    loading_dtype,
    model_folder,
    model_stamps,
    stored_dtypes,
)
from mxsweep.formats.recipe import Recipe
from mxsweep.model.attention import refuse_kv_options
from mxsweep.model.attention_choice import transformers_name
from mxsweep.model.dequantize import config_without_quantization, forget_quantization
from mxsweep.model.gguf import gguf_config
from mxsweep.model.probe import PassFailed, probe
from mxsweep.model.sites import find_sites
from mxsweep.terminal.errors import ConfigError


def meta_model(
    path: str,
    *,
    dtype: str = "auto",
    attention: str = "auto",
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> PreTrainedModel | None:
    """Return the model of a folder or a GGUF file on the meta device, as :func:`mxsweep.model.load.load_model` would.

    Args:
        path: a folder, a GGUF file, or "embedded".
        dtype, attention, trust_remote_code, dequantize: as for ``load_model``.

    Returns:
        The model; None for a name on the hub, and where the model is stored in a format of weights of its own, or
        cannot be built, or where what a text reaches depends on values (:func:`why_not_followed`). The same call again
        returns the same object, unless the folder's files changed.

    Raises:
        ConfigError: a checkpoint that is to be dequantized, and cannot be.
    """
    stamps = model_stamps(path, trust_remote_code)
    return _meta_model(path, dtype, attention, trust_remote_code, dequantize, stamps)[0]


def why_not_followed(
    path: str,
    *,
    dtype: str = "auto",
    attention: str = "auto",
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> str | None:
    """Return why a pass through a model cannot be followed on the meta device, by the model's class; None if it can.

    None, too, for a model that there is none of there for another reason. The arguments and errors are those of
    :func:`meta_model`.
    """
    stamps = model_stamps(path, trust_remote_code)
    return _meta_model(path, dtype, attention, trust_remote_code, dequantize, stamps)[1]


def recipe_problem(model: PreTrainedModel, recipe: Recipe) -> str | None:
    """Return why ``recipe`` cannot be put into ``model``, as far as the modules say; None if nothing is in the way."""
    try:
        find_sites(model, recipe)
        refuse_kv_options(model, recipe)
    except ConfigError as error:
        return str(error)
    return None


@lru_cache(maxsize=8)
def _meta_model(
    path: str, dtype: str, attention: str, trust: bool, dequantize: bool, _stamps: Any
) -> tuple[PreTrainedModel | None, str | None]:
    """Return the model, and why a pass through it cannot be followed; of both, one at most."""
    if not is_here(path):
        return None, None
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)  # loading the model says what is wrong with it
    try:
        config = _config(path, trust)
        if exported_folder(path) is not None:
            forget_quantization(config)
        if getattr(config, "quantization_config", None) is not None:
            if not dequantize:
                return None, None  # whose layers transformers replaces while loading
            config = config_without_quantization(path, config)
        asked = _own_dtype(path, config) if dtype == "auto" else getattr(torch, dtype)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config,
                dtype=asked,
                attn_implementation=transformers_name(attention),
                trust_remote_code=trust,
            )
    except ConfigError:
        raise
    except Exception:
        # Whatever a configuration makes of a model class's constructor: loading the model says what is wrong with it.
        return None, None
    finally:
        transformers.logging.set_verbosity(verbosity)
    model.tie_weights()
    try:
        probe(model.eval())
    except PassFailed as error:
        return None, str(error).partition(": ")[2]
    return model, None


def _config(path: str, trust: bool) -> PreTrainedConfig:
    if file := gguf_file(path):
        return gguf_config(file)
    config: PreTrainedConfig = AutoConfig.from_pretrained(model_folder(path) or path, trust_remote_code=trust)
    return config


def _own_dtype(path: str, config: PreTrainedConfig) -> torch.dtype:
    """Return the dtype that "auto" comes to."""
    own: Any = getattr(torch, loading_dtype(path)) if gguf_file(path) else config.dtype
    return own or _stored_dtype(path)


def _stored_dtype(path: str) -> torch.dtype:
    """Return a dtype of the width that the weights of a folder have whose configuration names none."""
    dtypes = stored_dtypes(path)
    return torch.bfloat16 if dtypes and dtypes <= {"BF16", "F16"} else torch.float32
