"""What is evaluated: a model, its tokenizer and LAMBADA's rows.

A format's speed depends on the shapes of the tensors, not on their values, so where no checkpoint is at hand one of
Llama-3.2-1B's shape with random weights does. Its accuracy and perplexity mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, BenchmarkError, positive, read_rows, subset

ROPE_3_2 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; ``tokenizer_entries`` is of a tokenizer trained for it, if none is given."""

    name: str
    config: dict[str, Any]
    tokenizer_entries: int


SHAPES = {
    "1b": Shape(
        "Llama-3.2-1B",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
        },
        tokenizer_entries=16384,
    ),
    "tiny": Shape(
        "a Llama of two layers",
        {
            "vocab_size": 32768,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "intermediate_size": 256,
        },
        tokenizer_entries=512,
    ),
}


@dataclass(frozen=True)
class Material:
    """What a benchmark evaluates.

    Attributes:
        model: a checkpoint's folder, tokenizer included.
        data: a JSON-lines file of LAMBADA's rows; ``rows`` of them.
        work: a folder for files of the benchmark's own.
        notes: what a reader of the figures must know about model, tokenizer and data.
    """

    model: Path
    data: Path
    rows: int
    work: Path
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the JSON output."""
        return {"model": str(self.model), "data": str(self.data), "rows": self.rows, "notes": self.notes}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is evaluated."""
    group = parser.add_argument_group("what is evaluated")
    group.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="a checkpoint with its tokenizer (default: random weights of the shape that --shape names)",
    )
    group.add_argument(
        "--shape", choices=SHAPES, default="1b", help="of random weights: Llama-3.2-1B's, or tiny for a test (1b)"
    )
    group.add_argument("--seed", type=int, default=0, help="of random weights (0)")
    group.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="goes with random weights (default: a byte-level BPE trained on the text that is evaluated)",
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="rows of lambada_openai, JSON lines with a field text (default: data/lambada_openai_test.jsonl in "
        "$MXSWEEP_SHARED, or in ../shared beside the repository)",
    )
    group.add_argument(
        "--limit", type=positive, metavar="N", help="N rows, spread evenly over the file (default: all of them)"
    )
    group.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keep the checkpoint and other files here, and use a checkpoint found here again (default: a temporary "
        "folder, deleted at the end)",
    )


@contextmanager
def prepared(args: argparse.Namespace) -> Iterator[Material]:
    """The material that the options of :func:`add_arguments` ask for."""
    if args.model is not None and args.tokenizer is not None:
        raise BenchmarkError("--tokenizer goes with random weights; a checkpoint named with --model brings its own")
    if args.model is not None and not (args.model / "config.json").is_file():
        raise BenchmarkError(f"--model {args.model}: no checkpoint there (no config.json)")
    source = find_data(args.data)
    with _work_folder(args.work) as work:
        data, rows = subset(source, args.limit, work)
        of_all = "all of them" if data == source else f"{rows:,} of {len(read_rows(source)):,}, spread evenly"
        notes = [f"Data: {source.name}, {rows:,} examples ({of_all})"]
        if args.model is None:
            model, built = random_checkpoint(work, SHAPES[args.shape], args.seed, args.tokenizer, source)
            notes += built
        else:
            model = args.model.resolve()
            notes.append(f"Model: {model}")
        notes.append(_token_note(model, data))
        yield Material(model, data, rows, work, notes)


def with_material(name: str, args: argparse.Namespace, body: Callable[[argparse.Namespace, Material], int]) -> int:
    """The exit code of ``body`` on the material, or 2 with the reason where benchmark ``name`` cannot begin."""
    try:
        with prepared(args) as material:
            return body(args, material)
    except BenchmarkError as error:
        print(f"benchmarks.{name}: {error}", file=sys.stderr)
        return 2


def find_data(asked: Path | None) -> Path:
    """LAMBADA's rows: the file asked for, or the project's copy."""
    if asked is not None:
        if not asked.is_file():
            raise BenchmarkError(f"--data {asked}: no such file")
        return asked.resolve()
    shared = Path(os.environ.get("MXSWEEP_SHARED", REPOSITORY.parent / "shared"))
    path = shared / "data" / "lambada_openai_test.jsonl"
    if not path.is_file():
        raise BenchmarkError(
            f"{path} is not there: name a file with lambada_openai's rows with --data, or with MXSWEEP_SHARED a folder "
            "that has it below data/"
        )
    return path.resolve()


