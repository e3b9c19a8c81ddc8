"""Grids of training runs: arms x seeds, every cell a process and a file of its own.

An experiment declares what it measures before the first run, plans jobs for the cells that are not measured yet, and reads
all cells back. Cells are JSON files ARM-seed-S.json, so a grid can be finished over several sittings and machines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from quadrivium import checkpoint
from quadrivium.config import to_dict
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.shards import read_json, write_json
from quadrivium.errors import ConfigError, QuadriviumError, RunError
from quadrivium.model import FORM
from quadrivium.sequence import ROUTES
from quadrivium.train import TrainConfig, cores


@dataclass(frozen=True)
class Arm:
    """What one training condition reads."""

    says: str  # for people
    routes: tuple[str, ...] = ROUTES
    full: bool = False  # text gets the whole compute of all routes: more epochs
    captions: bool = False  # captions are read as text, without pictures

    def mixture(self, config: MixtureConfig) -> MixtureConfig:
        """What this arm reads of what all arms could read."""
        weights = tuple((r, float(r == "t2t")) for r in ROUTES) if self.full else config.weights
        return replace(config, routes=self.routes, captions=self.captions, weights=weights)

    @property
    def share(self) -> float:
        """Compute of a step, of that of all routes; for estimates of time."""
        return 1.0 if len(self.routes) > 2 or self.full or self.captions else 0.2 * len(self.routes)


def without(*gone: str) -> tuple[str, ...]:
    """All routes but these."""
    return tuple(r for r in ROUTES if r not in gone)


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON keeps it."""
    return json.loads(json.dumps(to_dict(config), default=str))


def check(seeds: list[int], workers: int) -> None:
    """Raises ConfigError for seeds that cannot be, or that would be counted twice, and for a negative number of workers."""
    if workers < 0 or any(seed < 0 for seed in seeds):
        raise ConfigError("workers and seeds are not negative")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds are {' '.join(map(str, seeds))}; each counts once")


def comparable(mixture: MixtureConfig) -> None:
    """Raises ConfigError for options of the mixture that arms set themselves."""
    for name in ("routes", "captions", "scramble"):
        if getattr(mixture, name) != getattr(MixtureConfig(), name):
            raise ConfigError(f"--mixture.{name} is set by the arms; leave it out and choose --arms")


def equal_steps(train: TrainConfig, option: str = "--train") -> None:
    """Raises ConfigError for a schedule that would give arms unequal steps, or every seed the same draws."""
    if train.seed:
        raise ConfigError(f"{option}.seed is set by the seeds of the grid; give --seeds")
    if not train.steps or train.tokens or train.minutes:
        raise ConfigError(
            f"arms take equal steps, which {option}.tokens and {option}.minutes would cut short; give {option}.steps alone"
        )


def declare(paths: Iterable[Path], config: Any, now: dict[str, Any]) -> None:
    """Write down in ``paths`` what is measured before the first run, and refuse to mix runs or cells of different sizes.

    ``now``: ``config`` as `plain` gives it, with what else counts. An option that was not there yet when a path was written
    counts as its default, which is to do as before: cells that were finished without it stay valid. Those that do not say on what
    device were computed on processors. Nothing is written where one of them is refused.
    """
    now = {"form": FORM, **now}
    fresh = [path for path in paths if not _declared(path, config, now)]
    for path in fresh:
        write_json(path, now)


def _declared(path: Path, config: Any, now: dict[str, Any]) -> bool:
    """Whether ``path`` says the same already; raises RunError where it says something else."""
    if not path.exists():
        return False
    before = {
        "form": 1,
        **({"device": "cpu"} if "device" in now else {}),
        **_completed(read_json(path, "an experiment"), config, now),
    }
    if before["form"] != FORM:
        raise RunError(f"{path}: this experiment was begun with another form of the model or the world; choose another folder")
    if before != now:
        differ = list(_differences(before, now))
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise RunError(
            f"{path}: this is another experiment, with {', '.join(differ[:4])}{more}; give the options it was begun with, or choose another folder"
        )
    return True


def _differences(before: dict[str, Any], now: dict[str, Any], under: str = "") -> Iterator[str]:
    """What was declared and what is asked for now, option by option."""
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{under}{key}.")
        elif old != new:
            said = f"{under}{key} {old} (not {new})"
            yield (
                said if len(said) < 80 else (f"other {under}{key} than before" if old and new else f"another {under}{key}")
            )  # a checksum, a list


def _completed(before: dict[str, Any], config: Any, now: dict[str, Any]) -> dict[str, Any]:
    """``before`` with the options of ``now`` that it lacks, at their defaults."""
    found = dict(before)
    for option in (f for f in fields(config) if f.name in now):
        name, value = option.name, getattr(config, option.name)
        if name not in before:
            made = option.default if option.default_factory is MISSING else option.default_factory()
            found[name] = plain(made) if is_dataclass(made) else json.loads(json.dumps(made, default=str))
        elif is_dataclass(value) and isinstance(before[name], dict):
            found[name] = _completed(before[name], value, now[name])
    return found


def read_cells(results: Path, arms: Iterable[str]) -> dict[str, dict[int, dict]]:
    """Arm -> seed -> finished cell, arms in the order of ``arms``."""
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(results.glob("*-seed-*.json")):
        cell = read_json(path, "a cell of an experiment")
        found.setdefault(cell["arm"], {})[cell["seed"]] = cell
    return {arm: dict(sorted(found[arm].items())) for arm in arms if arm in found}


