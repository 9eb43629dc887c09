"""Write the sensitivity of a model's parts as a table of text."""

from __future__ import annotations

import math

from mxsweep.forward.sequence_loss import Shift
from mxsweep.measure.sensitivity import PartLoss, Sensitivity, interval_of, saved_by
from mxsweep.report.plain_table import plain
from mxsweep.report.table import Table, text_cells
from mxsweep.report.wording import ABSENT
from mxsweep.statistics.paired_tests import MeanDifference
from mxsweep.study.finding import with_minus_signs


def text(sensitivity: Sensitivity) -> str:
    """Return a table with a row for each part, the worst first, under what its columns mean."""
    whole = sensitivity.whole
    rows = [_row(rank, one, whole) for rank, one in enumerate(sensitivity.parts, 1)]
    table = plain(Table("", list(rows[0]), [text_cells(row.values()) for row in rows]))
    total = sum(one.alone.kl for one in sensitivity.parts)
    sequences = "" if whole.sums is None else f" of {len(whole.sums.positions):,} sequences"
    kl, loss = _with_interval(interval_of(whole, "kl")), _with_interval(interval_of(whole, "loss"), "+")
    return (
        f"Everything quantized: KL {kl}, loss {loss} nats a token,\n"
        f"over {whole.positions:,} positions{sequences}.\n"
        "alone: only this part is quantized. saved: how much less it is where all but this part is quantized.\n"
        "KL: from the unquantized model's predictions. loss: change of the negative log-likelihood. Nats a\n"
        "token; […] is the 95 % interval over sequences, paired with the unquantized model and, of what is\n"
        "saved, with everything quantized.\n\n"
        f"{table}\n\n"
        f"The KL of the parts alone adds up to {total:.5f}, {_share(total, whole.kl)} of the whole's."
    )


def _row(rank: int, one: PartLoss, whole: Shift) -> dict[str, str]:
    return {
        "rank": str(rank),
        "part": one.part.name,
        "KL alone": _with_interval(interval_of(one.alone, "kl")),
        "of the whole": _share(one.alone.kl, whole.kl),
        "loss alone": _with_interval(interval_of(one.alone, "loss"), "+"),
        "KL saved": _with_interval(saved_by(whole, one.without, "kl")),
    }


def _with_interval(measured: MeanDifference, sign: str = "") -> str:
    """Return a loss with its interval; without one where it is of a single sequence, or not finite."""
    value = f"{measured.difference:{sign}.3g}"
    ends = f" [{measured.low:{sign}.3g}, {measured.high:{sign}.3g}]" if math.isfinite(measured.low) else ""
    return with_minus_signs(value + ends)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else ABSENT
