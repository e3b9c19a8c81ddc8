"""Questions to a model: how often is the answer that the simulator gives the likeliest continuation?

    direct    beginning -> option, text alone
    imagine   opening -> imagined clips; each clip -> an outcome as a bystander tells it, and the majority of the clips answers
    shown     the same with the real clip in the place of imagined ones: what seeing it would be worth

Scores are total log-likelihoods of beginning and continuation, to the end of the text; the beginning is the same for all
options, so it cancels. Answers name nobody, and an outcome is as likely as all its wordings together. An
answer counts only if it is strictly the likeliest; a tie of k counts 1/k, in a clip's vote and in the count of votes. Standard errors are clustered by pair of kinds, since questions about one pair share their fact.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from quadrivium import sequence as seq
from quadrivium.checkpoint import Run
from quadrivium.config import from_dict
from quadrivium.data.judge import clip_frames, film
from quadrivium.data.language import parse_outcome
from quadrivium.data.machine import DEVICES, Kind
from quadrivium.data.questions import Question, alone
from quadrivium.data.shards import Dataset
from quadrivium.data.sources import ReadOptions
from quadrivium.data.world import WorldConfig
from quadrivium.errors import ConfigError, QuadriviumError
from quadrivium.evaluate import ratio
from quadrivium.generate import Sampling, continuations, generate
from quadrivium.imagine import Imagining, imagine
from quadrivium.model import Model
from quadrivium.text import TextTokenizer


def credit(scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Credit (n,) of ``answers`` (n,) under ``scores`` (n, k), higher is likelier: 1 alone at the top, 1/ties among equals.

    A score that is not a number is an error, never a wrong answer.
    """
    return top(scores)[np.arange(len(scores)), answers]


def top(scores: np.ndarray) -> np.ndarray:
    """(..., k) -> (..., k): 1 at the highest score of each row, shared equally among ties."""
    if np.isnan(scores).any():
        raise ValueError(f"scores of {int(np.isnan(scores).any(axis=-1).sum())} questions are not numbers")
    best = scores == scores.max(axis=-1, keepdims=True)
    return best / best.sum(axis=-1, keepdims=True)


def score(model: Model, text: TextTokenizer, questions: Seq[Question], progress: bool = False) -> np.ndarray:
    """Log2-likelihood (n, k) of every outcome of every question, in all its wordings together, up to a constant of the question.

    All questions have the same number k of outcomes, each in as many wordings. A beginning is read once.
    """
    encoded = iter(text.encode_all([told for question in questions for told in question.texts]))
    texts = [[text.enclose(next(encoded)) for _ in question.texts] for question in questions]
    with tqdm(total=len(questions), desc="ask", unit="question", leave=False, disable=not progress) as bar:
        nats, _ = continuations(model, [()] * len(texts), texts, progress=bar)
    return _together(nats, len(questions[0].options)) / math.log(2)


def _together(nats: np.ndarray, k: int) -> np.ndarray:
    """Cost (n, k * wordings) -> log-likelihood (n, k): an outcome is as likely as all its wordings together."""
    return np.logaddexp.reduce(-nats.reshape(len(nats), k, -1), axis=2)


def imagined(
    model: Model, text: TextTokenizer, questions: Seq[Question], imagining: Imagining, progress: bool = False
) -> np.ndarray:
    """Clips (n, samples, F, R, C, G) that the model imagines from each question's opening."""
    if not imagining.frames:
        raise ValueError("imagining.frames is 0; set it to the frames that the run's clips have")
    openings = [text.enclose(ids) for ids in text.encode_all([q.opening for q in questions])]
    return imagine(
        model,
        openings,
        imagining.frames,
        imagining.samples,
        imagining.sampling,
        imagining.batch,
        forget=imagining.forget,
        tries=imagining.tries,
        jointly=imagining.jointly,
        progress=progress,
    )


