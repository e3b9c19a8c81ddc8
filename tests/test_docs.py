"""Every command and every program in the how-to pages runs, on small stand-ins for what they name."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadrivium.cli import main
from quadrivium.pictures import save_mp4
from quadrivium.prepare import prepare

from .conftest import COLOURS, TINY, ball, write_folder
from .test_huggingface import bytelevel, theirs

wds = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'quadrivium[data]'")
lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'quadrivium[eval]'")
import pyarrow as pa  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Cannot (locate|pickle)", "ignore::DeprecationWarning"
)

DOCS = Path(__file__).parent.parent / "docs"
SMALL = {  # what makes a command small enough for a test
    "prepare": "--read.size 16 --vocab 320 --visual.down 4 --visual.levels 4 4 4 --visual.width 16 --visual.encoder-depth 1 "
    "--visual.decoder-depth 1 --visual-train.steps 20 --visual-batch 8 --held 0.2",
    "train": "--positions 400 --patch 2",
    "eval": "--limit 4",
}


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_page(page):
    """Run the page's commands in their order, and its programs at the place where they stand."""
    ran = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if kind == "python":
            if "trust_remote_code" not in block:
                exec(compile(block, page, "exec"), {})
                continue
            env = {**os.environ, "HF_HOME": str(Path.cwd() / "cache")}  # where transformers copies the folder's code to
            subprocess.run([sys.executable, "-c", block], check=True, capture_output=True, timeout=120, env=env)
        for line in block.splitlines() if not kind else ():
            words = shlex.split(line.split("  #")[0])
            if words[0] == "quadrivium":
                small = shlex.split(SMALL.get(words[1], ""))
                words = re.sub(r"--minutes \d+", "--steps 4", " ".join([*words, *small])).split(" ")
                assert main(words[1:]) == 0, line
                ran.append(words[1])
            else:
                assert words[0] in ("pip", "lm_eval"), line
    return ran


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
    ran = run_page("hugging-face.md")
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
    story = blocks("formats.md", "json")[0]
    Path("stories/pages.jsonl").write_text("".join(story.replace("s1", f"s{i}") for i in range(6)))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball."}]
    Path("chat/chat.json").write_text(json.dumps([{"id": i, "image": f"{i}.png", "conversations": turns} for i in range(12)]))
    for i in range(4):
        save_mp4(np.stack([frames[t] for t in range(8)]), Path(f"talks/{i}.mp4"), fps=4)
        Path(f"talks/{i}.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nA ball rolls.\n")
    Path("mixture.toml").write_text(blocks("formats.md", "toml")[0])
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'quadrivium[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    load = datasets.load_dataset
    (here / "hub").mkdir()
    pq.write_table(pa.table({"image": [png(f) for f in frames], "caption": ["a ball"] * 12}), "hub/train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **how: load(str(here / "hub"), config, **how))
    ran = run_page("formats.md")
    assert sorted(ran) == ["prepare"] * 8 + ["train"]


def test_the_page_on_watching_a_run(here):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'quadrivium[track]'")
    prepare([write_folder(here / "mine", n=12)], here / "data" / "mine", TINY, progress=False)
    assert run_page("tracking.md") == ["train"] and list(here.glob("runs/mine/tensorboard/events*"))
