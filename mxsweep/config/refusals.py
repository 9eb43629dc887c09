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


def unreadable(knob: str, name: str, error: OSError) -> str:
    """Return what to say of a file, named by a knob, that is not there or may not be read."""
    return f"{knob}: {name!r} cannot be read: {error.strerror or error}"


def not_utf8(knob: str, name: str, reason: Exception) -> str:
    """Return what to say of a file, named by a knob, that is no text, or not packed as its name says."""
    return f"{knob}: {name!r} cannot be read as UTF-8 text: {reason}"


def too_little_text(length: int, of: str, tokens: int) -> str:
    """Return what to say of ``train.length`` where a part of the corpus is no longer than a sequence.

    Args:
        length: of a sequence, which takes a token more.
        of: the part, "the corpus" or the knob that says what is held out, with its value where that is a share.
        tokens: that the part has.
    """
    more = ", a larger share" if "=" in of else ""
    return (
        f"train.length: {length} is more than {of} comes to, {tokens:,} tokens; allowed: a smaller number{more}, or a "
        "longer text"
    )


def longer_than_the_model(length: int, model: str, longest: int) -> str:
    """Return what to say of ``train.length`` where ``model`` (its label) takes no more than ``longest`` tokens."""
    return f"train.length: {length} is longer than {model!r} takes; allowed: up to {longest}"


def no_chat_template(model: str) -> str:
    """Return what to say where the tokenizer of ``model`` (its label) has no chat template to apply."""
    return f"task.apply_chat_template: true needs a tokenizer with a chat template; that of {model} has none"


def too_many_examples(
    task: str, count: int, most: int, where: str, *, leaves_out: bool, needs_evaluated: bool = False
) -> str:
    """Return what to say of ``task.num_fewshot`` where ``task`` has rows for ``most`` examples only.

    Args:
        task: its name.
        count: of examples that are asked for.
        most: examples that there are rows for.
        where: what holds these rows, as "its split 'test'".
        leaves_out: whether the row that is asked is one of them, and was subtracted.
        needs_evaluated: whether any example takes ``task.fewshot_evaluated=true``, which is not set.
    """
    left = " beside the one that is asked" if leaves_out else ""
    allowed = f"0 to {most}"
    if needs_evaluated:
        more = f", or {allowed} with task.fewshot_evaluated=true, which takes them from the evaluated rows"
        allowed = f"0{more if most else ''}"
    return (
        f"task.num_fewshot: {count} examples are more than {task} has rows for: {where} holds {most:,}{left}; "
        f"allowed: {allowed}"
    )
