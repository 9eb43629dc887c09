"""report.html, results.md and results.tex: what stands in them, whatever the runs are, and that no text breaks out."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from helpers.made_report import NASTY, put_failed, put_study
from helpers.made_runs import put
from markupsafe import escape

from mxsweep.collect import main
from mxsweep.report import latex
from mxsweep.report.collection import CollectError, collect
from mxsweep.report.page import scripts
from mxsweep.report.page.run_views import config_lines
from mxsweep.report.table import escape_latex
from mxsweep.results.groups import read_results
from mxsweep.study.group_study import study_groups

POLICY_START = "default-src 'none'; script-src 'sha256-"
VOID = {"meta", "link", "input", "br", "line", "path"}
FEW = {"blocks": (16, 32), "scale_bits": (8,), "kv": ("none",)}


class Page(HTMLParser):
    """A page's elements, and what is wrong with them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.errors: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.errors += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "a":
            self.links.append(given.get("href") or "")
        elif "src" in given or ("href" in given and not (given["href"] or "").startswith("data:")):
            self.sources.append(f"{tag} {given}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def written(folder: Path, **options: Any) -> Page:
    """Collect the runs in `folder`, and check what holds of every page."""
    result = collect(folder, **options)
    assert result.write_error is None
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert escape(POLICY_START) in text and "unsafe-eval" not in text
    parsed = Page(text)
    assert parsed.errors == [] and parsed.sources == []
    assert len(parsed.ids) == len(set(parsed.ids))
    for link in parsed.links:
        if link.startswith("#"):
            assert link[1:] in parsed.ids, link
        else:
            assert (folder / unquote(link)).exists(), link
    # The library's own texts name its homes; nothing else has an address in it.
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\s\"<]+", own)) <= {"https://vega.github.io/schema/vega-lite/v6.json"}
    return parsed


def test_a_study_with_everything(tmp_path: Path) -> None:
    put_study(tmp_path)
    put_failed(tmp_path / "bad")
    text = written(tmp_path).text
    for words in (
        *("baseline", "What quantizing costs, on 200 examples", "not of hardware", "How sure"),
        *("What the numbers say", "Scale bits 6 and 8 are identical", "What each knob does", "Where error enters"),
        *("KV: 6 pairs", "identical to the last digit", "Sampled: 9 of 200 examples", "−9…4", "±31"),
        *("KL divergence", "Noise floor", "farthest from it", "All runs", "Environments", "torch", "Failed: 1"),
        *("ConfigError: no GPU here", "10 requests were cut", "python -m mxsweep block_size=16 scale_bits=6"),
    ):
        assert words in text, words


def test_texts_of_users_stay_texts(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW, modules={NASTY: "none"}, model={"name": NASTY, "path": NASTY})
    put(tmp_path / "<i>", record={"warnings": [NASTY], "run_id": f"id{NASTY}", "environment": {"device": NASTY}})
    put_failed(tmp_path / "bad</td>", NASTY)
    parsed = written(tmp_path)
    assert NASTY in parsed.text and "b" not in parsed.tags and "i" not in parsed.tags
    text = (tmp_path / "report.html").read_text()
    assert "<b>bold" not in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None and "<" not in data[1]
    assert json.loads(data[1])["figures"]


def test_the_policy_allows_the_page_s_own_scripts_and_no_others(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    collect(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    written_scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(written_scripts) == 2 and escape(scripts.policy(written_scripts)) in text
    assert "connect-src" not in text and "http" not in scripts.policy(written_scripts)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"baseline": False}, "No baseline among these runs"),
        ({"samples": False}, "has no samples.parquet, so nothing is known of single examples"),
        ({"diagnostics": False}, "only the weights' errors are known"),
        ({"noise": False}, "Run some of them with noise=4"),
        ({"blocks": (16,), "scale_bits": (8,), "kv": ("none",)}, "more than chance"),
        ({"blocks": (16,), "scale_bits": (8,), "kv": ("none",), "baseline": False}, "No baseline among these runs"),
        ({"blocks": ()}, "Nothing is quantized in these runs"),
    ],
    ids=["no baseline", "no samples", "no diagnostics", "no noise", "one run", "one run alone", "baseline alone"],
)
def test_missing_pieces_give_a_page_that_says_so(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    put_study(tmp_path, **options)
    assert said in written(tmp_path).text


def test_failures_only(tmp_path: Path) -> None:
    put_failed(tmp_path / "bad")
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    text = written(tmp_path).text
    assert "No run is done" in text and "Failed: 1" in text and "Missing (no result.json): 1" in text
    assert (tmp_path / "report.html").stat().st_size < 100_000  # nothing to draw, so nothing to draw with


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_perplexities_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    put_study(tmp_path, **FEW)
    put(tmp_path / "odd", metrics={"story": {"acc": 0.0, "perplexity": value, "perplexity_stderr": math.nan}}, seed=2)
    assert f"{value:g}" in written(tmp_path).text.replace("1.000e+300", "1e+300")


def test_groups_are_apart_and_the_page_says_why(tmp_path: Path) -> None:
    put_study(tmp_path / "all", **FEW)
    put_study(tmp_path / "part", **FEW, limit=100)
    parsed = written(tmp_path)
    assert "The runs are in 2 groups" in parsed.text and "limit (none, 100)" in parsed.text
    assert {"group-1", "group-2", "accuracy_vs_block_size_limit-100"} <= set(parsed.ids)


def test_several_environments(tmp_path: Path) -> None:
    put_study(tmp_path / "one", **FEW)
    put(tmp_path / "two" / "x", record={"environment": {"device_name": "H200", "versions": {"torch": "2.14"}}})
    text = written(tmp_path).text
    assert "in 2 different environments" in text and "H200" in text and "2.14" in text


def test_the_page_lies_elsewhere(tmp_path: Path) -> None:
    put_study(tmp_path / "sweep #1", **FEW)
    collect(tmp_path / "sweep #1", tmp_path / "out" / "deep")
    text = (tmp_path / "out" / "deep" / "report.html").read_text()
    assert 'href="../../sweep%20%231/block_size16_scale_bits8_kv_quantnone/result.json"' in text


def test_a_command_is_of_the_sweep_that_it_came_from(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW)
    command = {"overrides": ["block_size=16,32"], "config_dir": "/my conf", "cwd": "/where"}
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "commands": [command], "runs": []}))
    text = written(tmp_path).text
    assert "python -m mxsweep --config-dir 'my conf' block_size=16" in text and "/where" not in text


