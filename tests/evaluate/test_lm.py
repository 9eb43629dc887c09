"""Scoring against lm-eval's own HFLM, and what it promises: order, batches, memory, one tokenization a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from mxsweep import compose, quantize_model, run
from mxsweep.evaluate import request_tokens as encodings
from mxsweep.evaluate.evaluation import evaluate, make_lm
from mxsweep.evaluate.lm import FastLM
from mxsweep.evaluate.quiet import no_progress_bars
from mxsweep.evaluate.request_tokens import encode_pairs, encode_windows
from mxsweep.evaluate.stories import story_task_config
from mxsweep.evaluate.tasks import load_tasks
from mxsweep.forward import losses
from mxsweep.forward import scoring as score
from mxsweep.model.load import LoadedModel, load_model
from mxsweep.terminal.errors import ConfigError

Answers = list[tuple[float, bool]]


@pytest.fixture
def tiny() -> LoadedModel:
    return load_model("embedded", dtype="float32", device="cpu")


@pytest.fixture
def novels(shared_dir: Path) -> LoadedModel:
    return load_model(str(shared_dir / "models" / "novels-llama-31m"), dtype="float32", device="cpu")


def stock(loaded: LoadedModel, max_length: int | None = None) -> HFLM:
    # Without its cache of logits, which in lm-eval 0.4.13 gives the wrong rows to a request that shares its input with
    # one of more targets.
    return HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",
        batch_size=8,
        max_length=max_length,
        logits_cache=False,
    )


def fast(loaded: LoadedModel, batch_tokens: int = 1024, max_length: int | None = None) -> FastLM:
    return make_lm(loaded.model, loaded.tokenizer, batch_tokens=batch_tokens, max_length=max_length)


def pairs(*texts: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, text, 0) for text in texts]


def requests_of(name: str, limit: int | None = None, rows: Sequence[dict[str, str]] = (), folder: Any = None) -> Any:
    """A task's requests; ``rows`` take the place of its data."""
    data = {}
    if rows:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {name: str(file)}
    task = load_tasks((name,), data=data)["tasks"][name]
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return task.instances


def rows_of(file: Path, count: int) -> list[dict[str, str]]:
    with file.open() as lines:
        return [json.loads(next(lines)) for _ in range(count)]


def assert_same(answers: Answers, expected: Answers, tolerance: float = 1e-3) -> None:
    np.testing.assert_allclose([a[0] for a in answers], [e[0] for e in expected], atol=tolerance, rtol=0)
    assert [a[1] for a in answers] == [e[1] for e in expected]


STORIES = 64
ONE_CONTEXT = "Irene hid the kettle in the attic . Later Oscar found the kettle in the"
MIXED = [
    (ONE_CONTEXT, " attic"),
    (ONE_CONTEXT, " barn"),
    (ONE_CONTEXT, " attic . Then Nora took the whistle"),
    (f"{ONE_CONTEXT} attic . Then Nora", " took the whistle"),
    (ONE_CONTEXT, " attic"),
    ("Irene hid the kettle ", "in the attic"),
    ("", "Irene hid the kettle"),
    ("", "<|end|>Irene hid the kettle"),
    ("Irene", " hid"),
]


