"""How kernels are launched, by a driver that only takes note."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mxsweep.formats.backends import BackendUnavailable
from mxsweep.numerics.kernels import compile as launching
from mxsweep.numerics.kernels.compile import Kernels, launch_count


class Kernel:
    """Stand in for a kernel of cuda.core."""

    handle = 7


class Module:
    """Stand in for what cuda.core compiled."""

    def get_kernel(self, name: str) -> Kernel:
        return Kernel()


class Driver:
    """Stand in for CUDA's driver, which reads the arguments before it returns."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], list[int]]] = []
        self.status = 0
        self.count = 0

    def cuLaunchKernel(self, *arguments: Any) -> int:
        *numbers, pointers, _ = arguments
        values = [ctypes.c_uint64.from_address(pointers[place]).value for place in range(self.count)]
        self.calls.append((tuple(numbers), values))
        return self.status


def launch(driver: Driver, kernels: Kernels, *arguments: int) -> list[int]:
    driver.count = len(arguments)
    kernels.launch("mx_rows", 300, *arguments)
    return driver.calls[-1][1]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    noting = Driver()
    monkeypatch.setattr(launching, "_driver", lambda: noting)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 10 + device, raising=False)
    return noting


def test_each_launch_has_its_own_arguments(driver: Driver) -> None:
    kernels, before = Kernels(Module(), 3), launch_count()
    assert launch(driver, kernels, 1, 2**64 - 1, 2**63) == [1, 2**64 - 1, 2**63]
    assert launch(driver, kernels, 4, 5, 6) == [4, 5, 6]
    assert launch(driver, kernels, 8) == [8]
    assert driver.calls[0][0] == (7, 2, 1, 1, 256, 1, 1, 0, 13)  # thread blocks of 256 threads, and the stream
    assert launch_count() == before + 3


def test_a_launch_that_fails_says_so(driver: Driver) -> None:
    driver.status = 700
    before = launch_count()
    with pytest.raises(RuntimeError, match=r"^CUDA's driver could not launch mx_rows: error 700$"):
        launch(driver, Kernels(Module(), 0), 1)
    assert launch_count() == before


def test_threads_do_not_share_what_the_driver_reads() -> None:
    """The driver is called without Python's lock."""
    addresses = [ctypes.addressof(launching._parameters.of((1, 2)))]
    thread = threading.Thread(target=lambda: addresses.append(ctypes.addressof(launching._parameters.of((3, 4)))))
    thread.start()
    thread.join()
    assert len(set(addresses)) == 2
    assert ctypes.addressof(launching._parameters.of((5, 6))) == addresses[0]


@pytest.fixture
def second_of_two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have two GPUs, of which the first is current; the list's last number is the current one's."""
    current = [0]

    class Device:
        def __init__(self, number: int) -> None:
            self._number = number

        def set_current(self) -> None:
            current.append(self._number)

    @contextlib.contextmanager
    def one_for_a_while(device: torch.device) -> Iterator[None]:
        before = current[-1]
        current.append(device.index)
        yield
        current.append(before)

    monkeypatch.setitem(sys.modules, "cuda.core", SimpleNamespace(Device=Device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", one_for_a_while)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(launching, "_disk_cache", lambda: None)
    return current


def test_the_current_gpu_stays_the_one_that_it_was(
    second_of_two_gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "compile_source", lambda *_: SimpleNamespace(handle=second_of_two_gpus[-1]))
    assert launching.load_kernels("", 1)._module.handle == 1
    assert second_of_two_gpus[-1] == 0


@pytest.mark.parametrize(("says", "kind"), [("INVALID_IMAGE", BackendUnavailable), ("OUT_OF_MEMORY", RuntimeError)])
def test_what_the_driver_does_not_load_is_told_before_a_launch(
    says: str, kind: type[Exception], second_of_two_gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled:
        @property
        def handle(self) -> int:
            raise RuntimeError(f"CUDA_ERROR_{says}: the driver is older")

    monkeypatch.setattr(launching, "compile_source", lambda *_: Compiled())
    with pytest.raises(kind, match=f"CUDA_ERROR_{says}: the driver is older$"):
        launching.load_kernels("", 1)
