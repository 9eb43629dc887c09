"""MX linear layers, put into a model and taken out again.

Legend: x (..., C) input, W (N, C) weight of a linear layer, y (..., N) = Q(x) Q(W)^T + b. Both are quantized along
C, the dimension that the product sums over, so that a block's scales could be factored out of the sum in hardware.

An MX layer keeps the original module beside its own quantized copy of the weight and never changes the original's
values, which is why taking it out is exact: the parent module gets the very same object back. Where a GPU has no room
for both, the original weights wait in host memory meanwhile.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.errors import ConfigError
from mxsweep.model.attention import quantized_attention
from mxsweep.model.recipe import LinearFormats, Recipe, in_decoder_block
from mxsweep.model.report import LayerReport, QuantizationReport, Stored
from mxsweep.numerics import MXFormat, block_statistics, quantize

KEPT_FREE = 0.2  # of a GPU's memory: for activations, logits, and what fragmentation wastes


class InputQuantizer:
    """Quantizes the inputs of linear layers; projections that read the same tensor share one answer.

    In a Llama block q, k and v read one tensor, and gate and up another, one after the other, so remembering the last
    answer is enough. The version counter notices a tensor changed in place; inference tensors have none and are not
    shared.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._last: tuple[Tensor, tuple[int, MXFormat, bool], Tensor] | None = None

    def __call__(self, x: Tensor, fmt: MXFormat, name: str) -> Tensor:
        version = -1 if x.is_inference() else x._version
        asked = (version, fmt, torch.is_grad_enabled())
        if self._last is not None and version >= 0:
            seen, seen_asked, answer = self._last
            if seen is x and seen_asked == asked:
                return answer
        stochastic = fmt.rounding == "stochastic"
        answer = quantize(
            x,
            fmt,
            axis=-1,
            backend=self._recipe.backend,
            arithmetic=self._recipe.arithmetic,
            generator=stochastic_key(self._recipe.seed, name) if stochastic else None,
            tensor_dims=(-1,),  # a token's scale must not depend on the tokens beside it
            example_dims=1 if x.dim() > 2 else 0,
        )
        self._last = (x, asked, answer)
        return answer

    def forget(self) -> None:
        """Let go of the remembered tensors."""
        self._last = None


