"""Decoding in processes that may be killed: a file that hangs, crashes or bloats its decoder costs one item, nothing else.

    Decoders(options, limits).read_all(items)   clips of every item in order, or the ItemError that says why not

A decoder is this file run as a program. It is given one place a line on its standard input and answers with one line of JSON
and plain bytes, so nothing that it sends can be executed here. It may write no file, take no more memory than
``limits.memory``, and is ended by the system, also in the middle of a codec, when one item has taken ``limits.seconds`` of
processor time. That is a time which a busy machine does not change: whether an item is used does not depend on the weather.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from quadrivium.data.sources import Item, Limits, ReadOptions, clips_and_more, read_clips
from quadrivium.errors import ItemError, RunError, one_line

_SERVE = "import sys; sys.path.append(sys.argv[1]); from quadrivium.data.decoding import serve; serve(*sys.argv[2:])"
_TRIES = 3
_WAIT = 20  # a decoder that only waits, on a dead network drive for one, is given so many times its limit


class _Died(Exception):
    """The decoder ended, by itself or killed, instead of answering."""


class Clips(list[np.ndarray]):
    """The clips of one item."""

    cut = False  # whether it goes on after the last of them


class Decoder:
    """One process that decodes; started by the first `read`, and again after it died."""

    def __init__(self, options: ReadOptions, limits: Limits) -> None:
        self.options, self.limits = options, limits
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, item: Item) -> Clips:
        """What `read_clips` gives, or its ItemError; also an ItemError where the item exceeds a limit or kills the decoder."""
        for left in reversed(range(_TRIES)):  # it may have been killed for another's fault, by a machine out of memory for one
            try:
                return self._ask(item, further=left > 0)  # at last without looking further, should that be what ends it
            except (_Died, BrokenPipeError):
                status = self.close()
                if status == -signal.SIGPROF:
                    cure = "give --limits.seconds more, or make the file smaller"
                    reason = f"takes more than {self.limits.seconds:g} s of processor time to decode; {cure}"
                    raise ItemError(one_line(f"{item.file}: {reason}", 600)) from None
        raise ItemError(one_line(f"{item.file}: ends the decoder ({_ending(status)}); replace or remove the file", 600))

    def _ask(self, item: Item, further: bool) -> Clips:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([str(item.file), item.key, item.inside, item.span, further]).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], _WAIT * self.limits.seconds)[0]:
            self.close()
            raise ItemError(one_line(f"{item.file}: no answer in {_WAIT * self.limits.seconds:g} s; is its disk well?", 600))
        answer = process.stdout.readline()
        if not answer.endswith(b"\n"):
            raise _Died
        head = json.loads(answer)
        if "error" in head:
            raise ItemError(head["error"])
        clips, side = Clips(), self.options.size
        clips.cut = head["cut"]
        for frames in head["frames"]:
            data = process.stdout.read(frames * side * side * 3)
            if len(data) < frames * side * side * 3:
                raise _Died
            clips.append(np.frombuffer(data, np.uint8).reshape(frames, side, side, 3))
        return clips

    def _started(self) -> subprocess.Popen[bytes]:
        for left in reversed(range(_TRIES)) if self.process is None else ():
            root = str(Path(__file__).parents[2])
            arguments = [json.dumps(asdict(self.options)), json.dumps(asdict(self.limits))]
            alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, root, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **alone},
            )
            assert self.process.stdout is not None
            if self.process.stdout.readline() == b"ready\n":
                break
            status = self.close()
            if not left:
                raise RunError(f"a decoder could not be started ({_ending(status)}); is there memory left?")
        assert self.process is not None
        return self.process

    def close(self) -> int:
        """End the process; its exit status, negative: the signal that ended it."""
        process, self.process = self.process, None
        if process is None:
            return 0
        assert process.stdin is not None and process.stdout is not None
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            return process.wait(0.5)  # one that died has its own status; one that waits leaves at the end of its input
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


class Decoders:
    """A few decoders at work side by side; none is started before there is something to decode."""

    def __init__(self, options: ReadOptions, limits: Limits, count: int = 2) -> None:
        self.pool = ThreadPoolExecutor(count)
        self.every = [Decoder(options, limits) for _ in range(count)]
        self.free: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self.every:
            self.free.put(decoder)

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.shutdown(cancel_futures=True)
        for decoder in self.every:
            decoder.close()

    def read_all(self, items: list[Item], ahead: int = 32) -> Iterator[Clips | ItemError]:
        """Clips of items in order, or why there are none; at most ``ahead`` are decoded before they are used."""
        waiting = [self.pool.submit(self._read, i) for i in items[:ahead]]
        for i in range(len(items)):
            result = waiting.pop(0).result()
            if i + ahead < len(items):
                waiting.append(self.pool.submit(self._read, items[i + ahead]))
            yield result

    def _read(self, item: Item) -> Clips | ItemError:
        if item.kind == "text":
            return Clips()
        if item.kind == "rendered":  # drawn here: there is no file to distrust
            return Clips(read_clips(item, self.every[0].options))
        decoder = self.free.get()
        try:
            return decoder.read(item)
        except ItemError as error:
            return error
        finally:
            self.free.put(decoder)


def serve(options: str, limits: str) -> None:
    """What a decoder's process does until its input ends."""
    import resource

    read, limit = ReadOptions(**json.loads(options)), Limits(**json.loads(limits))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; it ends this one
    for which, most in ((resource.RLIMIT_DATA, limit.memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
    answers = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # what a library prints is no answer
    os.dup2(silent, 2)
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        file, key, inside, span, further = json.loads(line)
        item = Item("", key, "", "image", (), Path(file), tuple(inside), tuple(span))
        signal.setitimer(signal.ITIMER_PROF, limit.seconds)  # its signal ends the process, whatever runs
        head: dict[str, Any]
        try:
            with clips_and_more(item, read) as (clips, more):
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_VIRTUAL, limit.seconds)  # of its own: no item is refused for what lies behind it
                head = {"frames": [len(c) for c in clips], "cut": further and more()}
        except ItemError as error:
            clips, head = [], {"error": str(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        answers.write(json.dumps(head).encode() + b"\n")
        for clip in clips:
            answers.write(clip.data)
        answers.flush()


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
