"""What a sweep that trained gets in the report: figures, tables, a section of the page; and others nothing of it."""

from pathlib import Path

import altair
import pytest
from helpers.made_report import put_study
from helpers.made_trainings import STEPS, put_training

from mxsweep.report.collection import collect
from mxsweep.report.figures import training_curves
from mxsweep.report.figures.figure import Figure
from mxsweep.report.figures.figure_files import group_figures
from mxsweep.report.training_tables import pair_table, ranking_table
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import Study, study_groups

ROLES = {"fprop.weight": 18.0, "dgrad.grad": 15.0, "dW": 11.0}
STEMS = [
    "training_curves",
    "training_change",
    "training_ranking",
    "training_roles",
    "training_operands",
]


def put_sweep(top: Path, seeds: tuple[int, ...] = (1, 2)) -> None:
    for seed in seeds:
        put_training(top / f"base{seed}", seed, speed=2000)
        for block, cost in ((16, 0.02), (32, 0.03)):
            name, loss = f"b{block}s{seed}", cost + seed / 1000
            put_training(top / name, seed, cost=loss, format="mxfp4", block_size=block, roles=ROLES)


def studied(top: Path) -> Study:
    (study,) = study_groups(read_results(top))
    return study


def figures(top: Path) -> dict[str, Figure]:
    return {figure.stem: figure for figure in group_figures(studied(top))}


def test_figures_are_valid_charts_and_of_one_seed_those_against_knobs_come_after(tmp_path: Path) -> None:
    put_sweep(tmp_path / "one", seeds=(1,))
    assert list(figures(tmp_path / "one")) == [*STEMS, "loss_vs_block_size"]
    put_sweep(tmp_path / "two")
    drawn = figures(tmp_path / "two")
    assert list(drawn) == STEMS
    for figure in drawn.values():
        for spec in (figure.page_spec(), figure.file_spec()):
            altair.Chart.from_dict(spec)  # checks it against the schema


def test_a_line_is_the_mean_over_seeds_in_their_range(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    points = figures(tmp_path)["training_curves"].page_spec()["datasets"]["points"]
    assert {point["series"] for point in points} == {"baseline", "block_size=16", "block_size=32"}
    assert len(points) == 3 * STEPS and all(point["low"] <= point["y"] <= point["high"] for point in points)


def test_the_change_against_the_baseline_is_paired_by_step_and_seed(tmp_path: Path) -> None:
    """What a seed adds to every loss is in neither."""
    put_sweep(tmp_path)
    points = figures(tmp_path)["training_change"].page_spec()["datasets"]["points"]
    last = {point["series"]: point for point in points if point["x"] == max(other["x"] for other in points)}
    assert list(last) == ["block_size=16", "block_size=32"]
    assert last["block_size=16"]["y"] == pytest.approx(0.0215, abs=1e-5)
    assert (last["block_size=16"]["low"], last["block_size=16"]["high"]) == pytest.approx((0.021, 0.022), abs=1e-5)


def test_long_curves_are_drawn_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_curves, "MOST_POINTS", 5)
    put_sweep(tmp_path)
    points = figures(tmp_path)["training_curves"].page_spec()["datasets"]["points"]
    assert len(points) == 3 * 5


def test_of_many_configs_the_best_and_the_worst_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_curves, "MOST_LINES", 3)
    put_sweep(tmp_path, seeds=(1,))
    put_training(tmp_path / "middle", 1, cost=0.025, format="mxfp4", block_size=64)
    figure = figures(tmp_path)["training_curves"]
    assert [entry.name for entry in figure.entries] == ["baseline", "block_size=16", "block_size=32"]
    assert "1 more configs are in the table alone" in figure.caption


