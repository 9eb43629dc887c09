"""Where the time of one evaluation goes: on the GPU by kind of kernel, on the host by function.

Three evaluations are profiled, all of them warm: the whole one and one of a single example under torch.profiler, and
the whole one under cProfile. What the single example takes on the GPU is nearly all the quantizing of weights, which
happens once a run and is no part of evaluating, so it is subtracted.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.common import markdown_table, say

if TYPE_CHECKING:
    from mxsweep.config.run_config import RunConfig

# The first pattern that occurs in a kernel's name says its kind. Attention kernels are named after the matmul
# library that they are written in as well, so they come first; those of quantization likewise.
KINDS = (
    ("quantization", r"mxsweep|mx_|_mx|quantiz"),
    ("attention", r"flash|fmha|attention|sdpa|attn"),
    ("matmul", r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk|aten::(addmm|mm|bmm|linear|matmul)"),
    ("softmax", r"softmax|logsumexp|log_softmax"),
    ("copy and cast", r"memcpy|memset|copy|cat(array|_)|aten::(to|cat|clone|fill_|zero_)\b"),
    ("gather and index", r"index|gather|embedding|scatter|sort|topk"),
    ("elementwise", r"elementwise|vectorized|triton|aten::(mul|add|sub|div|neg|rsqrt|pow|silu)"),
    ("reduction", r"reduce|mean|sum|max|argmax|norm"),
)
TOP = 20  # rows of a table


@dataclass(frozen=True)
class DeviceTime:
    """What the device did in one run.

    Attributes:
        seconds: by kernel (on a machine without a GPU, by PyTorch operation).
        busy_s: in which at least one kernel ran.
        eval_s: what the run's own record says its evaluation took.
    """

    seconds: Counter[str]
    calls: Counter[str]
    busy_s: float
    eval_s: float


def kind_of(name: str) -> str:
    """The kind of a kernel, from its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def profile_path(path: str, words: list[str]) -> tuple[str, dict[str, Any]]:
    """Profile the run that mxsweep's overrides ``words`` mean; a text, and the same as JSON-able figures."""
    say(f"profiling {path}")
    from mxsweep import compose, run

    config, one_example = compose(words), compose([*words, "limit=1"])
    record = run(config)
    if record["status"] != "done":
        reason = record["error"]["message"]
        return f"Profile of {path}: not made: {reason}", {"reason": reason}
    plain_s = record["timing"]["eval_s"]
    whole, single = _profile_device(config), _profile_device(one_example)
    seconds = whole.seconds - single.seconds  # of counters: what is left above zero
    busy_s = max(0.0, whole.busy_s - single.busy_s)
    kinds: Counter[str] = Counter()
    for name, spent in seconds.items():
        kinds[kind_of(name)] += spent
    by_own, by_cumulative = _profile_host(config)
    device = _device_name()
    lines = [
        f"Profile of {path}: evaluation {plain_s:.2f} s unprofiled, {whole.eval_s:.2f} s under torch.profiler; "
        f"{device} busy {busy_s:.2f} s ({busy_s / whole.eval_s:.0%} of the profiled, {busy_s / plain_s:.0%} of the "
        "unprofiled)",
        "",
        markdown_table(["kind", "seconds", "share"], _shares(kinds)),
        "",
        markdown_table(
            ["kernel", "kind", "calls", "seconds"],
            [[_short(n), kind_of(n), f"{whole.calls[n]:,}", f"{s:.3f}"] for n, s in seconds.most_common(TOP)],
            right_from=2,
        ),
        "",
        "On the host, by own time (under cProfile, which slows calls of Python functions down):",
        by_own,
        "On the host, by time with what was called:",
        by_cumulative,
    ]
    figures = {
        "device": device,
        "eval_s": plain_s,
        "eval_profiled_s": whole.eval_s,
        "busy_s": busy_s,
        "kinds_s": dict(kinds.most_common()),
        "kernels_s": dict(seconds.most_common(100)),
    }
    return "\n".join(lines), figures


def _device_name() -> str:
    import torch

    return "GPU" if torch.cuda.is_available() else "CPU (no GPU here: PyTorch's operations stand for kernels)"


def _profile_device(config: RunConfig) -> DeviceTime:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from mxsweep import run

    # Of the GPU alone: recording every PyTorch operation as well would slow the host down several times.
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        record = run(config)
        if on_gpu:
            torch.cuda.synchronize()
    eval_s = record["timing"]["eval_s"]
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    if not on_gpu:
        for event in profiler.key_averages():
            seconds[event.key] = event.self_cpu_time_total / 1e6
            calls[event.key] = event.count
        return DeviceTime(seconds, calls, sum(seconds.values()), eval_s)
    spans = []
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seconds[event.name] += (event.time_range.end - event.time_range.start) / 1e6
            calls[event.name] += 1
            spans.append((event.time_range.start, event.time_range.end))
    return DeviceTime(seconds, calls, _covered(spans) / 1e6, eval_s)


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals: kernels of several streams may overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _profile_host(config: RunConfig) -> tuple[str, str]:
    """cProfile's top functions of a run, by their own time and by time with what they called."""
    from mxsweep import run

    profiler = cProfile.Profile()
    profiler.runcall(run, config)
    return _top(profiler, "tottime"), _top(profiler, "cumulative")


def _top(profiler: cProfile.Profile, order: str) -> str:
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats(order).print_stats(TOP)
    return text.getvalue().strip() + "\n"


def _shares(kinds: Counter[str]) -> list[list[str]]:
    total = sum(kinds.values()) or 1.0
    return [[kind, f"{seconds:.3f}", f"{seconds / total:.1%}"] for kind, seconds in kinds.most_common()]


def _short(name: str, length: int = 80) -> str:
    """A C++ name, short enough for a table and without the character that ends a cell."""
    name = name.replace("|", "/")
    return name if len(name) <= length else f"{name[: length - 3]}..."
