"""Describe recipes: which format each kind of tensor gets, and in which basis. Plain data: no torch, no config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from mxsweep.formats.mxformat import MXFormat
from mxsweep.terminal.written_values import written

MOST_LEFT = 0.01  # of the decoder blocks' weights that stay as they are unasked, without a warning
# The matrix products of a decoder block, by the role of the operand that is a weight (model/operands.py).
LINEAR_MATMULS = ("q", "k", "v", "o", "gate", "up", "down")
QUERY_KEY = "qk"  # the product of queries and keys, whose second operand is in the cache
MATMULS = (*LINEAR_MATMULS, QUERY_KEY)
LATENT_IN_CACHE, LATENT_EXPANDED = LATENTS = ("cache", "expanded")  # which of MLA's is quantized
OF_A_MATRIX, OF_FUSED = "matrix", "fused"  # what a per-tensor scale is of
HADAMARD, WUSH = ROTATIONS = ("hadamard", "wush")  # with which matrices operands are put into another basis
DYNAMIC, STATIC = "dynamic", "static"  # what the per-tensor scale of an input is made from
TENSOR_KINDS = ("weight", "activation", "key", "value")  # what a recipe gives formats to, in the order of tables


@dataclass(frozen=True)
class LinearFormats:
    """Hold the formats of one linear layer's weight and input; None leaves a tensor as it is."""

    weight: MXFormat | None = None
    activation: MXFormat | None = None

    def stored_bits(self, shape: Sequence[int]) -> int:
        """Return the bits that storing a weight of this shape in its format takes, scales included."""
        assert self.weight is not None
        return self.weight.stored_bits(shape)


@dataclass(frozen=True)
class Rotation:
    """Put operands of matrix products into another basis, in which outliers are spread over all channels.

    x W^T = (x T^T) (W T^-1)^T for any T that has an inverse, so without quantization nothing changes; with it, what is
    quantized is x T^T and W T^-1.

    Attributes:
        matmuls: which of MATMULS, in their order.
        block: T is block-diagonal with matrices of this order; 0 for the whole dimension that is summed over.
        kind: HADAMARD: the matrices are Hadamard matrices, orthogonal and all alike (QuaRot, arXiv 2404.00456,
            section 3). WUSH: each block of each input has a matrix of its own, worked out on calibration data
            (:mod:`mxsweep.numerics.wush`); keys and queries, which have no weight, have Hadamard matrices all the same.
    """

    matmuls: tuple[str, ...]
    block: int = 0
    kind: str = HADAMARD

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name; without ``kind`` by default, so that what was made before it keeps its hash."""
        data = asdict(self)
        return data if self.kind != HADAMARD else {name: data[name] for name in data if name != "kind"}

    def __repr__(self) -> str:
        """Return the fields of :meth:`as_dict` in brackets: what is stored under a recipe's text stays found."""
        return f"Rotation({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"


@dataclass(frozen=True)
class KVOptions:
    """Say how keys and values are quantized, besides their formats.

    Attributes:
        key_axis: "token": blocks of keys lie along head_dim; "channel": along the sequence, a block of consecutive
            tokens for each channel, which is quantized when it is complete: a query reads the keys of the block that it
            stands in as they are, unless it is the block's last.
        rope: keys are quantized "after" the rotary embedding or "before" it (and embedded then).
        first, recent: how many tokens at the beginning, and for each query how many up to itself, stay as they are.
        scales: "block", or "head": one scale for all of a head's dimensions (and of a per-tensor scale, one a head).
        smooth: 0 to 1: keys are divided by s_c = max |k_c|^smooth over the calibration tokens (rounded to a power of
            two, equal over the two channels of a RoPE pair), and queries multiplied by it. 0: not at all.
        latent: of multi-head latent attention (MLA) is quantized what the "cache" holds, a latent and a RoPE key for
            each token, or the keys and values of each head, "expanded" from these.
    """

    key_axis: str = "token"
    rope: str = "after"
    first: int = 0
    recent: int = 0
    scales: str = "block"
    smooth: float = 0.0
    latent: str = LATENT_IN_CACHE

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name; without ``latent`` by default, so that what was made before it keeps its hash."""
        options = asdict(self)
        return options if self.latent != LATENT_IN_CACHE else {k: v for k, v in options.items() if k != "latent"}

    def __repr__(self) -> str:
        """Return the options of :meth:`as_dict` in brackets: what is stored under a recipe's text stays found."""
        return f"KVOptions({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def problem_with(self, key: MXFormat | None) -> str | None:
        """Return why keys of this format cannot be quantized so, as far as no model has a say; None where they can."""
        if key is None or self.key_axis != "channel":
            return None
        if not isinstance(key.block_size, int) or key.block_size == 0:
            return (
                f"kv_quant.block_size: {written(key.block_size)} does not go with kv_quant.key_axis=channel, whose "
                "blocks are of tokens; allowed: a whole number of 1 or more"
            )
        if key.tensor_scale:
            # A token's own, over its channels, would not be of the channel's block; the block's would be its scale.
            return (
                "kv_quant.tensor_scale: true does not go with kv_quant.key_axis=channel; allowed: false, for example "
                "with kv_quant.scale=e5m3"
            )
        if self.scales == "head":
            return "kv_quant.scales: head does not go with kv_quant.key_axis=channel; allowed: block"
        return None