def votes(model: Model, text: TextTokenizer, questions: Seq[Question], clips: np.ndarray, progress: bool = False) -> np.ndarray:
    """Votes (n, k) for every option: each of a question's clips (n, samples, F, R, C, G) gives one, shared among ties.

    A clip is told by a bystander who names nobody, so that it is the clip that tells the outcome and not what is known of
    a name. An outcome is as likely as all its wordings together.
    """
    n, samples = clips.shape[:2]
    if n != len(questions):
        raise ValueError(f"{n} rows of clips for {len(questions)} questions")
    k = len(questions[0].sights)
    encoded = [[text.enclose(ids) for ids in text.encode_all([w for o in q.sights for w in o])] for q in questions]
    with tqdm(total=n * samples, desc="look", unit="clip", leave=False, disable=not progress) as bar:
        seen = [(seq.frames(clip),) for row in clips for clip in row]
        nats, _ = continuations(model, seen, [e for e in encoded for _ in range(samples)], progress=bar)
    return top(_together(nats, k)).reshape(n, samples, k).sum(axis=1)


def read_options(run: Run) -> ReadOptions:
    """How the run's clips were read."""
    return from_dict(ReadOptions, run.config.get("read", {}), f"{run.folder / 'config.json'}: read")


def frames_of(run: Run, world: WorldConfig | None = None) -> int:
    """Frames of a clip as the run was trained on it, by the rule that reads clips of ``world``.

    Without a world: as many as most clips of its data have; as many as were asked for, where the data is gone.
    """
    read = int(run.config.get("read", {}).get("clip_frames", 8))
    if world is not None:
        read = clip_frames(world, read_options(run))
    else:
        with contextlib.suppress(QuadriviumError, OSError, KeyError):
            counts = np.concatenate(
                [source.frames for source in Dataset(Path(run.config["data"])).sources if not source.rendered]
            )
            read = int(np.bincount(counts[counts > 1]).argmax()) if (counts > 1).any() else read
    limit = int(run.config.get("mixture", {}).get("frames", 0))
    return min(read, limit) if limit else read


def check_sight(run: Run, count: int) -> None:
    """Refuse a run that has no frames, and clips that show no outcome. Raises ConfigError."""
    if run.visual is None:
        raise ConfigError(f"{run.folder} was trained on text alone; it imagines nothing and cannot be shown anything")
    if count < 2:
        raise ConfigError("one frame shows no outcome; imagine, or prepare with --read.fps and --read.clip-frames, at least 2")


def shown(run: Run, world: WorldConfig, questions: Seq[Question], count: int, progress: bool = False) -> np.ndarray:
    """The real clip of every question, as the run reads clips: codes (n, 1, F, R, C, G) of the first ``count`` frames."""
    assert run.visual is not None
    bar = tqdm(questions, desc="film", unit="clip", leave=False, disable=not progress)
    clips = [film(world, q.spec, read_options(run))[:count] for q in bar]
    codes = run.visual.encode(np.concatenate(clips)).reshape(len(clips), count, run.visual.rows, run.visual.columns)
    return np.stack([seq.group(clip, run.patch) for clip in codes])[:, None]


def ask(
    model: Model,
    text: TextTokenizer,
    questions: Seq[Question],
    progress: bool = False,
    clips: np.ndarray | None = None,
) -> dict[str, Any]:
    """Accuracy over all questions and for each template, language and device: ``accuracy``, ``se``, ``n``, ``chance``.

    Text alone answers, unless there is something to look at: ``clips`` (n, samples, F, R, C, G), `imagined` or real. Then
    ``agreement`` is the mean share of votes that the winner has, and "votes" lists every question's.

    "all" also has ``first alone`` and ``second alone``: what knowing one kind only would reach, and ``first level`` and
    ``second level``: only its mass level (see data.questions.alone).
    """
    scores = score(model, text, questions, progress) if clips is None else votes(model, text, questions, clips, progress)
    right = credit(scores, np.array([q.answer for q in questions]))
    results = rows(questions, right)
    if clips is not None:
        results["all"]["agreement"] = float((scores.max(axis=1) / scores.sum(axis=1)).mean())
        results["votes"] = scores.round(4).tolist()
    return results