class TestAgainstStock:
    """Unquantized float32: every example's log-likelihood, and whether its target is the greedy answer."""

    def test_stories(self, tiny: LoadedModel) -> None:
        stories = requests_of("story", STORIES)
        wrong = pairs(*((request.args[0], " kettle") for request in stories))
        answers = fast(tiny).loglikelihood(stories + wrong)
        assert_same(answers, stock(tiny).loglikelihood(stories + wrong))
        assert {greedy for _, greedy in answers} == {True, False}

    def test_lambada(self, novels: LoadedModel, shared_dir: Path, tmp_path: Path) -> None:
        rows = rows_of(shared_dir / "data" / "lambada_openai_test.jsonl", 24)
        requests = requests_of("lambada_openai", rows=rows, folder=tmp_path)
        for max_length in (512, 48):  # with 48, every context is cut
            lm = fast(novels, max_length=max_length)
            assert_same(lm.loglikelihood(requests), stock(novels, max_length).loglikelihood(requests))
        assert lm.warnings == [
            "24 of 24 requests are longer than model.max_length (48 tokens) and were scored without their beginning"
        ]

    def test_wikitext_in_windows(self, novels: LoadedModel, shared_dir: Path, tmp_path: Path) -> None:
        pages = rows_of(shared_dir / "data" / "wikitext2_raw_test.jsonl", 4)
        short = [{"page": row["page"][: 300 * n]} for n, row in enumerate(pages, 1)]
        requests = requests_of("wikitext", rows=short, folder=tmp_path)
        for max_length in (64, 2048):
            lm = fast(novels, 256, max_length)
            answers = lm.loglikelihood_rolling(requests)
            expected = stock(novels, max_length).loglikelihood_rolling(requests)
            np.testing.assert_allclose(answers, expected, atol=1e-2, rtol=1e-6)
            assert not lm.warnings
        windows = encode_windows(fast(novels, max_length=64), [request.args[0] for request in requests])
        assert min(map(len, windows)) >= 1
        assert max(map(len, windows)) >= 4

    def test_shared_inputs_empty_contexts_and_trailing_spaces(self, tiny: LoadedModel) -> None:
        answers = fast(tiny).loglikelihood(pairs(*MIXED))
        assert_same(answers, stock(tiny).loglikelihood(pairs(*MIXED)))
        assert len({round(answer, 4) for answer, _ in answers}) == len(MIXED) - 2  # the 5th is the 1st, the 8th the 7th

    def test_contexts_longer_than_the_model_takes(self, tiny: LoadedModel) -> None:
        texts = [(f"{ONE_CONTEXT} attic . " * n, "Irene hid the") for n in (1, 20, 30)]
        lm = fast(tiny)
        assert_same(lm.loglikelihood(pairs(*texts)), stock(tiny).loglikelihood(pairs(*texts)))
        assert lm.warnings[0].startswith("2 of 3 requests are longer than model.max_length (256 tokens)")

    @pytest.mark.parametrize(
        "config",
        [
            Gemma2Config(num_hidden_layers=2, head_dim=16, final_logit_softcapping=2.0, sliding_window=16),
            GraniteConfig(num_hidden_layers=2, logits_scaling=8.0),
            GPT2Config(n_layer=2, n_embd=64, n_head=4, n_positions=256),
            OPTConfig(num_hidden_layers=2, ffn_dim=96, word_embed_proj_dim=64, max_position_embeddings=256),
            MambaConfig(num_hidden_layers=2),
            LlamaConfig(num_hidden_layers=2, attn_implementation="eager"),
        ],
        ids=lambda config: config.model_type,
    )
    def test_architectures(self, tiny: LoadedModel, config: PretrainedConfig) -> None:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        known = {name: size for name, size in sizes.items() if hasattr(config, name)}
        config.update({**known, "vocab_size": len(tiny.tokenizer), "pad_token_id": 0})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # random enough that a mistake shows
            torch.nn.init.normal_(parameter, std=0.2)
        random = LoadedModel(model, tiny.tokenizer)
        requests = [*requests_of("story", 8), *pairs(*MIXED)]
        assert_same(fast(random, 256).loglikelihood(requests), stock(random).loglikelihood(requests))


def test_quantized_aggregates_are_those_of_stock(tiny: LoadedModel) -> None:
    requests = requests_of("story")
    lms = fast(tiny, 2048), stock(tiny)
    with quantize_model(tiny.model, compose(["format=w4a6", "kv_quant=fp4_e2m1"]).recipe):
        ours, theirs = (np.array(lm.loglikelihood(requests)) for lm in lms)
    assert ours[:, 1].mean() == pytest.approx(theirs[:, 1].mean(), abs=0.002)
    assert np.exp(-ours[:, 0].mean()) == pytest.approx(np.exp(-theirs[:, 0].mean()), rel=0.005)
    assert ours[:, 1].mean() < 0.9  # quantized indeed: unquantized it is 0.985


