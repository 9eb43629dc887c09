"""Figures: what is drawn of which runs, under which names, as valid Vega-Lite."""

import itertools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pytest
from helpers.made_report import put_study
from helpers.made_runs import config, outcomes, put

from mxsweep.report.figures.costs import MOST_DRAWN, ROOM_FOR_NAME, shortened
from mxsweep.report.figures.error_heat_map import heat_map
from mxsweep.report.figures.figure import Figure, file_name
from mxsweep.report.figures.figure_files import draw_figures, group_figures
from mxsweep.report.figures.line_points import MOST_LINES, places_of
from mxsweep.report.figures.look import look
from mxsweep.report.figures.panels import Panel, both_ways, draw_weights
from mxsweep.report.figures.panels import chart as panels_chart
from mxsweep.report.page.evidence import error_table
from mxsweep.results.groups import read_results
from mxsweep.statistics.paired_tests import compare_log_perplexity
from mxsweep.study.group_study import Study, study_groups
from mxsweep.study.memory_front import unbeaten
from mxsweep.study.memory_terms import Terms

INFINITE = {"acc": 0.5, "perplexity": float("inf"), "perplexity_stderr": float("nan")}


def only_study(folder: Path) -> Study:
    (study,) = study_groups(read_results(folder))
    return study


def figure(study: Study, stem: str) -> Figure:
    return next(figure for figure in group_figures(study) if figure.stem == stem)


def data(spec: dict[str, Any], name: str = "points") -> list[dict[str, Any]]:
    return spec["datasets"][name]


def test_each_swept_knob_has_its_figures(tmp_path: Path) -> None:
    put_study(tmp_path)
    study = only_study(tmp_path)
    lines = [f"{y}_vs_{x}" for y in ("accuracy", "perplexity") for x in ("block_size", "scale_bits", "kv_quant")]
    assert [figure.stem for figure in group_figures(study)] == ["cost", *lines, "tradeoff"]
    (figures, heat) = draw_figures([study], tmp_path / "..")[""]
    assert heat is not None and heat.figure.stem == "sqnr"
    for drawn in [*figures, heat.figure]:
        png, svg, pdf = drawn.files
        assert png.read_bytes().startswith(b"\x89PNG\r\n") and svg.read_text().startswith("<svg")
        assert pdf.read_bytes().startswith(b"%PDF")


def test_charts_are_valid_vega_lite(tmp_path: Path) -> None:
    put_study(tmp_path)
    study = only_study(tmp_path)
    heat = heat_map(study)
    assert heat is not None
    for drawn in [*group_figures(study), heat.figure]:
        for spec in (drawn.page_spec(), drawn.file_spec()):
            altair.Chart.from_dict(spec)  # checks it against the schema
            assert spec["$schema"] == "https://vega.github.io/schema/vega-lite/v6.json"


def test_a_line_for_each_combination_of_the_other_knobs_and_equal_ones_are_one(tmp_path: Path) -> None:
    put_study(tmp_path)
    study = only_study(tmp_path)
    drawn = figure(study, "perplexity_vs_block_size")
    # Scale bits 6 and 8 came out the same in both lines, so that they tell nothing apart.
    assert [entry.name for entry in drawn.entries] == ["KV unquantized", "KV fp4_e2m1", "baseline"]
    points = data(drawn.page_spec())
    assert len(points) == 6 and all(point["low"] < point["y"] < point["high"] for point in points)
    assert [point["y"] for point in data(drawn.page_spec(), "baselines")] == [1.0]
    assert drawn.columns == ["block size", "line", "perplexity, ratio to the baseline", "runs"]
    assert len(drawn.cells) == 6 and {cells[-1] for cells in drawn.cells} == {"2"}
    spec = drawn.page_spec()["layer"][1]["layer"][0]["encoding"]
    assert (spec["x"]["title"], spec["y"]["scale"]["type"]) == ("block size", "log")
    assert points[0]["run"] == "id_block_size16_scale_bits6_kv_quantnone, id_block_size16_scale_bits8_kv_quantnone"


def test_what_is_drawn_is_the_paired_change_from_the_baseline(tmp_path: Path) -> None:
    put_study(tmp_path)
    study = only_study(tmp_path)
    for stem, nothing in (("perplexity_vs_block_size", 1.0), ("accuracy_vs_block_size", 0.0)):
        for point in data(figure(study, stem).page_spec()):
            row = next(row for row in study.rows if row.run.run_id == point["run"].split(", ")[0])
            compared = study.comparisons[row.run.path]
            measured = compared.perplexity if nothing else compared.accuracy
            assert measured is not None
            form = math.exp if nothing else float
            assert (point["y"], point["low"], point["high"]) == pytest.approx(
                (form(measured.difference), form(measured.low), form(measured.high))
            )
            assert point["said"] == "significant" and "[" in point["change"]