class MXLinear(nn.Module):
    """A linear layer that multiplies a quantized input by a weight quantized once, at construction.

    Args:
        linear: the layer to stand in for; its parameters are shared, not copied.
        weight_mx: its quantized weight, (N, C), in the weight's dtype; the weight itself where it stays as it is.
        activation: the input's format, None to leave it.
    """

    def __init__(
        self, linear: nn.Linear, name: str, weight_mx: Tensor, activation: MXFormat | None, inputs: InputQuantizer
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("weight_mx", weight_mx, persistent=False)
        self._name, self._activation, self._inputs = name, activation, inputs
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._activation is not None:
            x = self._inputs(x, self._activation, self._name)
        assert isinstance(self.weight_mx, Tensor)
        return F.linear(x, self.weight_mx, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self._activation}"


@dataclass(frozen=True)
class _Site:
    """A module to replace: where it is, and what its tensors become."""

    name: str
    module: nn.Linear | nn.Embedding
    formats: LinearFormats


@contextmanager
def quantize_model(model: PreTrainedModel, recipe: Recipe) -> Iterator[QuantizationReport]:
    """Put ``recipe`` into ``model`` while the context lasts; afterwards the model is bit for bit as before.

    For inference: gradients reach the inputs (straight through), not the weights, which are quantized once.

    Args:
        model: a Hugging Face causal language model whose projections are ``nn.Linear``.
        recipe: what each kind of tensor becomes.

    Yields:
        What was replaced, with the block statistics of every quantized weight.

    Raises:
        ConfigError: a pattern of ``recipe.modules`` that matches nothing, a model without linear layers in its
            blocks, weights that were offloaded, or attention whose keys and values cannot be reached.
    """
    sites = find_sites(model, recipe)
    stored = Stored.of(model, {site.name: site.formats.weight for site in sites})
    inputs = InputQuantizer(recipe)
    reports: list[LayerReport] = []
    waiting = _Waiting(_without_room(model, sites))
    with quantized_attention(model, recipe, lambda name: stochastic_key(recipe.seed, name)) as attention_modules:
        try:
            for site in sites:
                replacement, report = _quantize_site(site, recipe, inputs)
                _put(model, site.name, replacement)
                waiting.send_to_host(site.module)
                reports.append(report)
            yield QuantizationReport.of(recipe, reports, attention_modules, stored, waiting.bytes)
        finally:
            inputs.forget()
            for site in sites:
                _put(model, site.name, site.module)
            waiting.bring_back()  # the replacements are freed by now


def find_sites(model: PreTrainedModel, recipe: Recipe) -> list[_Site]:
    """The modules that ``recipe`` changes, in the model's order."""
    if any(isinstance(module, MXLinear) for module in model.modules()):
        raise RuntimeError(f"this {type(model).__name__} holds MX layers already; leave the context that put them in")
    # A module with two names is replaced under both.
    named = model.named_modules(remove_duplicate=False)
    candidates = {name: module for name, module in named if isinstance(module, nn.Linear | nn.Embedding)}
    for pattern, _ in recipe.modules:
        if not any(fnmatchcase(name, pattern) for name in candidates):
            raise ConfigError(
                f"modules: the pattern {pattern!r} matches no linear layer or embedding of {type(model).__name__}; "
                f"names look like {', '.join(list(candidates)[1:4])}"
            )
    sites = []
    for name, module in candidates.items():
        formats = recipe.formats_of(name, isinstance(module, nn.Linear) and in_decoder_block(name))
        if isinstance(module, nn.Embedding) and formats.weight is not None:
            formats = LinearFormats(weight=formats.weight)  # an embedding's input is token numbers
        if formats != LinearFormats():
            if type(module) not in (nn.Linear, nn.Embedding):
                # A subclass computes something else as well, which a replacement would silently leave out.
                raise ConfigError(
                    f"modules: {name} is a {type(module).__name__}, for which there is no MX layer; "
                    f"leave it as it is with modules={{{name}: none}}"
                )
            sites.append(_Site(name, module, formats))
    if not sites and recipe.linear != LinearFormats():
        raise ConfigError(
            f"format: {type(model).__name__} has no torch.nn.Linear in its decoder blocks to quantize; allowed: none"
        )
    return sites


def _quantize_site(site: _Site, recipe: Recipe, inputs: InputQuantizer) -> tuple[nn.Module, LayerReport]:
    weight = site.module.weight
    if weight.device.type == "meta":
        raise ConfigError(
            f"model.device_map: {site.name} was offloaded from the GPUs, where its weight cannot be quantized; "
            "use more or larger GPUs, or model.device=cpu"
        )
    fmt = site.formats.weight
    weight_mx, statistics = weight.detach(), None
    if fmt is not None:
        stochastic = fmt.rounding == "stochastic"
        with torch.no_grad():
            weight_mx = quantize(
                weight.detach(),
                fmt,
                axis=-1,
                backend=recipe.backend,
                arithmetic=recipe.arithmetic,
                generator=stochastic_key(recipe.seed, f"{site.name}.weight") if stochastic else None,
            )
            statistics = block_statistics(weight.detach(), fmt, axis=-1, arithmetic=recipe.arithmetic, answer=weight_mx)
    report = LayerReport(site.name, fmt, site.formats.activation, weight.shape, weight.itemsize * 8, statistics)
    if isinstance(site.module, nn.Linear):
        return MXLinear(site.module, site.name, weight_mx, site.formats.activation, inputs), report
    embedding = nn.Embedding.from_pretrained(weight_mx, padding_idx=site.module.padding_idx)
    return embedding.train(site.module.training), report


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


class _Waiting:
    """Weights that are in host memory while their quantized copies are on a GPU."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = {id(module) for module in modules}
        self._sent: list[tuple[nn.Linear | nn.Embedding, torch.device]] = []
        self.bytes = 0

    def send_to_host(self, module: nn.Linear | nn.Embedding) -> None:
        if id(module) in self._modules:
            self._sent.append((module, module.weight.device))
            self.bytes += module.weight.nbytes
            module.weight.data = module.weight.data.to("cpu")

    def bring_back(self) -> None:
        for module, home in self._sent:
            module.weight.data = module.weight.data.to(home)


def _without_room(model: nn.Module, sites: Sequence[_Site]) -> list[nn.Module]:
    """The linear layers whose weights must leave their GPU for their quantized copies to fit."""
    # By every name, so that neither a weight that several modules share nor a module with several names is alone.
    users = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    )
    quantized: dict[torch.device, list[_Site]] = {}
    for site in sites:
        if site.formats.weight is not None:
            quantized.setdefault(site.module.weight.device, []).append(site)
    leaving: list[nn.Module] = []
    for device, here in quantized.items():
        free, total = _memory(device)
        if sum(site.module.weight.nbytes for site in here) > free - KEPT_FREE * total:
            # A weight with another user (a tied embedding) stays.
            leaving += [
                site.module
                for site in here
                if isinstance(site.module, nn.Linear) and users[id(site.module.weight)] == 1
            ]
    return leaving


def _memory(device: torch.device) -> tuple[float, float]:
    """(bytes that can still be allocated, bytes in all) on a GPU; without end elsewhere."""
    if device.type != "cuda":
        return math.inf, 0.0
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def stochastic_key(seed: int, name: str) -> int:
    """A 64-bit key for the stochastic rounding of one tensor of a model: the same whatever ran before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