def test_answers_come_in_the_order_of_the_requests_whatever_the_batches(tiny: LoadedModel) -> None:
    requests = [*requests_of("story", STORIES), *pairs(*MIXED)]
    expected = fast(tiny, 1).loglikelihood(requests)  # each input by itself
    for batch_tokens in (100, 1000, 10**6):
        assert_same(fast(tiny, batch_tokens).loglikelihood(requests), expected, 1e-4)
    assert_same(fast(tiny).loglikelihood(requests[::-1]), expected[::-1], 1e-4)


def test_progress_counts_the_requests_of_all_tasks(tiny: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "pages.jsonl"
    file.write_text(json.dumps({"page": f"{ONE_CONTEXT} attic . " * 40}) + "\n")
    tasks = load_tasks(("story", "wikitext"), data={"wikitext": str(file)})
    told: list[tuple[int, int]] = []
    lm = fast(tiny, 512)
    evaluate(lm, tasks, limit=20, progress=lambda *progress: told.append(progress[:2]))
    windows = encode_windows(lm, [request.args[0] for request in tasks["tasks"]["wikitext"].instances])[0]
    assert len(windows) > 1
    assert {total for _, total in told} == {20 + len(windows)}
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (20 + len(windows),) * 2
    told.clear()
    evaluate(lm, tasks, limit=20)
    assert not told


def test_no_requests_no_answers(tiny: LoadedModel) -> None:
    assert fast(tiny).loglikelihood([]) == []
    assert fast(tiny).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0)]) == [0]


def shapes_during(tiny: LoadedModel, ask: Callable[[], Any]) -> list[tuple[torch.Size, torch.Size]]:
    """The shapes of what the model reads, and of what its output layer reads, in each forward pass of ``ask()``."""
    read: list[torch.Size] = []
    hidden: list[torch.Size] = []
    hooks = (
        tiny.model.model.embed_tokens.register_forward_hook(lambda _m, args, _out: read.append(args[0].shape)),
        tiny.model.lm_head.register_forward_hook(lambda _m, args, _out: hidden.append(args[0].shape)),
    )
    ask()
    for hook in hooks:
        hook.remove()
    return list(zip(read, hidden, strict=True))


def test_every_input_is_read_once_and_logits_made_where_a_target_stands(tiny: LoadedModel) -> None:
    context, answers = ONE_CONTEXT, (" attic", " barn", " cellar", " attic . Then")
    lm = fast(tiny)
    ((read, hidden),) = shapes_during(tiny, lambda: lm.loglikelihood(pairs(*((context, one) for one in answers))))
    assert read[0] == 2  # the three answers of one token read the context alone
    assert hidden[:2] == (1 + 3, 1)


