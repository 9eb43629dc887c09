"""Describe training recipes: which format each operand gets in the three products of a linear layer. Plain data.

Legend: x (T, C) input, W (N, C) weight, y (T, N) = x W^T, g (T, N) gradient of the loss with respect to y. The products
are fprop y = x W^T, which sums over C; dgrad dx = g W, which sums over N; wgrad dW = g^T x, which sums over the tokens
T of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from mxsweep.formats.mxformat import MXFormat

# Each product with its two operands, as knobs name them: `matmuls.dgrad.grad`.
PRODUCTS = {"fprop": ("input", "weight"), "dgrad": ("grad", "weight"), "wgrad": ("grad", "input")}
OPERANDS = tuple(f"{product}.{operand}" for product, operands in PRODUCTS.items() for operand in operands)
# Operands that are made of one tensor, the one with blocks along its rows first.
OF_INPUT, OF_WEIGHT, OF_GRADIENT = (
    tuple(f"{product}.{tensor}" for product, operands in PRODUCTS.items() if tensor in operands)
    for tensor in ("input", "weight", "grad")
)
INPUT_GRADIENT, WEIGHT_GRADIENT = GRADIENTS = ("dX", "dW")  # which come out of dgrad and wgrad
HIGH_PRECISION, REQUANTIZED = BACKWARDS = ("high_precision", "requantized")  # what backward operands are made from
FIXED, BY_STEP = SIGNS = ("fixed", "step")  # whether the signs of random Hadamard matrices are drawn once, or each step

_SEEN: dict[MXFormat, MXFormat] = {}


@dataclass(frozen=True)
class OperandFormat:
    """Say what an operand of a product becomes.

    Attributes:
        fmt: of its elements and blocks. A block of ``block_size`` N lies along the dimension that the product sums over
            (the layout 1xN); a tile (R, C) takes C elements along that dimension and R across it, so that (N, 1) is the
            layout Nx1.
        prescale: what the operand is multiplied by under the scales that it has as it is, and the product divided by
            after: 0.75 keeps the largest
            value of a block from being clipped, so that stochastic rounding has no bias (Tseng et al.,
            arXiv 2502.20586).
    """

    fmt: MXFormat
    prescale: float = 1.0

    def __post_init__(self) -> None:
        # Equal formats are one object: what is kept for a format is then found without comparing its fields.
        object.__setattr__(self, "fmt", _SEEN.setdefault(self.fmt, self.fmt))

    @cached_property
    def of_columns(self) -> MXFormat:
        """Return the format for an operand whose product sums over its columns: along these lie a tile's, too."""
        if isinstance(self.fmt.block_size, int):
            return self.fmt
        turned = replace(self.fmt, block_size=self.fmt.block_size[::-1])
        return _SEEN.setdefault(turned, turned)

    def __str__(self) -> str:
        """Return the format's text with what goes beside it: ``fp4_e2m1-b32-e8m0 x0.75``.

        Four over six stands there, too, as ``4/6``: by this text trainings are known from before a format had it.
        """
        prescale = f" x{self.prescale:g}" if self.prescale != 1 else ""
        return f"{replace(self.fmt, four_over_six=False)}{prescale}{' 4/6' if self.fmt.four_over_six else ''}"


@dataclass(frozen=True)
class ProductFormats:
    """Hold the formats of a product's two operands, in the order of PRODUCTS; None leaves an operand as it is.

    Attributes:
        hadamard: both operands are rotated along the dimension that the product sums over, by a block-diagonal
            orthogonal matrix of Hadamard matrices of this order with random signs; 0: not at all.
    """

    first: OperandFormat | None = None
    second: OperandFormat | None = None
    hadamard: int = 0

    @property
    def is_plain(self) -> bool:
        """Return whether neither operand is quantized."""
        return self.first is None and self.second is None


