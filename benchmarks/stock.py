"""The path that people take without mxsweep: lm-eval's own model class, and microxcaling patched into the model.

``python -m benchmarks.stock`` is one process of it: it loads lm-eval's index of tasks and the model, evaluates the
points it is given, and writes what it took. With no points it is the set-up that every run pays in a loop of one
process a run.

Nothing here may run in a process that has imported mxsweep's evaluation: that keeps lm-eval's compiled templates,
which would make the stock path quicker than it is.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import TASK, positive, positives, say, write_json

WEIGHT, ACTIVATION, KEY_VALUE = "fp4_e2m1", "fp6_e2m3", "fp4_e2m1"
BOOTSTRAP = 100_000  # lm-eval's default: resamples for the standard error of the perplexity
BATCHES = [64, 128, 256]
ATTENTION = "microxcaling_sdpa"
KV_SPECS = "microxcaling_kv"  # the attribute of an attention module that holds its keys' and values' mx_specs


@dataclass(frozen=True)
class Point:
    """One evaluation of the stock path.

    Attributes:
        quantized: "none"; "cuda" or "torch", the two implementations that microxcaling has.
        key_value: whether keys and values are quantized beside weights and activations.
    """

    quantized: str
    block_size: int = 32
    scale_bits: int = 8
    key_value: bool = False

    @staticmethod
    def parse(text: str) -> Point:
        """Of ``none``, ``cuda:32``, ``torch:16:kv``."""
        quantized, *rest = text.split(":")
        if quantized not in ("none", "cuda", "torch"):
            raise argparse.ArgumentTypeError(f"{text!r} is none of none, cuda:BLOCK, torch:BLOCK:kv")
        key_value = rest[-1:] == ["kv"]
        sizes = rest[: len(rest) - key_value]
        return Point(quantized, positive(sizes[0]) if sizes else 32, key_value=key_value)

    def __str__(self) -> str:
        return (
            self.quantized
            if self.quantized == "none"
            else f"{self.quantized}:{self.block_size}" + (":kv" if self.key_value else "")
        )


@dataclass
class StockResult:
    """What evaluating a point took.

    Attributes:
        batch_size: sequences a forward pass.
        tried: examples a second of the warm-up subset by batch size, or why there are none.
        seconds: of each evaluation, from the building of requests to the last metric.
        model_seconds: of each, the part within the model class (tokenizing, forward passes, log-likelihoods).
    """

    point: Point
    examples: int
    batch_size: int
    tried: dict[int, str]
    seconds: list[float] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def problem(point: Point) -> str | None:
    """Why a point cannot be evaluated on this machine, in one sentence; None if it can."""
    import torch

    if point.quantized == "none":
        return None
    try:
        found = find_spec("mx.mx_ops") is not None  # other projects are called mx too
    except ImportError:
        found = False
    if not found:
        return (
            "microxcaling (module mx) is not installed: put a clone of github.com/microsoft/microxcaling on PYTHONPATH"
        )
    if point.quantized == "cuda" and not torch.cuda.is_available():
        return "microxcaling's CUDA kernels need a CUDA GPU, and none was found"
    return None


@functools.cache
def build_kernels() -> tuple[float, str | None]:
    """Have microxcaling compile its CUDA extension, once; the seconds it took, and why it failed if it did."""
    started = time.perf_counter()
    try:
        import mx.custom_extensions  # noqa: F401
    except Exception as error:  # a compiler can fail in any way; whichever, it is the path's reason
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return time.perf_counter() - started, f"microxcaling's CUDA extension could not be built: {first_line}"
    return time.perf_counter() - started, None


def load_task(data: Path, work: Path, *, whole_index: bool = False) -> dict[str, Any]:
    """lm-eval's task of its own file, reading the rows of ``data``.

    Args:
        whole_index: read lm-eval's index of all tasks first, as ``lm_eval`` on the command line does.
    """
    _refuse_mxsweep()
    import lm_eval.tasks
    import yaml

    manager = lm_eval.tasks.TaskManager(include_defaults=whole_index)
    file = Path(lm_eval.tasks.__file__).parent / "lambada" / f"{TASK}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    rows = {"data_files": {"test": str(data)}, "cache_dir": str(work / "datasets")}
    return dict(manager.load([config | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": rows}]))


def load_lm(model: Path) -> Any:
    """lm-eval's HFLM, which loads the checkpoint itself, in its own dtype, on a GPU where there is one."""
    _refuse_mxsweep()
    import torch
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFLM(pretrained=str(model), device=device, dtype="auto", batch_size=BATCHES[0])