def test_batches_keep_to_both_limits(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [*requests_of("story", STORIES), *pairs(*MIXED)]
    expected = fast(tiny).loglikelihood(requests)
    shapes = shapes_during(tiny, lambda: fast(tiny, 500).loglikelihood(requests))
    assert all(rows * length <= 500 for (rows, length), _ in shapes)
    assert sorted((length for (_, length), _ in shapes), reverse=True) == [length for (_, length), _ in shapes]
    assert sum(rows * length for (rows, length), _ in shapes) > 0.8 * 500 * (len(shapes) - 1)  # and they are full
    monkeypatch.setattr(score, "BATCH_LOGITS", 5 * tiny.model.config.vocab_size)
    monkeypatch.setattr(losses, "SOFTMAX_PIECE", 2 * tiny.model.config.vocab_size)
    lm = fast(tiny, 10**6)
    shapes = shapes_during(tiny, lambda: assert_same(lm.loglikelihood(requests), expected, 1e-4))
    assert all(hidden[0] <= 5 or rows == 1 for (rows, _), hidden in shapes)
    assert len(shapes) > 10


class TestMemory:
    """A model that runs out of memory above some number of tokens."""

    @pytest.fixture
    def forward_up_to(self, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
        """Let the model refuse more tokens than that at once; the list fills with the sizes it was asked."""
        forward, asked = tiny.model.forward, list[int]()

        def limit(most: int) -> list[int]:
            def limited(*args: Any, **kwargs: Any) -> Any:
                asked.append(kwargs["input_ids"].numel())
                answer = forward(*args, **kwargs)
                if asked[-1] > most:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return answer

            monkeypatch.setattr(tiny.model, "forward", limited)
            return asked

        return limit

    def test_batches_are_halved_until_they_fit(self, tiny: LoadedModel, forward_up_to: Any) -> None:
        requests = requests_of("story", STORIES)
        expected = fast(tiny).loglikelihood(requests)
        asked = forward_up_to(600)
        lm = fast(tiny, 2048)
        assert_same(lm.loglikelihood(requests), expected, 1e-4)
        first, second = (size for size in asked if size > 600)
        assert lm.warnings[0] == (
            f"a batch of {first:,} tokens did not fit in GPU memory; batches of at most {first // 2:,} from there on"
        )
        assert len(lm.warnings) == 2
        assert lm.batch_tokens == second // 2 <= 600
        assert all(size <= second // 2 for size in asked[2:])
        assert not tiny.model.lm_head._forward_pre_hooks

    def test_a_single_sequence_that_does_not_fit_is_refused(self, tiny: LoadedModel, forward_up_to: Any) -> None:
        forward_up_to(30)
        message = (
            r"a single sequence of \d+ tokens does not fit in GPU memory, whatever batch_tokens is; give a model.max"
        )
        with pytest.raises(ConfigError, match=message):
            fast(tiny).loglikelihood(requests_of("story", 4))

    def test_the_record_says_so(self, forward_up_to: Any) -> None:
        forward_up_to(600)
        record = run(compose(["limit=24", "batch_tokens=1000", "model.device=cpu"]))
        assert record["status"] == "done"
        assert "did not fit in GPU memory" in record["warnings"][0]
        assert record["config"]["batch_tokens"] == 1000
        assert 100 < record["memory"]["batch_tokens"] < 600


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
class TestOnGpu:
    """Batches in flight, and memory that runs out by itself."""

    @pytest.fixture
    def requests(self, tiny: LoadedModel) -> list[Instance]:
        return [*requests_of("story", STORIES), *pairs(*MIXED)]

    @pytest.fixture
    def expected(self, tiny: LoadedModel, requests: list[Instance]) -> Answers:
        return fast(tiny).loglikelihood(requests)

    @pytest.fixture
    def on_gpu(self, expected: Answers) -> LoadedModel:
        return load_model("embedded", dtype="float32", device="cuda")

    def test_scores_are_those_of_the_cpu(self, on_gpu: LoadedModel, requests: Any, expected: Answers) -> None:
        for batch_tokens in (1, 200, 10**6):
            assert_same(fast(on_gpu, batch_tokens).loglikelihood(requests), expected, 2e-3)

    def test_memory_that_runs_out(self, on_gpu: LoadedModel, requests: Any, expected: Answers) -> None:
        lm, total = fast(on_gpu, 10**6), torch.cuda.mem_get_info()[1]
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**23) / total)
        try:
            assert_same(lm.loglikelihood(requests), expected, 2e-3)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert "did not fit in GPU memory" in lm.warnings[0]


def test_the_hook_is_gone_after_an_error(tiny: LoadedModel) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the roof is on fire")

    head = tiny.model.lm_head
    hook = head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="roof"):
        fast(tiny).loglikelihood(pairs(*MIXED))
    hook.remove()
    assert not head._forward_pre_hooks
    fast(tiny).loglikelihood(pairs(*MIXED))
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("head", [None, torch.nn.Linear(2, 2)], ids=["none", "unused"])
def test_a_model_without_an_output_layer_is_refused(
    head: torch.nn.Module | None, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.model, "get_output_embeddings", lambda: head)
    with pytest.raises(ConfigError, match=r"model.path: LlamaForCausalLM cannot be scored: its forward pass did not"):
        fast(tiny).loglikelihood(pairs(*MIXED))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ("   ", "Irene"),
            "task: for this tokenizer a request has no token before what is scored: 'Irene' after '   '",
        ),
        (("Irene", ""), "task: for this tokenizer a request has no token to score: '' after 'Irene'"),
        (("Irene", " hid the kettle in the attic"), "model.max_length: 4 is less than the 6 tokens of an answer"),
    ],
)
def test_what_cannot_be_scored_is_refused(text: tuple[str, str], message: str, tiny: LoadedModel) -> None:
    with pytest.raises(ConfigError, match=message):
        fast(tiny, max_length=4).loglikelihood(pairs(text))


