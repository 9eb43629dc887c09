"""Make cards of the headline's runs: each with its differences from its baseline, and how it was chosen."""

from dataclasses import dataclass

from mxsweep.report.columns import Change, Column, ComparedRow, Output
from mxsweep.report.run_table import pick_entry, run_columns
from mxsweep.report.wording import ABSENT
from mxsweep.study.group_study import Study
from mxsweep.study.headline import Pick


@dataclass(frozen=True)
class CardLine:
    """Hold a line of a card."""

    title: str
    value: str
    change: str = ""
    interval: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Card:
    """Describe one of the headline's runs."""

    title: str
    config: str
    chosen: str
    run_id: str
    lines: list[CardLine]


def cards(study: Study) -> list[Card]:
    """Return the headline's runs, each with its differences from its baseline."""
    return [_card(study, pick) for pick in study.picks]


def _card(study: Study, pick: Pick) -> Card:
    columns, entry = run_columns(study.results, study.group, Output.CARD), pick_entry(study, pick)
    lines = [_line(column, entry) for column in columns if column.shows([pick.row], Output.CARD)]
    config = "nothing quantized" if pick.row.is_baseline else study.config_text(pick.row)
    return Card(pick.title, config, pick.chosen, pick.row.run.run_id, lines)


def _line(column: Column, entry: ComparedRow) -> CardLine:
    change = column.change(entry) if column.change else Change(ABSENT)
    text = "" if change.text == ABSENT else change.card or change.text
    title = column.card_title or column.heading
    return CardLine(title, column.write(entry.row), text, change.interval, change.verdict)
