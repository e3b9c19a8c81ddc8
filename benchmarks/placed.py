"""What is wrong with what a run imagines: how a clip opens, or how it goes on?

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/placed.py RUN WORLD [--group seen] [--each 4] [--tries 1]

RUN: a run with t2v and v2t, such as OUT/seed-1/four of `quadrivium experiment`; WORLD: its world. A clip for each question, by
device and by which piece its caption names first (the upper, the left or the falling one, or the other):

    n           questions
    placed      clips that open with the two pieces where the words put them, and not exchanged: chance 1/2
    imagine     right answers that are read off these clips
    goes on     the same where the first frame is the real one, and only what follows is imagined
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from quadrivium import ask
from quadrivium import sequence as seq
from quadrivium.checkpoint import Run
from quadrivium.data.judge import placed
from quadrivium.data.questions import Question, make_questions
from quadrivium.data.world import GROUPS, WorldConfig, make_kinds, world_config
from quadrivium.generate import Engine
from quadrivium.imagine import Imagining
from quadrivium.samples import decode
from quadrivium.train import threads


@torch.inference_mode()
def going_on(run: Run, questions: list[Question], real: np.ndarray, imagining: Imagining) -> np.ndarray:
    """Clips (n, 1, F, R, C, G) that open as the ``real`` ones (n, 1, F, R, C, G) do and are imagined from there."""
    left, clips = imagining.frames - 1, []
    room, generator = left * (real[0, 0, 0, ..., 0].size + 1), torch.Generator().manual_seed(imagining.seed)
    openings = [run.text.enclose(ids) for ids in run.text.encode_all([q.opening for q in questions])]
    for begin in range(0, len(questions), imagining.batch):
        some = range(begin, min(begin + imagining.batch, len(questions)))
        given = [(seq.text(openings[i]), seq.frames(real[i, 0, :1])) for i in some]
        engine = Engine(run.model, given, room)
        clips.append(engine.frames(left, imagining.sampling, [generator] * len(given)))
    return np.concatenate([real[:, :, :1], np.concatenate(clips)[:, None]], axis=2)


def rows(run: Run, world: WorldConfig, group: str, each: int, tries: int) -> dict[tuple[str, str], np.ndarray]:
    """(device, piece that is named first) -> (n, 3): placed, imagine, goes on."""
    questions, kinds = make_questions(world, group, each, world.languages), make_kinds(world)
    imagining = Imagining(samples=1, tries=tries, frames=ask.frames_of(run, world))
    clips = ask.imagined(run.model, run.text, questions, imagining, progress=True)
    real = ask.shown(run, world, questions, imagining.frames, progress=True)
    right = [[placed(world, q.spec, decode(run, clip[0])) for q, clip in zip(questions, clips, strict=True)]]
    for seen in (clips, going_on(run, questions, real, imagining)):
        told = ask.votes(run.model, run.text, questions, seen, progress=True)
        right.append(list(ask.credit(told, np.array([q.answer for q in questions]))))
    found = defaultdict(list)
    for q, values in zip(questions, np.array(right, float).T, strict=True):
        one, other = (getattr(kinds[k], "name" if q.language == "en" else "kana") for k in (q.first, q.second))
        opening = q.opening.lower()
        first = "one" if opening.index(one) < opening.index(other) else "other"
        for key in ((q.device, first), ("all", first), ("all", "either")):
            found[key].append(values)
    return {key: np.array(found[key]) for key in sorted(found, key=lambda k: (k[0] == "all", k))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("world", type=Path)
    parser.add_argument("--group", choices=GROUPS, default="seen", help="of kinds (default: seen)")
    parser.add_argument("--each", type=int, default=4, help="questions for every template, device and outcome")
    parser.add_argument(
        "--tries", type=int, default=1, help="first frames to choose from for each clip (default: 1, unchecked)"
    )
    options = parser.parse_args()
    threads()
    found = rows(Run(options.run), world_config(options.world), options.group, options.each, options.tries)
    print(f"{'device':<10}{'named first':<13}{'n':>4}{'placed':>9}{'imagine':>9}{'goes on':>9}")
    for (device, first), values in found.items():
        print(f"{device:<10}{first:<13}{len(values):>4}" + "".join(f"{value:>9.3f}" for value in values.mean(axis=0)))


if __name__ == "__main__":
    main()
