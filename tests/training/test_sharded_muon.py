"""Muon's steps for matrices that two processes share, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from helpers.training_jobs import training_job
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from mxsweep.training import sharded_muon
from mxsweep.training.optimizers import MATRIX, make_optimizers

pytestmark = pytest.mark.long
STEPS = 3
# An odd number of one shape, rows that two do not share evenly, and one row, of which a process has none.
SHAPES = [(6, 4), (6, 4), (6, 4), (5, 8), (1, 3)]


def numbers(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def take_steps(parameters: list[nn.Parameter]) -> list[torch.Tensor]:
    """Return Muon's momenta after some steps with the same gradients for whole matrices and for those in parts."""
    model = nn.ParameterList(parameters)
    (optimizer,) = make_optimizers(model, [MATRIX] * len(SHAPES), training_job(optimizer="muon", lr=0.1).train)
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, numbers(step + 1), strict=True):
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        optimizer.step()
    moments = optimizer.state_dict()["state"].values()
    return [of_one["momentum_buffer"] for of_one in moments]


def be_one_of_two(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found, exchanges = [], CommDebugMode()
    for sharded_muon.AT_ONCE in (2**26, 1):  # all matrices of a shape at a time, and two
        shared = [nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)])) for whole in numbers(0)]
        with exchanges:
            moments = take_steps(shared)
        assert all(isinstance(moment, DTensor) for moment in moments)
        whole = [cast(DTensor, tensor).full_tensor().detach() for tensor in [*shared, *moments]]
        found.append((whole, exchanges.get_total_counts()))
    if rank == 0:
        torch.save(found, f"{folder}/found")
    torch.distributed.destroy_process_group()


def test_matrices_in_parts_are_moved_as_whole_ones_are_and_exchanged_twice(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(be_one_of_two, (str(tmp_path),), nprocs=2)
    (found, exchanges), (by_twos, more_exchanges) = torch.load(tmp_path / "found")
    alone = [nn.Parameter(whole) for whole in numbers(0)]
    moments = take_steps(alone)
    for one, other in zip([*alone, *moments], found, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-6, atol=1e-6)
    assert all(map(torch.equal, found, by_twos))
    of_test = STEPS * len(SHAPES)  # which hands out the gradients
    assert exchanges <= of_test + STEPS * 2 * len(set(SHAPES)) < more_exchanges
