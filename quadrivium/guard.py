"""What may be asked of the page, and by whom: a wall of plain ASGI around the web framework.

    Guard(app, uploads, limits, hosts, password)

Only the addresses that the page itself uses exist; what the framework offers besides (files, proxies, streams, developer
tools, an API) is answered with 404. No file is served but the page's own scripts and styles: pictures travel inside the
answers, and what is uploaded goes one way. Requests have limits of size, number and time, and the browser is told to
load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from quadrivium.errors import ConfigError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_API = "/gradio_api"
_SHOWN = frozenset({"/", "/ja", "/config", "/theme.css", "/favicon.ico", f"{_API}/theme.css", f"{_API}/startup-events"})
_ASSET = re.compile(r"/(assets|svelte|static)(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
_JOIN, _DATA, _UPLOAD, _CANCEL = (f"{_API}/{x}" for x in ("queue/join", "queue/data", "upload", "cancel"))
_QUERIES = {_DATA: "session_hash", _UPLOAD: "upload_id"}
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_HEADERS = {
    # Scripts in the page and what they compile are the framework's way; nothing comes from, or goes to, any other host.
    "content-security-policy": "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class WebLimits:
    """What the page allows; raises ConfigError where a value is below 1, or beyond all measure."""

    upload_bytes: int = 20_000_000  # of one picture or video
    room: int = 500_000_000  # bytes that uploads may take at once, a file counting as 100,000 at least
    keep: float = 120.0  # seconds that an upload lies there
    seconds: float = 120.0  # of one answer; longer ones are given up
    waiting: int = 16  # answers that wait for their turn; who comes after is asked to come again
    connections: int = 256  # requests under way at once

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value < 1 << 40:
                raise ConfigError(f"limits.{name} is {value!r}; it has to be at least 1, and below {1 << 40:,}")


class Refused(Exception):
    """A request that is answered here: status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Guard:
    """ASGI application that lets to ``app`` what the page needs, and answers the rest itself.

    ``uploads``: the folder where the framework lays uploads; ``hosts``: names under which the page may be called, all if
    empty; ``password``: asked for by the browser (HTTP Basic, any user name), empty for none.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        uploads: Path,
        limits: WebLimits,
        hosts: frozenset[str] = frozenset(),
        password: str = "",
    ) -> None:
        self.app, self.uploads, self.limits, self.hosts, self.password = app, uploads, limits, hosts, password
        self.under_way = self.uploading = 0
        self.listening: Counter[str] = Counter()  # sessions that hear their answers
        self.joined: dict[str, float] = {}  # sessions that asked for one, and when last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websocket is used here
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                kept = [h for h in message.get("headers", ()) if h[0].lower().decode("latin-1") not in _HEADERS]
                message["headers"] = kept + [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        self.under_way += 1
        try:
            await self._serve(scope, receive, answer)
        except Refused as refused:
            if not begun:
                await _say(answer, refused)
        finally:
            self.under_way -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.under_way > self.limits.connections:
            raise Refused(503, "Too many visitors at once; please come again in a minute.", [("retry-after", "30")])
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        self._check_host(headers)
        await self._check_password(headers)
        path, method = self._check_path(scope), scope["method"]
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        value = asked.get(_QUERIES.get(path, ""), [""])[0]
        if value and not _SESSION.fullmatch(value):
            raise Refused(400, "No such session.")
        inner = {**scope, "query_string": f"{_QUERIES[path]}={value}".encode() if value else b""}
        if path == _DATA:
            self.listening[value] += 1
            try:
                await self.app(inner, receive, send)
            finally:
                self.listening[value] -= 1
                self.listening += Counter()  # forgets those at 0
        elif method == "POST":
            await self._take(inner, path, headers, receive, send)
        else:
            await self.app(inner, receive, send)

    def _check_host(self, headers: dict[str, str]) -> None:
        """A page elsewhere can make a browser call this one, under this one's name or its own; neither is let in."""
        host = headers.get("host", "")
        name = _HOST.fullmatch(host)
        if name is None or (self.hosts and name["name"].strip("[]") not in self.hosts):
            raise Refused(403, "The page is not served under this name.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "Requests from other pages are not answered.")

    async def _check_password(self, headers: dict[str, str]) -> None:
        if not self.password:
            return
        kind, _, code = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(code, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        if not secrets.compare_digest(given, self.password.encode()):
            if given:
                await asyncio.sleep(1)  # guessing is slow work
            raise Refused(
                401, "The page asks for a password.", [("www-authenticate", 'Basic realm="quadrivium", charset="UTF-8"')]
            )

    def _check_path(self, scope: Scope) -> str:
        """The address as it was sent, which has to be one that the page uses, letter for letter."""
        path, method = scope["path"], scope["method"]
        raw = scope.get("raw_path", path.encode()).partition(b"?")[0]
        known = path in _SHOWN or path == _DATA or _ASSET.fullmatch(path)
        posted = path in (_JOIN, _UPLOAD, _CANCEL)
        if raw != path.encode("latin-1", "replace") or not (
            (known and method in ("GET", "HEAD")) or (posted and method == "POST")
        ):
            raise Refused(404, "There is nothing here.")
        return str(path)

    async def _take(self, scope: Scope, path: str, headers: dict[str, str], receive: Receive, send: Send) -> None:
        """A request with a body, read up to its limit."""
        most = self.limits.upload_bytes + 10_000 if path == _UPLOAD else 200_000
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > most:
            raise Refused(413, f"That is more than the {most:,} bytes that the page takes.")
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise Refused(413, f"That is more than the {most:,} bytes that the page takes.")
            return message

        upload = path == _UPLOAD
        if upload and (self.uploading >= 4 or self._taken() + int(length) > self.limits.room):
            raise Refused(503, "Too many uploads at once; please try again in a moment.", [("retry-after", "10")])
        self.uploading += upload
        try:
            async with asyncio.timeout(self.limits.seconds):
                await self.app(scope, await self._read_join(bounded) if path == _JOIN else bounded, send)
        except TimeoutError:
            raise Refused(408, "The request took too long.") from None
        finally:
            self.uploading -= upload

    def _taken(self) -> int:
        """Bytes that uploads take, each at least what its folder and its name are worth."""
        return sum(max(100_000, os.lstat(path).st_size) for path in self.uploads.glob("*/*") if os.path.lexists(path))

    async def _read_join(self, receive: Receive) -> Receive:
        """Read what is asked, note whose it is, and give it again, with no file in it but one that was uploaded."""
        parts, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "The visitor left.")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        try:
            asked = json.loads(b"".join(parts))
            self._check_files(asked)
        except (ValueError, RecursionError):
            raise Refused(400, "That is no question that the page asks.") from None
        session = asked.get("session_hash") if isinstance(asked, dict) else None
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            raise Refused(400, "No such session.")
        if len(self.joined) > 4 * self.limits.connections:
            raise Refused(503, "Too many visitors at once; please come again in a minute.", [("retry-after", "30")])
        self.joined[session] = time.monotonic()
        body, given = json.dumps(asked).encode(), False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _check_files(self, asked: Any) -> None:
        """Refuse what names a file that was not uploaded; addresses, which the framework would fetch, are taken away."""
        for value in asked.values() if isinstance(asked, dict) else asked if isinstance(asked, list) else ():
            self._check_files(value)
        if not isinstance(asked, dict):
            return
        asked.pop("url", None)
        if "path" in asked:
            path = asked["path"] if isinstance(asked["path"], str) else ""
            ours = Path(self.uploads, *Path(path).parts[-2:])
            if str(ours) != path or ours.is_symlink() or ours.parent.is_symlink() or not ours.is_file():
                raise Refused(400, "That file was not uploaded here, or has been forgotten by now.")

    def silent(self, seconds: float) -> list[str]:
        """Sessions that asked for something so long ago and do not listen; they are forgotten here."""
        now = time.monotonic()
        gone = [s for s, then in self.joined.items() if now - then > seconds and s not in self.listening]
        for session in gone:
            del self.joined[session]
        return gone

    def sweep(self, seconds: float) -> None:
        """Remove uploads older than so many seconds."""
        for folder in self.uploads.glob("*"):
            try:
                if time.time() - os.lstat(folder).st_mtime > seconds:
                    shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
            except OSError:
                continue  # someone else was quicker


async def _say(send: Send, refused: Refused) -> None:
    body = refused.sentence.encode()
    headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *refused.headers]
    start = {"type": "http.response.start", "status": refused.status, "headers": [(k.encode(), v.encode()) for k, v in headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
