"""Draw charts in a process of their own: vl-convert ends the process that it is called in where memory or threads run
out, and so would end the tables and the page with it.

The first begins while the report is still being made, of a sweep done here while the first run is imported, since the
first chart takes as long as ten more. The other process draws one chart after the other, and says when it begins one
and when it is done. Where it dies, the chart that it was at is given up, and another process goes on with those behind
it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mxsweep.files.atomic import write_atomically
from mxsweep.machine.child_modules import child_environment
from mxsweep.terminal.escapes import printable

log = logging.getLogger(__name__)

VEGA_LITE = "6.4"  # of the versions that vl-convert has, the one whose schema the tests check charts against
ENDS = ("png", "svg", "pdf")
MOST_DEATHS = 3  # in a row: the machine has no room for it, and no chart will fare better
PATIENCE_S, PATIENCE_A_CHART_S = 120, 20
READY_S = 120  # how long a process waits for charts: beside runs that take longer, half a second is nothing
_CHILD = "from mxsweep.report.figures.draw import child; child()"
_WARM_UP = "from mxsweep.report.figures.draw import wait_ready; wait_ready()"

_waiting: list[subprocess.Popen[bytes]] = []  # the process that was started ahead, until charts are there to be drawn


@dataclass
class ChartFiles:
    """Hold what became of charts, each by its name.

    Attributes:
        files: that were written.
        undrawn: why a chart could not be drawn.
        unwritten: why the files of a chart could not be written.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    undrawn: dict[str, str] = field(default_factory=dict)
    unwritten: dict[str, str] = field(default_factory=dict)


@contextmanager
def drawing_ahead() -> Iterator[None]:
    """Have a process get ready to draw, for the charts that are made in this context; within another one, that one's.

    It waits for two minutes at most, since it takes 90 MB.
    """
    if any(process.poll() is None for process in _waiting):
        yield
        return
    with contextlib.suppress(OSError):  # which whoever draws meets as well, and says
        _waiting.append(_started(f"{_WARM_UP}; {_CHILD}"))
    try:
        yield
    finally:
        while _waiting:  # no chart came
            with _waiting.pop() as process:
                process.kill()


def draw_charts(charts: Sequence[tuple[str, dict[str, Any]]], folder: Path) -> ChartFiles:
    """Draw charts, each under a name that can be a file's, into a folder as PNG, SVG and PDF. Raises nothing of it."""
    drawn, left, deaths = ChartFiles(), list(charts), 0
    while left:
        said, end = _ask({"folder": str(folder.absolute()), "charts": left})
        done = {line["name"] for line in said if "name" in line and not line.get("begun")}
        for line in said:
            if "files" in line:
                drawn.files[line["name"]] = [folder / name for name in line["files"]]
            elif "undrawn" in line:
                drawn.undrawn[line["name"]] = line["undrawn"]
            elif "unwritten" in line:
                drawn.unwritten[line["name"]] = line["unwritten"]
        left = [chart for chart in left if chart[0] not in done]
        deaths = 0 if done else deaths + 1
        if not left:
            break
        begun = [line["name"] for line in said if line.get("begun")]
        if not begun or deaths == MOST_DEATHS:
            drawn.undrawn |= {name: end for name, _ in left}
            break
        drawn.undrawn[begun[-1]] = end
        left = [chart for chart in left if chart[0] != begun[-1]]
    return drawn


def bundle() -> str | None:
    """Return Vega, Vega-Lite and vega-embed as one script; None, with a warning, where it cannot be put together."""
    said, end = _ask({"charts": []})
    script = next((line["script"] for line in said if "script" in line), None)
    if script is None:
        log.warning("the page has no figures: %s", end)
    return script


def _ask(job: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return what another process said of a job, line by line, and how it ended should it have left some of it."""
    content = json.dumps(job, default=_plain).encode()
    patience = PATIENCE_S + PATIENCE_A_CHART_S * len(job["charts"])
    was_waiting = bool(job["charts"] and _waiting)
    try:
        process = _waiting.pop() if was_waiting else _started(_CHILD)
    except OSError as error:
        return [], f"no process to draw in could be started: {error.strerror or error}"
    with process:
        try:
            output, errors = process.communicate(content, timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return _lines(output), f"the process that draws did not end within {patience} s"
        except BaseException:  # as Ctrl-C: nothing is to be drawn behind whoever gave up
            process.kill()
            raise
    if was_waiting and process.returncode and not output:  # it died before it was asked
        return _ask(job)
    words = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    why = f": {printable(words[-1])[:200]}" if words else ""
    return _lines(output), f"the process that draws died ({_code(process.returncode)}){why}"


def _started(program: str) -> subprocess.Popen[bytes]:
    pipe, environment = subprocess.PIPE, child_environment()
    return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def _code(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _lines(output: bytes) -> list[dict[str, Any]]:
    whole = output.decode(errors="replace").split("\n")[:-1]  # the last one has no end where the process died
    return [json.loads(line) for line in whole if line.startswith("{")]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def wait_ready() -> None:
    """Draw a chart for nobody, which starts what draws, and wait for a job; where none comes, end this process."""
    with contextlib.suppress(Exception):
        _drawn({"data": {"values": [{"a": 1}]}, "mark": "point", "encoding": {"x": {"field": "a"}}})
    if not select.select([sys.stdin], [], [], READY_S)[0]:
        sys.exit(1)


def child() -> None:
    """Do a job that is read from standard input, and say on standard output what becomes of it."""
    job = json.load(sys.stdin)
    if not job["charts"]:
        import vl_convert

        _say(script=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE))
        return
    for name, spec in job["charts"]:
        _say(name=name, begun=True)
        try:
            contents = _drawn(_printable(spec))
        except Exception as error:
            _say(name=name, undrawn=f"{type(error).__name__}: {error}"[:300])
            continue
        try:
            for end, content in zip(ENDS, contents, strict=True):
                write_atomically(Path(job["folder"]) / f"{name}.{end}", content, durable=False)
        except OSError as error:
            _say(name=name, unwritten=error.strerror or str(error))
            continue
        _say(name=name, files=[f"{name}.{end}" for end in ENDS])


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _drawn(spec: dict[str, Any]) -> list[str | bytes]:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    return [vl_convert.svg_to_png(svg, scale=2), svg, vl_convert.svg_to_pdf(svg)]


def _printable(value: Any) -> Any:
    """Return a chart without letters that no picture shows, which vl-convert panics at."""
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value
