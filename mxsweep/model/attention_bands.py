"""Compute attention over long texts in few shapes, and over sliding windows band by band, with the same bits, on a GPU.

Of a layer with a window, transformers gives PyTorch's attention a mask of all queries and keys, and every score is
computed, most of them to be thrown away. Here a band of queries at a time is given the keys that the mask leaves to it.

cuDNN, by which PyTorch computes attention on a Hopper, compiles a kernel for every length that it has not met in the
process: of documents, each of its own length, that takes many times what attention takes. So bands have two shapes for
all texts, and layers without a window get texts that are padded to one of four lengths an octave.

Kernels go through keys in steps, from the first key on, and a step that is masked whole leaves a query's sums as they
are. So a band whose keys begin with a step comes out with the same bits, and so does a text with padding behind it.
That is tried on each kind of attention before it is relied on; where the bits are others, attention is computed as it
was asked for. A CPU's kernels choose their steps by the text's length: there it always is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mxsweep.model.attention_interface import Attended, ListeningFunction

BAND = 1024  # queries at a time
STEP = 128  # keys: of this many at most kernels have a step
NAME = "sdpa"
DEVICES = ("cuda",)
UNREAD = ("position_ids", "cache_position")  # tensors that models hand on and transformers' function does not look at

_tried: dict[tuple[object, ...], bool] = {}
_known: tuple[weakref.ref[Tensor], int, bool] | None = None  # the mask asked about last, its version, the answer


@contextmanager
def attention_in_bands() -> Iterator[None]:
    """Let models compute attention over sliding windows band by band while the context lasts, on a GPU."""
    functions, current = ALL_ATTENTION_FUNCTIONS, ALL_ATTENTION_FUNCTIONS[NAME]
    if isinstance(current, ListeningFunction):  # keys and values are quantized whole
        plain, current.function = current.function, _in_bands(current.function)
        try:
            yield
        finally:
            current.function = plain
        return
    functions[NAME] = _in_bands(current)
    try:
        yield
    finally:
        del functions[NAME]  # leaves what is registered for all models, unless there was an entry before it
        if functions.get(NAME) is not current:
            functions[NAME] = current


def _in_bands(function: Callable[..., Attended]) -> Callable[..., Attended]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Attended:
        window = kwargs.get("sliding_window")
        if not args and _is_long(query, key, kwargs):
            if attention_mask is None:
                if _is_compiled_anew(module, query, key, value, kwargs) and _is_same(
                    _attend_padded, function, module, query, key, None, kwargs
                ):
                    return _attend_padded(function, module, query, key, value, None, kwargs)
            elif (
                isinstance(window, int)
                and _leaves_bands(attention_mask, query.shape[2], window)
                and _is_same(_attend, function, module, query, key, window, kwargs)
            ):
                return _attend(function, module, query, key, value, attention_mask, kwargs)
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    return attend


def _attend(
    function: Callable[..., Attended],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    kwargs: dict[str, Any],
) -> Attended:
    tokens = query.shape[2]
    parts = []
    for queries, keys in _bands(tokens, kwargs["sliding_window"]):
        band = [query[:, :, queries], key[:, :, keys], value[:, :, keys], mask[:, :, queries, keys]]
        if (missing := BAND - band[0].shape[2]) > 0:  # the last one gets the shape of those before it
            band = [*(pad(each, (0, 0, 0, missing)) for each in band[:3]), pad(band[3], (0, missing, 0, missing))]
        parts.append(function(module, *band, **kwargs)[0])
    return torch.cat(parts, dim=1)[:, :tokens], None


def _attend_padded(
    function: Callable[..., Attended],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    kwargs: dict[str, Any],
) -> Attended:
    tokens = query.shape[2]
    missing = padded_length(tokens) - tokens
    padded = (pad(each, (0, 0, 0, missing)) for each in (query, key, value))
    return function(module, *padded, mask, **kwargs)[0][:, :tokens], None


def padded_length(tokens: int) -> int:
    """Return the least of four lengths an octave that is no less than ``tokens``."""
    step = max(1, 2 ** ((tokens - 1).bit_length() - 3))
    return -(-tokens // step) * step


def _bands(tokens: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Give each band's queries and the keys that it reads."""
    for start in range(0, tokens, BAND):
        end = min(start + BAND, tokens)
        yield slice(start, end), slice(max(0, start - window + 1) // STEP * STEP, end)


def _is_long(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether this is attention of a long text over itself, and over nothing else."""
    return (
        query.device.type in DEVICES
        and not query.requires_grad
        and key.shape[2] == query.shape[2] >= 2 * BAND
        and not any(isinstance(value, Tensor) and name not in UNREAD for name, value in kwargs.items())
    )


def _is_compiled_anew(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether queries read no later key, and cuDNN is asked, which compiles a kernel for each length."""
    given = kwargs.get("is_causal")
    if not (getattr(module, "is_causal", True) if given is None else given):
        return False
    choice = torch._fused_sdp_choice(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
    return choice == SDPBackend.CUDNN_ATTENTION.value


def _leaves_bands(mask: Tensor, tokens: int, window: int) -> bool:
    """Return whether bands read all that the mask leaves, and are much less than everything."""
    return (
        tokens >= 2 * window
        and mask.dtype == torch.bool
        and mask.shape[2:] == (tokens, tokens)
        and _lies_in_bands(mask, window)
    )


def _lies_in_bands(mask: Tensor, window: int) -> bool:
    """Return whether no query reads a key outside its band's; asked of each mask once, which all layers share."""
    global _known
    if _known is None or _known[0]() is not mask or _known[1] != mask._version:
        inside = sum(mask[:, :, queries, keys].sum() for queries, keys in _bands(mask.shape[2], window))
        _known = (weakref.ref(mask), mask._version, bool(mask.sum() == inside))
    return _known[2]


def _is_same(
    attend: Callable[..., Attended],
    function: Callable[..., Attended],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    window: int | None,
    kwargs: dict[str, Any],
) -> bool:
    """Return whether ``attend`` gives the bits of ``function``, as tried on random numbers."""
    kind = (attend, function, type(module), query.device, query.dtype, query.shape[1::2], key.shape[1::2], window)
    if kind not in _tried:
        tokens = max(2 * BAND, 2 * (window or 0)) + STEP + 3
        generator = torch.Generator(query.device).manual_seed(0)
        q, k, v = (
            torch.randn((1, of.shape[1], tokens, of.shape[3]), generator=generator, device=of.device).to(of.dtype)
            for of in (query, key, key)
        )
        mask = None
        if window is not None:
            at = torch.arange(tokens, device=query.device)
            behind = at[:, None] - at
            mask = ((behind >= 0) & (behind < window))[None, None]
        whole, _ = function(module, q, k, v, mask, **kwargs)
        _tried[kind] = torch.equal(whole, attend(function, module, q, k, v, mask, kwargs)[0])
    return _tried[kind]
