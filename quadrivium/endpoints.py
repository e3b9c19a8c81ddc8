"""What text alone knows afterwards, beyond its bits: the endpoints of `transfer` on real text.

    words    held-out text, priced by kind of word: whether the word ever stood in a caption, and so came with a frame; and, with a table
             of ratings, how concrete it is (Brysbaert et al. 2014, https://doi.org/10.3758/s13428-013-0403-5)
    tasks    forced choice on files of the user's: colours of things (``coda``), comparisons of things (``verbphysics``), grammar, which is
             to show harm (``blimp``), and questions of the user's own (``own``); `tasks.documents` says how they are asked. Split by how often the fact stands in the text of the
             grid, its share of the documents and all captions: in sentences that hold the thing and its colour, or both things

Beside them stand baselines that cost nothing: chance; of colours the commonest answer, and the colour that the text names most, neither
of which sees the thing; a trigram of the text; and the model before its first step.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quadrivium.data.mixture import Mixture, read_documents
from quadrivium.data.shards import Dataset, SourceData
from quadrivium.errors import ConfigError, DataError
from quadrivium.evaluate import token_bits
from quadrivium.harness import likelihoods
from quadrivium.model import Model
from quadrivium.statistics import holm, interval, paired
from quadrivium.tasks import documents
from quadrivium.text import TextTokenizer

Task = Literal["coda", "verbphysics", "blimp"]
STRATA = ((0, "never"), (1, "1 to 9 times"), (10, "10 times or more"))
# Written without spaces between words: Japanese and Chinese, Thai, Lao, Burmese, Khmer.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_SENTENCE = re.compile(r"[.!?。！？]+|\n\s*\n")
MOST = 1 << 23  # ids of text that are counted, some thirty million letters; of more, a sample of documents
_PACKED = 1 << 21  # ids of which three fit into 63 bits


@functools.cache
def _letters() -> re.Pattern:
    """A word: letters, each with the marks that go with it (vowels of Indic scripts, accents written apart), and apostrophes inside."""
    marks = "".join(re.escape(chr(c)) for c in range(0x300, 0x20000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    letters = rf"(?:[^\W\d_][{marks}]*)+"
    return re.compile(rf"{letters}(?:['’]{letters})*")


@functools.cache
def _said() -> re.Pattern:
    """What facts are told in: words, and runs of digits and other numbers."""
    return re.compile(rf"{_letters().pattern}|[^\W_]+")


@dataclass(frozen=True)
class EndpointConfig:
    """What is asked of every cell of a grid, besides bits."""

    folder: Path | None = None  # holds coda, verbphysics, blimp or some of them; without it none of these is asked
    tasks: tuple[Task, ...] = ("coda", "verbphysics", "blimp")  # which of them are asked, where they are in the folder
    # a .jsonl of your own questions, a row each: {"choices": ["A lemon is red.", "A lemon is yellow."], "answer": 1}
    questions: Path | None = None
    limit: int = 500  # questions of each task, a sample; of your own all are asked
    concreteness: Path | None = None  # a table of words and ratings from 1 to 5, columns Word and Conc.M, or the first two

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError(f"endpoints.limit is {self.limit}; it has to be positive")
        if not self.tasks:
            raise ConfigError("endpoints.tasks names no task; leave out --endpoints.folder to ask nothing")

    def declared(self) -> dict[str, Any]:
        """What a grid declares of it: files by what is in them. Raises DataError where they cannot be read."""
        asked = questions(self)
        said = [asked.pop("own", None), asked or None, ratings(self.concreteness) if self.concreteness else None]
        own, folder, rated = (None if s is None else hashlib.sha256(json.dumps(s).encode()).hexdigest() for s in said)
        return {"folder": folder, "tasks": list(self.tasks), "questions": own, "limit": self.limit, "concreteness": rated}


# ---- kinds of words ----------------------------------------------------------------------------------------------------


def ratings(path: Path) -> dict[str, float]:
    """Word -> how concrete it is, 1 to 5. Raises DataError where the table has no such columns."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable table of ratings ({error})") from None
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    word, rating = (head.index(name) if name in head else i for i, name in enumerate(("word", "conc.m")))
    found = {}
    for number, row in enumerate(rows[1:] if "word" in head else rows, 2 if "word" in head else 1):
        if not row:
            continue
        try:
            found[row[word].strip().lower()] = float(row[rating])
        except (IndexError, ValueError):
            raise DataError(f"{path}: line {number} has no word and rating; expected columns Word and Conc.M") from None
    if not found or not all(1 <= value <= 5 for value in found.values()):
        raise DataError(f"{path}: no ratings from 1 to 5 here; expected columns Word and Conc.M")
    return found


