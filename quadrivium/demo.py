"""`quadrivium demo`: the experiment on one seed, at the size of two cores and a quarter of an hour, with pictures to look at."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quadrivium import ask, evaluate
from quadrivium.checkpoint import Run
from quadrivium.data.judge import film
from quadrivium.data.mixture import Mixture
from quadrivium.data.questions import make_questions
from quadrivium.data.shards import Dataset
from quadrivium.data.world import contact_sheet, world_config
from quadrivium.errors import command
from quadrivium.experiment import ExperimentConfig, read_cells, run_experiment, small, table
from quadrivium.pictures import Cell, save_gif, sheet
from quadrivium.samples import decode, write_samples
from quadrivium.train import threads

ARMS = ("four", "captions", "text", "distil")  # the longest first: the others run beside it


def few_minutes() -> ExperimentConfig:
    """The small experiment with a third of its kinds, half of its documents and questions, and fewer steps: names of few kinds are
    learnt sooner, and the clips that are told of them still show enough pairs to read others by (docs/figures.md). Joined by
    cross-attention, since text then knows more of what was seen."""
    less = small()
    return replace(
        less,
        model=replace(less.model, sharing="cross"),
        world=replace(less.world, kinds=20, shares=(0.2, 0.2, 0.4, 0.2), narrations=6000),
        train=replace(less.train, steps=1200),
        distil_train=replace(less.distil_train, steps=320),
        distil=replace(less.distil, wordings=12),  # of a few dozen situations, which in fewer wordings are learnt word by word
        each=2,
        looked=1,
    )


@dataclass(frozen=True)
class DemoConfig:
    """What the demo runs. Tests shrink it; nothing else differs."""

    experiment: ExperimentConfig = field(default_factory=few_minutes)
    samples: int = 6  # of each route
    imagined: int = 5  # situations that were only ever seen, imagined beside what the simulator does


def run_demo(out: Path, config: DemoConfig | None = None, progress: bool = True) -> dict[str, Any]:
    """The experiment's arms on one seed, its table, sheets and one sentence. Returns the table. A stopped demo goes on."""
    config, began = config or DemoConfig(), time.monotonic()

    def say(step: str) -> None:
        print(f"\n[{time.monotonic() - began:4.0f} s] {step}", file=sys.stderr)

    say("1/3 a world of falling, sliding, ringing things; four ways to learn of it: " + ", ".join(ARMS))
    found = run_experiment(out, config.experiment, seeds=(0,), arms=ARMS, progress=progress)
    threads()
    home = out / "seed-0"
    say("2/3 pictures: given | wanted | generated for every route, and what the model imagines of what it was never told")
    world, run = world_config(home / "world"), Run(home / "four")
    contact_sheet(world, out / "world.png")
    mixture = Mixture(Dataset(home / "data"), config.experiment.mixture, run.text.end, 0, run.patch)
    pictures = write_samples(run, mixture, out / "samples", config.samples, progress=progress)
    pictures += _imagined(run, world, config, out)
    say("3/3 what came of it")
    cells = {arm: by_seed[0] for arm, by_seed in read_cells(out / "results").items()}
    print("\nThe four routes, all in one model, in bits on held-out items:\n")
    print(evaluate.table({"routes": cells["four"]["routes"], "streams": {}}, streams=False))
    print(f"\n{evaluate.READING}")
    print("\nQuestions in text alone, three outcomes each, by what was given of their kinds:\n")
    print(table(found))
    print(f"\n{sentence(cells)}\n")
    print("\n".join(f"look at  {path}" for path in [out / "world.png", *pictures]))
    print(
        f"\nNext, with your own folder of pictures, clips and text:\n  quadrivium prepare FOLDER --out data/mine\n"
        f"  quadrivium train data/mine --out runs/mine --minutes 20\n  quadrivium eval runs/mine\n"
        f'Or play with this one:\n  {command("generate", home / "four")} --text "A seesaw." --imagine\n\n'
        f"demo finished in {time.monotonic() - began:.0f} s"
    )
    return found


def _imagined(run: Run, world: Any, config: DemoConfig, out: Path) -> list[Path]:
    """A sheet and a GIF of imagined machines beside real ones, about kinds that no text tells the behaviour of."""
    questions = make_questions(world, "seen", 1, ("en",))
    chosen = np.random.default_rng(0).permutation(len(questions))[: config.imagined]
    asked = [questions[i] for i in chosen]
    imagining = replace(config.experiment.imagining, samples=1, frames=ask.frames_of(run, world))
    clips = ask.imagined(run.model, run.text, asked, imagining)
    votes = ask.votes(run.model, run.text, asked, clips)
    rows: list[list[Cell]] = []
    both = []
    for question, clip, vote in zip(asked, clips, votes, strict=True):
        real, seen = film(world, question.spec, ask.read_options(run))[: imagining.frames], decode(run, clip[0])
        told = question.options[int(vote.argmax())][0]
        rows.append([question.opening, seen, real, f"{told}\n\n({'right' if vote.argmax() == question.answer else 'wrong'})"])
        both.append(np.concatenate([seen, np.full_like(seen[:, :, :4], 255), real], axis=2))
    path = out / "imagined.png"
    sheet(
        rows, ("told", "imagined", "simulated", "read off the imagined"), "Machines of kinds whose behaviour was only seen"
    ).save(path)
    save_gif(np.concatenate(both), out / "imagined.gif", fps=2, scale=3)
    return [path, out / "imagined.gif"]


def sentence(cells: dict[str, dict]) -> str:
    """One sentence that says what happened to facts that were only ever seen, whatever happened."""

    def said(arm: str, read_out: str) -> str:
        seen, never = (cells[arm]["facts"][group][read_out]["all"] for group in ("seen", "neither"))
        above = "above chance" if seen["accuracy"] - seen["chance"] > 2 * seen["se"] else "not above chance"
        return f"{seen['accuracy']:.0%} ({above}; never seen: {never['accuracy']:.0%})"

    looking = "checked" if "checked" in cells["four"]["facts"]["seen"] else "imagine"
    captions, four, distil = (said(arm, "direct") for arm in ("captions", "four", "distil"))
    dream = said("four", looking)
    chance = cells["four"]["facts"]["seen"]["direct"]["all"]["chance"]
    return (
        f"What was only ever seen, asked in text alone (chance {chance:.0%}): text and captions without pixels are right in {captions}, "
        f"all four routes in {four}, in {dream} when the model imagines the scene first, and in {distil} after it has read its own "
        "imaginations; one seed, by two standard errors over questions, which count pairs of the same few kinds as independent: what was "
        "never seen, nor told, shows what luck alone can do."
    )
