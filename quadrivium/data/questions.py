"""Forced-choice questions about the world: text in, text out, answers computed by the simulator.

A question is a beginning in words and one continuation for every outcome its device can have; one of them is what the
engine does, and none of them names anybody: what an answer costs does not rest on a name of which no text ever told an outcome.
Within every template, language and device each outcome is the answer equally often, so that the best
constant answer is right 1/k of the time.

No answer should follow from one kind alone. Outcomes compare two masses, so the lightest kind can never win; but each
outcome is spread as evenly as the physics allows over the levels of mass of its first and of its second kind: a push is as
often a middle kind against a light one as a heavy kind against a middle one. Who knows everything about one kind and
nothing about the other is then right half of the time where a device compares (`alone` measures it), two thirds where the
first kind settles one outcome by itself, as light ones do with dominoes.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quadrivium.data import language as words
from quadrivium.data.language import LANGUAGES, TEMPLATES, Language
from quadrivium.data.machine import DEVICES, Kind, MachineSpec
from quadrivium.data.world import WorldConfig, facts, group_of, make_kinds, stream
from quadrivium.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """Of all ``texts``, those that go on with one of ``options[answer]`` tell what the simulator does."""

    language: Language
    template: str
    group: str  # of its kinds
    device: str
    first: int
    second: int
    levels: tuple[int, int]  # of mass, of the two kinds; for the judge alone
    mirror: bool
    opening: str  # a caption of how the situation opens, which tells no outcome
    beginning: str
    options: tuple[
        tuple[str, ...], ...
    ]  # for every outcome in DEVICES[device], in order, all sentences that tell it and name nobody
    sights: tuple[tuple[str, ...], ...]  # for every option, wordings of it that name nobody: what is read off a clip
    answer: int

    @property
    def texts(self) -> list[str]:
        """One whole text for every wording of every option, in order."""
        return [self.beginning + told for forms in self.options for told in forms]

    @property
    def spec(self) -> MachineSpec:
        """The machine asked about, with nothing out of place."""
        return MachineSpec(self.device, self.first, self.second, mirror=self.mirror)


Levels = tuple[int, int]  # mass levels of the first and the second kind
PAIRS = 2000  # of a group, at the most, that questions are drawn from


def even_quotas(cells: Sequence[Levels], total: int) -> dict[Levels, int]:
    """Deal ``total`` draws to cells so that first levels and second levels each come as evenly often as these cells allow.

    Minimises the sum of squared counts of both margins: one cell after the other, then single exchanges while they help.
    """
    quota = Counter(dict.fromkeys(cells, 0))

    def cost() -> int:
        margins = Counter[tuple[int, int]]()
        for cell, n in quota.items():
            for place, level in enumerate(cell):
                margins[place, level] += n
        return sum(n * n for n in margins.values())

    def after(add: Levels, drop: Levels | None = None) -> int:
        quota.update([add])
        quota.subtract([drop] if drop else [])
        found = cost()
        quota.subtract([add])
        quota.update([drop] if drop else [])
        return found

    for _ in range(total):
        quota[min(cells, key=after)] += 1
    while True:
        swaps = [(after(add, drop), add, drop) for drop in cells if quota[drop] for add in cells if add != drop]
        best, add, drop = min(swaps, default=(cost(), (0, 0), (0, 0)))
        if best >= cost():
            return dict(quota)
        quota.update([add])
        quota.subtract([drop])


class _Deck:
    """Facts of one device and outcome, dealt so that levels of mass, then kinds, then pairs come evenly often."""

    def __init__(self, pairs: Sequence[tuple[int, int]], kinds: Sequence[Kind], total: int) -> None:
        """``pairs``: in shuffled order, which decides between equals."""
        self.pairs: dict[Levels, list[tuple[int, int]]] = defaultdict(list)
        for first, second in pairs:
            self.pairs[kinds[first].level, kinds[second].level].append((first, second))
        self.left = even_quotas(sorted(self.pairs), total)
        self.used: Counter[tuple] = Counter()

    def draw(self, template: str, language: Language) -> tuple[int, int]:
        """The next pair, with levels that this template and this language met least so far."""
        keys = ((template, language), language, template)
        cell = min((c for c in self.left if self.left[c]), key=lambda c: (*(self.used[k, c] for k in keys), -self.left[c]))
        pair = min(self.pairs[cell], key=lambda p: (self.used["first", p[0]] + self.used["second", p[1]], self.used[p]))
        self.left[cell] -= 1
        self.used.update([*((k, cell) for k in keys), ("first", pair[0]), ("second", pair[1]), pair])
        return pair


def _decks(config: WorldConfig, group: str, total: int) -> dict[tuple[str, str], _Deck]:
    """(device, outcome) -> its facts, from which ``total`` will be drawn."""
    kinds = make_kinds(config)
    rows = defaultdict(list)
    for first, second, device, outcome in facts(config, group, most=PAIRS):
        rows[device, outcome].append((first, second))
    for device in config.devices:
        for outcome in DEVICES[device]:
            if not rows[device, outcome]:
                raise ConfigError(
                    f"questions: no two {group} kinds of this world end a {device} with {outcome!r}; raise --kinds or change --seed"
                )
    for (device, outcome), pairs in rows.items():
        stream(config, "questions", group, device, outcome).shuffle(pairs)
    return {key: _Deck(pairs, kinds, total) for key, pairs in rows.items()}


def make_question(
    config: WorldConfig, template: str, language: Language, spec: MachineSpec, answer: int, *key: str | int
) -> Question:
    """Put a situation into words; ``key`` names the streams that its wordings are drawn from."""
    kinds = make_kinds(config)
    first, second = kinds[spec.first], kinds[spec.second]
    rng = stream(config, "question", *key)
    return Question(
        language,
        template,
        group_of(config, spec.first, spec.second),
        spec.device,
        spec.first,
        spec.second,
        (first.level, second.level),
        spec.mirror,
        words.opening(spec, first, second, stream(config, "opening", *key), language, looks=False),
        words.question(template, spec, first, second, rng, language),
        words.wordings(spec.device, rng, language, spec.mirror),
        words.sights(spec.device, stream(config, "sights", *key), language, spec.mirror),
        answer,
    )


def make_questions(
    config: WorldConfig, group: str = "seen", each: int = 4, languages: Sequence[Language] = LANGUAGES
) -> list[Question]:
    """``each`` questions for every template, language, device and outcome about kinds of ``group``; the same every time.

    Left and right, and the wordings, are drawn. ConfigError if the group has no pair for an outcome.
    """
    decks = _decks(config, group, len(TEMPLATES) * len(languages) * each)
    questions = []
    for template, tongue, device, number in itertools.product(TEMPLATES, languages, config.devices, range(each)):
        for answer, outcome in enumerate(DEVICES[device]):
            first, second = decks[device, outcome].draw(template, tongue)
            key = (group, template, tongue, device, number, answer)
            mirror = config.mirror and stream(config, "mirror", *key).random() < 0.5
            spec = MachineSpec(device, first, second, mirror=mirror)
            questions.append(make_question(config, template, tongue, spec, answer, *key))
    return questions


def situations(
    config: WorldConfig, group: str = "seen", languages: Sequence[Language] = LANGUAGES, template: str = "story"
) -> list[Question]:
    """One question for every fact of ``group`` and language: what there is to imagine. Not balanced, so not for measuring."""
    found = []
    for first, second, device, outcome in facts(config, group):
        for tongue in languages:
            key = ("situation", template, tongue, device, first, second)
            mirror = config.mirror and stream(config, "mirror", *key).random() < 0.5
            spec = MachineSpec(device, first, second, mirror=mirror)
            if outcome in DEVICES[device]:
                found.append(make_question(config, template, tongue, spec, DEVICES[device].index(outcome), *key))
    return found


def alone(questions: Sequence[Question], by: Literal["kind", "level"] = "kind") -> tuple[float, float]:
    """Accuracy of readers who know of every question only its device and its first (second) kind, or that kind's level."""
    shares = []
    for place in (0, 1):
        counts: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
        for q in questions:
            known = (q.first, q.second) if by == "kind" else q.levels
            counts[q.device, known[place]][q.answer] += 1
        shares.append(sum(max(counter.values()) for counter in counts.values()) / len(questions))
    return shares[0], shares[1]