def trained(run: Path) -> dict[str, Any]:
    """Where the training of a run stands; empty before its first checkpoint."""
    last = checkpoint.latest(run / "checkpoints")
    return read_json(last / "state.json", "a checkpoint") if last else {}


def finished(run: Path) -> bool:
    return bool(trained(run).get("finished"))


@dataclass
class Job:
    """One process: what it does, with which arguments (the first is the folder for its log), and after which others."""

    name: str
    work: Callable[..., Any]
    arguments: tuple
    needs: tuple[str, ...]
    cost: float  # positions, or what takes as long
    run: Path | None = None  # where its progress is to be read


def threads_each(workers: int) -> int:
    """Of so many jobs at a time: OMP_NUM_THREADS, or its share of the cores."""
    return torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else max(1, cores() // workers)


def run_jobs(jobs: dict[str, Job], workers: int, progress: bool) -> None:
    """Run jobs, each in a process of its own, as soon as what they need is there, ``workers`` at a time.

    ``workers`` 0: one a core. Each has its share of the cores, or OMP_NUM_THREADS. The bar counts positions and estimates the end. A
    job that fails takes along what needs it, and nothing else. SIGTERM, which schedulers send, ends it as Ctrl-C does.
    """
    workers = workers or cores()
    threads = threads_each(workers)
    processes = context()
    waiting, failed = dict(jobs), dict[str, str]()
    done, before = set[str](), {name: _progress(job) for name, job in jobs.items()}
    running: dict[int, tuple[Job, Any]] = {}
    total = sum(job.cost - before[name] for name, job in jobs.items())
    bar = tqdm(total=total, unit="pos", unit_scale=True, disable=not progress, dynamic_ncols=True,
               bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}")  # fmt: skip
    try:
        old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread, which alone gets signals
        old = None
    try:
        while waiting or running:
            for name, job in list(waiting.items()):
                if missing := [n for n in job.needs if n in failed]:
                    failed[name] = f"needs {', '.join(missing)}"
                    del waiting[name]
                elif len(running) < workers and all(n in done for n in job.needs):
                    process = processes.Process(target=_work, args=(job.work, job.arguments, name, threads, dict(os.environ)))
                    process.start()
                    running[process.sentinel] = (waiting.pop(name), process)
            for sentinel in wait(list(running), timeout=2.0):
                job, process = running.pop(sentinel)  # type: ignore[arg-type]
                process.join()
                if process.exitcode == 0:
                    done.add(job.name)
                else:
                    failed[job.name] = _why(job.arguments[0], job.name, process.exitcode)
                    bar.write(f"{job.name}: failed ({failed[job.name]})", file=sys.stderr)
            at = sum(jobs[n].cost - before[n] for n in done)
            at += sum(_progress(job) - before[job.name] for job, _ in running.values())
            bar.set_postfix_str(", ".join(job.name for job, _ in running.values()), refresh=False)
            bar.update(max(0.0, min(at, total) - bar.n))
    except KeyboardInterrupt:
        if running:
            bar.write("stopping: what is being trained is saved first; the same command goes on", file=sys.stderr)
        raise
    finally:
        bar.close()
        for _, process in running.values():  # which save and leave; the same command goes on
            process.terminate()
        for _, process in running.values():
            process.join()
        if old is not None:
            signal.signal(signal.SIGTERM, old)
    if failed:
        raise RunError("; ".join(f"{name}: {why}" for name, why in failed.items()) + "; the same command goes on")


def context() -> Any:
    """How the process of a job begins: forked off one that has imported all a job needs and run nothing, since importing takes longer
    than a small cell trains. Where there is a GPU it begins from nothing, as no fork may follow on CUDA."""
    if torch.cuda.is_available() or sys.platform != "linux":
        return get_context("spawn")
    needed = ["quadrivium.experiment", "quadrivium.transfer", "torch._dynamo"]  # the last by optimizers
    forkserver.set_forkserver_preload(needed)
    try:
        forkserver.ensure_running()
    except OSError:  # its socket lies in the temporary folder, whose path may be too long for one
        return get_context("spawn")
    return get_context("forkserver")


def _why(out: Path, name: str, code: int | None) -> str:
    """The last line that a failed job wrote, or that the system ended it."""
    log = out / "logs" / f"{name}.log"
    if code is not None and code < 0:
        return f"ended by signal {-code}; see {log}"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return f"{lines[-1][:300]} (see {log})" if lines else f"see {log}"


def _progress(job: Job) -> float:
    """Positions that a job has trained, off the last line of its metrics."""
    if job.run is None:
        return 0.0
    try:
        with open(job.run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4000))
            lines = [json.loads(line) for line in file.read().splitlines()[1:]]
        return min(job.cost, max(line.get("positions", 0) for line in lines))
    except (OSError, ValueError):
        return 0.0


def _work(work: Callable[..., None], arguments: tuple, name: str, threads: int, environment: dict[str, str]) -> None:
    """Run a job on so many threads, with what it prints in a file of its own. Ends with the process that started it."""
    os.environ.update(environment, OMP_NUM_THREADS=str(threads))  # which `train.threads` respects
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    log = arguments[0] / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            work(*arguments)
        except QuadriviumError as error:
            print(error)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception:
            traceback.print_exc()
            sys.exit(1)


def _leave_with_parent() -> None:
    """A cell that nobody waits for would hold its folder against the next sitting."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
