"""Stand between a model and its attention, in any model that goes through transformers' attention interface.

A model looks its attention function up by name in each pass: in transformers' registry, or, for the name "eager", in
the file of the model class. For the duration of a context, a function stands there that hands a call to the
:class:`Listener` of its module, which may change the keys and values before it calls the function of that name. A
module without a listener, of this model or another, gets what it would have got.

The name stays as it is, since models go by it: they build their masks for names that they know, and choose by it
whether sparse attention is computed with a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep.config.model_config import LISTENED_TO
from mxsweep.terminal.errors import ConfigError

STATE = "mxsweep_kv"  # the attribute of an attention module that holds its listener
EAGER_FUNCTION = "eager_attention_forward"  # its name in each model's file

Attended = tuple[Tensor, Tensor | None]  # output (B, Tq, Hq, D), attention weights (B, Hq, Tq, Tk) or None


@dataclass(frozen=True)
class Call:
    """Hold a call of attention as the model made it, without the query, key and value.

    Attributes:
        module: the attention module.
        mask: (B or 1, 1, Tq, Tk), boolean or added to the scores; None where there is nothing to mask, or where
            ``is_causal`` says what.
        is_causal: whether queries read no later keys where ``mask`` is None and there are several queries.
    """

    module: nn.Module
    mask: Tensor | None
    is_causal: bool
    function: Callable[..., Attended]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Attended:
        """Compute the model's attention, of queries over these keys and values."""
        return self.function(self.module, query, key, value, mask, *self.args, **self.kwargs)


class Listener(Protocol):
    """Stand in for the attention of one module."""

    calls: int  # how often attend was called

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Compute the attention of queries (B, Hq, Tq, D) over keys and values (B, H, Tk, D)."""


class _ListeningFunction:
    """Stand in for the attention function of a name, for as many contexts as use it at a time."""

    def __init__(self, name: str, function: Callable[..., Attended]) -> None:
        self.name, self.function, self.uses = name, function, 0

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # transformers' name for it: a model may give it by keyword
        *args: Any,
        **kwargs: Any,
    ) -> Attended:
        listener: Listener | None = getattr(module, STATE, None)
        if listener is None:
            return self.function(module, query, key, value, attention_mask, *args, **kwargs)
        listener.calls += 1
        # As transformers' function for sdpa decides it; the eager ones read a missing mask as nothing to mask.
        given = kwargs.get("is_causal")
        is_causal = self.name == "sdpa" and bool(getattr(module, "is_causal", True) if given is None else given)
        return listener.attend(Call(module, attention_mask, is_causal, self.function, args, kwargs), query, key, value)


@contextmanager
def _listening_function(functions: MutableMapping[str, Any], key: str, name: str) -> Iterator[None]:
    """Let the attention function under ``key`` hand its calls to listeners while the context lasts."""
    before = functions[key]
    if isinstance(before, _ListeningFunction):  # another context put it there
        listening_function = before
    else:
        listening_function = functions[key] = _ListeningFunction(name, before)
    listening_function.uses += 1
    try:
        yield
    finally:
        listening_function.uses -= 1
        if not listening_function.uses:
            if functions is ALL_ATTENTION_FUNCTIONS:
                del functions[key]  # leaves what is registered for all models, unless there was an entry before it
            if functions.get(key) is not listening_function.function:
                functions[key] = listening_function.function


def attention_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the modules of ``model`` that look like attention, by name, whether or not a text reaches them.

    Raises:
        ConfigError: there are none, or the model's attention cannot be reached.
    """
    implementation = implementation_of(model.config.get_text_config())
    modules = {name: module for name, module in model.named_modules() if is_attention(module)}
    if implementation not in LISTENED_TO or not modules or not model._can_set_attn_implementation():
        raise unreachable(model)
    return modules


def implementation_of(config: Any) -> str | None:
    """Return the name of the attention function that a module with this config calls."""
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def unreachable(model: PreTrainedModel) -> ConfigError:
    """Return the refusal of a model whose attention is computed in another way."""
    implementation = implementation_of(model.config.get_text_config())
    return ConfigError(
        f"kv_quant: the attention of {type(model).__name__} ({implementation}) does not go through transformers' "
        "attention interface, so its keys and values cannot be quantized; allowed: kv_quant=none"
    )


def is_attention(module: nn.Module) -> bool:
    """Return whether a module looks like the attention of a layer."""
    return type(module).__name__.endswith(("Attention", "MLA")) and hasattr(module, "layer_idx")


@contextmanager
def listening(model: PreTrainedModel, listeners: Mapping[str, Listener]) -> Iterator[None]:
    """Let modules of ``model`` hand their calls of attention to their listeners while the context lasts.

    Args:
        listeners: by the name of the module; other modules attend as before.
    """
    files: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        namespace = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
        if EAGER_FUNCTION in namespace:
            files[id(namespace)] = namespace
    with ExitStack() as stack:
        stack.enter_context(_listening_function(ALL_ATTENTION_FUNCTIONS, "sdpa", "sdpa"))
        for namespace in files.values():
            stack.enter_context(_listening_function(namespace, EAGER_FUNCTION, "eager"))
        for name, listener in listeners.items():
            module = model.get_submodule(name)
            setattr(module, STATE, listener)
            stack.callback(delattr, module, STATE)
        yield
