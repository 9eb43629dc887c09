"""Find what was typed and has no effect in any run that was asked for: refuse remedies, and say so of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mxsweep.config import effects
from mxsweep.config.effects import Values
from mxsweep.config.knob import UNSET, Knob, Scope
from mxsweep.config.knob_page import words_of
from mxsweep.config.knobs import TABLE
from mxsweep.config.recorded_config import values_of
from mxsweep.config.rules_config import SEARCHED
from mxsweep.config.run_config import RunConfig
from mxsweep.config.sweep_knobs import NEVER, PROVEN
from mxsweep.sweeps.alike import groups_of
from mxsweep.sweeps.plan import PlannedRun
from mxsweep.terminal.errors import ConfigError

# An option of these groups does nothing where each of its elements is set to none beside it, which the group's own
# effect does not look at. A format's is not "weights or inputs": its block size and scale are those of keys and values.
OPTION_EFFECTS = {"format": effects.quantizes, "kv_quant": effects.quantizes_kv}


def check_effects(runs: Sequence[PlannedRun], reuse: str = NEVER) -> list[str]:
    """Return a sentence on each word that changes none of the runs that were asked for.

    Args:
        reuse: the knob: whether a run may be proven by another one.

    Raises:
        ConfigError: such a word is of a remedy or a search, which was surely meant: one that does nothing would be
            taken for one that does not help.
    """
    said = []
    # A run that comes to the same as an earlier one was asked for all the same: what is said does not go by the order.
    asked = [one for run in runs if not run.added for one in (run, *run.repeats)]
    these = "this run" if len(asked) == 1 else "any of these runs"
    for word, knob in _without_effect(asked):
        when = words_of(_effect_of(word, knob))
        told = f"{word}: has no effect in {these}"
        told += f", only where {when}" if when else ""
        if knob.is_of_remedies or word.partition("=")[2] == SEARCHED:
            raise ConfigError(f"{told}; leave it out")
        said.append(told)
    if reuse == PROVEN and not any(groups_of([run.config for run in runs])):
        said.append(
            f"reuse={PROVEN}: has no effect in {these}, only where runs differ in scale_bits or scale_rounding alone, "
            "with e8m0 scales and nothing worked out beforehand"
        )
    return said


def _without_effect(runs: Sequence[PlannedRun]) -> Iterator[tuple[str, Knob]]:
    """Yield the words that have no effect in any run that has them, with their knobs.

    What a run that cannot be would have made of a word is not known.
    """
    words: dict[str, list[PlannedRun]] = {}
    for run in runs:
        for word in run.overrides:
            words.setdefault(word, []).append(run)
    for word, having in words.items():
        knob = TABLE.get(word.lstrip("+").partition("=")[0])
        if knob is None or knob.scope not in (Scope.RUN, Scope.BASELINE):
            continue
        if not any(run.config is None or _has_effect(word, knob, run.config) for run in having):
            yield word, knob


def _has_effect(word: str, knob: Knob, config: RunConfig) -> bool:
    """Return whether a word of a knob does something in a run, or asked for what does nothing anywhere."""
    values = values_of(config)
    effect = _effect_of(word, knob)
    is_off = knob.off is not UNSET and values.get(knob.shown_at or knob.path) == knob.off
    return effect(values) or (is_off and effect is knob.effect)


def _effect_of(word: str, knob: Knob) -> Callable[[Values], bool]:
    """Return the condition under which a word of a knob has an effect."""
    chooses = word.partition("=")[2] not in (knob.off, "null")
    return OPTION_EFFECTS.get(knob.path, knob.effect) if chooses else knob.effect
