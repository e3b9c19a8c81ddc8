"""Every command and every program in the how-to pages runs, on small stand-ins for what they name."""

import functools
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadrivium.cli import _FACTORIES, COMMANDS, main
from quadrivium.pictures import save_mp4
from quadrivium.prepare import prepare
from quadrivium.sequence import ROUTES

from .conftest import COLOURS, TINY, ball, write_folder
from .test_huggingface import bytelevel, theirs

wds = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -c constraints.txt -e '.[data]'")
lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -c constraints.txt -e '.[eval]'")
import pyarrow as pa  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Cannot (locate|pickle)", "ignore::DeprecationWarning"
)

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PREPARE = (
    "--read.size 16 --vocab 320 --visual.down 4 --visual.levels 4 4 4 --visual.width 16 --visual.encoder-depth 1 "
    "--visual.decoder-depth 1 --visual-train.steps 20 --visual-batch 8 --held 0.2"
)
SMALL = {  # what makes a command small enough for a test
    "world": "--kinds 28 --shares .25 .25 .25 .25 --devices ramp seesaw --size 16 --frames 6 --clips 12 --told 8 --stills 12 --narrations 20",
    "prepare": PREPARE,
    "train": "--steps 4 --layers 2 --width 32 --heads 2 --positions 400 --patch 2",
    "eval": "--limit 4",
    "generate": "--n 1 --max-ids 8",
    "ask": "--groups seen --each 1 --imagine 1",
    "distil": "--limit 2 --samples 1",
    "transfer": "--seeds 0 --arms text four --workers 1 --limit 8 --model.layers 1 --model.width 16 --model.heads 1 "
    "--mixture.positions 200 --mixture.context 32 --train.steps 2 " + PREPARE.replace("--", "--prepare."),
}
PAGES = [ROOT / "README.md", ROOT / "README.ja.md", *sorted(DOCS.glob("*.md"))]


def test_the_reference_is_up_to_date():
    page = runpy.run_path(str(DOCS / "reference.py"))["render"]()
    assert page == (DOCS / "reference.md").read_text(encoding="utf-8"), "run: python docs/reference.py"
    assert not re.findall(r"^\| `.*` \|  \|.*", page, re.M)  # options that say nothing of themselves


def test_the_diagram_is_up_to_date():
    picture = runpy.run_path(str(DOCS / "diagram.py"))["render"]()
    assert picture == (DOCS / "pictures" / "model.svg").read_text(encoding="utf-8"), "run: python docs/diagram.py"


def read(page):
    return page.read_text(encoding="utf-8")


