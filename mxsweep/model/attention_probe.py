"""Find out by short passes which modules attend, and that standing between a model and its attention changes nothing.

Modules that look like attention may never be reached by a text (those of a vision tower, of attention to an image), or
attend in a way of their own. Two passes compare the logits with and without a listener that hands on copies of the keys
and values: they must be the same bit for bit, or what is measured later would be the effect of more than quantization.
Of a model that does not repeat itself exactly they may differ by NOISE times what two plain passes differ by.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.model.attention_interface import (
    Attended,
    Call,
    Listener,
    attention_modules,
    listening,
    unreachable,
)
from mxsweep.model.probe import probe, probe_pass
from mxsweep.terminal.errors import ConfigError

NOISE = 4  # times the distance of two passes of a model that does not repeat itself exactly


class _Identity:
    """Hand copies of the keys and values on to the attention function."""

    calls = 0

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        return call(query, key.clone(), value.clone(), call.mask)


def reached_attention(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules of ``model`` that attend when it reads a text, by name, in the model's order.

    Raises:
        ConfigError: there are none, or the attention of some cannot be reached, or listening to it changes logits.
    """
    candidates = {name: module for name, module in attention_modules(model).items() if name in probe(model).entered}
    plain = probe_pass(model)
    listeners: dict[str, Listener] = {name: _Identity() for name, _ in model.named_modules() if name}
    with listening(model, listeners):
        heard = probe_pass(model)
    reached = {name: model.get_submodule(name) for name, listener in listeners.items() if listener.calls}
    for name in candidates:
        if name not in reached and not _keeps_a_state(model, candidates[name]):
            raise ConfigError(
                f"kv_quant: {name} ({type(candidates[name]).__name__}) does not attend through transformers' attention "
                "interface, so its keys and values cannot be quantized; allowed: kv_quant=none"
            )
    if not reached:
        raise unreachable(model)
    _check_the_same(model, plain, heard)
    return reached


def _keeps_a_state(model: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether a module is linear attention, which keeps one state and no keys and values of each token."""
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return types is not None and types[module.layer_idx] == "linear_attention"


def _check_the_same(model: PreTrainedModel, plain: Tensor, heard: Tensor) -> None:
    if torch.allclose(plain, heard, rtol=0, atol=0, equal_nan=True):
        return
    # A model may not repeat itself exactly, as where a GPU adds up experts' outputs in any order.
    noise, distance = _distance(plain, probe_pass(model)), _distance(plain, heard)
    if not distance <= NOISE * noise:
        raise ConfigError(
            f"kv_quant: {type(model).__name__} computes other logits (by up to {distance:.3g}) where its keys and "
            "values pass through unquantized, so that its attention depends on more than them; allowed: kv_quant=none"
        )


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