def test_a_line_that_came_out_the_same_only_in_part_stays_one_of_its_own(tmp_path: Path) -> None:
    put_study(tmp_path, kv=("none",), noise=False, diagnostics=False)
    study = only_study(tmp_path)
    assert [entry.name for entry in figure(study, "accuracy_vs_block_size").entries] == [
        "scale bits 6 or 8",
        "baseline",
    ]
    likelihood = -np.random.default_rng(5).gamma(1, 1, 200)
    put(tmp_path / "odd", outcomes(list(likelihood)), block_size=16, scale_bits=7)
    put(tmp_path / "odd2", outcomes(list(likelihood - 0.1)), block_size=32, scale_bits=7)
    names = [entry.name for entry in figure(only_study(tmp_path), "accuracy_vs_block_size").entries]
    assert names == ["scale bits 6 or 8", "scale bits 7", "baseline"]


def test_a_combination_of_one_value_is_left_out_where_others_have_several(tmp_path: Path) -> None:
    put_study(tmp_path, noise=False, diagnostics=False)
    put(tmp_path / "odd", outcomes(list(-np.random.default_rng(5).gamma(1, 1, 200))), block_size=128, scale_bits=7)
    drawn = figure(only_study(tmp_path), "accuracy_vs_block_size")
    assert [entry.name for entry in drawn.entries] == ["KV unquantized", "KV fp4_e2m1", "baseline"]
    assert "Not drawn: 1 combinations" in drawn.caption
    assert "128" not in str(drawn.page_spec()["layer"][1]["layer"][0]["encoding"]["x"]["axis"])


def test_without_a_baseline_the_change_is_that_from_the_first_value(tmp_path: Path) -> None:
    put_study(tmp_path, baseline=False, scale_bits=(8,))
    study = only_study(tmp_path)
    drawn = figure(study, "perplexity_vs_block_size")
    points = [point for point in data(drawn.page_spec()) if point["series"] == "KV unquantized"]
    assert "ratio to block size 16" in drawn.columns[2] and points[0]["y"] == 1.0
    assert "low" not in points[0] and 1 < points[1]["low"] < points[1]["y"] < points[2]["y"]
    rows = {row.knobs["block_size"]: row for row in study.rows if row.knobs["kv_quant"] == "none"}
    ratio = rows[64].metrics["perplexity"] / rows[16].metrics["perplexity"]
    assert points[2]["y"] == pytest.approx(ratio)


def test_of_unknown_examples_the_metric_itself_is_drawn_and_the_caption_says_so(tmp_path: Path) -> None:
    put_study(tmp_path, samples=False)
    drawn = figure(only_study(tmp_path), "accuracy_vs_block_size")
    assert "unpaired: nothing is known of single examples" in drawn.caption
    points = data(drawn.page_spec())
    assert all(point["high"] - point["y"] == pytest.approx(0.02) for point in points)
    (base,) = data(drawn.page_spec(), "baselines")
    assert base["low"] < base["y"] < base["high"] and base["y"] > max(point["y"] for point in points)


def test_a_knob_s_words_and_its_knobs_names_go_with_the_format(tmp_path: Path) -> None:
    base = -np.random.default_rng(0).gamma(0.7, 2, 50)
    put(tmp_path / "base", outcomes(list(base)), format="none")
    for index, (fmt, block) in enumerate((("mxfp4", 32), ("w4a6", 16))):
        for bits in (6, 8):
            likelihood = base - 0.1 * (index + 1) - bits / 100
            put(tmp_path / f"{fmt}{bits}", outcomes(list(likelihood)), format=fmt, block_size=block, scale_bits=bits)
    drawn = figure(only_study(tmp_path), "perplexity_vs_format")
    assert [entry.name for entry in drawn.entries] == ["scale bits 6", "scale bits 8", "baseline"]
    assert "block size goes with the format" in drawn.caption


