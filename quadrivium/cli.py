"""The command line: command -> function. Each command imports what it needs, and nothing else does."""

import functools
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import quadrivium
from quadrivium.errors import ConfigError, DataError, QuadriviumError, command

if TYPE_CHECKING:
    from quadrivium.checkpoint import Run
    from quadrivium.data.mixture import Mixture

Device = Literal["auto", "cpu", "cuda"]

COMMANDS = {
    "demo": "can text answer what was only ever seen? The experiment on one seed, in minutes, nothing to download",
    "world": "write the chain-reaction world as an ordinary data folder",
    "prepare": "text, pictures and videos, in folders, tars or tables -> tokenizers and token shards",
    "train": "train one model on all routes that the data can feed",
    "eval": "held-out bits of every route beside its references -> results.json",
    "ask": "questions about a world in text alone: is what was only seen known?",
    "generate": "text, pictures or clips from text, pictures or clips",
    "distil": "what the model imagines of a world, as ordinary text to train on",
    "experiment": "arms x seeds on the world: what does text gain from seeing? -> one table",
    "transfer": "arms x seeds on your own data: did text gain from seeing? -> verdict",
    "report": "results.json of transfer, experiment or eval -> one page, self-contained",
    "export": "the text route, or the whole model, as a Hugging Face folder",
    "play": "a web page with the four routes, in English and Japanese",
    "bench": "how fast this machine trains, generates and prepares, beside other people's models",
}

