"""`quadrivium demo`: everything once, at the size of two cores and ten minutes."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from quadrivium import ask, evaluate
from quadrivium.checkpoint import Run
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.questions import make_questions
from quadrivium.data.shards import Dataset, read_json, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.data.world import GROUPS, WorldConfig, contact_sheet, write_world
from quadrivium.errors import RunError
from quadrivium.model import ModelConfig
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.samples import write_samples
from quadrivium.train import TrainConfig, threads, train_routes


@dataclass(frozen=True)
class DemoConfig:
    """What the demo runs. Tests shrink it; nothing else differs."""

    world: WorldConfig = field(default_factory=lambda: WorldConfig(clips=1000, told=500, stills=1000, narrations=1500))
    prepare: PrepareConfig = field(
        default_factory=lambda: PrepareConfig(
            read=ReadOptions(fps=8.0),  # all of a world's frames
            vocab=2048,
            visual_train=TrainConfig(minutes=3.0, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99)),
            sample_frames=6000,
        )
    )
    model: ModelConfig = field(default_factory=lambda: ModelConfig(layers=4, width=192, heads=3))
    mixture: MixtureConfig = field(default_factory=lambda: MixtureConfig(positions=2048))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(minutes=4.5))
    held: int = 24  # held-out sequences of each route and source in the table
    each: int = 2  # questions for every template, language, device and outcome
    samples: int = 6  # of each route


def run_demo(out: Path, config: DemoConfig | None = None, progress: bool = True) -> dict[str, dict]:
    """World -> prepare -> train -> eval -> generate under ``out``. Returns what `eval` found. A stopped demo goes on."""
    config = config or DemoConfig()
    threads()
    began = time.monotonic()
    done = out / "run" / "config.json"
    if out.exists() and any(out.iterdir()) and not (out / "world").exists():
        raise RunError(f"{out} holds something else; choose another --out")

    def say(step: str) -> None:
        print(f"\n[{time.monotonic() - began:4.0f} s] {step}", file=sys.stderr)

    say("1/6 world: simulate chain reactions, film them, tell what a bystander would")
    write_world(config.world, out / "world", progress)
    contact_sheet(config.world, out / "world.png")
    say("2/6 prepare: learn a text and a visual tokenizer, write token shards")
    data = prepare([out / "world"], out / "data", config.prepare, progress)
    say("3/6 train: one model, four routes")
    state = train_routes(
        out / "data", out / "run", config.model, config.mixture, config.train, resume=done.exists(), progress=progress
    )
    if not state["finished"]:
        return {}
    say("4/6 eval: what each route costs on held-out items, in bits")
    run = Run(out / "run")
    mixture = Mixture(Dataset(out / "data"), config.mixture, run.text.end, config.train.seed, run.patch)
    results = evaluate.routes(run.model, mixture, run.text.id_bytes, config.held, progress)
    write_json(out / "run" / "results.json", results | {"step": run.step})
    say("5/6 ask: what happens when two kinds meet? Text alone, facts that were read, seen, both or neither")
    asked = {
        group: {"direct": ask.ask(run.model, run.text, questions, progress=progress)}
        for group in GROUPS
        for questions in [make_questions(config.world, group, config.each, config.world.languages)]
    }
    write_json(out / "run" / "questions.json", asked | {"step": run.step})
    say("6/6 generate: given | wanted | generated, for every route")
    pictures = write_samples(run, mixture, out / "run" / "samples", config.samples, progress=progress)

    report = read_json(data.folder / "tokenizers" / "visual" / "report.json", "a visual tokenizer's report")
    quality = ", ".join(f"{k.removesuffix(' psnr')} {v:.1f} dB" for k, v in report.items() if k.endswith(" psnr"))
    print(f"\nVisual tokenizer on held-out frames: {quality}\n")
    print(evaluate.table(results, streams=False))
    print(
        "\nA route uses its source where `held-out` lies below `wrong` (the source of another item) by more than its error."
        "\n\nQuestions in text alone, three outcomes each; facts by what was given of their kinds:\n\n"
        + ask.table(asked)
        + f"\n\nLook at: {out / 'world.png'}\n"
        + "\n".join(f"         {path}" for path in pictures)
    )
    print(
        f"\nNext, with your own folder of pictures, clips and text:\n  quadrivium prepare FOLDER --out data/mine\n"
        f"  quadrivium train data/mine --out runs/mine --minutes 20\n  quadrivium eval runs/mine\n"
        f'Or play with this one:\n  quadrivium generate {out / "run"} --text "a red ball" --want video\n\n'
        f"demo finished in {time.monotonic() - began:.0f} s"
    )
    return results
