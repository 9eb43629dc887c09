"""Measure one architecture, a cell for each thing that mxsweep does.

A cell compares with plain transformers' logits, with what is worked out by hand in a twin of the model, or with what
mxsweep says elsewhere: the column's meaning tells which.

A cell returns what it found in a few words ("ok", "7 of 14"), is refused by mxsweep with a message, or is wrong: then
an AssertionError says what is, or whatever mxsweep raised.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from helpers.decoded import decoded
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from matrix.architectures import POSITIONS, SIZES, VOCABULARY, Architecture
from matrix.by_hand import Product, Products, input_changed, keys_and_values_changed, logits_of, overwrite, products
from mxsweep import LinearFormats, Recipe, compose, quantize_model
from mxsweep.calibrate.prepare import prepare
from mxsweep.calibrate.texts import calibration_tokens
from mxsweep.calibrate.workbench import Preparation
from mxsweep.config.run_config import RunConfig
from mxsweep.forward.scoring import Scorer, ScoringRequest
from mxsweep.model.footprint import footprint
from mxsweep.model.meta import meta_model, why_not_followed
from mxsweep.model.quantization_report import LayerReport, QuantizationReport
from mxsweep.model.residual import rotated_residual
from mxsweep.model.sites import find_sites
from mxsweep.numerics import MXFormat, quantize
from mxsweep.numerics.hadamard import hadamard
from mxsweep.terminal.errors import ConfigError

WEIGHT, INPUT = MXFormat("fp4_e2m1"), MXFormat("fp6_e2m3")
W4A6 = Recipe(LinearFormats(WEIGHT, INPUT))
WEIGHTS, INPUTS = Recipe(LinearFormats(WEIGHT)), Recipe(LinearFormats(None, INPUT))
KV = Recipe(key=WEIGHT, value=WEIGHT)

TOKENS = torch.arange(3, 67).remainder(VOCABULARY - 3).add(3).view(2, 32)
LENGTHS = (5, 9, 14, 20, 27, 33)  # of sequences that are scored, alone and together
CLOSE = 1e-4  # of the largest logit: sums in another order differ by less, another element of a format by more
EXPERTS = {int(SIZES["num_experts"]), int(SIZES["num_experts"]) + 2}  # two experts that do nothing are LongCat's
EQUAL = 1e-3  # of scores, in nats
_KEPT = tempfile.TemporaryDirectory()  # files that configs name
_IN_BLOCK = re.compile(r"\.(layers|h|blocks|block)\.\d+\.")
UNASKED = 0.01  # of the weights may stay as they are without a word
FOLLOWED_BY_VALUES = ("JetMoE", "LongCat-Flash")  # what a text reaches in them depends on values
# Sequences of six that may score otherwise in a batch: sums in another order move an element to the next value of its
# format. In Gemma 4 two elements lie on that edge: to move its embeddings by a part in 10^7 changes the same scores.
MOVED, MOVED_OF = 1, {"Gemma 4 (text)": 2}


class Case:
    """Hold an architecture's model, which cells quantize in turn, and what it was before."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.model = architecture.build()
        self.values = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.plain = logits_of(self.model, TOKENS)

    def twin(self) -> PreTrainedModel:
        """Return a second model of the same weights, whose experts multiply one by one."""
        twin = self.architecture.build()
        if twin._can_set_experts_implementation():
            twin.set_experts_implementation("eager")
        return twin

    @cached_property
    def heard(self) -> dict[str, Product]:
        """Return what a text is multiplied by, but for embeddings and the output layer."""
        twin = self.twin()
        head = twin.get_output_embeddings()
        outside = {id(parameter) for parameter in head.parameters()} if head is not None else set()
        heard = products(twin, TOKENS)
        return {name: product for name, product in heard.items() if id(twin.get_parameter(name)) not in outside}

    @cached_property
    def products(self) -> dict[str, Product]:
        """Return those in decoder blocks without routers, which have as many outputs as there are experts."""
        return {
            name: product
            for name, product in self.heard.items()
            if _IN_BLOCK.search(name) and not (len(product.shape) == 2 and product.shape[0] in EXPERTS)
        }

    def quantized(self, recipe: Recipe) -> tuple[Tensor, QuantizationReport]:
        """Return the logits of the model under a recipe, and the report."""
        with quantize_model(self.model, recipe) as report:
            return logits_of(self.model, TOKENS), report

    @cached_property
    def of_weights(self) -> tuple[Tensor, QuantizationReport]:
        """Return the same where weights alone are quantized."""
        return self.quantized(WEIGHTS)

    @cached_property
    def of_all(self) -> Recipe:
        """Return W4A6, with keys and values in four bits where these can be quantized."""
        try:
            self.quantized(KV)
        except ConfigError:
            return W4A6  # the cell of keys and values says why
        return replace(W4A6, key=WEIGHT, value=WEIGHT)

    @cached_property
    def covered(self) -> dict[str, Product]:
        """Return the products whose weight a recipe quantizes, by what the report says."""
        _, report = self.of_weights
        by_parameter: dict[str, int] = {}
        for layer in report.layers:
            name = self.parameter(layer.name)
            by_parameter[name] = by_parameter.get(name, 0) + layer.weights
        covered = {}
        for name, count in by_parameter.items():
            assert name in self.heard, f"{name} is said to be quantized, and no text is multiplied by it"
            assert name in self.products, f"{name} is quantized, and it is a router, or in no decoder block"
            whole = self.model.get_parameter(name).numel()
            assert count == whole, f"{count} of the {whole} weights of {name} are said to be quantized"
            covered[name] = self.products[name]
        return covered

    @property
    def kept(self) -> int:
        """Return how many weights stay as they are in the decoder blocks that a text goes through."""
        blocks = {name[: found.end()] for name in self.products if (found := _IN_BLOCK.search(name))}
        return sum(
            parameter.numel()
            for name, parameter in self.model.named_parameters()
            if parameter.ndim > 1
            and (found := _IN_BLOCK.search(name))
            and name[: found.end()] in blocks
            and name not in self.covered
        )

    def parameter(self, layer: str) -> str:
        """Return the parameter that holds a reported layer: the weight of a module, or one of a module of experts."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.ndim > 1]
        parts = layer.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            own = [name for name in names if name.rpartition(".")[0] == module]
            if f"{module}.weight" in own:
                return f"{module}.weight"
            last = parts[-1].removesuffix("_proj")
            for name in own:
                if name in self.heard and last in name.rpartition(".")[2].removesuffix("_proj").split("_"):
                    return name
        raise AssertionError(f"{layer} is said to be quantized, and there is no such parameter")


def same(ours: Tensor, expected: Tensor, what: str) -> None:
    """Check that logits are the same to the noise of adding up in another order."""
    assert bool(ours.isfinite().all()), f"{what}: logits are not finite"
    far = (ours - expected).abs().amax(-1) > CLOSE * float(expected.abs().max())
    assert not bool(far.any()), (
        f"{what}: {int(far.sum())} of {far.numel()} rows of logits differ, by up to {(ours - expected).abs().max():.3g}"
    )


def differs(ours: Tensor, plain: Tensor, what: str) -> None:
    """Check that quantizing did something."""
    assert float((ours - plain).abs().max()) > 10 * CLOSE * float(plain.abs().max()), f"{what}: nothing changed"


def weights(case: Case) -> str:
    """Compare with a plain run of a twin whose parameters were overwritten with what they become."""
    ours, report = case.of_weights
    twin = case.twin()
    overwrite(twin, case.covered.values(), WEIGHT)
    same(ours, logits_of(twin, TOKENS), "weights overwritten by hand")
    differs(ours, case.plain, "weights")
    left = [name for name in case.products if name not in case.covered]
    sizes = {name: case.model.get_parameter(name).numel() for name in case.products}
    if sum(sizes[name] for name in left) > UNASKED * sum(sizes.values()):
        assert report.warnings, f"{', '.join(left)}: left as they are without a warning"
    left = sorted({re.sub(r".*\.\d+\.", "", name).removesuffix(".weight") for name in left})
    found = _count(len(case.covered), len(case.products))
    return f"{found}, without {' and '.join(f'`{kind}`' for kind in left)}" if left else found


def inputs(case: Case) -> str:
    """Compare with a twin in which every product's other operand is quantized where torch is called to multiply."""
    ours, _ = case.quantized(INPUTS)
    twin = case.twin()
    with Products(twin, input_changed(case.covered, INPUT)):
        expected = logits_of(twin, TOKENS)
    same(ours, expected, "inputs quantized by hand")
    differs(ours, case.plain, "inputs")
    return _count(len(case.covered), len(case.products))