@dataclass(frozen=True)
class LayerFormats:
    """Hold the formats of a linear layer's three products."""

    fprop: ProductFormats = ProductFormats()
    dgrad: ProductFormats = ProductFormats()
    wgrad: ProductFormats = ProductFormats()

    @property
    def is_plain(self) -> bool:
        """Return whether nothing is quantized, so that the layer may stay as it is."""
        return self.fprop.is_plain and self.dgrad.is_plain and self.wgrad.is_plain

    @cached_property
    def by_operand(self) -> dict[str, OperandFormat | None]:
        """Return the format of each operand by its name, as ``dgrad.grad``."""
        return dict(self.operands())

    @cached_property
    def by_format_alone(self) -> frozenset[str]:
        """Return the operands that become what their format makes of a tensor, without rotation or prescale."""
        return frozenset(
            name
            for name, operand in self.operands()
            if operand is not None and operand.prescale == 1 and not getattr(self, name.partition(".")[0]).hadamard
        )

    @cached_property
    def prescales(self) -> dict[str, float]:
        """Return by its name what each product is divided by, as its operands were multiplied."""
        scales = dict.fromkeys(PRODUCTS, 1.0)
        for name, operand in self.operands():
            scales[name.partition(".")[0]] *= 1.0 if operand is None else operand.prescale
        return scales

    @cached_property
    def rotations(self) -> dict[str, int]:
        """Return by its name the order of each product's rotation; 0 where there is none, or nothing is quantized."""
        products: dict[str, ProductFormats] = {name: getattr(self, name) for name in PRODUCTS}
        return {name: 0 if formats.is_plain else formats.hadamard for name, formats in products.items()}

    @cached_property
    def by_token(self) -> LayerFormats:
        """Return these formats, with fprop's inputs in blocks along each token: none depends on a later one."""
        operand = self.fprop.first
        if operand is None or isinstance(operand.fmt.block_size, int):
            return self
        rows, columns = operand.fmt.block_size
        along = replace(operand, fmt=replace(operand.fmt, block_size=rows * columns))
        return replace(self, fprop=replace(self.fprop, first=along))

    @property
    def input_tile(self) -> tuple[int, int] | None:
        """Return the tile (tokens, channels) of fprop's inputs, where it makes tokens share a scale."""
        operand = self.fprop.first
        if operand is None or isinstance(operand.fmt.block_size, int):
            return None
        tile = operand.fmt.block_size
        return tile if tile[0] > 1 or operand.fmt.tensor_scale else None

    def operands(self) -> Iterator[tuple[str, OperandFormat | None]]:
        """Yield each operand by its name, as ``dgrad.grad``, with its format."""
        for product, names in PRODUCTS.items():
            formats: ProductFormats = getattr(self, product)
            yield from zip((f"{product}.{name}" for name in names), (formats.first, formats.second), strict=True)

    def along_tokens(self) -> Iterator[tuple[str, int]]:
        """Yield how many tokens each block or rotation takes that lies along the tokens in wgrad, by what it is of."""
        if not self.wgrad.is_plain and self.wgrad.hadamard:
            yield "wgrad.hadamard", self.wgrad.hadamard
        for name, operand in self.operands():
            size = operand.fmt.block_size if operand is not None and name.startswith("wgrad") else 0
            size = size if isinstance(size, int) else size[1]
            if size:
                yield name, size


@dataclass(frozen=True)
class TrainingRecipe:
    """Say what is quantized in a model while it is trained, and by which backend.

    Attributes:
        linear: formats of the linear layers and experts of the decoder blocks, and of lm_head.
        modules: (glob pattern over names of operands and of their modules, formats) pairs; where several match an
            operand, the last wins.
        keep_high: what stays as it is, whatever ``modules`` says: ``lm_head``, ``embeddings``, ``first`` or ``first:N``
            and ``last`` or ``last:N`` decoder blocks, or glob patterns over names of modules.
        backward: whether the operands of dgrad and wgrad that fprop has, too, are made from the tensors as they were
            (HIGH_PRECISION), or from what fprop quantized (REQUANTIZED).
        signs: FIXED or BY_STEP.
        backend, arithmetic: as in :func:`mxsweep.numerics.quantize`.
        seed: of stochastic rounding and of signs.
    """

    linear: LayerFormats = LayerFormats()
    modules: tuple[tuple[str, LayerFormats], ...] = ()
    keep_high: tuple[str, ...] = field(default=("lm_head", "embeddings"))
    backward: str = HIGH_PRECISION
    signs: str = FIXED
    backend: str = "torch"
    arithmetic: str = "native"
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """Return whether nothing at all is quantized."""
        return self.linear.is_plain and all(formats.is_plain for _, formats in self.modules)
