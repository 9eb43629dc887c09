"""Make docs/peers.md: compare with every peer, and write what was found (``make peers``)."""

import sys
from pathlib import Path

from helpers.tensor_kinds import EXTREME, KINDS, SHAPE

from peers.rows import DTYPES, RESTATED, ROWS, VERSIONS, Row, compare, why_not

PAGE = Path(__file__).resolve().parents[2] / "docs" / "peers.md"

HEAD = """# What other tools compute

For each tool that quantizes, the format of mxsweep that gives its values, bit for bit. Measured on a CPU with the
tool's own quantization, read back by itself, on {kinds} tensors of {rows} x {columns} in float32 and in bfloat16.
{ordinary} of them are of ordinary size: normal, heavy tails, rows of very different size, ties, an ulp beside ties,
zeros, and maxima where exponents are decided ({ordinary_elements:,} elements). {extreme} are extreme: subnormal, near
the largest, bit patterns of every size, NaN and Inf ({extreme_elements:,} elements).

The numbers count elements that differ, zeros being equal whatever their sign and a NaN to a NaN. All of them lie in
blocks that the notes name; everywhere else nothing differs, and a test fails where something does
([working on mxsweep](../CONTRIBUTING.md#other-tools)). A format is written as `str(MXFormat(...))` writes it, and
computed in `exact` arithmetic but where a note says `native`.

| tool | what | mxsweep's format | float32 | bfloat16 | extreme float32 | extreme bfloat16 | notes |
| --- | --- | --- | ---: | ---: | ---: | ---: | --- |
"""

TAIL = """
vLLM has no package for a CPU: what its emulation of NVFP4 defines was read at the commit named, and is restated in the
test. Where no hardware multiplies MXFP4, it takes Quark's.

llm-compressor 0.14 quantizes by compressed-tensors. A whole model that it quantizes (`oneshot`) has the weights that
the formats above give, those of NVFP4 under one scale for q, k and v, and for gate and up, in float32 and in bfloat16
(`tests/peers/test_llm_compressor.py`). It asks for compressed-tensors 0.19 and an older transformers, so that it is in
no extra; `pip install --no-deps llmcompressor==0.14.0` puts it beside these, with which it runs.

No format gives AutoRound's `nvfp4_v2_with_global_scale` (e5m3 under a scale of the tensor): it divides by s·(1/g) and
reads with that, which no `scale_rule` does.
"""


def render() -> str:
    """Return the page."""
    elements, extreme = SHAPE[0] * SHAPE[1], len(EXTREME)
    ordinary = len(KINDS) - extreme
    notes: dict[str, int] = {}
    lines = [
        HEAD.format(
            kinds=len(KINDS),
            rows=SHAPE[0],
            columns=SHAPE[1],
            ordinary=ordinary,
            ordinary_elements=ordinary * elements,
            extreme=extreme,
            extreme_elements=extreme * elements,
        )
    ]
    for row in ROWS:
        numbers = sorted(notes.setdefault(reason, len(notes) + 1) for reason in reasons(row))
        cells = [f"{count:,}" for count in counts(row)] + [", ".join(map(str, numbers))]
        lines.append(f"{beginning(row)} {' | '.join(cells)} |\n")
        print(lines[-1], end="", file=sys.stderr)
    return "".join([*lines, "\n", *(f"{number}. {reason}\n" for reason, number in notes.items()), TAIL])


def counts(row: Row) -> tuple[int, int, int, int]:
    """Return how many elements differ on ordinary tensors in each dtype, then on extreme ones."""
    found = [list(compare(row, dtype)) for dtype in DTYPES]
    ordinary, extreme = (
        [sum(one.differing for one in of_dtype if (one.kind in EXTREME) is wanted) for of_dtype in found]
        for wanted in (False, True)
    )
    return ordinary[0], ordinary[1], extreme[0], extreme[1]


def beginning(row: Row) -> str:
    """Return what the page says of a row before anything is measured."""
    return f"| {row.peer} {(VERSIONS | RESTATED)[row.peer]} | {row.title} | `{row.format}` |"


def reasons(row: Row) -> list[str]:
    """Return the texts of a row's notes."""
    native = [f"`native` arithmetic in {', '.join(str(dtype).removeprefix('torch.') for dtype in row.native)}"]
    return [*(native if row.native else []), *(exemption.reason for exemption in row.exemptions)]


def main() -> None:
    """Write the page."""
    missing = [reason for peer in VERSIONS if (reason := why_not(peer))]
    if missing:
        sys.exit("\n".join(missing))
    PAGE.write_text(render(), encoding="utf-8")  # peers print, too


if __name__ == "__main__":
    main()
