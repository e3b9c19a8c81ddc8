"""Ten prompts about pairs of kinds that no text tells the behaviour of, answered freely: python docs/free_prompts.py RUN WORLD OUT

RUN: a finished run that has frames, such as OUT/seed-0/four of `quadrivium experiment`; WORLD: its world. Five prompts
in each of its languages, or ten in its only one, are drawn by chance from the questions about *seen* kinds. For each the model imagines one clip and
goes on in its own words after it. Writes OUT/free.png and OUT/free.gif and prints a table for a Markdown page.
"""

import sys
from pathlib import Path

import numpy as np

from quadrivium import ask
from quadrivium.checkpoint import Run
from quadrivium.data.judge import film
from quadrivium.data.machine import DEVICES
from quadrivium.data.questions import make_questions
from quadrivium.data.world import make_kinds, world_config
from quadrivium.imagine import TRIES, Imagining
from quadrivium.pictures import save_gif, sheet
from quadrivium.samples import decode


def main(folder: Path, home: Path, out: Path) -> None:
    run, world = Run(folder), world_config(home)
    rng = np.random.default_rng(0)
    asked = []
    for tongue in world.languages:
        every = make_questions(world, "seen", 1, (tongue,))
        asked += [every[i] for i in rng.permutation(len(every))[: 10 // len(world.languages)]]
    count = ask.frames_of(run, world)
    clips = ask.imagined(run.model, run.text, asked, Imagining(samples=1, tries=TRIES, jointly=True, frames=count))
    told = ask.tell(run.model, run.text, asked, clips)
    parsed = ask.outcomes_told(asked, told, make_kinds(world))
    rows: list[list] = []
    both = []
    print("| prompt | the model's words after its imagined clip | told | simulated |\n|---|---|---|---|")
    for n, (q, clip, words, counts) in enumerate(zip(asked, clips, told, parsed, strict=True), 1):
        said = [*DEVICES[q.device], "no outcome"][int(counts.argmax())]
        print(f"| {n}. {q.beginning.strip()} | {words[0]} | {said} | {DEVICES[q.device][q.answer]} |")
        real, seen = film(world, q.spec, ask.read_options(run))[:count], decode(run, clip[0])
        rows.append([f"{n}. {q.device}: told {said}, simulated {DEVICES[q.device][q.answer]}", seen, real])
        both.append(np.concatenate([seen, np.full_like(seen[:, :, :4], 255), real], axis=2))
    sheet(rows, ("", "imagined", "simulated"), "Ten prompts drawn by chance, kinds whose behaviour was only seen").save(
        out / "free.png"
    )
    save_gif(np.concatenate(both), out / "free.gif", fps=2, scale=3)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
