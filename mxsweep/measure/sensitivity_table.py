"""Write the sensitivity of a model's parts as a table of text."""

from __future__ import annotations

from tabulate import tabulate

from mxsweep.forward.sequence_loss import Shift
from mxsweep.measure.sensitivity import PartLoss, Sensitivity


def text(sensitivity: Sensitivity) -> str:
    """Return a table with a row for each part, the worst first, under what its columns mean."""
    whole = sensitivity.whole
    rows = [_row(rank, one, whole) for rank, one in enumerate(sensitivity.parts, 1)]
    align = ["right", "left", *["right"] * (len(rows[0]) - 2)]
    table = tabulate([list(row.values()) for row in rows], headers=list(rows[0]), disable_numparse=True, colalign=align)
    total = sum(one.alone.kl for one in sensitivity.parts)
    return (
        f"Everything quantized: KL {_number(whole.kl)} ± {whole.kl_stderr:.1g}, loss {_signed(whole)} nats a token, "
        f"over {whole.positions:,} positions.\n"
        "alone: only this part is quantized. without: everything is, but this part; saved: how much less KL that is.\n"
        "KL: from the unquantized model's predictions. loss: change of the negative log-likelihood (± standard "
        "error).\n\n"
        f"{table}\n\n"
        f"The KL of the parts alone adds up to {_number(total)}, {_share(total, whole.kl)} of the whole's."
    )


def _row(rank: int, one: PartLoss, whole: Shift) -> dict[str, str]:
    return {
        "rank": str(rank),
        "part": one.part.name,
        "KL alone": _number(one.alone.kl),
        "of the whole": _share(one.alone.kl, whole.kl),
        "loss alone": _signed(one.alone),
        "KL without": _number(one.without.kl),
        "saved": _number(whole.kl - one.without.kl),
        "loss without": _signed(one.without),
    }


def _number(nats: float) -> str:
    return f"{nats:.5f}"


def _signed(shift: Shift) -> str:
    return f"{shift.loss:+.5f} ± {shift.loss_stderr:.1g}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else "-"
