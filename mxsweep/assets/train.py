"""Train the embedded model: a Llama of half a million parameters that answers the story task.

    python -m mxsweep.assets.train --out mxsweep/assets/tiny

Every batch is told afresh by the generator, from the training split. Each scene is followed by several questions
instead of one, since the scene is most of the text and only the answers teach much (a new name or thing is anybody's
guess); for the same reason the answers weigh more in the loss than the words around them. In the first stage the
scene's own sentences follow it a second and a third time, which teaches to look back at it. Starting weights:
initial.py. What is added after training, so that the model loses by quantization what large ones lose: outliers.py.

Shapes: b stories of a batch, l positions.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mxsweep.assets.initial import initialize
from mxsweep.assets.outliers import add_outliers
from mxsweep.evaluate.stories import (
    TEST_STORIES,
    Story,
    stories,
    stream,
    vocabulary,
    words,
)
from mxsweep.evaluate.words import MEN, PLACES, THINGS, WOMEN

EOS = "<|end|>"
UNKNOWN = "<|unknown|>"
PEOPLE = frozenset(WOMEN + MEN)
CONTEXT = 256
IGNORED = -100
"""The target that torch's cross entropy passes over."""

OTHER_WORDS_WEIGHT = 0.02
"""What a word that is no answer counts in the loss, an answer counting 1."""

BATCH = 32
MATRIX_LR = 5e-3
OTHER_LR = 3e-3
WARMUP_STEPS = 50
DECAY_SHARE = 0.5
"""The share of the steps, the last ones, in which the learning rate falls to zero."""


@dataclass(frozen=True)
class Stage:
    """Describe a part of the training: until which share of the steps it lasts, and what follows a scene."""

    until: float
    rehearsals: int
    questions: int


STAGES = (Stage(until=0.2, rehearsals=2, questions=1), Stage(until=1.0, rehearsals=0, questions=4))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of the stories' vocabulary; nothing is added before or after a text."""
    ids = {word: i for i, word in enumerate([EOS, UNKNOWN, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
    )


def build_model(vocab_size: int, hidden: int, layers: int, mlp: int) -> LlamaForCausalLM:
    """Return a Llama with heads of 32, two query heads to a key-value head, and tied embeddings."""
    heads = hidden // 32
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    initialize(model)
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, stage: Stage, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (input ids, target ids, which targets are answers) without end, each (b, l)."""
    tales, rng = stream("train", seed, stage.questions), random.Random(seed)
    while True:
        rows = [_row(tokenizer, one, stage.rehearsals, rng) for one in islice(tales, size)]
        longest = max(len(ids) for ids, _ in rows)
        ids_bl = torch.full((size, longest), IGNORED)
        answers_bl = torch.zeros((size, longest), dtype=torch.bool)
        for i, (ids, answers) in enumerate(rows):
            ids_bl[i, : len(ids)] = torch.tensor(ids)
            answers_bl[i] = torch.isin(torch.arange(longest), torch.tensor(answers))
        yield ids_bl[:, :-1].clamp(min=0), ids_bl[:, 1:], answers_bl[:, 1:]


def _row(
    tokenizer: PreTrainedTokenizerFast, story: Story, rehearsals: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Return the ids of a scene and of what follows, and the positions of the answers."""
    tokens, answers = words(story.scene), []
    placings = [sentence for sentence in story.scene.rstrip(".").split(". ") if sentence.split()[0] in PEOPLE]
    for sentence in (s for _ in range(rehearsals) for s in rng.sample(placings, len(placings))):
        for word in words(f"{sentence}."):
            if word in THINGS or word in PLACES:
                answers.append(len(tokens))
            tokens.append(word)
    for question in story.questions:
        tokens += words(question)
        answers.append(len(tokens) - 1)
        tokens.append(".")
    ids: Any = tokenizer.convert_tokens_to_ids(tokens[:-1])
    return [*ids, tokenizer.eos_token_id], answers


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int, log_every: int = 50
) -> float:
    """Train in place through all the stages; print and return the mean loss on answers of late."""
    optimizers = _optimizers(model)
    begun, done = time.monotonic(), 0
    recent: list[tuple[float, float]] = []
    for index, stage in enumerate(STAGES):
        examples = batches(tokenizer, seed * len(STAGES) + index, stage, BATCH)
        until = round(stage.until * steps)
        for step, (input_bl, target_bl, answers_bl) in zip(range(done, until), examples, strict=False):
            rate = min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))
            loss, answer_loss, right = _loss(model, input_bl, target_bl, answers_bl)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, base_lr in optimizers:
                optimizer.param_groups[0]["lr"] = base_lr * rate
                optimizer.step()
                optimizer.zero_grad()
            recent = [*recent, (answer_loss, right)][-log_every:]
            if (step + 1) % log_every == 0 or step + 1 == steps:
                mean_loss, mean_right = (sum(column) / len(recent) for column in zip(*recent, strict=True))
                print(
                    f"step {step + 1}/{steps}  answers: loss {mean_loss:.3f}, right {mean_right:.3f}"
                    f"  ({time.monotonic() - begun:.0f} s)",
                    flush=True,
                )
        done = until
    return mean_loss


