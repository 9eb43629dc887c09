"""Count the bytes of tensors that are there at once, on a CPU as well."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorBytes(TorchDispatchMode):
    """Count the bytes of what operations make while the context lasts; ``peak`` is the most there was at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._tensors: Counter[int] = Counter()  # of each storage, by its address
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._bytes[storage._cdata] = storage.nbytes()
        self._tensors[storage._cdata] += 1
        weakref.finalize(tensor, self._forget, storage._cdata)
        self.peak = max(self.peak, sum(self._bytes.values()))

    def _forget(self, storage: int) -> None:
        self._tensors[storage] -= 1
        if not self._tensors[storage]:
            del self._bytes[storage]
