"""Questions in text alone: how often is the answer that the simulator gives the likeliest continuation?

Scores are total log-likelihoods of beginning and continuation, to the end of the text; the beginning is the same for all
options, so it cancels. An answer counts only if it is strictly the likeliest; a tie of k counts 1/k. Standard errors are
clustered by pair of kinds, since questions about one pair share their fact.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from tqdm import tqdm

from quadrivium import sequence as seq
from quadrivium.data.questions import Question, alone
from quadrivium.evaluate import bits, ratio
from quadrivium.model import Model
from quadrivium.text import TextTokenizer


def credit(scores: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Credit (n,) of ``answers`` (n,) under ``scores`` (n, k), higher is likelier: 1 alone at the top, 1/ties among equals.

    A score that is not a number is an error, never a wrong answer.
    """
    if np.isnan(scores).any():
        raise ValueError(f"scores of {int(np.isnan(scores).any(axis=1).sum())} questions are not numbers")
    top = scores == scores.max(axis=1, keepdims=True)
    return np.where(top[np.arange(len(scores)), answers], 1 / top.sum(axis=1), 0.0)


def score(model: Model, text: TextTokenizer, questions: Seq[Question], progress: bool = False) -> np.ndarray:
    """Log2-likelihood (n, k) of every option of every question. All questions have the same number k of options."""
    texts = [option for question in questions for option in question.texts]
    rows = [(seq.text(text.enclose(ids), wanted=True),) for ids in text.encode_all(texts)]
    with tqdm(total=len(rows), desc="ask", unit="text", leave=False, disable=not progress) as bar:
        return -bits(model, rows, progress=bar).reshape(len(questions), -1)


def ask(model: Model, text: TextTokenizer, questions: Seq[Question], progress: bool = False) -> dict[str, dict]:
    """Accuracy over all questions and for each template, language and device: ``accuracy``, ``se``, ``n``, ``chance``.

    "all" also has ``first alone`` and ``second alone``: what knowing one kind only would reach (see data.questions.alone).
    """
    right = credit(score(model, text, questions, progress), np.array([q.answer for q in questions]))
    pairs = np.array([f"{min(q.first, q.second)} {max(q.first, q.second)}" for q in questions])

    def part(chosen: np.ndarray) -> dict:
        mean, error = ratio(right[chosen], np.ones(int(chosen.sum())), pairs[chosen])
        options = [len(q.options) for q, yes in zip(questions, chosen, strict=True) if yes]
        return {"accuracy": mean, "se": error, "n": int(chosen.sum()), "chance": float(np.mean(1 / np.array(options)))}

    results = {"all": part(np.ones(len(questions), bool))}
    results["all"] |= dict(zip(("first alone", "second alone"), alone(questions), strict=True))
    for by in ("template", "language", "device"):
        values = np.array([getattr(q, by) for q in questions])
        results |= {f"{by} {value}": part(values == value) for value in dict.fromkeys(values.tolist())}
    return results


def table(results: dict[str, dict[str, dict]]) -> str:
    """Lines for people. ``results``: group of facts -> what `ask` gives for it."""
    lines = [f"{'facts':<10}{'right':>8}{'error':>8}{'chance':>8}{'one kind known':>18}{'questions':>11}"]
    for group, parts in results.items():
        row = parts["all"]
        known = f"{row['first alone']:.2f} / {row['second alone']:.2f}"
        lines.append(f"{group:<10}{row['accuracy']:>8.3f}{row['se']:>8.3f}{row['chance']:>8.3f}{known:>18}{row['n']:>11}")
    return "\n".join(lines)
