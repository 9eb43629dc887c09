"""One process: baseline, grid and report, with the time at which each ended. Started by grid.py, which times it.

    python -m benchmarks.grid_process FOLDER [KNOB=VALUE ...]

What happens here is what these commands do, but for the process being started once:

    python -m mxsweep format=none KNOB=VALUE ...
    python -m mxsweep -m experiment=ex1 kv_quant=none,fp4_e2m1 KNOB=VALUE ...
    python -m mxsweep.collect FOLDER/baseline FOLDER/grid --output FOLDER/report
"""

from __future__ import annotations

import time

BEGAN = time.time()  # before anything heavy is imported: what came before is the interpreter's start

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

# ex1 with keys and values as they are, and with them in fp4_e2m1, which is ex2: 24 runs.
GRID = ["experiment=ex1", "kv_quant=none,fp4_e2m1"]
# What is said of the grid's own knobs has no meaning for the baseline.
GRID_KNOBS = ("block_size", "scale_bits", "custom_cuda", "kv_quant", "format", "experiment")


def main(folder: Path, knobs: list[str]) -> int:
    """Run it all; returns the largest exit code."""
    from mxsweep.__main__ import main as mxsweep
    from mxsweep.collect import main as collect

    baseline, grid, report = (folder / name for name in ("baseline", "grid", "report"))
    marks = {"began": BEGAN}
    shared = [knob for knob in knobs if knob.partition("=")[0] not in GRID_KNOBS]
    codes = [mxsweep(["format=none", f"hydra.run.dir={baseline}", *shared])]
    marks["baseline"] = time.time()
    typed = {knob.partition("=")[0] for knob in knobs}
    own = [word for word in GRID if word.partition("=")[0] not in typed]
    codes.append(mxsweep(["-m", *own, f"hydra.sweep.dir={grid}", *knobs]))
    marks["grid"] = time.time()
    codes.append(collect([str(baseline), str(grid), "--output", str(report)]))
    marks["report"] = time.time()
    (folder / "marks.json").write_text(json.dumps(marks | {"codes": codes}), encoding="utf-8")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
