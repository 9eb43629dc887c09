"""Diagnostics: what becomes of every tensor, how far predictions move, and that looking changes nothing."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from torch import Tensor

import mxsweep.config.run_config
from mxsweep import compose, quantize_model, run
from mxsweep.evaluate import diagnostic_sample as samples
from mxsweep.evaluate import logit_distance as distances
from mxsweep.evaluate.diagnostic_sample import Sample, choose_samples
from mxsweep.evaluate.evaluation import make_lm
from mxsweep.evaluate.logit_distance import distance, keep_logits, kept_logits, read_logits
from mxsweep.evaluate.stories import stories as made_stories
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.forward import losses
from mxsweep.forward.batches import Batch, Passage
from mxsweep.forward.engine import Engine
from mxsweep.model.load import LoadedModel, load_model
from mxsweep.model.observer import TensorObserver
from mxsweep.model.quantization_report import weight_statistics
from mxsweep.model.quantize import observed
from mxsweep.model.tensor_statistics import COLUMNS, pooled_by_kind
from mxsweep.numerics import (
    BlockStatistics,
    MXFormat,
    block_statistics,
    fetch_statistics,
    measure_blocks,
    quantize,
)
from mxsweep.numerics.kernels.cpu_library import LIBRARY
from mxsweep.runs.diagnostics import describe_samples

REPOSITORY = Path(__file__).resolve().parents[2]
FEW = ["limit=40", "model.device=cpu"]
ALL_KINDS = ["format=w4a6", "kv_quant=fp4_e2m1"]
WEIGHTS = ["format=mxfp4", "format.activation=none"]  # with which a batch's shape moves nothing
ONLY = [*FEW, "diagnostics=true"]


def done(*words: str, folder: Path | None = None) -> dict[str, Any]:
    record = run(compose(list(words)), folder)
    assert record["status"] == "done", record["error"]
    return record


@pytest.fixture
def tiny() -> LoadedModel:
    return load_model("embedded", dtype="float32", device="cpu")


class Stand:
    """As much of a task as a sample is taken from."""

    def __init__(self, *examples: list[tuple[str, tuple[Any, ...]]]) -> None:
        self.instances = [
            Instance(kind, {}, args, index, metadata=("stand", number, 1))  # type: ignore[arg-type]
            for number, requests in enumerate(examples)
            for index, (kind, args) in enumerate(requests)
        ]


def stories(loaded: LoadedModel, count: int, **options: Any) -> list[Sample]:
    tasks = load_tasks(("story",))["tasks"]
    for task in tasks.values():
        task.build_all_requests(limit=count, rank=0, world_size=1)
    return choose_samples(make_lm(loaded.model, loaded.tokenizer, **options), tasks, seed=1234)


# Tensors.


def test_the_file_and_the_record(tmp_path: Path) -> None:
    record = done(*ALL_KINDS, *ONLY, "scale_bits=5", folder=tmp_path)
    table = pd.read_parquet(tmp_path / "diagnostics.parquet")
    assert list(table.columns) == list(COLUMNS)
    # Of a block's four inputs (q, k and v share one, gate and up another), its keys and values; and of its weights.
    assert table["kind"].value_counts().to_dict() == {"weight": 21, "activation": 12, "key": 3, "value": 3}
    assert table.groupby("kind")["layer"].nunique().eq(3).all()
    assert table["format"].isin([f"fp{n}-b32-e8m0-sb5" for n in ("4_e2m1", "6_e2m3")]).all()
    assert table["exponent_limit"].eq(15).all()
    weights, others = table[table["kind"] == "weight"], table[table["kind"] != "weight"]
    assert weights["tokens"].isna().all() and weights["examples"].isna().all()
    assert others["tokens"].nunique() == 1 and others["examples"].nunique() == 1
    assert np.allclose(table["sqnr_db"], 10 * np.log10(table["signal"] / table["noise"]))
    assert np.allclose(table["rmse"], np.sqrt(table["noise"] / table["elements"]))
    assert record["timing"]["diagnostics_s"] > 0
    assert record["diagnostics"]["sample"].startswith("40 of 40 examples of story, chosen by a hash of the seed 1234: ")
    assert record == json.loads(json.dumps(record))  # JSON-able, and without NaN

    tensors = record["diagnostics"]["tensors"]
    assert list(tensors) == ["weight", "activation", "key", "value"]
    for kind, rows in table.groupby("kind"):
        pooled = tensors[kind]
        for name in ("elements", "blocks", "saturated", "flushed", "clamped", "unlike_exact"):
            assert pooled[name] == rows[name].sum(), name
        assert pooled["sqnr_db"] == pytest.approx(10 * math.log10(rows["signal"].sum() / rows["noise"].sum()))
        assert pooled["rmse"] == pytest.approx(math.sqrt(rows["noise"].sum() / rows["elements"].sum()))
        assert (pooled["exponent_min"], pooled["exponent_max"]) == (
            rows["exponent_min"].min(),
            rows["exponent_max"].max(),
        )
        assert pooled["exponent_limit"] == 15
        assert pooled["tokens"] == (None if kind == "weight" else rows["tokens"].iloc[0])
    # The keys that every record has say the same of the weights.
    assert tensors["weight"]["clamped"] == record["diagnostics"]["weight_blocks_scale_clamped"]
    assert tensors["weight"]["saturated"] == record["diagnostics"]["weights_saturated"]
    assert tensors["weight"]["exponent_max"] == record["diagnostics"]["weight_exponent_max"]


def test_every_tensor_is_measured_over_its_real_tokens_alone(tiny: LoadedModel) -> None:
    recipe = compose(["kv_quant=int8", "format=w4a6", "model.device=cpu"]).recipe
    (sample,) = stories(tiny, 12)
    lengths = [len(passage.tokens) for example in sample.examples for passage in example]
    assert len(set(lengths)) > 1  # or nothing is padded
    seen: list[tuple[str, str, Tensor, Tensor]] = []
    observer = TensorObserver(recipe.arithmetic)

    def both(kind: str, module: str, x: Tensor, fmt: MXFormat, y: Tensor, *amax: Tensor | None) -> None:
        seen.append((kind, module, x.clone(), y.clone()))
        observer(kind, module, x, fmt, y, *amax)

    with quantize_model(tiny.model, recipe) as report, observed(tiny.model, both):
        read_logits(tiny.model, sample, observer.batch)
    found = {(tensor.kind, tensor.module): tensor for tensor in observer.statistics(12, report.places)}
    assert len(found) == len(seen) == 18
    longest_first = sorted(lengths, reverse=True)
    for kind, module, x, y in seen:
        signal = noise = 0.0
        for row, length in enumerate(longest_first):  # the batch's rows
            a, b = (tensor[row, :length].double().numpy() for tensor in (x, y))
            signal, noise = signal + float((a**2).sum()), noise + float(((a - b) ** 2).sum())
        tensor = found[kind, module]
        assert tensor.statistics.sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
        assert (tensor.tokens, tensor.examples) == (sum(lengths), 12)
        assert tensor.statistics.elements == sum(lengths) * x[0, 0].numel()


def test_nobody_watches_afterwards(tiny: LoadedModel) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    (sample,) = stories(tiny, 4)
    with quantize_model(tiny.model, compose(ALL_KINDS).recipe):
        with pytest.raises(AssertionError), observed(tiny.model, never):
            read_logits(tiny.model, sample)
        read_logits(tiny.model, sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_elements_unlike_the_exact_arithmetic(dtype: torch.dtype) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, :32] = 1.9999 if dtype == torch.float32 else 255 / 128  # whose logarithm rounds up in bfloat16
    x[1, :32] = 0  # in float16 a block of NaN, in exact arithmetic zeros
    fmt = MXFormat("fp4_e2m1")
    native, exact = (quantize(x, fmt, arithmetic=arithmetic) for arithmetic in ("native", "exact"))
    unlike = sum(
        not (a == b or (math.isnan(a) and math.isnan(b)))
        for a, b in zip(native.flatten().tolist(), exact.flatten().tolist(), strict=True)
    )
    assert block_statistics(x, fmt, compare_exact=True).unlike_exact == unlike
    assert unlike > 0 or dtype == torch.float32
    assert block_statistics(x, fmt).unlike_exact is None
    assert block_statistics(x, fmt, arithmetic="exact", compare_exact=True).unlike_exact is None
    assert block_statistics(x, MXFormat("fp4_e2m1", scale="e5m3"), compare_exact=True).unlike_exact is None


def test_pooled_statistics_are_those_of_one_tensor() -> None:
    x = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    x[40:50] *= 2.0**-30
    fmt = MXFormat("fp4_e2m1", scale_bits=5)
    parts = [block_statistics(part, fmt, compare_exact=True) for part in x.split(32)]
    whole, pooled = block_statistics(x, fmt, compare_exact=True), BlockStatistics.pooled(parts)
    assert (pooled.signal, pooled.noise) == (pytest.approx(whole.signal), pytest.approx(whole.noise))
    assert pooled.sqnr_db == pytest.approx(whole.sqnr_db)
    for name in ("blocks", "blocks_scale_clamped", "elements", "elements_saturated", "elements_flushed"):
        assert getattr(pooled, name) == getattr(whole, name), name
    for name in ("exponent_min", "exponent_max", "unlike_exact"):
        assert getattr(pooled, name) == getattr(whole, name), name
    assert whole.blocks_scale_clamped == 20


def test_statistics_are_fetched_together() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    formats = [MXFormat("fp4_e2m1"), MXFormat("int8", scale="e5m3"), MXFormat("fp6_e2m3", 16)]
    measured = [measure_blocks(x, fmt, arithmetic="exact") for fmt in formats]
    assert fetch_statistics(measured) == [block_statistics(x, fmt, arithmetic="exact") for fmt in formats]
    assert fetch_statistics([]) == []


def test_an_output_layer_is_measured_at_the_scored_positions(tmp_path: Path) -> None:
    record = done(*ONLY, "format=none", "modules={lm_head: mxint8}", folder=tmp_path)
    table = pd.read_parquet(tmp_path / "diagnostics.parquet")
    assert table["module"].tolist() == ["lm_head", "lm_head"]
    assert table["layer"].isna().all()
    head = table[table["kind"] == "activation"].iloc[0]
    assert head["tokens"] == record["diagnostics"]["distance"]["story"]["positions"] == 40


def test_a_kind_of_several_formats_has_no_one_limit() -> None:
    tensors = done(*ONLY, "modules={*.q_proj: {weight: fp4_e2m1, scale: e5m3, activation: none}}")
    weight = tensors["diagnostics"]["tensors"]["weight"]
    assert weight["exponent_limit"] is None and weight["exponent_max"] is not None
    assert tensors["diagnostics"]["tensors"]["activation"]["exponent_limit"] == 127


# The distance.


def test_kl_divergence_is_torchs_on_plain_forward_passes(tiny: LoadedModel) -> None:
    record = done(*WEIGHTS, *ONLY)["diagnostics"]["distance"]["story"]
    tasks = load_tasks(("story",))["tasks"]
    (task,) = tasks.values()
    task.build_all_requests(limit=40, rank=0, world_size=1)

    @torch.no_grad()
    def next_tokens() -> Tensor:
        rows = []
        for instance in task.instances:
            context, continuation = instance.args
            ids = tiny.tokenizer(context + continuation, return_tensors="pt").input_ids
            assert len(tiny.tokenizer(context).input_ids) == ids.shape[1] - 1
            rows.append(tiny.model(ids).logits[0, -2].double())
        return torch.stack(rows)

    plain = next_tokens()
    with quantize_model(tiny.model, compose([*WEIGHTS, "model.device=cpu"]).recipe):
        quantized = next_tokens()
    kl = F.kl_div(quantized.log_softmax(-1), plain.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert record["kl_nats"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert record["kl_nats_stderr"] == pytest.approx(float(kl.std()) / math.sqrt(40), rel=1e-3)
    same = (plain.argmax(-1) == quantized.argmax(-1)).double()
    assert record["top1_agreement"] == float(same.mean())
    assert record["top1_agreement_stderr"] == pytest.approx(float(same.std()) / math.sqrt(40))
    assert (record["positions"], record["examples"]) == (40, 40)


def made_sample(*counts: int) -> Sample:
    tokens = np.arange(9)
    return Sample("made", tuple((Passage(tokens, np.arange(count)),) for count in counts), len(counts), 1)


def test_several_positions_an_example() -> None:
    p, q = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0)) * 3
    found = distance(made_sample(2, 3, 4), p, q)
    kl = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1).double()
    assert found.kl_nats == pytest.approx(float(kl.mean()), rel=1e-5)
    # A ratio's standard error, by hand: residuals of the examples' sums.
    sums, counts = torch.stack([part.sum() for part in kl.split([2, 3, 4])]), torch.tensor([2.0, 3.0, 4.0])
    residuals = sums - kl.mean() * counts
    assert found.kl_nats_stderr == pytest.approx(math.sqrt(1.5 * float((residuals**2).sum())) / 9, rel=1e-5)
    assert (found.positions, found.examples) == (9, 3)


def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0))
    whole = distance(made_sample(9), p, q)
    monkeypatch.setattr(losses, "KL_PIECE", 120)
    assert distance(made_sample(9), p, q).kl_nats == pytest.approx(whole.kl_nats)
    assert math.isnan(whole.kl_nats_stderr)  # of a single example


def test_the_same_logits_are_no_distance_apart_and_what_cannot_be_said_is_nan_or_infinite() -> None:
    p = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = distance(made_sample(1, 3), p, p)
    assert (found.kl_nats, found.kl_nats_stderr, found.top1_agreement) == (0, 0, 1)
    never = p.clone()
    never[0, 7] = -math.inf  # a token that the quantized model finds impossible
    assert distance(made_sample(1, 3), p, never).kl_nats == math.inf
    assert 0 < distance(made_sample(1, 3), never, p).kl_nats < 0.1
    never[:] = math.nan
    found = distance(made_sample(1, 3), p, never)
    assert math.isnan(found.kl_nats) and found.top1_agreement == 0


def test_a_format_that_loses_nothing_is_no_distance_away() -> None:
    found = done(*ONLY, "format=none", "kv_quant=none", "modules={model.layers.0.mlp.up_proj: {weight: fp16_e5m10}}")
    assert 0 <= found["diagnostics"]["distance"]["story"]["kl_nats"] < 1e-6
    assert found["diagnostics"]["distance"]["story"]["top1_agreement"] == 1


# The sample.


def test_batches_decide_nothing() -> None:
    LIBRARY.build()  # which adds up in another order than torch's operations, from one run to the next when it is ready

    def diagnosed(*words: str) -> Any:
        found = done(*ALL_KINDS, *ONLY, *words)["diagnostics"]
        return found["tensors"], found["distance"], found["sample"]

    assert diagnosed("batch_tokens=100") == diagnosed("batch_tokens=5000") == diagnosed()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    plain = done(*ALL_KINDS, *FEW, folder=tmp_path / "plain")
    looked = done(*ALL_KINDS, *ONLY, "noise=1", folder=tmp_path / "looked")
    again = done(*ALL_KINDS, *FEW, folder=tmp_path / "again")
    assert plain["metrics"] == looked["metrics"] == again["metrics"]
    frames = [pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("plain", "looked", "again")]
    assert frames[0].equals(frames[1]) and frames[0].equals(frames[2])
    assert "tensors" not in plain["diagnostics"] and "diagnostics_s" not in plain["timing"] and "noise" not in plain
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == [
        "lm_eval.json",
        "result.json",
        "samples.parquet",
    ]


def test_the_sample_is_a_seeds(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = load_tasks(("story",))["tasks"]
    (task,) = tasks.values()
    task.build_all_requests(limit=None, rank=0, world_size=1)
    lm = make_lm(tiny.model, tiny.tokenizer)
    (sample,) = choose_samples(lm, tasks, 1)
    assert sample.digest == choose_samples(lm, tasks, 1)[0].digest != choose_samples(lm, tasks, 2)[0].digest
    assert len(sample.examples) == samples.EXAMPLES and sample.of == 1000
    assert sample.tokens <= samples.TOKENS
    measured = sum(len(passage.tokens) for example in sample.examples[: sample.measured] for passage in example)
    assert 0.9 * samples.TENSOR_TOKENS < measured <= samples.TENSOR_TOKENS
    monkeypatch.setattr(samples, "TOKENS", 1000)
    (less,) = choose_samples(lm, tasks, 1)
    assert less.tokens <= 1000 and less.examples[0][0].tokens.tolist() == sample.examples[0][0].tokens.tolist()
    monkeypatch.setattr(samples, "LOGITS", 3 * tiny.model.config.vocab_size)
    assert choose_samples(lm, tasks, 1)[0].positions == 3
    monkeypatch.setattr(samples, "LOGITS", 1)
    assert len(choose_samples(lm, tasks, 1)[0].examples) == 1  # one at least


def test_several_tasks_share_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "Irene hid the kettle in the attic"}\n' * 3)
    words = ["task=[story,lambada_openai]", f"task.data={{lambada_openai: {tmp_path / 'rows.jsonl'}}}"]
    found = done(*ALL_KINDS, *ONLY, *words)["diagnostics"]
    assert list(found["distance"]) == ["story", "lambada_openai"]
    assert found["distance"]["lambada_openai"]["examples"] == 3
    assert "32 of 40 examples of story, 3 of 3 examples of lambada_openai" in found["sample"]


def test_long_texts_are_sampled_in_windows(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Irene", "Oscar", "hid", "left", "the", "kettle", "whistle", "in", "attic", "stable", "."]
    text = " ".join(np.random.default_rng(0).choice(words, 1800))
    lm = make_lm(tiny.model, tiny.tokenizer, max_length=64)
    monkeypatch.setattr(samples, "EXAMPLE_TOKENS", 300)
    (sample,) = choose_samples(lm, {"long": Stand([("loglikelihood_rolling", (text,))])}, 0)  # type: ignore[dict-item]
    (example,) = sample.examples
    assert len(example) == 4  # windows, evenly spread
    assert sample.tokens <= 300 and sample.positions == samples.EXAMPLE_POSITIONS
    ids = tiny.tokenizer(text).input_ids
    assert example[0].tokens.tolist()[1:] == ids[:63]  # behind the prefix token
    assert example[-1].tokens.tolist()[-10:] == ids[-11:-1]
    # The model's window may be longer than what is read here: its beginning, whose distributions are the same.
    lm = make_lm(tiny.model, tiny.tokenizer, max_length=4096)
    (sample,) = choose_samples(lm, {"long": Stand([("loglikelihood_rolling", (text,))])}, 0)  # type: ignore[dict-item]
    ((passage,),) = sample.examples
    assert passage.tokens.tolist()[1:] == ids[:299]
    assert passage.positions[0] == 0 and passage.positions[-1] == 299


def test_answers_that_share_a_context_and_prompts(tiny: LoadedModel) -> None:
    choices = [("loglikelihood", ("Irene hid the kettle in the", f" {word}")) for word in ("attic", "stable")]
    prompt = [("generate_until", ("Irene hid the kettle", {"until": ["."]}))]
    tasks: Any = {"choice": Stand(choices, choices), "prompt": Stand(prompt)}
    lm = make_lm(tiny.model, tiny.tokenizer)
    choice, generated = choose_samples(lm, tasks, 0)
    assert choice.of == len(choice.examples) == 2
    for example in choice.examples:
        assert len({passage.tokens.tobytes() for passage in example}) == len(example)
    ((passage,),) = generated.examples
    assert passage.tokens.tolist() == tiny.tokenizer("Irene hid the kettle").input_ids
    assert passage.positions.tolist() == [len(passage.tokens) - 1]
    assert describe_samples([choice, generated], 0).startswith("2 of 2 examples of choice, 1 of 1 examples of prompt")
    assert read_logits(tiny.model, generated).shape == (1, tiny.model.config.vocab_size)


def test_logits_come_in_the_order_of_the_examples(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = stories(tiny, 10)
    together = read_logits(tiny.model, sample)
    monkeypatch.setattr(distances, "BATCH_TOKENS", 1)
    assert torch.allclose(read_logits(tiny.model, sample), together, atol=1e-4)
    with torch.no_grad():
        for row, (passage,) in zip(together, sample.examples, strict=True):
            alone = tiny.model(torch.from_numpy(passage.tokens.astype(np.int64))[None]).logits[0, passage.positions]
            assert torch.allclose(row, alone[0], atol=1e-4)


# The unquantized side.


def test_it_is_read_once_for_a_model_and_freed_with_it(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    original = Engine._logits

    def counted(engine: Engine, batch: Batch) -> Any:
        if engine._too_long == distances.TOO_LONG:  # not an evaluation's
            reads.append(batch)
        return original(engine, batch)

    monkeypatch.setattr(distances, "_kept", type(distances._kept)())
    monkeypatch.setattr(Engine, "_logits", counted)
    first = done(*WEIGHTS, *ONLY)["diagnostics"]["distance"]
    count = len(reads)
    assert done(*WEIGHTS, *ONLY)["diagnostics"]["distance"] == first
    assert len(reads) == count + count // 2
    (sample,) = stories(tiny, 3)
    other: Any = torch.nn.Linear(2, 2)
    keep_logits(other, sample, torch.ones(3, 5))
    assert torch.equal(kept_logits(other, sample), torch.ones(3, 5))  # type: ignore[arg-type]
    gone = ref(other)
    del other
    gc.collect()
    assert gone() is None and kept_logits(tiny.model, sample) is None


def test_what_is_kept_is_limited(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_kept", type(distances._kept)())
    monkeypatch.setattr(distances, "KEPT_BYTES", 250)
    one, two, three = (made_sample(*counts) for counts in ((1,), (2,), (3,)))
    for sample in (one, two, three):
        keep_logits(tiny.model, sample, torch.ones(5, 5))
    assert kept_logits(tiny.model, one) is None
    assert kept_logits(tiny.model, two) is not None and kept_logits(tiny.model, three) is not None


# What goes wrong.


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Any:
    original = Engine._logits
    sizes: list[int] = []

    def limit(most: int) -> list[int]:
        def limited(engine: Engine, batch: Batch) -> Any:
            logits = original(engine, batch)
            if engine._too_long == distances.TOO_LONG:  # not an evaluation's
                sizes.append(len(batch.passages))
                if sizes[-1] > most:  # after the pass, when tensors were measured
                    raise torch.OutOfMemoryError("no more")
            return logits

        monkeypatch.setattr(Engine, "_logits", limited)
        return sizes

    monkeypatch.setattr(distances, "_kept", type(distances._kept)())
    return limit


def test_a_batch_that_does_not_fit_is_read_in_halves(memory_for: Any) -> None:
    whole = done(*WEIGHTS, *ONLY)["diagnostics"]["distance"]["story"]
    sizes = memory_for(5)
    distances.forget_logits()
    found = done(*WEIGHTS, *ONLY)
    assert found["warnings"] == [] and max(sizes) > 5
    assert found["diagnostics"]["distance"]["story"]["kl_nats"] == pytest.approx(whole["kl_nats"], rel=1e-4)


def test_what_was_measured_of_a_batch_that_did_not_fit_is_not_counted_twice(memory_for: Any) -> None:
    whole = done(*ALL_KINDS, *ONLY)["diagnostics"]["tensors"]
    memory_for(5)
    halves = done(*ALL_KINDS, *ONLY)["diagnostics"]["tensors"]
    assert halves.keys() == whole.keys() == {"weight", "activation", "key", "value"}
    for kind, of_kind in whole.items():
        assert [halves[kind][n] for n in ("elements", "tokens")] == [of_kind[n] for n in ("elements", "tokens")]


def test_a_passage_that_does_not_fit_costs_no_result(memory_for: Any, tmp_path: Path) -> None:
    memory_for(0)
    record = done(*ALL_KINDS, *ONLY, folder=tmp_path)
    (warning,) = record["warnings"]
    assert "were not measured: a passage of" in warning
    assert list(record["diagnostics"]["tensors"]) == ["weight"] and record["diagnostics"]["distance"] == {}
    assert set(pd.read_parquet(tmp_path / "diagnostics.parquet")["kind"]) == {"weight"}


def test_nothing_is_measured_of_a_baseline(tmp_path: Path) -> None:
    record = done("format=none", *ONLY, folder=tmp_path)
    assert "tensors" not in record["diagnostics"] and not (tmp_path / "diagnostics.parquet").exists()


# The knob.


def test_hashes_without_the_knobs_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[dict[str, Any]] = []
    monkeypatch.setattr(mxsweep.config.run_config, "json_digest", lambda what: hashed.append(what) or "0" * 64)
    for words in ([], ["diagnostics=false", "noise=0"], ["diagnostics=true", "format=none"]):
        assert compose(words).config_hash
    for what in hashed:
        assert sorted(what) == sorted(
            ["model", "attention", "max_length", "device", "task", "data", "limit", "quantized", "seed"]
        )
    hashed.clear()
    assert compose(["diagnostics=true", "noise=2"]).config_hash
    assert hashed[0]["diagnostics"] is True and hashed[0]["noise"] == 2


def test_hashes_differ() -> None:
    words = [[], ["diagnostics=true"], ["noise=1"], ["noise=2"], ["noise=2", "diagnostics=true"]]
    assert len({compose(each).config_hash for each in words}) == 5


def test_weights_of_a_layer_that_stays_as_it_is_are_no_rows(tiny: LoadedModel) -> None:
    recipe = compose(["modules={*.q_proj: {weight: none, activation: int8}}"]).recipe
    with quantize_model(tiny.model, recipe, compare_exact=True) as report:
        tensors = weight_statistics(report.layers)
    assert len(tensors) == 18 and not any("q_proj" in tensor.module for tensor in tensors)
    assert pooled_by_kind(tensors)["weight"]["unlike_exact"] is not None


@pytest.mark.slow
def test_the_benchmark_can_be_run(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in made_stories(12))
    (tmp_path / "rows.jsonl").write_text(rows)
    command = [sys.executable, "-m", "benchmarks.diagnostics", "--shape=tiny", f"--data={tmp_path / 'rows.jsonl'}"]
    command += ["--paths=torch", "--repeats=2", "--warmup=4", f"--json={tmp_path / 'out.json'}", "model.device=cpu"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "metrics bit for bit the same with and without" in answer.stdout
    (found,) = json.loads((tmp_path / "out.json").read_text())["paths"]
    assert len(found["cost_s"]) == 2 and found["ratio_first"] == found["cost_s"][0] / found["eval_s"][0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
class TestGpu:
    def test_measuring_does_not_wait(self) -> None:
        x = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
        formats = [MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True), MXFormat("int8", 48)]
        for fmt in formats:
            y = quantize(x, fmt)
            measure_blocks(x, fmt, quantized=y, compare_exact=True)  # whatever is set up the first time
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                measured = measure_blocks(x, fmt, quantized=y, compare_exact=True)
            finally:
                torch.cuda.set_sync_debug_mode(before)
            assert fetch_statistics([measured])[0].elements == 512 * 512

    @pytest.mark.parametrize("backend", ["torch", "cuda"])
    def test_the_same_statistics_as_on_a_cpu(self, backend: str) -> None:
        words = ["kv_quant=fp4_e2m1", "arithmetic=exact", "limit=40", "diagnostics=true"]
        on_cpu = done(*words, "model.device=cpu")["diagnostics"]
        on_gpu = done(*words, "model.device=cuda", f"backend={backend}")["diagnostics"]
        for kind, figures in on_gpu["tensors"].items():
            assert figures["sqnr_db"] == pytest.approx(on_cpu["tensors"][kind]["sqnr_db"], abs=0.1)
            assert figures["tokens"] == on_cpu["tensors"][kind]["tokens"]
        assert on_gpu["sample"] == on_cpu["sample"]
        assert on_gpu["distance"]["story"]["kl_nats"] == pytest.approx(on_cpu["distance"]["story"]["kl_nats"], rel=0.3)

    def test_looking_changes_nothing(self) -> None:
        words = [*ALL_KINDS, "limit=200", "model.device=cuda"]
        assert done(*words)["metrics"] == done(*words, "diagnostics=true")["metrics"]
