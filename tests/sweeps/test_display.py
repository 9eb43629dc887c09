"""What a sweep shows while it goes."""

import io
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from mxsweep import compose
from mxsweep.files.locks import CLAIM_NAME, Lock
from mxsweep.results.record import write_record
from mxsweep.runs.new_record import new_record
from mxsweep.sweeps.display import SweepDisplay
from mxsweep.sweeps.elsewhere import Elsewhere
from mxsweep.sweeps.execute import SweepRun

QUANTIZED = compose(["format=w4a6"]).as_dict()
BASELINE = compose(["format=none"]).as_dict()


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_run(*overrides, name=None):
    name = name or "_".join(overrides) or "run"
    return SimpleNamespace(run_id=name, folder=Path("sweep") / name, overrides=overrides, config_hash="0")


def done(acc=0.923, perplexity=1.515, config=QUANTIZED, task="story"):
    metrics = {"perplexity": perplexity, "perplexity_stderr": 0.063}
    if acc is not None:
        metrics |= {"acc": acc, "acc_stderr": 0.0084}
    return new_record("id", config) | {
        "status": "done",
        "metrics": {task: metrics},
        "n_effective": {task: 1000},
        "timing": {"eval_s": 1.6, "total_s": 2.0},
        "examples_per_sec": 625.0,
    }


def failed(message="no GPU\n  here", kind="ConfigError"):
    return new_record("id", QUANTIZED) | {"error": {"type": kind, "message": message}}


@pytest.fixture
def clock():
    return Clock()


def plain(clock, total, skipped=0, **options):
    stream = io.StringIO()
    return SweepDisplay(total, skipped, stream, clock=clock, **options), lambda: stream.getvalue().splitlines()


def go(progress, clock, run, record, seconds):
    progress.begin(run)
    clock.now += seconds
    if record["status"] == "done":
        record["timing"]["total_s"] = seconds
    progress.end(run, record)


def test_plain_lines(clock):
    progress, lines = plain(clock, 4, varying={"block_size", "scale_bits"})
    with progress:
        go(progress, clock, make_run("block_size=16", "scale_bits=6", "limit=100"), done(), 4)
        go(progress, clock, make_run("block_size=32", "scale_bits=6", "limit=100"), failed(), 0)
        go(progress, clock, make_run("block_size=64", "scale_bits=6", "limit=100"), done(0.5, 9.0), 8)
        go(progress, clock, make_run("block_size=8", "scale_bits=6", "limit=100"), done(0.9231), 8)
    shown = "(1,000 examples in 1.6 s, 625.0/s simulated)"
    assert lines() == [
        "run 1 of 4: block_size=16 scale_bits=6",
        f"run 1 of 4: story: acc 0.923 ± 0.0084, perplexity 1.515 ± 0.063 {shown}, about 12 s left",
        "run 2 of 4: block_size=32 scale_bits=6",
        "run 2 of 4 failed: no GPU here",
        "run 3 of 4: block_size=64 scale_bits=6",
        f"run 3 of 4: story: acc 0.5 ± 0.0084, perplexity 9 ± 0.063 {shown}, about 6 s left, "
        "best acc 0.9230 (block_size=16 scale_bits=6)",
        "run 4 of 4: block_size=8 scale_bits=6",
        f"run 4 of 4: story: acc 0.9231 ± 0.0084, perplexity 1.515 ± 0.063 {shown}, "
        "best acc 0.9231 (block_size=8 scale_bits=6)",
    ]


def test_what_other_processes_do_is_not_left_to_do(tmp_path, clock):
    """Of ten runs another process ends four and is at one, while this one does two: three are left for the two."""
    runs = [
        SweepRun(str(index), tmp_path / str(index), (f"scale_bits={index + 2}",), "0", None, None, {}, {})
        for index in range(10)
    ]
    for run in runs:
        run.folder.mkdir()
    progress, lines = plain(clock, 10, elsewhere=Elsewhere(runs, clock))
    go(progress, clock, runs[0], done(), 30)
    assert lines()[-1].endswith("about 4 min left")  # 9 times 30 s: nobody else was seen
    for run in runs[2:6]:
        write_record(run.folder, done() | {"config_hash": "0"})
    claim = Lock.take(runs[6].folder / CLAIM_NAME)
    go(progress, clock, runs[1], done(), 30)
    claim.release()
    assert lines()[-1].endswith("about 60 s left, best acc 0.9230 (scale_bits=2)")  # two runs here meanwhile one there


