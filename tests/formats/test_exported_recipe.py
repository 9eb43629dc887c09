"""Which target holds a recipe, as far as formats tell: what export refuses is not promised."""

from __future__ import annotations

from dataclasses import replace

from mxsweep.formats import MXFormat
from mxsweep.formats.export_targets import TARGET_NAMES
from mxsweep.formats.exported_recipe import ROTATING_TARGETS, why_not_recipe
from mxsweep.formats.recipe import LinearFormats, Recipe, Rotation

MXFP4 = Recipe(linear=LinearFormats(MXFormat("fp4_e2m1"), MXFormat("fp4_e2m1")))
NVFP4 = Recipe(linear=LinearFormats(MXFormat("fp4_e2m1", 16, "e4m3", tensor_scale=True)))


def test_inputs_that_are_rotated_as_the_model_runs() -> None:
    rotated = replace(MXFP4, rotation=Rotation(("o", "down")))
    assert why_not_recipe(MXFP4, "quark") is None
    assert "quark: inputs that are rotated" in str(why_not_recipe(rotated, "quark"))
    assert why_not_recipe(rotated, "compressed-tensors") is None
    assert why_not_recipe(replace(MXFP4, rotation=Rotation(("qk",))), "quark") is None


def test_no_target_holds_inputs_with_matrices_of_their_own() -> None:
    adapted = replace(MXFP4, rotation=Rotation(("o", "down"), 32, "wush"))
    for target in TARGET_NAMES:
        assert "(rotation=wush) have no place in a packed checkpoint" in str(why_not_recipe(adapted, target))


def test_targets_that_rotate_say_how() -> None:
    from mxsweep.export.folder import target_module

    assert [name for name in TARGET_NAMES if hasattr(target_module(name), "transform_config")] == [*ROTATING_TARGETS]


def test_scales_of_the_tensor_that_fused_layers_do_not_share() -> None:
    for target in ("compressed-tensors", "modelopt"):
        assert "format.share_tensor_scale=fused" in str(why_not_recipe(NVFP4, target))
        assert why_not_recipe(replace(NVFP4, shares_tensor_scales=True), target) is None
    assert why_not_recipe(NVFP4, "gguf") is None  # llama.cpp has a scale for each
