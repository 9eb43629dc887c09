"""What costs what: runs that quantize kinds of tensor alone, sums of their costs, and where it is said."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import config, outcomes, put

from mxsweep.report.attribution_tables import cost_table, sum_table
from mxsweep.report.collection import collect
from mxsweep.results.groups import read_results
from mxsweep.statistics.paired_tests import compare_log_perplexity
from mxsweep.study.attribution import Attribution, describe_attributions, find_attributions, kinds_text
from mxsweep.study.comparison import compare_with_baselines
from mxsweep.study.group_study import study_groups

N = 60
RNG = np.random.default_rng(0)
BASE = -RNG.gamma(0.7, 2, N)
COSTS = {kind: RNG.normal(mean, 0.1, N) for kind, mean in zip("wakv", (0.4, 0.1, 0.2, 0.05), strict=True)}
TEXTS = {"w": "fp4_e2m1-b32-e8m0", "a": "fp6_e2m3-b32-e8m0", "k": "fp4_e2m1-b32-e8m0", "v": "fp4_e2m1-b32-e8m0"}
NAMES = {"w": "weight", "a": "activation", "k": "key", "v": "value"}
ALL = ("w", "a", "wa", "k", "v", "kv", "wakv")


def quantized(kinds: str, **more: Any) -> dict[str, Any]:
    """A run's entries of what it quantizes."""
    weight, activation, key, value = (TEXTS[kind] if kind in kinds else None for kind in "wakv")
    entries = {"layers": [["", weight, activation]], "kv": [key, value], "computed": ["torch", "native", 1]}
    return entries | more


def put_run(top: Path, kinds: str, excess: Any = 0.0, name: str = "", record: Any = None, **more: Any) -> None:
    """A run that quantizes these kinds, whose cost is the sum of theirs and an excess, and has more in its identity."""
    of_run, of_config = more.pop("of_run", {}), more.pop("of_config", {})
    identity = {"model": "m", "seed": 1, **of_run, "quantized": quantized(kinds, **more) if kinds else None}
    lost = sum((COSTS[kind] for kind in kinds), start=np.zeros(N)) + excess
    linear = {"w": "w:fp4_e2m1,a:none", "a": "w:none,a:fp6_e2m3", "wa": "w4a6"}
    cached = {"k": "k:fp4_e2m1,v:none", "v": "k:none,v:fp4_e2m1", "kv": "fp4_e2m1"}
    knobs = {
        "format": {
            "name": linear.get("".join(kind for kind in kinds if kind in "wa"), "none"),
            "weight": "fp4_e2m1" if "w" in kinds else "none",
            "activation": "fp6_e2m3" if "a" in kinds else "none",
        },
        "kv_quant": {
            "name": cached.get("".join(kind for kind in kinds if kind in "kv"), "none"),
            "key": "fp4_e2m1" if "k" in kinds else "none",
            "value": "fp4_e2m1" if "v" in kinds else "none",
        },
    }
    fields = {"identity": identity, "config": config() | knobs | of_config, **(record or {})}
    put(top / (name or kinds or "base"), outcomes(BASE - lost), record=fields)


def put_all(top: Path, excess: Any = 0.0, **more: Any) -> None:
    put_run(top, "")
    for kinds in ALL:
        put_run(top, kinds, excess if kinds == "wakv" else 0.0, **more)


def found(top: Path) -> list[Attribution]:
    results = read_results(top)
    (group,) = results.groups
    return find_attributions(results, group, compare_with_baselines(group))


def kinds(text: str) -> frozenset[str]:
    return frozenset(NAMES[kind] for kind in text)


def sums(one: Attribution) -> dict[str, tuple[str, ...]]:
    return {f"{kinds_text(each.whole)} {len(each.parts)}": tuple(map(kinds_text, each.parts)) for each in one.sums}