def test_configs_are_read_as_yaml() -> None:
    config = {"format": {"name": "w4a6", "weight": None}, "modules": {}, "custom_cuda": False}
    assert config_lines(config) == ["format:", "  name: w4a6", "  weight: none", "modules: none", "custom_cuda: false"]


def test_published_numbers_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_study(tmp_path, **FEW)
    parsed = written(tmp_path, reference="ex_report")
    assert "Against published numbers" in parsed.text and "0.6224 ± 0.0068" in parsed.text
    assert "5.43 ± 0.13" in (tmp_path / "results.md").read_text()
    assert main([str(tmp_path), "--reference", "ex_report"]) == 0
    assert "Of 26 published rows, 3 have ours beside them" in capsys.readouterr().out
    assert main([str(tmp_path), "--reference", "none_such"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none_such" in line and "ex_report" in line
    with pytest.raises(CollectError):
        collect(tmp_path, reference=tmp_path / "nothing.yaml")


def test_sizes(tmp_path: Path) -> None:
    put_study(tmp_path, blocks=tuple(range(8, 408, 8)), scale_bits=(6, 8), kv=("none", "fp4_e2m1"))
    assert collect(tmp_path).done == 201
    assert (tmp_path / "report.html").stat().st_size < 6e6


# ------------------------------------------------------------------------------------------- other texts


def test_markdown_has_intervals_and_findings(tmp_path: Path) -> None:
    put_study(tmp_path)
    collect(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "### What the numbers say" in text and "McNemar's exact test" in text
    assert "- **Use:** w4a6, block size 16, scale bits 6, KV unquantized" in text
    row = next(line for line in text.splitlines() if "id_block_size16" in line)
    assert re.search(r"\| -0\.\d{4} \[-0\.\d{4}, -0\.\d{4}\]", row)
    header, rule = next(
        (a, b) for a, b in zip(text.splitlines(), text.splitlines()[1:], strict=False) if a.startswith("| format")
    )
    assert "p acc" in header and header.count("|") == rule.count("|")


def test_latex_table(tmp_path: Path) -> None:
    put_study(tmp_path, **FEW, modules={NASTY: "none"})
    collect(tmp_path)
    text = (tmp_path / "results.tex").read_text()
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 1
    header = next(line for line in text.splitlines() if line.strip().startswith("format & block"))
    columns = header.count(" & ") + 1
    rows = [line for line in text.splitlines() if line.endswith("\\\\") and line != header]
    assert len(rows) == 3 and all(line.count(" & ") + 1 == columns for line in rows)
    assert re.search(r"\\begin\{tabular\}\{(l*r*)\}", text)[1].count("") - 1 == columns  # type: ignore[index]
    assert "$^*$" in rows[-1] and "$\\pm$" in rows[-1] and "\\%" in rows[-1]
    assert "paired, after Holm's correction" in text


def test_latex_escapes_everything_special() -> None:
    assert escape_latex("a_b & 50% $x$ #1 {y} ~ ^ \\ <|>") == (
        r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \^{} \textbackslash{} "
        r"\ensuremath{<}\textbar{}\ensuremath{>}"
    )
    assert "\\" in escape_latex(NASTY) and "{~" not in escape_latex(NASTY)


def test_latex_without_runs(tmp_path: Path) -> None:
    put_failed(tmp_path / "bad")
    results = read_results(tmp_path)
    assert "No run is done" in latex.latex_text(study_groups(results))


def test_scripts_and_data_cannot_end_their_element() -> None:
    closed = scripts.closed("a = '</script><!--'; b = 1")
    assert "</script" not in closed and "<!--" not in closed
    assert scripts.as_json({"a": "</script>&", "b": math.nan}) == '{"a":"\\u003c/script\\u003e\\u0026","b":null}'


def test_vega_is_kept_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scripts.made_vega.cache_clear()
    made = scripts.vega()
    (kept,) = (tmp_path / "cache" / "mxsweep").glob("vega-*.js")
    assert kept.read_text(encoding="utf-8") == made and "window.vegaEmbed" in made
    scripts.made_vega.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", type("Nothing", (), {})())  # and it is not asked again
    assert scripts.vega() == made
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept.write_text(made[:100_000], encoding="utf-8")  # cut
    scripts.made_vega.cache_clear()
    assert scripts.vega() == made
    assert [record.getMessage() for record in caplog.records] == [f"{kept} is damaged, and is made again"]
    assert kept.read_text(encoding="utf-8") == made
    scripts.made_vega.cache_clear()