def test_too_many_lines_become_medians_of_the_knob_that_tells_most(tmp_path: Path) -> None:
    put(tmp_path / "base", metrics={"story": {"acc": 0.9}}, format="none")
    for index, (seed, bits, block) in enumerate(itertools.product(range(MOST_LINES), (6, 8), (16, 32))):
        value = 0.5 + bits / 100 - block / 1000 + seed / 1e5
        put(tmp_path / str(index), metrics={"story": {"acc": value}}, seed=seed, scale_bits=bits, block_size=block)
    drawn = figure(only_study(tmp_path), "accuracy_vs_block_size")
    assert [entry.name for entry in drawn.entries] == ["scale bits 6", "scale bits 8", "baseline"]
    assert f"of {2 * MOST_LINES} combinations of the other knobs the median and the range" in drawn.caption
    points = data(drawn.page_spec())
    assert len(points) == 4
    assert points[0]["y"] == pytest.approx(0.5 + 0.06 - 0.016 + (MOST_LINES - 1) / 2e5)
    assert (points[0]["low"], points[0]["high"]) == pytest.approx((0.544, 0.544 + (MOST_LINES - 1) / 1e5))


def test_too_many_lines_are_averaged_example_by_example(tmp_path: Path) -> None:
    drawn = np.random.default_rng(3)
    base = -drawn.gamma(0.7, 2, 40)
    put(tmp_path / "base", outcomes(list(base)), format="none")
    runs: dict[tuple[int, int], list[np.ndarray]] = {}
    for seed, bits, block in itertools.product(range(MOST_LINES), (6, 8), (16, 32)):
        if (seed, bits, block) == (0, 6, 32):
            continue  # what is averaged at one value of a line is averaged at all
        likelihood = base - 0.1 * bits - block / 100 + drawn.normal(0, 0.05, 40)
        if (seed, bits) != (0, 6):
            runs.setdefault((bits, block), []).append(likelihood)
        name = f"{seed}_{bits}_{block}"
        put(tmp_path / name, outcomes(list(likelihood)), seed=seed, scale_bits=bits, block_size=block)
    averaged = figure(only_study(tmp_path), "perplexity_vs_block_size")
    assert "averaged over all but scale bits" in averaged.caption
    points = data(averaged.page_spec())
    assert [(point["series"], point["run"]) for point in points] == [
        *[("scale bits 6", f"{MOST_LINES - 1} runs")] * 2,
        *[("scale bits 8", f"{MOST_LINES} runs")] * 2,
    ]
    for point, (bits, block) in zip(points, itertools.product((6, 8), (16, 32)), strict=True):
        expected = compare_log_perplexity(base, np.mean(runs[bits, block], axis=0))
        assert (point["y"], point["low"], point["high"]) == pytest.approx(
            tuple(map(math.exp, (expected.difference, expected.low, expected.high)))
        )


def test_values_that_were_run_in_no_combination_in_common_are_joined_by_no_line(tmp_path: Path) -> None:
    """What is different between them may be any of the other knobs: no such figure is in the page."""
    put(tmp_path / "base", outcomes([-1.0] * 4), format="none")
    for seed in range(2 * MOST_LINES):
        block = 16 if seed < MOST_LINES else 32
        put(tmp_path / f"{seed}", outcomes([-1.0 - seed / 10] * 4), seed=seed, block_size=block)
    drawn = figure(only_study(tmp_path), "perplexity_vs_block_size")
    assert "which are not the same at all values" in drawn.caption and not drawn.in_page
    assert len({point["segment"] for point in data(drawn.page_spec())}) == len(data(drawn.page_spec())) == 2


def test_long_names_keep_the_ends_that_tell_them_apart() -> None:
    start = "w4a6, KV fp4_e2m1, gptq, rotation hadamard, first 4 tokens kept, last 32 tokens kept"
    names = ["w4a6, KV unquantized, gptq", start, f"{start}, keys before RoPE"]
    assert shortened(names) == [
        names[0],
        "w4a6, KV fp4_e2m1, …, last 32 tokens kept",
        "w4a6, KV fp4_e2m1, …, keys before RoPE",
    ]
    assert all(len(name) <= ROOM_FOR_NAME for name in shortened(names))
    # Without their middles these would be the same.
    assert shortened([f"a, b, {one * 60}, z" for one in "cd"]) == [f"a, b, {one * 60}, z" for one in "cd"]


def test_places_keep_the_order_of_values(tmp_path: Path) -> None:
    for index, block in enumerate((0, [16, 16], 48, 16, 8)):
        put(tmp_path / str(index), block_size=block)
    rows = read_results(tmp_path).groups[0].rows
    places = places_of("block_size", rows)
    assert sorted(places, key=lambda text: places[text]) == ["8", "16", "48", "0", "16x16"]
    assert places["16"] - places["8"] == 1 and places["48"] - places["16"] == pytest.approx(1.585, abs=1e-3)