class Kinds:
    """Sorts the ids of a document by the word that they belong to."""

    def __init__(self, tokenizer: TextTokenizer, data: Dataset, rated: dict[str, float] | None = None) -> None:
        self.tokenizer, self.rated = tokenizer, rated
        self.words, self.ids = set[str](), set[int]()
        for source, item, which in _captions(data):
            ids = source.text(item, which)
            self.ids |= set(ids.tolist())
            self.words |= set(_letters().findall(tokenizer.decode(ids).lower()))

    def of(self, ids: np.ndarray) -> list[tuple[str, ...]]:
        """Kinds of every id (n,) of a whole document, without marks: a word's ids are all of its kind. What is no word has none."""
        said = self.tokenizer.decode(ids)
        kind_at: list[tuple[str, ...]] = [()] * len(said.encode())
        at, byte = 0, 0
        for word in _letters().finditer(said):
            byte += len(said[at : word.start()].encode())
            at = word.start()
            size = len(word.group().encode())
            kind_at[byte : byte + size] = [self._kinds(word.group())] * size
        sizes = self.tokenizer.id_bytes[ids].tolist()
        # SentencePiece opens a text with a space that is not there when it is decoded.
        found, start = list[tuple[str, ...]](), len(kind_at) - sum(sizes)
        for i, size in zip(ids.tolist(), sizes, strict=True):
            here = next((k for k in kind_at[max(start, 0) : max(start + size, 0)] if k), ())
            start += size
            if here == ("unspaced",):  # no words to look up: the id stands for itself
                here = ("came with a frame",) if i in self.ids else ("never came with a frame",)
            found.append(here)
        return found

    def _kinds(self, word: str) -> tuple[str, ...]:
        if _UNSPACED.search(word):
            return ("unspaced",)
        found = ("came with a frame",) if word.lower() in self.words else ("never came with a frame",)
        if self.rated is None or word.lower() not in self.rated:
            return found
        value = self.rated[word.lower()]
        return (*found, "concrete" if value >= 4 else "abstract" if value < 2.5 else "between")