def test_a_folder_that_cannot_be_looked_into_costs_no_run(tmp_path, clock, monkeypatch):
    run = SweepRun("a", tmp_path, ("seed=1",), "0", None, None, {}, {})
    elsewhere = Elsewhere([run], clock)

    def stale(folder):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr("mxsweep.sweeps.elsewhere.holder", stale)
    clock.now += 60
    elsewhere.look({})
    assert (elsewhere.ended, elsewhere.running) == (0, 0)


def test_skipped_runs_are_counted(clock):
    progress, lines = plain(clock, 7, skipped=4)
    go(progress, clock, make_run("block_size=16"), done(), 3)
    go(progress, clock, make_run("block_size=32"), done(), 3)
    assert lines()[0] == "run 5 of 7: block_size=16"
    assert "about 6 s left" in lines()[1]  # two more, not six
    assert lines()[2] == "run 6 of 7: block_size=32"


@pytest.mark.parametrize(
    "varying, knobs",
    [
        (None, "a=1 +b=2"),
        ({"b"}, "+b=2"),
        ({"+b"}, "+b=2"),
        (lambda name: name == "a", "a=1"),
        (set(), "a=1 +b=2"),  # nothing varies: rather all of them than none
    ],
)
def test_which_knobs(clock, varying, knobs):
    progress, lines = plain(clock, 1, varying=varying)
    progress.begin(make_run("a=1", "+b=2"))
    assert lines() == [f"run 1 of 1: {knobs}"]


def test_a_run_without_overrides_goes_by_its_id(clock):
    progress, lines = plain(clock, 1)
    progress.begin(make_run(name="20260101_bs16"))
    assert lines() == ["run 1 of 1: 20260101_bs16"]


def test_a_lost_run_keeps_its_number_and_is_still_to_do(clock):
    progress, lines = plain(clock, 3)
    go(progress, clock, make_run("a=1"), done(), 10)
    progress.begin(make_run("a=2"))
    progress.lost(make_run("a=2"), "killed by signal 9\n(out of memory?)")
    assert progress.seconds_left() == 20
    progress.begin(make_run("a=3"))
    progress.begin(make_run("a=2"))
    assert lines()[2:] == [
        "run 2 of 3: a=2",
        "run 2 of 3 lost: killed by signal 9 (out of memory?)",
        "run 3 of 3: a=3",
        "run 2 of 3: a=2",
    ]


def test_a_run_may_end_without_having_begun(clock):
    progress, lines = plain(clock, 2)
    progress.end(make_run("a=1"), failed() | {"error": None})
    progress.advance(make_run("a=1"), 1, 2)
    progress.end(make_run("a=2"), done())
    assert lines()[0] == "run 1 of 2 failed: no reason recorded"
    assert lines()[1].startswith("run 2 of 2: story: acc 0.923") and "left" not in lines()[1]


def test_a_long_reason_is_cut(clock):
    progress, lines = plain(clock, 1)
    progress.end(make_run("a=1"), failed("x" * 1000, "ValueError"))
    assert lines()[0].startswith("run 1 of 1 failed: ValueError: xxx") and lines()[0].endswith("x...")
    assert len(lines()[0]) < 250