HELP = """quadrivium {version}: one model, four routes between text and vision, and the measure of what text gained.

usage: quadrivium COMMAND [options]        quadrivium COMMAND --help teaches the options

{commands}

A first run on your own folder of pictures, clips and text:
  quadrivium prepare FOLDER --out data/mine
  quadrivium train data/mine --out runs/mine --minutes 20
  quadrivium eval runs/mine
  quadrivium generate runs/mine --text "a red ball" --want image
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 after one line on stderr about what the user can mend, or 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        listing = "\n".join(f"  {name:<12}{line}" for name, line in COMMANDS.items())
        print(HELP.format(version=quadrivium.__version__, commands=listing))
        return 0
    if arguments[0] in ("--version", "-V"):
        print(quadrivium.__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}; commands are {', '.join(COMMANDS)}")
        if name not in ("prepare", "train") and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(f"{name} runs on one process; of the commands, prepare and train share their work under torchrun")
        return _call(name, rest)
    except QuadriviumError as error:
        return _fail(str(error))
    except OSError as error:  # the system's refusals are the user's to mend: full disk, no permission
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except MemoryError as error:
        return _fail(str(error) or "not enough memory")
    except RuntimeError as error:  # torch has no class of its own for a processor's memory
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        said = str(error).rpartition("DefaultCPUAllocator: ")[2].splitlines()[0]
        return _fail(f"not enough memory: {said}; `quadrivium train --dry-run` says how large a model fits")
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: str, status: int = 2) -> int:
    if "tqdm" in sys.modules:  # a bar that is still open would share the message's line
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
    print(f"quadrivium: {' '.join(message.split())}", file=sys.stderr)
    return status


def _call(name: str, arguments: list[str]) -> int:
    import tyro

    sized = f"{name} --small"  # where this is said, other options have other defaults
    called = _FACTORIES[sized if "--small" in arguments and sized in _FACTORIES else name]()

    @functools.wraps(called)
    def run(*options: Any, **named: Any) -> Any:
        gc.enable()
        return called(*options, **named)

    # Options are read off source code, and the parser of CPython before 3.11.8 ends with a SystemError where a collection lets another
    # thread parse meanwhile (python/cpython issue 106905). Without collections they also come up a tenth sooner.
    gc.disable()
    try:
        result = tyro.cli(run, args=arguments, prog=f"quadrivium {name}")
    except ValueError as error:
        # A dataclass refuses a value while the options are read; past that point it is a defect and keeps its traceback.
        if _from_post_init(error):
            raise ConfigError(str(error)) from None
        raise
    finally:
        gc.enable()
    return int(result or 0)


def _from_post_init(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_name == "__post_init__"


def _device(name: str) -> str:
    from quadrivium.dist import device_of

    return device_of(name)


def _run(folder: Path, device: str, tuned: bool = True) -> "Run":
    from quadrivium.checkpoint import Run
    from quadrivium.train import threads

    threads(tuned)
    return Run(folder, _device(device))


def _load(folder: Path, data: Path | None, device: str) -> "tuple[Run, Mixture]":
    """A run and the mixture it was trained on (or that of another data folder)."""
    run = _run(folder, device)
    return run, run.mixture(data)


# No `from __future__ import annotations` here: option types are read off the functions as they are made.
# A factory a command, so that `quadrivium eval` does not import what only `world` needs.


def _world() -> Callable[..., Any]:
    import tyro

    from quadrivium.data.world import WorldConfig

    def world(out: tyro.conf.Positional[Path], config: Annotated[WorldConfig, tyro.conf.arg(name="")] = WorldConfig()) -> None:
        """Write the chain-reaction world: clips of machines, captions, stills and text, in an ordinary data folder.

        The folder is then prepared like any other: quadrivium prepare OUT --out data/world

        Args:
            out: folder to write.
        """
        from quadrivium.data.world import write_world

        write_world(config, out)
        print(f"world written to {out}; next: {command('prepare', out, '--out', 'data/world')}")

    return world


def _prepare() -> Callable[..., Any]:
    import tyro

    from quadrivium.prepare import PrepareConfig

    def prepare(
        sources: tyro.conf.Positional[tuple[Path, ...]],
        out: Path | None = None,
        inspect: bool = False,
        config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = PrepareConfig(),
    ) -> None:
        """Read folders of text, pictures and videos; learn tokenizers; write token shards.

        A source is a folder with metadata.jsonl (file_name, text) beside its pictures or videos, a folder of .txt, .jsonl
        or .tsv text, a folder of bare pictures and videos, with .srt or .vtt beside them or not; WebDataset tars; parquet or
        arrow tables; .json and .jsonl of interleaved documents or conversations; a dataset of the Hugging Face hub,
        hf://OWNER/NAME; or a mixture file (.toml) that names several with a way of reading and a weight each.
        The same command goes on where it was stopped.
        On several processors or machines: torchrun --nproc-per-node N -m quadrivium prepare ...

        Args:
            sources: folders or files to read.
            out: data folder to write.
            inspect: only show what would be read, with five samples of each source and what is wrong; nothing is written to --out.
        """
        from quadrivium import prepare as preparing
        from quadrivium.dist import joined

        if not sources:
            raise ConfigError("name at least one folder to prepare")
        if inspect:
            from quadrivium.inspect import look, write_sheets

            report, rows = look(
                preparing.find(list(sources), config), config.read, config.limits, config.held, max_bad=config.max_bad
            )
            print(report)
            for path in write_sheets(rows):
                print(f"samples: {path}")
            return
        if out is None:
            raise ConfigError("--out is missing: the data folder to write, or --inspect to write none")
        with joined() as (ranks, _):
            preparing.prepare(list(sources), out, config, ranks.first, ranks)
        if ranks.first:
            print(f"data written to {out}; next: {command('train', out, '--out', Path('runs', out.name))}")

    return prepare


def _train() -> Callable[..., Any]:
    import tyro

    from quadrivium.data.mixture import MixtureConfig
    from quadrivium.model import ModelConfig
    from quadrivium.train import Computing, TrainConfig

    def train(
        data: tyro.conf.Positional[Path],
        out: Path | None = None,
        model: Annotated[ModelConfig, tyro.conf.arg(name="")] = ModelConfig(),
        mixture: Annotated[MixtureConfig, tyro.conf.arg(name="")] = MixtureConfig(),
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),
        init: str | None = None,
        init_vision: Literal["copy", "fresh"] = "copy",
        mixture_file: Path | None = None,
        track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = (),
        resume: bool = False,
        dry_run: bool = False,
        device: Device = "auto",
        computing: Annotated[Computing, tyro.conf.arg(name="")] = Computing(),
    ) -> int:
        """Train one model on every route that the data can feed.

        Ctrl-C and SIGTERM save and leave; the same command with --resume goes on exactly, with the options it was started with.
        On several processors or machines: torchrun --nproc-per-node N -m quadrivium train ...

        Args:
            data: folder that prepare wrote.
            out: run folder to write.
            init: what to begin with, on data prepared with its tokenizers: a run, or a Qwen3, Qwen2 or Llama model as a folder
                or hub id (Qwen/Qwen3-0.6B), which fills the text stream; a low --lr, such as 1e-4, keeps what it knows.
            init_vision: visual weights that are apart (--sharing) begin as copies of the model's, or fresh.
            mixture_file: a .toml that names sources, routes and weights, as prepare takes it (docs/formats.md).
            track: where the numbers go besides metrics.jsonl, with sheets of samples at every evaluation: tensorboard into
                RUN/tensorboard; wandb, kept in RUN/wandb where there is no account or WANDB_MODE=offline is set; trackio.
            resume: go on from the last checkpoint in --out.
            dry_run: only say how much memory a step takes, and how large a model can be; nothing is written.
            device: auto takes a GPU where there is one.
        """
        from quadrivium.dist import joined
        from quadrivium.train import train_routes

        if mixture_file:  # of a run that goes on it changes nothing, and what differs is said
            from quadrivium.data.mixture import streams_of
            from quadrivium.data.mixture_file import MixtureFile
            from quadrivium.data.shards import Dataset

            mixture = MixtureFile(mixture_file).mixture(
                mixture, [s.name for s in streams_of(Dataset(data), mixture, held=False)]
            )
        if dry_run:
            from quadrivium import memory

            print(memory.dry_run(data, model, mixture, config, computing, init))
            return 0
        if out is None:
            raise ConfigError("--out is missing: the run folder to write, or --dry-run to write none")
        with joined(_device(device)) as (ranks, mine):
            state = train_routes(
                data, out, model, mixture, config, resume, mine, True, init, init_vision, track, computing, ranks
            )
        return 0 if state["finished"] else 130

    return train


def _evaluate() -> Callable[..., Any]:
    import tyro

    def evaluate(
        run: tyro.conf.Positional[Path],
        data: Path | None = None,
        limit: int = 256,
        lm_eval: tuple[str, ...] = (),
        lm_eval_data: Path | None = None,
        lm_eval_limit: int | None = None,
        alignment: bool = False,
        world: Path | None = None,
        device: Device = "auto",
    ) -> None:
        """Held-out bits of every route beside three references: no source, a wrong source, an order-0 coder.

        For clips also what frames cost after 0, 1, 2, 4, ... earlier ones, and what the caption leaves unsaid of the last one; for
        captioned frames what share of their bits the caption saves, and frame -> caption -> frame as pictures, in RUN/samples;
        how often text and frames find each other by their states, which `train --contrast.weight` teaches; its price is read in the bits of t2t,
        beside a run without it.

        With --lm-eval, lm-evaluation-harness scores the text route in memory instead. Made here: world (world_read, ...), coda,
        verbphysics (verbphysics_size, ...), blimp_strict, with shuffled answers and ties that count 1/k, on files in
        --lm-eval-data; every other task by the name that the harness gives it.

        With --alignment, instead: do keys of text and of frames that mean the same become alike, by layer and by checkpoint
        (train with --keep 99 --save-every N to have them), and what does text lose without the part of its keys that frames
        use? `quadrivium report RUN` draws the curves.

        Args:
            run: run folder that train wrote.
            data: data folder; the one it was trained on, if not given.
            limit: held-out sequences of each route and source.
            lm_eval: tasks or groups of lm-evaluation-harness.
            lm_eval_data: folder that holds coda, verbphysics, blimp or world; for world also the world's own folder.
            lm_eval_limit: documents of each task: of those made here a sample, of the harness's own the first; all, if not given.
            alignment: measure the alignment of keys and queries.
            world: for alignment, the folder of the world that the run was trained on: adds its kinds and its facts.
            device: auto takes a GPU where there is one.
        """
        from quadrivium import evaluate as measure
        from quadrivium import findings as finding
        from quadrivium.data.shards import read_json, write_json

        if limit < 1 or (lm_eval_limit is not None and lm_eval_limit < 1):
            raise ConfigError("--limit and --lm-eval-limit have to be at least 1")
        if not lm_eval and (lm_eval_data or lm_eval_limit):
            raise ConfigError("--lm-eval-data and --lm-eval-limit are of --lm-eval; name its tasks, as in --lm-eval coda")
        if world and not alignment:
            raise ConfigError("--world is of --alignment; `quadrivium ask` asks a run about its world")
        path = run / "results.json"

        def stored() -> dict[str, Any]:  # read when it is written again: another eval may have ended meanwhile
            return read_json(path, "results of quadrivium eval") if path.is_file() else {}

        stored()  # a file that is damaged is said before anything is measured
        if lm_eval:
            from quadrivium import harness

            if alignment:
                raise ConfigError("--alignment and --lm-eval measure apart; ask for one after the other")
            alone = _run(run, device)
            found = harness.scores(alone, lm_eval, lm_eval_data, lm_eval_limit)
            before = stored()
            old = before.get("lm_eval", {})
            tasks = {**(old["tasks"] if old.get("step") == alone.step else {}), **found}
            write_json(path, {**before, "lm_eval": {"step": alone.step, "tasks": tasks}})
            print(harness.table(found))
            print(f"results written to {path}")
            return
        if alignment:
            from quadrivium import alignment as aligning
            from quadrivium.data.world import world_config
            from quadrivium.train import threads

            threads()
            aligned = aligning.measure(run, data, world_config(world) if world else None, limit, _device(device))
            write_json(path, {**stored(), "alignment": aligned})
            print(aligning.table(aligned))
            print(f"results written to {path}; next: {command('report', run)}")
            return
        loaded, mixed = _load(run, data, device)
        if not mixed.held:
            raise DataError(
                f"{data or loaded.config['data']} holds nothing out of what {run} was trained on; prepare it with a larger --held"
            )
        results = measure.routes(loaded.model, mixed, loaded.text.id_bytes, limit)
        findings = finding.measure(loaded, mixed, limit, run / "samples")
        found = measure.retrieval(loaded.model, mixed, limit)
        kept = {k: v for k, v in stored().items() if k in ("lm_eval", "alignment")}
        on = {"data": str(data.resolve() if data else loaded.config["data"]), "limit": limit}
        write_json(path, {**kept, **results, "findings": findings, "retrieval": found, "step": loaded.step, **on})
        print(f"{measure.table(results)}\n\n{measure.READING}")
        if shown := finding.table(findings):
            print(f"\n{shown}")
        if found:
            print(f"\n{measure.retrieval_table(found)}")
        print(f"results written to {path}; next: {command('generate', run)}")

    return evaluate


def _ask() -> Callable[..., Any]:
    import tyro

    def ask(
        run: tyro.conf.Positional[Path],
        world: tyro.conf.Positional[Path],
        groups: tuple[Literal["read", "seen", "both", "neither"], ...] = ("read", "seen", "both", "neither"),
        each: int = 4,
        imagine: int = 0,
        tries: int | None = None,
        shown: bool = False,
        free: bool = False,
        forget: bool = False,
        frames: int = 0,
        temperature: float = 0.7,
        seed: int = 0,
        device: Device = "auto",
    ) -> None:
        """Forced-choice questions about a world's facts, in English and Japanese, text alone.

        What happens when these two kinds meet? The likeliest of the possible outcomes must be the one that the simulator
        gives. Facts of "read" kinds stood in text, those of "seen" kinds only in clips, those of "neither" nowhere: there,
        nothing but chance is honest.

        With --imagine the model also draws what the words describe and reads the answer off its own clips, by majority;
        with --shown off the real clip, which says what seeing would be worth.

        Args:
            run: run folder that train wrote.
            world: the world that it was trained on, as `quadrivium world` wrote it.
            groups: which facts to ask about, by what the model was given of their kinds.
            each: questions for every template, language, device and outcome; 15 times as many for every group, device and language.
            imagine: clips to imagine for each question; 0: none.
            tries: first frames to draw for each clip, which goes on from the one off which the question is read best; 8 if not given; 1:
                unchecked.
            shown: also answer from the real clip.
            free: also let the model answer in its own words, which are read for the outcome that they tell.
            forget: while imagining, drop the words after the first frame.
            frames: frames of an imagined clip; 0: as many as the clips have that the run was trained on.
            temperature: of imagined clips; their first frames are chosen among what is drawn at 1, unless --tries is 1.
            seed: of imagined clips.
            device: auto takes a GPU where there is one.
        """
        from quadrivium import ask as asking
        from quadrivium.data.questions import make_questions
        from quadrivium.data.shards import write_json
        from quadrivium.data.world import make_kinds, world_config
        from quadrivium.distil import check_names
        from quadrivium.imagine import TRIES, Imagining

        if (forget or frames or tries is not None) and not imagine:
            raise ConfigError(
                "--forget, --frames and --tries are of imagined clips; say how many to imagine, as in --imagine 8"
            )
        tries = (TRIES if tries is None else tries) if temperature else 1  # all first frames are the same one then
        if each < 1 or tries < 1 or imagine < 0:
            raise ConfigError(
                f"--each and --tries must be at least 1 and --imagine not negative, not {each}, {tries} and {imagine}"
            )
        imagining = Imagining(
            max(imagine, 1), tries, jointly=True, frames=frames, temperature=temperature, forget=forget, seed=seed
        )
        config = world_config(world)
        loaded = _run(run, device)
        check_names(loaded, config)
        count = asking.frames_of(loaded, config)
        if imagine or shown:
            asking.check_sight(loaded, frames or count)
        results: dict[str, dict] = {}
        for group in groups:
            questions = make_questions(config, group, each, config.languages)
            looks: dict[str, Any] = {"direct": None}
            if imagine:
                drawing = replace(imagining, frames=frames or count)
                looks["imagine" if tries == 1 else "checked"] = asking.imagined(
                    loaded.model, loaded.text, questions, drawing, progress=True
                )
            if shown:
                looks["shown"] = asking.shown(loaded, config, questions, count, progress=True)
            results[group] = {}
            for name, clips in looks.items():
                results[group][name] = asking.ask(loaded.model, loaded.text, questions, progress=True, clips=clips)
                if free:
                    results[group][f"{name}, free"] = asking.free(
                        loaded.model, loaded.text, questions, make_kinds(config), clips, progress=True
                    )
        write_json(run / "questions.json", {**results, "step": loaded.step, **({"tries": tries} if imagine else {})})
        print(asking.table(results))
        print(f"by template, language and device: {run / 'questions.json'}")

    return ask


def _generate() -> Callable[..., Any]:
    import tyro

    from quadrivium.generate import Sampling

    def generate(
        run: tyro.conf.Positional[Path],
        want: Literal["text", "image", "video", "samples"] = "samples",
        text: str | None = None,
        image: Path | None = None,
        video: Path | None = None,
        imagine: bool = False,
        tries: int | None = None,
        forget: bool = False,
        n: int | None = None,
        frames: int = 0,
        sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),
        out: Path | None = None,
        device: Device = "auto",
    ) -> None:
        """Generate on any route. Text goes to the terminal; pictures become PNG, clips GIF and MP4.

        --text "a red ball" --want image        text to picture (t2v)
        --text "a red ball" --want video        text to clip (t2v)
        --image ball.png --want text            picture to text (v2t)
        --video clip.mp4 --want video           what comes next (v2v)
        --text "Once upon a time" --want text   text goes on (t2t)
        --text "A ball on a ramp." --imagine    text to clip, and what the model sees in it (t2v, then v2t)

        Without --want: contact sheets of held-out items on every route, given | wanted | generated.

        Args:
            run: run folder that train wrote.
            want: what to generate.
            text: text that is given.
            image: picture that is given.
            video: clip that is given.
            imagine: draw what --text describes, look at it, and tell.
            tries: first frames to draw, at temperature 1, for each imagined clip, which goes on from the one off which --text is read
                best; 8 if not given; 1: unchecked.
            forget: while imagining, drop the words after the first frame.
            n: samples to draw, four if not given; of sheets the items of every route, eight if not given.
            frames: frames of a wanted clip; 0: as many as most clips have that the run was trained on.
            out: folder to write; RUN/samples if not given.
            device: auto takes a GPU where there is one.
        """
        from quadrivium.ask import frames_of
        from quadrivium.imagine import TRIES
        from quadrivium.samples import answer, imagine_aloud, write_samples

        folder = out or run / "samples"
        if frames < 0:
            raise ConfigError("--frames has to be at least 1 (0: as in the run's data)")
        if n is not None and not 1 <= n <= 10_000:
            raise ConfigError(f"--n is {n}; it lies between 1 and 10,000")
        if folder.is_file():
            raise ConfigError(f"{folder} is a file; --out is a folder")
        if (forget or tries is not None) and not imagine:
            raise ConfigError(
                "--forget and --tries are of --imagine: what is dropped, or chosen, after the first imagined frame"
            )
        if imagine:
            if image or video or want not in ("samples", "text"):
                raise ConfigError("--imagine goes from text to text; give --text, and neither --image, --video nor --want")
            if text is None:
                raise ConfigError('there is nothing to imagine; say it, as in --text "a red ball on a ramp" --imagine')
            imagine_aloud(_run(run, device), text, n or 4, frames, sampling, folder, forget, TRIES if tries is None else tries)
            return
        if want == "samples":
            if text or image or video:
                raise ConfigError("something is given but nothing is wanted; add --want text, image or video")
            loaded, mixed = _load(run, None, device)
            for path in write_samples(loaded, mixed, folder, n or 8, sampling):
                print(path)
            return
        loaded = _run(run, device)
        answer(loaded, want, text, image, video, n or 4, frames or frames_of(loaded), sampling, folder)

    return generate


def _distil() -> Callable[..., Any]:
    import tyro

    from quadrivium.distil import DistilConfig
    from quadrivium.imagine import TRIES, Imagining

    def distil(
        run: tyro.conf.Positional[Path],
        world: tyro.conf.Positional[Path],
        out: Path,
        config: Annotated[DistilConfig, tyro.conf.arg(name="")] = DistilConfig(),
        imagining: Annotated[Imagining, tyro.conf.arg(name="")] = Imagining(tries=TRIES, jointly=True),
        device: Device = "auto",
    ) -> None:
        """Write down, as ordinary text, what the model imagines of situations that no text tells.

        Every pair of seen kinds meets in every device, in imagination, several times. Where enough of the clips show the
        same outcome, it is written in several wordings, a line each, to a .jsonl that prepare reads like any text:

        quadrivium prepare WORLD corpus.jsonl --out data/more --text-tokenizer RUN/tokenizers/text
            --visual-tokenizer RUN/tokenizers/visual

        quadrivium train data/more --out runs/more --init RUN

        corpus.report.json beside it says how often that is what the simulator does. The same command goes on where it was stopped.

        Args:
            run: run folder that train wrote.
            world: the world that it was trained on, as `quadrivium world` wrote it.
            out: corpus to write, a new .jsonl file.
            device: auto takes a GPU where there is one.
        """
        from quadrivium import distil as distilling
        from quadrivium.data.world import world_config

        described = world_config(world)
        report = distilling.distil(_run(run, device), described, out, config, imagining)
        print(distilling.table(report))
        print(f"{report['texts']} texts in {out}; judged in {out.with_suffix('.report.json')}")
        data, words, seen = Path("data", out.stem), run / "tokenizers" / "text", run / "tokenizers" / "visual"
        again = command("prepare", world, out, "--out", data, "--text-tokenizer", words, "--visual-tokenizer", seen)
        print(f"next: {again}\n      {command('train', data, '--out', Path('runs', out.stem), '--init', run)}")

    return distil


def _export() -> Callable[..., Any]:
    import tyro

    def export(
        run: tyro.conf.Positional[Path],
        out: Path,
        text: bool = False,
        full: bool = False,
        push: str | None = None,
    ) -> None:
        """Write a run as a Hugging Face folder.

        Args:
            run: run folder that train wrote.
            out: folder to write; it has to be new or empty.
            text: the text route alone, which is what is written where nothing is said: a plain Qwen3, Qwen2 or Llama that
                transformers, and whatever reads its folders, loads without code of ours; with sharing cross, one of these
                with a page of code beside it, for from_pretrained(..., trust_remote_code=True).
            full: the whole model with its code, for from_pretrained(..., trust_remote_code=True), and a processor for
                pictures and clips.
            push: also upload the folder to this repository of the Hugging Face hub, made private where it is new.
        """
        from quadrivium import export as exporting

        if text and full:
            raise ConfigError("--text or --full: a folder holds one of them; export twice")
        loaded = _run(run, "cpu")
        exporting.export_full(loaded, out) if full else exporting.export_text(loaded, out)
        more = ", trust_remote_code=True" if any(out.glob("*.py")) else ""
        print(f"written to {out}; transformers.AutoModelForCausalLM.from_pretrained('{out}'{more}) loads it")
        if push:
            print(f"uploaded to {exporting.push(out, push)}")

    return export


def _play() -> Callable[..., Any]:
    import tyro

    from quadrivium.play import WebConfig

    def play(
        run: tyro.conf.Positional[Path],
        config: Annotated[WebConfig, tyro.conf.arg(name="")] = WebConfig(),
        device: Device = "auto",
    ) -> None:
        """A web page with the four routes: write and see, show and read, show and continue, ask and answer.

        Under every text and frame stand the bits of its tokens, as colours. In English and Japanese, for large and small
        screens; nothing is fetched from, or sent to, the network. Only this machine is served unless --host says otherwise.

        Args:
            run: run folder that train wrote, or the folder of an export with --full.
            device: auto takes a GPU where there is one.
        """
        from quadrivium.play import serve

        serve(_run(run, device, tuned=False), config)  # a server gives back memory that it does not use

    return play


def _experiment(smaller: bool = False) -> Callable[..., Any]:
    import tyro

    from quadrivium import experiment as run
    from quadrivium.experiment import ExperimentConfig

    def experiment(
        out: tyro.conf.Positional[Path],
        arms: tuple[str, ...] = ("text", "captions", "four", "distil"),
        seeds: tuple[int, ...] = (1, 2, 3, 4, 5),
        results: Path | None = None,
        workers: int = 0,
        device: Device = "auto",
        small: bool = False,
        config: Annotated[ExperimentConfig, tyro.conf.arg(name="")] = run.small() if smaller else ExperimentConfig(),
    ) -> None:
        """The experiment on the chain-reaction world: arms x seeds, then one table.

        Every finished cell is kept as JSON in --results, and the same command goes on from there: a grid can be finished over
        several sittings and on several machines. Facts are asked about in text alone; chance is one in three.

        Args:
            out: folder for worlds, shards and runs.
            arms: what is compared: text, text-equal, captions, four, four-more, distil, oracle, no-ahead, no-t2t, no-t2v, no-v2t,
                no-v2v, share-all, share-attention, share-cross, cross-distil, distil-twice,
                cross-distil-twice, contrast, pages.
            seeds: a world, its kinds and first weights each; 0 is not among them, since options were chosen on it.
            results: folder of finished cells; OUT/results if not given.
            workers: cells at a time; 0: one a core.
            device: auto takes a GPU where there is one; cells share it.
            small: three devices, English alone, most kinds both seen and told, a third of the work; other options then change this experiment.
        """
        print(run.table(run.run_experiment(out, config, seeds, arms, results, workers, device=_device(device))))
        print(f"cells: {results or out / 'results'}; table as JSON: {out / 'results.json'}")

    return experiment


def _transfer() -> Callable[..., Any]:
    import tyro

    from quadrivium.transfer import TransferConfig

    def transfer(
        data: tyro.conf.Positional[tuple[Path, ...]],
        out: Path,
        seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
        arms: tuple[str, ...] = (),
        budget: float | None = None,
        workers: int = 0,
        device: Device = "auto",
        config: Annotated[TransferConfig, tyro.conf.arg(name="")] = TransferConfig(),
    ) -> None:
        """Did text gain from training on pictures and clips? Arms, controls and seeds on your own data.

        Every finished cell is kept in OUT/cells, and the same command goes on from there. The verdict is "visual profit" only
        if all routes beat text alone, more epochs, the captions as text, shuffled frames and noise frames.

        Args:
            data: a folder that prepare wrote, or raw folders to prepare into OUT/data.
            out: folder to write.
            seeds: the main arms take all of them, the others the first three.
            arms: what is compared; all that the data can feed, if not given.
            budget: hours for the whole grid; the steps of a cell follow from the speed measured here.
            workers: cells at a time; 0: one a core.
            device: auto takes a GPU where there is one; cells share it.
        """
        from quadrivium import transfer as run

        if not data:
            raise ConfigError("name a folder that prepare wrote, or raw folders")
        said = command(*sys.argv[1:])
        print(
            run.table(
                run.run_transfer(list(data), out, config, seeds, arms, budget, workers, command=said, device=_device(device))
            )
        )
        print(f"cells: {out / 'cells'}; all numbers: {out / 'results.json'}")

    return transfer


def _report() -> Callable[..., Any]:
    import tyro

    def report(results: tyro.conf.Positional[Path], out: Path | None = None) -> None:
        """One self-contained page from results.json of transfer or experiment (verdict, intervals, ladder, routes, facts, cost), or
        of eval (routes of one run, alignment).

        Args:
            results: results.json, or the folder that holds it.
            out: page to write; report.html beside the results if not given.
        """
        from quadrivium.report import write_report

        print(f"report written to {write_report(results, out)}")

    return report


def _bench() -> Callable[..., Any]:
    import tyro

    from quadrivium.bench import BenchConfig

    def bench(
        out: Path = Path("runs/bench.json"),
        config: Annotated[BenchConfig, tyro.conf.arg(name="")] = BenchConfig(),
        device: Device = "auto",
    ) -> None:
        """Speed of this project and of other people's models, in one run, in alternation: one table, and JSON.

        Training steps and generation beside x-transformers, torch's own layers, transfusion-pytorch and transformers' Qwen3, at
        equal parameters and positions; forced choice beside lm-eval; prepare; the world; and the rate of the bare matrix
        products, which nothing exceeds. Processor time stands beside seconds: on a busy machine, read that. The other
        packages are optional: pip install -c constraints.txt -e '.[bench]'

        Args:
            out: JSON file to write.
            device: auto takes a GPU where there is one; there, seconds are what ratios are made of.
        """
        from quadrivium.bench import run_bench, table

        print(table(run_bench(config, out, _device(device))))
        print(f"\nresults written to {out}")

    return bench


def _demo() -> Callable[..., Any]:
    def demo(out: Path = Path("runs/demo")) -> None:
        """Can text answer what was only ever seen? A small world, four arms, a table, imagined scenes beside real ones.

        About a quarter of an hour on two cores, nothing to download. A demo that was stopped goes on.

        Args:
            out: folder to write.
        """
        from quadrivium.demo import run_demo

        run_demo(out)

    return demo


_FACTORIES: dict[str, Callable[[], Callable[..., Any]]] = {
    "demo": _demo,
    "world": _world,
    "prepare": _prepare,
    "train": _train,
    "eval": _evaluate,
    "ask": _ask,
    "generate": _generate,
    "distil": _distil,
    "experiment": _experiment,
    "experiment --small": functools.partial(_experiment, smaller=True),
    "transfer": _transfer,
    "report": _report,
    "export": _export,
    "play": _play,
    "bench": _bench,
}
