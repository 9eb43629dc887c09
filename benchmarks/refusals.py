"""Measure how soon wrong values are answered: whole processes, in seconds of the CPU, beside ``import torch``.

What a process waits for, as another one's turn, is not in it; of several times the least counts, since on a busy
machine a process also computes longer. An answer is one line on standard error and exit code 2, with nothing left in
the folder; a value that is answered otherwise is an error of this benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import BenchmarkError, describe_machine, machine_lines, markdown_table, positive, say, write_json
from benchmarks.start import PEER, cpu_s

ROWS, LAYERS, TOKENIZER = "rows.jsonl", "layers", "tokenizer"  # what is wrong, below a temporary folder
OF_ROWS = ["task=lambada_openai", f"task.data={ROWS}"]
WRONG = {
    "blok_size=32": ["blok_size=32"],
    "format=mxfp5": ["format=mxfp5"],
    "block_size=10^21": [f"block_size={10**21}"],
    "limit=-1": ["limit=-1"],
    "model.max_length=3": ["model.max_length=3"],
    "model.device=cuda:99": ["model.device=cuda:99"],
    "modules={nowhere:none}": ["modules={nowhere:none}"],
    "task=storyy": ["task=storyy"],
    "task=lambada_opnai": ["task=lambada_opnai"],
    "task.num_fewshot=1000000": ["task.num_fewshot=1000000", "task.fewshot_evaluated=true"],
    "task.apply_chat_template=true, without one": ["task.apply_chat_template=true"],
    "ptq=gptq calibration.samples=10^12": ["ptq=gptq", f"calibration.samples={10**12}"],
    "ptq.damping=0.5, without GPTQ": ["ptq.damping=0.5"],
    "kv_quant.rope=before, without keys": ["kv_quant.rope=before"],
    "rotation=search format=none": ["rotation=search", "format=none"],
    "calibration.path=/nowhere": ["ptq=gptq", "calibration=text", "calibration.path=/nowhere"],
    "more shots than rows of a file": [*OF_ROWS, "task.num_fewshot=50", "task.fewshot_evaluated=true"],
    "a last row without a text": ["task=lambada_openai", f"task.data={TOKENIZER}.jsonl"],
    "10^9 layers in config.json": [f"model={LAYERS}"],
    "a tokenizer_config.json that is a list": [f"model={TOKENIZER}"],
}


def put_material(folder: Path) -> None:
    """Write what some of the values name: rows, and two damaged copies of the embedded model."""
    rows = [json.dumps({"text": f"row {number} has a last word"}) for number in range(40)]
    (folder / ROWS).write_text("\n".join(rows))
    (folder / f"{TOKENIZER}.jsonl").write_text("\n".join([*rows, '{"page": "x"}']))
    embedded = Path(__file__).resolve().parent.parent / "mxsweep" / "assets" / "tiny"
    for name in (LAYERS, TOKENIZER):
        shutil.copytree(embedded, folder / name)
    config = json.loads((folder / LAYERS / "config.json").read_text())
    (folder / LAYERS / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    (folder / TOKENIZER / "tokenizer_config.json").write_text("[]")


def answered_s(words: Sequence[str], repeats: int) -> float:
    """Return the least that answering wrong words takes, in seconds of the CPU. Raises BenchmarkError."""
    before = sorted(os.listdir())
    command = ["-m", "mxsweep", "limit=8", *words]
    taken = min(cpu_s(command, code=2, folder=os.getcwd()) for _ in range(repeats))
    if sorted(os.listdir()) != before:
        raise BenchmarkError(f"{' '.join(words)} left files")
    return taken


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code: 0, or 2 if a value was not refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refusals", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="of which the least is taken (3)")
    parser.add_argument("--only", metavar="TEXT", default="", help="values that hold this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, unrounded")
    args = parser.parse_args(argv)
    output, here = args.json and args.json.resolve(), os.getcwd()
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    taken: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            put_material(Path(folder))
            peers = [cpu_s(PEER) for _ in range(args.repeats)]
            for name in filter(lambda each: args.only in each, WRONG):
                say(name)
                taken[name] = answered_s(WRONG[name], args.repeats)
            limit = min([*peers, *(cpu_s(PEER) for _ in range(args.repeats))])  # before and after
    except BenchmarkError as error:
        say(f"refusals: {error}")
        return 2
    finally:
        os.chdir(here)
    machine = describe_machine()
    rows = [
        [f"`{name}`" if "=" in name else name, f"{took:.2f}", f"{took / limit:.2f}"] for name, took in taken.items()
    ]
    print("\n".join(machine_lines(machine)))
    print("\n" + markdown_table(["wrong value", "CPU seconds", "x import torch"], rows))
    over = [name for name, took in taken.items() if took > limit]
    print(f"\n`import torch`, the limit: {limit:.2f} s; over it: {', '.join(over) or 'none'}")
    write_json(output, {"machine": machine, "limit_s": limit, "cpu_s": taken})
    return 0


if __name__ == "__main__":
    sys.exit(main())
