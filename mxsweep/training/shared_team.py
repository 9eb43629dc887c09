"""Share the training of one model among processes with accelerate: each takes its part of a batch.

DDP keeps the whole model in each process and averages gradients. FSDP2 keeps in each a share of every parameter, of its
gradient and of what the optimizer keeps of it: by torch's ``fully_shard``, which accelerate calls on GPUs only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from mxsweep.model.decoder import decoder_blocks
from mxsweep.training.team import Team

FSDP = "fsdp"


class SharedTeam(Team):
    """Be one of the processes that torch's launcher started.

    Args:
        parallel: "ddp" or "fsdp".
        on_cpu: whether the processes compute on the CPU.
    """

    def __init__(self, parallel: str, on_cpu: bool) -> None:
        self._accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
        super().__init__(self._accelerator.device)
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
        self._shards = parallel == FSDP

    def wrap(self, model: PreTrainedModel) -> nn.Module:
        if not self._shards:
            return cast(nn.Module, self._accelerator.prepare(model))
        nn.Module.to(model, self.device)
        for block in decoder_blocks(model).values():
            fully_shard(block)
        fully_shard(model)
        return model

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[object]:
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last else cast(AbstractContextManager[object], self._accelerator.no_sync(model))

    def summed(self, values: Tensor) -> Tensor:
        return cast(Tensor, self._accelerator.reduce(values.clone(), reduction="sum"))

    def joined(self, values: Tensor) -> Tensor:
        return cast(Tensor, self._accelerator.gather(values))

    def whole(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, tensor.full_tensor()) if isinstance(tensor, DTensor) else tensor

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return whole.to(like.device)
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