def _optimizers(model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return Muon for the layers' matrices and AdamW for the embeddings and norms, each with its learning rate.

    AdamW alone had learned nothing of the look-up by the step at which Muon had a sixth of it right.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    muon = torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0)
    return [(muon, MATRIX_LR), (adamw, OTHER_LR)]


def _loss(
    model: LlamaForCausalLM, input_bl: torch.Tensor, target_bl: torch.Tensor, answers_bl: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    """Return the weighted loss, and of the answers alone the mean loss and the share that is right."""
    target, answers = target_bl.flatten().to(model.device), answers_bl.flatten().to(model.device)
    logits = model(input_ids=input_bl.to(model.device), use_cache=False).logits.flatten(0, 1)
    nll = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
    weight = torch.where(answers, 1.0, OTHER_WORDS_WEIGHT) * (target != IGNORED)
    with torch.no_grad():
        right = (logits.argmax(-1) == target)[answers].float().mean().item()
        answer_loss = nll[answers].mean().item()
    return (nll * weight).sum() / weight.sum(), answer_loss, right


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], batch: int = 64
) -> tuple[list[bool], list[float]]:
    """Return, for each text's last word, whether the model says that word, and the log-likelihood."""
    right, log_likelihood = [], []
    for start in range(0, len(texts), batch):
        rows = [tokenizer(text)["input_ids"] for text in texts[start : start + batch]]
        longest = max(map(len, rows))
        padded_bl = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows], device=model.device)
        logits_blv = model(input_ids=padded_bl, use_cache=False).logits
        for ids, logits_lv in zip(rows, logits_blv, strict=True):
            last_v = logits_lv[len(ids) - 2].float()
            right.append(int(last_v.argmax()) == ids[-1])
            log_likelihood.append(last_v.log_softmax(-1)[ids[-1]].item())
    return right, log_likelihood


def main() -> None:
    """Train, put outlier channels in, measure and save."""
    parser = argparse.ArgumentParser(prog="python -m mxsweep.assets.train")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--mlp", type=int, default=256)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), args.hidden, args.layers, args.mlp).to(args.device)
    begun = time.monotonic()
    loss = train(model, tokenizer, args.steps, args.seed)
    seconds = time.monotonic() - begun
    model.to("cpu").eval()
    add_outliers(model, args.seed)
    right, log_likelihood = answer(model, tokenizer, stories(TEST_STORIES))
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": args.steps,
        "seed": args.seed,
        "seconds": round(seconds),
        "train_answer_loss": round(loss, 4),
        "test_stories": len(right),
        "test_accuracy": sum(right) / len(right),
        "test_perplexity": round(math.exp(-sum(log_likelihood) / len(right)), 4),
        "torch": torch.__version__,
    }
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    GenerationConfig(eos_token_id=0, pad_token_id=0, max_new_tokens=CONTEXT // 2).save_pretrained(args.out)
    (args.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
