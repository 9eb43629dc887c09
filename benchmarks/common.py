"""What every benchmark needs: the machine in words, tables, JSON, subsets of the data."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TASK = "lambada_openai"
SIMULATION = "Speeds are those of simulating a format on this machine, not of hardware that has the format."


class BenchmarkError(Exception):
    """A benchmark cannot begin; the message says what to do about it."""


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on, as JSON-able words and numbers."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "lm_eval", "datasets", "mxsweep")},
        "commit": _commit(),
    }


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The same for a person."""
    versions = ", ".join(f"{name} {number or 'unknown'}" for name, number in machine["versions"].items())
    return [
        f"{machine['date']}, commit {machine['commit'] or 'unknown'}",
        f"GPU: {machine['gpu'] or 'none'}; CPU: {machine['cpu']}, {machine['cpus']} usable cores, "
        f"{machine['threads']} torch threads",
        f"Python {machine['python']}, CUDA {machine['cuda'] or 'none'}, {versions}",
        SIMULATION,
    ]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right_from: int = 1) -> str:
    """A Markdown table that also reads well as plain text; columns from ``right_from`` on are aligned right."""
    widths = [max(len(row[index]) for row in [headers, *rows]) for index in range(len(headers))]
    rules = ["-" * width if index < right_from else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    lines = []
    for row in (headers, rules, *rows):
        pads = [c.ljust(w) if i < right_from else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("| " + " | ".join(pads) + " |")
    return "\n".join(lines)


def ratio(value: float | None, reference: float | None) -> str:
    """How many times ``reference`` a value is, for a table; a dash where one of them was not measured."""
    return "-" if value is None or not reference else f"{value / reference:.2f}"


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write a benchmark's figures, all of them unrounded; nothing where no file was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"note": SIMULATION, **content}, indent=2) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def subset(data: Path, count: int | None, work: Path) -> tuple[Path, int]:
    """A file with ``count`` rows of ``data``, spread evenly over it so that their lengths represent it.

    Returns:
        The file (``data`` itself where all of it is meant) and how many rows it has.
    """
    rows = read_rows(data)
    if count is None or count >= len(rows):
        return data, len(rows)
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    path = work / f"{data.stem}_{count}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return path, count


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def positives(text: str) -> list[int]:
    """An argparse type: whole numbers of at least 1, separated by commas."""
    return [positive(part) for part in text.split(",")]


def words_of(allowed: Sequence[str]) -> Any:
    """An argparse type: words from ``allowed``, separated by commas; an empty text is no word."""

    def parse(text: str) -> list[str]:
        chosen = [word for word in text.split(",") if word]
        unknown = [word for word in chosen if word not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not among {', '.join(allowed)}")
        return chosen

    return parse


def say(text: str) -> None:
    """Progress, on stderr and at once, so that stdout holds only the report."""
    print(text, file=sys.stderr, flush=True)