def keys_and_values(case: Case) -> str:
    """Compare with a twin in which keys and values, or latents, are quantized on their way to torch's attention."""
    ours, _ = case.quantized(KV)
    twin = case.twin()
    with keys_and_values_changed(twin, WEIGHT):
        expected = logits_of(twin, TOKENS)
    same(ours, expected, "keys and values quantized by hand")
    differs(ours, case.plain, "keys and values")
    return "latents" if any(hasattr(module, "expand_kv") for module in twin.modules()) else "ok"


def causality(case: Case) -> str:
    """Change later tokens and see that no earlier logit changes."""
    changed = TOKENS.clone()
    changed[:, 20:] = (changed[:, 20:] + 17) % (VOCABULARY - 3) + 3
    with quantize_model(case.model, case.of_all):
        before, after = (logits_of(case.model, tokens)[:, :20] for tokens in (TOKENS, changed))
    same(after, before, "earlier logits with other tokens behind")
    return "ok"


def _sequences() -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(3, VOCABULARY, length + 1).astype(np.int32) for length in LENGTHS]


def _scores(model: PreTrainedModel, sequences: Sequence[np.ndarray]) -> list[float]:
    requests = [ScoringRequest(tokens, targets=4) for tokens in sequences]
    return [score for score, _ in Scorer(model, 1024, POSITIONS).score(requests)]