def test_each_kind_alone_and_the_sums(tmp_path: Path) -> None:
    put_all(tmp_path)
    (one,) = found(tmp_path)
    assert [kinds_text(each) for each in one.runs] == [
        *("weights", "activations", "keys", "values", "linear layers", "keys and values", "all")
    ]
    assert sums(one) == {
        "linear layers 2": ("weights", "activations"),
        "keys and values 2": ("keys", "values"),
        "all 2": ("linear layers", "keys and values"),
        "all 4": ("weights", "activations", "keys", "values"),
    }
    assert one.costs[kinds("w")].difference == pytest.approx(COSTS["w"].mean())
    for each in one.sums:
        assert each.excess.difference == pytest.approx(0, abs=1e-12) and not each.is_significant
    total = sum(lost.mean() for lost in COSTS.values())
    assert [each.total for each in one.sums if each.whole == one.whole] == pytest.approx([total, total])


def test_the_excess_over_the_sum_is_paired(tmp_path: Path) -> None:
    """Its interval is that of the excesses of the examples, in which what the parts cost is taken out."""
    excess = RNG.normal(0.3, 0.2, N)
    put_all(tmp_path, excess)
    (one,) = found(tmp_path)
    of_all = [each for each in one.sums if each.whole == one.whole]
    known = compare_log_perplexity(np.zeros(N), -excess)
    for each in of_all:
        assert vars(each.excess) == pytest.approx(vars(known))
        assert each.p == pytest.approx(min(1, len(one.sums) * known.p)) and each.is_significant
    (text,) = (finding.text for finding in describe_attributions([one]))
    assert "more than the sum of the costs of weights, activations, keys and values" in text
    assert text.startswith("With w4a6, KV fp4_e2m1, quantizing one kind of tensor alone changes log-perplexity by")
    assert text.index("(weights)") < text.index("(keys)") < text.index("(activations)") < text.index("(values)")
    assert [row[-1].text for row in sum_table([one]).rows] == ["not told apart"] * 2 + ["more than the sum"] * 2


@pytest.mark.parametrize(
    ("kinds", "other"),
    [
        ("w", {"layers": [["", "fp4_e2m1-b16-e8m0", None]]}),
        ("w", {"ptq": {"method": "gptq"}}),
        ("w", {"computed": ["cuda", "exact", 1]}),
        ("k", {"kv_options": {"key_axis": "channel"}}),
        ("v", {"kv_options": {"recent": 32}}),
        ("k", {"rotation": {"method": "hadamard"}}),
        ("a", {"of_run": {"seed": 2}}),
        ("wa", {"layers": [["", TEXTS["w"], TEXTS["a"]], ["*.down_proj", None, None]]}),
    ],
)
def test_what_differs_in_anything_else_is_no_part(tmp_path: Path, kinds: str, other: dict[str, Any]) -> None:
    put_run(tmp_path, "")
    for each in ALL:
        put_run(tmp_path, each, **(other if each == kinds else {}))
    shown = {"".join(sorted(part[0] for part in runs)) for one in found(tmp_path) for runs in one.runs}
    assert "".join(sorted(NAMES[kind][0] for kind in kinds)) not in shown and "akvw" in shown


def test_what_has_no_meaning_for_a_part_is_no_difference(tmp_path: Path) -> None:
    """Values by themselves have no channel axis of keys, and activations no way to round weights."""
    put_run(tmp_path, "")
    options = {"key_axis": "channel", "rope": "after", "first": 4, "recent": 0, "scales": "block", "smooth": 0.0}
    calibrated = {"ptq": {"method": "gptq"}, "calibration": {"source": "stories"}, "remedies": 1}
    put_run(tmp_path, "a")
    put_run(tmp_path, "w", **calibrated)
    put_run(tmp_path, "v", kv_options=options | {"key_axis": "token"})
    put_run(tmp_path, "wav", **calibrated, kv_options=options)
    (one,) = found(tmp_path)
    assert list(sums(one).values()) == [("weights", "activations", "values")]


