"""Say in a verdict's lines which configs, and how many examples: what several of these lines have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from mxsweep.results.knob_words import are_all_combinations, enumerate_names, name_rows
from mxsweep.results.rows import label
from mxsweep.study.configs_to_use import Config


@dataclass(frozen=True)
class VerdictLine:
    """Hold a line of the answer: what it is about, a run that it names, and the start of the text that matters most.

    The start of what to use is the config and its cost, and its command makes that run once more; "" of other lines.
    """

    title: str
    text: str
    runs: list[str]
    lead: str = ""
    command: str = ""


def say_examples(n: int) -> str:
    """Return how many examples, in words."""
    return f"{n:,} example{'s' * (n != 1)}"


def name_together(configs: Sequence[Config], among: Sequence[Config] = ()) -> str:
    """Name configs at once, where they are all combinations of their values.

    Knobs are left out that have the same several values in each of the configs or, where given, of those `among` which
    they stand: those tell nothing of them.
    """
    named = [name for name in configs[0].naming if not _is_open(among or configs, name)]
    rows = [row for one in configs for row in one.rows]
    if are_all_combinations(rows, named):
        return name_rows(rows, named, configs[0].usual)
    if len(configs) > 2:
        return f"the best {len(configs)} configs"
    return enumerate_names([one.name for one in configs], "and")


def _is_open(configs: Sequence[Config], name: str) -> bool:
    """Return whether each of the configs has the same several values of a knob, so that it tells nothing of them."""
    values = {values_of(one, name) for one in configs}
    return len(values) == 1 and len(values.pop()) > 1


def values_of(config: Config, name: str) -> frozenset[str]:
    """Return the values of a knob in a config's runs, as tables write them."""
    return frozenset(label(row.knobs.get(name, "")) for row in config.rows)
