"""Which format each kind of tensor gets. Plain data: no torch, no config."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from mxsweep.numerics import MXFormat


@dataclass(frozen=True)
class LinearFormats:
    """What one linear layer's weight and input become; None leaves it as it is."""

    weight: MXFormat | None = None
    activation: MXFormat | None = None


@dataclass(frozen=True)
class Recipe:
    """What is quantized in a model, and by whom.

    Attributes:
        linear: formats of the linear layers of the decoder blocks (not of lm_head, not of embeddings).
        key, value: formats of keys and values along head_dim, as attention reads them; None leaves them.
        modules: (glob pattern over module names, formats) pairs; where several match a module, the last wins.
        backend, arithmetic: as in :func:`mxsweep.numerics.quantize`.
        seed: of stochastic rounding.
    """

    linear: LinearFormats = LinearFormats()
    key: MXFormat | None = None
    value: MXFormat | None = None
    modules: tuple[tuple[str, LinearFormats], ...] = ()
    backend: str = "torch"
    arithmetic: str = "native"
    seed: int = 0

    def formats(self) -> list[MXFormat]:
        """Every format that some tensor gets, each once."""
        formats = [self.key, self.value]
        for linear in (self.linear, *(linear for _, linear in self.modules)):
            formats += [linear.weight, linear.activation]
        return list(dict.fromkeys(fmt for fmt in formats if fmt is not None))

    @property
    def is_baseline(self) -> bool:
        """Whether nothing at all is quantized."""
        return not self.formats()

    def formats_of(self, name: str, in_decoder_block: bool) -> LinearFormats:
        """The formats of the module ``name``; outside the decoder blocks only ``modules`` can give any."""
        formats = self.linear if in_decoder_block else LinearFormats()
        for pattern, own in self.modules:
            if fnmatchcase(name, pattern):
                formats = own
        return formats


def in_decoder_block(name: str) -> bool:
    """Whether a module belongs to a decoder block: those are the numbered children of a list (model.layers.0.…)."""
    return any(part.isdigit() for part in name.split("."))