@contextmanager
def _work_folder(asked: Path | None) -> Iterator[Path]:
    if asked is None:
        with tempfile.TemporaryDirectory(prefix="mxsweep-benchmark-") as folder:
            yield Path(folder)
    else:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked.resolve()


def random_checkpoint(
    work: Path, shape: Shape, seed: int, tokenizer: Path | None, text: Path
) -> tuple[Path, list[str]]:
    """A checkpoint of random weights in ``work``, made unless the same one is there.

    Returns:
        Its folder, and notes about what it is.
    """
    folder = work / f"random-{shape.config['num_hidden_layers']}x{shape.config['hidden_size']}"
    asked = {"config": shape.config, "seed": seed, "tokenizer": str(tokenizer or f"trained on {text}")}
    made = folder / "made.json"  # written last: without it the checkpoint is not whole
    if made.is_file() and json.loads(made.read_text(encoding="utf-8"))["asked"] == asked:
        return folder, [*json.loads(made.read_text(encoding="utf-8"))["notes"], f"(checkpoint found in {work})"]
    started = time.perf_counter()
    folder.mkdir(exist_ok=True)
    notes = [
        f"Model: random weights (seed {seed}, bfloat16) of the shape of {shape.name}; accuracy and perplexity mean "
        "nothing",
        _save_tokenizer(folder, shape, tokenizer, text),
    ]
    parameters = _save_weights(folder, shape, seed)
    notes[0] += f"; {parameters / 1e6:,.1f} M parameters, made in {time.perf_counter() - started:.1f} s"
    made.write_text(json.dumps({"asked": asked, "notes": notes}), encoding="utf-8")
    return folder, notes


def _save_weights(folder: Path, shape: Shape, seed: int) -> int:
    """Draw and save the weights; returns how many there are.

    The model is made on the meta device, for its parameters' names and shapes only: its own initialisation would
    draw every weight in float32 on the CPU.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        **shape.config,
        tie_word_embeddings=True,
        rope_parameters=ROPE_3_2,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, parameter in model.named_parameters():  # lm_head is tied to the embedding, and not listed
        weight = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
        if parameter.dim() == 1:
            weight.fill_(1.0)  # the norms
        else:
            weight.normal_(0.0, config.initializer_range, generator=generator)
        weights[name] = weight
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    parameters = sum(weight.numel() for weight in weights.values())
    del weights
    if device == "cuda":
        torch.cuda.empty_cache()
    return parameters


def _save_tokenizer(folder: Path, shape: Shape, given: Path | None, text: Path) -> str:
    """Save the given tokenizer or train one; returns a note about it."""
    from transformers import AutoTokenizer

    if given is None:
        _train_tokenizer(text, shape.tokenizer_entries).save_pretrained(folder)
        return (
            f"Tokenizer: byte-level BPE, at most {shape.tokenizer_entries:,} entries, trained on the evaluated file "
            "itself"
        )
    tokenizer = AutoTokenizer.from_pretrained(given)
    if len(tokenizer) > shape.config["vocab_size"]:
        raise BenchmarkError(
            f"--tokenizer {given}: {len(tokenizer):,} entries do not fit a vocabulary of {shape.config['vocab_size']:,}"
        )
    tokenizer.save_pretrained(folder)
    return f"Tokenizer: {given}, {len(tokenizer):,} entries"


def _train_tokenizer(text: Path, entries: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[bos, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["text"] for row in read_rows(text)), trainer)
    # As Llama 3's: a text begins with bos.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, model_max_length=131072)


def _token_note(model: Path, data: Path) -> str:
    """How long the examples are: the figures are per example, and an example's cost is its tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = [len(ids) for ids in tokenizer([row["text"] for row in read_rows(data)])["input_ids"]]
    return f"Tokens: {sum(lengths):,}, {sum(lengths) / len(lengths):.1f} an example on average, {max(lengths)} at most"
