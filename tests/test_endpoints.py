"""What text knows: kinds of words, questions and the baselines beside them."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadrivium import endpoints
from quadrivium.cli import main
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
from quadrivium.endpoints import EndpointConfig, Kinds, Trigram, by_word, credits, questions, stratum, summary, times
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.evaluate import bits
from quadrivium.model import Model, ModelConfig, cells
from quadrivium.report import render
from quadrivium.text import TextTokenizer
from quadrivium.transfer import TransferConfig, run_transfer, table

COLOURS = endpoints.documents.COLOURS


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Questions about things whose colours and sizes the text of `data` may tell."""
    root = tmp_path_factory.mktemp("asked")
    (root / "coda").mkdir()
    things = [("ball", "red"), ("leaf", "green"), ("crow", "black"), ("rose", "red"), ("mouse", "gray")]
    with open(root / "coda" / "objects.jsonl", "w") as objects, open(root / "coda" / "annotations.jsonl", "w") as votes:
        for name, colour in things:
            row = {"class_id": name, "object_s": name, "areis_s": "is", "object_pl": f"{name}s", "areis_pl": "are"}
            objects.write(json.dumps(row) + "\n")
            votes.write(json.dumps({"class_id": name, "included": True, **{c: int(c == colour) for c in COLOURS}}) + "\n")
        row = {"class_id": "hair", "object_s": None, "areis_s": None, "object_pl": "human hair", "areis_pl": "is"}
        objects.write(json.dumps(row) + "\n")
        votes.write(json.dumps({"class_id": "hair", "included": True, **{c: int(c == "black") for c in COLOURS}}) + "\n")
    folder = root / "verbphysics" / "objects" / "train-5"
    folder.mkdir(parents=True)
    lines = [
        "x,obj1,obj2,size-maj,weight-maj,strength-maj,rigidness-maj,speed-maj",
        "0,ant,house,-1,-1,-1,-1,1",
        "1,egg_cup,egg,1,1,1,1,1",
    ]
    (folder / "test.csv").write_text("\n".join(lines) + "\n")
    return root


def test_words_are_sorted_by_what_captions_hold(data):
    """By hand, on a sentence: ids of a word have its kind, the rest has none; Japanese goes by ids."""
    prepared = Dataset(data)
    tokenizer = TextTokenizer.load(data / "tokenizers" / "text")
    kinds = Kinds(tokenizer, prepared, {"red": 4.5, "notion": 1.5, "wide": 3.0})
    assert {"red", "ball"} <= kinds.words
    said = "A Red ball, zyxt notion wide 7!"
    ids = tokenizer.encode(said)
    found, at, got = kinds.of(ids), 0, {}
    for size, names in zip(tokenizer.id_bytes[ids].tolist(), found, strict=True):
        got.setdefault(names, []).append(said[at : at + size])
        at += size
    assert "".join(got[("came with a frame", "concrete")]).strip() == "Red"
    assert "zyxt" in "".join(got[("never came with a frame",)]) and "ball" in "".join(got[("came with a frame",)])
    assert "".join(got[("never came with a frame", "abstract")]).strip() == "notion"
    assert "7" in "".join(got[()]) and "!" in "".join(got[()])
    known = tokenizer.encode("赤い")
    kinds.ids |= set(known.tolist())
    assert set(kinds.of(known)) == {("came with a frame",)}
    kinds.ids -= set(known.tolist())
    assert set(kinds.of(known)) == {("never came with a frame",)}


def test_words_of_other_scripts_are_whole():
    words = endpoints._letters()
    assert words.findall("हिन्दी café don't x2") == ["हिन्दी", "café", "don't", "x"]
    assert endpoints._UNSPACED.search("ภาษาไทย") and not endpoints._UNSPACED.search("Привет")


def test_held_out_items_teach_no_word_and_no_count(data):
    """What only held-out captions and documents say is not among what came with a frame, nor counted."""
    prepared, tokenizer = Dataset(data), TextTokenizer.load(data / "tokenizers" / "text")
    before, said = Kinds(tokenizer, prepared), [t.tobytes() for t in endpoints.read_texts(prepared, 1.0, 0)]
    for source in prepared.sources:
        source.held = np.ones_like(source.held)
    after = Kinds(tokenizer, prepared)
    assert before.words and not after.words and not after.ids
    assert said and not list(endpoints.read_texts(prepared, 1.0, 0))


