"""What threads over a tensor's pieces promise: the same bits, no torch threads inside, the caller's settings kept."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from helpers.numerics_oracle import assert_same
from torch import Tensor

from mxsweep.numerics import MXFormat, decode, encode, piece_threads, quantize
from mxsweep.numerics.piece_threads import in_threads, on_pieces


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def answers(x: Tensor, fmt: MXFormat, arithmetic: str) -> list[Tensor]:
    encoded = encode(x, fmt, arithmetic=arithmetic, generator=7)
    return [quantize(x, fmt, arithmetic=arithmetic, generator=7), decode(encoded), *encoded.tensors().values()]


@pytest.mark.parametrize("arithmetic", ["native", "exact"])
@pytest.mark.parametrize(
    "fmt",
    [
        MXFormat("fp4_e2m1", 32),
        MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True, four_over_six=True),
        MXFormat("int4", (16, 16), symmetric=False),
        MXFormat("fp6_e3m2", 32, rounding="stochastic"),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [50, 700], ids=["here", "in threads"])
def test_threads_make_no_difference(rows: int, fmt: MXFormat, arithmetic: str, three_threads: None) -> None:
    x = torch.randn(rows, 1025, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    shared = answers(x, fmt, arithmetic)
    torch.set_num_threads(1)
    for got, alone in zip(shared, answers(x, fmt, arithmetic), strict=True):
        assert_same(got, alone)


def test_each_thread_is_torchs_only_one_and_the_callers_number_stays(three_threads: None) -> None:
    seen: list[tuple[str, int]] = []
    x = torch.zeros(600, 1024)
    on_pieces(lambda part: seen.append((threading.current_thread().name, torch.get_num_threads())), [x], ())
    assert len(seen) >= 3 and {threads for _, threads in seen} == {1}
    assert threading.current_thread().name not in {name for name, _ in seen}
    later: list[int] = []  # a thread that starts afterwards is nobody's piece
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (torch.get_num_threads(), later) == (3, [3])


def test_torch_shares_no_operation_on_a_small_tensors_pieces(three_threads: None) -> None:
    sizes: list[int] = []
    on_pieces(lambda part: sizes.append(part.numel()), [torch.zeros(100, 1024)], ())
    assert sum(sizes) == 100 * 1024 and max(sizes) < 2**15  # at::internal::GRAIN_SIZE


@pytest.mark.parametrize("mode", [True, False])
def test_the_callers_inference_mode_holds_in_threads(mode: bool, three_threads: None) -> None:
    with torch.inference_mode(mode):
        y = quantize(torch.ones(600, 1024), MXFormat("int8"))
    assert y.is_inference() is mode and bool((y == 1).all())


def test_what_a_thread_raises_is_raised(three_threads: None) -> None:
    def work(part: Tensor) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        on_pieces(work, [torch.zeros(600, 1024)], ())


def _in_child(answer: "multiprocessing.SimpleQueue[bool]") -> None:
    seen: list[int] = []
    on_pieces(lambda part: seen.append(part.numel()), [torch.empty(600, 1024)], ())
    answer.put(sum(seen) == 600 * 1024)


def test_a_forked_process_has_threads_of_its_own(three_threads: None) -> None:
    on_pieces(lambda part: None, [torch.zeros(600, 1024)], ())
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(answer,), daemon=True)
    child.start()
    child.join(60)
    alive = child.is_alive()
    if alive:
        child.kill()
    assert not alive and child.exitcode == 0 and answer.get()


def test_a_thread_that_has_begun_is_waited_for_where_another_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread writes to is its caller's, who may take it away when `in_threads` is left."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert may_end.wait(60)
        ended.set()

    class Pool(ThreadPoolExecutor):
        def submit(self, *of: object, **named: object) -> Future[None]:
            if not begun.is_set():
                future = super().submit(*of, **named)  # type: ignore[arg-type]
                assert begun.wait(60)
                return future
            threading.Timer(0.2, may_end.set).start()
            raise RuntimeError("can't start new thread")

    with Pool(1) as pool:
        monkeypatch.setattr(piece_threads, "_pool", lambda *_: pool)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            in_threads(work, 3)
        assert ended.is_set()