def test_configs_are_apart_and_the_largest_stand_for_their_parts(tmp_path: Path) -> None:
    put_all(tmp_path)
    for each in ("w", "a", "wa"):
        texts = {kind: text.replace("b32", "b16") for kind, text in TEXTS.items() if kind in each}
        put_run(tmp_path, each, name=f"{each}16", layers=[["", texts.get("w"), texts.get("a")]])
    assert sorted(kinds_text(one.whole) for one in found(tmp_path)) == ["all", "linear layers"]


def test_without_what_it_takes(tmp_path: Path) -> None:
    """No parts, no attribution; without a baseline no costs; and nothing of runs that tell nothing of themselves."""
    put_run(tmp_path / "one", "")
    for each in ("w", "wa", "wakv"):
        put_run(tmp_path / "one", each)
    assert found(tmp_path / "one") == []
    for each in ALL:
        put_run(tmp_path / "none", each)
    (one,) = found(tmp_path / "none")
    assert one.costs == {} and one.sums == [] and list(describe_attributions([one])) == []
    put_run(tmp_path / "odd", "")
    for number, each in enumerate(ALL):
        odd = [{"layers": None}, {"kv": []}, {"training": {}}, {"ptq": {"formats": []}}, {"layers": [[]]}]
        put_run(tmp_path / "odd", each, **odd[number % len(odd)])
    assert [one for one in found(tmp_path / "odd") if len(one.runs) > 3] == []
    put(tmp_path / "old" / "base", outcomes(BASE), format="none")
    put(tmp_path / "old" / "run", outcomes(BASE - 1))
    assert found(tmp_path / "old") == []


def test_what_stands_beside_a_cost(tmp_path: Path) -> None:
    tensors = {"weight": {"elements": 200, "blocks": 10, "sqnr_db": 18.7, "saturated": 5, "flushed": 20, "clamped": 0}}
    distance = {"story": {"kl_nats": 0.05, "kl_nats_stderr": 0.01, "examples": 11, "positions": 40}}
    put_run(tmp_path, "")
    put_run(tmp_path, "w", record={"diagnostics": {"tensors": tensors, "distance": distance}})
    for each in ("a", "wa"):
        put_run(tmp_path, each)
    table = cost_table(found(tmp_path))
    cells = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    half = 2.2281388519649385 * 0.01  # Student's t with 10 degrees of freedom, 97.5 %
    weights = cells["weights"]
    assert weights["KL, nats"].text == f"0.05 [{0.05 - half:.3g}, {0.05 + half:.3g}]"
    assert [weights[name].text for name in ("SQNR, dB", "saturated", "became zero")] == ["18.7", "2.50%", "10.00%"]
    assert math.isclose(weights["Δ log-perplexity"].sort or 0, COSTS["w"].mean())
    assert {cells["linear layers"][name].text for name in ("KL, nats", "SQNR, dB", "saturated")} == {"–"}


@pytest.mark.parametrize("quantity", ["margin", "accuracy"])
def test_without_a_perplexity_margins_or_right_answers_are_lost(quantity: str, tmp_path: Path) -> None:
    put_all(tmp_path)
    margins = {}
    for each in ("", *ALL):
        folder = tmp_path / (each or "base")
        frame = pd.read_parquet(folder / "samples.parquet")
        frame["margin"] = margins[each] = 3 * frame.pop("loglikelihood") + 5
        frame["acc"] = (frame["margin"] > 0).astype(int)
        named = {"acc": float(frame["acc"].mean()), "margin": float(frame["margin"].mean())}
        if quantity == "accuracy":
            del frame["margin"], named["margin"]
        frame.to_parquet(folder / "samples.parquet", index=False)
        record = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(record | {"metrics": {"story": named}}))
    lost = {
        each: margins[""] - values if quantity == "margin" else (margins[""] > 0) * 1.0 - (values > 0)
        for each, values in margins.items()
    }
    (one,) = found(tmp_path)
    assert one.quantity == quantity
    for each in ALL:
        cost = one.costs[kinds(each)]
        assert cost.difference == pytest.approx(lost[each].mean()) and cost.low <= cost.difference <= cost.high
    for each in one.sums:
        parts = [lost["".join(k for k in "wakv" if NAMES[k] in part)] for part in each.parts]
        whole = lost["".join(k for k in "wakv" if NAMES[k] in each.whole)]
        known = compare_log_perplexity(sum(parts), whole)
        assert each.total == pytest.approx(sum(part.mean() for part in parts))
        assert each.excess.difference == pytest.approx(-known.difference, abs=1e-12)
        assert each.excess.high - each.excess.low == pytest.approx(known.high - known.low)
    assert cost_table([one]).columns[1] == {"margin": "mean margin lost", "accuracy": "accuracy lost"}[quantity]
    (text,) = (finding.text for finding in describe_attributions([one]))
    assert f"costs this much {quantity}:" in text
    together = verdict(tmp_path)["Together"]
    of_all = max((each for each in one.sums if each.whole == one.whole), key=lambda each: len(each.parts))
    assert f"keys and values by themselves make {of_all.total:+.3g} (excess " in together.replace("−", "-")
    assert "add" in together and "×" not in together