def test_an_mx_output_layer_is_asked(tiny: LoadedModel) -> None:
    requests = requests_of("story", STORIES)
    plain = fast(tiny).loglikelihood(requests)
    lms = fast(tiny), stock(tiny)
    recipe = compose(["format=none", "modules={lm_head: {weight: int2, activation: none}}"]).recipe
    with quantize_model(tiny.model, recipe):
        ours, theirs = (lm.loglikelihood(requests) for lm in lms)
    assert_same(ours, theirs)
    assert np.abs(np.array(ours)[:, 0] - np.array(plain)[:, 0]).max() > 0.1
    assert not tiny.model.lm_head._forward_pre_hooks


def test_stochastic_rounding_in_the_output_layer_does_not_depend_on_the_batch(tiny: LoadedModel) -> None:
    requests = requests_of("story", STORIES)
    lms = fast(tiny, 1), fast(tiny, 4096)
    recipe = compose(
        ["format=none", "modules={lm_head: {weight: none, activation: int4}}", "rounding=stochastic"]
    ).recipe
    with quantize_model(tiny.model, recipe):
        alone, together = (np.array(lm.loglikelihood(requests))[:, 0] for lm in lms)
    assert np.median(np.abs(alone - together)) < 1e-4


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a beginning-of-sequence token before every text, as Llama's does."""
    words = ("<s>", "<unk>", "a", "b", "c", "d")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $0", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", pad_token="<unk>")