def test_of_much_text_a_sample_is_counted(data):
    prepared = Dataset(data)
    whole = [len(t) for t in endpoints.read_texts(prepared, 1.0, 0)]
    some = [len(t) for t in endpoints.read_texts(prepared, 1.0, 0, most=sum(whole) // 2)]
    assert some == whole[: len(some)] and sum(some[:-1]) < sum(whole) // 2 <= sum(some)


def test_bits_of_all_kinds_add_up_to_those_of_the_text(data):
    prepared, tokenizer = Dataset(data), TextTokenizer.load(data / "tokenizers" / "text")
    rows, columns = prepared.manifest["grid"]
    shape = cells(ModelConfig(vocab=tokenizer.size, layers=1, width=32, heads=2), rows, columns, 64)
    model = Model(shape).eval()
    mixture = Mixture(prepared, MixtureConfig(routes=("t2t",), context=24), tokenizer.end, 0, shape.patch)
    found = by_word(model, mixture, Kinds(tokenizer, prepared), 20)
    sequences = [mixture.sequence(h, u) for h in mixture.held.values() for u in mixture.held_units(h, 20)]
    assert found["all"][0] == pytest.approx(bits(model, sequences).sum(), rel=1e-5)
    assert found["all"][1] == sum(tokenizer.id_bytes[q[0].data[1:]].sum() for q in sequences)
    parts = [found.get(k, [0, 0]) for k in ("came with a frame", "never came with a frame", "other")]
    assert np.sum(parts, axis=0) == pytest.approx(found["all"], rel=1e-9) and all(b for b, _ in parts)


@pytest.mark.parametrize("lines, rows", [
    (["Word\tBigram\tConc.M", "sand\t0\t5.0", "Hope\t0\t1.25"], {"sand": 5.0, "hope": 1.25}),
    (["sand,5.0", "", "hope,1.25"], {"sand": 5.0, "hope": 1.25}),
])  # fmt: skip
def test_ratings_are_read_from_either_table(lines, rows, tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(lines))
    assert endpoints.ratings(path) == rows


@pytest.mark.parametrize("words", ["", "word,rating\nsand\n", "sand,9\n", "sand,soft\n"])
def test_a_table_that_rates_nothing_is_refused(words, tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text(words)
    with pytest.raises(DataError, match=r"ratings\.csv.*Conc\.M"):
        endpoints.ratings(path)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=12), max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=2),
)
def test_a_trigram_is_a_distribution_and_counts_as_one_by_hand(texts, before):
    model, vocab = Trigram(map(np.array, texts), 6), 6
    chances = [math.exp(-model.nats(np.array([*before, x]))[-1]) for x in range(vocab)]
    assert sum(chances) == pytest.approx(1)

    def by_hand(context, x):
        follow = Counter(
            t[i + len(context)] for t in texts for i in range(len(t) - len(context)) if t[i : i + len(context)] == list(context)
        )
        lower = by_hand(context[1:], x) if context else 1 / vocab
        total, different = sum(follow.values()), len(follow)
        return (follow[x] + different * lower) / (total + different) if total else lower

    for x in range(vocab):
        assert chances[x] == pytest.approx(by_hand(tuple(before[-2:]), x))


