"""Have kernels compute what a model's own code takes several operations for: norms, SiLU times up, rotary embeddings.

The kernels give the bits of the operations or leave the work to them (numerics/kernels/elementwise_cuda.py), so that no
number changes. They stand in only for code that is word for word known: that of transformers' Llama, which most of its
decoders have, too. What something else has put its hand to, by a forward pass of its own or a hook on an activation, is
left alone.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.numerics.kernels.elementwise_cuda import rms_norm, rotate, silu_times

# Parameters and statements, as ast.unparse writes them.
NORM = """\
self, hidden_states
input_dtype = hidden_states.dtype
hidden_states = hidden_states.to(torch.float32)
variance = hidden_states.pow(2).mean(-1, keepdim=True)
hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
return self.weight * hidden_states.to(input_dtype)"""
MLP = """\
self, x
down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
return down_proj"""
SILU = """\
self, input
return nn.functional.silu(input)"""
ROTARY = """\
q, k, cos, sin, unsqueeze_dim=1
cos = cos.unsqueeze(unsqueeze_dim)
sin = sin.unsqueeze(unsqueeze_dim)
q_embed = q * cos + rotate_half(q) * sin
k_embed = k * cos + rotate_half(k) * sin
return (q_embed, k_embed)"""
ROTATE_HALF = """\
x
x1 = x[..., :x.shape[-1] // 2]
x2 = x[..., x.shape[-1] // 2:]
return torch.cat((-x2, x1), dim=-1)"""

_ROTARY_NAME = "apply_rotary_pos_emb"


@dataclass(frozen=True)
class KnownParts:
    """Hold what of a model kernels can stand in for.

    Attributes:
        forwards: what computes in the place of a module's forward pass, given the module and what it reads.
        rotary: modules of Python that have the function which embeds queries and keys.
    """

    forwards: Mapping[nn.Module, Callable[..., Tensor]] = field(default_factory=dict)
    rotary: tuple[ModuleType, ...] = ()

    @contextmanager
    def by_kernels(self) -> Iterator[None]:
        """Have kernels stand in while the context lasts, but where something else does by now."""
        with ExitStack() as undo:
            for module, forward in self.forwards.items():
                if "forward" in module.__dict__:
                    continue
                undo.callback(module.__dict__.pop, "forward")
                module.__dict__["forward"] = MethodType(forward, module)  # not seen by nn.Module, which asks for less
            for namespace in filter(_embeds_as_known, self.rotary):
                embed = getattr(namespace, _ROTARY_NAME)
                undo.callback(setattr, namespace, _ROTARY_NAME, embed)
                setattr(namespace, _ROTARY_NAME, _embedding(embed))
            yield


def known_parts(model: PreTrainedModel) -> KnownParts:
    """Look for the parts of a model on a GPU that kernels can stand in for."""
    if model.device.type != "cuda":
        return KnownParts()
    forwards: dict[nn.Module, Callable[..., Tensor]] = {}
    namespaces: dict[str, ModuleType] = {}
    for module in model.modules():
        forward = _STAND_INS.get(_code(type(module).forward))
        if forward is not None and "forward" not in module.__dict__ and (forward is _norm or _has_plain_silu(module)):
            forwards[module] = forward
        namespace = sys.modules.get(type(module).__module__)
        if namespace is not None and _embeds_as_known(namespace):
            namespaces[namespace.__name__] = namespace
    return KnownParts(forwards, tuple(namespaces.values()))


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    found = rms_norm(hidden_states, self.weight, self.variance_epsilon)
    return type(self).forward(self, hidden_states) if found is None else found


def _mlp(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(_activated(self.act_fn, self.gate_proj(x), self.up_proj(x)))  # which is read without the two


def _activated(activation: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    product = silu_times(gate, up)
    if product is None:
        gate = activation(gate)
        product = gate * up
    return product


def _embedding(embed: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return what computes in the place of a model's ``embed``."""

    def by_kernel(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        if unsqueeze_dim == 1:
            k_embed = rotate(k, cos, sin)
            q_embed = None if k_embed is None else rotate(q, cos, sin)
            if q_embed is not None and k_embed is not None:
                return q_embed, k_embed
        return embed(q, k, cos, sin, unsqueeze_dim)

    return by_kernel


_STAND_INS: dict[str | None, Callable[..., Tensor]] = {NORM: _norm, MLP: _mlp}


def _has_plain_silu(mlp: nn.Module) -> bool:
    """Return whether an MLP's activation is SiLU, which nobody listens to."""
    activation: Any = getattr(mlp, "act_fn", None)
    return (
        isinstance(activation, nn.Module)
        and "forward" not in activation.__dict__
        and not (activation._forward_hooks or activation._forward_pre_hooks)
        and ((type(activation) is nn.SiLU and not activation.inplace) or _code(type(activation).forward) == SILU)
    )


def _embeds_as_known(namespace: ModuleType) -> bool:
    embed = getattr(namespace, _ROTARY_NAME, None)
    if embed is None or _code(embed) != ROTARY:
        return False
    return _code(embed.__globals__.get("rotate_half")) == ROTATE_HALF  # of the module that has it, not that uses it


@functools.cache
def _code(function: object) -> str | None:
    """Return a function's parameters and statements; None where what is written is not what is called."""
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__") or function.__closure__:
        return None  # a closure's names may mean something else
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):  # no source to be had
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    for argument in (*tree.args.args, *tree.args.kwonlyargs):
        argument.annotation = None
    statements = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    return "\n".join((ast.unparse(tree.args), *map(ast.unparse, statements)))