class TestTokens:
    """The tokens of HFLM, worked out once."""

    TEXTS = (*MIXED, ("<s> a b", " c"), ("a b", " c d"), ("a  ", "b\n"), ("", "<s> a"), ("", "a b"), ("é ü\t", "日本"))

    def expected(self, lm: HFLM, text: tuple[str, str]) -> tuple[list[int], int]:
        """What HFLM makes of a pair."""
        given: list[Any] = []
        lm._loglikelihood_tokens = lambda requests, **_: given.extend(requests)  # type: ignore[method-assign]
        lm.loglikelihood(pairs(text), disable_tqdm=True)
        ((_, context, continuation),) = given
        return context + continuation, len(continuation)

    @pytest.mark.parametrize("which", ["tiny", "novels", "bos", "python"])
    def test_are_those_of_stock(
        self, which: str, request: pytest.FixtureRequest, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = request.getfixturevalue("novels") if which == "novels" else tiny
        tokenizer = with_bos() if which in ("bos", "python") else loaded.tokenizer
        if which == "python":
            monkeypatch.setattr(type(tokenizer), "is_fast", False)
        loaded = LoadedModel(loaded.model, tokenizer)
        encoded = encode_pairs(fast(loaded), self.TEXTS)
        for text, answer in zip(self.TEXTS, encoded, strict=True):
            assert (answer.tokens.tolist(), answer.targets) == self.expected(stock(loaded), text), text

    def test_are_worked_out_once(self, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [Instance("loglikelihood_rolling", {}, (text,), 0) for text, _ in MIXED]
        first = fast(tiny).loglikelihood(pairs(*MIXED)), fast(tiny).loglikelihood_rolling(texts)
        monkeypatch.setattr(encodings, "_encode", lambda _lm, texts, **_: {} if not list(texts) else pytest.fail())
        assert (fast(tiny).loglikelihood(pairs(*MIXED)), fast(tiny).loglikelihood_rolling(texts)) == first

    def test_belong_to_a_tokenizer_and_a_length(self, tiny: LoadedModel) -> None:
        text = "a b c d"
        other = LoadedModel(tiny.model, with_bos())
        lengths = [[len(w.tokens) for w in encode_windows(fast(tiny, 99, n), [text])[0]] for n in (2, 3)]
        assert lengths[0] != lengths[1]
        assert encode_pairs(fast(other), [("a", " b")])[0].tokens.tolist() == [0, 2, 3]
        assert encode_pairs(fast(tiny), [("a", " b")])[0].tokens.tolist() != [0, 2, 3]


class TestRequests:
    """lm-eval's requests are built once; nothing of a run is left in them for the next."""

    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Fills with the context of every request that lm-eval builds."""
        contexts: list[str] = []
        task = load_tasks(("story",), num_fewshot=1)["tasks"]["story"]
        construct = type(task).construct_requests

        def counted(self: Any, doc: Any, ctx: str, **kwargs: Any) -> Any:
            contexts.append(ctx)
            return construct(self, doc, ctx, **kwargs)

        monkeypatch.setattr(type(task), "construct_requests", counted)
        return contexts

    def test_the_next_run_gives_its_own_scores(self, tiny: LoadedModel, built: list[str]) -> None:
        def metrics(*overrides: str) -> Any:
            return run(compose([*overrides, "limit=31", "model.device=cpu"]))["metrics"]

        baseline = metrics("format=none")
        assert len(built) == 31
        quantized = metrics("format=mxint4")
        assert quantized["story"]["perplexity"] != pytest.approx(baseline["story"]["perplexity"], rel=0.01)
        assert metrics("format=none") == baseline
        assert len(built) == 31
        with quantize_model(tiny.model, compose(["format=mxint4"]).recipe):
            answers = fast(tiny, 10**5).loglikelihood(requests_of("story", 31))
        assert quantized["story"]["acc"] == pytest.approx(np.mean([greedy for _, greedy in answers]), abs=0.04)

    def test_other_settings_are_built_anew(
        self, tiny: LoadedModel, built: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
        monkeypatch.setattr(tiny.tokenizer, "chat_template", template)

        def contexts(fewshot: int | None, limit: int, chat: bool) -> list[str]:
            tasks = load_tasks(("story",), num_fewshot=fewshot)
            found = evaluate(fast(tiny), tasks, limit=limit, apply_chat_template=chat)
            assert found.n_effective == {"story": limit}
            return [instance.args[0] for instance in tasks["tasks"]["story"].instances]

        settings = [(None, 9, False), (None, 10, False), (None, 9, True), (1, 9, False)]
        first = [contexts(*setting) for setting in settings]
        assert len(built) == 9 + 10 + 9 + 9
        assert [contexts(*setting) for setting in settings] == first
        assert len(built) == 9 + 10 + 9 + 9
        plain, longer, chat, fewshot = first
        assert longer[:9] == plain
        assert chat == [f"<{context}>" for context in plain]
        assert all(b.endswith(a) and len(b) > len(a) for a, b in zip(plain, fewshot, strict=True))

    def test_the_task_is_as_before_afterwards(self, tiny: LoadedModel) -> None:
        tasks = load_tasks(("story",))
        evaluate(fast(tiny), tasks, limit=2)
        assert "build_all_requests" not in vars(tasks["tasks"]["story"])


def test_generating_is_left_to_lm_eval(tiny: LoadedModel, capfd: pytest.CaptureFixture[str]) -> None:
    asked = story_task_config() | {
        "task": "story_generated",
        "output_type": "generate_until",
        "doc_to_target": "{{text.split(' ')[-1]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 1},
        "filter_list": [{"name": "word", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    tasks: Any = TaskManager(include_defaults=False).load([asked])
    with no_progress_bars():
        capfd.readouterr()
        generated = evaluate(fast(tiny), tasks, limit=32)
        assert not capfd.readouterr().err
    assert not generated.warnings
    scored = evaluate(fast(tiny), load_tasks(("story",)), limit=32)
    assert generated.metrics["story_generated"]["exact_match"] == scored.metrics["story"]["acc"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_warmed_up_once_a_kind_of_model() -> None:
    loaded = load_model("embedded", device="cuda")
    lm = make_lm(loaded.model, loaded.tokenizer, batch_tokens=2048)
    passes: list[torch.Size] = []
    handle = loaded.model.register_forward_hook(lambda module, args, output: passes.append(output.logits.shape))
    for kind in ("a", "a", "b"):
        lm.warm_up(kind)
    handle.remove()
    assert [shape[0] for shape in passes] == [2048 // 128] * 2