@dataclass(frozen=True)
class Recipe:
    """Say what is quantized in a model, and by which backend.

    Attributes:
        linear: formats of the linear layers and experts of the decoder blocks (not of routers, lm_head, embeddings).
        key, value: formats of keys and values, as attention reads them; None leaves them.
        kv: how these are applied.
        rotation: which operands are quantized in another basis; None for none.
        modules: (glob pattern over names of operands and of their modules, formats) pairs; where several match an
            operand, the last wins.
        backend, arithmetic: as in :func:`mxsweep.numerics.quantize`.
        seed: of stochastic rounding.
        shares_tensor_scales: whether weights that are one matrix at a runtime (q, k, v; gate, up) have one per-tensor
            scale, of formats that have any.
        activation_scale: what the per-tensor scale of an input is made from: a token's own maximum (DYNAMIC), the
            largest of the calibration data (STATIC), or this number.
    """

    linear: LinearFormats = LinearFormats()
    key: MXFormat | None = None
    value: MXFormat | None = None
    modules: tuple[tuple[str, LinearFormats], ...] = ()
    backend: str = "torch"
    arithmetic: str = "native"
    seed: int = 0
    kv: KVOptions = KVOptions()
    rotation: Rotation | None = None
    shares_tensor_scales: bool = False
    activation_scale: str | float = DYNAMIC

    def __repr__(self) -> str:
        """Return the fields in brackets, without those added later at their defaults: what is stored under a recipe's
        text stays found.
        """
        later = {"shares_tensor_scales", "activation_scale"}
        named = [(one.name, getattr(self, one.name), one.default) for one in fields(self)]
        texts = [f"{name}={value!r}" for name, value, usual in named if name not in later or value != usual]
        return f"Recipe({', '.join(texts)})"

    def formats(self) -> list[MXFormat]:
        """Return every format that some tensor gets, each once."""
        formats = [self.key, self.value]
        for linear in (self.linear, *(linear for _, linear in self.modules)):
            formats += [linear.weight, linear.activation]
        return list(dict.fromkeys(fmt for fmt in formats if fmt is not None))

    def with_scale_rounding(self, rounding: str) -> Recipe:
        """Return the recipe with all scales that are powers of two rounded in this way."""

        def rounded(fmt: MXFormat | None) -> MXFormat | None:
            return None if fmt is None else replace(fmt, scale_rounding=rounding)

        def both(linear: LinearFormats) -> LinearFormats:
            return LinearFormats(rounded(linear.weight), rounded(linear.activation))

        return replace(
            self,
            linear=both(self.linear),
            key=rounded(self.key),
            value=rounded(self.value),
            modules=tuple((pattern, both(linear)) for pattern, linear in self.modules),
        )

    @property
    def is_baseline(self) -> bool:
        """Return whether nothing at all is quantized."""
        return not self.formats()

    def formats_of(self, name: str, by_default: bool, module: str | None = None) -> LinearFormats:
        """Return the formats of the operand ``name``.

        Args:
            by_default: whether it gets those of linear layers where no pattern matches; outside the decoder blocks, and
                to routers of experts that are linear layers, only ``modules`` can give any; other routers get none.
            module: the name of the module that multiplies by it, which patterns may name as well; None for ``name``.
        """
        formats = self.linear if by_default else LinearFormats()
        for pattern, of_pattern in self.modules:
            if names_operand(pattern, name, module):
                formats = of_pattern
        return formats


def names_operand(pattern: str, name: str, module: str | None = None) -> bool:
    """Return whether a pattern of ``modules`` names an operand: by its own name or by that of its module."""
    return fnmatchcase(name, pattern) or (module is not None and fnmatchcase(module, pattern))
