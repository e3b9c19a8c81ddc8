"""What `docs/reliability.md` claims of the page, done again: attempts to read files through it, then visitors for minutes.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/page.py [--minutes 10] [--clients 50] [RUN]

Without a run, a tiny one that has learned nothing is made. The page is `quadrivium play` in a process of its own, asked only
over 127.0.0.1. Prints one line of JSON for each claim.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from quadrivium.prepare import prepare
from quadrivium.words import ENGLISH
from tests.conftest import COLOURS, TINY, ball, write_folder

API = "/gradio_api"
SECRET = "the-secret-of-this-machine"
ROUTES = (ENGLISH.go_see, ENGLISH.go_read, ENGLISH.go_carry_on, ENGLISH.go_answer)


def say(**found: Any) -> None:
    print(json.dumps(found, ensure_ascii=False), flush=True)


def tiny(root: Path) -> Path:
    """A run that has learned nothing to speak of."""
    data = prepare([write_folder(root / "mine")], root / "data", TINY, progress=False).folder
    shape = ["--layers", "1", "--width", "32", "--heads", "2", "--positions", "400", "--patch", "2"]
    command = [sys.executable, "-m", "quadrivium", "train", str(data), "--out", str(root / "run"), "--steps", "2", *shape]
    subprocess.run(command, check=True, capture_output=True)
    return root / "run"


class Page:
    """`quadrivium play` in a process of its own, and what can be seen of it from outside."""

    def __init__(self, run: Path, root: Path, *more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.temp = root / "temp"
        self.temp.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "quadrivium", "play", str(run), "--port", str(self.port), *more]
        self.errors = open(root / "errors.txt", "w+")  # noqa: SIM115
        environ = {**os.environ, "TMPDIR": str(self.temp)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environ)
        assert self.process.stdout is not None
        while "http://" not in (line := self.process.stdout.readline()):
            assert line, "the page did not start"
        self.uploads = next(self.temp.glob("quadrivium-play-*"))
        config = json.loads(self.ask("GET", "/config")[1])
        kinds = {c["id"]: (c["type"], c["props"].get("value")) for c in config["components"]}
        self.events: dict[str, dict] = {}
        for event in config["dependencies"]:
            for of, what in event["targets"]:
                kind, value = kinds.get(of, ("", ""))
                if kind == "button" and what == "click" and len(event["outputs"]) == 2:
                    self.events.setdefault(value, event)
                if kind == "uploadbutton" and what == "upload":
                    self.events.setdefault("upload", event)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def raw(self, line: str) -> tuple[int, str]:
        """A request whose address goes out letter for letter."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as wire:
            wire.sendall(f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n".encode("latin-1"))
            answer = b"".join(iter(lambda: wire.recv(65536), b""))
        return int(answer.split(b" ", 2)[1]), answer.decode("utf-8", "replace")

    def upload(self, name: str, data: bytes) -> tuple[int, str]:
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + data + f"\r\n--{mark}--\r\n".encode()
        return self.ask("POST", f"{API}/upload", body, {"content-type": f"multipart/form-data; boundary={mark}"})

    def join(self, event: str, values: list[Any]) -> tuple[int, str]:
        """Ask for something; the session in which the answer is to be heard, or why not."""
        session = uuid.uuid4().hex[:12]
        asked = {"data": values, "fn_index": self.events[event]["id"], "session_hash": session, "event_data": None}
        status, answer = self.ask("POST", f"{API}/queue/join", json.dumps(asked).encode(), {"content-type": "application/json"})
        return status, session if status == 200 else answer

    def hear(self, session: str, until: float | None = None) -> list[dict]:
        """What is said in a session, up to its end, or for so many seconds only."""
        connection, heard, began = self.connect(), [], time.monotonic()
        try:
            connection.request("GET", f"{API}/queue/data?session_hash={session}")
            answer = connection.getresponse()
            for line in answer:
                if line.startswith(b"data: "):
                    heard.append(json.loads(line[6:]))
                    if heard[-1]["msg"] in ("close_stream", "unexpected_error"):
                        break
                if until is not None and time.monotonic() - began > until:
                    break
        finally:
            connection.close()
        return heard

    def memory(self) -> dict[str, int]:
        """Resident megabytes, threads and open files of the page's own process, and of its decoders the megabytes."""
        folder = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        decoders = 0
        for task in (folder / "task").iterdir():
            with contextlib.suppress(OSError):  # a thread or a decoder that has just ended
                for child in (task / "children").read_text().split():
                    found = re.search(r"VmRSS:\s+(\d+)", (Path("/proc") / child / "status").read_text())
                    decoders += int(found[1]) if found else 0
        return {
            "megabytes": int(status["VmRSS"].split()[0]) // 1024,
            "threads": int(status["Threads"]),
            "files": len(list((folder / "fd").iterdir())),
            "decoders_megabytes": decoders // 1024,
        }

    def end(self) -> int:
        self.process.terminate()
        self.process.wait(30)
        self.errors.seek(0)
        return self.errors.read().count("Traceback")


def addresses(secret: Path, uploads: Path) -> list[str]:
    """Ways to ask for a file: by the framework's routes, out of its folders, encoded, doubled, through links."""
    up = "../" * 12
    escaped = up.replace("../", "%2e%2e%2f")
    plain = [f"/file={secret}", f"/file/{secret}", f"{API}/file={secret}", f"{API}/file/{secret}", f"{API}/file=//{secret}"]
    named = [
        f"{API}/file=file://{secret}",
        f"{API}/file=http://127.0.0.1:1/{secret}",
        f"{API}/proxy=http://127.0.0.1:1{secret}",
    ]
    inside = [
        f"{API}/file={uploads}/link/link.png",
        f"{API}/file={uploads}/link/inside.png",
        f"{API}/file={uploads}/{up}{secret}",
    ]
    climbing = [f"{API}/file={up}{secret}", f"{API}/file={escaped}{secret}", f"{API}/file={str(secret).replace('/', '%2F')}"]
    pages = [f"{p}/{u}{str(secret)[1:]}" for p in ("/assets", "/static", "/svelte", "/ja", f"{API}", "") for u in (up, escaped)]
    doubled = [
        f"/assets/{'%252e%252e%252f' * 12}{str(secret)[1:]}",
        f"/assets/{'....//' * 12}{secret}",
        f"/static/{'..%5c' * 12}{secret}",
    ]
    links = [f"/assets/{uploads}/link/link.png", f"/static/{up}{uploads}/link/link.png", f"/{up}{uploads}/link/link.png"]
    odd = [
        str(secret),
        f"//{secret}",
        f"/assets//{secret}",
        f"/assets/{secret}%00.js",
        f"/theme.css?{secret}",
        f"/?file={secret}",
    ]
    tools = [
        f"{API}/custom_component/1/server/component/{up}{secret}",
        f"{API}/stream/a/b/1/{up}{secret}",
        f"{API}/component_server?path={secret}",
        f"{API}/deep_link?session_hash=x",
        f"/?deep_link={up}{secret}",
        f"{API}/upload_progress?upload_id={up}{secret}",
        f"{API}/queue/data?session_hash={up}{secret}",
        f"{API}/vibe-code/",
        f"{API}/runs",
        f"{API}/info",
        "/monitoring",
        "/pwa_icon/64",
        "/manifest.json",
    ]
    return plain + named + inside + climbing + pages + doubled + links + odd + tools


def attempts(page: Page, root: Path) -> None:
    """Every way to read a file that was thought of; none may give the secret away."""
    secret = root / "secret.png"
    secret.write_text(SECRET)
    (page.uploads / "link").mkdir()
    (page.uploads / "link" / "link.png").symlink_to(secret)
    (page.uploads / "link" / "inside.png").write_text(SECRET)
    said: Counter[str] = Counter()
    harmless = ("/theme.css", "/?")  # pages that exist, asked with words that mean nothing to them
    tried = 0
    for path in addresses(secret, page.uploads):
        for method in ("GET", "HEAD", "POST"):
            status, answer = page.raw(f"{method} {path}")
            tried += 1
            said[str(status)] += 1
            assert SECRET not in answer, (method, path)
            assert status >= 400 or path.startswith(harmless), (method, path, status)
    say(claim="files by address", addresses=len(addresses(secret, page.uploads)), requests=tried, read=0, answers=dict(said))

    trap = socket.create_server(("127.0.0.1", 0))  # whether the page can be made to fetch things
    trap.settimeout(0.5)
    link, inner = page.uploads / "link" / "link.png", {"_type": "gradio.FileData"}
    files = [
        {"path": str(secret)},
        {"path": str(link)},
        {"path": "/etc/passwd"},
        {"path": f"{page.uploads}/../../secret.png"},
        {"path": "../../../../etc/passwd"},
        {"path": f"file://{secret}"},
        {"path": "x.png", "url": f"http://127.0.0.1:{page.port}/"},
        {"path": f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"},
        {"path": "x.png", "url": f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"},
        {"path": str(page.uploads)},
        {"path": ""},
    ]
    refused = 0
    for file in files:
        for value in ({**file, "meta": inner}, file, [{**file, "meta": inner}]):
            status, session = page.join("upload", [value])
            heard = json.dumps(page.hear(session)) if status == 200 else session
            refused += "q-frame" not in heard
            assert SECRET not in heard and "Traceback" not in heard and "q-frame" not in heard, (value, heard)
    with contextlib.suppress(TimeoutError):
        trap.accept()
        raise AssertionError("the page fetched an address")
    trap.close()
    say(claim="files by what is said to have been uploaded", requests=3 * len(files), refused=refused)

    names = [
        "../../../evil.png",
        "..%2f..%2fevil.png",
        "/tmp/evil.png",
        "..\\..\\evil.png",
        ".",
        "..",
        "a/../../evil.png",
        "\u202egnp.exe",
    ]
    before = {p for p in root.rglob("*") if page.uploads not in p.parents}
    taken = Counter(page.upload(name, b"evil")[0] for name in names)
    after = {p for p in root.rglob("*") if page.uploads not in p.parents}
    assert before == after and not Path("/tmp/evil.png").exists()
    say(
        claim="names of uploads that climb",
        uploads=len(names),
        written_outside=0,
        answers={str(k): v for k, v in taken.items()},
    )
    shutil.rmtree(page.uploads / "link")


class Visitor(threading.Thread):
    """Asks again and again, on every route; now and then leaves early, never listens, or uploads something."""

    def __init__(self, page: Page, seed: int, end: float, pictures: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self.page, self.chance, self.until, self.pictures = page, random.Random(seed), end, pictures
        self.found: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.turned: list[float] = []

    def run(self) -> None:
        while time.monotonic() < self.until:
            try:
                self.visit()
            except Exception as error:
                self.found[f"error {type(error).__name__}"] += 1
            time.sleep(self.chance.random() * 2)

    def visit(self) -> None:
        kind, chance = self.chance.random(), self.chance
        key = str(chance.randrange(2))
        if kind < 0.15:
            name, data = chance.choice(self.pictures)
            data += chance.randbytes(8)  # no two are the same
            status, answer = self.page.upload(name, data)
            if status != 200:
                self.found["upload turned away" if status == 503 else f"upload {status}"] += 1
                return
            file = {"path": json.loads(answer)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            status, session = self.page.join("upload", [file])
            heard = json.dumps(self.page.hear(session)) if status == 200 else ""
            good = name.startswith("good")
            fine = "q-frame" in heard if good else "cannot be used" in heard
            busy = status == 503 or ENGLISH.full in heard
            self.found[
                "upload turned away"
                if busy
                else "upload read"
                if fine and good
                else "upload refused"
                if fine
                else "upload failed"
            ] += 1
            return
        how = [0.7, 0.95, chance.randint(1, 4), chance.randrange(1000), chance.randint(5, 60)]
        route = chance.choice(ROUTES)
        asked: dict[str, list] = {
            ROUTES[0]: ["a red ball", chance.randint(1, 4)],
            ROUTES[1]: [key],
            ROUTES[2]: [key, "", chance.randint(1, 4)],
            ROUTES[3]: ["The red ball", True, chance.randint(1, 4)],
        }
        values = asked[route] + how
        began = time.monotonic()
        status, session = self.page.join(route, values)
        if status != 200:
            self.found["turned away" if status == 503 else f"status {status}"] += 1
            self.turned.append(time.monotonic() - began)
            return
        if kind < 0.18:
            self.found["never listened"] += 1
            return
        if kind < 0.28:
            self.page.hear(session, until=chance.random())
            self.found["left early"] += 1
            return
        answer, lasted = json.dumps(self.page.hear(session)), time.monotonic() - began
        if "q-legend" in answer and ENGLISH.done.partition("{")[0] in answer:
            self.found["served"] += 1
            self.seconds.append(lasted)
        elif ENGLISH.full in answer:
            self.found["turned away"] += 1
            self.turned.append(lasted)
        else:
            self.found["failed"] += 1
            print(f"failed: {answer[-600:]}", file=sys.stderr)


def soak(page: Page, minutes: float, clients: int) -> None:
    """Visitors side by side for minutes: served, turned away, and what the process holds all the while."""
    out = io.BytesIO()
    Image.fromarray(ball(COLOURS["red"])).save(out, "PNG")
    bomb = io.BytesIO()
    Image.new("L", (20_000, 20_000)).save(bomb, "PNG")
    pictures = [
        ("good.png", out.getvalue()),
        ("broken.png", out.getvalue()[:80]),
        ("bomb.png", bomb.getvalue()),
        ("x.txt", b"no"),
    ]
    first, began = page.memory(), time.monotonic()
    visitors = [Visitor(page, seed, began + 60 * minutes, pictures) for seed in range(clients)]
    for visitor in visitors:
        visitor.start()
    course: list[dict[str, int]] = []
    while any(v.is_alive() for v in visitors):
        time.sleep(5)
        course.append(page.memory())
        if len(course) % 12 == 0:
            say(after=round(time.monotonic() - began), **course[-1])
    found: Counter[str] = Counter()
    for visitor in visitors:
        found += visitor.found
    seconds, turned = sorted(s for v in visitors for s in v.seconds), sorted(s for v in visitors for s in v.turned)
    say(claim="visitors", clients=clients, minutes=minutes, **dict(sorted(found.items())))
    for name, each in (("served", seconds), ("turned away", turned)):
        if len(each) > 1:
            cut = statistics.quantiles(each, n=100)
            say(latency=name, median=round(cut[49], 2), p95=round(cut[94], 2), most=round(each[-1], 2))
    time.sleep(150)  # visitors who never listened are forgotten by now, and uploads swept away
    last = page.memory()
    quarter = max(1, len(course) // 4)
    middle = [round(statistics.mean(c["megabytes"] for c in course[i * quarter : (i + 1) * quarter])) for i in range(4)]
    peak = max(c["megabytes"] for c in course)
    say(claim="memory", before=first, after=last, most_megabytes=peak, mean_megabytes_of_quarters=middle)
    say(claim="uploads that lie there afterwards", files=len([p for p in page.uploads.rglob("*") if p.is_file()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        page = Page(options.run or tiny(root), root)
        try:
            attempts(page, root)
            soak(page, options.minutes, options.clients)
        finally:
            left = page.end(), page.process.returncode, len(list(page.temp.glob("quadrivium-play-*")))
            say(claim="ended by SIGTERM", **dict(zip(("tracebacks", "status", "folders_left"), left, strict=True)))


if __name__ == "__main__":
    main()