def test_a_format_without_native_arithmetic_is_the_same_beside_one_that_has_it(tmp_path: Path) -> None:
    exact = "fp4_e2m1-b32-e8m0-scale_even"
    put_run(tmp_path, "")
    put_run(tmp_path, "w", layers=[["", exact, None]], computed=["torch", "exact", 1])
    put_run(tmp_path, "a")
    put_run(tmp_path, "wa", layers=[["", exact, TEXTS["a"]]])
    (one,) = found(tmp_path)
    assert sums(one) == {"linear layers 2": ("weights", "activations")}


def test_words_on_scales_of_one_kind_are_no_difference_to_parts_of_the_other(tmp_path: Path) -> None:
    put_run(tmp_path, "")
    of_weights, of_inputs = {"format.share_tensor_scale": "fused"}, {"format.activation_scale": "static"}
    calibrated = {"calibration": {"source": "stories"}}
    put_run(tmp_path, "w", **of_weights)
    put_run(tmp_path, "a", **of_inputs, **calibrated)
    put_run(tmp_path, "k")
    put_run(tmp_path, "wak", **of_weights, **of_inputs, **calibrated)
    (one,) = found(tmp_path)
    assert list(sums(one).values()) == [("weights", "activations", "keys")]
    put_run(tmp_path / "b", "a", of_run={"seed": 2})
    put_run(tmp_path / "b", "w", of_run={"seed": 2}, **of_weights)
    put_run(tmp_path / "b", "wa", of_run={"seed": 2}, **of_weights, **of_inputs, **calibrated)
    assert len(found(tmp_path)) == 1  # inputs under another scale are no part


def percent(costs: Any) -> str:
    return f"{math.expm1(np.mean(costs)):+.1%}"


def ratio(costs: Any) -> str:
    return f"×{math.exp(np.mean(costs)):.3f}"


def verdict(top: Path) -> dict[str, str]:
    (study,) = study_groups(read_results(top))
    return {line.title: line.text for line in study.verdict.lines}


def test_a_study_of_single_kinds_answers_which_costs_most_and_whether_costs_add_up(tmp_path: Path) -> None:
    excess = RNG.normal(0.3, 0.2, N)
    put_all(tmp_path, excess)
    said = verdict(tmp_path)
    assert list(said) == ["Costs most", "Together", "Cost", "How sure"]
    most = said["Costs most"]
    assert most.startswith(f"Weights alone in fp4_e2m1: perplexity {percent(COSTS['w'])} [")
    assert ", significantly more than every other part. Then keys alone in fp4_e2m1 " in most
    places = [
        most.index(f"{name} {percent(COSTS[name[0]])} [")
        for name in ("keys alone in fp4_e2m1", "activations alone in fp6_e2m3", "values alone in fp4_e2m1")
    ]
    assert places == sorted(places)
    total = sum(COSTS.values())
    assert said["Together"].startswith(
        "The costs do not multiply: together they are more than the product of their ratios. w4a6, KV fp4_e2m1: "
        f"perplexity {ratio(total + excess)}, where weights, activations, keys and values by themselves multiply to "
        f"{ratio(total)} (excess {ratio(excess)} [×"
    )
    linear = COSTS["w"] + COSTS["a"]
    assert (
        f"linear layers: perplexity {ratio(linear)}, where weights and activations by themselves multiply to "
        f"{ratio(linear)} (excess ×1.000 [×1.000, ×1.000], not told apart)" in said["Together"]
    )
    assert said["Cost"].startswith("Perplexity ") and "(values alone in fp4_e2m1) to" in said["Cost"]


