"""Take Muon's steps for matrices of which each process holds some rows, as FSDP2 leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

AT_ONCE = 2**26  # elements of matrices that are whole at a time, over all processes


class ShardedMuon(torch.optim.Muon):
    """Be torch's Muon, but orthogonalize each matrix in one process, which has the whole of it meanwhile.

    torch's own would multiply matrices that lie in parts, with a collective operation before each product. Here momenta
    stay in parts, as parameters do, and of matrices of one shape each process orthogonalizes as many as any other:
    they are exchanged twice, together.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # which nobody here gives
        """Take one step."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[DTensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, alike in by_shape.items():
                processes = alike[0].device_mesh.size()
                count = max(1, AT_ONCE // (shape.numel() * processes)) * processes
                remaining = iter(alike)
                while some := list(islice(remaining, count)):
                    changes = _changes(some, [self._update(parameter, group) for parameter in some], group)
                    for parameter, change in zip(some, changes, strict=True):
                        parameter.to_local().mul_(1 - group["lr"] * group["weight_decay"]).add_(change)

    def _update(self, parameter: DTensor, group: dict[str, Any]) -> Tensor:
        """Return this process's rows of what is to be orthogonalized, given the gradient, which the momentum gets."""
        state = self.state[parameter]
        of_parameter = cast(DTensor, parameter.grad)
        if "momentum_buffer" not in state:  # the name that torch's own has, in saved states, too
            state["momentum_buffer"] = torch.zeros_like(of_parameter)
        gradient, momentum = of_parameter.to_local(), state["momentum_buffer"].to_local()
        momentum.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum


def _changes(alike: Sequence[DTensor], updates: Sequence[Tensor], group: dict[str, Any]) -> Tensor:
    """Return this process's rows of what Muon adds to matrices of one shape beside their decay."""
    shape, mesh = torch.Size((len(alike), *alike[0].shape)), alike[0].device_mesh

    def exchanged(local: Tensor, before: int, after: int) -> Tensor:
        stride = (shape[1:].numel(), shape[2], 1)
        tensor = DTensor.from_local(local, mesh, [Shard(before)], run_check=False, shape=shape, stride=stride)
        return tensor.redistribute(placements=[Shard(after)]).to_local()

    whole = exchanged(torch.stack(tuple(updates)), 1, 0)  # some of the matrices, of which all the rows are here
    changes = torch.zeros_like(whole)
    if len(whole):
        parameters = [nn.Parameter(change) for change in changes]  # which Muon changes in place
        for parameter, update in zip(parameters, whole, strict=True):
            parameter.grad = update
        options = {name: group[name] for name in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
        torch.optim.Muon(parameters, weight_decay=0.0, momentum=0.0, nesterov=False, **options).step()
    return exchanged(changes, 0, 1)
