"""The page: its laws on tiny models, the wall around it, and, where there is a browser, all of it as a visitor sees it."""

import asyncio
import dataclasses
import json
import os
import re
import shlex
import shutil
import string
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quadrivium import cli
from quadrivium.checkpoint import Run
from quadrivium.cli import main
from quadrivium.errors import ConfigError, RunError
from quadrivium.evaluate import bits, token_bits
from quadrivium.export import export_full
from quadrivium.generate import Sampling
from quadrivium.guard import LOOPBACK, Guard, WebLimits
from quadrivium.library import draw
from quadrivium.play import Desk, Full, Overdue, Player, WebConfig, _given, application, colours, examples, pieces
from quadrivium.prepare import prepare
from quadrivium.text import TextTokenizer
from quadrivium.words import ENGLISH, JAPANESE

from .conftest import TINY

BYTES = TextTokenizer.train(["a"], 257)  # every byte a token
HOW = (0.7, 0.95, 1, 0, 12)  # temperature, top_p, number, seed, longest text


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that has learned nothing to speak of."""
    out = tmp_path_factory.mktemp("runs") / "run"
    shape = ["--layers", "1", "--width", "32", "--heads", "2", "--positions", "400", "--patch", "2"]
    assert main(["train", str(data), "--out", str(out), "--steps", "2", *shape]) == 0
    return Run(out)


def built(*page):
    """The application; the framework makes itself event loops, and closes none, where there is none."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return application(*page)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.fixture(scope="module")
def player(run):
    with closing(Player(run, WebLimits())) as made:
        yield made


# ----------------------------------------------------------------------------------------------------------- colours


def test_bits_of_tokens_add_up_and_depend_on_nothing_later(run):
    sampling = Sampling(max_ids=6)
    texts = draw(run, "text", "The red", [], 2, 0, sampling)
    clips = draw(run, "video", "a red ball", [], 2, 3, sampling)
    for rows in (texts, clips):
        costs = token_bits(run.model, rows)
        assert [c.sum() for c in costs] == pytest.approx(bits(run.model, rows), rel=1e-4)
    assert token_bits(run.model, clips)[1].shape == clips[1][-1].data.shape
    shorter = [(*row[:-1], dataclasses.replace(row[-1], data=row[-1].data[:2])) for row in clips]
    assert token_bits(run.model, shorter)[0] == pytest.approx(token_bits(run.model, clips)[0][:2], rel=1e-3, abs=1e-3)


@given(st.lists(st.integers(0, 256), max_size=30))
def test_pieces_are_the_text_and_their_bits_all_bits(ids):
    text = BYTES
    cost = np.arange(len(ids)) + 0.5
    found = pieces(text, np.array(ids, int), cost)
    assert sum(c for _, c in found) == pytest.approx(cost.sum())
    assert "".join(p for p, _ in found) == text.decode(ids)


@pytest.mark.parametrize("key", ["9" * 5000, "-1", "٣", "nothing"])
def test_keys_that_are_none_are_said(player, key):
    with pytest.raises(ConfigError):
        player._find(ENGLISH, key)


def test_half_a_letter_is_given_as_none():
    assert _given(ENGLISH, "a \ud800 ball") == "a ? ball"


@given(st.text(max_size=20))
def test_letters_are_never_cut(words):
    text = BYTES
    ids = text.encode(words)
    found = pieces(text, ids, np.ones(len(ids)))
    assert "".join(p for p, _ in found) == text.decode(ids)
    if "\ufffd" not in words:
        assert not any("\ufffd" in p for p, _ in found)


def test_colours_go_from_dark_to_bright():
    shown = colours(np.array([-1.0, 0.0, 0.3, 0.7, 1.0, 9.0])).astype(int)
    assert (shown[0] == shown[1]).all() and (shown[-1] == shown[-2]).all() and (np.diff(shown.sum(1)[1:-1]) > 0).all()


