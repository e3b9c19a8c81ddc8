"""Does a run tell first frames by how they are stored? Stills of a world are PNG, clips H.264, and only clips go on.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/stored.py RUN WORLD [--each 1]

RUN: a run with t2v and v2t, such as OUT/seed-3/contrast of `quadrivium experiment`; WORLD: its world. The opening of each question about
*seen* kinds, means in bits:

    png, mp4      the real first frame, as a still and as a clip stores it
    reading       the first frame chosen among eight by reading alone
    jointly       that chosen by what it costs, too
    unchecked     the first frame drawn at the temperature of all others
    read          the opening after the frame (v2t)
    drawn         the frame after the opening (t2v)
    goes on       the whole clip after the opening, where what follows the frame is imagined
    png, differs  codes of the frame that are not those of the PNG; mp4, differs: of the MP4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.placed import going_on
from quadrivium import ask, evaluate
from quadrivium import sequence as seq
from quadrivium.checkpoint import Run
from quadrivium.data.machine import run as run_machine
from quadrivium.data.questions import make_questions
from quadrivium.data.world import WorldConfig, make_kinds, world_config
from quadrivium.imagine import TRIES, Imagining, imagine
from quadrivium.train import threads


def rows(run: Run, world: WorldConfig, each: int) -> dict[str, list[float]]:
    """Frame -> read, drawn, goes on, and how much of it differs from PNG and from MP4."""
    assert run.visual is not None
    questions, kinds = make_questions(world, "seen", each, world.languages), make_kinds(world)
    imagining = Imagining(samples=1, frames=ask.frames_of(run, world))
    openings = [run.text.enclose(ids) for ids in run.text.encode_all([q.opening for q in questions])]
    pictures = np.concatenate([run_machine(q.spec, kinds, world.frames, world.size).frames[:1] for q in questions])
    codes = run.visual.encode(pictures).reshape(-1, 1, run.visual.rows, run.visual.columns)
    frames = {
        "png": np.stack([seq.group(frame, run.patch) for frame in codes]),
        "mp4": ask.shown(run, world, questions, 1)[:, 0],
    }
    for name, tries, jointly in (("reading", TRIES, False), ("jointly", TRIES, True), ("unchecked", 1, False)):
        drawn = imagine(run.model, openings, 1, 1, imagining.sampling, imagining.batch, tries=tries, jointly=jointly)
        frames[name] = drawn[:, 0]
    found = {}
    for name, some in frames.items():
        clips = going_on(run, questions, some[:, None], imagining)[:, 0]
        each_way = (
            [(seq.frames(f), seq.text(o, wanted=True)) for f, o in zip(some, openings, strict=True)],
            [(seq.text(o), seq.frames(f, wanted=True)) for f, o in zip(some, openings, strict=True)],
            [(seq.text(o), seq.frames(c, wanted=True)) for c, o in zip(clips, openings, strict=True)],
        )
        bits = [float(evaluate.bits(run.model, sequences).mean()) for sequences in each_way]
        found[name] = [*bits, *(float((some != frames[as_stored]).mean()) for as_stored in ("png", "mp4"))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("world", type=Path)
    parser.add_argument("--each", type=int, default=1, help="questions for every template, device and outcome")
    options = parser.parse_args()
    threads()
    print(f"{'frame':<12}{'read':>9}{'drawn':>9}{'goes on':>9}{'png, differs':>15}{'mp4, differs':>15}")
    for name, (*bits, png, mp4) in rows(Run(options.run), world_config(options.world), options.each).items():
        print(f"{name:<12}" + "".join(f"{value:>9.2f}" for value in bits) + f"{png:>15.3f}{mp4:>15.3f}")


if __name__ == "__main__":
    main()