def test_infinite_and_nan_values_are_not_drawn(tmp_path: Path) -> None:
    put(tmp_path / "a", metrics={"story": INFINITE}, block_size=16)
    put(tmp_path / "b", metrics={"story": INFINITE | {"perplexity": 3.0}}, block_size=32)
    study = only_study(tmp_path)
    draw_figures([study], tmp_path)
    assert [point["run"] for point in data(figure(study, "perplexity_vs_block_size").page_spec())] == ["id_b"]
    assert len(data(figure(study, "accuracy_vs_block_size").page_spec())) == 2


def test_wide_perplexities_have_an_axis_of_logarithms(tmp_path: Path) -> None:
    for block, ppl in ((16, 3.0), (32, 300.0)):
        metrics = {"perplexity": ppl, "perplexity_stderr": 2 * ppl}
        put(tmp_path / str(block), metrics={"story": metrics}, block_size=block)
    spec = figure(only_study(tmp_path), "perplexity_vs_block_size").page_spec()
    assert '"log"' in str(spec).replace("'", '"')
    assert min(point["low"] for point in data(spec)) > 0


def test_names_with_odd_characters_make_files_and_texts(tmp_path: Path) -> None:
    for index, name in enumerate(('a"b]</script>', "ü ✓ \\ '")):
        put(tmp_path / str(index), metrics={"story": {"acc": 0.5 + index / 10}}, modules={name: "none"})
    study = only_study(tmp_path)
    (figures, _) = draw_figures([study], tmp_path)[""]
    assert "accuracy_vs_modules" in {drawn.stem for drawn in figures}
    assert "</script>" not in (tmp_path / "accuracy_vs_modules.svg").read_text()


def test_looks_differ() -> None:
    looks = [look(index) for index in range(2 * MOST_LINES)]
    assert len({(one.colour, one.shape, one.dash) for one in looks}) == len(looks)
    for a, b in itertools.pairwise(looks):
        assert a.colour != b.colour and a.shape != b.shape and a.dash != b.dash


def test_panels_are_valid_vega_lite() -> None:
    cells = [{"name": "a.0.q", "row": "0", "column": "q", "value": 1.5}, {"name": "b", "row": "none", "column": "q"}]
    panel = Panel("one", cells, "dB", {"scheme": "viridis", "type": "sqrt", "domainMin": 0}, ".2f", ".1f")
    spec = panels_chart("two of them", [panel, replace(panel, scale=both_ways(cells))], ["0", "none"], ["q"])
    altair.Chart.from_dict(spec)
    assert len(spec["concat"]) == 2 and spec["concat"][1]["encoding"]["color"]["scale"]["domain"] == [-1.5, 1.5]


@dataclass(frozen=True)
class Weights:
    label: str
    format: str
    sqnr_db: tuple[float, ...]
    bits_per_weight: float = 4.25

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"module": f"m{i}", "layer": i, "part": "q", "format": self.format, "sqnr_db": value}
            for i, value in enumerate(self.sqnr_db)
        ]


def test_panels_of_one_width_of_elements_share_their_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[dict[str, Any]] = []
    monkeypatch.setattr("mxsweep.report.figures.panels.write_chart", lambda spec, *_: specs.append(spec) or [])
    formats = ("fp4_e2m1-b32-e8m0", "fp4_e2m1-b16-e4m3", "int8-b32-e8m0")
    values = ((18.0, 19.0), (19.5, 21.0), (40.0, 42.0))
    draw_weights([Weights(fmt, fmt, some) for fmt, some in zip(formats, values, strict=True)], tmp_path)
    domains = [panel["encoding"]["color"]["scale"]["domain"] for panel in specs[0]["concat"]]
    assert domains == [[18.0, 21.0], [18.0, 21.0], [40.0, 42.0]]


# ------------------------------------------------------------------------------------------- trade-off


def put_sized(folder: Path, bits: float, ppl: float, **knobs: Any) -> None:
    record = {"diagnostics": {"bits_per_weight": bits, "parameter_bytes": 1000 * bits}}
    put(folder, metrics={"story": {"perplexity": ppl}}, record=record, **knobs)


