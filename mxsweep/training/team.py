"""Say what processes that train one model do together; a single one is a team by itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Team:
    """Do alone what several processes do together.

    Attributes:
        rank, size: which process of how many this is. The first one writes files and reports.
        device: that this process computes on.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def leads(self) -> bool:
        """Return whether this process writes files and reports."""
        return self.rank == 0

    def wrap(self, model: PreTrainedModel) -> nn.Module:
        """Put a model on the device and return what is called in its place."""
        torch.nn.Module.to(model, self.device)
        return model

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Return a context for a pass whose gradients are shared at once (``last``), or with the next pass's."""
        return nullcontext()

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return values

    def joined(self, values: Tensor) -> Tensor:
        """Return the values of all processes, one after another, each of the same number."""
        return values

    def whole(self, tensor: Tensor) -> Tensor:
        """Return all of a tensor of which each process may hold a part; every process asks."""
        return tensor

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return what this process holds of a whole tensor, as it does of ``like``."""
        return whole.to(like.device)