def test_both_languages_say_the_same_things():
    for name in (f.name for f in dataclasses.fields(ENGLISH)):
        english, japanese = getattr(ENGLISH, name), getattr(JAPANESE, name)
        fields = [{f for _, f, _, _ in string.Formatter().parse(t) if f} for t in (english, japanese)]
        assert fields[0] == fields[1], name
        assert name == "top_p" or (english != japanese and (name == "language" or re.search(r"[ぁ-んァ-ン一-龥]", japanese))), (
            name
        )


# ------------------------------------------------------------------------------------------------------------ routes


def last(found):
    *_, page = found
    return page


def test_every_route_shows_frames_maps_and_a_legend(player):
    seen = last(player.see(ENGLISH, "a red <b>ball</b>", 3, *HOW))
    assert seen.count('class="q-map"') == 3 and "q-legend" in seen and "bits per frame" in seen
    told = last(player.read(JAPANESE, "0", *HOW))
    assert "q-token" in told and JAPANESE.legend_text in told
    later = last(player.carry_on(ENGLISH, "0", "", 2, *HOW))
    assert later.count('class="q-map"') == 2 and ENGLISH.given in later
    first, page = player.answer(ENGLISH, "The <i>ball</i>", True, 2, *HOW)
    assert ENGLISH.imagined not in first and page.count('class="q-map"') == 2 and "&lt;i&gt;" in page and "<i>ball" not in page


def test_examples_are_held_out_and_none_where_the_data_is_gone(player, run):
    assert player.examples.captions and player.examples.clips and player.examples.beginnings
    gone = Run(run.folder)
    gone.config = gone.config | {"data": "/nowhere"}
    assert not examples(gone).captions


@pytest.mark.parametrize(
    "how",
    [(-1, 0.9, 1, 0, 9), (1, 0, 1, 0, 9), (1, 1, 9, 0, 9), (1, 1, 1, 0, 1e9), (float("nan"), 1, 1, 0, 9), (None, 1, 1, 0, 9)],
)
def test_values_beyond_the_sliders_are_refused(player, how):
    with pytest.raises(ConfigError, match="slider"):
        next(player.see(ENGLISH, "a ball", 1, *how))