class TestSecondsLeft:
    def test_unknown_at_first(self, clock):
        progress, _ = plain(clock, 3)
        assert progress.seconds_left() is None
        progress.begin(make_run("a=1"))
        clock.now += 5
        assert progress.seconds_left() is None
        progress.advance(make_run("a=1"), 0, 100)
        assert progress.seconds_left() is None

    def test_from_the_share_of_the_first(self, clock):
        progress, _ = plain(clock, 3)
        progress.begin(make_run("a=1"))
        clock.now += 10
        progress.advance(make_run("a=1"), 25, 100)
        assert progress.seconds_left() == 30 + 2 * 40

    def test_the_current_ones_count_by_their_share(self, clock):
        progress, _ = plain(clock, 4)
        go(progress, clock, make_run("a=1"), done(), 8)
        go(progress, clock, make_run("a=2"), done(), 12)
        progress.begin(make_run("a=3"))
        clock.now += 4
        assert progress.seconds_left() == 6 + 10  # no share known: by the time it has taken
        progress.advance(make_run("a=3"), 1, 2)
        assert progress.seconds_left() == 5 + 10
        clock.now += 1000
        assert progress.seconds_left() == 5 + 10

    def test_several_at_a_time(self, clock):
        progress, _ = plain(clock, 6)
        runs = [make_run(f"a={index}") for index in range(6)]
        progress.begin(runs[0])
        progress.begin(runs[1])
        clock.now += 10
        record = done()
        record["timing"]["total_s"] = 10.0
        progress.end(runs[0], record)
        assert progress.seconds_left() == 20  # runs 3 to 6 in two lanes; run 2 is due
        progress.begin(runs[2])
        progress.advance(runs[2], 1, 2)
        progress.advance(runs[1], 4, 5)
        assert progress.seconds_left() == 2 + 10 + 10  # lanes: 5 + 10, 2 + 10 + 10

    def test_workers_known_beforehand(self, clock):
        progress, _ = plain(clock, 9, workers=4)
        go(progress, clock, make_run("a=1"), done(), 10)
        assert progress.seconds_left() == 20

    def test_a_phase_before_the_answers_says_nothing_of_the_whole(self, clock):
        progress, _ = plain(clock, 2)
        progress.begin(make_run("a=1"))
        clock.now += 50
        progress.advance(make_run("a=1"), 9, 10, "gptq")
        assert progress.seconds_left() is None
        clock.now += 10
        progress.advance(make_run("a=1"), 10, 10, "gptq")
        clock.now += 4
        progress.advance(make_run("a=1"), 1, 5)
        assert progress.seconds_left() == 16 + (60 + 20)  # at the pace of the answers; then one like it

    def test_a_prepared_run_goes_on_at_its_own_pace(self, clock):
        progress, _ = plain(clock, 3)
        go(progress, clock, make_run("a=1"), done(), 10)
        progress.begin(make_run("a=2"))
        clock.now += 4
        progress.advance(make_run("a=2"), 1, 10, "rotation search")
        assert progress.seconds_left() == 6 + 10
        clock.now += 100
        progress.advance(make_run("a=2"), 10, 10, "rotation search")
        assert progress.seconds_left() is None  # longer than usual, and nobody knows how long
        clock.now += 2
        progress.advance(make_run("a=2"), 1, 4)
        assert progress.seconds_left() == 6 + 10

    def test_failed_runs_do_not_count(self, clock):
        progress, _ = plain(clock, 3)
        go(progress, clock, make_run("a=1"), failed(), 0.1)
        assert progress.seconds_left() is None
        go(progress, clock, make_run("a=2"), done(), 10)
        assert progress.seconds_left() == 10


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "1 s"), (99, "99 s"), (100, "2 min"), (3000, "50 min"), (7800, "2 h 10 min"), (360000, "100 h 0 min")],
)
def test_words_for_a_time(clock, seconds, text):
    progress, lines = plain(clock, 2)
    go(progress, clock, make_run("a=1"), done(), seconds)
    assert lines()[1].endswith(f", about {text} left")


class TestBest:
    def bests(self, clock, *records):
        progress, lines = plain(clock, 9)
        for index, record in enumerate(records):
            go(progress, clock, make_run(f"a={index}"), record, 1)
        return [line.partition(", best ")[2] for line in lines()[1::2]]

    def with_knobs(self, **changed):
        return QUANTIZED | changed

    def test_one_run_alone_is_no_best(self, clock):
        assert self.bests(clock, done(0.9), done(0.8)) == ["", "acc 0.9000 (a=0)"]

    def test_nothing_right_is_no_best(self, clock):
        assert self.bests(clock, done(0.0), done(0.0), done(0.1)) == ["", "", "acc 0.1000 (a=2)"]

    def test_no_seed_is_the_best(self, clock):
        first, second = self.with_knobs(seed=1), self.with_knobs(seed=2)
        bests = self.bests(clock, done(0.9, config=first), done(0.8, config=first), done(0.95, config=second))
        assert bests == ["", "acc 0.9000 (a=0)", ""]

    def test_no_runtime_is_the_best(self, clock):
        predicted = self.with_knobs(runtime="vllm")
        assert self.bests(clock, done(0.9), done(0.8, config=predicted)) == ["", ""]

    def test_the_baseline_is_no_best(self, clock):
        assert self.bests(clock, done(0.99, config=BASELINE), done(0.9)) == ["", ""]

    def test_nan_is_no_best(self, clock):
        assert self.bests(clock, done(math.nan), done(0.9), done(0.8)) == ["", "", "acc 0.9000 (a=1)"]

    def test_the_lowest_perplexity_where_there_is_no_accuracy(self, clock):
        bests = self.bests(clock, done(None, 2.5), done(None, 1.5), done(None, 2.0), done(None, math.inf))
        assert bests == ["", *["perplexity 1.500 (a=1)"] * 3]

    def test_the_first_of_equals(self, clock):
        assert self.bests(clock, done(0.9), done(0.9))[1] == "acc 0.9000 (a=0)"

    def test_tasks_are_not_compared(self, clock):
        other = QUANTIZED | {"task": QUANTIZED["task"] | {"name": "other", "names": ["other"]}}
        bests = self.bests(clock, done(0.9), done(0.4, config=other, task="other"), done(0.8))
        assert bests == ["", "", "acc 0.9000 (a=0)"]

    def test_unknown_metrics_have_none(self, clock):
        assert self.bests(clock, done() | {"metrics": {"story": {"bleu": 3.0}}}, done() | {"metrics": {}}) == ["", ""]


