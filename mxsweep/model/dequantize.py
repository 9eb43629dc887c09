"""Load a checkpoint that is quantized already as plain weights: values of its blocks, and nothing quantized about it.

transformers dequantizes some methods while it loads (compressed-tensors, mxfp4, fp8), others afterwards (bitsandbytes);
tensors of torchao dequantize themselves. Which ones is asked of its classes. What comes out is compared with the model
that the config makes without any quantization: the same modules, none with a forward or a hook of its own, and plain
floating-point parameters, so that no activation is quantized any longer.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer

from mxsweep.numerics.dispatch import DTYPES
from mxsweep.terminal.errors import ConfigError

_OF_ACTIVATIONS = ("input", "output", "activation", "k", "v", "q")  # what scales of what is no weight begin with


class Quantization:
    """Hold how a checkpoint is quantized, as its config says, and how transformers dequantizes it.

    Args:
        path: the ``model.path``, for messages.
        config: the checkpoint's, whose quantization settings are changed to dequantize.

    Raises:
        ConfigError: transformers cannot dequantize it, or would not by all that it says.
    """

    def __init__(self, path: str, config: PreTrainedConfig) -> None:
        self._path = path
        self._settings = _settings_of(config)
        bits = "_4bit" if self._settings.get("load_in_4bit") else "_8bit" if self._settings.get("load_in_8bit") else ""
        self.method = str(self._settings.get("quant_method") or ("bitsandbytes" if bits else "an unnamed method"))
        name = self.method + bits
        config_class, quantizer = AUTO_QUANTIZATION_CONFIG_MAPPING.get(name), AUTO_QUANTIZER_MAPPING.get(name)
        if config_class is None or quantizer is None:
            raise self._refusal("transformers does not know it as config.json has it")
        self._while_loading = "dequantize" in inspect.signature(config_class).parameters
        self._afterwards = getattr(quantizer, "_dequantize", None) is not HfQuantizer._dequantize
        if not (self._while_loading or self._afterwards or self.method == "torchao"):
            raise self._refusal("transformers has no way back to plain weights for it")
        self._refuse_several_ways()
        if self._while_loading:
            self._settings["dequantize"] = True

    def finish(self, model: PreTrainedModel) -> None:
        """Dequantize what loading left quantized. Raises ConfigError where something quantized is left."""
        if not self._while_loading:
            if self._afterwards:
                model.dequantize()
            else:
                _dequantize_tensors(model)
        for name in ("hf_quantizer", "quantization_method"):
            model.__dict__.pop(name, None)
        model.__dict__["is_quantized"] = False
        forget_quantization(model.config)
        if left := _what_is_left(model):
            raise self._refusal(f"something quantized is left of it when it is dequantized: {left}")

    def describe(self) -> list[str]:
        """Warn of what a reader of results should know: what rounded the weights, what is no longer quantized."""
        kind = self._settings.get("format") or self._settings.get("fmt")
        activations = "; activations are no longer quantized as that checkpoint says" if self._has_activations else ""
        return [
            f"model.dequantize: {self._path!r}: the weights come from {self.method}{f' ({kind})' if kind else ''}, "
            "which rounded them once: the unquantized model is what that left, and a format of as few bits starts near "
            f"a grid that it fits{activations}"
        ]

    def record(self) -> dict[str, Any]:
        """Return how the weights were stored, for the record."""
        settings = {name: value for name, value in self._settings.items() if name not in ("quant_method", "dequantize")}
        return {"method": self.method, "format": self._settings.get("format"), "settings": settings}

    def without_scales(self, loading: dict[str, Any]) -> dict[str, Any]:
        """Return what transformers says of loading, without the scales of activations among what was dropped."""

        def is_scale(key: str) -> bool:
            kind, _, rest = key.rpartition(".")[2].partition("_")
            return kind in _OF_ACTIVATIONS and rest.endswith(("scale", "zero_point"))

        dropped = {key for key in map(str, loading.get("unexpected_keys") or ()) if not is_scale(key)}
        return {**loading, "unexpected_keys": dropped}

    @property
    def _has_activations(self) -> bool:
        """Return whether the checkpoint quantizes activations, keys or values when it runs as it is meant to."""
        groups = (self._settings.get("config_groups") or {}).values()
        asked = ("activation_scheme", "load_in_8bit", "kv_cache_scheme")
        in_groups = any(isinstance(group, dict) and group.get("input_activations") for group in groups)
        in_torchao = "Activation" in repr(self._settings.get("quant_type"))
        return in_groups or in_torchao or any(self._settings.get(name) for name in asked)

    def _refuse_several_ways(self) -> None:
        """Raise ConfigError for settings of compressed-tensors that transformers takes no notice of."""
        groups = [group for group in (self._settings.get("config_groups") or {}).values() if isinstance(group, dict)]
        ways = {repr((group.get("weights"), group.get("format"))) for group in groups}
        if len(ways) > 1:
            raise self._refusal(f"it has {len(ways)} kinds of quantized weights, and transformers takes them for one")
        if self._settings.get("transform_config"):
            raise self._refusal("its weights are rotated (transform_config), and the rotations would be left out")
        sparsity = self._settings.get("sparsity_config") or {}
        if sparsity.get("format", "dense") != "dense":
            raise self._refusal(f"its weights are stored as sparse ones ({sparsity['format']}) as well")

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"model.dequantize: {self._path!r} is quantized by {self.method}, and {why}. Take the model's unquantized "
            "checkpoint, or save it dequantized by the library that made it"
        )


def config_without_quantization(path: str, config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a checkpoint's config as of plain weights. Raises ConfigError where it cannot be dequantized."""
    Quantization(path, config)
    forget_quantization(config)
    return config