def test_what_is_missing_is_said_in_a_sentence(player):
    for work, sentence in (
        (player.see(ENGLISH, " ", 1, *HOW), ENGLISH.no_text),
        (player.see(ENGLISH, "a" * 9999, 1, *HOW), "too long"),
        (player.read(JAPANESE, "", *HOW), JAPANESE.nothing_shown),
        (player.read(ENGLISH, "99", *HOW), ENGLISH.forgotten),
        (player.read(ENGLISH, "../../etc", *HOW), ENGLISH.forgotten),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            next(work)


def test_uploads_are_read_and_remembered(player, folder, tmp_path):
    temp = tmp_path / "temp"
    temp.mkdir()
    shutil.copy(folder / "clips" / "0.mp4", temp / "clip.mp4")
    ((key, page),) = player.look(ENGLISH, str(temp / "clip.mp4"), temp)
    (temp / "clip.mp4").unlink()
    assert "q-frame" in page and player.shown[key].frames.shape == (player.frames, 16, 16, 3)
    assert "q-token" in last(player.read(ENGLISH, key, *HOW))
    (temp / "no.png").write_bytes(b"<script>")
    with pytest.raises(ConfigError, match=r"no\.png cannot be used") as said:
        next(player.look(ENGLISH, str(temp / "no.png"), temp))
    assert str(tmp_path) not in str(said.value)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (temp / "link.png").symlink_to(secret)
    for path in (secret, temp / "link.png", temp / ".." / "secret.png", Path("/etc/passwd"), temp):
        with pytest.raises(ConfigError, match="forgotten"):
            next(player.look(ENGLISH, str(path), temp))


def test_an_export_plays_like_its_run(run, tmp_path):
    export_full(run, tmp_path / "whole")
    exported = Run(tmp_path / "whole")
    assert exported.step == run.step
    with closing(Player(run, WebLimits())) as one, closing(Player(exported, WebLimits())) as other:
        assert not other.examples.captions and one.frames == other.frames
        assert last(one.see(ENGLISH, "a red ball", 2, *HOW)) == last(other.see(ENGLISH, "a red ball", 2, *HOW))
        assert last(one.answer(ENGLISH, "a red ball", True, 2, *HOW)) == last(
            other.answer(ENGLISH, "a red ball", True, 2, *HOW)
        )
    assert main(["eval", str(tmp_path / "whole")]) == 2
    (tmp_path / "whole" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="--full"):
        Run(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_text_alone_only_answers(folder, tmp_path, monkeypatch):
    prepare([folder / "text"], tmp_path / "data", TINY, progress=False)
    shape = ["--layers", "1", "--width", "32", "--heads", "2", "--positions", "400"]
    assert main(["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--steps", "2", *shape]) == 0
    with closing(Player(Run(tmp_path / "run"), WebLimits())) as player:
        page = last(player.answer(ENGLISH, "The red ball", True, 1, *HOW))
        assert "q-token" in page and ENGLISH.imagined not in page and player.examples.beginnings
        pytest.importorskip("gradio", reason="the page is not looked at: playwright or gradio is missing")
        monkeypatch.setattr(os, "environ", os.environ.copy())
        assert built(player, WebConfig(), tmp_path)


# -------------------------------------------------------------------------------------------------------------- desk


def test_work_is_done_in_turn_and_left_work_ends():
    desk = Desk(WebLimits(waiting=2))
    ended = []

    def endless():
        try:
            while True:
                time.sleep(0.01)
                yield "more"
        finally:
            ended.append(True)

    async def visits():
        first = desk.serve(endless)
        await anext(first)
        second, third = desk.serve(lambda: iter(["two"])), desk.serve(lambda: iter(["three"]))
        assert (await anext(second))[1] == 1 and (await anext(third))[1] == 2
        with pytest.raises(Full):
            await anext(desk.serve(endless))
        await third.aclose()  # who waits and leaves gives up the place
        assert len(desk.line) == 2
        await first.aclose()  # who leaves ends the work
        news = [ticket.shown async for ticket, _ in second]
        assert news[-1] == "two" and ended == [True] and not desk.line

    asyncio.run(visits())


def test_threads_do_not_end_each_others_work():
    desk = Desk(WebLimits(), threads=2)

    def slow(name):
        for _ in range(30):
            time.sleep(0.02)
            yield name

    async def visits():
        one, other = desk.serve(lambda: slow("one")), desk.serve(lambda: slow("other"))
        assert (await anext(one))[1] == 0
        await anext(other)
        await other.aclose()
        return [ticket.shown async for ticket, _ in one][-1]

    assert asyncio.run(visits()) == "one"


def test_work_that_takes_too_long_ends(run):
    desk = Desk(WebLimits(seconds=1))
    run.model.watch = desk.check

    async def visit():
        def work():
            yield draw(run, "video", "a ball", [], 8, 4000, Sampling())

        async for _ in desk.serve(work):
            pass

    began = time.monotonic()
    with pytest.raises(Overdue):
        asyncio.run(visit())
    run.model.watch = None
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------------------------------------------------- guard

HOST = {"host": "127.0.0.1:7860"}
API = "/gradio_api"
OUTSIDE = [
    "/file=/etc/passwd", f"{API}/file=/etc/passwd", f"{API}/file=../../../../etc/passwd", f"{API}/file/etc/passwd",
    f"{API}/file=%2Fetc%2Fpasswd", f"{API}/file=http://127.0.0.1/secret", f"{API}/proxy=http://127.0.0.1/secret",
    "/assets/../../../../etc/passwd", "/assets/..%2f..%2fetc/passwd", "/assets/%2e%2e/%2e%2e/etc/passwd", "/assets//etc/passwd",
    "/assets/....//....//etc/passwd", "/static/../../config.json", "/static/..\\..\\secret", "/svelte/../config", "//etc/passwd",
    "/etc/passwd", "/../etc/passwd", "/%2e%2e/etc/passwd", "/ja/../../etc/passwd", "/assets/.hidden", f"{API}/stream/a/b/1/playlist.m3u8",
    f"{API}/custom_component/1/server/component/style.css", f"{API}/info", f"{API}/run/predict", f"{API}/call/see", f"{API}/heartbeat/a",
    f"{API}/deep_link", f"{API}/vibe-code/", f"{API}/upload_progress", "/monitoring", "/pwa_icon", "/manifest.json", "/robots.txt",
    "/docs", "/openapi.json", "/login", "/assets/a\x00b", f"{API}/dev/reload", f"{API}/component_server",
]  # fmt: skip


def call(guard, path, method="GET", headers=None, body=b"", query=b""):
    """Status and body of one request."""
    sent, parts = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    raw = path.encode("latin-1")
    asked = [(k.encode(), v.encode()) for k, v in (HOST | (headers or {})).items()]
    from urllib.parse import unquote

    scope = {"type": "http", "method": method, "path": unquote(path), "raw_path": raw, "query_string": query, "headers": asked}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(m.get("body", b"") for m in sent)


@pytest.fixture
def inner():
    """An application that says yes to everything, and what it was asked."""
    asked = []

    async def app(scope, receive, send):
        asked.append(scope)
        body = (await receive()).get("body", b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"ALLOW")]})
        await send({"type": "http.response.body", "body": b"yes" + body})

    app.asked = asked
    return app


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_but_the_page_exists(path, inner, tmp_path):
    guard = Guard(inner, tmp_path, WebLimits())
    assert [call(guard, path, method)[0] for method in ("GET", "HEAD", "POST", "PUT", "DELETE")] == [404] * 5
    assert not inner.asked


