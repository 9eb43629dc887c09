"""Hold the typed values of a training: how long and how it is trained, on which text, and from which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mxsweep.config.option_files import option_names, read_option

FROM_SCRATCH, FINETUNE = "from_scratch", "finetune"
SIZES = ("hidden", "layers", "heads", "kv_heads", "mlp")  # of a random model


@dataclass(frozen=True)
class TrainConfig:
    """Hold what is below ``train``; the fields are those of ``conf/config.yaml``, with ``method`` as ``train``.

    Attributes:
        tokens, steps: how long; one of them is None.
        batch: sequences of a step; ``length`` tokens of a sequence; ``micro_batch`` sequences at a time.
        lr: the highest learning rate; ``warmup`` and ``decay`` shares of the steps; ``final_lr`` a share of ``lr``.
        dtype: of the products and activations; ``master_dtype`` of the weights and of what the optimizer keeps.
        eval_every, checkpoint_every, measure_every: steps between them; None for at the end only.
        eval_sequences: held-out sequences that the validation loss is of.
        keep: newest checkpoints that are kept until the training is done.
        processes: how many train one model; ``parallel`` is how they share it.
    """

    method: str
    tokens: int | None
    steps: int | None
    batch: int
    length: int
    micro_batch: int | Literal["auto"]
    optimizer: str
    lr: float
    schedule: str
    warmup: float
    decay: float
    final_lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float | None
    dtype: str
    master_dtype: str
    eval_every: int | None
    eval_sequences: int
    checkpoint_every: int | None
    measure_every: int | None
    keep: int
    processes: int
    parallel: str
    compile: bool

    @property
    def trains(self) -> bool:
        """Return whether anything is trained."""
        return self.method in (FROM_SCRATCH, FINETUNE)

    @property
    def total_steps(self) -> int:
        """Return how many steps are taken: as many as it takes to see ``tokens``, the last one whole."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // (self.batch * self.length))


@dataclass(frozen=True)
class CorpusConfig:
    """Hold what is below ``corpus``: the text that is trained on.

    Attributes:
        source: "stories" (embedded), "text" (a file) or "hub" (a data set).
        path: of text a UTF-8 file (also .xz, .gz, or .jsonl), of hub a name or a folder.
        name, split, field: of hub: configuration, split, and the field of a row (also of a .jsonl file's).
        heldout: a file that the validation loss is of; None: the last ``heldout_share`` of the corpus.
    """

    source: str
    path: str | None
    name: str | None
    split: str
    field: str
    heldout: str | None
    heldout_share: float


@dataclass(frozen=True)
class InitConfig:
    """Hold what is below ``init``: the weights that a training begins with.

    Attributes:
        source: "random": a Llama of the sizes below; "model": the run's ``model``.
        tokenizer: of a random one: "auto" (the embedded model's for stories, else bytes), "bytes", or a folder.
    """

    source: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tokenizer: str

    @property
    def is_random(self) -> bool:
        """Return whether weights are random, of the sizes given, and none are loaded."""
        return self.source == "random"

    @property
    def sizes(self) -> dict[str, int]:
        """Return the sizes of a random one."""
        return {name: getattr(self, name) for name in SIZES}

    @property
    def label(self) -> str:
        """Return what tables call a random one: ``llama-10m`` for the sizes of ``init=10m``, else its parameters."""
        for name in option_names("init"):
            option: dict[str, Any] = read_option("init", name) or {}
            option = option.get("init", option)  # of one that says of the training, too
            if all(option.get(size) == value for size, value in self.sizes.items()):
                return f"llama-{name}"
        return f"llama-{self.hidden}x{self.layers}-{self.parameters / 1e6:.1f}m"

    @property
    def parameters(self) -> int:
        """Return the parameters of a random one, embeddings and logits left out."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * (self.hidden // self.heads) * self.kv_heads
        return self.layers * (attention + 3 * self.hidden * self.mlp)