def by_word(model: Model, mixture: Mixture, kinds: Kinds, limit: int) -> dict[str, list[float]]:
    """Kind of word -> bits and bytes of held-out documents, ``limit`` windows of every source; "all" has the rest too, "other" what is
    no word, marks among them."""
    found: dict[str, list[float]] = {}
    for held in (s for s in mixture.held.values() if s.route == "t2t" and not s.told):
        chosen = list(mixture.held_units(held, limit))
        at_once, sorted_of = max(1, 4096 // (mixture.config.context + 1)), dict[int, list[tuple[str, ...]]]()
        for some in (chosen[i : i + at_once] for i in range(0, len(chosen), at_once)):
            windows = [mixture.sequence(held, unit) for unit in some]
            for unit, window, costs in zip(some, windows, token_bits(model, windows), strict=True):
                item, part = map(int, held.unit[unit])
                if item not in sorted_of:
                    sorted_of[item] = [(), *kinds.of(held.source.text(item, 0)), ()]  # the two end marks are no words
                begin = part * mixture.config.context + 1
                sizes = kinds.tokenizer.id_bytes[window[0].data[1:]]
                rows = zip(costs.tolist(), sizes.tolist(), sorted_of[item][begin : begin + len(costs)], strict=True)
                for cost, size, names in rows:
                    for name in ("all", *(names or ("other",))):
                        row = found.setdefault(name, [0.0, 0])
                        row[0], row[1] = row[0] + cost, row[1] + size
    return found


# ---- questions ---------------------------------------------------------------------------------------------------------


def questions(config: EndpointConfig) -> dict[str, list[dict[str, Any]]]:
    """Task -> its documents, a sample of them, but all of one's own; tasks whose files are not in the folder are left out. Raises DataError where none is, and
    where files are damaged."""
    found: dict[str, list[dict[str, Any]]] = {}
    if config.questions is not None:
        found["own"] = documents.own(config.questions)
    if config.folder is None:
        return found
    missing = []
    for task in config.tasks:
        try:
            found[task] = documents.of(task, str(config.folder))[: config.limit]
        except documents.Absent as error:
            missing.append(str(error))
    if not found.keys() - {"own"}:
        raise DataError("; ".join(missing))
    return found


def credits(docs: Seq[dict[str, Any]], score: Callable[[list[tuple[str, str]]], list[float]]) -> np.ndarray:
    """Strict credit (n,) of every document under what scores a context and a choice."""
    pairs = [(doc["context"], choice) for doc in docs for choice in doc["choices"]]
    scores, found = iter(score(pairs)), []
    for doc in docs:
        found.append(documents.accuracy(doc, [(next(scores), False) for _ in doc["choices"]])["acc"])
    return np.array(found)


def by_model(model: Model, tokenizer: TextTokenizer) -> Callable[[list[tuple[str, str]]], list[float]]:
    def score(pairs: list[tuple[str, str]]) -> list[float]:
        ids = [([tokenizer.end, *tokenizer.encode(a).tolist()], tokenizer.encode(b).tolist()) for a, b in pairs]
        return [value for value, _ in likelihoods(model, ids)]

    return score


class Trigram:
    """A trigram of ids, smoothed by how many different ids followed (Witten and Bell 1991): what counting alone knows. Of at most 2^21
    ids, which three times fit into a number."""

    def __init__(self, texts: Iterable[np.ndarray], vocab: int) -> None:
        """``texts``: ids of whole texts, marks on both sides."""
        self.vocab = vocab
        whole = [np.asarray(t, np.int64) for t in texts]
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []  # keys in order, and how often each occurs
        for order in (1, 2, 3):
            keys = [self._key([t[i : len(t) - order + 1 + i] for i in range(order)]) for t in whole if len(t) >= order]
            met, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *keys]), return_counts=True)
            self.grams.append((met, counts))
        # Of every context: how often it was followed, and by how many different ids.
        self.contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for met, counts in self.grams[1:]:
            before, first = np.unique(met // vocab, return_index=True)
            ends = np.append(first, len(met))[1:]
            total = np.add.reduceat(counts, first) if len(first) else counts
            self.contexts.append((before, total, ends - first))

    def _key(self, parts: list[np.ndarray]) -> np.ndarray:
        key = np.zeros(len(parts[0]), np.int64)
        for part in parts:
            key = key * self.vocab + part
        return key

    @staticmethod
    def _at(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
        return np.where(keys[place] == asked, values[place], 0) if len(keys) else np.zeros(len(asked), np.int64)

    def nats(self, ids: np.ndarray) -> np.ndarray:
        """Nats (n - 1,) of every id but the first after those before it."""
        ids = np.asarray(ids, np.int64)
        met, counts = self.grams[0]
        if not len(met):
            return np.full(len(ids) - 1, np.log(self.vocab))
        probability = (self._at(met, counts, ids[1:]) + len(met) / self.vocab) / (counts.sum() + len(met))
        for order in (2, 3):
            if len(ids) < order:
                break
            asked = self._key([ids[i : len(ids) - order + 1 + i] for i in range(order)])
            before, total, kinds = self.contexts[order - 2]
            followed, different = (self._at(before, value, asked // self.vocab) for value in (total, kinds))
            lower = probability[order - 2 :]  # of ids that have so many before them
            mixed = (self._at(*self.grams[order - 1], asked) + different * lower) / np.maximum(followed + different, 1)
            probability[order - 2 :] = np.where(followed > 0, mixed, lower)
        return -np.log(probability)

    def score(self, tokenizer: TextTokenizer) -> Callable[[list[tuple[str, str]]], list[float]]:
        def of(pairs: list[tuple[str, str]]) -> list[float]:
            found = []
            for context, more in pairs:
                before = [tokenizer.end, *tokenizer.encode(context).tolist()]
                cost = self.nats(np.array([*before, *tokenizer.encode(more).tolist()]))
                found.append(-float(cost[len(before) - 1 :].sum()))
            return found

        return of


def _captions(data: Dataset) -> Iterator[tuple[SourceData, int, int]]:
    """Captions of training items: source, item, and which of its texts."""
    for source in (s for s in data.sources if not s.rendered):
        for item in np.flatnonzero((source.frames > 0) & ~source.held).tolist():
            yield from ((source, item, which) for which in range(int(source.texts[item])))


def read_texts(data: Dataset, share: float, seed: int, most: int = MOST) -> Iterator[np.ndarray]:
    """Ids of the text that a grid's cells of a seed read from: a share of the documents, and all captions of training items, in a
    random order, until they are ``most``."""
    sources = [s for s in data.sources if not s.rendered]
    places = [*_captions(data), *((s, item, 0) for s in sources for item in read_documents(s, share, seed).tolist())]
    for i in np.random.default_rng(seed).permutation(len(places)).tolist():
        source, item, which = places[i]
        ids = source.text(item, which)
        yield ids
        most -= len(ids)
        if most <= 0:
            return


def times(docs: Seq[dict[str, Any]], texts: Iterable[str]) -> list[int]:
    """In how many sentences the fact that a document asks for stands: one wording at least of each of its parts, word by word; a
    wording in a script without spaces, letter by letter."""
    words = _said()

    def split(said: str) -> tuple[str, ...]:
        return (said,) if _UNSPACED.search(said) else tuple(words.findall(said))

    facts = [[[split(w.lower()) for w in part] for part in doc["fact"]] for doc in docs]
    needed = {wording for parts in facts for part in parts for wording in part}
    unspaced = [wording for wording in needed if _UNSPACED.search(wording[0])]
    longest = max(map(len, needed), default=0)
    waiting: dict[tuple[str, ...], set[int]] = {}  # wording of a first part -> documents
    for i, parts in enumerate(facts):
        for wording in parts[0]:
            waiting.setdefault(wording, set()).add(i)
    found = [0] * len(docs)
    for said in texts:
        for sentence in _SENTENCE.split(said.lower()):
            row = words.findall(sentence)
            here = {tuple(row[i : i + n]) for n in range(1, longest + 1) for i in range(len(row) - n + 1)} & needed
            here |= {wording for wording in unspaced if wording[0] in sentence}
            for i in {i for wording in here for i in waiting.get(wording, ())}:
                found[i] += all(any(w in here for w in part) for part in facts[i])
    return found


def stratum(count: int) -> str:
    return next(name for least, name in reversed(STRATA) if count >= least)


# ---- cells and their summary ---------------------------------------------------------------------------------------------


def measure(
    model: Model, tokenizer: TextTokenizer, data: Dataset, mixture: Mixture, config: EndpointConfig, share: float, limit: int,
    seed: int, untrained: Callable[[], Model] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a cell keeps: ``words``, kind -> bits and bytes; ``tasks``, task -> ``accuracy``, ``n``, ``chance`` and ``strata``, stratum ->
    sum of credits and number; with ``untrained``, which makes the model before its first step, also ``baselines``, task -> baseline -> accuracy."""
    rated = ratings(config.concreteness) if config.concreteness else None
    found: dict[str, Any] = {"words": by_word(model, mixture, Kinds(tokenizer, data, rated), limit)}
    asked = questions(config)
    if not asked:
        return found
    texts = list(read_texts(data, share, seed))
    said = [tokenizer.decode(ids) for ids in texts]
    found["tasks"] = {}
    for task, docs in asked.items():
        credit = credits(docs, by_model(model, tokenizer))
        row: dict[str, Any] = {
            "accuracy": float(credit.mean()),
            "n": len(docs),
            "chance": float(np.mean([_chance(d) for d in docs])),
        }
        if docs[0].get("fact"):
            strata: dict[str, list[float]] = {name: [0.0, 0] for _, name in STRATA}
            for c, count in zip(credit.tolist(), times(docs, said), strict=True):
                place = strata[stratum(count)]
                place[0], place[1] = place[0] + c, place[1] + 1
            row["strata"] = strata
        found["tasks"][task] = row
    if untrained is not None:
        fresh = untrained()
        counted = Trigram(map(tokenizer.enclose, texts), tokenizer.size) if tokenizer.size <= _PACKED else None
        colours = Counter(w for s in said for w in _letters().findall(s.lower()))
        found["baselines"] = {task: {} for task in asked}
        for task, docs in asked.items():
            row = found["baselines"][task]
            if task == "coda":
                row |= {"commonest answer": _commonest(docs), "colour of the text": _one_colour(docs, colours)}
            if counted:
                row["trigram"] = float(credits(docs, counted.score(tokenizer)).mean())
            row["before the first step"] = float(credits(docs, by_model(fresh, tokenizer)).mean())
    return found


def _chance(doc: dict[str, Any]) -> float:
    return doc["wordings"] / len(doc["choices"])


def _commonest(docs: Seq[dict[str, Any]]) -> float:
    """The same answer to every question: the one that is right most often."""
    return Counter(doc["answered"] for doc in docs).most_common(1)[0][1] / len(docs)


def _one_colour(docs: Seq[dict[str, Any]], words: Counter[str]) -> float:
    """The same answer to every question: the colour that the text names most."""
    colour = max(documents.COLOURS, key=lambda c: words[c] + (words["grey"] if c == "gray" else 0))
    return float(np.mean([doc["answered"] == colour for doc in docs]))


def summary(found: dict[str, dict[int, dict]], declared: str = "all") -> dict[str, Any]:
    """Of arm -> seed -> cell: ``words``, kind -> bytes, arm -> bits a byte, and what `four` saves over `text` and over `captions`,
    with p-values adjusted by Holm over all that is compared here but what the grid ``declared`` as its endpoint, all words together or a task;
    ``tasks``, task -> chance, baselines, arm -> accuracy, `four` minus `captions` and minus `text`, and accuracies by stratum."""
    cells = {arm: {s: c["endpoints"] for s, c in by.items() if "endpoints" in c} for arm, by in found.items()}
    cells = {arm: by for arm, by in cells.items() if by}
    if not cells:
        return {}

    def row(values: dict[int, float]) -> dict[str, Any]:
        return dict(zip(("mean", "half"), interval(values.values()), strict=True)) | {"seeds": len(values)}

    def differ(values: dict[str, dict[int, float]], base: str, sign: int, grain: float = 0.0) -> dict[str, Any] | None:
        """`four` minus an arm, or the reverse, where both have a seed in common. ``grain`` as in `paired`."""
        a, b = values.get("four", {}), values.get(base, {})
        if not a.keys() & b.keys():
            return None
        gain = paired(a, b, grain) if sign > 0 else paired(b, a, grain)
        return {"mean": gain.mean, "low": gain.low, "high": gain.high, "n": gain.n, "p": gain.p}

    every = next(iter(next(iter(cells.values())).values()))
    words = {}
    for kind in sorted({k for by in cells.values() for c in by.values() for k in c["words"]}):
        costs = {a: {s: c["words"][kind][0] / c["words"][kind][1] for s, c in by.items() if c["words"].get(kind, [0, 0])[1]} for a, by in cells.items()}  # fmt: skip
        words[kind] = {
            "bytes": next((c["words"][kind][1] for by in cells.values() for c in by.values() if kind in c["words"]), 0),
            "arms": {arm: row(values) for arm, values in costs.items() if values},
            "saved": {base: differ(costs, base, -1) for base in ("text", "captions")},
        }
    tasks = {}
    for task in every.get("tasks", {}):
        right = {a: {s: c["tasks"][task]["accuracy"] for s, c in by.items()} for a, by in cells.items()}
        strata = {}
        for _, name in STRATA if "strata" in every["tasks"][task] else ():
            asked = {a: [c["tasks"][task]["strata"][name] for c in by.values()] for a, by in cells.items()}
            n = float(np.mean([count for rows in asked.values() for _, count in rows]))
            means = {a: sum(c for c, _ in rows) / k for a, rows in asked.items() if (k := sum(k for _, k in rows))}
            strata[name] = {"n": n, "arms": means} if n else {"n": 0.0, "arms": {}}
        base = [c["baselines"][task] for c in cells.get("text", {}).values() if "baselines" in c]
        tasks[task] = {
            "n": every["tasks"][task]["n"],
            "chance": every["tasks"][task]["chance"],
            "baselines": {name: float(np.mean([b[name] for b in base])) for name in (base[0] if base else ())},
            "arms": {arm: row(values) for arm, values in right.items()},
            "gained": {b: differ(right, b, 1, 1 / every["tasks"][task]["n"]) for b in ("text", "captions")},
            "strata": strata,
        }
    rows = [(row.get("saved") or row["gained"]) for kind, row in {**words, **tasks}.items() if kind != declared]
    compared = [gain for row in rows for gain in row.values() if gain]
    adjusted = holm({str(i): g["p"] for i, g in enumerate(compared)})
    for i, g in enumerate(compared):
        g["p"] = adjusted[str(i)]
    return {"words": words, "tasks": tasks}
