"""Documents and scoring of the lm-eval tasks beside this file.

A document holds ``choices``, whole sentences or endings, their order shuffled by the document's own name, and ``answer``. Where
several wordings ask the same thing they are one document (``wordings`` runs of choices one after the other), so that its
standard error counts the thing once: each wording is answered, or, where they count ``together``, an answer is as likely as all
its wordings. An answer counts only if it is strictly the likeliest; a tie of k counts 1/k, and a likelihood that is not a number
is an error. Documents are shuffled too: the first N of them are a sample.

Sources, in the folder that the user names: ``coda`` (Paik et al. 2021, arXiv 2110.08182), ``verbphysics`` (Forbes and Choi 2017,
arXiv 1706.03799), ``blimp`` (Warstadt et al. 2020, arXiv 1912.00582), ``world``, as `quadrivium world` wrote it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import random
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quadrivium.ask import credit
from quadrivium.data.questions import make_questions
from quadrivium.data.world import world_config
from quadrivium.errors import ConfigError, DataError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "gray", "brown")
_COMPARED = {
    "size": ("bigger", "larger"),
    "weight": ("heavier",),
    "strength": ("stronger",),
    "rigidness": ("stiffer", "more rigid"),
    "speed": ("faster", "quicker"),
}


def accuracy(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Strict credit, the mean over a document's wordings or of all ``together``; for BLiMP also under the name of its field."""
    scores, answers = np.array([r[0] for r in results]).reshape(doc["wordings"], -1), np.array(doc["answers"])
    if doc["together"]:
        scores, answers = np.logaddexp.reduce(scores, axis=0, keepdims=True), answers[:1]
    mean = float(credit(scores, answers).mean())
    return {"acc": mean, **({f"acc_{doc['field']}": mean} if doc.get("field") else {})}


class Absent(DataError):
    """A folder has none of a task's files."""


@contextlib.contextmanager
def _reading(task: str, folder: str) -> Iterator[None]:
    """DataError for files that are there and are not what the task reads."""
    try:
        yield
    except (OSError, LookupError, ValueError, TypeError, AttributeError, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"{folder}: the files of {task} are damaged, or not those of its source ({error!r})") from None


def of(task: str, folder: str) -> list[dict[str, Any]]:
    """Documents of ``coda``, ``verbphysics`` (all its attributes) or ``blimp``, shuffled. Those about facts hold them as ``fact``: parts,
    each a list of wordings; those of ``coda`` also hold the answer's name, as ``answered``. Raises Absent, or another DataError."""
    with _reading(task, folder):
        if task == "verbphysics":
            docs = [doc for attribute in _COMPARED for doc in verbphysics_documents(folder, attribute)]
        else:
            docs = coda_documents(folder) if task == "coda" else blimp_documents(folder)
    return _shuffled(docs)


def coda(folder: str = "", **_: Any) -> dict[str, Any]:
    with _reading("coda", folder):
        return _split(coda_documents(folder))


def verbphysics(folder: str = "", attribute: str = "size", **_: Any) -> dict[str, Any]:
    with _reading("verbphysics", folder):
        return _split(verbphysics_documents(folder, attribute))


def blimp(folder: str = "", **_: Any) -> dict[str, Any]:
    with _reading("blimp", folder):
        return _split(blimp_documents(folder))


def coda_documents(folder: str) -> list[dict[str, Any]]:
    """Which colour is the likeliest of a thing? The one that people gave most weight to, where one leads."""
    root = _find(folder, "coda", "annotations.jsonl")
    weights: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(COLOURS)))
    for row in _jsonl(root / "annotations.jsonl"):
        given = np.array([float(row.get(c) or 0) for c in COLOURS])
        if row.get("included") and given.sum():
            weights[row["class_id"]] += given / given.sum()
    docs = []
    for thing in _jsonl(root / "objects.jsonl"):
        found = weights.get(thing["class_id"], np.zeros(1))
        if (found == found.max()).sum() != 1 or len(found) != len(COLOURS):
            continue
        many, one = (
            f"{thing[f'object_{n}']} {thing[f'areis_{n}']}" if thing[f"object_{n}"] else "" for n in ("pl", "s")
        )  # some things are never one, and some never many
        said = (
            f"Most {many} {{}}.",
            f"Everyone knows that most {many} {{}}.",
            f"Commonly {many} {{}}.",
            f"All {many} {{}}.",
            f"It is known that {many} {{}}.",
        )
        said = (*(said if many else ()), *([f"This {one} {{}}."] if one else ()))
        wordings = [[text.format(c) for c in COLOURS] for text in said]
        colour = COLOURS[int(found.argmax())]
        named = [colour, "grey"] if colour == "gray" else [colour]
        made = _document(f"coda {thing['class_id']}", wordings, int(found.argmax()))
        docs.append({**made, "fact": [[w for w in (thing["object_s"], thing["object_pl"]) if w], named], "answered": colour})
    return docs


