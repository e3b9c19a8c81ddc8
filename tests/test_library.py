"""`import quadrivium as q`: each route in a few lines, the same as the command line gives."""

import functools
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import quadrivium as q
from quadrivium import samples
from quadrivium.checkpoint import Run
from quadrivium.cli import main
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
from quadrivium.export import export_full
from quadrivium.generate import Sampling


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    shape = ["--layers", "2", "--width", "64", "--heads", "2", "--positions", "800", "--patch", "2"]
    assert main(["train", str(data), "--out", str(out), "--steps", "30", *shape]) == 0
    return out


@pytest.fixture(scope="module")
def model(run):
    return q.load(run)


def test_every_route_in_a_line(model, folder):
    picture, clip = folder / "pictures" / "0.png", str(folder / "clips" / "0.mp4")
    assert all(isinstance(t, str) for t in model.generate("text", text="The red", n=2, max_ids=8))
    assert model.generate("image", text="a red ball", n=3).shape == (3, 16, 16, 3)
    assert model.generate("video", text="a red ball", frames=2).shape == (1, 2, 16, 16, 3)
    assert len(model.generate("text", image=picture, max_ids=8)) == 1
    after = model.generate("video", video=clip, seed=1)
    assert after.dtype == np.uint8 and after.shape == (1, 4, 16, 16, 3)
    assert not np.array_equal(after, model.generate("video", video=clip, seed=2))
    assert np.array_equal(after, model.generate("video", video=clip, seed=1))


def test_a_window_of_one_prediction_is_drawn_too(run):
    """The last window of a document may hold the end mark alone."""
    loaded = Run(run)
    prepared = Dataset(Path(loaded.config["data"]))
    for context in range(10, 60):
        mixture = Mixture(prepared, MixtureConfig(routes=("t2t",), context=context), loaded.text.end, 0, loaded.patch)
        (stream,) = mixture.held.values()
        units = list(mixture.held_units(stream, 10**6))
        if any(len(mixture.sequence(stream, u)[0].data) == 2 for u in units[:3]):
            break
    else:
        raise AssertionError("no such window")
    ((_, rows),) = samples.draw(loaded, mixture, 3, Sampling(max_ids=4), progress=False)
    assert len(rows) == 3


def test_a_video_is_read_as_long_as_the_run_knows_clips(run, folder, tmp_path):
    shorter = tmp_path / "shorter"
    shutil.copytree(run, shorter)
    config = json.loads((shorter / "config.json").read_text())
    config["mixture"]["frames"] = 2
    (shorter / "config.json").write_text(json.dumps(config))
    clip = folder / "clips" / "0.mp4"
    assert [len(samples.read(Run(r), clip, "video")) for r in (run, shorter)] == [4, 2]
    export_full(Run(shorter), tmp_path / "whole")
    assert np.array_equal(samples.read(Run(tmp_path / "whole"), clip, "video"), samples.read(Run(shorter), clip, "video"))


def test_a_card_says_what_was_measured_on_what(run, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert main(["eval", str(copy), "--limit", "4"]) == 0
    export_full(Run(copy / "checkpoints" / "step-00000030"), tmp_path / "last")
    assert "Held-out cost, step 30:" in (tmp_path / "last" / "README.md").read_text()
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps({**results, "data": "/somewhere/else"}))
    export_full(Run(copy), tmp_path / "other")
    assert "step 30 on else, which is not what" in (tmp_path / "other" / "README.md").read_text()
    monkeypatch.chdir(Path(results["data"]).parent)  # the same folder, called otherwise
    assert main(["eval", str(copy), "--limit", "4", "--data", Path(results["data"]).name]) == 0
    export_full(Run(copy), tmp_path / "same")
    assert "Held-out cost, step 30:" in (tmp_path / "same" / "README.md").read_text()
    (copy / "results.json").unlink()
    last = copy / "checkpoints" / "step-00000030"
    assert main(["eval", str(last), "--limit", "4"]) == 0  # its results lie with it
    export_full(Run(last), tmp_path / "one")
    assert "Held-out cost, step 30:" in (tmp_path / "one" / "README.md").read_text()
    (copy / "results.json").write_text(json.dumps({**results, "step": 20}))
    export_full(Run(copy), tmp_path / "older")
    assert "Not measured yet" in (tmp_path / "older" / "README.md").read_text()


