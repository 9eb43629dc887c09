"""Find out by one short pass what of a model a text reaches, and in which order.

A checkpoint may hold more than a text goes through: a vision tower, attention to an image, projections that a layer
shares with another. Nothing of that decides a result, and nothing of it is quantized, counted or calibrated. And a
model may multiply by the weight of a layer without calling the layer (``self.dt_proj.weight @ x`` in Mamba): to put
another layer into its place would change nothing. One pass of a few tokens tells all of this, of a loaded model and of
one on the meta device alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.expert_matrices import expert_matrices
from mxsweep.model.known_values import KnownValues
from mxsweep.model.positions import most_positions
from mxsweep.terminal.errors import ConfigError

TOKENS = 32


class PassFailed(ConfigError):
    """Say that a short pass through a model ended with an error, so that nothing is known of what a text reaches."""


@dataclass(frozen=True)
class Reached:
    """Hold what a short pass through a model reached.

    Attributes:
        entered: how often each module was called, by name, in the order of the first calls; a module that has several
            names under each.
        read: the modules a parameter of which was read, by a call or past it.
        read_past: those of them whose parameter was read while the module was not being called.
    """

    entered: Mapping[str, int]
    read: frozenset[str]
    read_past: frozenset[str]

    def __contains__(self, name: str) -> bool:
        """Return whether a text reaches the module of this name, or would reach it if it were longer.

        A few tokens may miss some experts of a mixture. A module that only differs from one that was reached in the
        numbers within its block counts as reached, unless its parameter was read under another module's name.
        """
        if name in self.entered or name in self.read_past:
            return True
        return name not in self.read and _without_numbers(name) in self._alike

    @cached_property
    def order(self) -> Mapping[str, int]:
        """Return when each module was called, or the first one within it where only such were, by name."""
        order = {name: place for place, name in enumerate(self.entered)}
        for name, place in list(order.items()):
            while name := name.rpartition(".")[0]:
                order.setdefault(name, place)
        return order

    @cached_property
    def _alike(self) -> set[str]:
        return {_without_numbers(name) for name in (*self.entered, *self.read_past)}


_known: WeakKeyDictionary[nn.Module, tuple[frozenset[str], Reached]] = WeakKeyDictionary()


def probe(model: PreTrainedModel) -> Reached:
    """Return what a text reaches in ``model``, loaded or on the meta device; one pass the first time it is asked.

    Another pass is made when modules of new names are in the model. That of a quantized model are those that it had
    before.

    Raises:
        PassFailed: the model cannot read tokens alone, or, on the meta device, needs values that depend on weights.
    """
    names = frozenset(name for name, _ in model.named_modules(remove_duplicate=False))
    known = _known.get(model)
    if known is None or not names <= known[0]:
        known = _known[model] = names, _probe(model)
    return known[1]


@contextmanager
def refusing_unreached(model: PreTrainedModel) -> Iterator[None]:
    """Refuse, while the context lasts, that a pass calls a module with weights which the short pass did not reach.

    A model may take another way for a text that is longer than the short pass: what is there was left as it is and
    counted as reached by no text, which the numbers of a run must not hide.
    """
    reached, names = probe(model), _names_of_modules(model)
    with ExitStack() as stack:
        for module in model.modules():
            here = names[id(module)]
            has_weights = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
            if has_weights and not any(name in reached for name in here):
                stack.callback(module.register_forward_pre_hook(_refuse(here[0])).remove)
        yield


def _refuse(name: str) -> Callable[..., None]:
    def refuse(module: nn.Module, _: Any) -> None:
        raise ConfigError(
            f"model.path: this text goes through {name} ({type(module).__name__}), and the {TOKENS} tokens that told "
            "which modules a text reaches did not: it was left as it is, and not counted; allowed: format=none "
            "kv_quant=none"
        )

    return refuse


def probe_pass(model: PreTrainedModel, examples: int = 1) -> Tensor:
    """Return the logits (B, T, V) of a few tokens that stand for any text, the same in each example."""
    config = model.config.get_text_config()
    special = {
        number
        for part in (model.config, config)
        for name, number in vars(part).items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(number, int)
    }
    length = min(TOKENS, most_positions(model) or TOKENS)
    ids = list(islice((number for number in range(int(config.vocab_size)) if number not in special), length))
    tokens = torch.tensor([ids] * examples).to(model.device)
    # Without a mask a model may look for padding with ``pad in tokens[:, [-1, 0]]``, and the list becomes a tensor on
    # the meta device behind the back of KnownValues. There is no padding: a mask of ones says so, and changes no logit.
    mask = {"attention_mask": torch.ones_like(tokens)} if tokens.is_meta else {}
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens, use_cache=False, **mask).logits
    return logits


def _probe(model: PreTrainedModel) -> Reached:
    calls = _Calls(model)
    reads = _Reads(model, calls)
    with ExitStack() as stack:
        if model.device.type == "meta":
            stack.enter_context(_experts_stand_aside(model))
            stack.enter_context(KnownValues())
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would hide its operations
        stack.enter_context(calls.noted())
        stack.enter_context(reads)
        try:
            probe_pass(model)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            without = " without values" if model.device.type == "meta" else ""
            raise PassFailed(
                f"model.path: a short pass of tokens through {type(model).__name__}{without} ended with "
                f"{type(error).__name__}: {error}"
            ) from error
    return Reached(
        {name: count for module, count in calls.entered.items() for name in calls.names.get(module, ())},
        frozenset(name for module in reads.read for name in calls.names[module]),
        frozenset(name for module in reads.past for name in calls.names[module]),
    )


class _Calls:
    """Note which modules are called, and which are being called now; modules are told apart by id."""

    def __init__(self, model: nn.Module) -> None:
        self.names = _names_of_modules(model)
        self.entered: Counter[int] = Counter()
        self.now: list[int] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note calls while the context lasts."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.entered[id(module)] += 1
        self.now.append(id(module))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        while self.now.pop() != id(module):  # a module that another hook stopped never came back
            pass


class _Reads(TorchDispatchMode):
    """Note which modules' parameters operations read, and whether the module was being called.

    A parameter is followed by its storage through views of it, as a transposed one. To make a view reads nothing.
    """

    supports_higher_order_operators = True  # as flex attention, which has no schema

    def __init__(self, model: nn.Module, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls
        self._owners: dict[int, set[int]] = defaultdict(set)
        self._embeddings = {id(module) for module in model.modules() if isinstance(module, nn.Embedding)}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if type(parameter) is nn.Parameter:  # a subclass may have no storage of its own
                    self._owners[parameter.untyped_storage()._cdata].add(id(module))
        self.read: set[int] = set()
        self.past: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        schema = getattr(func, "_schema", None)
        if schema is None or not func.is_view:
            written = schema is not None and schema.is_mutable  # the first argument
            for x in tree_flatten((args[written:], kwargs))[0]:
                if type(x) in (Tensor, nn.Parameter):
                    self._note(x)
        return func(*args, **(kwargs or {}))

    def _note(self, x: Tensor) -> None:
        owners = self._owners.get(x.untyped_storage()._cdata)
        if not owners:
            return
        self.read |= owners
        if owners.isdisjoint(self._calls.now):
            # Some rows of a weight that a head shares with an embedding are looked up, not multiplied by.
            rows = x.untyped_storage().nbytes() > x.nbytes
            self.past |= (owners & self._embeddings or owners) if rows else owners


@contextmanager
def _experts_stand_aside(model: nn.Module) -> Iterator[None]:
    """Have modules of experts answer zeros while the context lasts: which tokens an expert gets depends on values."""
    experts = [module for module in model.modules() if expert_matrices(module)]
    for module in experts:
        module.forward = _zeros
    try:
        yield
    finally:
        for module in experts:
            del module.forward


def _zeros(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.zeros_like(hidden_states)


def _names_of_modules(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of each module, which may have several, by the module's id."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    return names


def _without_numbers(name: str) -> str:
    """Return a name with * for its numbers but the first, which is the block's."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join("*" if place in numbers[1:] else part for place, part in enumerate(parts))