def verbphysics_documents(folder: str, attribute: str) -> list[dict[str, Any]]:
    """Which of two things is bigger, ...? The test pairs on which people agree and that differ."""
    root = _find(folder, "verbphysics", "objects/train-5/test.csv")
    docs = []
    with open(root / "objects" / "train-5" / "test.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row[f"{attribute}-maj"] not in ("1", "-1"):
                continue
            pair = [_article(row[k].replace("_", " ")) for k in ("obj1", "obj2")]
            wordings = []
            for more in _COMPARED[attribute]:
                for text in ("{} is {more} than {}.", "Compared with {1}, {0} is {more}."):
                    wordings.append([_capital(text.format(*p, more=more)) for p in (pair, pair[::-1])])
            answer = 0 if row[f"{attribute}-maj"] == "1" else 1
            made = _document(f"verbphysics {attribute} {row['obj1']} {row['obj2']}", wordings, answer)
            things = [row[k].replace("_", " ") for k in ("obj1", "obj2")]
            docs.append({**made, "fact": [[thing, f"{thing}s"] for thing in things]})
    return docs


def blimp_documents(folder: str) -> list[dict[str, Any]]:
    """Which of two sentences is grammatical?"""
    root = _find(folder, "blimp", "BLiMP.zip", "data")
    docs = []
    for name, lines in _blimp_files(root):
        for row in map(json.loads, lines):
            made = _document(f"blimp {name} {row['pairID']}", [[row["sentence_good"], row["sentence_bad"]]], 0)
            docs.append({**made, "field": row["field"].replace("/", "_")})
    return docs


def _blimp_files(root: Path) -> Iterable[tuple[str, list[str]]]:
    if (root / "BLiMP.zip").is_file():
        with zipfile.ZipFile(root / "BLiMP.zip") as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".jsonl") and "__MACOSX" not in n):
                yield Path(name).stem, archive.read(name).decode().splitlines()
    else:
        for path in sorted((root / "data").glob("*.jsonl")):
            yield path.stem, path.read_text(encoding="utf-8").splitlines()


def own(path: Path) -> list[dict[str, Any]]:
    """Questions of a user's file, a row each: ``choices``, whole sentences, ``answer``, the place of the right one from 0, and, to be split by
    how often the fact stands in the text, ``fact``, its parts, each a word or several wordings of it. Raises DataError naming the line."""
    docs: list[dict[str, Any]] = []
    met: dict[str, int] = {}  # questions, and their lines
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable file of questions ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no object; one question a line, not a list of them")
            if unknown := row.keys() - {"choices", "answer", "fact"}:
                raise ValueError(
                    f"{', '.join(sorted(unknown))}: only choices, answer and fact are read; a question is a part of every choice"
                )
            choices, answer, fact = row["choices"], row["answer"], row.get("fact") or []
            if not isinstance(choices, list) or not isinstance(fact, list):
                raise ValueError("choices and fact are lists")
            fact = [part if isinstance(part, list) else [part] for part in fact]
            if not all(isinstance(word, str) for words in (choices, *fact) for word in words):
                raise ValueError("a choice, or a part of the fact, is no text")
            if len(choices) < 2 or len({choice.strip() for choice in choices}) < len(choices):
                raise ValueError("choices are at least two, and different")
            if type(answer) is not int or not 0 <= answer < len(choices):
                raise ValueError(f"answer is a place among {len(choices)} choices, counted from 0, and not {answer!r}")
            if not all(fact) or not all(any(map(str.isalnum, word)) for words in (choices, *fact) for word in words):
                raise ValueError("a choice, or a part of the fact, is empty")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{path}: line {number} is no question ({error}); expected {{"choices": ["A lemon is red.", "A lemon is yellow."], "answer": 1}}'
            ) from None
        if (first := met.setdefault(str(sorted(map(str.strip, choices))), number)) != number:
            raise DataError(f"{path}: line {number} asks what line {first} does; a question counts once")
        if docs and bool(fact) != bool(docs[0]["fact"]):
            raise DataError(
                f"{path}: line {number} {'names' if fact else 'does not name'} its fact, unlike the first; all do or none"
            )
        docs.append({**_document(f"own {choices}", [choices], answer), "fact": fact})
    if not docs:
        raise DataError(
            f'{path}: no question here; a line each, as {{"choices": ["A lemon is red.", "A lemon is yellow."], "answer": 1}}'
        )
    return _shuffled(docs)


def world(folder: str = "", group: str = "seen", each: int = 4, **_: Any) -> dict[str, Any]:
    """What happens when two kinds meet? As `quadrivium ask` asks it, in text alone, but for the end mark, which `ask` counts as part of
    every answer and lm-eval has no letters for."""
    config = world_config(_find(folder, "world", "world.json"))
    docs = []
    for i, q in enumerate(make_questions(config, group, each, config.languages)):
        wordings = [list(told) for told in zip(*q.options, strict=True)]
        docs.append(_document(f"world {group} {i}", wordings, q.answer, q.beginning, together=True))
    return _split(docs)


def _document(name: str, wordings: list[list[str]], answer: int, context: str = "", together: bool = False) -> dict[str, Any]:
    """Choices of every wording in an order drawn from the document's name, one order where wordings count ``together``."""
    choices, answers, rng = [], [], random.Random(name)
    for i, options in enumerate(wordings):
        if not (together and i):
            order = rng.sample(range(len(options)), len(options))
        choices += [options[i] for i in order]
        answers.append(order.index(answer))
    made = {"name": name, "context": context, "choices": choices, "answers": answers, "wordings": len(wordings)}
    return {**made, "together": together}


def _split(docs: list[dict[str, Any]]) -> dict[str, Any]:
    import datasets
    import pyarrow as pa

    docs = _shuffled(docs)
    mark = hashlib.sha256(json.dumps(docs).encode()).hexdigest()[:32]  # given, as some releases of datasets fail to make it
    return {"test": datasets.Dataset(pa.Table.from_pylist(docs), fingerprint=mark)}


def _shuffled(docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not docs:
        raise DataError("no questions could be made of the files there")
    return random.Random(0).sample(docs, len(docs))


def _find(folder: str, name: str, *marks: str) -> Path:
    """``folder/name`` or ``folder`` itself, whichever holds one of ``marks``."""
    if not folder:
        raise ConfigError(f"the {name} task reads a folder of yours; name it with --lm-eval-data")
    for root in (Path(folder) / name, Path(folder)):
        if any((root / mark).exists() for mark in marks):
            return root
    raise Absent(f"{folder} has no {name}: looked for {' or '.join(marks)} there and in {name}/")


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
