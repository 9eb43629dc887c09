"""Count a model's weights by what becomes of them, and warn where many stay as they are without being asked for.

A number such as 4.25 bits a weight says something about a model only if it is over all weights of the decoder blocks.
Some of these may be out of reach, as a layer of a kind that is not known: they are counted here whatever they are,
since what is counted is the parameters of the blocks that a text goes through, and not what could be quantized. What no
text reaches decides no result, and is not counted. Matrices are counted, that is parameters of two dimensions or more;
norms and biases, of one, are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from mxsweep.formats.recipe import MOST_LEFT, Recipe
from mxsweep.model.decoder import block_around, decoder_blocks, without_numbers
from mxsweep.model.operands import Operand, find_operands
from mxsweep.model.probe import probe
from mxsweep.model.sites import Site
from mxsweep.numerics.bases import matrix_elements

MOST_KINDS = 4  # named in a warning


@dataclass(frozen=True)
class Left:
    """Count matrices of one kind that stay as they are though nothing asks for it."""

    matrices: int
    weights: int


@dataclass(frozen=True)
class Stored:
    """Count what storing a model takes, and what becomes of the weights of its decoder blocks.

    Attributes:
        parameters: each counted once, however many modules share it.
        bits: a parameter that modules share in one format is stored once, in two formats twice: an lm_head in int8
            that is tied to an embedding left as it is takes both.
        quantized: elements that get a format, in the decoder blocks or elsewhere.
        quantized_bits: what these take, scales included.
        block_weights, block_weights_kept: elements of the matrices in the decoder blocks that a text reaches; those of
            them that stay as they are.
        block_bits_kept: what the latter take.
        input_matrix_bits: what the matrices take, beside the parameters, that inputs are multiplied by under a rotation
            with matrices of each input's own, in float32 as they are applied; 0 under any other.
        unreached: elements of the model's matrices that no text reaches, wherever they are.
        left: of those that stay, those that neither a pattern of ``modules`` nor the format asks to leave, by kind.
    """

    parameters: int
    bits: int
    quantized: int
    quantized_bits: int
    block_weights: int
    block_weights_kept: int
    block_bits_kept: int
    input_matrix_bits: int
    unreached: int
    left: Mapping[str, Left]

    @staticmethod
    def of(model: PreTrainedModel, sites: Sequence[Site], recipe: Recipe) -> Stored:
        """Count for ``model``, loaded or on the meta device, before anything is replaced at ``sites``."""
        at: dict[int, list[Site]] = defaultdict(list)
        for site in sites:
            if site.formats.weight is not None:
                at[id(site.operand.parameter)].append(site)
        blocks, reached = decoder_blocks(model), probe(model)
        numel: dict[int, int] = {}
        bits: dict[tuple[int, tuple[str, ...]], int] = {}
        quantized = quantized_bits = block_weights = kept = kept_bits = 0
        unreached: dict[int, int] = {}
        left: dict[str, int] = {}
        matrices: dict[str, list[Operand]] = defaultdict(list)
        for operand in find_operands(model).values():
            matrices[f"{operand.module_name}.{operand.matrix.parameter}"].append(operand)
        for name, parameter in _parameters(model):
            here = [site for site in at[id(parameter)] if _is_of(site.name, name)]
            changed = sum(site.operand.size for site in here)
            changed_bits = sum(site.formats.stored_bits(site.operand.shape) for site in here)
            plain, width = parameter.numel() - changed, parameter.itemsize * 8
            numel[id(parameter)] = parameter.numel()
            formats = tuple(f"{site.operand.name if len(here) > 1 else ''} {site.formats.weight}" for site in here)
            bits[id(parameter), formats] = changed_bits + plain * width
            quantized, quantized_bits = quantized + changed, quantized_bits + changed_bits
            if parameter.ndim > 1 and name.rpartition(".")[0] not in reached:
                unreached[id(parameter)] = parameter.numel()
            elif parameter.ndim > 1 and block_around(name, blocks) is not None:
                block_weights += parameter.numel()
                kept, kept_bits = kept + plain, kept_bits + plain * width
                # Where some matrices of a parameter get a format, patterns leave the others.
                if plain and not here and not _asks_to_leave(recipe, name, matrices.get(name, [])):
                    left[name] = plain
        return Stored(
            sum(numel.values()),
            sum(bits.values()),
            quantized,
            quantized_bits,
            block_weights,
            kept,
            kept_bits,
            _input_matrix_bits(sites),
            sum(unreached.values()),
            _by_kind(blocks, left),
        )

    @property
    def bits_per_weight(self) -> float | None:
        """Return the bits of a weight, scales included, over the decoder blocks and what else is quantized.

        None where nothing is quantized.
        """
        if not self.quantized:
            return None
        return (self.quantized_bits + self.block_bits_kept) / (self.quantized + self.block_weights_kept)

    def bits_under(self, budget: float) -> float:
        """Return the bits that storing the model takes where a weight, over the same, takes ``budget`` on average."""
        weights = self.quantized + self.block_weights_kept
        return self.bits - (self.quantized_bits + self.block_bits_kept) + budget * weights

    @property
    def share_left(self) -> float:
        """Return the share of the decoder blocks' weights that stay as they are though nothing asks for it."""
        return sum(one.weights for one in self.left.values()) / self.block_weights if self.left else 0.0

    @property
    def warnings(self) -> list[str]:
        """Return the warning that more of the decoder blocks stays as it is than a reader expects; none where not."""
        if self.share_left <= MOST_LEFT or self.bits_per_weight is None:
            return []
        most = sorted(self.left.items(), key=lambda one: -one[1].weights)
        kinds = [f"{kind} ({one.matrices}, {one.weights / self.block_weights:.1%})" for kind, one in most]
        named = first_kinds(kinds, MOST_KINDS)
        patterns = ", ".join(f"*.{kind}: none" for kind, _ in most)
        return [
            f"{self.share_left:.1%} of the weights in the decoder blocks are not quantized, and nothing asks for that: "
            f"{named}. They are parameters that mxsweep cannot replace, and their inputs stay as they are, "
            f"too. bits/weight counts them: {self.bits_per_weight:.4g}, where the quantized ones take "
            f"{self.quantized_bits / self.quantized:.4g}. If that is meant, say so: "
            f"modules={{{patterns}}}"
        ]


