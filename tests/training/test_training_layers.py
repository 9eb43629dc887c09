"""Training layers in models: what they compute, what they leave as it is, and how they are taken out."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from helpers.mixtures import build
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from mxsweep.formats.training import LayerFormats, OperandFormat, ProductFormats, TrainingRecipe
from mxsweep.numerics import MXFormat, quantize
from mxsweep.terminal.errors import ConfigError
from mxsweep.training.layers import training_layers
from mxsweep.training.quantizing import Quantizer
from mxsweep.training.step import Step

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.1, "tie_word_embeddings": True,
}  # fmt: skip
TOKENS = 16


def operand(element: str, **more: Any) -> OperandFormat:
    return OperandFormat(MXFormat(element, **{"block_size": 16, **more}))


def formats(element: str = "fp4_e2m1", **more: Any) -> LayerFormats:
    both = ProductFormats(operand(element, **more), operand(element, **more))
    return LayerFormats(both, both, both)


FP4, NOTHING = formats(), LayerFormats()
STOCHASTIC = formats(rounding="stochastic")


def llama(**more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | more)).float()
    return model


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0,
                   attn_pdrop=0, initializer_range=0.1)
    ).float()  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def ids(batch: int = 4, tokens: int = TOKENS) -> Tensor:
    return torch.randint(1, 97, (batch, tokens), generator=torch.Generator().manual_seed(1))


def gradients(
    model: PreTrainedModel, recipe: TrainingRecipe, batches: list[Tensor], step: int = 0
) -> dict[str, Tensor]:
    """Return the gradients of the mean loss over the examples of all batches, which are micro-batches of a step."""
    model.zero_grad()
    examples = sum(map(len, batches))
    where = Step(step)
    with training_layers(model, recipe, where):
        for batch in batches:
            logits = model(batch).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            (loss / examples / (batch.shape[1] - 1)).backward()
            where.first_example += len(batch)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Sums of floats in another order; what is quantized is the same, or differences would be of whole units."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], atol=2e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_plain_recipe_leaves_modules_untouched() -> None:
    model = llama()
    before = [vars(module).copy() for module in model.modules()]
    with training_layers(model, TrainingRecipe(), Step()) as trained:
        assert trained == []
        assert [vars(module) for module in model.modules()] == before


def test_taken_out_the_model_is_as_before() -> None:
    model = llama()
    expected, names = model(ids()).logits, list(model.state_dict())
    parameters = dict(model.named_parameters())
    with training_layers(model, TrainingRecipe(FP4), Step()):
        assert not torch.equal(model(ids()).logits, expected)
        assert list(model.state_dict()) == names
        inside = dict(model.named_parameters())
        assert inside.keys() == parameters.keys() and all(inside[name] is parameters[name] for name in names[1:-1])
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model(ids()).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_formats_without_loss_change_nothing() -> None:
    """Of values that bfloat16 holds, blocks of one element each and 15 exponent-free bits are exact."""
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    exact = LayerFormats(
        ProductFormats(None, operand("int16", block_size=1, scale="fp32")), ProductFormats(), ProductFormats()
    )
    plain = gradients(model, TrainingRecipe(), [ids()])
    quantized = gradients(model, TrainingRecipe(exact), [ids()])
    for name, gradient in plain.items():
        torch.testing.assert_close(quantized[name], gradient, rtol=1e-3, atol=1e-5)


def test_forward_is_that_of_the_quantized_model() -> None:
    model = llama()
    recipe = TrainingRecipe(LayerFormats(fprop=FP4.fprop))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with training_layers(model, recipe, Step()):
        answer = model(ids()).logits
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers" in name:
            module.weight.data = quantize(module.weight.data, FP4.fprop.second.fmt)
            handles.append(module.register_forward_pre_hook(lambda _, args: (quantize(args[0], FP4.fprop.first.fmt),)))
    assert torch.equal(model(ids()).logits, answer)
    for name, parameter in model.named_parameters():
        parameter.data = weights[name]


@pytest.mark.parametrize(
    "recipe", [FP4, STOCHASTIC, formats(scale="e4m3", tensor_scale=True)], ids=["even", "drawn", "nv"]
)
@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradients_do_not_depend_on_how_a_batch_is_split(make: Any, recipe: LayerFormats) -> None:
    model, batch = make(), ids()
    whole = gradients(model, TrainingRecipe(recipe), [batch])
    for sizes in ((1, 1, 1, 1), (1, 3)):
        assert_close(gradients(model, TrainingRecipe(recipe), list(batch.split(sizes))), whole)


def test_random_numbers_are_by_seed_step_and_example() -> None:
    model = llama()
    twice = torch.cat([ids(1), ids(1)])
    one = gradients(model, TrainingRecipe(STOCHASTIC, seed=1), [twice], step=3)
    assert_equal(gradients(model, TrainingRecipe(STOCHASTIC, seed=1), [twice], step=3), one)
    name = "model.layers.1.mlp.up_proj.weight"
    for seed, step in ((2, 3), (1, 4)):
        assert not torch.equal(
            gradients(model, TrainingRecipe(STOCHASTIC, seed=seed), [twice], step=step)[name], one[name]
        )
    with training_layers(model, TrainingRecipe(STOCHASTIC), Step()):
        first, second = model(twice).logits
    assert not torch.equal(first, second)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_draws_the_same(reentrant: bool) -> None:
    model = llama()
    recipe = TrainingRecipe(STOCHASTIC)
    plain = gradients(model, recipe, [ids()])
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_equal(gradients(model, recipe, [ids()]), plain)


def test_autocast_computes_in_its_dtype_and_leaves_gradients_in_that_of_the_weights() -> None:
    model, recipe = llama(), TrainingRecipe(FP4)
    seen = []
    with training_layers(model, recipe, Step()):
        model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids(), labels=ids()).loss
        loss.backward()
    assert seen == [torch.bfloat16]
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_functional_gradients() -> None:
    model, recipe, batch = llama(tie_word_embeddings=False), TrainingRecipe(STOCHASTIC), ids()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (batch,), {"use_cache": False}).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    with training_layers(model, recipe, Step()):
        by_function = torch.func.grad(loss)(parameters, batch)
    assert_close(by_function, gradients(model, recipe, [batch]))


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "qwen2_moe"])
@pytest.mark.parametrize("recipe", [FP4, STOCHASTIC], ids=["even", "drawn"])
def test_experts_do_not_depend_on_how_a_batch_is_split(name: str, recipe: LayerFormats) -> None:
    model, batch = build(name), ids(3)
    whole = gradients(model, TrainingRecipe(recipe), [batch])
    parts = gradients(model, TrainingRecipe(recipe), [batch[:1], batch[1:]])
    for parameter, gradient in whole.items():
        torch.testing.assert_close(
            parts[parameter], gradient, rtol=1e-3, atol=1e-5, msg=lambda t, p=parameter: f"{p}: {t}"
        )


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_that_are_not_quantized_answer_as_before(name: str) -> None:
    model, batch = build(name), ids(3)
    plain = gradients(model, TrainingRecipe(), [batch])
    half = TrainingRecipe(NOTHING, modules=(("*.experts.1.*", formats("fp16_e5m10")),))
    for parameter, gradient in gradients(model, half, [batch]).items():
        torch.testing.assert_close(gradient, plain[parameter], rtol=2e-2, atol=2e-4)


def kept(model: PreTrainedModel, recipe: TrainingRecipe) -> set[str]:
    with training_layers(model, recipe, Step()) as trained:
        return {one.operand.name for one in trained}


def test_what_is_kept() -> None:
    model = llama()
    everything = kept(model, TrainingRecipe(FP4))
    assert len(everything) == 3 * 7 and not any("lm_head" in name for name in everything)
    assert "lm_head" in kept(model, TrainingRecipe(FP4, keep_high=("embeddings",)))
    assert {
        name.split(".")[2] for name in kept(model, TrainingRecipe(FP4, keep_high=("first", "last", "lm_head")))
    } == {"1"}
    assert {name.split(".")[2] for name in kept(model, TrainingRecipe(FP4, keep_high=("lm_head", "last:2")))} == {"0"}
    assert len(kept(model, TrainingRecipe(FP4, keep_high=("*.mlp", "lm_head")))) == 3 * 4
    only = TrainingRecipe(NOTHING, modules=(("*.q_proj", FP4), ("model.layers.1.*", NOTHING)))
    assert kept(model, only) == {"model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (TrainingRecipe(FP4, keep_high=("*.attention",)), r"keep_high: the pattern '\*.attention' matches no linear"),
        (TrainingRecipe(FP4, modules=(("*.w1", NOTHING),)), r"modules: the pattern '\*.w1' matches no"),
        (TrainingRecipe(FP4, keep_high=("*",)), r"keep_high: with \[\*\] and modules nothing of LlamaForCausalLM is"),
        (
            TrainingRecipe(FP4, modules=(("*", NOTHING),)),
            r"keep_high: with \[lm_head, embeddings\] and modules nothing",
        ),
        (TrainingRecipe(NOTHING, (("*embed_tokens", FP4),), ()), "keep_high: model.embed_tokens is an embedding"),
    ],
)
def test_refused(recipe: TrainingRecipe, message: str) -> None:
    with pytest.raises(ConfigError, match=message), training_layers(llama(), recipe, Step()):
        pass


def test_lengths_that_blocks_along_tokens_do_not_divide_are_refused_where_there_are_gradients() -> None:
    model = llama()
    with training_layers(model, TrainingRecipe(FP4), Step()):
        with torch.no_grad():
            model(ids(2, 20))
        with pytest.raises(
            ConfigError, match=r"sequences of 20 tokens do not go with matmuls\.wgrad\.grad of .* multiples of 16"
        ):
            model(ids(2, 20))
    gradients(model, TrainingRecipe(LayerFormats(FP4.fprop, FP4.dgrad)), [ids(2, 20)])


def test_layers_that_read_one_tensor_quantize_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counted = llama(), Counter()
    arguments = Quantizer._arguments

    def counting(self: Quantizer, operand: str, *of_operand: Any) -> Any:
        counted[operand] += 1
        return arguments(self, operand, *of_operand)

    recipe = TrainingRecipe(STOCHASTIC)
    monkeypatch.setattr(
        Quantizer, "make_shared", lambda self, operands, x, dtype: self.make_both(operands, x.to(dtype))
    )
    alone = gradients(model, recipe, [ids()])
    monkeypatch.undo()
    monkeypatch.setattr(Quantizer, "_arguments", counting)
    assert_equal(gradients(model, recipe, [ids()]), alone)
    assert counted["fprop.weight"] == counted["dgrad.grad"] == 3 * 7
    assert counted["fprop.input"] == counted["wgrad.input"] == 3 * 4


def test_a_copy_of_a_model_computes_with_its_own_parameters() -> None:
    model = llama()
    with training_layers(model, TrainingRecipe(FP4), Step()):
        expected = model(ids()).logits
        copied = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(copied(ids()).logits, expected)
        assert not model(ids()).logits.any()


def test_a_weight_that_is_tied_gets_the_gradients_of_both_its_modules() -> None:
    tied, untied = llama(), llama(tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    recipe = TrainingRecipe(FP4, keep_high=("embeddings",))
    together, apart = gradients(tied, recipe, [ids()]), gradients(untied, recipe, [ids()])
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(together[name], apart[name] + apart["lm_head.weight"])
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert not torch.equal(apart["lm_head.weight"], gradients(untied, TrainingRecipe(FP4), [ids()])["lm_head.weight"])


@pytest.mark.parametrize(
    ("block", "more", "tells"),
    [
        ((4, 4), {}, True),
        ((16, 1), {}, True),
        ((1, 16), {}, False),
        (16, {}, False),
        ((1, 16), {"scale": "e4m3", "tensor_scale": True}, True),  # whose float32 scale is a sequence's
        (16, {"scale": "e4m3", "tensor_scale": True}, False),
    ],
    ids=str,
)
def test_no_token_depends_on_a_later_one_where_a_model_is_validated(
    block: int | tuple[int, int], more: dict[str, Any], tells: bool
) -> None:
    of_input = ProductFormats(operand("fp4_e2m1", block_size=block, **more), operand("fp4_e2m1"))
    assert (LayerFormats(of_input).input_tile is not None) == tells
    step, model = Step(), llama()
    batch = ids(1).repeat(96, 1)
    batch[:, -1] = torch.arange(1, 97)  # every last token there is, behind the same others

    def differs() -> bool:
        before = model(batch).logits[:, :-1]
        return not torch.equal(before, before[:1].expand_as(before))

    with torch.no_grad(), training_layers(model, TrainingRecipe(LayerFormats(of_input)), step):
        assert differs() == tells
        step.validates = True
        assert not differs()
