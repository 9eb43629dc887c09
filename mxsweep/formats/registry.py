"""Show the names in a registry that grows while the program runs, for messages and checks that must name them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import overload


class Names(Sequence[str]):
    """Show the names in a registry as a read-only sequence that grows with the registry.

    Args:
        read: returns the names that are registered now, in their order.
    """

    def __init__(self, read: Callable[[], Iterable[str]]) -> None:
        self._read = read

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(self._read())[index]

    def __len__(self) -> int:
        return len(tuple(self._read()))

    def __repr__(self) -> str:
        return repr(tuple(self._read()))