def test_the_page_exists_and_loads_nothing_from_elsewhere(inner, tmp_path):
    guard = Guard(inner, tmp_path, WebLimits(), frozenset({"127.0.0.1"}))
    for path in ("/", "/ja", "/config", "/assets/index-DphvyggB.js", "/static/js/a.min.js", f"{API}/queue/data"):
        status, headers, _ = call(guard, path, query=b"session_hash=abc&deep_link=x&page=y")
        assert status == 200 and headers[b"x-frame-options"] == b"DENY"
        assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert {s["query_string"] for s in inner.asked} == {b"", b"session_hash=abc"}
    assert call(guard, f"{API}/queue/data", query=b"session_hash=../x")[0] == 400


def test_other_names_and_other_pages_are_not_let_in(inner, tmp_path):
    guard = Guard(inner, tmp_path, WebLimits(), frozenset({"127.0.0.1", "localhost"}))
    assert call(guard, "/", headers={"host": "evil.example:7860"})[0] == 403
    for host in ("127.0.0.1@evil.example", "[::1", "[", "", ":7860", "127.0.0.1:x", "a" * 999, "localhost, evil.example"):
        assert call(guard, "/", headers={"host": host})[0] == 403, host
    assert call(Guard(inner, tmp_path, WebLimits(), LOOPBACK), "/", headers={"host": "[::1]:7860"})[0] == 200
    join = {"method": "POST", "body": b'{"session_hash": "a"}'}
    assert call(guard, f"{API}/queue/join", headers={"origin": "http://evil.example"}, **join)[0] == 403
    assert call(guard, f"{API}/queue/join", headers={"origin": "null"}, **join)[0] == 403
    assert call(guard, f"{API}/queue/join", headers={"origin": "http://127.0.0.1:7860"}, **join)[0] == 200
    assert call(Guard(inner, tmp_path, WebLimits()), "/", headers={"host": "lab.example"})[0] == 200


