"""MX linear layers, put into a model and taken out again.

Legend: x (..., C) input, W (N, C) weight of a linear layer, y (..., N) = Q(x) Q(W)^T + b. Both are quantized along
C, the dimension that the product sums over, so that a block's scales could be factored out of the sum in hardware.
Where the recipe rotates the product, y = Q(x R) Q(W R)^T + b with R orthogonal.

An MX layer keeps the original module beside its own quantized copy of the weight and never changes the original's
values, which is why taking it out is exact: the parent module gets the very same object back. Where a GPU has no room
for both, the original weights wait in host memory meanwhile.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import LINEAR_MATMULS, QUERY_KEY, LinearFormats, Prepared, Recipe, in_decoder_block
from mxsweep.model.attention import STATE, KVQuantizer, quantized_attention
from mxsweep.model.observer import Observer
from mxsweep.model.quantization_report import LayerReport, QuantizationReport, Stored
from mxsweep.numerics import Measured, MXFormat, fetch_statistics, measure_blocks, quantize
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

NOTHING_PREPARED = Prepared()
KEPT_FREE = 0.2  # of a GPU's memory: for activations, logits, and what fragmentation wastes


class InputQuantizer:
    """Quantizes the inputs of linear layers; projections that read the same tensor share one answer.

    In a Llama block q, k and v read one tensor, and gate and up another, one after the other, so remembering the last
    answer is enough. The version counter notices a tensor changed in place; inference tensors have none and are not
    shared.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.observer: Observer | None = None  # told of each tensor once, with the name of its first reader
        self._recipe = recipe
        self._seen: Tensor | None = None
        self._answers: dict[tuple[int, MXFormat | None, bool, bool], Tensor] = {}  # of the tensor that was last seen

    def __call__(self, x: Tensor, fmt: MXFormat | None, name: str, rotated: bool = False) -> Tensor:
        """What a layer multiplies by its weight: x, rotated and quantized as asked."""
        version = -1 if x.is_inference() else x._version
        asked = (version, fmt, rotated, torch.is_grad_enabled())
        if self._seen is not x or version < 0:
            self._seen, self._answers = x, {}
        if asked not in self._answers:
            self._answers[asked] = self._answer(x, fmt, name, rotated)
        return self._answers[asked]

    def _answer(self, x: Tensor, fmt: MXFormat | None, name: str, rotated: bool) -> Tensor:
        if rotated:
            assert self._recipe.rotation is not None
            x = hadamard(x, self._recipe.rotation.block)
        if fmt is None:
            return x
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
        if self.observer is not None:
            self.observer("activation", name, x, fmt, answer)
        return answer

    def forget(self) -> None:
        """Let go of the remembered tensors."""
        self._seen, self._answers = None, {}


