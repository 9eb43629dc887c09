"""Do the work on a tensor's pieces: on a CPU in threads that take a piece each, whole.

torch shares out each operation instead, and waits for all threads at the end of each. Where something else has a core,
every such wait lasts until the thread there gets its turn: fifteen times a piece, in which one thread alone would
be done. Here threads wait for each other once a tensor, and one that is held up leaves pieces to the others.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mxsweep.numerics.blocks import GRAIN_SIZE, PIECE, pieces

# Of fewer elements than this, the calling thread has done the work before others would have woken up.
_FEW = 2**17


def on_pieces(work: Callable[..., None], views: Sequence[Tensor], block_dims: tuple[int, ...]) -> None:
    """Call `work` with each of `pieces(views, block_dims)`, to whose tensors it writes what it finds; there is no
    gradient. No piece's results may depend on another's, nor on how many there are.
    """
    threads, size = torch.get_num_threads(), views[0].numel()
    if views[0].device.type != "cpu" or threads == 1:
        for parts in pieces(views, block_dims):
            work(*parts)
    elif small := _pieces_not_shared_out(views, block_dims):
        for parts in small:
            work(*parts)
    else:
        inference = torch.is_inference_mode_enabled()  # of this thread only, while its tensors want it in all

        def call(parts: tuple[Tensor, ...]) -> None:
            with torch.inference_mode(inference), torch.no_grad():
                work(*parts)

        for _ in _pool(os.getpid(), threads).map(call, pieces(views, block_dims, min(PIECE, -(-size // threads)))):
            pass  # an error in a thread is raised here


def _pieces_not_shared_out(views: Sequence[Tensor], block_dims: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Return the pieces of a tensor of few elements, of which torch shares out no operation; none where one is larger.

    The sum of a longer block, which is a piece that cannot be cut, would be shared out, and added up in another order.
    """
    if views[0].numel() >= _FEW:
        return []
    small = list(pieces(views, block_dims, GRAIN_SIZE - 1))
    return small if all(parts[0].numel() < GRAIN_SIZE for parts in small) else []


def in_threads(work: Callable[[], None], threads: int) -> None:
    """Call `work`, which takes what is left to do until nothing is, in this thread and beside it in others.

    Those that have not begun when this one is done are not waited for: nothing is left for them.
    """
    others: list[Future[None]] = []
    try:
        others.extend(_pool(os.getpid(), torch.get_num_threads()).submit(work) for _ in range(threads - 1))
        work()
    finally:
        for other in others:
            if not other.cancel():
                other.result()


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return so many threads in which torch has no others. A forked process, which inherits none, has its own."""
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # the first to ask in a thread sets its number to everybody's
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "mxsweep-pieces", start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    # What the threads set is their own to OpenMP, but to MKL and to threads that start later it is everybody's.
    torch.set_num_threads(threads)
    return pool