def load_dequantized(
    path: str, source: str, method: str, arguments: dict[str, Any], shared: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any], Quantization]:
    """Return a quantized checkpoint's model with plain weights, what transformers says of loading it, and its origin.

    Args:
        path: the ``model.path``, for messages.
        source: where transformers finds it.
        method: what its files say that it is quantized by.
        arguments, shared: as ``from_pretrained`` takes them.

    Raises:
        ConfigError: it cannot be dequantized, or the library of its method is missing.
    """
    config = AutoConfig.from_pretrained(source, **shared)
    if not _settings_of(config):
        raise ConfigError(
            f"model.dequantize: {path!r} is quantized by {method}, and its config.json has no quantization_config, "
            "which transformers needs. Take the model's unquantized checkpoint"
        )
    quantization = Quantization(path, config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, output_loading_info=True, **arguments, **shared
        )
    except ImportError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.dequantize: {path!r} is quantized by {quantization.method}, whose library is needed to dequantize "
            f"it: {reason}"
        ) from error
    quantization.finish(loaded[0])
    return loaded[0], quantization.without_scales(loaded[1]), quantization


def _settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of quantization that transformers finds, themselves; empty where it finds none."""
    for part in (config, config.get_text_config(decoder=True)):
        if isinstance(settings := getattr(part, "quantization_config", None), dict):
            return settings
    return {}


def forget_quantization(config: PreTrainedConfig) -> None:
    """Make a checkpoint's config one of plain weights."""
    for part in (config, config.get_text_config(decoder=True)):
        for name in ("quantization_config", "_is_quantized"):
            part.__dict__.pop(name, None)


def _dequantize_tensors(model: PreTrainedModel) -> None:
    """Replace parameters that are tensors of a quantized kind by what they stand for."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if type(parameter.data) is not torch.Tensor and hasattr(parameter, "dequantize"):
                plain = parameter.data.dequantize().to(model.config.dtype)
                setattr(module, name, nn.Parameter(plain, requires_grad=False))


def _what_is_left(model: PreTrainedModel) -> str | None:
    """Return what tells a model from the plain one of its config; None where nothing does."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    expected = dict(plain.named_modules())
    module: nn.Module
    for name, module in model.named_modules():
        if type(module) is not type(expected.get(name)):
            return f"{name} is a {type(module).__name__}"
        dispatched = hasattr(module, "_hf_hook")  # by accelerate, over several devices
        if module._forward_hooks or module._forward_pre_hooks or ("forward" in vars(module) and not dispatched):
            return f"{name} has a forward of its own"
    shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        if type(parameter.data) is not torch.Tensor or parameter.dtype not in DTYPES:
            return f"{name} is a {type(parameter.data).__name__} of {parameter.dtype}"
        if parameter.shape != shapes.get(name):
            return f"{name} has the shape {list(parameter.shape)}"
    return None