def fenced(page):
    """(language, text) of every fenced block; a command that goes on in the next line is one line."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)
    return [(kind, text if kind else re.sub(r"\\\n\s*", "", text)) for kind, text in found]


def blocks(page, kind):
    return [block for language, block in fenced(page) if language == kind]


def commands(page):
    """The lines of the blocks that are commands, each split into words."""
    lines = [line for block in blocks(page, "") for line in block.splitlines() if line.strip()]
    return [shlex.split(line.split("  #")[0]) for line in lines]


def small(words):
    """The same command at the size of a test: other budgets, a smaller shape."""
    left, kept = iter(words), []
    for word in left:
        if word in ("--minutes", "--visual-train.minutes", "--budget"):
            next(left)
        else:
            kept.append(word)
    of_a_model = words[1] == "train" and "--init" in words  # whose shape is given
    extra = "--steps 4 --positions 400 --patch 2" if of_a_model else SMALL.get(words[1], "")
    return [*kept[1:], *shlex.split(extra)]


def run(words):
    """Run a command, or look whether it can be what it says where it would install something or take minutes."""
    extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    if words[0] == "quadrivium":
        assert main(small(words)) == 0, words
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", read(ROOT / "Makefile"), re.MULTILINE), words
    elif words[0].endswith("pip"):
        asked = re.findall(r"\[(.*?)\]", words[-1])
        assert words[1] == "install" and all(e in extras for found in asked for e in found.split(",")), words
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    elif words[0] == "python":  # a long measurement: its program is there and has the options
        program = read(ROOT / words[1])
        assert all(f'"{word}"' in program for word in words[2:] if word.startswith("--")), words
    else:
        assert words[:3] == ["python3", "-m", "venv"] or words[0] == "lm_eval", words


def run_page(page):
    """Run the page's commands in their order, and its programs at the place where they stand. Returns the commands' names."""
    ran = []
    for kind, block in fenced(page):
        if kind == "python":
            if "trust_remote_code" not in block:
                exec(compile(block, page, "exec"), {})
                continue
            env = {**os.environ, "HF_HOME": str(Path.cwd() / "cache")}  # where transformers copies the folder's code to
            subprocess.run([sys.executable, "-c", block], check=True, capture_output=True, timeout=120, env=env)
        for line in block.splitlines() if not kind else ():
            words = shlex.split(line.split("  #")[0])
            run(words)
            ran += words[1:2] if words[0] == "quadrivium" else []
    return ran


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", read(page)):
        path = (page.parent / target).resolve()
        assert target.startswith("https://") or path.exists(), target


def test_every_command_that_a_page_names_exists_with_its_options(monkeypatch):
    """Those in the middle of sentences and those that take hours too: they are parsed, and not run."""
    for name, make in list(_FACTORIES.items()):

        def parsed(make=make):
            function = make()
            return functools.wraps(function)(lambda *given, **named: 0)

        monkeypatch.setitem(_FACTORIES, name, parsed)
    named = 0
    for page in PAGES:
        if page.name in ("LOG.md", "reference.md"):  # what was true at its date; made from the code
            continue
        inline = [shlex.split(c) for c in re.findall(r"`(quadrivium [^`]*)`", read(page))]
        for words in [*commands(page), *inline]:
            if words[0] != "quadrivium":
                continue
            assert words[1] in {*COMMANDS, "COMMAND", "--help"}, (page.name, words)
            if len(words) > 2 and words[1] in COMMANDS and "..." not in words:
                assert main(words[1:]) == 0, (page.name, words)
                named += 1
    assert named > 40


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_on_hugging_face(here, monkeypatch):
    import huggingface_hub

    write_folder(here / "mine", n=12)
    save_mp4(np.stack([ball(COLOURS["red"], x=3 + 2 * t) for t in range(4)]), here / "clip.mp4", fps=4)
    Image.fromarray(ball(COLOURS["red"])).save(here / "ball.png")
    small = theirs("qwen3", 340)
    small.save_pretrained(bytelevel(here / "hub"))
    (here / "questions" / "verbphysics" / "objects" / "train-5").mkdir(parents=True)
    lines = "x,obj1,obj2,size-maj,weight-maj,strength-maj,rigidness-maj,speed-maj\n0,car,cup,1,1,1,1,1\n"
    (here / "questions" / "verbphysics" / "objects" / "train-5" / "test.csv").write_text(lines)
    (here / "questions" / "coda").mkdir()
    thing = {"class_id": "a", "object_s": "apple", "areis_s": "is", "object_pl": "apples", "areis_pl": "are"}
    (here / "questions" / "coda" / "objects.jsonl").write_text(json.dumps(thing) + "\n")
    (here / "questions" / "coda" / "annotations.jsonl").write_text('{"class_id": "a", "included": true, "red": 5}\n')
    (here / "questions" / "blimp" / "data").mkdir(parents=True)
    pair = {"sentence_good": "A ball rolls.", "sentence_bad": "A ball roll.", "field": "syntax", "pairID": "0"}
    (here / "questions" / "blimp" / "data" / "a.jsonl").write_text(json.dumps(pair) + "\n")

    class Hub:
        def create_repo(self, name, **how):
            assert name == "me/mine"

        def upload_folder(self, repo_id, folder_path):
            return "https://huggingface.co/me/mine"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: str(here / "hub"))
    ran = run_page(DOCS / "hugging-face.md")
    assert [ran.count(c) for c in ("prepare", "train", "eval", "export")] == [1, 1, 2, 3]


def test_the_page_on_formats(here, monkeypatch):
    frames = [ball(COLOURS[list(COLOURS)[i % 4]], x=3 + i) for i in range(12)]

    def png(frame):
        out = io.BytesIO()
        Image.fromarray(frame).save(out, "PNG")
        return out.getvalue()

    for name in ("shapes", "stories", "chat", "talks"):
        (here / name).mkdir()
    with wds.TarWriter("shapes/00000.tar") as sink:
        for i, frame in enumerate(frames):
            sink.write({"__key__": f"{i:09}", "png": png(frame), "txt": "a ball", "json": {"caption": "a ball"}})
    pq.write_table(pa.table({"image": [png(f) for f in frames], "caption": ["a ball"] * 12}), "table.parquet")
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(f"stories/{i}.png")
        Image.fromarray(frame).save(f"chat/{i}.png")
    story = blocks(DOCS / "formats.md", "json")[0]
    Path("stories/pages.jsonl").write_text("".join(story.replace("s1", f"s{i}") for i in range(6)))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball."}]
    Path("chat/chat.json").write_text(json.dumps([{"id": i, "image": f"{i}.png", "conversations": turns} for i in range(12)]))
    for i in range(4):
        save_mp4(np.stack([frames[t] for t in range(8)]), Path(f"talks/{i}.mp4"), fps=4)
        Path(f"talks/{i}.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nA ball rolls.\n")
    Path("mixture.toml").write_text(blocks(DOCS / "formats.md", "toml")[0])
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install -c constraints.txt -e '.[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    load = datasets.load_dataset
    (here / "hub").mkdir()
    pq.write_table(pa.table({"image": [png(f) for f in frames], "caption": ["a ball"] * 12}), "hub/train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **how: load(str(here / "hub"), config, **how))
    ran = run_page(DOCS / "formats.md")
    assert sorted(ran) == ["prepare"] * 8 + ["train"]


def test_the_page_on_watching_a_run(here):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    prepare([write_folder(here / "mine", n=12)], here / "data" / "mine", TINY, progress=False)
    assert run_page(DOCS / "tracking.md") == ["train"] and list(here.glob("runs/mine/tensorboard/events*"))


def test_the_readmes(here):
    """The English one is run; the Japanese one has the same commands, and what it says in Japanese is run as well."""
    write_folder(here / "mine", n=12)
    Image.fromarray(ball(COLOURS["red"])).save(here / "ball.png")
    demo = here / "runs" / "demo" / "seed-0"
    for line in (f"world {demo}/world", f"prepare {demo}/world --out {demo}/data", f"train {demo}/data --out {demo}/four"):
        run(["quadrivium", *line.split()])
    english, japanese = ROOT / "README.md", ROOT / "README.ja.md"
    ran = run_page(english)
    assert ran == ["prepare", "prepare", "train", "eval", *["generate"] * 3, "export", "ask", "distil", "generate"]
    assert len(commands(english)) == len(commands(japanese))
    for said, ours in zip(commands(english), commands(japanese), strict=True):
        spoken = said.index("--text") + 1 if "--text" in said else None
        assert [w for i, w in enumerate(said) if i != spoken] == [w for i, w in enumerate(ours) if i != spoken]
        if spoken:
            run(ours)
    exec(compile(blocks(japanese, "python")[0], japanese, "exec"), {})


def test_the_page_on_an_own_folder(here):
    write_folder(here / "mine", n=12)
    ran = run_page(DOCS / "own-folder.md")
    assert ran == ["prepare", "prepare", "train", "eval", "generate", "generate"]
    row = json.loads(blocks(DOCS / "own-folder.md", "json")[0])
    assert set(row) == {"file_name", "text", "text_ja", "group"}


def test_the_pages_on_own_video_transfer_and_reports(here, monkeypatch):
    (here / "talks").mkdir()
    for i in range(10):
        save_mp4(np.stack([ball(COLOURS["red"], x=3 + t + i % 3) for t in range(8)]), here / "talks" / f"{i}.mp4", fps=4)
        (here / "talks" / f"{i}.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nA ball rolls.\n")
    (here / "talks" / "words.jsonl").write_text("".join(json.dumps({"text": f"A ball rolls, {i}."}) + "\n" for i in range(60)))
    save_mp4(np.stack([ball(COLOURS["red"], x=3 + 2 * t) for t in range(4)]), here / "clip.mp4", fps=4)
    ran = run_page(DOCS / "own-video.md")
    assert ran == ["prepare", "prepare", "train", "eval", "generate", "generate", "transfer", "report"]
    assert run_page(DOCS / "reading-a-report.md") == ["report"]
    (here / "FOLDER").symlink_to(here / "data" / "talks")  # prepared already, and one arm is enough the second time
    monkeypatch.setitem(SMALL, "transfer", SMALL["transfer"].partition(" --prepare")[0].replace("text four", "text"))
    assert run_page(DOCS / "transfer.md") == ["transfer", "report"]


def test_the_notebook_runs_from_top_to_bottom(here):
    """With fewer steps: what it draws then is noise, and every line is run. Run again, its first cells take what is there."""
    cells = json.loads((DOCS / "quadrivium.ipynb").read_text(encoding="utf-8"))["cells"]
    programs = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    named: dict = {}
    for number, program in enumerate([*programs, *programs[:3]]):
        program = re.sub(r"--(visual-train\.)?steps \d+", r"--\1steps 15", program)
        exec(compile(program, f"cell {number}", "exec"), named)
    assert named["after"].shape == (2, 2, 16, 16, 3) and named["scene"].frames.shape[1:] == (16, 16, 3)
    assert all(f"({route})" in json.dumps(cells) for route in ROUTES[:4])
