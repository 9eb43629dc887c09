"""Say why a config cannot be done, in the same words where it is planned and where the model is loaded."""

from __future__ import annotations


def no_such_gpu(device: str, count: int) -> str:
    """Return what to say of a ``model.device`` that is none of this machine's ``count`` GPUs."""
    there = f"cuda:0 to cuda:{count - 1}, cpu" if count else "cpu (no CUDA GPU was found)"
    return f"model.device: {device!r} is not there; allowed: auto, {there}"


def no_chat_template(model: str) -> str:
    """Return what to say where the tokenizer of ``model`` (its label) has no chat template to apply."""
    return f"task.apply_chat_template: true needs a tokenizer with a chat template; that of {model} has none"