def scores(case: Case) -> str:
    """Compare the scores of unquantized sequences with the log-softmax of plain transformers' logits."""
    sequences = _sequences()
    expected = []
    for tokens in sequences:
        ids = torch.from_numpy(tokens.astype(np.int64))
        log_probabilities = logits_of(case.model, ids[None, :-1])[0].double().log_softmax(-1)
        expected.append(sum(float(log_probabilities[t - 1, ids[t]]) for t in range(len(ids) - 4, len(ids))))
    for ours, by_hand in zip(_scores(case.model, sequences), expected, strict=True):
        assert abs(ours - by_hand) < EQUAL, f"a score is {ours:.6f}, and by hand {by_hand:.6f}"
    return "ok"


def _batches(case: Case, recipe: Recipe) -> str:
    sequences = _sequences()
    with quantize_model(case.model, recipe):
        together = _scores(case.model, sequences)
        alone = [_scores(case.model, [tokens])[0] for tokens in sequences]
    far = [length for a, b, length in zip(together, alone, LENGTHS, strict=True) if not abs(a - b) < EQUAL]
    # What depends on the padding moves every sequence but the longest.
    allowed = MOVED_OF.get(case.architecture.title, MOVED)
    assert len(far) <= allowed, f"scores alone and in a batch differ for {len(far)} of {len(LENGTHS)} sequences"
    return "ok"


def batches(case: Case) -> str:
    """Compare scores of sequences alone with those in one padded batch."""
    return _batches(case, case.of_all)


