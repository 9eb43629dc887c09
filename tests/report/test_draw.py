"""Charts are drawn in a process of their own: what ends it costs a chart, and is said."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.made_report import put_study

from mxsweep.report.collection import collect
from mxsweep.report.figures import draw
from mxsweep.report.figures.draw import ENDS, MOST_DEATHS, bundle, draw_charts, drawing_ahead
from mxsweep.report.page import scripts

pytestmark = pytest.mark.usefixtures("drawing_processes")

DYING = "import os; from mxsweep.report.figures import draw as d; drawn = d._drawn; "


def chart(title: str = "a title") -> dict[str, Any]:
    return {"title": title, "data": {"values": [{"a": 1}]}, "mark": "point", "encoding": {"x": {"field": "a"}}}


def child_that(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the other process do something else where the title of a chart is "bad"."""
    drawn = f"d._drawn = lambda s: {what} if s['title'] == 'bad' else drawn(s); d.child()"
    monkeypatch.setattr(draw, "_CHILD", DYING + drawn)


def test_what_cannot_be_drawn_costs_itself_alone(tmp_path: Path) -> None:
    charts = [("one", chart()), ("bad", {"mark": 3}), ("odd", chart("a\x1b[2Jb\x00\ud800")), ("two", chart())]
    drawn = draw_charts(charts, tmp_path)
    assert sorted(drawn.files) == ["odd", "one", "two"] and list(drawn.undrawn) == ["bad"] and not drawn.unwritten
    names = sorted(f"{name}.{end}" for name in drawn.files for end in ENDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "odd.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(("what", "why"), [("os.abort()", "signal 6"), ("os._exit(3)", "exit code 3")])
def test_what_ends_the_process_costs_a_chart(
    what: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that(what, monkeypatch)
    drawn = draw_charts([("one", chart()), ("a", chart("bad")), ("two", chart())], tmp_path)
    assert sorted(drawn.files) == ["one", "two"]
    assert drawn.undrawn.keys() == {"a"} and f"died ({why})" in drawn.undrawn["a"]


def test_a_machine_without_room_is_not_asked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that("os.abort()", monkeypatch)
    asked = []
    started = draw._started
    monkeypatch.setattr(draw, "_started", lambda program: asked.append(program) or started(program))
    drawn = draw_charts([(str(number), chart("bad")) for number in range(9)], tmp_path)
    assert len(drawn.undrawn) == 9 and not drawn.files and len(asked) == MOST_DEATHS
    monkeypatch.setattr(draw, "_CHILD", "raise SystemExit(1)")
    assert draw_charts([("one", chart())], tmp_path).undrawn == {"one": "the process that draws died (exit code 1)"}


def test_one_process_draws_what_it_got_ready_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    started = draw._started
    monkeypatch.setattr(draw, "_started", lambda program: asked.append(started(program)) or asked[-1])
    with drawing_ahead():
        assert draw_charts([("one", chart())], tmp_path / "ahead").files.keys() == {"one"}
    with drawing_ahead():
        assert len(asked) == 2  # and none is left where there is nothing to draw
    assert [process.poll() for process in asked] == [0, -signal.SIGKILL]
    draw_charts([("one", chart())], tmp_path / "then")
    ahead, then = ((tmp_path / name / "one.svg").read_bytes() for name in ("ahead", "then"))
    assert ahead == then, "warming up changes no picture"


def test_a_context_within_another_draws_by_the_process_that_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    started = draw._started
    monkeypatch.setattr(draw, "_started", lambda program: asked.append(started(program)) or asked[-1])
    with drawing_ahead():
        with drawing_ahead():
            pass
        assert len(asked) == 1 and asked[0].poll() is None, "it waits until the outer one is left"
        with drawing_ahead():
            assert draw_charts([("one", chart())], tmp_path).files.keys() == {"one"}
    assert [process.poll() for process in asked] == [0]


def test_a_process_that_nobody_asks_ends_and_another_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    started = draw._started
    monkeypatch.setattr(draw, "_started", lambda program: asked.append(started(program)) or asked[-1])
    monkeypatch.setattr(
        draw, "_WARM_UP", "from mxsweep.report.figures import draw; draw.READY_S = 0.01; draw.wait_ready()"
    )
    with drawing_ahead():
        assert asked[0].wait(60) == 1
        monkeypatch.undo()
        with drawing_ahead():
            assert len(draw._waiting) == 2, "one for the one that is gone"
            drawn = draw_charts([("one", chart())], tmp_path)
    assert drawn.files.keys() == {"one"} and not drawn.undrawn and not draw._waiting


@pytest.mark.parametrize("warm_up", ["raise SystemExit(1)", "import os; os.abort()"])
def test_a_process_that_dies_before_it_is_asked_costs_no_chart(
    warm_up: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "_WARM_UP", warm_up)
    with drawing_ahead():
        drawn = draw_charts([("one", chart())], tmp_path)
    assert drawn.files.keys() == {"one"} and not drawn.undrawn


def test_a_chart_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that("__import__('time').sleep(999)", monkeypatch)
    monkeypatch.setattr(draw, "PATIENCE_S", 8)
    monkeypatch.setattr(draw, "PATIENCE_A_CHART_S", 0)
    drawn = draw_charts([("one", chart()), ("a", chart("bad"))], tmp_path)
    assert drawn.undrawn == {"a": "the process that draws did not end within 8 s"}
    assert list(drawn.files) == ["one"]


def test_who_gives_up_leaves_nobody_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(subprocess.Popen[bytes]):
        def communicate(self, *_: Any, **__: Any) -> Any:
            asked.append(self)
            raise KeyboardInterrupt

    asked: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_charts([("one", chart())], tmp_path)
    assert asked[0].wait(0) == -signal.SIGKILL


def test_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert draw_charts([("one", chart())], tmp_path / "file").unwritten.keys() == {"one"}
    (tmp_path / "one.png").mkdir()
    drawn = draw_charts([("one", chart()), ("two", chart())], tmp_path)
    assert drawn.unwritten == {"one": "Is a directory"} and list(drawn.files) == ["two"]


def test_a_report_without_a_process_to_draw_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_study(tmp_path / "s", blocks=(16,), scale_bits=(8,), kv=("none",), noise=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scripts.made_vega.cache_clear()
    monkeypatch.setattr(draw, "_CHILD", "raise SystemExit(1)")
    assert bundle() is None
    result = collect(tmp_path / "s")
    scripts.made_vega.cache_clear()
    assert result.write_error is None and "figures that could not be drawn: cost" in caplog.text
    assert {path.name for path in result.files} == {
        *("results.csv", "results.parquet", "results.md", "results.tex", "report.html")
    }
    page = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>") and "vegaEmbed =" not in page
    assert "![" not in (tmp_path / "s" / "results.md").read_text(encoding="utf-8")


def test_a_disk_that_fills_leaves_whole_files_and_an_exit_code(tmp_path: Path) -> None:
    put_study(tmp_path / "s", blocks=(16,), scale_bits=(8,), kv=("none",), noise=False)
    assert collect(tmp_path / "s").write_error is None
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir() if path.is_file()}
    answer = subprocess.run(
        [sys.executable, "-m", "mxsweep.collect", str(tmp_path / "s")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),  # as a disk without room
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert "File too large; missing, or as they were before: report.html; name another folder" in answer.stderr
    assert (tmp_path / "s" / "report.html").read_bytes() == before["report.html"]
    assert {path.name for path in (tmp_path / "s").iterdir() if path.is_file()} == before.keys()
    assert (tmp_path / "s" / "results.md").read_bytes() == before["results.md"]
