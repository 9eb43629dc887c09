"""Tasks of which no run answers more right than a guess does: nothing is concluded from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import outcomes, put
from helpers.made_trainings import put_training

from mxsweep.report.collection import collect
from mxsweep.report.figures.figure_files import group_figures
from mxsweep.report.single_run import cost_text
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import Study, study_groups
from mxsweep.study.memory_front import find_memory_front
from mxsweep.study.memory_terms import Terms

N = 100
LAYERS = [{"heads": 4, "key_size": 64, "value_size": 64, "window": None, "bits": 16, "layers": 4}]
MEMORY = {"diagnostics": {"bits_per_weight": 4.25, "parameter_bytes": 1e6, "cache_layers": LAYERS}}


def put_task(folder: Path, right: int, choices: int = 0, loglikelihood: float = -9.0, **knobs: Any) -> None:
    """Write a training that was evaluated on lambada, too: so many examples right, of so many choices if any."""
    quantized = {"quantized": {"knobs": folder.name, "kv": [None, None]}} if knobs else None
    put_training(folder, identity=quantized, **knobs)
    path = folder / "result.json"
    record = json.loads(path.read_text())
    drawn = np.random.default_rng(len(folder.name)).normal(loglikelihood, 1, N)
    of_task = {"acc": right / N, **({} if choices else {"perplexity": float(np.exp(-drawn.mean()))})}
    record |= {"metrics": record["metrics"] | {"lambada": of_task}, **MEMORY}
    record["n_effective"] |= {"lambada": N}
    path.write_text(json.dumps(record))
    samples = outcomes(drawn.tolist(), [int(i < right) for i in range(N)]).assign(task="lambada")
    if choices:
        samples = samples.assign(choice_loglikelihoods=[[-1.0] * choices] * N, right_choices=[[0]] * N)
    before = pd.read_parquet(folder / "samples.parquet")
    pd.concat([before, samples]).to_parquet(folder / "samples.parquet", index=False)


def studies_of(top: Path) -> list[Study]:
    return study_groups(read_results(top))


def put_study(top: Path, right: tuple[int, int, int], choices: int = 0) -> None:
    put_task(top / "base", right[0], choices)
    put_task(top / "b16", right[1], choices, cost=0.02, format="mxfp4", block_size=16)
    put_task(top / "b32", right[2], choices, cost=0.03, format="mxfp4", block_size=32)


def test_the_first_screen_of_trainings_is_of_the_held_out_loss(tmp_path: Path) -> None:
    put_study(tmp_path, (60, 55, 50))
    first, second = studies_of(tmp_path)
    assert (first.rows[0].task, second.rows[0].task) == ("validation", "lambada")
    assert {line.title for line in first.verdict.lines} == {"Training"}
    assert "worse by more than chance" in first.verdict.lines[0].text
    assert second.verdict.lines[0].title == "Use" and second.values and second.effects
    assert find_memory_front(second.group, second.comparisons, Terms()) is not None


def test_of_a_task_that_no_training_has_learned_nothing_is_concluded(tmp_path: Path) -> None:
    put_study(tmp_path, (0, 0, 0))
    text = " ".join(collect(tmp_path).text.split())
    assert "no measurable difference" not in text and "Too few examples" not in text
    assert text.index("worse by more than chance") < text.index("Task: No training answers any example of this task")
    _, study = studies_of(tmp_path)
    assert [line.title for line in study.verdict.lines] == ["Task"] and study.verdict.use is None
    assert (study.values, study.effects, group_figures(study)) == ([], [], [])
    assert find_memory_front(study.group, study.comparisons, Terms()) is None


@pytest.mark.parametrize(("right", "concluded"), [((25, 30, 20), False), ((40, 30, 20), True)])
def test_of_multiple_choice_right_answers_are_to_be_more_than_guesses(
    tmp_path: Path, right: tuple[int, int, int], concluded: bool
) -> None:
    """Of 100 guesses among four choices 25 are right, and by chance alone up to 34."""
    put_study(tmp_path, right, choices=4)
    (line, *_) = studies_of(tmp_path)[1].verdict.lines
    assert line.title == ("Use" if concluded else "Task")
    assert concluded or "measurably more examples of this task right than a guess does (0.250)," in line.text


def put_evaluations(top: Path, metrics: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for name, knobs in (("base", {"format": "none"}), ("b16", {"block_size": 16})):
        samples = outcomes((rng.normal(-4, 0.1, N) - (name != "base")).tolist(), [0] * N)
        known = {"acc": 0.0, "perplexity": float(np.exp(-samples["loglikelihood"].mean()))}
        samples = samples if "perplexity" in metrics else samples.drop(columns="loglikelihood")
        put(top / name, samples, {"story": {metric: known[metric] for metric in metrics}}, **knobs)


def test_where_no_run_is_right_and_nothing_else_is_measured_no_verdict_is_given(tmp_path: Path) -> None:
    put_evaluations(tmp_path, ("acc",))
    (study,) = studies_of(tmp_path)
    said = "No run answers any example of this task right, so differences between them say nothing"
    assert [line.title for line in study.verdict.lines] == ["Task"] and study.verdict.lines[0].text.startswith(said)
    assert "No run answers any example" in " ".join(cost_text(tmp_path).split())


def test_where_no_run_is_right_a_perplexity_is_judged_and_accuracy_not(tmp_path: Path) -> None:
    put_evaluations(tmp_path, ("acc", "perplexity"))
    (study,) = studies_of(tmp_path)
    cost = next(line.text for line in study.verdict.lines if line.title == "Cost")
    assert cost.endswith("more than chance. Accuracy says nothing, as no run answers any example right.")
