"""Look for a warning of a run in everything that is collected."""

import re
from pathlib import Path

import pyarrow.parquet

from mxsweep.report.collection import collect


def assert_warned_everywhere(folder: Path, warning: str) -> None:
    """Assert that all that is collected from ``folder``, which holds one run, shows the warning."""
    terminal = " ".join(collect(folder).text.split())
    assert warning in terminal and "warnings" in terminal
    assert warning in (folder / "results.md").read_text().replace("\\", "")
    latex = (folder / "results.tex").read_text()
    for character in "\\$":
        latex = latex.replace(character, "")
    assert "footnotesize Warning, every run: " in latex
    assert re.sub(r"[^a-z]", "", warning)[:150] in re.sub(r"[^a-z]", "", latex)
    assert warning in (folder / "results.csv").read_text().replace('""', '"')
    assert warning in pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()[0]["warnings"]
    page = (folder / "report.html").read_text()
    assert warning.replace("'", "&#39;") in page and 'href="#warnings"' in page
    assert page.index('id="warnings"') < page.index('id="group-1"')
