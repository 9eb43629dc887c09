"""What a process frees is kept for it, where the C library is asked to."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mxsweep.machine.memory import keep_freed_memory

PROGRAM = """
import resource
from mxsweep.machine.memory import keep_freed_memory
import torch
torch.set_num_threads(1)
print(keep_freed_memory())
def layer():
    x = torch.ones(2**20)
    return (x * 2 + torch.ones(2**20)).sum()
for _ in range(3):
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    layer()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def kept_and_bytes_asked_again(**environment: str) -> tuple[bool, int]:
    """Return what a process says of keeping, and how much memory it had filled with zeros when it went on."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=others | environment, check=True, capture_output=True, text=True
    )
    kept, asked = done.stdout.split()
    return kept == "True", int(asked)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_freed_tensors_are_used_again_and_settings_of_ones_own_stand() -> None:
    kept, asked = kept_and_bytes_asked_again()
    assert kept and asked < 2**26  # of 50 x 12 MiB
    kept, asked = kept_and_bytes_asked_again(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept and asked > 2**28


@pytest.mark.parametrize(("taken", "said"), [((1, 1), True), ((1, 0), True), ((0, 1), True), ((0, 0), False)])
def test_a_setting_that_was_taken_is_said_to_be(
    taken: tuple[int, int], said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    answers = iter(taken)
    library = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda *_: next(answers))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert keep_freed_memory() is said
    assert next(answers, None) is None  # both were asked for