def _refuse_mxsweep() -> None:
    if "mxsweep.evaluate.tasks" in sys.modules:
        raise RuntimeError("the stock path must run before mxsweep's evaluation is imported, which speeds lm-eval up")


@contextmanager
def microxcaling(model: Any, point: Point) -> Iterator[None]:
    """Patch microxcaling into a Llama while the context lasts.

    Every linear layer of the decoder blocks becomes the library's own, sharing the weight, which it quantizes anew in
    every forward pass; keys (after rotary embedding) and values are quantized along head_dim before attention.
    """
    specs = _mx_specs(point)
    replaced = {name: module for name, module in model.named_modules() if _is_block_linear(name, module)}
    attention = [module for module in model.modules() if type(module).__name__ == "LlamaAttention"]
    plain = model.config._attn_implementation
    try:
        for name, linear in replaced.items():
            _put(model, name, _mx_linear(linear, specs))
        if point.key_value:
            _register_attention(plain)
            for module in attention:
                setattr(module, KV_SPECS, specs)
            model.set_attn_implementation(ATTENTION)
        yield
    finally:
        for name, linear in replaced.items():
            _put(model, name, linear)
        if point.key_value:
            model.set_attn_implementation(plain)
            for module in attention:
                delattr(module, KV_SPECS)


def _mx_specs(point: Point) -> Any:
    from mx import finalize_mx_specs

    return finalize_mx_specs(
        {
            "w_elem_format": WEIGHT,
            "a_elem_format": ACTIVATION,
            "block_size": point.block_size,
            "scale_bits": point.scale_bits,
            "custom_cuda": point.quantized == "cuda",
        }
    )


def _is_block_linear(name: str, module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear) and ".layers." in f".{name}"


def _mx_linear(linear: Any, specs: Any) -> Any:
    import mx
    import torch

    with torch.device("meta"):  # its own weight is never used
        layer = mx.Linear(linear.in_features, linear.out_features, linear.bias is not None, mx_specs=specs)
    layer.weight, layer.bias = linear.weight, linear.bias
    return layer.train(linear.training)


def _put(model: Any, name: str, module: Any) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _register_attention(plain: str) -> None:
    from mx.mx_ops import quantize_mx_op
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if plain != "sdpa":
        raise RuntimeError(f"keys and values are quantized before sdpa attention, and this model has {plain}")

    def attend(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        specs = getattr(module, KV_SPECS)
        key, value = (quantize_mx_op(x, specs, elem_format=KEY_VALUE, axes=[-1]) for x in (key, value))
        return ALL_ATTENTION_FUNCTIONS[plain](module, query, key, value, *args, **kwargs)

    AttentionInterface.register(ATTENTION, attend)
    # Without a mask function of the same name, transformers would pass no mask and lose causality.
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS[plain])


def measure(
    lm: Any,
    point: Point,
    *,
    tasks: dict[str, Any],
    warmup_tasks: dict[str, Any],
    batches: Sequence[int],
    repeats: int = 1,
    bootstrap: int = BOOTSTRAP,
) -> StockResult:
    """Evaluate a point: warm up, settle the batch size, then time ``repeats`` whole evaluations."""
    with nullcontext() if point.quantized == "none" else microxcaling(lm.model, point):
        batch, tried = _settle_batch(lm, warmup_tasks, batches)
        result = StockResult(point, 0, batch, tried)
        for _ in range(repeats):
            seconds, inside, found = _evaluate(lm, tasks, bootstrap)
            result.seconds.append(seconds)
            result.model_seconds.append(inside)
            result.examples = found["n-samples"][TASK]["effective"]
            result.metrics = {name: float(found["results"][TASK][f"{name},none"]) for name in ("acc", "perplexity")}
    return result


