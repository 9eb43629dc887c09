"""Move original weights to host memory, where a GPU has no room for them beside their quantized copies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from mxsweep.model.operands import Operand
from mxsweep.model.sites import Site

KEPT_FREE = 0.2  # of a GPU's memory: for activations, logits, and what fragmentation wastes


class OffloadedWeights:
    """Hold the weights that are in host memory while their quantized copies are on a GPU.

    Args:
        parameters: those that leave their GPU.

    Attributes:
        bytes: how many have left.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._leaving = {id(parameter) for parameter in parameters}
        self._devices: list[tuple[nn.Parameter, torch.device]] = []
        self.bytes = 0

    def send_to_host(self, parameter: nn.Parameter) -> None:
        """Move a parameter's values to host memory, if it is one that leaves."""
        if id(parameter) in self._leaving:
            self._devices.append((parameter, parameter.device))
            self.bytes += parameter.nbytes
            parameter.data = parameter.data.to("cpu")

    def bring_back(self) -> None:
        """Move every parameter that left back to its device."""
        for parameter, device in self._devices:
            parameter.data = parameter.data.to(device)


def parameters_without_room(model: nn.Module, sites: Sequence[Site]) -> list[nn.Parameter]:
    """Return the weights of linear layers and experts that must leave their GPU for their quantized copies to fit."""
    # By every name, so that neither a weight that several modules share nor a module with several names is alone.
    users = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    )
    # Each stored copy once: a parameter that holds many experts is copied whole.
    quantized: dict[torch.device, dict[tuple[str, int], Operand]] = {}
    for site in sites:
        if site.formats.weight is not None:
            operand = site.operand
            quantized.setdefault(operand.parameter.device, {})[operand.module_name, id(operand.parameter)] = operand
    leaving: list[nn.Parameter] = []
    for device, copied in quantized.items():
        free, total = _memory(device)
        on_device = list(copied.values())
        if sum(operand.parameter.nbytes for operand in on_device) > free - KEPT_FREE * total:
            # A weight with another user (a tied embedding) stays.
            leaving += [
                operand.parameter for operand in on_device if operand.is_linear and users[id(operand.parameter)] == 1
            ]
    return leaving


def _memory(device: torch.device) -> tuple[float, float]:
    """Return (bytes that can still be allocated, bytes in all) of a GPU; without end elsewhere."""
    if device.type != "cuda":
        return math.inf, 0.0
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
