"""Prepare and describe the process that a run happens in: seeds, peak memory, device."""

from __future__ import annotations

import platform
import resource
import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from mxsweep.forward.seeding import seed_generators
from mxsweep.machine.memory import keep_freed_memory
from mxsweep.model.load import resolve_device


def prepare_process(seed: int, device: str) -> None:
    """Seed every generator, count the peak of GPU memory from here, and keep freed memory for a model on a CPU.

    Args:
        device: the knob.
    """
    seed_generators(seed)
    if resolve_device(device) == "cpu":
        keep_freed_memory()
    if torch.cuda.is_initialized():  # before that there is no peak to reset, and asking is an error
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_memory() -> dict[str, int | None]:
    """Return peaks in bytes: the process' since it began, and the GPUs' since :func:`prepare_process`."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux, bytes on macOS
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    gpu = [torch.cuda.max_memory_allocated(index) for index in devices]
    return {
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_gpu_bytes": max(gpu) if gpu else None,
    }


def describe_device(model: PreTrainedModel) -> dict[str, Any]:
    """Return where a model is, in which dtype, and how it attends, for the record."""
    parameter = next(model.parameters())
    on_gpu = parameter.device.type == "cuda"
    return {
        "cuda": torch.version.cuda,
        "device": str(parameter.device),
        "device_name": torch.cuda.get_device_name(parameter.device) if on_gpu else platform.machine(),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "attention": model.config.get_text_config()._attn_implementation,
        "cpu_threads": torch.get_num_threads(),
    }