def test_the_password_is_asked_for_everywhere(inner, tmp_path, monkeypatch):
    async def at_once(_):
        pass

    monkeypatch.setattr("quadrivium.guard.asyncio.sleep", at_once)
    guard = Guard(inner, tmp_path, WebLimits(), password="秘密")
    import base64

    def basic(text):
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    for path in ("/", "/assets/a.js", f"{API}/queue/data"):
        for wrong in ({}, basic("me:no"), basic("秘密"), {"authorization": "Basic ???"}, {"authorization": "Bearer x"}):
            status, headers, _ = call(guard, path, headers=wrong)
            assert status == 401 and b"www-authenticate" in headers
        assert call(guard, path, headers=basic("anyone:秘密"))[0] == 200


def test_bodies_uploads_and_visitors_have_limits(inner, tmp_path):
    guard = Guard(inner, tmp_path, WebLimits(upload_bytes=50_000, room=150_000, connections=3))
    assert call(guard, f"{API}/upload", "POST", body=b"x" * 40_000)[0] == 200
    assert call(guard, f"{API}/upload", "POST", body=b"x" * 70_000)[0] == 413
    assert call(guard, f"{API}/upload", "POST", headers={"content-length": "99999999"})[0] == 413
    for length in ("-1", "x", "", "9" * 5000):
        assert call(guard, f"{API}/upload", "POST", headers={"content-length": length})[0] == 413
    assert call(guard, f"{API}/queue/join", "POST", body=b'{"session_hash": "a"}' + b" " * 300_000)[0] == 413
    assert call(guard, f"{API}/queue/join", "POST", body=b"[]")[0] == 400
    for i in range(2):
        (tmp_path / f"f{i}").mkdir()
        (tmp_path / f"f{i}" / "x.png").write_bytes(b"x")
    assert call(guard, f"{API}/upload", "POST", body=b"x")[0] == 503
    guard.sweep(-1)
    assert not list(tmp_path.iterdir()) and call(guard, f"{API}/upload", "POST", body=b"x")[0] == 200
    guard.under_way = 3
    status, headers, body = call(guard, "/")
    assert status == 503 and b"retry-after" in headers and b"please" in body


def test_requests_that_take_too_long_are_ended(tmp_path):
    async def app(scope, receive, send):
        await asyncio.sleep(60)

    guard = Guard(app, tmp_path, WebLimits(seconds=1))
    assert call(guard, f"{API}/upload", "POST", body=b"x")[0] == 408 and guard.uploading == guard.under_way == 0


def test_no_file_is_asked_for_but_one_that_was_uploaded(inner, tmp_path):
    temp = tmp_path / "temp"
    (temp / "hash").mkdir(parents=True)
    (temp / "hash" / "good.png").write_bytes(b"x")
    (tmp_path / "secret").write_text("x")
    (temp / "hash" / "link.png").symlink_to(tmp_path / "secret")
    (temp / "linked").symlink_to(tmp_path)
    guard = Guard(inner, temp, WebLimits())

    def join(**file):
        asked = {"data": [[{"meta": {}, **file}]], "session_hash": "a"}
        return call(guard, f"{API}/queue/join", "POST", body=json.dumps(asked).encode())

    status, _, body = join(path=str(temp / "hash" / "good.png"), url="http://127.0.0.1/x")
    assert status == 200 and b"good.png" in body and b"http" not in body
    wrong = [
        tmp_path / "secret",
        temp / "hash" / "link.png",
        temp / "linked" / "secret",
        temp / "hash" / ".." / ".." / "secret",
        temp,
    ]
    for path in [*map(str, wrong), "http://127.0.0.1/x.png", "/etc/passwd", "", "good.png", "hash/good.png", 3, None, ["x"]]:
        assert join(path=path)[0] == 400, path
    for body in (b"[" * 100_000, b"{", b"3", b'{"session_hash": 3}', b'{"session_hash": "a b"}', b"\xff"):
        assert call(guard, f"{API}/queue/join", "POST", body=body)[0] == 400


