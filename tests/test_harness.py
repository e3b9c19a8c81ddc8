"""lm-eval in memory and from the export: the same numbers; strict ties; the tasks made here."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from quadrivium import harness
from quadrivium.cli import main
from quadrivium.config import to_dict
from quadrivium.data.shards import write_json
from quadrivium.data.world import WorldConfig
from quadrivium.errors import ConfigError, DataError
from quadrivium.generate import continuations
from quadrivium.model import Model, ModelConfig

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -c constraints.txt -e '.[eval]'")

# The harness's own libraries warn of each other.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Cannot (locate|pickle)", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "gray", "brown"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A folder with a little of every kind of question that the tasks read."""
    root = tmp_path_factory.mktemp("questions")
    things = [("apple", "red"), ("frog", "green"), ("crow", "black"), ("sky", "blue"), ("draw", None)]
    (root / "coda").mkdir()
    with open(root / "coda" / "objects.jsonl", "w") as objects, open(root / "coda" / "annotations.jsonl", "w") as given:
        for name, colour in things:
            row = {"class_id": name, "object_s": name, "areis_s": "is", "object_pl": f"{name}s", "areis_pl": "are"}
            objects.write(json.dumps(row) + "\n")
            for included in (True, False):  # what was left out of the data set says "pink"
                votes = {c: 5 if c == (colour if included else "pink") else 1 if included and colour else 0 for c in COLOURS}
                given.write(json.dumps({"class_id": name, "included": included, **votes}) + "\n")
    folder = root / "verbphysics" / "objects" / "train-5"
    folder.mkdir(parents=True)
    lines = ["x,obj1,obj2,size-maj,weight-maj,strength-maj,rigidness-maj,speed-maj", "0,ant,house,-1,-1,-1,-1,1"]
    lines += ["1,car,cup,1,1,1,1,1", "2,fool,idea,-42,-42,-42,-42,-42", "3,egg,egg cup,0,0,0,0,0"]
    (folder / "test.csv").write_text("\n".join(lines) + "\n")
    (root / "blimp" / "data").mkdir(parents=True)
    rows = [
        {
            "sentence_good": f"The ball number {i} rolls.",
            "sentence_bad": f"The ball number {i} roll.",
            "field": f,
            "pairID": str(i),
        }
        for i, f in enumerate(["syntax", "semantics", "syntax/semantics", "morphology"] * 5)
    ]
    (root / "blimp" / "data" / "agreement.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "world").mkdir()  # questions are made from the world's options; its files are not read
    write_json(root / "world" / "world.json", {"config": to_dict(WorldConfig())})
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    shape = ["--layers", "2", "--width", "64", "--heads", "2", "--positions", "800"]
    assert main(["train", str(data), "--out", str(out), "--steps", "20", "--patch", "2", *shape]) == 0
    return out


TASKS = ("coda", "verbphysics", "blimp_strict", "world_seen")


def test_scores_in_memory_are_those_of_the_export(run, questions, tmp_path, capsys, record_property):
    from quadrivium.harness import manager

    asked = ["--lm-eval", *TASKS, "--lm-eval-data", str(questions), "--lm-eval-limit", "40"]
    assert main(["eval", str(run), *asked]) == 0
    assert "verbphysics_speed" in capsys.readouterr().out
    ours = json.loads((run / "results.json").read_text())["lm_eval"]["tasks"]
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(tmp_path / "out"), device="cpu", dtype="float32", batch_size=8)
    how = dict(tasks=list(TASKS), task_manager=manager(TASKS, questions), limit=40, bootstrap_iters=0)
    theirs = lm_eval.simple_evaluate(model, **how)
    counted, most = 0, 0.0
    for name, row in theirs["results"].items():
        for key, value in row.items():
            if key.startswith("acc") and "stderr" not in key and isinstance(value, float):
                assert ours[name][key.split(",")[0]] == pytest.approx(value, abs=1e-9), (name, key)
                counted, most = counted + 1, max(most, abs(ours[name][key.split(",")[0]] - value))
    record_property("scores", f"{most:.1e} over {counted}")
    assert counted >= 12 and ours["coda"]["n"] == 4 and ours["verbphysics_size"]["n"] == 2
    both = []
    from lm_eval.api.instance import Instance

    from quadrivium.checkpoint import Run
    from quadrivium.harness import language_model

    texts = [("The red ball", " rolls down the hill."), ("", "The blue ball"), ("玉が3個", "ころがった。")]
    for one in (model, language_model(Run(run))):
        requests = [Instance("loglikelihood", {}, t, 0) for t in texts]
        rolling = [Instance("loglikelihood_rolling", {}, (b,), 0) for _, b in texts]
        until = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
        told = [Instance("generate_until", {}, ("The red ball", until), 0)]
        both.append((one.loglikelihood(requests), one.loglikelihood_rolling(rolling), one.generate_until(told)))
    for (a, greedy), (b, likewise) in zip(both[0][0], both[1][0], strict=True):
        assert a == pytest.approx(b, rel=1e-4) and greedy == likewise
    record_property("nats", f"{max(abs(a[0] - b[0]) for a, b in zip(both[0][0], both[1][0], strict=True)):.1e}")
    assert np.allclose(both[0][1], both[1][1], rtol=1e-4) and both[0][2] == both[1][2]


