"""Keep tensors that a function makes of its arguments, for whoever asks again in this process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from mxsweep.numerics.kernels.plain_tensors import are_plain

_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


def kept_tensors(most: int) -> Callable[[Callable[_Arguments, _Made]], Callable[_Arguments, _Made]]:
    """Have a function's answers kept, at most so many, as `functools.lru_cache` has them.

    They are made in no inference mode, or a gradient could not go through them later. Where tensors that are made now
    stand for others, as those of a FakeTensorMode do, they are made anew each time, and not kept.
    """

    def decorate(make: Callable[_Arguments, _Made]) -> Callable[_Arguments, _Made]:
        @functools.wraps(make)
        def made(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Made:
            with torch.inference_mode(False):
                return make(*args, **kwargs)

        kept = functools.lru_cache(most)(made)

        @functools.wraps(make)
        def kept_or_made(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Made:
            of = kept if are_plain() else made
            return of(*args, **kwargs)  # type: ignore[arg-type]

        kept_or_made.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
        return kept_or_made

    return decorate