def test_pareto_front(tmp_path: Path) -> None:
    points = {"a": (4.0, 9.0), "b": (4.5, 3.0), "c": (5.0, 4.0), "d": (8.0, 2.5), "e": (8.0, 2.5), "f": (4.0, 10.0)}
    assert unbeaten(points, lambda name: points[name]) == ["a", "b", "d"]
    assert unbeaten([(1.0, math.inf), (2.0, 1.0), (1.0, math.nan)], lambda point: point) == [(2.0, 1.0)]
    for seed, (name, (bits, ppl)) in enumerate(points.items()):
        put_sized(tmp_path / name, bits, ppl, seed=seed)
    drawn = figure(only_study(tmp_path), "tradeoff")
    assert [point["number"] for point in data(drawn.page_spec(), "front")] == ["1", "2", "3"]
    assert [note[0] for note in drawn.notes] == ["1", "2", "3"]
    assert [row[-2:] for row in drawn.cells if row[-2] != "no"] == [["1", "id_a"], ["2", "id_b"], ["3", "id_d, id_e"]]
    assert drawn.columns[1] == "bits per weight" and "keys and values do not count" in drawn.caption


def test_memory_counts_keys_and_values_at_the_context_and_the_rule_is_drawn(tmp_path: Path) -> None:
    layers = [{"heads": 2, "key_size": 32, "value_size": 32, "window": None, "bits": 16, "layers": 4}]
    base = -np.random.default_rng(0).gamma(0.7, 2, 50)
    runs = {"base": (8e6, None, 0.0), "big": (2e6, None, 0.01), "small": (1e6, "fp4_e2m1-b32-e8m0", 0.5)}
    for name, (size, kv, cost) in runs.items():
        is_base = name == "base"
        quantized = None if is_base else {"layers": [["", name, None]], "kv": [kv, kv], "computed": ["torch", "native"]}
        record = {
            "identity": {"model": "m", "quantized": quantized},
            "diagnostics": {"parameter_bytes": size, "bits_per_weight": 4.25, "cache_layers": layers},
            "config": config(format="none" if is_base else "w4a6", kv_quant="fp4_e2m1" if kv else "none"),
        }
        put(tmp_path / name, outcomes(list(base - cost)), record=record)
    study = only_study(tmp_path)
    for context in (1000, 8192):
        drawn = next(one for one in group_figures(study, Terms(context, 0.02)) if one.stem == "tradeoff")
        token = 4 * 2 * 64 * 2  # bytes
        at = {point["run"]: point["x"] for point in data(drawn.page_spec())}
        assert at == pytest.approx(
            {"id_big": 2 + context * token / 1e6, "id_small": 1 + context * token * 4.25 / 16 / 1e6}
        )
        assert f"keys and values of {context:,} tokens" in drawn.columns[1]
    for path in tmp_path.glob("*/result.json"):
        record = json.loads(path.read_text())
        record["diagnostics"]["max_positions"] = 64
        path.write_text(json.dumps(record))
    held = next(one for one in group_figures(only_study(tmp_path), Terms(8192)) if one.stem == "tradeoff")
    assert "keys and values of 64 tokens" in held.columns[1] and "of the keys and values of 64 tokens" in held.caption
    rules = {base["series"]: base["y"] for base in data(drawn.page_spec(), "baselines")}
    assert rules == {"baseline": 1.0, "2 % above the baseline": 1.02}
    assert [cells[-2] for cells in drawn.cells] in (["1", "2"], ["2", "1"])


def test_the_cost_of_every_config_is_drawn_once_the_least_first(tmp_path: Path) -> None:
    put_study(tmp_path)
    drawn = figure(only_study(tmp_path), "cost")
    points = data(drawn.page_spec(), "configs")
    assert len(points) == 6 and [point["row"] for point in points] == list(range(6))
    assert points[0]["name"] == "▸ block size 16, scale bits 6 or 8, KV unquantized" and points[0]["use"]
    assert [point["x"] for point in points] == sorted(point["x"] for point in points)
    assert all(1 < point["low"] < point["x"] < point["high"] and point["told"] for point in points)
    assert [cells[-1] for cells in drawn.cells] == ["2"] * 6
    x = drawn.page_spec()["layer"][2]["encoding"]["x"]
    assert x["scale"]["type"] == "log"


def test_of_many_configs_the_ends_are_drawn_and_all_are_listed(tmp_path: Path) -> None:
    put_study(tmp_path, blocks=tuple(range(8, 168, 8)), scale_bits=(8,), kv=("none",), noise=False, diagnostics=False)
    drawn = figure(only_study(tmp_path), "cost")
    assert len(data(drawn.page_spec(), "configs")) == MOST_DRAWN and len(drawn.cells) == 20
    assert "Of 20 configs the least and the most costly are drawn" in drawn.caption