class MXLinear(nn.Module):
    """A linear layer that multiplies a quantized input by a weight quantized once, at construction.

    Args:
        linear: the layer to stand in for; its parameters are shared, not copied.
        weight_mx: its quantized weight, (N, C), in the weight's dtype; the weight itself where it stays as it is.
        activation: the input's format, None to leave it.
        rotated: whether weight_mx is of the rotated weight, and inputs are to be rotated.

    Attributes:
        tap: told of every input (..., C) as it is multiplied by the weight; None for nobody.
    """

    def __init__(
        self,
        linear: nn.Linear,
        name: str,
        weight_mx: Tensor,
        activation: MXFormat | None,
        inputs: InputQuantizer,
        rotated: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_mx: Tensor
        self.register_buffer("weight_mx", weight_mx, persistent=False)
        self._name, self._activation, self.inputs, self._rotated = name, activation, inputs, rotated
        self.tap: Callable[[Tensor], None] | None = None
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._activation is not None or self._rotated:
            x = self.inputs(x, self._activation, self._name, self._rotated)
        if self.tap is not None:
            self.tap(x)
        return F.linear(x, self.weight_mx, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self._activation}"


@dataclass(frozen=True)
class Site:
    """A module to replace: where it is, what its tensors become, and the order of its rotation (None for none)."""

    name: str
    module: nn.Linear | nn.Embedding
    formats: LinearFormats
    rotation_block: int | None = None

    def weight(self) -> Tensor:
        """(N, C), in the basis in which it is quantized."""
        weight = self.module.weight.detach()
        if self.rotation_block is None:
            return weight
        return hadamard(weight, self.rotation_block)


@contextmanager
def quantize_model(
    model: PreTrainedModel,
    recipe: Recipe,
    *,
    prepared: Prepared = NOTHING_PREPARED,
    compare_exact: bool = False,
    keep_weights: bool = False,
) -> Iterator[QuantizationReport]:
    """Put ``recipe`` into ``model`` while the context lasts; afterwards the model is bit for bit as before.

    For inference: gradients reach the inputs (straight through), not the weights, which are quantized once.

    Args:
        model: a Hugging Face causal language model whose projections are ``nn.Linear``.
        recipe: what each kind of tensor becomes.
        prepared: what was worked out for this recipe on calibration data, and takes the place of rounding to nearest.
        keep_weights: whether weights stay as they are, rotated where the recipe says so: for working something out.
        compare_exact: whether the statistics count the weights that exact arithmetic would have given another value.

    Yields:
        What was replaced, with the block statistics of every quantized weight.

    Raises:
        ConfigError: a pattern of ``recipe.modules`` that matches nothing, a model without linear layers in its
            blocks, weights that were offloaded, or attention whose keys and values cannot be reached.
    """
    sites = find_sites(model, recipe)
    stored = Stored.of(model, {site.name: site.formats.weight for site in sites})
    inputs = InputQuantizer(recipe)
    measured: list[Measured | None] = []
    waiting = _Waiting(_without_room(model, sites))
    with quantized_attention(
        model, recipe, lambda name: stochastic_key(recipe.seed, name), prepared.key_factors
    ) as attention_modules:
        try:
            for site in sites:
                if keep_weights:
                    weight_mx, statistics = site.weight(), None
                else:
                    known = prepared.weights.get(site.name)
                    weight_mx, statistics = _quantize_weight(site, recipe, compare_exact, known)
                _put(model, site.name, _replacement(site, weight_mx, inputs))
                waiting.send_to_host(site.module)
                measured.append(statistics)
            reports = _layer_reports(sites, measured, prepared.weights)
            yield QuantizationReport.of(recipe, reports, attention_modules, stored, waiting.bytes)
        finally:
            inputs.forget()
            for site in sites:
                _put(model, site.name, site.module)
            waiting.bring_back()  # the replacements are freed by now


def find_sites(model: PreTrainedModel, recipe: Recipe) -> list[Site]:
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
            block = recipe.rotation.block if recipe.rotation is not None and recipe.rotation.of(name) else None
            sites.append(Site(name, module, formats, block if isinstance(module, nn.Linear) else None))
    for matmul in recipe.rotation.matmuls if recipe.rotation else ():
        if matmul != QUERY_KEY and not any(name.endswith(f".{matmul}_proj") for name in candidates):
            there = [own for own in LINEAR_MATMULS if any(name.endswith(f".{own}_proj") for name in candidates)]
            raise ConfigError(
                f"rotation.matmuls: {matmul!r} is no linear layer of {type(model).__name__}; allowed: "
                f"{', '.join([*there, QUERY_KEY])}"
            )
    if not sites and recipe.linear != LinearFormats():
        raise ConfigError(
            f"format: {type(model).__name__} has no torch.nn.Linear in its decoder blocks to quantize; allowed: none"
        )
    return sites


def measure_weights(model: PreTrainedModel, recipe: Recipe) -> list[LayerReport]:
    """What ``recipe`` does to the weights of ``model``, compared with exact arithmetic, too; nothing is replaced.

    Only one quantized weight is in memory at a time.

    Raises:
        ConfigError: as :func:`quantize_model`.
    """
    sites = find_sites(model, recipe)
    return _layer_reports(sites, [_quantize_weight(site, recipe, compare_exact=True)[1] for site in sites])


def _quantize_weight(
    site: Site, recipe: Recipe, compare_exact: bool, prepared: Tensor | None = None
) -> tuple[Tensor, Measured | None]:
    """The weight that stands in for a site's own, and what became of it (None where it stays as it is)."""
    weight = site.module.weight
    if weight.device.type == "meta":
        raise ConfigError(
            f"model.device_map: {site.name} was offloaded from the GPUs, where its weight cannot be quantized; "
            "use more or larger GPUs, or model.device=cpu"
        )
    weight, fmt = site.weight(), site.formats.weight
    if fmt is None:
        return weight, None
    if prepared is not None:
        weight_mx = prepared.to(weight.device, weight.dtype)
    else:
        weight_mx = quantize(
            weight,
            fmt,
            axis=-1,
            backend=recipe.backend,
            arithmetic=recipe.arithmetic,
            generator=stochastic_key(recipe.seed, f"{site.name}.weight") if fmt.rounding == "stochastic" else None,
        )
    measured = measure_blocks(
        weight, fmt, axis=-1, arithmetic=recipe.arithmetic, answer=weight_mx, compare_exact=compare_exact
    )
    return weight_mx, measured


def _replacement(site: Site, weight_mx: Tensor, inputs: InputQuantizer) -> nn.Module:
    if isinstance(site.module, nn.Linear):
        rotated = site.rotation_block is not None
        return MXLinear(site.module, site.name, weight_mx, site.formats.activation, inputs, rotated)
    embedding = nn.Embedding.from_pretrained(weight_mx, padding_idx=site.module.padding_idx)
    return embedding.train(site.module.training)


def _layer_reports(
    sites: Sequence[Site], measured: Sequence[Measured | None], prepared: Collection[str] = ()
) -> list[LayerReport]:
    fetched = iter(fetch_statistics([item for item in measured if item is not None]))
    return [
        LayerReport(
            site.name,
            site.formats.weight,
            site.formats.activation,
            site.module.weight.shape,
            site.module.weight.itemsize * 8,
            None if item is None else next(fetched),
            site.name in prepared,
        )
        for site, item in zip(sites, measured, strict=True)
    ]


@contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """While the context lasts, tell ``observer`` of every input, key and value that a quantized model quantizes."""
    watched: list[InputQuantizer | KVQuantizer] = []
    for module in model.modules():
        quantizer = module.inputs if isinstance(module, MXLinear) else getattr(module, STATE, None)
        if isinstance(quantizer, InputQuantizer | KVQuantizer):
            watched.append(quantizer)
    try:
        for quantizer in watched:
            quantizer.observer = observer
        yield
    finally:
        for quantizer in watched:
            quantizer.observer = None


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


def _without_room(model: nn.Module, sites: Sequence[Site]) -> list[nn.Module]:
    """The linear layers whose weights must leave their GPU for their quantized copies to fit."""
    # By every name, so that neither a weight that several modules share nor a module with several names is alone.
    users = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    )
    quantized: dict[torch.device, list[Site]] = {}
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