def test_the_heat_map_has_a_row_for_each_operand_of_each_config(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    figure = figures(tmp_path)["training_roles"]
    assert [row[0] for row in figure.cells[:3]] == [
        f"block_size=16: {name}" for name in ("fprop.weight", "dgrad.grad", "dW")
    ]
    assert figure.cells[2] == ["block_size=16: dW", "11.1", "–", "–", "–", "0.9900", "0.950"]


def test_configs_are_beside_each_other_by_what_tells_most_of_an_operand(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    figure = figures(tmp_path)["training_operands"]
    assert figure.columns == [
        "config",
        *(f"dB of {operand}" for operand in ("fprop.weight", "dgrad.grad", "dW")),
        *(f"{measure} of dW" for measure in ("cosine", "slope")),
        *(f"{measure} of dgrad.grad" for measure in ("became zero", "saturated", "scales clamped")),
    ]
    assert [row[:4] for row in figure.cells] == [[f"block_size={block}", "18.1", "15.1", "11.1"] for block in (16, 32)]


def test_tables_rank_configs_and_say_which_can_be_told_apart(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    put_training(tmp_path / "d1", 1, diverged_at=7, format="w4a6")
    study = studied(tmp_path).training
    assert study is not None
    table = ranking_table(study)
    assert [row[0] for row in table.texts][::3] == ["baseline", "format=w4a6"]
    assert table.texts[-1][-1] == "1 of 1 (step 7)"
    pairs, said = pair_table(study)
    assert len(pairs.rows) == 1 and said.startswith("1 of 1 pair of configs can be told apart")


def test_a_config_of_one_seed_looks_no_surer_than_others(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    put_training(tmp_path / "alone", 1, cost=0.05, format="mxfp4", block_size=64)
    study = studied(tmp_path).training
    assert study is not None
    table = ranking_table(study)
    verdicts = {row[0]: row[table.columns.index("is")] for row in table.texts}
    assert verdicts["block_size=64"] == "significant on this seed" and "seed" not in verdicts["block_size=16"]
    assert "on one seed alone" in pair_table(study)[1]
    figure = figures(tmp_path)["training_ranking"]
    points = figure.page_spec()["datasets"]["points"]
    assert [point["config"] for point in points if point.get("hollow")] == ["block_size=64"]
    assert "Hollow: one seed in common" in figure.caption
    altair.Chart.from_dict(figure.page_spec())


def test_every_output_has_the_ranking(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (tmp_path / "b16s1" / "curves.parquet").write_bytes(b"no parquet")
    text = collect(tmp_path).text
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for output in (text, markdown, page):
        assert "What training in these formats costs" in output and "block_size=16" in output
        assert "Same in every quantized run: format=mxfp4." in output
    assert "id_b16s1: curves.parquet is damaged" in markdown and "id_b16s1: curves.parquet is damaged" in page
    assert 'id="group-1-training"' in page and 'data-figure="training_curves"' in page
    assert (tmp_path / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "training_curves.svg").read_text().startswith("<svg")
    assert "examples/sec" not in text.split("What training")[0].splitlines()[6]


def test_the_ranking_has_what_is_kept_and_bits_where_configs_differ_in_them(tmp_path: Path) -> None:
    trained = {"method": "from_scratch"}
    put_training(tmp_path / "base", 1, bits=32, train=trained)
    for recipe, bits, kept in (("mxfp4", 4.25, []), ("nvfp4", 13.354, ["last"])):
        knobs = {"recipe": recipe, "format": "mxfp4", "matmuls": {"keep_high": ["lm_head", *kept]}}
        put_training(tmp_path / recipe, 1, cost=0.02, bits=bits, train=trained, **knobs)
    study = studied(tmp_path).training
    assert study is not None
    table = ranking_table(study)
    assert table.columns[:4] == ["config", "also kept", "bits/weight", "seeds"]
    assert {row[0]: row[1:3] for row in table.texts} == {
        "baseline": ["–", "32"],
        "mxfp4": ["–", "4.25"],
        "nvfp4": ["last", "13.354"],
    }
    text = collect(tmp_path).text
    written = [text, *((tmp_path / name).read_text(encoding="utf-8") for name in ("results.md", "report.html"))]
    for output in written:
        assert "nvfp4 keeps the last block (13.354 bits" in " ".join(output.split()) and "bits/weight" in output
    put_sweep(tmp_path / "alike")
    alike = studied(tmp_path / "alike").training
    assert alike is not None and ranking_table(alike).columns[:2] == ["config", "seeds"]


def test_tables_say_over_what_marks_and_intervals_are(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    text = " ".join(collect(tmp_path).text.split())
    assert "∗ p < 0.05, paired over the held-out sequences of the run's seed, after Holm's" in text
    assert "over seeds (a paired t test of 2 seeds, 1 degree of freedom)" in text
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for output in (markdown, page):
        assert "how far another seed would move its loss is in no such interval" in output
        assert "2 seeds, 1 degree of freedom" in output
    assert "of a difference, paired over seeds, or over held-out sequences where" in page
    assert "paired over the held-out sequences of the run's seed" in (tmp_path / "results.tex").read_text("utf-8")


def test_runs_that_trained_nothing_get_nothing_of_it(tmp_path: Path) -> None:
    put_study(tmp_path, blocks=(16, 32), scale_bits=(8,), kv=("none",))
    text = collect(tmp_path).text
    written = [text, *((tmp_path / name).read_text(encoding="utf-8") for name in ("results.md", "report.html"))]
    assert not any("training" in one.replace("report.html", "").lower().split("<script")[0] for one in written)
    assert not list(tmp_path.glob("training*"))
