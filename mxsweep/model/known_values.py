"""Follow the values that a pass on the meta device does know: positions, masks, whatever comes of token ids alone.

On the meta device tensors have shapes and no values. A model asks for some all the same, of small tensors that do not
depend on its weights: are the positions one sequence, is everything attended to, is the text longer than some length?
While a :class:`KnownValues` is active, each operation whose inputs are all known is computed on the CPU as well, and
such a question gets its true answer. What depends on a weight has no value, and a question about it raises an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MOST_ELEMENTS = 2**20  # of a tensor whose values are followed
_UNWRITTEN = ("empty", "rand", "normal", "bernoulli")  # operations whose answers are no values to be known


class KnownValues(TorchDispatchMode):
    """Compute on the CPU what operations on the meta device answer to inputs of known values."""

    supports_higher_order_operators = True  # which have no schema, and answers that are not known

    def __init__(self) -> None:
        super().__init__()
        # By id, with the tensor itself, so that no other gets its id or the address of its storage.
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        self._overwritten: set[int] = set()  # storages that got values that are not known

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not hasattr(func, "_schema"):
            return func(*args, **kwargs)
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if not all(self._is_known(x) for x in tensors) or func._schema.name.split("::")[1].startswith(_UNWRITTEN):
            if func._schema.is_mutable:
                self._overwritten |= {_storage(x) for x in tensors}
            return func(*args, **kwargs)
        in_place = func.is_view or func._schema.is_mutable
        if in_place and all(not x.is_meta for x in tensors):
            return func(*args, **kwargs)
        values = func(*tree_map(self._value, args), **tree_map(self._value, kwargs))
        answers = func(*args, **kwargs) if in_place else tree_map(_without_value, values)
        if not in_place and not _is_on_meta(tensors, kwargs):
            return values
        for answer, value in zip(tree_flatten(answers)[0], tree_flatten(values)[0], strict=True):
            if isinstance(answer, Tensor) and value.numel() <= MOST_ELEMENTS:
                self._values[id(answer)] = answer, value
                if not in_place:
                    self._overwritten.discard(_storage(answer))  # a new one, perhaps where another was freed
        return answers

    def _is_known(self, x: Tensor) -> bool:
        return not x.is_meta or (id(x) in self._values and _storage(x) not in self._overwritten)

    def _value(self, x: Any) -> Any:
        """Return an argument of an operation as the CPU takes it."""
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return self._values[id(x)][1] if isinstance(x, Tensor) and x.is_meta else x


def _is_on_meta(tensors: Sequence[Tensor], kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation's answer is on the meta device: where it is asked for, else where its inputs are."""
    device = kwargs.get("device")
    return any(x.is_meta for x in tensors) if device is None else torch.device(device).type == "meta"


def _without_value(x: Any) -> Any:
    return torch.empty_like(x, device="meta") if isinstance(x, Tensor) else x


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
