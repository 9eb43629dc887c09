"""Rotate the residual stream of a Llama-like model offline, as QuaRot does (arXiv 2404.00456, section 4).

Legend: h (..., C) the residual stream, R (C, C) orthogonal, g (C,) the gain of an RMSNorm, n(h) = h / rms(h).

    block: h = h + W_o attention(W_qkv (g n(h))),  h = h + W_down mlp(W_gate,up (g' n(h)))

rms(h R) = rms(h), so n(h R) = n(h) R, once the gain has left the norm. Hence, with rows as vectors as in `nn.Linear`,

    the embedding E becomes E R, and h becomes h R everywhere
    a layer that reads the stream, W (N, C):   (W diag(g)) R, and g becomes 1;   q, k, v, gate, up, lm_head
    a layer that writes to it, W (C, N), b:    R^T W, b R;                       o, down

whether or not q, k and v, or gate and up, are fused in one weight; and nothing else changes: what attention and the MLP
see, and the logits, are what they were. Outliers of single channels of h are spread over all of them, at no cost when
the model runs. R is `numerics.hadamard`'s of order C.

What it costs: a weight is stored in the model's dtype again, after the products with the gain and with R, which are
computed in float64 (float32 and float64 models) or float32 (bfloat16, float16) and rounded once. In float32 the logits
move in their last digits. In bfloat16 that is a second rounding of the weights, as coarse as the one they were made
with: the perplexity of a Llama of 31 million parameters on 32,768 tokens went from 32.192 to 32.201, and its logits, of
which the largest is 30, moved by up to 0.3, 0.03 in the root mean square (in float32 by up to 2e-5).
An lm_head that was tied to the embedding becomes a matrix of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.model.decoder import decoder_blocks
from mxsweep.model.operands import Operand, find_operands
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

PIECE = 2**24  # elements of a weight that are worked on at once, in float32 or float64 beside it
_READERS = {  # of a block's norms, by role
    "input_layernorm": ("q", "k", "v"),
    "post_attention_layernorm": ("gate", "up"),
}
_WRITERS = ("o", "down")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")  # of queries and keys, whose basis stays
_ByRole = Mapping[tuple[str | None, str], Operand]  # an operand for each (block, role)
_NORM_TOLERANCE = 2**-5  # relative, for each channel: several roundings to bfloat16


@contextmanager
def rotated_residual(model: PreTrainedModel) -> Iterator[None]:
    """Rotate the residual stream of ``model`` while the context lasts; afterwards it is bit for bit as before.

    Enter it before :func:`mxsweep.model.quantize.quantize_model` and leave it after. Parameters stay the same objects,
    with other values, but for the weight of a tied lm_head, which has one of its own meanwhile. The original values
    wait in host memory.

    Raises:
        ConfigError: the model is not Llama-like (Llama, Mistral, Qwen2, Phi-3, ...): it has other modules, norms that
            compute something else, weights that several modules share, or weights that were offloaded.
    """
    stream = _Stream.of(model)
    with ExitStack() as undo:
        _rotate(stream, undo)
        yield


@dataclass(frozen=True)
class _Stream:
    """Hold the layers that read and write the residual stream.

    Attributes:
        readers: (norm, the layers that read its answer) pairs.
    """

    embedding: nn.Embedding
    head: nn.Linear
    readers: Sequence[tuple[nn.Module, Sequence[nn.Linear]]]
    writers: Sequence[nn.Linear]

    @staticmethod
    def of(model: PreTrainedModel) -> _Stream:
        """Look for the stream of ``model``.

        Raises:
            ConfigError: the stream is not known to be what this module's docstring says.
        """
        try:
            embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
            blocks = decoder_blocks(model)
            operands = {
                (operand.block, operand.role): operand
                for operand in find_operands(model).values()
                if operand.expert is None
            }
            readers: list[Any] = [
                (
                    block.get_submodule(norm),
                    _layers(_reading_together(model, operands, name, roles)),
                )
                for name, block in blocks.items()
                for norm, roles in _READERS.items()
            ]
            readers.append((model.base_model.get_submodule("norm"), [head]))
            writers: list[Any] = [_operand(operands, name, role).module for name in blocks for role in _WRITERS]
        except (AttributeError, LookupError) as error:
            raise _refusal(model, f"in which something is missing ({error})") from None
        # As the types say, or a problem is found.
        stream = _Stream(
            cast(nn.Embedding, embedding),
            cast(nn.Linear, head),
            readers,
            writers,
        )
        if problem := _problem(model, stream, list(blocks.values())):
            raise _refusal(model, problem)
        return stream

    @property
    def layers(self) -> list[nn.Embedding | nn.Linear]:
        """Return every layer but the norms."""
        return [self.embedding, *(layer for _, layers in self.readers for layer in layers), *self.writers]


def _operand(operands: _ByRole, block: str, role: str) -> Operand:
    """Return the operand that has a role in a block; LookupError without one."""
    operand = operands.get((block, role))
    if operand is None:
        raise LookupError(f"{block} has no {role}_proj")
    return operand


def _reading_together(model: nn.Module, operands: _ByRole, block: str, roles: Sequence[str]) -> list[Operand]:
    """Return the operands of these roles in a block, which read one tensor.

    Raises:
        LookupError: there is none of a role.
        ConfigError: the operands read several tensors.
    """
    readers = [_operand(operands, block, role) for role in roles]
    if len({operand.input for operand in readers}) > 1:
        raise _refusal(model, f"whose {' and '.join(roles)} of {block} do not read one tensor")
    return readers


def _layers(operands: Sequence[Operand]) -> list[nn.Module]:
    """Return the layers of operands, each once: a fused weight that they make up is read from one tensor.

    Raises:
        LookupError: a layer has other matrices as well.
    """
    layers = {operand.module_name: operand for operand in operands}
    for name, operand in layers.items():
        if len(operand.of_module) != sum(other.module_name == name for other in operands):
            raise LookupError(f"{name} has a place of its own for each role")
    return [operand.module for operand in layers.values()]


def _refusal(model: nn.Module, problem: str) -> ConfigError:
    return ConfigError(
        f"rotation.residual: true is not allowed for a {type(model).__name__} {problem}; "
        "allowed: models that are built as Llama, Mistral, Qwen2, Qwen3 and Phi-3 are"
    )


def _problem(model: PreTrainedModel, stream: _Stream, blocks: Sequence[nn.Module]) -> str | None:
    """Return what of the model is not as it must be; None if all is."""
    names = {id(module): name for name, module in model.named_modules()}
    for layer in stream.layers:
        wanted = nn.Embedding if layer is stream.embedding else nn.Linear
        if type(layer) is not wanted:
            return f"whose {names.get(id(layer), 'lm_head')} is a {type(layer).__name__}"
    norms = [norm for norm, _ in stream.readers]
    # A module that has parameters and no place here might do anything with the stream.
    known = {id(module) for module in (*stream.layers, *norms)}
    known |= {id(module) for block in blocks for name, module in block.named_modules() if name in _HEAD_NORMS}
    for name, module in model.named_modules():
        if id(module) not in known and next(module.parameters(recurse=False), None) is not None:
            return f"whose {name} is not known to this rotation"
    if any(parameter.is_meta for parameter in model.parameters()):
        return "some of whose weights were offloaded from the GPUs"
    width = stream.embedding.embedding_dim
    for norm in norms:
        if not _is_rms_norm(norm, width):
            return f"whose {names[id(norm)]} is not an RMS norm of {width} channels, the gain its weight"
    return _sharing(model, stream, names)


@torch.no_grad()
def _is_rms_norm(norm: nn.Module, width: int) -> bool:
    """Return whether a module answers weight * x / rms(x) to an x whose mean is not zero."""
    weights = dict(norm.named_parameters())
    if list(weights) != ["weight"] or weights["weight"].shape != (width,):
        return False
    weight = weights["weight"]
    x = torch.linspace(-8, 16, width, device=weight.device, dtype=torch.float64).to(weight.dtype)
    wide = x.double()
    expected = weight.double() * wide / wide.square().mean().sqrt()
    return torch.allclose(norm(x).double(), expected, rtol=_NORM_TOLERANCE, atol=1e-6)


def _sharing(model: nn.Module, stream: _Stream, names: dict[int, str]) -> str | None:
    """Return which weight more than one module has, a tied lm_head aside."""
    users = Counter(
        parameter.untyped_storage().data_ptr()
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    )
    tied = stream.head.weight is stream.embedding.weight
    for layer in (*stream.layers, *(norm for norm, _ in stream.readers)):
        allowed = 2 if tied and layer in (stream.head, stream.embedding) else 1
        for parameter in layer.parameters(recurse=False):
            if users[parameter.untyped_storage().data_ptr()] > allowed:
                return f"whose {names[id(layer)]} shares its memory with another module"
    return None


@torch.no_grad()
def _rotate(stream: _Stream, undo: ExitStack) -> None:
    """Put the model into the other basis; before each step, ``undo`` gets the way back."""
    head, embedding = stream.head, stream.embedding
    if head.weight is embedding.weight:
        undo.callback(setattr, head, "weight", head.weight)
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=embedding.weight.requires_grad)
    for layer in stream.layers:
        _keep(layer.weight, undo)
    for norm, layers in stream.readers:
        gain = cast(Tensor, norm.weight)
        _keep(gain, undo)
        for layer in layers:
            _rotate_rows(layer.weight, gain)
        gain.fill_(1)
    _rotate_rows(embedding.weight)
    for writer in stream.writers:
        _rotate_rows(writer.weight.t())
        if writer.bias is not None:
            _keep(writer.bias, undo)
            _rotate_rows(writer.bias[None])


def _keep(parameter: Tensor, undo: ExitStack) -> None:
    """Copy a parameter's values to host memory, from which ``undo`` restores them."""
    undo.callback(_restore, parameter, parameter.detach().to("cpu", copy=True))


@torch.no_grad()
def _restore(parameter: Tensor, original: Tensor) -> None:
    parameter.copy_(original)


def _rotate_rows(weight: Tensor, gain: Tensor | None = None) -> None:
    """Multiply the rows of (N, C) by the gain (C,), where there is one, and by R, in place."""
    wide = torch.float64 if weight.dtype in (torch.float32, torch.float64) else torch.float32
    for rows in weight.split(max(1, PIECE // weight.shape[1])):
        values = rows.to(wide) if gain is None else rows.to(wide) * gain.to(rows.device, wide)
        rows.copy_(hadamard(values))