def rows(questions: Seq[Question], right: np.ndarray, chance: float | None = None) -> dict[str, Any]:
    """The rows of `ask` for credit ``right`` (n,). ``chance``: where it is not to choose among the options."""
    pairs = np.array([f"{min(q.first, q.second)} {max(q.first, q.second)}" for q in questions])

    def part(chosen: np.ndarray) -> dict:
        mean, error = ratio(right[chosen], np.ones(int(chosen.sum())), pairs[chosen])
        options = [len(q.options) for q, yes in zip(questions, chosen, strict=True) if yes]
        guessed = float(np.mean(1 / np.array(options))) if chance is None else chance
        return {"accuracy": mean, "se": error, "n": int(chosen.sum()), "chance": guessed}

    results = {"all": part(np.ones(len(questions), bool))}
    results["all"] |= dict(zip(("first alone", "second alone"), alone(questions), strict=True))
    results["all"] |= dict(zip(("first level", "second level"), alone(questions, "level"), strict=True))
    for by in ("template", "language", "device"):
        values = np.array([getattr(q, by) for q in questions])
        results |= {f"{by} {value}": part(values == value) for value in dict.fromkeys(values.tolist())}
    return results


def tell(
    model: Model,
    text: TextTokenizer,
    questions: Seq[Question],
    clips: np.ndarray | None = None,
    samples: int = 1,
    sampling: Sampling | None = None,
    progress: bool = False,
) -> list[list[str]]:
    """The model's own words after each beginning, ``samples`` of them, or one for each clip that it is shown.

    They are read up to the first blank line: what a document goes on with after that is another matter. A caption may end where a
    beginning does, so one word at least is asked for.
    """
    sampling = sampling or Sampling(temperature=0.0, max_ids=60, min_ids=1)
    begun = [seq.text([text.end, *ids]) for ids in text.encode_all([q.beginning.rstrip() for q in questions])]
    if clips is None:
        given: list[seq.Sequence] = [(b,) for b in begun for _ in range(samples)]
    else:
        given = [(seq.frames(clip), b) for b, row in zip(begun, clips, strict=True) for clip in row]
    each = len(given) // max(len(questions), 1)
    made = generate(model, given, "text", text.end, sampling=sampling, progress=progress)
    told = [text.decode(ids).split("\n\n")[0].strip() for ids in made]
    return [told[i * each : (i + 1) * each] for i in range(len(questions))]


def outcomes_told(questions: Seq[Question], told: Seq[Seq[str]], kinds: Seq[Kind]) -> np.ndarray:
    """Counts (n, k + 1) of the outcomes that each question's texts tell; the last column counts texts that tell none."""
    counts = np.zeros((len(questions), len(questions[0].options) + 1))
    for i, (q, texts) in enumerate(zip(questions, told, strict=True)):
        one, other = (kinds[k].name if q.language == "en" else kinds[k].kana for k in (q.first, q.second))
        for text in texts:
            what = parse_outcome(text, q.device, q.language, one, other, q.mirror)
            counts[i, -1 if what is None else DEVICES[q.device].index(what)] += 1
    return counts


def free(
    model: Model,
    text: TextTokenizer,
    questions: Seq[Question],
    kinds: Seq[Kind],
    clips: np.ndarray | None = None,
    samples: int = 1,
    sampling: Sampling | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """As `ask`, by the model's own words instead of a choice: read by `parse_outcome`, the outcome told most often answers.

    ``unparsed`` is the share of texts that tell no outcome; a question with no other texts is answered wrong.
    """
    counts = outcomes_told(questions, tell(model, text, questions, clips, samples, sampling, progress), kinds)
    read = counts[:, :-1]
    right = np.where(read.any(axis=1), credit(read, np.array([q.answer for q in questions])), 0.0)
    results = rows(questions, right)
    results["all"]["unparsed"] = float(counts[:, -1].sum() / counts.sum())
    return results


def table(results: dict[str, dict[str, dict]]) -> str:
    """Lines for people. ``results``: group of facts -> read-out -> what `ask` gives for it."""
    lines = [f"{'facts':<10}{'answered':<15}{'right':>7}{'error':>8}{'chance':>8}{'one kind known':>16}{'questions':>11}"]
    for group, readouts in results.items():
        for name, parts in readouts.items():
            row = parts["all"]
            known = f"{row['first alone']:.2f} / {row['second alone']:.2f}"
            head = f"{group:<10}{name:<15}{row['accuracy']:>7.3f}{row['se']:>8.3f}"
            lines.append(f"{head}{row['chance']:>8.3f}{known:>16}{row['n']:>11}")
    return "\n".join(lines)
