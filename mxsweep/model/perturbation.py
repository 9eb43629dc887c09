"""Perturb a model by the size of rounding errors, to find out what a result owes to them.

A quantized model is chaotic: where a value lies close to the border between two grid values, a change in its last bit
moves it by a whole step, and so on through the layers. The order in which a sum is added up (another batch, another
kernel, another GPU) changes last bits everywhere. This does about the same, on purpose: the input x of every decoder
block, the first one's being the embedding's output, becomes x (1 + u r), with u the unit roundoff of x's dtype (half
the distance from 1 to the next number) and r uniform in [-1, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.model.decoder import decoder_blocks
from mxsweep.terminal.errors import ConfigError


@contextmanager
def perturbed(model: PreTrainedModel, seed: int, repeat: int) -> Iterator[None]:
    """Perturb the inputs of the model's decoder blocks while the context lasts; each ``repeat`` in another way.

    The random numbers are drawn in the order of the forward passes: the same batches are perturbed alike again.

    Raises:
        ConfigError: no decoder block was found.
    """
    blocks = decoder_blocks(model)
    if not blocks:
        raise ConfigError(f"noise: {type(model).__name__} has no decoder blocks whose inputs could be perturbed")
    digest = hashlib.sha256(f"noise/{seed}/{repeat}".encode()).digest()
    perturb = _Perturbation(int.from_bytes(digest[:8], "little") >> 1)
    handles = [block.register_forward_pre_hook(perturb, with_kwargs=True) for block in blocks.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Perturbation:
    """Perturb hidden states, in a forward pre-hook of a block that takes them first or by that name."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (self._moved(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self._moved(kwargs["hidden_states"])}

    def _moved(self, x: Tensor) -> Tensor:
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device).manual_seed(self._key)
        # In a wider dtype, in which 1 + u r is not rounded to 1 at once.
        wider = torch.float64 if x.dtype == torch.float32 else torch.float32
        r = torch.rand(x.shape, dtype=torch.float32, device=x.device, generator=self._generators[x.device])
        factor = r.to(wider).mul_(2).sub_(1).mul_(torch.finfo(x.dtype).eps / 2).add_(1)
        return factor.mul_(x).to(x.dtype)