def test_answers_are_shuffled_and_right(questions):
    from quadrivium.tasks import documents

    folder = str(questions)
    coda = documents.coda(folder)["test"]
    said = {d["name"].split()[1]: {d["choices"][11 * w + a] for w, a in enumerate(d["answers"])} for d in coda}
    assert "Most apples are red." in said["apple"] and "This sky is blue." in said["sky"] and "draw" not in said
    assert len({a for d in coda for a in d["answers"]}) > 5
    speed = documents.verbphysics(folder, "speed")["test"]
    said = {d["choices"][2 * w + a] for d in speed for w, a in enumerate(d["answers"])}
    assert "An ant is faster than a house." in said and "Compared with a cup, a car is quicker." in said
    good = documents.blimp(folder)["test"]
    assert all(d["choices"][d["answers"][0]].endswith("rolls.") for d in good)
    assert 3 <= Counter(d["answers"][0] for d in good)[0] <= 17  # 20 fair draws: 1 in 2,000 that they leave this
    assert [d["name"] for d in good] != sorted(d["name"] for d in good)
    assert good.to_list() == documents.blimp(folder)["test"].to_list()


def test_the_world_is_asked_as_the_command_asks_it(questions):
    from quadrivium.ask import credit
    from quadrivium.data.questions import make_questions
    from quadrivium.tasks import documents

    asked, rng = make_questions(WorldConfig(), "seen", 4), np.random.default_rng(0)
    for doc in documents.world(str(questions), "seen")["test"].select(range(60)):
        q = asked[int(doc["name"].split()[-1])]
        told = [w for forms in q.options for w in forms]
        assert sorted(doc["choices"]) == sorted(told) and doc["context"] == q.beginning
        nats = dict(zip(told, rng.normal(-20, 2, len(told)), strict=True))
        together = np.logaddexp.reduce([[nats[w] for w in forms] for forms in q.options], axis=1)
        expected = credit(together[None], np.array([q.answer]))[0]
        assert documents.accuracy(doc, [(nats[c], False) for c in doc["choices"]])["acc"] == pytest.approx(expected)


def test_a_model_that_knows_nothing_scores_chance_exactly(questions):
    from quadrivium.tasks import documents

    doc = documents.coda(str(questions))["test"][0]
    tied = [(-1.0, False)] * len(doc["choices"])
    assert documents.accuracy(doc, tied)["acc"] == pytest.approx(1 / 11)
    with pytest.raises(ValueError, match="not numbers"):
        documents.accuracy(doc, [(float("nan"), False)] * len(doc["choices"]))


def test_what_is_missing_is_said(run, questions, tmp_path, capsys, monkeypatch):
    from quadrivium import harness
    from quadrivium.tasks import documents

    with pytest.raises(ConfigError, match="--lm-eval-data"):
        documents.coda()
    with pytest.raises(DataError, match="no blimp"):
        documents.blimp(str(tmp_path))
    index = harness.manager((), None)
    monkeypatch.setattr(harness, "manager", lambda names, folder: index)  # to list the harness's own 10,000 takes seconds
    assert main(["eval", str(run), "--lm-eval", "world_sen"]) == 2
    assert "world_seen" in capsys.readouterr().err


def test_filters_of_a_measure_stay_apart():
    from quadrivium import harness

    keys = [
        "acc,none",
        "acc_stderr,none",
        "exact_match,strict-match",
        "exact_match_stderr,strict-match",
        "exact_match,flexible-extract",
    ]
    found = dict(zip(map(harness._measure, keys), (0.5, 0.1, 0.0, 0.01, 0.2), strict=True))
    assert list(found)[:2] == ["acc", "acc_stderr"] and len(found) == 5
    rows = [line.split() for line in harness.table({"t": found}).splitlines()[1:]]
    assert rows == [["t", "acc", "0.5000", "0.1000"], ["t", "exact_match", "(strict-match)", "0.0000", "0.0100"], ["t", "exact_match", "(flexible-extract)", "0.2000", "-"]]  # fmt: skip


def test_repeats_of_a_request_differ(run):
    from types import SimpleNamespace

    from quadrivium.checkpoint import Run
    from quadrivium.harness import language_model

    request = SimpleNamespace(args=("The", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}))
    model = language_model(Run(run))
    found = model.generate_until([request] * 4, disable_tqdm=True)
    assert len(set(found)) > 1 and found == model.generate_until([request] * 4, disable_tqdm=True)


@pytest.mark.parametrize("task", ["coda", "verbphysics", "blimp"])
def test_damaged_questions_are_said_and_absent_ones_told_apart(task, questions, tmp_path):
    from quadrivium.tasks import documents

    with pytest.raises(documents.Absent):
        documents.of(task, str(tmp_path))
    shutil.copytree(questions / task, tmp_path / task)
    file = next(f for f in sorted((tmp_path / task).rglob("*")) if f.is_file())
    file.write_bytes(b'\xff{"cut')
    for read in (lambda: documents.of(task, str(tmp_path)), lambda: getattr(documents, task)(str(tmp_path))):
        with pytest.raises(DataError, match=f"{task} are damaged") as caught:
            read()
        assert not isinstance(caught.value, documents.Absent)


def test_many_sentences_without_a_context_are_read_in_parts(monkeypatch):
    """They all go on from the end mark, and what is read together takes memory by its square."""
    rng, model = np.random.default_rng(0), Model(ModelConfig(vocab=60, layers=1, width=32, heads=2)).eval()
    pairs = [([0], rng.integers(1, 60, rng.integers(1, 6)).tolist()) for _ in range(40)]
    whole = harness.likelihoods(model, pairs)
    longest = []
    monkeypatch.setattr(harness, "AT_ONCE", 20)
    monkeypatch.setattr(
        harness,
        "continuations",
        lambda m, given, texts, *more: (
            longest.append(max(sum(map(len, t)) for t in texts)) or continuations(m, given, texts, *more)
        ),
    )
    parts = harness.likelihoods(model, pairs)
    assert max(longest) < 40 and [first for _, first in parts] == [first for _, first in whole]
    np.testing.assert_allclose([value for value, _ in parts], [value for value, _ in whole], rtol=1e-4)
