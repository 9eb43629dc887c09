"""results.tex is what LaTeX takes, and fits on a page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.made_report import NASTY, put_study

from mxsweep.report.collection import collect

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
\input{results.tex}
\end{document}
"""
NARROW = {"blocks": (16,), "scale_bits": (8,), "kv": ("none",)}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX: pdflatex is not installed")
@pytest.mark.parametrize("options", [{}, NARROW, NARROW | {"modules": {NASTY: "none"}}, NARROW | {"baseline": False}])
def test_tables_compile_and_fit_the_text(options: dict[str, Any], tmp_path: Path) -> None:
    put_study(tmp_path / "runs", **options)
    collect(tmp_path / "runs", tmp_path / "tex")
    (tmp_path / "tex" / "paper.tex").write_text(DOCUMENT)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path / "tex", capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Output written on paper.pdf (1 page" in done.stdout.replace("\n", "")
    assert "Overfull" not in done.stdout or "modules" in options  # a name of 70 letters has no place to be broken