def stochastic_batches(case: Case) -> str:
    """Compare the same under stochastic rounding."""
    fmt, wide = replace(WEIGHT, rounding="stochastic"), replace(INPUT, rounding="stochastic")
    recipe = Recipe(LinearFormats(fmt, wide))
    if case.of_all.key is not None:
        recipe = replace(recipe, key=fmt, value=fmt)
    return _batches(case, recipe)


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = {letter: number for number, letter in enumerate(["<pad>", "<s>", "</s>", *map(chr, range(32, 126))])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=POSITIONS
    )


@cache
def _calibrated(*words: str) -> RunConfig:
    """Return the config of these words, calibrated on a few lines of text; no more of its model matters."""
    text = Path(_KEPT.name, "text.txt")
    text.write_text("".join(f"In the year {i} king {i * 7 % 13} counted {i * i} stars. " for i in range(60)))
    calibration = ["calibration=text", f"calibration.path={text}", "calibration.samples=2", "calibration.length=24"]
    return compose(["model=tiny", "model.device=cpu", *calibration, *words])


def _prepared(case: Case, *words: str) -> Preparation:
    """Have a run's remedies worked out, and forget them."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        return prepare(case.model, _tokenizer(), _calibrated(*words), {}, POSITIONS, lambda *_: None)


def gptq(case: Case) -> str:
    """See that GPTQ chooses all weights, and errs less than rounding on the first that is a parameter by itself."""
    words = ("format=w4a6", "format.activation=none", "ptq=gptq")
    chosen = decoded(_prepared(case, *words).prepared.weights)
    missing = [layer.name for layer in case.of_weights[1].layers if layer.name not in chosen]
    assert not missing, f"GPTQ chose nothing for {missing[0]}"
    unusable = [name for name, weight in chosen.items() if not bool(weight.isfinite().all())]
    assert not unusable, f"GPTQ made {unusable[0]} infinite"
    name = next((name for name in case.covered if name.removesuffix(".weight") in chosen), None)
    if name is not None:
        stored = case.model.get_parameter(name).detach()
        own = (stored if case.covered[name].summed == -1 else stored.T).contiguous()
        x = _inputs_of(case, name, _calibrated(*words))
        by_gptq, by_rounding = (
            float((x @ (own - other).T).square().sum())
            for other in (chosen[name.removesuffix(".weight")], quantize(own, WEIGHT, axis=-1))
        )
        assert by_gptq < by_rounding, f"{name} errs by {by_gptq:.4g} for GPTQ, by {by_rounding:.4g} for rounding"
    return "ok"


def _inputs_of(case: Case, name: str, config: RunConfig) -> Tensor:
    """Return what the parameter of this name is multiplied by over the calibration tokens, (T, C)."""
    seen: list[Tensor] = []

    def note(of: str, x: Tensor, summed: int) -> Tensor:
        if of == name:
            seen.append(x.movedim(summed, -1).flatten(0, -2))
        return x

    twin = case.twin()
    with Products(twin, note):
        for sequence in calibration_tokens(config.calibration, config.model, _tokenizer(), POSITIONS).sequences:
            logits_of(twin, torch.from_numpy(sequence)[None])
    return torch.cat(seen)


def budget(case: Case) -> str:
    """See that a budget is kept, by bits that are counted here, and that it is spent on what a text reaches."""
    layers, kept = case.of_weights[1].layers, case.kept
    total = sum(layer.weights for layer in layers) + kept
    least, most = ((sum(_bits(layer, width) for layer in layers) + 32 * kept) / total for width in (4, 8))
    allowed = round((least + most) / 2, 2)
    recipe = _prepared(case, "format=mxfp4", f"ptq.budget={allowed}", "ptq.formats=[mxfp4,mxfp8_e4m3]").recipe
    with quantize_model(case.model, recipe) as report:
        widths = {WEIGHT: 4, replace(WEIGHT, element="fp8_e4m3"): 8}
        bits = (sum(_bits(layer, widths[layer.weight]) for layer in report.layers) + 32 * kept) / total
    assert bits <= allowed, f"{bits} bits a weight under a budget of {allowed}"
    assert abs(bits - report.bits_per_weight) < 1e-6, f"{report.bits_per_weight} bits a weight are said to be {bits}"
    names = {layer.name for layer in layers}
    assert names == {layer.name for layer in report.layers}
    chosen = [{name for name in names if fnmatchcase(name, pattern)} for pattern, _ in recipe.modules]
    assert all(chosen) and names == set().union(*chosen)
    assert {case.parameter(name) for name in names} <= set(case.products)
    return "ok"


def _bits(layer: LayerReport, width: int) -> int:
    """Return the bits of a weight (N, C) in mxfp4 or mxfp8, with a scale of 8 bits for every 32 of a row."""
    rows, columns = layer.shape
    return layer.weights * width + 8 * rows * -(-columns // 32)


def rotation(case: Case) -> str:
    """Compare with a twin whose weights were rotated, rounded and rotated back."""
    recipe = replace(
        compose(["format=w4a6", "format.activation=none", "rotation=hadamard"]).recipe, arithmetic="native"
    )
    with quantize_model(case.model, recipe) as report:
        ours = logits_of(case.model, TOKENS)
    twin, rotated = case.twin(), 0
    with torch.no_grad():
        for site in find_sites(twin, recipe):
            stored = site.operand.matrix.view(site.operand.parameter.detach())
            basis = torch.eye(stored.shape[-1])
            if site.rotation_block is not None:
                rotated += 1
                basis = hadamard(basis, site.rotation_block)
                assert bool(((basis @ basis.T - torch.eye(len(basis))).abs() < 1e-5).all()), "no orthogonal rotation"
            stored.copy_(quantize(stored @ basis, WEIGHT, axis=-1) @ basis.T)
    same(ours, logits_of(twin, TOKENS), "weights rotated by hand")
    return _count(rotated, len(report.layers))


def residual(case: Case) -> str:
    """See that the logits are what they were in another basis of the residual stream."""
    before = {name: value.clone() for name, value in case.model.named_parameters()}
    with rotated_residual(case.model):
        ours = logits_of(case.model, TOKENS)
        moved = [name for name, value in before.items() if not torch.equal(case.model.get_parameter(name), value)]
    assert moved, "nothing was rotated"
    same(ours, case.plain, "the residual stream in another basis")
    return "ok"


def dry_run(case: Case) -> str:
    """Compare bits, bytes and warnings with those of the model on the meta device."""
    with quantize_model(case.model, W4A6) as report, tempfile.TemporaryDirectory() as folder:
        case.architecture.config().save_pretrained(folder)
        on_meta = meta_model(folder, dtype="float32", attention="auto")
        if on_meta is None:
            reason = why_not_followed(folder, dtype="float32", attention="auto")
            assert reason, "no reason is told"
            assert case.architecture.title in FOLLOWED_BY_VALUES, f"a pass is not followed without values: {reason}"
            return "left open"
        planned = footprint(on_meta, W4A6)
    assert planned.bits_per_weight == report.bits_per_weight
    assert planned.stored_bytes == report.parameter_bytes
    assert list(planned.warnings) == report.warnings
    return "ok"


def restoring(case: Case) -> str:
    """See that after all this, parameters and logits are bit for bit as before."""
    after = case.model.state_dict()
    assert after.keys() == case.values.keys()
    changed = [name for name, value in after.items() if not torch.equal(value, case.values[name])]
    assert not changed, f"{changed[0]} is not as it was"
    assert torch.equal(logits_of(case.model, TOKENS), case.plain), "the logits are not as they were"
    return "ok"


def _count(some: int, every: int) -> str:
    return "ok" if some == every else f"{some} of {every}"


@dataclass(frozen=True)
class Column:
    """Head a column of the matrix, and measure its cells."""

    title: str
    measure: Callable[[Case], str]
    meaning: str


COLUMNS = (
    Column(
        "weights",
        weights,
        "`format=w4a6` quantizes every matrix of the decoder blocks that a text is multiplied by, but for routers of "
        "experts; the logits are those of plain transformers after the same parameters were overwritten",
    ),
    Column(
        "inputs",
        inputs,
        "what these matrices are multiplied by is quantized: the logits are those of plain transformers when the other "
        "operand of each such product is quantized where torch is called",
    ),
    Column(
        "KV",
        keys_and_values,
        "`kv_quant=fp4_e2m1`: the logits are those of plain transformers when keys and values are quantized where "
        "torch's attention (or the function in the model's file) is called; *latents*: what the cache of latent "
        "attention holds, quantized where the model expands it",
    ),
    Column("causal", causality, "under `w4a6` and KV, other tokens behind it change no logit"),
    Column(
        "GPTQ",
        gptq,
        "`ptq=gptq` chooses all of these weights, and on the calibration tokens the first product whose parameter is "
        "one matrix, neither of several projections nor of several experts, errs less than when its weight is rounded",
    ),
    Column(
        "rotation",
        rotation,
        "`rotation=hadamard`: the logits are those of plain transformers with weights that were rotated, rounded and "
        "rotated back; which ones are rotated, and the transform, are taken from mxsweep, and the transform is "
        "orthogonal; *n of m*: the others are quantized without a rotation, which a run warns of",
    ),
    Column("residual", residual, "`rotation.residual=true` moves the parameters, and no logit"),
    Column(
        "budget",
        budget,
        "`ptq.budget` keeps the bits, as counted by hand and as shown, and is spent on what a text reaches",
    ),
    Column(
        "batch",
        batches,
        f"under `w4a6` and KV, scores of {len(LENGTHS)} sequences alone and in one padded batch are equal to {EQUAL}, "
        f"but for {MOVED} at most ({', '.join(f'{title}: {count}' for title, count in MOVED_OF.items())}): sums in "
        "another order may move an element to the next value of its format",
    ),
    Column("stochastic", stochastic_batches, "the same under `rounding=stochastic`"),
    Column("scores", scores, "without quantization, scores are those of plain transformers, by log-softmax"),
    Column(
        "dry run",
        dry_run,
        "bits, bytes and warnings that mxsweep tells when it plans, of the model on the meta device, are those that "
        "its run tells; *left open*: what a text reaches depends on values, which a plan says instead",
    ),
    Column("restored", restoring, "after all this, parameters and logits are bit for bit as before"),
)
REFUSED, WRONG = "refused: ", "**wrong**"


def measure(architecture: Architecture) -> dict[str, str]:
    """Return what was found in each column, by the column's title."""
    case = Case(architecture)
    return {column.title: _found(column, case) for column in COLUMNS}


def _found(column: Column, case: Case) -> str:
    try:
        return column.measure(case)
    except ConfigError as error:
        return REFUSED + _general(str(error))
    except Exception as error:  # of whatever kind: it is told, and the test fails
        return f"{WRONG} {column.title}: {type(error).__name__}: {error}"


def _general(message: str) -> str:
    """Return a message without what is of one model alone."""
    message = re.sub(r"\b[A-Z]\w*(For[A-Z]\w+|LMHead\w*)", "MODEL", message)
    message = re.sub(r"\b[A-Z]\w*(Layer|Block|Embedding|Model)\b", "CLASS", message)
    message = re.sub(r"\b(?:[a-z]\w*\.)+\d+((?:\.\w+)*)", lambda name: "BLOCK" + _within_block(name[1]), message)
    return re.sub(r"\bother \d[\d,]*", "other N", message).replace("|", "or")


def _within_block(name: str) -> str:
    return re.sub(r"\.\d+", ".N", name)
