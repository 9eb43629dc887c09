"""Finetune a model's quantized weights by what the model answers: quantization-aware training from what GPTQ chose.

GPTQ makes the error of each layer's output small, and tuning that of each block's. Here a step takes the whole model as
the run quantizes it, inputs, keys and values too, and moves all weights at once by the gradient of its divergence from
the unquantized model. The gradient goes straight through every rounding; weights move as in solvers/autoround.py, by
rates that add up to `REACH` (n + 1) / n ulps in n steps, and stay on the scales that they have. Nothing else is
trained, so that what comes of it is codes in the places of GPTQ's, and packs as these do. What is quantized besides, as
a head or an embedding that `modules` names, is rounded as in the run, and stays.

Every `HELD_BACK`-th calibration sequence is not stepped on. The start and the weights on the way are compared by their
divergence on these sequences alone: on those that are stepped on it becomes less with too little text as well, and then
says nothing of other text.

What the divergence is: calibrate/followers.py; here it is meant in the mean over the tokens of sequences.

Legend: B sequences of T tokens in a call, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mxsweep.calibrate.followers import Followers
from mxsweep.calibrate.stages import Matrices
from mxsweep.calibrate.tuned import Tuned
from mxsweep.calibrate.tuning_steps import TUNED_SEQUENCES, Groups, tune
from mxsweep.formats.recipe import Recipe
from mxsweep.forward.batches import Batch, BatchLimits, Passage, batch_tokens_on, unpadded_batches
from mxsweep.forward.engine import Engine, vocabulary_size
from mxsweep.forward.sequence_loss import BATCH_LOGITS, TOO_LONG
from mxsweep.machine.out_of_memory import is_out_of_memory
from mxsweep.model.prepared import Prepared
from mxsweep.model.quantize import quantize_model
from mxsweep.model.rope_lengths import RopeLengths
from mxsweep.model.sites import find_sites
from mxsweep.numerics import Encoded
from mxsweep.solvers.autoround import by_a_margin, rates
from mxsweep.terminal.errors import ConfigError
from mxsweep.terminal.progress_callback import Progress, silent

log = logging.getLogger(__name__)

REACH = 0.5  # ulps: what a weight moves by where its gradient never turns, beside the first of the falling rates
HELD_BACK = 8
CALL_LOGITS = {"cuda": 2**30, "cpu": 2**26}  # B T V of a call: 2 GiB in bfloat16, and their gradient as much


@dataclass(frozen=True)
class _Divergence:
    """Measure how far the model as it is has gone from what it was.

    Attributes:
        sequences: ids (T,) int64.
        followers: of each sequence.
        of_batch: the numbers of each batch's sequences.
        most: tokens of a call, which may be of one sequence that has more.
    """

    model: PreTrainedModel
    sequences: Sequence[Tensor]
    followers: Sequence[Followers]
    of_batch: Sequence[range]
    most: int
    rope_lengths: RopeLengths

    @staticmethod
    def of(model: PreTrainedModel, batches: Sequence[Tensor], followers: Sequence[Followers], most: int) -> _Divergence:
        """Measure that on the sequences of batches (B, T), in calls of ``most`` tokens."""
        sequences = [ids for batch in batches for ids in batch]
        ends = list(accumulate(len(batch) for batch in batches))
        of_batch = [range(end - len(batch), end) for end, batch in zip(ends, batches, strict=True)]
        return _Divergence(model, sequences, followers, of_batch, most, RopeLengths(model))

    def largest_call(self, count: int) -> int:
        """Return the most tokens of a call that can be of fewer sequences, among any ``count``; 0 where none can."""
        lengths = Counter(len(sequence) for sequence in self.sequences)
        calls = ((min(count, there, self.most // length), length) for length, there in lengths.items())
        return max((together * length for together, length in calls if together > 1), default=0)

    def calls_of(self, batches: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the numbers of sequences of one length that are read together."""
        by_length: dict[int, list[int]] = {}
        for number in (number for batch in batches for number in self.of_batch[batch]):
            by_length.setdefault(len(self.sequences[number]), []).append(number)
        calls = []
        for length, numbers in by_length.items():
            together = max(1, self.most // length)
            calls += [tuple(numbers[start : start + together]) for start in range(0, len(numbers), together)]
        return calls

    def of_call(self, call: tuple[int, ...]) -> Tensor:
        ids = torch.stack([self.sequences[number] for number in call]).to(self.model.device)
        self.rope_lengths.forget()
        logits = self.model(input_ids=ids, use_cache=False).logits
        followers = Followers.together([self.followers[number] for number in call], logits.device)
        return followers.divergence(logits.flatten(0, 1))

    def mean(self) -> float:
        """Return the divergence of a token in the mean, nats."""
        sums = [float(self.of_call(call)) for call in self.calls_of(range(len(self.of_batch)))]
        return sum(sums) / sum(len(sequence) for sequence in self.sequences)


@torch.no_grad()
def finetune(
    model: PreTrainedModel,
    recipe: Recipe,
    prepared: Prepared,
    sequences: Sequence[np.ndarray],
    weights: Mapping[str, Encoded],
    steps: int,
    progress: Progress = silent,
) -> Tuned:
    """Return the weights of the least divergence that was seen in ``steps`` steps, and the first and the least.

    These are divergences on the sequences that are held back: the first, and each `HELD_BACK`-th after it.

    Args:
        model: unquantized; it is quantized inside, and afterwards as before.
        prepared: what else was worked out, as key factors; its weights are not looked at.
        sequences: calibration tokens (T,), two or more.
        weights: what finetuning begins with, by operand name.

    Raises:
        ConfigError: as :func:`mxsweep.model.quantize.quantize_model`; fewer than two sequences; one that does not fit
            in memory by itself; an unquantized model whose logits are not finite.
    """
    refuse_too_few(sequences)
    held = unpadded_batches(sequences[::HELD_BACK], model.device)
    groups = Groups.draw([one for number, one in enumerate(sequences) if number % HELD_BACK], model.device)
    read = [(batches, _followers(model, batches)) for batches in (groups.batches, held)]
    most = CALL_LOGITS.get(model.device.type, CALL_LOGITS["cpu"]) // vocabulary_size(model)
    sites = [site for site in find_sites(model, recipe, prepared.input_transforms) if site.name in weights]
    by_step = rates(steps, REACH) if sites else []  # a head alone may be quantized, which is not finetuned
    with quantize_model(model, recipe, prepared=replace(prepared, weights=weights), measure=False):
        matrices = Matrices(model, sites)
        while True:
            for name, weight in weights.items():
                matrices.put_encoded(name, weight)
            stepped, checked = (_Divergence.of(model, batches, followers, most) for batches, followers in read)
            try:
                steps_of = groups.steps()
                tuned = tune(matrices, sites, weights, stepped, checked.mean, steps_of, by_step, progress, by_a_margin)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                most = max(stepped.largest_call(TUNED_SEQUENCES), checked.largest_call(len(sequences))) // 2
                if not most:
                    raise _too_long(sequences) from error
            # Here, where the error is gone, and with it the frames that hold the tensors of the failed pass.
            torch.cuda.empty_cache()
    if tuned.errors.best is not None:
        log.info(
            "Finetuned: on the calibration tokens that are held back the divergence from the unquantized model goes "
            "from %.4f to %.4f nats a token",
            *(tuned.errors.first, tuned.errors.best),
        )
    return tuned


def refuse_too_few(sequences: Sequence[np.ndarray]) -> None:
    """Raise ConfigError where calibration tokens are too short to hold back a part."""
    if len(sequences) < 2:
        raise ConfigError(
            "calibration: the text comes out as one sequence, and ptq=qat holds one back; allowed with it: more text, "
            "or a smaller calibration.length"
        )


def _followers(model: PreTrainedModel, batches: Sequence[Tensor]) -> list[Followers]:
    """Return what the model as it is says of each sequence, in the order of the batches (B, T)."""
    passages = [Passage(ids.numpy()) for batch in batches for ids in batch]
    limits = BatchLimits(min(batch_tokens_on(model.device), BATCH_LOGITS // vocabulary_size(model)), padded=False)
    found: dict[int, Followers] = {}
    for batch, of_batch in Engine(model, limits, TOO_LONG).read(passages, _of_each):
        found |= zip(batch.numbers, of_batch, strict=True)
    # A token that cannot come has a probability of 0, and no more; what is NaN comes of logits that are NaN or inf.
    if any(bool(one.log_p.isnan().any()) for one in found.values()):
        raise ConfigError(
            "ptq.method: on the calibration tokens the unquantized model's own logits are not finite, so nothing can "
            "be finetuned toward them; allowed: another ptq.method, or a model.dtype with a wider range"
        )
    return [found[number] for number in range(len(passages))]


def _of_each(batch: Batch, logits: Tensor) -> list[Followers]:
    return [Followers.of(of_one) for of_one in batch.split(logits)]


def _too_long(sequences: Sequence[np.ndarray]) -> ConfigError:
    longest = max(len(sequence) for sequence in sequences)
    return ConfigError(
        f"calibration.length: a sequence of {longest:,} tokens and the gradients of all weights do not fit in GPU "
        "memory; allowed: a smaller one, or another ptq.method"
    )
