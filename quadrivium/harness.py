"""The text route as a language model of lm-evaluation-harness, scored in memory: the numbers that its export gets there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from quadrivium.checkpoint import Run
from quadrivium.errors import ConfigError
from quadrivium.generate import Sampling, continuations, generate
from quadrivium.model import Model
from quadrivium.sequence import text

TASKS = Path(__file__).parent / "tasks"
AT_ONCE = 512


def likelihoods(
    model: Model, pairs: Seq[tuple[Seq[int], Seq[int]]], budget: int = 4096, progress: bool = False
) -> list[tuple[float, bool]]:
    """Natural log-likelihood of ids that follow ids, and whether each of them was the likeliest. No context is empty.

    A context that several pairs have, as the answers to a question do, is read once for them: for ``AT_ONCE`` ids of theirs, since
    what is read together takes memory by its square, and sentences without a context all have the same.
    """
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    sharing: dict[tuple[tuple[int, ...], int], list[int]] = {}
    told: Counter[tuple[int, ...]] = Counter()
    for i, (context, more) in enumerate(pairs):
        before = tuple(context)
        sharing.setdefault((before, told[before] // AT_ONCE), []).append(i)
        told[before] += len(more)
    with tqdm(total=len(sharing), desc="lm-eval", unit="context", disable=not progress) as bar:
        for k in sorted({len(answers) for answers in sharing.values()}):
            here = {key: answers for key, answers in sharing.items() if len(answers) == k}
            given = [(text(context),) if len(context) > 1 else () for context, _ in here]
            texts = [[np.array([context[-1], *pairs[i][1]]) for i in answers] for (context, _), answers in here.items()]
            costs = continuations(model, given, texts, budget, bar)
            for answers, nats, likeliest in zip(here.values(), *costs, strict=True):
                for i, cost, first in zip(answers, nats, likeliest, strict=True):
                    found[i] = (-float(cost), bool(first))
    return found


def language_model(run: Run) -> Any:
    """A run as an ``lm_eval.api.model.LM``. Raises ConfigError where lm-eval is not installed."""
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise ConfigError("--lm-eval needs lm-evaluation-harness: pip install -c constraints.txt -e '.[eval]'") from None

    class InMemory(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            return run.text.end

        @property
        def tokenizer_name(self) -> str:
            return run.folder.name

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            """A text opens with the end mark, as the exported tokenizer has it, unless it is what another text goes on with."""
            opening = [] if add_special_tokens is False else [run.text.end]
            return [*opening, *run.text.encode(string).tolist()]

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
            return likelihoods(run.model, [(given, more) for _, given, more in requests], progress=not disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            # The harness reads the opening mark after a prefix of its own, for every model whose texts have one.
            pairs = [([run.text.end], self.tok_encode(r.args[0])) for r in requests]
            return [value for value, _ in likelihoods(run.model, pairs, progress=not disable_tqdm)]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            found = []
            for i, request in enumerate(tqdm(requests, desc="lm-eval", unit="text", disable=disable_tqdm)):
                context, how = request.args
                drawn = how.get("do_sample", False) and how.get("temperature", 1.0)
                # A seed of its own: repeats of one request are to differ.
                sampling = Sampling(float(drawn), how.get("top_p", 1.0), seed=i, max_ids=int(how.get("max_gen_toks", 256)))
                given = (text(self.tok_encode(context)),) if context else ()
                ids = generate(run.model, [given], "text", run.text.end, sampling=sampling)[0]
                words, stops = run.text.continued(context, ids), how.get("until") or []
                for stop in [stops] if isinstance(stops, str) else stops:
                    words = words.split(stop)[0] if stop else words
                found.append(words)
            return found

    return InMemory()


def manager(names: Seq[str], folder: Path | None) -> Any:
    """lm-eval's index of the tasks beside this file, and of its own where one of ``names`` is not among them."""
    from lm_eval.tasks import TaskManager

    ours = {path.stem for path in TASKS.glob("*.yaml")}
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(
        include_path=str(TASKS), include_defaults=not set(names) <= ours, metadata={"folder": str(folder) if folder else ""}
    )


def scores(run: Run, names: Seq[str], folder: Path | None = None, limit: int | None = None) -> dict[str, Any]:
    """Task or group -> its numbers as lm-eval gives them, ``acc``, ``acc_stderr`` and the like, and ``n``."""
    model = language_model(run)
    from lm_eval import simple_evaluate

    index = manager(names, folder)
    unknown = [name for name in names if not index.match_tasks([name])]
    if unknown:
        raise ConfigError(f"lm-eval knows no task {', '.join(unknown)}; those made here are "
                          f"{', '.join(sorted(t for t in manager((), None).all_tasks))}")  # fmt: skip
    done = simple_evaluate(model, tasks=list(names), task_manager=index, limit=limit, log_samples=False, bootstrap_iters=1000)
    counts = {name: n["effective"] for name, n in done["n-samples"].items()}
    found: dict[str, Any] = {}
    for name, row in {**done["results"], **done.get("groups", {})}.items():
        kept = {_measure(k): v for k, v in row.items() if isinstance(v, float)}
        if kept:
            found[name] = {k: v for k, v in kept.items() if np.isfinite(v)} | ({"n": counts[name]} if name in counts else {})
    return found


def _measure(key: str) -> str:
    """lm-eval's "exact_match_stderr,strict-match" as "exact_match (strict-match)_stderr"; the filter "none" goes without saying."""
    name, _, kept_by = key.partition(",")
    if kept_by in ("", "none"):
        return name
    return f"{name.removesuffix('_stderr')} ({kept_by})" + "_stderr" * name.endswith("_stderr")


def table(found: dict[str, Any]) -> str:
    """`scores` as text, a line a number."""
    lines = [f"{'task':<28}{'measure':<24}{'score':>8}{'error':>9}{'n':>8}"]
    for name, row in found.items():
        for key, value in row.items():
            if key != "n" and not key.endswith("_stderr"):
                error = row.get(f"{key}_stderr")
                lines.append(
                    f"{name:<28}{key:<24}{value:>8.4f}{'-' if error is None else f'{error:.4f}':>9}{row.get('n', ''):>8}"
                )
    return "\n".join(lines)
