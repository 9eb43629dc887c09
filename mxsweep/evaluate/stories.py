"""Tell short English stories whose last word only the whole story tells: the embedded task.

LAMBADA asks for the last word of a passage that people guess easily with the passage and hardly ever
with the last sentence alone. These stories ask the same of a model of a million parameters. Several
people each bring a thing somewhere, some of the things are moved by somebody else, and the last sentence
asks about one of them:

    Irene hid the kettle in the attic. Oscar left the whistle in the stable. [...] Then Nora took the
    whistle to the cellar. [...] In the evening the whistle was in the | cellar

The answer (a place, a thing or a person) always stands earlier in the story, among others of its kind. Some
questions need one sentence, others the later of two sentences about the same thing.

A story is a function of its seed alone, through `random.Random.random()`, whose sequence Python promises
to keep. The splits are disjoint by construction, whatever the seeds: a checksum of the text itself says
which split a story belongs to, and a stream passes over the stories that belong to the others.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from mxsweep.evaluate.words import DAYS, MEN, MONTHS, PLACES, THINGS, WOMEN

T = TypeVar("T")

SPLIT_BUCKETS = 4
SPLITS: dict[str, frozenset[int]] = {
    "test": frozenset({0}),
    "calibration": frozenset({1}),
    "train": frozenset({2, 3}),
}
"""Residues of a story's checksum modulo `SPLIT_BUCKETS` that belong to each split."""

THINGS_PER_STORY = (4, 5)
TEST_SEED = 0
TEST_STORIES = 1000

OPENINGS = (
    "It was a cold {month}.",
    "It happened on a {day}.",
    "Nobody forgot that {day} in {month}.",
)

PLACINGS = (
    "{who} put the {what} in the {first}.",
    "{who} hid the {what} in the {first}.",
    "{who} left the {what} in the {first}.",
    "{who} brought the {what} to the {first}.",
)
"""Sentences that introduce a thing. All have one shape, which a small model learns to read soon."""

MOVES = (
    "Then {mover} took the {what} to the {now}.",
    "Before lunch {mover} moved the {what} to the {now}.",
    "After lunch {mover} carried the {what} to the {now}.",
)
"""Sentences that say that a thing is somewhere else now."""

QUESTIONS = (
    "Later {other} found the {what} in the {now}",
    "In the evening the {what} was in the {now}",
    "In the evening there was in the {now} the {what}",
    "What {who} had brought was the {what}",
    "The owner of the {what} was {who}",
)
"""Last sentences; the last word is the answer. {other} is anybody but the thing's owner."""

MOVED_QUESTIONS = (
    *QUESTIONS,
    "The {what} had been taken away by {mover}",
    "At first the {what} had been in the {first}",
)
"""Last sentences about a thing that was moved."""


@dataclass(frozen=True)
class Story:
    """Hold a scene and the questions asked of it: sentences that each end in their answer, without a stop."""

    scene: str
    questions: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the story as the task tells it: the scene and the first question."""
        return f"{self.scene} {self.questions[0]}"

    @property
    def split(self) -> str:
        """Return the split that the checksum of the text puts this story in."""
        bucket = zlib.crc32(self.text.encode()) % SPLIT_BUCKETS
        return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def story(rng: random.Random, questions: int = 1, things: Sequence[int] = THINGS_PER_STORY) -> Story:
    """Tell one story, of whatever split, with one of these numbers of things, and ask about some of them."""
    count = _pick(rng, things)
    people = _sample(rng, WOMEN + MEN, count + 1)
    places = _sample(rng, PLACES, count + 2)
    placings = [
        {"who": who, "what": what, "first": place, "now": place}
        for who, what, place in zip(people, _sample(rng, THINGS, count), places, strict=False)
    ]
    sentences = [_pick(rng, PLACINGS).format(**placing) for placing in placings]
    for placing, place in zip(_sample(rng, placings, 1 + _below(rng, 2)), places[count:], strict=False):
        placing |= {"mover": _other(rng, people, placing["who"]), "now": place}
        sentences.append(_pick(rng, MOVES).format(**placing))
    if rng.random() < 0.5:
        sentences.insert(0, _pick(rng, OPENINGS).format(day=_pick(rng, DAYS), month=_pick(rng, MONTHS)))
    asked = _sample(rng, placings, min(questions, count))
    return Story(" ".join(sentences), tuple(_question(rng, placing, people) for placing in asked))


def stream(split: str, seed: int = 0, questions: int = 1, things: Sequence[int] = THINGS_PER_STORY) -> Iterator[Story]:
    """Tell stories of one split without end (the other arguments are `story`'s)."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}-{seed}")
    while True:
        candidate = story(rng, questions, things)
        if candidate.split == split:
            yield candidate


def stories(n: int, seed: int = TEST_SEED, split: str = "test") -> list[str]:
    """Return the texts of the first n stories of a split's stream."""
    return [one.text for one in islice(stream(split, seed), n)]


def words(text: str) -> list[str]:
    """Split a text as the tokenizer does: words, and every mark of punctuation by itself."""
    return re.findall(r"\w+|[^\w\s]+", text)


def vocabulary() -> list[str]:
    """Return every word that a story can hold, sorted."""
    templates = " ".join((*OPENINGS, *PLACINGS, *MOVES, *MOVED_QUESTIONS))
    fixed = words(re.sub(r"\{\w+\}", " ", templates))
    return sorted({*fixed, *WOMEN, *MEN, *THINGS, *PLACES, *DAYS, *MONTHS})


def story_task_config(n: int = TEST_STORIES, seed: int = TEST_SEED) -> dict[str, Any]:
    """Return the lm-eval task `story`: lambada_openai's prompt, target and metrics on n generated stories."""

    def dataset(**_: object) -> dict[str, Any]:
        from datasets import Dataset  # here, so that telling stories needs nothing but Python

        return {"test": Dataset.from_dict({"text": stories(n, seed)})}

    return {
        "task": "story",
        "custom_dataset": dataset,
        "test_split": "test",
        "fewshot_split": "test",  # named, so that lm-eval leaves the question itself out of its examples
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }


def _question(rng: random.Random, placing: dict[str, str], people: Sequence[str]) -> str:
    template = _pick(rng, MOVED_QUESTIONS if "mover" in placing else QUESTIONS)
    return template.format(other=_other(rng, people, placing["who"]), **placing)


def _below(rng: random.Random, n: int) -> int:
    return int(rng.random() * n)


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    return items[_below(rng, len(items))]


def _other(rng: random.Random, people: Sequence[str], who: str) -> str:
    return _pick(rng, [person for person in people if person != who])


def _sample(rng: random.Random, items: Sequence[T], n: int) -> list[T]:
    """Return n different items in random order (the order of `random.sample` is not promised to stay)."""
    chosen: dict[int, T] = {}
    while len(chosen) < n:
        i = _below(rng, len(items))
        chosen[i] = items[i]
    return list(chosen.values())
