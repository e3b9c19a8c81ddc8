"""Forced-choice questions about the world: text in, text out, answers computed by the simulator.

A question is a beginning in words and one continuation for every outcome its device can have; one of them is what the
engine does. Within every template, language and device each outcome is the answer equally often, so that the best
constant answer is right 1/k of the time. That one kind alone does not settle an answer holds only in part: outcomes follow
from comparing two kinds, and the lightest kind never proves the heavier. `alone` says what a reader reaches who knows
everything about one kind and nothing about the other.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quadrivium.data import language as words
from quadrivium.data.language import LANGUAGES, Language
from quadrivium.data.machine import DEVICES, MachineSpec
from quadrivium.data.world import WorldConfig, facts, make_kinds, stream
from quadrivium.errors import ConfigError

# How the words lead up to the outcome, see language.question.
TEMPLATES = ("statement", "question", "instruction", "story", "action")


@dataclass(frozen=True)
class Question:
    """``beginning + options[i]`` are the texts to compare; ``options[answer]`` is what the simulator does."""

    language: Language
    template: str
    group: str  # of its kinds
    device: str
    first: int
    second: int
    beginning: str
    options: tuple[str, ...]  # in the order of DEVICES[device]
    answer: int

    @property
    def texts(self) -> list[str]:
        """One whole text for every option."""
        return [self.beginning + option for option in self.options]


def _facts_in_turn(config: WorldConfig, group: str) -> dict[tuple[str, str], Iterator[tuple[int, int]]]:
    """(device, outcome) -> pairs of kinds in a shuffled order, beginning again when all were used."""
    rows = defaultdict(list)
    for first, second, device, outcome in facts(config, group):
        rows[device, outcome].append((first, second))
    for device in config.devices:
        for outcome in DEVICES[device]:
            if not rows[device, outcome]:
                raise ConfigError(
                    f"questions: no two {group} kinds of this world end a {device} with {outcome!r}; raise --kinds or change --seed"
                )
    for (device, outcome), pairs in rows.items():
        stream(config, "questions", group, device, outcome).shuffle(pairs)
    return {key: itertools.cycle(pairs) for key, pairs in rows.items()}


def make_questions(
    config: WorldConfig, group: str = "seen", each: int = 4, languages: Sequence[Language] = LANGUAGES
) -> list[Question]:
    """``each`` questions for every template, language, device and outcome about kinds of ``group``; the same every time.

    Both orders of naming, left and right, and the wordings are drawn. ConfigError if the group has no pair for an outcome.
    """
    kinds = make_kinds(config)
    turn = _facts_in_turn(config, group)
    questions = []
    for template, tongue, device, number in itertools.product(TEMPLATES, languages, config.devices, range(each)):
        for answer, outcome in enumerate(DEVICES[device]):
            first, second = next(turn[device, outcome])
            rng = stream(config, "question", group, template, tongue, device, number, answer)
            spec = MachineSpec(device, first, second, mirror=config.mirror and rng.random() < 0.5)
            beginning = words.question(template, spec, kinds[first], kinds[second], rng, tongue)
            options = tuple(
                words.outcome(device, what, kinds[first], kinds[second], rng, tongue, spec.mirror) for what in DEVICES[device]
            )
            questions.append(Question(tongue, template, group, device, first, second, beginning, options, answer))
    return questions


def alone(questions: Sequence[Question]) -> tuple[float, float]:
    """Accuracy of readers who know of every question only its device and its first (second) kind."""
    shares = []
    for place in ("first", "second"):
        counts: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
        for q in questions:
            counts[q.device, getattr(q, place)][q.answer] += 1
        shares.append(sum(max(counter.values()) for counter in counts.values()) / len(questions))
    return shares[0], shares[1]
