"""Say why a config cannot be done, in the same words where it is planned and where the model is loaded."""

from __future__ import annotations


def no_such_gpu(device: str, count: int) -> str:
    """Return what to say of a ``model.device`` that is none of this machine's ``count`` GPUs."""
    there = f"cuda:0 to cuda:{count - 1}, cpu" if count else "cpu (no CUDA GPU was found)"
    return f"model.device: {device!r} is not there; allowed: auto, {there}"


def quantized_already(path: str, method: str) -> str:
    """Return what to say of a ``model.path`` whose weights are stored quantized by ``method``."""
    return (
        f"model.path: {path!r} is quantized already, by {method}: nothing measured from it would be against an "
        "unquantized model; allowed: weights in float32, bfloat16 or float16. Take the model's unquantized checkpoint, "
        "or this one as plain values, its activations no longer quantized: model.dequantize=true"
    )


def stored_rotated(path: str, layer: str) -> str:
    """Return what to say of a ``model.path`` of a packed checkpoint that has ``layer`` stored rotated."""
    return (
        f"model.path: {path!r} has weights that are stored rotated, as {layer}, and inputs that its loader rotates as "
        "it runs, which a plain model does not; allowed: exports of runs whose inputs are not rotated (rotation=none)"
    )


def gguf_missing(path: str) -> str:
    """Return what to say of a ``model.path`` that is a GGUF file where the package that reads its blocks is missing."""
    return f"model.path: {path!r} is a GGUF file, which takes the package gguf: pip install 'mxsweep[gguf]'"


def no_chat_template(model: str) -> str:
    """Return what to say where the tokenizer of ``model`` (its label) has no chat template to apply."""
    return f"task.apply_chat_template: true needs a tokenizer with a chat template; that of {model} has none"