def _input_matrix_bits(sites: Sequence[Site]) -> int:
    """Count the bits of the matrices of inputs, those of each input once, however many operands read it."""
    elements = {
        site.input_name: matrix_elements(site.operand.shape[1], site.rotation.block)
        for site in sites
        if site.rotation is not None and site.has_own_basis
    }
    return 32 * sum(elements.values())


def first_kinds(kinds: Sequence[str], most: int) -> str:
    """Return the first ``most`` of what is said of kinds, and how many more there are."""
    more = [f"{len(kinds) - most} more kinds"] if len(kinds) > most else []
    return ", ".join([*kinds[:most], *more])


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield each module's own parameters under full names; a shared one once for each module that holds it."""
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{name}.{own}" if name else own, parameter


def _is_of(operand: str, parameter: str) -> bool:
    """Return whether an operand is of the module that holds the parameter, which others may hold as well."""
    module = parameter.rpartition(".")[0]
    return operand == module or operand.startswith(f"{module}.")


def _asks_to_leave(recipe: Recipe, name: str, matrices: Sequence[Operand]) -> bool:
    """Return whether the format, or patterns of ``modules``, ask to leave the parameter of this name as it is.

    A parameter may be named itself, by its module, or by all the matrices that it holds.
    """
    asked = [recipe.formats_of(each, True).weight is None for each in (name, name.rpartition(".")[0])]
    of_matrices = [recipe.formats_of(each.name, True, each.module_name).weight is None for each in matrices]
    return any(asked) or (bool(of_matrices) and all(of_matrices))


def _by_kind(blocks: Collection[str], left: Mapping[str, int]) -> dict[str, Left]:
    """Sum up by the names that parameters have within their blocks, with * for the numbers of parts."""
    kinds: dict[str, Left] = {}
    for name, weights in left.items():
        inside = name.removeprefix(f"{block_around(name, blocks)}.").removesuffix(".weight")
        kind = without_numbers(inside)
        before = kinds.get(kind, Left(0, 0))
        kinds[kind] = Left(before.matrices + 1, before.weights + weights)
    return kinds
