"""Keep the curve of a training: a row a step, fetched from the device now and then, and whether it diverged."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from mxsweep.files.training_columns import CURVE_COLUMNS
from mxsweep.training.job import Rows

FETCHED_STEPS = 16  # of a GPU, which is not waited for each step
DIVERGED_NATS, DIVERGED_STEPS = 1.0, 50
LAST_STEPS = 20  # whose losses' mean the record has


class Curve:
    """Gather the rows of steps.

    A training has diverged at the first step whose loss or gradient norm is not finite, or at the last of
    DIVERGED_STEPS steps in a row whose losses are all more than DIVERGED_NATS above the first step's.

    Args:
        rows: of the steps before, where a training resumes.
        tokens: of a step.

    Attributes:
        diverged_at: the step; None as long as none is known to have. The curve ends there.
    """

    def __init__(self, rows: Rows, tokens: int, device: torch.device) -> None:
        self.rows = list(rows)
        self.diverged_at: int | None = None
        self._tokens = tokens
        self._most = FETCHED_STEPS if device.type == "cuda" else 1
        self._pending: list[tuple[int, float, Tensor]] = []
        self._high = self._steps_high()
        self._since = time.perf_counter()

    def add(self, step: int, rate: float, loss: Tensor, norm: Tensor) -> None:
        """Add a step, whose loss and gradient norm may still be on their way."""
        self._pending.append((step, rate, torch.stack([loss.float(), norm.float()])))
        if len(self._pending) >= self._most:
            self.fetch()

    def fetch(self) -> None:
        """Wait for all steps so far. Seconds are counted from here to the next time, or from :meth:`start_clock`."""
        if not self._pending:
            return
        values = torch.stack([pair for *_, pair in self._pending]).tolist()
        seconds = max(time.perf_counter() - self._since, 1e-9)
        speed = len(self._pending) * self._tokens / seconds
        for (step, rate, _), (loss, norm) in zip(self._pending, values, strict=True):
            if self.diverged_at is None:
                row = (step, step * self._tokens, rate, loss, norm, speed, math.nan)
                self.rows.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
                self._judge(step, loss, norm)
        self._pending.clear()
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on: what was done in between is no training."""
        self._since = time.perf_counter()

    def add_validation(self, loss: float) -> None:
        """Give the last step its validation loss."""
        self.rows[-1]["validation_loss"] = loss

    @property
    def loss(self) -> float:
        """Return the mean loss of the last steps."""
        last = [row["loss"] for row in self.rows[-LAST_STEPS:]]
        return sum(last) / len(last)

    @property
    def seconds(self) -> float:
        """Return how long all steps took, without what was done in between."""
        return sum(self._tokens / row["tokens_per_s"] for row in self.rows)

    def _judge(self, step: int, loss: float, norm: float) -> None:
        is_high = loss > self.rows[0]["loss"] + DIVERGED_NATS
        self._high = self._high + 1 if is_high else 0
        if not math.isfinite(loss) or not math.isfinite(norm) or self._high >= DIVERGED_STEPS:
            self.diverged_at = step

    def _steps_high(self) -> int:
        """Count the steps up to now whose losses are high."""
        count = 0
        while count < len(self.rows) and self.rows[-1 - count]["loss"] > self.rows[0]["loss"] + DIVERGED_NATS:
            count += 1
        return count