def test_visitors_who_never_listen_are_forgotten(inner, tmp_path):
    guard = Guard(inner, tmp_path, WebLimits())
    call(guard, f"{API}/queue/join", "POST", body=b'{"data": [], "session_hash": "abc"}')
    assert guard.silent(60) == [] and guard.silent(-1) == ["abc"] and guard.silent(-1) == []


@given(st.text("abc/.%=?_\\\x00é", max_size=30), st.binary(max_size=40), st.binary(max_size=30))
def test_whatever_is_asked_is_answered(path, body, header):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, Path("/nowhere"), WebLimits(), LOOPBACK, "word")
    for where in ("/" + path, f"{API}/queue/join", f"{API}/queue/data"):
        for headers in (
            {"authorization": "Basic OndvcmQ=", "host": "localhost"},
            dict.fromkeys(("host", "origin"), header.decode("latin-1")),
        ):
            assert call(guard, where, "POST" if body else "GET", headers, body, header)[0] in (200, 400, 401, 403, 404, 413)


# ------------------------------------------------------------------------------------------------------------- a visit


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="the page is not looked at: playwright or gradio is missing")
    pytest.importorskip("gradio", reason="the page is not looked at: playwright or gradio is missing")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the page is not looked at: there is no Chromium here")
    with api.sync_playwright() as found:
        yield found.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def served(run, tmp_path_factory, browser):
    """A page that is served: where, and its player."""
    import uvicorn

    player, folder = Player(run, WebLimits()), tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        guard = built(player, WebConfig(limits=WebLimits(upload_bytes=300_000)), folder)
        server = uvicorn.Server(uvicorn.Config(guard, port=0, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", player
        server.should_exit = True
        thread.join()


@contextmanager
def visit(browser, address, path="/", **how):
    """A tab; nothing that it asks for is elsewhere, and nothing that it asks for is missing."""
    context = browser.new_context(**how)
    page = context.new_page()
    asked, missing = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("response", lambda r: missing.append(r.url) if r.status >= 400 else None)
    page.goto(address + path)
    page.locator("textarea:visible").first.wait_for()
    page.missing = missing
    yield page
    context.close()
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)


def done(page, words):
    page.locator(".q-status:visible", has_text=words.done.partition("{")[0]).first.wait_for()


@pytest.mark.filterwarnings("ignore")
def test_a_visit(browser, served, folder, tmp_path):
    with visit(browser, served[0]) as page:
        page.get_by_label(ENGLISH.description).fill("a red ball")
        page.get_by_role("button", name=ENGLISH.go_see, exact=True).click()
        done(page, ENGLISH)
        assert page.locator("img.q-map:visible").count() == 2 * 4  # two samples of four frames

        page.get_by_role("tab", name=ENGLISH.read).click()
        wrong = tmp_path / "notes.txt"
        wrong.write_text("no picture at all")
        page.locator("input[type=file]:not([disabled])").first.set_input_files(wrong)
        alert = page.locator(".q-alert:visible")
        alert.wait_for()
        assert "notes.txt cannot be used" in alert.inner_text() and "Traceback" not in page.content()
        page.locator("input[type=file]:not([disabled])").first.set_input_files(folder / "clips" / "0.mp4")
        page.locator("h4:visible", has_text=ENGLISH.shown).wait_for()
        page.get_by_role("button", name=ENGLISH.go_read, exact=True).click()
        done(page, ENGLISH)
        assert page.locator("span.q-token:visible").count() > 0

        page.get_by_role("tab", name=ENGLISH.carry_on).click()
        page.locator("input[type=radio]:visible").first.check()
        page.locator("input[type=file]:not([disabled])").nth(1).set_input_files(folder / "pictures" / "0.png")
        page.locator("input[type=radio]:visible:checked").wait_for(state="detached")
        page.locator("input[type=radio]:visible").first.check()
        page.get_by_role("button", name=ENGLISH.go_carry_on, exact=True).click()
        done(page, ENGLISH)
        assert page.locator("img.q-map:visible").count() == 2 * 3

        page.get_by_role("tab", name=ENGLISH.answer).click()
        page.get_by_label(ENGLISH.beginning).fill("The red ball")
        page.get_by_role("button", name=ENGLISH.go_answer, exact=True).click()
        done(page, ENGLISH)
        assert page.locator("h4:visible", has_text=ENGLISH.imagined).count() == 1
        assert page.locator(".q-legend:visible").count() == 1 and not page.missing


@pytest.mark.filterwarnings("ignore")
def test_a_visit_in_japanese_on_a_phone_in_the_dark(browser, served):
    how = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "locale": "ja-JP", "has_touch": True}
    with visit(browser, served[0], "/ja", **how) as page:
        page.get_by_label(JAPANESE.description).fill("赤い玉")
        page.get_by_role("button", name=JAPANESE.go_see, exact=True).tap()
        done(page, JAPANESE)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.documentElement.lang") == "ja"
        tabs = [
            page.get_by_role("tab", name=t, exact=True)
            for t in (JAPANESE.see, JAPANESE.read, JAPANESE.carry_on, JAPANESE.answer)
        ]
        assert all(t.is_visible() for t in tabs)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(int(x) for x in re.findall(r"\d+", ground)[:3]) < 150