def test_what_it_was_never_trained_on_is_said(model, run, tmp_path):
    """A run that has an eye and never drew, also once it was exported; and numbers may come from numpy."""
    config = json.loads((run / "config.json").read_text())
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    (blind / "config.json").write_text(json.dumps({**config, "routes": ["t2t"]}))
    export_full(Run(blind), tmp_path / "whole")
    for place in (blind, tmp_path / "whole"):
        loaded = q.load(place, device="cpu")
        dark = np.zeros((9, 9, 3), np.uint8)
        for route, want, given in (
            ("t2v", "image", {"text": "a ball"}),
            ("v2v", "image", {}),
            ("v2t", "text", {"text": "a", "image": dark}),
        ):
            with pytest.warns(UserWarning, match=f"never on {route}"):
                loaded.generate(want, **given, max_ids=2)
        with pytest.warns(UserWarning, match="never on v2t"):
            loaded.score(text="a", given_image=dark)
        with pytest.warns(UserWarning, match="never on t2v"):
            loaded.imagine("a red ball", frames=2, max_ids=2, tries=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.generate("text", text="The", max_ids=2)
        loaded.score(text=" ball", given_text="a")
        same = [model.generate("text", text="The", max_ids=kind(9), seed=kind(3)) for kind in (int, np.int64, np.int32)]
    assert same[0] == same[1] == same[2]


def test_a_picture_is_the_same_from_a_path_an_image_and_an_array(model, folder):
    path = folder / "pictures" / "0.png"
    seen = [path, Image.open(path), np.asarray(Image.open(path))]
    assert len({model.score(text="a red ball", given_image=s) for s in seen}) == 1
    assert len({model.score(image=s, given_text="a red ball") for s in seen}) == 1


def test_a_turned_photo_is_the_same_from_a_path_and_an_image(model, folder, tmp_path):
    path, mark = tmp_path / "phone.png", Image.Exif()
    mark[0x0112] = 6  # a quarter turn
    picture = Image.open(folder / "pictures" / "0.png").convert("RGB")
    picture.paste((255, 0, 0), (0, 0, 32, 8))
    picture.save(path, exif=mark)
    turned = model.score(image=path)
    assert model.score(image=Image.open(path)) == turned != model.score(image=picture)


def test_scores_add_up(model, folder):
    whole = model.score(text="The red ball rolls away")
    begun = model.score(text="The red ball")
    rest = model.score(text=" rolls away", given_text="The red ball")
    # what ends the first text is paid in `begun` and not in `whole`
    assert 0 < rest < whole and whole < begun + rest
    clip = folder / "clips" / "0.mp4"
    assert model.score(video=clip) > 0 and model.score(video=clip, given_text="a ball") != model.score(video=clip)


def test_score_of_a_continuation_is_that_of_the_harness(run, model):
    from quadrivium.checkpoint import Run
    from quadrivium.harness import likelihoods

    text = Run(run).text
    ids = (text.encode("The red ball"), text.encode(" rolls"))
    nats = likelihoods(Run(run).model, [([text.end, *ids[0]], [*ids[1], text.end])])[0][0]
    assert model.score(text=" rolls", given_text="The red ball") == pytest.approx(-nats / np.log(2), rel=1e-4)


def test_imagining(model):
    first, second = model.imagine("A red ball on a ramp.", n=2, frames=3, max_ids=6)
    assert first.frames.shape == (3, 16, 16, 3) and first.story.startswith("A red ball on a ramp.")
    assert isinstance(first.caption, str) and not np.array_equal(first.frames, second.frames)


def test_what_cannot_be_is_said(model, run, tmp_path, monkeypatch):
    with pytest.raises(q.RunError, match="not found"):
        q.load(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for device, said in (("cuda", "no GPU here"), ("cuda:1", "no GPU here"), ("gpu", "unknown")):
        with pytest.raises(q.ConfigError, match=said):
            q.load(run, device=device)
    picture = np.zeros((8, 8, 3), np.uint8)
    for kind, wrong in (("video", picture), ("image", picture[None]), ("image", picture / 1.0), ("video", picture[None][:0])):
        with pytest.raises(q.ConfigError, match=f"{kind} is .*uint8"):
            model.score(**{kind: wrong})
    with pytest.raises(q.ConfigError, match="several sizes"):
        model.score(video=[picture, picture[1:]])
    with pytest.raises(q.ConfigError, match="not both"):
        model.generate("text", image=picture, video=picture[None])
    for name, wrong, what in (
        ("text", ["a", "b"], "one string"), ("n", "2", "a whole number"), ("frames", 2.5, "a whole number"),
        ("seed", None, "a whole number"), ("max_ids", 8.0, "a whole number"), ("temperature", "hot", "a number"),
    ):  # fmt: skip
        for call in (functools.partial(model.generate, "video"), functools.partial(model.imagine, text="a")):
            with pytest.raises(q.ConfigError, match=f"{name} is .*; it has to be {what}"):
                call(**{name: wrong})
    with pytest.raises(q.ConfigError, match="given_text is 3; it has to be one string"):
        model.score(text="a", given_text=3)
    with pytest.raises(q.ConfigError, match="folder is None"):
        q.load(None)
    for count in (0, -1):
        with pytest.raises(q.ConfigError, match="at least 1"):
            model.imagine("a ball", frames=count)
    with pytest.raises(q.ConfigError, match="score one thing"):
        model.score(text="a", image=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(q.ConfigError, match="temperature"):
        model.generate("text", temperature=-1)
    with pytest.raises(q.ConfigError, match="want is text"):
        model.generate("sound")
    with pytest.raises(q.ConfigError, match="no such file"):
        model.generate("text", image="nowhere.png")
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = q.nothing


def test_the_first_lines_of_the_package_are_true(run, folder, tmp_path):
    lines = [x.strip() for x in q.__doc__.splitlines() if x.startswith("    ")]
    assert len(lines) == 6
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    (tmp_path / "ball.png").symlink_to(folder / "pictures" / "0.png")
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, check=True, capture_output=True)