def test_facts_are_counted_in_sentences():
    docs = [
        {"fact": [["ball", "balls"], ["red"]]},
        {"fact": [["egg cup", "egg cups"], ["egg"]]},
        {"fact": [["mouse"], ["gray", "grey"]]},
    ]
    said = ["The ball is red. A ball is round! The red one is no cube.", "Balls: red, all of them", "An egg\ncup holds an egg.\n\nThe egg cups broke",
            "A grey mouse. A mouse, gray as the other gray mouse."]  # fmt: skip
    # A sentence that says "egg cup" says "egg": both count. A line that ends is no sentence that does.
    assert times(docs, said) == [2, 2, 2]
    assert times([{"fact": [["band-aid"], ["brown"]]}], ["A Band-Aid, brown."]) == [1]
    asked = [{"fact": [["spider"], [legs]]} for legs in ("8", "8 legs", "legs", "18")] + [
        {"fact": [["りんご"], ["赤い", "紅い"]]}
    ]
    said = [
        "A spider has 8 legs. A spider has hairy legs. An ant has 18.",
        "りんごは赤い。空は赤い。りんごは青い。",
        "りんごが紅い",
    ]
    assert times(asked, said) == [1, 1, 2, 0, 2]
    assert [stratum(n) for n in (0, 1, 9, 10, 500)] == ["never", *["1 to 9 times"] * 2, *["10 times or more"] * 2]


def test_who_knows_is_right_and_a_tie_is_chance(asked):
    docs = questions(EndpointConfig(folder=asked))
    assert set(docs) == {"coda", "verbphysics"} and len(docs["coda"]) == 6
    assert not any("None" in c for d in docs["coda"] for c in d["choices"])
    assert {d["wordings"] for d in docs["coda"]} == {6, 5}  # hair is never one
    colour = {d["name"]: d["answered"] for d in docs["coda"]}

    def knows(pairs):
        answers = iter(pairs)
        return [
            float(colour[d["name"]] in next(answers)[1].replace(".", "").split()) for d in docs["coda"] for _ in d["choices"]
        ]

    assert credits(docs["coda"], knows).tolist() == [1] * 6
    assert credits(docs["coda"], lambda pairs: [0.0] * len(pairs)) == pytest.approx([1 / 11] * 6)
    assert endpoints._commonest(docs["coda"]) == pytest.approx(1 / 3)  # red, or black
    assert endpoints._one_colour(docs["coda"], Counter(grey=3, red=2)) == pytest.approx(1 / 6)
    few = questions(EndpointConfig(folder=asked, tasks=("coda",), limit=2))
    assert few["coda"] == docs["coda"][:2]
    with pytest.raises(DataError, match="blimp"):
        questions(EndpointConfig(folder=asked, tasks=("blimp",)))
    with pytest.raises(ConfigError):
        EndpointConfig(limit=0)
    with pytest.raises(ConfigError, match="no task"):
        EndpointConfig(tasks=())


@pytest.mark.parametrize("line, why", [
    ('{"choices": ["a", "b"]}', "answer"), ('{"choices": ["a", "b"], "answer": 2}', "among 2 choices, counted from 0"), ('{"choices": ["a"], "answer": 0}', "at least two"),
    ('{"choices": ["a", "a"], "answer": 0}', "different"), ('{"choices": ["a", " "], "answer": 0}', "empty"), ("[]", "line 2.*not a list of them"),
    ('{"choices": "ab", "answer": 0}', "lists"), ('{"choices": ["a", null], "answer": 0}', "no text"), ('{"choices": ["a", "b"], "answer": 0, "fact": "lemon"}', "lists"),
     ("{", "line 2"),
    ('{"choices": ["a", "b"], "answer": true}', "counted from 0, and not True"), ('{"choices": ["a", "b"], "answer": 0, "fact": [[]]}', "empty"),
    ('{"choices": ["a", "b"], "answer": 0}', "line 2 does not name its fact"),
    ('{"choices": ["a", "a "], "answer": 0}', "different"), ('{"question": "Which?", "choices": ["a", "b"], "answer": 0}', "only choices, answer and fact"),
    ('{"choices": ["A lemon is yellow.", "A lemon is red."], "answer": 0, "fact": ["lemon", "yellow"]}', "line 2 asks what line 1 does"),
])  # fmt: skip
def test_a_question_that_is_none_is_said_with_its_line(line, why, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"choices": ["A lemon is red.", "A lemon is yellow."], "answer": 1, "fact": ["lemon", ["yellow", "gold"]]}\n' + line
    )
    with pytest.raises(DataError, match=rf"mine\.jsonl.*{why}"):
        questions(EndpointConfig(questions=path))