def soon(true):
    """Whether something becomes true within five seconds."""
    return any(true() or time.sleep(0.05) for _ in range(100))


@pytest.mark.filterwarnings("ignore")
def test_who_stops_or_closes_the_page_frees_the_work(browser, served):
    address, player = served
    with visit(browser, address) as page:
        page.get_by_label(ENGLISH.description).fill("a red ball")
        begun, went_on = threading.Event(), threading.Event()

        def slowly(*_):
            begun.set()
            while not player.desk.line[0].left:
                time.sleep(0.01)
            went_on.set()

        hook = player.run.model.register_forward_pre_hook(slowly, prepend=True)
        page.get_by_role("button", name=ENGLISH.go_see, exact=True).click()
        assert begun.wait(10)
        page.get_by_role("button", name=ENGLISH.stop, exact=True).locator("visible=true").click()
        assert went_on.wait(10) and soon(lambda: not player.desk.line)
        begun.clear(), went_on.clear()
        page.get_by_role("button", name=ENGLISH.go_see, exact=True).click()
        assert begun.wait(10)
    assert went_on.wait(10)
    hook.remove()
    assert soon(lambda: not player.desk.line)


# ----------------------------------------------------------------------------------------------------------- commands


def test_without_gradio_there_is_a_sentence(run, player, monkeypatch, tmp_path):
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "gradio":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(RunError, match=r"\[play\]"):
        application(player, WebConfig(), tmp_path)


def test_the_commands_of_the_page_on_the_page_are_true(monkeypatch):
    """Every `quadrivium play` in docs/play.md is one that the command line takes."""
    served = []
    monkeypatch.setattr(cli, "_run", lambda folder, device, tuned: folder)
    monkeypatch.setattr("quadrivium.play.serve", lambda run, config: served.append((str(run), config)))
    page = (Path(__file__).parent.parent / "docs" / "play.md").read_text(encoding="utf-8")
    lines = [x.split("  #")[0] for x in page.splitlines() if x.startswith("quadrivium play")]
    assert lines and all(main(shlex.split(line)[1:]) == 0 for line in lines)
    assert {run for run, _ in served} == {"runs/mine", "hf/mine-whole"} and any(c.password for _, c in served)
    assert main(["play", "runs/mine", "--port", "99999"]) == 2