def test_nan_is_said(clock):
    progress, lines = plain(clock, 1)
    go(progress, clock, make_run("a=1"), done(math.nan, math.inf), 1)
    assert lines()[1].startswith("run 1 of 1: story: acc nan ± 0.0084, perplexity inf ± 0.063 (1,000")


def test_at_most_one_plain_line_a_minute(clock):
    progress, lines = plain(clock, 3)
    progress.begin(make_run("a=1"))
    progress.begin(make_run("a=2"))
    for step in range(1, 1001):
        clock.now += 0.125  # 125 s in all
        progress.advance(make_run("a=1"), step, 2000)
    assert len(lines()) == 4
    assert lines()[2] == "run 1 of 3: 24% answered; run 2 of 3: 0% answered, about 7 min left"
    assert lines()[3].startswith("run 1 of 3: 48% answered; ")


def test_plain_lines_name_the_phase(clock):
    progress, lines = plain(clock, 8)
    progress.begin(make_run("a=1"))
    progress.begin(make_run("a=2"))
    clock.now += 61
    progress.advance(make_run("a=1"), 37, 100, "gptq")
    clock.now += 61
    progress.advance(make_run("a=2"), 1, 2)
    assert lines()[2:] == [
        "run 1 of 8: 37% of gptq; run 2 of 8: 0% answered",
        "run 1 of 8: 37% of gptq; run 2 of 8: 50% answered, about 14 min left",
    ]


@pytest.mark.parametrize("share", [(5, 0), (7, 5), (-1, 5)])
def test_a_senseless_share_does_no_harm(clock, share):
    progress, lines = plain(clock, 1)
    progress.begin(make_run("a=1"))
    clock.now += 61
    progress.advance(make_run("a=1"), *share)
    assert all("answered" not in line or line.startswith(("run 1 of 1: 100%", "run 1 of 1: 0%")) for line in lines())


def test_a_stream_that_nobody_reads_stops_no_sweep(clock):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    go(SweepDisplay(1, stream=Broken(), clock=clock), clock, make_run("a=1"), done(), 1)


@pytest.mark.parametrize(
    "stream, term, has_display",
    [(Terminal(), "xterm-256color", True), (Terminal(), "dumb", False), (io.StringIO(), "xterm-256color", False)],
)
def test_where_there_is_a_display(monkeypatch, clock, stream, term, has_display):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # of colours, not of cursors
    with SweepDisplay(1, stream=stream, clock=clock) as progress:
        progress.begin(make_run("a=1"))
    assert ("\x1b[" in stream.getvalue()) is has_display
    assert stream.getvalue().startswith("run 1 of 1: a=1\n") is not has_display


