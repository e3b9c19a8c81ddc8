"""What does a run know at the end of a question, and what of it does it say?

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/said.py RUN WORLD [--each 4] [--readers 12]

RUN: a run that foretells, such as OUT/seed-0/four of `quadrivium experiment`; WORLD: its world. For every group of kinds:

    said        direct answers: all wordings of an outcome together; one wording; one wording that names the kinds again
    foretold    how often the frame that the last word's state foretells shows the outcome, in the eyes of the simulator
    a name      nats of one id of a kind's name in the right answer that names the kinds, and of all of them in an answer; right
                answers of the wording that names the kinds, if ids of names count for nothing
    read        how often a linear reader of that state, after each layer, gives the outcome: one reader a device, fitted to
                questions about kinds that are both seen and told, so that *both* are its training questions
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from quadrivium import ask
from quadrivium import sequence as seq
from quadrivium.checkpoint import Run
from quadrivium.data import language as words
from quadrivium.data.judge import _references
from quadrivium.data.machine import DEVICES
from quadrivium.data.questions import Question, make_questions
from quadrivium.data.sources import frames_read
from quadrivium.data.world import FPS, GROUPS, WorldConfig, make_kinds, stream, world_config
from quadrivium.model import Batch
from quadrivium.samples import decode
from quadrivium.train import threads


@torch.inference_mode()
def states(run: Run, questions: list[Question]) -> torch.Tensor:
    """The residual stream (n, layers, D) at the last word of every beginning."""
    found = []
    for ids in run.text.encode_all([q.beginning.rstrip() for q in questions]):
        # The last id of a segment is predicted and not read, so that the state before the end mark is that of the last word.
        batch, layers = Batch.of(seq.pack([(seq.text(run.text.enclose(ids)),)])), run.model.config.layers
        taken: dict[int, torch.Tensor | None] = dict.fromkeys(range(1, layers + 1))
        run.model.states(batch, layers, None, taken)
        found.append(torch.stack([x[-1] for x in taken.values() if x is not None]))
    return torch.stack(found).float()


@torch.inference_mode()
def foretold(run: Run, world: WorldConfig, questions: list[Question], at: torch.Tensor) -> float:
    """Share of ``questions`` whose foretold last frame, from states (n, D) and the likeliest code by code, shows the answer."""
    head, c = run.model.head_ahead, run.model.config
    if head is None:
        raise SystemExit(
            "this run foretells no frames: a run of `quadrivium experiment`, or one trained with --mixture.ahead, does"
        )
    entered = head.head.enter((F.rms_norm(at, at.shape[-1:])[:, None] + head.place.weight).flatten(0, 1))
    known = torch.zeros(len(entered), 0, dtype=torch.long)
    for _ in range(c.patch**2):
        known = torch.cat([known, head.head.next(entered, known).argmax(-1, keepdim=True)], dim=1)
    frames = known.view(len(questions), 1, c.rows, c.columns, -1).numpy()
    taken, kinds = frames_read(world.frames, FPS, ask.read_options(run)), make_kinds(world)
    right = []
    for q, codes in zip(questions, frames, strict=True):
        frame = decode(run, codes)[0].astype(np.float32)
        known_ends = _references(world, q.spec, (kinds[q.first], kinds[q.second]), len(frame), (taken[0], taken[-1]))
        shown = min(known_ends, key=lambda end: float(((frame - end[1][-1]) ** 2).mean()))[0]
        right.append(shown == DEVICES[q.device][q.answer])
    return float(np.mean(right))


@torch.inference_mode()
def names(run: Run, world: WorldConfig, questions: list[Question]) -> tuple[float, float, float]:
    """Nats of an id of a name, and of all in an answer, in right answers that name the kinds; accuracy without such ids.

    ``questions``: with one wording an option, which names them.
    """
    kinds, each, totals, right = make_kinds(world), [], [], []
    for q in questions:
        called, costs = [kinds[k].name if q.language == "en" else kinds[k].kana for k in (q.first, q.second)], []
        begun = len(run.text.encode(q.beginning.rstrip()))
        for i, whole in enumerate(q.texts):
            ids = run.text.encode(whole)
            nats = run.model.nats(Batch.of(seq.pack([(seq.text(run.text.enclose(ids), True),)])))[0].numpy()
            ends = [0, *(len(run.text.decode(ids[: n + 1])) for n in range(len(ids)))]
            low = whole.lower()
            spans = [(at, at + len(name)) for name in called for at in range(len(low)) if low.startswith(name, at)]
            of_name = np.array([any(a < e and b < z for a, z in spans) for b, e in pairwise(ends)] + [False])
            answer = np.arange(len(nats)) >= begun
            costs.append(nats[answer & ~of_name].sum())
            if i == q.answer:
                each.append(nats[answer & of_name])
                totals.append(each[-1].sum())
        right.append(ask.credit(-np.array(costs)[None], np.array([q.answer]))[0])
    return float(np.concatenate(each).mean()), float(np.mean(totals)), float(np.mean(right))


def reader(x: torch.Tensor, answers: torch.Tensor) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A linear classifier of states (n, D), with their mean and deviation."""
    torch.manual_seed(0)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    net = torch.nn.Linear(x.shape[1], 3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(net((x - mean) / deviation), answers).backward()
        optimizer.step()
    return net, mean, deviation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("world", type=Path)
    parser.add_argument("--each", type=int, default=4, help="questions for every template, language, device and outcome")
    parser.add_argument(
        "--readers", type=int, default=12, help="as --each, of the questions that readers are fitted to and tried on"
    )
    given = parser.parse_args()
    threads()
    run, world = Run(given.run), world_config(given.world)
    run.model.eval()
    tap = run.config["mixture"].get("ahead_layer") or max(1, run.model.config.layers - 1)
    kinds = make_kinds(world)

    def named(q: Question, rng) -> Question:
        told = (
            words.outcome(q.device, what, kinds[q.first], kinds[q.second], rng, q.language, q.mirror)
            for what in DEVICES[q.device]
        )
        return replace(q, options=tuple((one,) for one in told))

    read = {g: make_questions(world, g, given.readers, world.languages) for g in GROUPS}
    seen_by = {g: states(run, questions) for g, questions in read.items()}
    answers = {g: torch.tensor([q.answer for q in questions]) for g, questions in read.items()}
    device = {g: np.array([q.device for q in questions]) for g, questions in read.items()}
    readers = {}
    for what in world.devices:
        fitted = device["both"] == what
        for layer in range(run.model.config.layers):
            readers[what, layer] = reader(seen_by["both"][fitted][:, layer], answers["both"][fitted])
    head = f"{'':<9}{'said':>8}{'one':>8}{'named':>8}{'foretold':>10}{'a name':>9}{'in all':>8}{'without':>9}"
    print(head + "".join(f"{f'read {i + 1}':>8}" for i in range(run.model.config.layers)))
    for group in GROUPS:
        asked = make_questions(world, group, given.each, world.languages)
        right, rng = np.array([q.answer for q in asked]), stream(world, "said", group)
        one = [replace(q, options=tuple((forms[rng.randrange(len(forms))],) for forms in q.options)) for q in asked]
        again = [named(q, rng) for q in asked]
        scores = [float(ask.credit(ask.score(run.model, run.text, how), right).mean()) for how in (asked, one, again)]
        shown = foretold(run, world, asked, states(run, asked)[:, tap - 1])
        line = f"{group:<9}{scores[0]:>8.3f}{scores[1]:>8.3f}{scores[2]:>8.3f}{shown:>10.3f}"
        line += "{:>9.2f}{:>8.2f}{:>9.3f}".format(*names(run, world, again))
        for layer in range(run.model.config.layers):
            hits = 0.0
            for what in world.devices:
                tried, (net, mean, deviation) = device[group] == what, readers[what, layer]
                said = net((seen_by[group][tried][:, layer] - mean) / deviation).argmax(1)
                hits += float((said == answers[group][tried]).sum())
            line += f"{hits / len(read[group]):>8.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