def test_a_file_without_a_question_is_named(tmp_path):
    (tmp_path / "mine.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"mine\.jsonl: no question here"):
        questions(EndpointConfig(questions=tmp_path / "mine.jsonl"))


def test_questions_of_ones_own_are_asked_as_they_stand(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"choices": [f"{thing} is {c}." for c in ("red", "yellow", "blue")], "answer": i % 3, "fact": [thing, "red"]}
        for i, thing in enumerate("abcdef")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    docs = questions(EndpointConfig(questions=path, limit=2))["own"]  # all, whatever the limit of the others
    right = {row["choices"][row["answer"]] for row in rows}
    assert credits(docs, lambda pairs: [float(choice in right) for _, choice in pairs]).tolist() == [1] * 6
    assert times(docs, ["a is red. b is red. b, red"]) == [{"a": 1, "b": 2}.get(d["choices"][0][0], 0) for d in docs]
    declared = EndpointConfig(questions=path).declared()
    path.write_text("\n\n".join(map(json.dumps, rows)))
    assert EndpointConfig(questions=path).declared() == declared  # blank lines ask nothing
    path.write_text("\n".join(map(json.dumps, rows[1:])))
    assert declared["questions"] and EndpointConfig(questions=path).declared()["questions"] != declared["questions"]


def test_a_grid_asks_and_its_report_shows(data, asked, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"choices": ["The ball is red.", "The ball is blue."], "answer": 1}\n')
    small = TransferConfig(
        model=ModelConfig(layers=1, width=32, heads=2), mixture=MixtureConfig(positions=200, context=32), limit=6,
        train=replace(TransferConfig().train, steps=2), endpoints=EndpointConfig(folder=asked, questions=mine, limit=4),
    )  # fmt: skip
    found = run_transfer(
        [data], tmp_path / "grid", small, seeds=(0, 1), arms=("text", "captions", "four"), workers=1, progress=False
    )
    tasks, words = found["endpoints"]["tasks"], found["endpoints"]["words"]
    assert (
        set(tasks) == {"own", "coda", "verbphysics"}
        and tasks["own"]["chance"] == 0.5
        and tasks["coda"]["chance"] == pytest.approx(1 / 11)
    )
    assert set(tasks["coda"]["baselines"]) == {"commonest answer", "colour of the text", "trigram", "before the first step"}
    assert tasks["coda"]["gained"]["captions"]["n"] == 2 and set(tasks["coda"]["arms"]) == {"text", "captions", "four"}
    assert sum(s["n"] for s in tasks["coda"]["strata"].values()) == 4
    assert words["all"]["saved"]["text"]["n"] == 2 and "came with a frame" in words
    costs = [
        json.loads((tmp_path / "grid" / "cells" / f"{a}-seed-0.json").read_text())["endpoints"]["words"]["all"]
        for a in ("text", "four")
    ]
    assert all(bits > 0 and size == costs[0][1] for bits, size in costs)
    page = render(json.loads((tmp_path / "grid" / "results.json").read_text()))
    assert "Held-out text by kind of word" in page and "What text knows: coda" in page and "before the first step" in page
    assert table(found) and set(tasks["verbphysics"]["baselines"]) == {"trigram", "before the first step"}
    file = asked / "verbphysics" / "objects" / "train-5" / "test.csv"
    lines = file.read_text().splitlines()
    file.write_text("x,obj1,obj2,size-maj\n0,ant,house,-1\n")
    with pytest.raises(DataError, match=r"verbphysics.*weight-maj"):
        endpoints.documents.of("verbphysics", str(asked))
    file.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(RunError, match=r"other endpoints\.folder than before"):  # other questions under the same name
        run_transfer([data], tmp_path / "grid", small, seeds=(0, 1), arms=("text",), workers=1, progress=False)
    assert summary({"four": {0: {"arm": "four"}}}) == {}  # cells from before there were endpoints


def test_a_folder_without_questions_is_said_before_training(data, tmp_path, capsys):
    words = ["transfer", str(data), "--out", str(tmp_path / "grid"), "--endpoints.folder", str(tmp_path)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "coda" in said and not (tmp_path / "grid" / "cells").exists()