def _settle_batch(lm: Any, tasks: dict[str, Any], batches: Sequence[int]) -> tuple[int, dict[int, str]]:
    """The quickest of ``batches`` on a small subset, which warms everything up as well."""
    import torch

    lm.batch_size_per_gpu = batches[0]
    _evaluate(lm, tasks, bootstrap=0)
    tried, speeds = {}, {}
    for batch in batches if len(batches) > 1 else ():
        lm.batch_size_per_gpu = batch
        try:
            _, inside, found = _evaluate(lm, tasks, bootstrap=0)
        except torch.cuda.OutOfMemoryError:
            tried[batch] = "out of GPU memory"
            torch.cuda.empty_cache()
            continue
        speeds[batch] = found["n-samples"][TASK]["effective"] / inside
        tried[batch] = f"{speeds[batch]:,.0f}/s"
    best = max(speeds, key=lambda batch: speeds[batch]) if speeds else batches[0]
    lm.batch_size_per_gpu = best
    return best, tried


def _evaluate(lm: Any, tasks: dict[str, Any], bootstrap: int) -> tuple[float, float, Any]:
    """Seconds of one evaluation, those within the model class, and what lm-eval found."""
    import lm_eval

    # lm-eval prints to stdout, which is the report's.
    with _timed(lm, "loglikelihood") as inside, redirect_stdout(sys.stderr):
        started = time.perf_counter()
        found = lm_eval.evaluate(lm, task_dict=tasks, bootstrap_iters=bootstrap)
        seconds = time.perf_counter() - started
    return seconds, sum(inside), found


@contextmanager
def _timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Collect the seconds of each call of a method while the context lasts."""
    method: Callable[..., Any] = getattr(owner, name)
    seconds: list[float] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, call)
    try:
        yield seconds
    finally:
        delattr(owner, name)  # the class's own shows again


def release() -> None:
    """Give the GPU memory of what is no longer referred to back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """The command: one process of the stock path."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stock", description=__doc__.split("\n\n")[0])
    parser.add_argument("points", nargs="*", type=Point.parse, metavar="POINT", help="none, cuda:32, torch:64:kv, ...")
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="a checkpoint with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="rows of lambada_openai, JSON lines")
    parser.add_argument("--warmup-data", type=Path, metavar="FILE", help="a few of them, to warm up (default: DATA)")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for the data sets' cache")
    parser.add_argument("--batch", type=positives, default=BATCHES, metavar="N,...", help="sequences a forward pass")
    parser.add_argument("--bootstrap", type=int, default=BOOTSTRAP, metavar="N", help="resamples of the perplexity")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured here")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    tasks = load_task(args.data, args.work, whole_index=True)
    tasks_s = time.perf_counter() - started
    lm = load_lm(args.model)
    load_s = time.perf_counter() - started - tasks_s
    warmup = load_task(args.warmup_data or args.data, args.work) if args.points else {}
    results, missing, build_s = [], {}, None
    settled: dict[str, list[int]] = {}  # the batch size, once for each implementation
    for point in args.points:
        reason = problem(point)
        if reason is None and point.quantized == "cuda":
            build_s, reason = build_kernels()
        if reason is not None:
            missing[str(point)] = reason
            continue
        say(f"stock path: {point}")
        result = measure(
            lm,
            point,
            tasks=tasks,
            warmup_tasks=warmup,
            batches=settled.get(point.quantized, args.batch),
            bootstrap=args.bootstrap,
        )
        settled[point.quantized] = [result.batch_size]
        results.append({"name": str(point), **asdict(result)})
    setup = {"tasks_s": tasks_s, "model_s": load_s, "build_s": build_s}
    write_json(args.json, {"setup": setup, "results": results, "missing": missing})
    return 0


if __name__ == "__main__":
    sys.exit(main())