def test_a_reader_can_multiply_what_the_parts_cost(tmp_path: Path) -> None:
    put_all(tmp_path, RNG.normal(0.3, 0.2, N))
    said = verdict(tmp_path)
    shares = [float(text) for text in re.findall(r" \+([\d.]+)% \[", said["Costs most"])]
    together, parts, excess = (float(text) for text in re.findall(r"×([\d.]+)", said["Together"])[:3])
    assert len(shares) == 4 and math.prod(1 + share / 100 for share in shares) == pytest.approx(parts, rel=3e-3)
    assert parts * excess == pytest.approx(together, rel=2e-3)


def test_what_cannot_be_told_apart_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = RNG.normal(0, 0.3, N)
    monkeypatch.setitem(COSTS, "k", COSTS["w"] + noise - noise.mean() - 0.001)
    excess = RNG.normal(0, 0.3, N)
    put_all(tmp_path, excess - excess.mean() + 0.001)
    said = verdict(tmp_path)
    assert ", but not measurably more than keys. Then keys alone in fp4_e2m1 " in said["Costs most"]
    assert said["Together"].startswith("The costs cannot be told from ratios that multiply. ")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((16, 32), None),
        ((16, 32, 64), "1 more config was taken apart: what its parts cost stands below, under What costs what."),
        (
            (8, 16, 32, 64),
            "2 more configs were taken apart: what their parts cost stands below, under What costs what.",
        ),
    ],
)
def test_configs_whose_parts_are_not_told_are_counted(sizes: tuple[int, ...], said: str | None, tmp_path: Path) -> None:
    put_run(tmp_path, "")
    for size in sizes:
        for each in ALL:
            entries = quantized(each)
            ((name, *linear),) = entries["layers"]
            layers, kv = (
                [text and text.replace("b32", f"b{size}") for text in texts] for texts in (linear, entries["kv"])
            )
            put_run(
                tmp_path, each, name=f"{each}{size}", layers=[[name, *layers]], kv=kv, of_config={"block_size": size}
            )
    (study,) = study_groups(read_results(tmp_path))
    titles = [line.title for line in study.verdict.lines]
    assert titles[:4] == ["Costs most", "Together"] * 2
    assert verdict(tmp_path).get("Others") == said
    page = collect(tmp_path).text
    assert len(study.attributions) == len(sizes) and all(one.config in page for one in study.attributions)


def test_of_more_than_the_parts_of_a_config_it_is_said_what_to_use(tmp_path: Path) -> None:
    put_all(tmp_path)
    put_run(tmp_path, "w", 0.1, name="other", layers=[["", "int8-b32-e8m0", None]])
    assert "Use" in verdict(tmp_path) and "Costs most" not in verdict(tmp_path)


def test_where_it_is_shown(tmp_path: Path) -> None:
    put_all(tmp_path, 0.5)
    printed = collect(tmp_path).text
    markdown, page = ((tmp_path / name).read_text() for name in ("results.md", "report.html"))
    for text in (printed, markdown, page):
        assert "What costs what" in text and "linear layers + keys and values" in text
    assert "### What costs what" in markdown and 'id="group-1-costs"' in page
    lines = printed[printed.index("What costs what") :].splitlines()
    assert max(map(len, lines)) <= 100
