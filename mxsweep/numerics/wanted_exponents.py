"""Keep what blocks want of `e8m0` scales, over all that is quantized meanwhile: the range of exponents.

A scale of n bits differs from one of m bits where a block wants an exponent that one of them does not hold, and nowhere
else: there alone `held_exponent` (reference/scales.py) changes it. A run none of whose blocks wanted such an exponent
would have come out bit for bit the same with m bits as with n.

In exact arithmetic, each `scale_rounding` is `floor` but where a block's maximum has a significand that it lifts to the
next power of two (`MXFormat.lifted_from`). So the largest significand is kept, too: with another such rounding a run
would have come out the same.

Two kinds of blocks want none, and become the same under any scale: of zeros alone, which stay zeros, and with NaN or
Inf, which become NaN. Blocks of zeros in native arithmetic of float16 are no such blocks: their logarithm is -Inf, and
whether they become NaN depends on whether float16 holds the scale that they get (see `native_exponent`).

Kernels on a GPU keep the range themselves, in one tensor for all of a device; microxcaling's tell nothing, and what is
quantized and not looked at leaves the range unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

import torch
from torch import Tensor

from mxsweep.formats.mxformat import MXFormat

_MOST_WAITING = 256  # numbers on a device, each a tensor of its own, before they become one
FRACTION = 2**23 - 1  # the bits of a float32 behind the leading one of its significand
# Where kernels keep the range: in so many places, of so many numbers each: both ends, and the largest fraction. A place
# has 32 bytes, which a GPU reads at once, to itself.
RANGES, RANGE = 128, 8
NO_EXPONENT = 2**30  # above all exponents: a range that reaches it, or below its negative, is not known


class _Largest:
    """Gather numbers on their devices, and fetch the largest once, at the end."""

    def __init__(self) -> None:
        self._waiting: dict[torch.device, list[Tensor]] = {}

    def add(self, number: Tensor) -> None:
        """Add a float32 of no dimension."""
        waiting = self._waiting.setdefault(number.device, [])
        waiting.append(number)
        if len(waiting) >= _MOST_WAITING:
            waiting[:] = [torch.stack(waiting).amax()]

    def value(self) -> float:
        """Return the largest number; of none, minus infinity."""
        return max((float(torch.stack(waiting).amax()) for waiting in self._waiting.values()), default=-math.inf)


class WantedExponents:
    """Gather what blocks want.

    Attributes:
        notes: how often exponents were noted.
        is_complete: whether everything that was quantized had its exponents noted.
        is_exact: whether all of it was quantized in exact arithmetic.
    """

    def __init__(self) -> None:
        self.notes = 0
        self.is_complete = self.is_exact = True
        self._low, self._high, self._fraction = _Largest(), _Largest(), _Largest()  # of the first, the negative
        self._of_kernels: dict[torch.device, Tensor] = {}
        self._lock = Lock()  # pieces of a tensor may be quantized in threads

    def note(self, amax: Tensor, exponent: Tensor, *, is_exact: bool) -> None:
        """Note what blocks want, before it is held to what the scale holds; both of the same shape, and not empty.

        Args:
            amax: float32 in exact arithmetic.
        """
        wants = _want(amax)
        ends = _counted(exponent, wants).aminmax()
        fraction = (
            torch.where(wants, amax.view(torch.int32) & FRACTION, 0).amax().to(torch.float32) if is_exact else None
        )
        self.note_range(*ends, fraction)

    def note_range(self, low: Tensor, high: Tensor, fraction: Tensor | None) -> None:
        """Note the least and the largest exponent that blocks want, and in exact arithmetic the largest fraction.

        Each is a float32 of no dimension; of blocks that want none, 0.
        """
        with self._lock:
            self.notes += 1
            self._low.add(-low)
            self._high.add(high)
            if fraction is None:
                self.is_exact = False
            else:
                self._fraction.add(fraction)

    def note_launch(self, device: torch.device, *, is_exact: bool) -> Tensor:
        """Return where a kernel that is launched next is to keep the range of its blocks: int32 (RANGES, RANGE)."""
        with self._lock:
            self.notes += 1
            self.is_exact &= is_exact
            if device not in self._of_kernels:
                # Copied from the CPU, which waits: launches on any stream find it as it is here.
                self._of_kernels[device] = torch.tensor(
                    [[NO_EXPONENT, -NO_EXPONENT] + [0] * (RANGE - 2)] * RANGES, dtype=torch.int32
                ).to(device)
            return self._of_kernels[device]

    def range(self) -> tuple[int, int] | None:
        """Return the least and the largest exponent, where a block that wants none counts as one that wants 0.

        None where they are not known of all blocks, or where there was none.
        """
        if not self.is_complete or not self.notes:
            return None
        low = min(-self._low.value(), *(int(ranges[:, 0].amin()) for ranges in self._of_kernels.values()), NO_EXPONENT)
        high = max(
            self._high.value(), *(int(ranges[:, 1].amax()) for ranges in self._of_kernels.values()), -NO_EXPONENT
        )
        return (int(low), int(high)) if -NO_EXPONENT < low <= high < NO_EXPONENT else None

    def largest_significand(self) -> float | None:
        """Return the largest significand of blocks' maxima, 1 or more and below 2; None where some are not known."""
        if not self.is_exact or self.range() is None:
            return None
        of_kernels = (int(ranges[:, 2].amax()) for ranges in self._of_kernels.values())
        return 1 + max(self._fraction.value(), *of_kernels, 0) / (FRACTION + 1)


_kept: WantedExponents | None = None
_of_thread = local()


@contextmanager
def keeping_exponents() -> Iterator[WantedExponents]:
    """Keep what scales want while the context lasts, in whatever thread; contexts do not nest."""
    global _kept
    if _kept is not None:
        raise RuntimeError("the exponents are kept already")
    _kept = WantedExponents()
    try:
        yield _kept
    finally:
        _kept = None


def kept_exponents() -> WantedExponents | None:
    """Return what is being kept; None where nothing is, or where this thread is in `not_kept`."""
    return None if getattr(_of_thread, "left_out", False) else _kept


@contextmanager
def not_kept() -> Iterator[None]:
    """Leave out what this thread quantizes while the context lasts, as it is none of a run's tensors."""
    before = getattr(_of_thread, "left_out", False)
    _of_thread.left_out = True
    try:
        yield
    finally:
        _of_thread.left_out = before


def each_wanted(amax: Tensor, exponent: Tensor) -> Tensor:
    """Return what each block counts for, float32: what it wants, or 0, which any scale holds, where it wants none."""
    return _counted(exponent, _want(amax))


def _want(amax: Tensor) -> Tensor:
    """Return which blocks want an exponent."""
    wants = amax.isfinite()
    return wants if amax.dtype == torch.float16 else wants & (amax > 0)


def _counted(exponent: Tensor, wants: Tensor) -> Tensor:
    return torch.where(wants, exponent, 0.0).to(torch.float32)


def note_exponents(amax: Tensor, exponent: Tensor, *, is_exact: bool) -> None:
    """Note what blocks want where it is kept."""
    kept = kept_exponents()
    if kept is not None and amax.numel():
        kept.note(amax, exponent, is_exact=is_exact)


def ranges_at(device: torch.device, *formats: MXFormat) -> tuple[int, ...]:
    """Return where a kernel that is launched next on a GPU is to keep what the scales of formats want: an address.

    Nothing where it is not kept, or none of the formats has such scales.
    """
    kept = kept_exponents()
    if kept is None or not any(fmt.scale_format.is_power_of_two for fmt in formats):
        return ()
    return (kept.note_launch(device, is_exact=True).data_ptr(),)
