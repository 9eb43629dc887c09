"""Memory against cost: the front, the rule, and where they stand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_runs import config, outcomes, put
from helpers.made_trainings import put_training

from mxsweep import collect as command
from mxsweep.report.collection import collect
from mxsweep.report.data_files import load
from mxsweep.results.groups import read_results
from mxsweep.study.comparison import compare_with_baselines
from mxsweep.study.memory_front import MemoryFront, find_memory_front
from mxsweep.study.memory_terms import Terms

N = 50
BASE = -np.random.default_rng(0).gamma(0.7, 2, N)
WIDE = np.where(np.arange(N) % 2, 0.2, -0.2)  # of mean 0
LAYERS = [{"heads": 2, "key_size": 32, "value_size": 32, "window": None, "bits": 16, "layers": 4}]
PLAIN = 4 * 2 * 64 * 2  # bytes of a token
FP4 = "fp4_e2m1-b32-e8m0"
# Of each run the bytes of its parameters, formats of keys and values, and cost by example.
RUNS: dict[str, tuple[float, list[str | None], Any]] = {
    "small": (1e6, [FP4, FP4], 0.5),
    "keys": (2e6, [FP4, None], 0.005 + WIDE),
    "weights": (2.5e6, [None, None], 0.004),
    "beaten": (3e6, [None, None], 0.1),
}


def put_run(top: Path, name: str, layers: Any = LAYERS) -> None:
    size, kv, cost = RUNS.get(name, (8e6, [None, None], 0.0))
    quantized = None if name not in RUNS else {"layers": [["", name, None]], "kv": kv, "computed": ["torch", "native"]}
    record = {
        "identity": {"model": "m", "quantized": quantized},
        "diagnostics": {"parameter_bytes": size, **({"cache_layers": layers} if layers else {})},
        "config": config(
            format="w4a6" if name in RUNS else "none", seed=1, rounding=name if name in RUNS else "nearest"
        ),
    }
    put(top / name, outcomes(BASE - cost), record=record)


def put_sweep(top: Path, *names: str) -> None:
    for name in ("base", *(names or RUNS)):
        put_run(top, name)


def found(top: Path, **terms: Any) -> MemoryFront | None:
    (group,) = read_results(top).groups
    return find_memory_front(group, compare_with_baselines(group), Terms(**terms))


def names(front: MemoryFront) -> list[str | None]:
    return [one and one.row.run.path.name for one in (*front.front, front.by_estimate, front.by_interval)]


def test_parameters_and_cache_add_up(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    front = found(tmp_path, context=1000)
    assert front is not None and front.baseline == (8e6, 1000 * PLAIN)
    small, keys, _ = front.front
    assert (small.kv_bytes, keys.kv_bytes) == (1000 * PLAIN * 4.25 / 16, 1000 * PLAIN * (1 + 4.25 / 16) / 2)
    assert small.total == 1e6 + small.kv_bytes


def test_the_rule_says_the_same_of_a_run_whatever_else_was_run(tmp_path: Path) -> None:
    put_sweep(tmp_path / "all")
    front = found(tmp_path / "all")
    assert front is not None and names(front) == ["small", "keys", "weights", "keys", "weights"]
    assert front.by_interval is not None and front.by_interval.is_within(0.01, proven=True)
    put_sweep(tmp_path / "few", "keys", "beaten")
    front = found(tmp_path / "few")
    assert front is not None and names(front) == ["keys", "keys", None]
    wide = found(tmp_path / "all", within=1.0)
    assert wide is not None and names(wide)[-2:] == ["small", "small"]


def test_the_context_decides_what_is_small(tmp_path: Path) -> None:
    put_sweep(tmp_path, "keys", "weights")
    least = [found(tmp_path, context=tokens, within=0.1) for tokens in (1, 100_000)]
    assert [one.by_estimate and one.by_estimate.row.run.path.name for one in least if one] == ["keys", "keys"]
    RUNS["light"] = (1.9e6, [None, None], 0.003)
    try:
        put_run(tmp_path, "light")
        least = [found(tmp_path, context=tokens, within=0.1) for tokens in (1, 100_000)]
    finally:
        del RUNS["light"]
    assert [one.by_estimate and one.by_estimate.row.run.path.name for one in least if one] == ["light", "keys"]


def put_positions(top: Path, positions: int, name: str = "*", max_length: int | None = None) -> None:
    """Have the records of these runs say for how many tokens the model has positions, and how many a run reads."""
    for path in top.glob(f"{name}/result.json"):
        record = json.loads(path.read_text())
        record["diagnostics"]["max_positions"] = positions
        record["config"]["model"]["max_length"] = max_length
        path.write_text(json.dumps(record))


def test_no_more_tokens_are_counted_than_the_model_holds(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    put_positions(tmp_path, 64)
    front = found(tmp_path)
    assert front is not None and front.terms.context == 64 and front.baseline == (8e6, 64 * PLAIN)
    collected = collect(tmp_path)
    markdown, page = ((tmp_path / name).read_text() for name in ("results.md", "report.html"))
    for text in (" ".join(collected.text.split()), markdown, page):
        assert "one sequence of 64 tokens (the model holds no more); […]" in text and "8,192 tokens" not in text
    short = found(tmp_path, context=16)
    assert short is not None and short.baseline == (8e6, 16 * PLAIN)
    assert "one sequence of 16 tokens; […]" in " ".join(collect(tmp_path, terms=Terms(16)).text.split())


def test_tokens_are_as_many_in_all_runs_of_a_model_though_not_all_say_what_it_holds(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    assert (front := found(tmp_path)) is not None and front.baseline == (8e6, 8192 * PLAIN)
    put_positions(tmp_path, 64, "keys")
    assert (front := found(tmp_path)) is not None and front.baseline == (8e6, 64 * PLAIN)


def test_a_model_that_reads_more_than_it_has_positions_for_holds_as_many(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    put_positions(tmp_path, 64, max_length=100)
    assert (front := found(tmp_path)) is not None and front.baseline == (8e6, 100 * PLAIN)


@pytest.mark.parametrize("layers", [None, [{"heads": 2}], ["odd"], 3])
def test_without_what_is_cached(tmp_path: Path, layers: Any) -> None:
    for name in ("base", *RUNS):
        put_run(tmp_path, name, layers)
    assert found(tmp_path) is None
    assert "What memory buys" not in collect(tmp_path).text


def test_where_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_sweep(tmp_path)
    assert command.main([str(tmp_path), "--context", "100", "--within", "2%"]) == 0
    printed = capsys.readouterr().out
    markdown, page = ((tmp_path / name).read_text() for name in ("results.md", "report.html"))
    for text in (" ".join(printed.split()), markdown, page):  # a terminal's lines end where they are full
        assert "What memory buys" in text and "one sequence of 100 tokens" in text and "within 2 %" in text
        assert "rounding keys by the estimate, " in text and "rounding weights by the interval." in text
        assert "by the estimate alone" in text and "beaten" not in text[text.index("What memory buys") :][:600]
    bits = load(tmp_path).set_index("run_id")["kv_bits_per_token"]
    assert bits["id_base"] == PLAIN * 8 and bits["id_small"] == PLAIN * 8 * 4.25 / 16


def test_bits_a_cached_token_are_of_as_many_as_the_model_holds(tmp_path: Path) -> None:
    """Of 64 tokens 36 stay as they are."""
    put_sweep(tmp_path, "small")
    path = tmp_path / "small" / "result.json"
    record = json.loads(path.read_text())
    record["identity"]["quantized"]["kv_options"] = {"first": 4, "recent": 32}
    path.write_text(json.dumps(record))
    put_positions(tmp_path, 64)
    bits = load(tmp_path).set_index("run_id")["kv_bits_per_token"]
    assert bits["id_small"] == PLAIN * 8 * (36 + 28 * 4.25 / 16) / 64


@pytest.mark.parametrize("words", [("--context", "0"), ("--context", "8k"), ("--within", "-1"), ("--within", "x%")])
def test_values_that_are_none(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(list(words)) == 2
    said = capsys.readouterr().err
    assert words[0] in said and "allowed" in said


@pytest.mark.parametrize("seeds", [1, 2])
def test_trainings_with_several_seeds_have_no_front_of_their_luckiest(tmp_path: Path, seeds: int) -> None:
    for seed in range(1, seeds + 1):
        for name, size, quantized in (("none", 8e6, None), ("mxfp4", 1e6, {"kv": [None, None]})):
            run = put_training(
                tmp_path / f"{name}{seed}",
                seed,
                cost=0.1 * (size < 8e6),
                identity={"quantized": quantized},
                format=name,
            )
            record = json.loads((run / "result.json").read_text())
            record["diagnostics"] = {"parameter_bytes": size, "cache_layers": LAYERS}
            (run / "result.json").write_text(json.dumps(record))
    assert (found(tmp_path) is None) == (seeds > 1)