def bar(done, total, width=20):
    """As rich draws one, without its colours: the rest is drawn, too."""
    halves = int(2 * width * done / total)
    return "━" * (halves // 2) + ("╸" if halves % 2 else "╺") + "━" * (width - halves // 2 - 1)


class TestDisplay:
    def make(self, clock, *args, width=120, **options):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, height=20, color_system="standard")
        progress = SweepDisplay(*args, console=console, clock=clock, **options)

        def rows():
            with console.capture() as capture:
                console.print(progress._render())
            return [Text.from_ansi(line).plain.rstrip() for line in capture.get().splitlines()]

        return progress, console.file, rows

    def test_rows(self, clock):
        progress, _, rows = self.make(clock, 7, 1, varying={"a"})
        assert rows() == [f"sweep  {bar(1, 7)} 1 of 7 runs, 1 of them before"]
        go(progress, clock, make_run("a=1", "b=1"), done(), 10)
        go(progress, clock, make_run("a=2", "b=1"), failed(), 1)
        progress.begin(make_run("a=3", "b=1"))
        progress.advance(make_run("a=3", "b=1"), 1, 2)
        assert rows() == [
            f"sweep  {bar(3.5, 7)} 3 of 7 runs, 1 of them before, 1 failed, 625 examples/s, about 35 s left",
            f"run 4  {bar(1, 2)} 50% a=3",
        ]

    def test_the_bar_of_a_phase(self, clock):
        progress, _, rows = self.make(clock, 4)
        progress.begin(make_run("a=1"))
        progress.advance(make_run("a=1"), 1, 4, "rotation search")
        assert rows() == [f"sweep  {'━' * 20} 0 of 4 runs", f"run 1  {bar(1, 4)} 25% of rotation search a=1"]
        progress.advance(make_run("a=1"), 1, 2)
        assert rows()[1] == f"run 1  {bar(1, 2)} 50% a=1"

    def test_a_row_for_each_current_run(self, clock):
        progress, _, rows = self.make(clock, 4)
        for name in ("a=1", "a=2", "a=3"):
            progress.begin(make_run(name))
        progress.end(make_run("a=2"), done())
        assert [row[:5] for row in rows()[:3]] == ["sweep", "run 1", "run 3"]
        assert "examples/s a run" in rows()[0]

    def test_a_narrow_terminal_cuts(self, clock):
        progress, _, rows = self.make(clock, 4, width=60)
        progress.begin(make_run("model.path=/a/very/long/path/to/a/checkpoint", "block_size=16"))
        progress.end(make_run("a=1"), failed())
        assert len(rows()) == 2 and rows()[1].endswith("…") and len(rows()[1]) <= 60
        assert rows()[0].endswith("1 of 4 runs, 1 failed")

    def test_lines_stay_above_and_the_display_goes(self, clock):
        progress, file, _ = self.make(clock, 2)
        with progress:
            progress.begin(make_run("a=1"))
            logger = logging.Logger("mxsweep.test")
            logger.addHandler(progress.handler)
            logger.warning("[bold]not markup[/bold] %s", "x" * 150)
            progress.end(make_run("a=1"), done())
        text = file.getvalue()
        plain_text = Text.from_ansi(text).plain
        assert "run 1 " in plain_text
        assert "] [bold]not markup[/bold] " + "x" * 150 in plain_text  # not wrapped at the terminal's width
        assert "run 1 of 2 (a=1): story: acc 0.923 ± 0.0084" in plain_text
        assert text.index("not markup") < text.index("run 1 of 2 (a=1)")
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again

    def test_it_goes_whatever_the_exception(self, clock):
        progress, file, _ = self.make(clock, 2)
        with pytest.raises(KeyboardInterrupt), progress:
            progress.begin(make_run("a=1"))
            raise KeyboardInterrupt
        assert file.getvalue().count("\x1b[?25h") == 1
        assert progress._live is None


def test_log_lines_without_a_display(clock):
    progress, lines = plain(clock, 1)
    progress.handler.emit(logging.LogRecord("n", logging.INFO, "", 0, "21 layers", None, None))
    assert lines()[0].startswith("[") and lines()[0].endswith("] 21 layers")


def test_of_a_training_the_pace_says_what_is_left(clock):
    progress, lines = plain(clock, 2)
    run = make_run("recipe=mxfp4")
    with progress:
        progress.begin(run)
        clock.now += 20  # until the model is there
        progress.advance(run, 30, 100, "training")  # it resumes
        clock.now += 10
        progress.advance(run, 40, 100, "training")
        assert progress.seconds_left() == pytest.approx(60 + 100)  # and the other one from its beginning
        clock.now += 5
        assert progress.seconds_left() == pytest.approx(55 + 100)
        clock.now += 55
        progress.advance(run, 100, 100, "training")
        assert "run 1 of 2: 100% of training, about" in lines()[-1]
        clock.now += 4
        progress.advance(run, 50, 100)
        assert progress.seconds_left() == pytest.approx(4 + 98 + 30, abs=1)
        training = {"steps": 100, "seconds": 70.0, "tokens_per_s": 9.0, "diverged_at": None, "resumed_from": 30}
        record = done() | {"training": training}
        progress.end(run, record)
        said = "(training: 100 steps (30 before it was resumed) in 70.0 s, 9 tokens/s in the median step, "
        assert f"{said}1,000 examples in 1.6 s" in lines()[-1]