def test_without_bits_there_is_no_trade_off(tmp_path: Path) -> None:
    put(tmp_path / "a", metrics={"story": {"perplexity": 2.0}})
    assert "tradeoff" not in {drawn.stem for drawn in group_figures(only_study(tmp_path))}


# ------------------------------------------------------------------------------------------- heat map


def test_heat_map_has_every_run_and_holds_equal_tensors_once(tmp_path: Path) -> None:
    put_study(tmp_path, scale_bits=(6, 8))
    heat = heat_map(only_study(tmp_path))
    assert heat is not None and len(heat.runs) == 12
    assert heat.kinds == ["weights", "activations", "keys", "values"]
    assert heat.columns[:3] == ["weight q_proj", "weight o_proj", "weight down_proj"]
    assert heat.columns[-2:] == ["keys", "values"] and heat.layers == ["0", "1", "2"]
    # By block size weights and activations differ; scale bits and the other runs of a block size change nothing.
    assert len(heat.pieces) == 3 + 3 + 1 + 1
    assert heat.parts[0][2:] == [-1, -1]  # the least costly run has no quantized keys
    assert heat.pieces[heat.parts[0][0]][0] == [0, 0, 17.75, 0.02, 0.13, 0.0, 4]
    assert heat.widths == [4, 6]
    assert heat.figure.cells[0][:3] == ["0", "17.8", "18.8"]


@pytest.mark.parametrize("method", ["hadamard", "wush"])
def test_errors_in_a_metric_of_their_own_are_said_to_be(tmp_path: Path, method: str) -> None:
    put_study(tmp_path, blocks=(16,), scale_bits=(8,), kv=("none",), noise=False)
    study = only_study(tmp_path)
    study.rows[-1].knobs["rotation"] = method
    heat, table = heat_map(study), error_table(study)
    assert heat is not None and table is not None
    for said in (heat.figure.caption, table.caption):
        assert ("not to be compared with those in another basis" in said) == (method == "wush")


def test_each_width_of_elements_has_a_scale_of_colours(tmp_path: Path) -> None:
    put_study(tmp_path, blocks=(16,), scale_bits=(8,), kv=("none",), noise=False)
    heat = heat_map(only_study(tmp_path))
    assert heat is not None
    for spec in (heat.figure.page_spec(), heat.figure.file_spec()):
        *coloured, _ = spec["layer"]
        assert [layer["transform"] for layer in coloured] == [[{"filter": f"datum.width === {w}"}] for w in (4, 6)]
        titles = [layer["encoding"]["color"]["legend"]["title"] for layer in coloured]
        assert titles == ["dB, 4-bit elements", "dB, 6-bit elements"]
        assert spec["resolve"] == {"scale": {"color": "independent"}}
        cells = data(spec, "cells")
        # Weights at 17 to 20 dB and activations at 28 to 31: of either some are on the dark half.
        assert {(cell["width"], cell["dark"]) for cell in cells} == {(4, True), (4, False), (6, True), (6, False)}


def test_heat_map_leaves_runs_out_for_its_size(tmp_path: Path) -> None:
    put_study(tmp_path)
    heat = heat_map(only_study(tmp_path), most_cells=20)
    assert heat is not None and 1 <= len(heat.runs) < 12
    assert f"of {len(heat.runs)} runs, for its size" in heat.figure.caption


def test_damaged_diagnostics_are_none(tmp_path: Path) -> None:
    put_study(tmp_path, blocks=(16,), scale_bits=(8,), kv=("none",), noise=False)
    study = only_study(tmp_path)
    for file in tmp_path.glob("*/diagnostics.parquet"):
        file.write_bytes(b"PAR1")
    assert heat_map(study) is None


def test_a_figure_is_a_file_of_its_folder_whatever_a_record_calls_it(tmp_path: Path) -> None:
    for usual in ("acc_vs_block_size", "exact_match,strict_vs_kv_quant.key", "cost_gemma-3"):
        assert file_name(usual) == usual
    odd = ["../../x", "/x", ".x", "a/b", "a\0b", "a\nb", "x" * 999, "\u00e4" * 150, "..", "a b"]
    names = [file_name(text) for text in odd]
    assert len(set(names)) == len(names)
    for name in names:
        (tmp_path / f"{name}.png").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.png" for name in names)
