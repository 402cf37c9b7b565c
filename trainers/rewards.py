"""This module scores samples with a verifier that runs in processes of its own, so that a bad verifier costs one sample and nothing else.

    with Verifiers("my_task:score", limit_s=2.0) as verifiers:
        for score in verifiers.score([(prompt, text), ...]): ...      # float or Failure, in order

A verifier is a function of plain data that returns a number. One that hangs is killed with its process (a thread could not be killed); one
that dies fails only its own sample. Workers are spawned; they import the verifier as a user's code (without our checkout on the path, unless
the name is built in), and the kernel kills them when their parent dies, however it dies.
"""

import fcntl
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal

from multiprocess import connection, context, process
from trainshed.launch import resolve

from trainers.protocol.child_env import CHECKOUT
from trainers.user_code import BUILT_IN, forget

START_S: Final = 60.0
"""Seconds within which a worker starts and imports the verifier."""
START_TRIES: Final = 3
"""Workers in a row that may fail to start before the rest of a batch is given up."""
_DETAIL: Final = 500

_wait: Final[Any] = connection.wait
_spawn: Final[Any] = context.SpawnContext()
_parent: Final[Any] = process.parent_process

Kind = Literal["timeout", "crash", "error", "not_a_number", "start"]


@dataclass(frozen=True)
class Failure:
    """A sample has no score: it took too long, its process died, it raised, it gave no finite number, or no worker could start."""

    kind: Kind
    detail: str


@dataclass
class _Worker:
    process: Any
    channel: Any
    deadline: float  # for its start, or for the sample that it works on
    ready: bool = False
    sample: int | None = None


class Verifiers:
    """A pool of at most `workers` processes that call `entry` (`module:function`); each sample has `limit_s` seconds.

    Processes start at the first `score` and end with `close` (or the `with`). Not thread-safe.
    """

    def __init__(self, entry: str, *, limit_s: float = 5.0, workers: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        if limit_s <= 0 or workers < 1:
            raise ValueError(f"a limit of {limit_s} s and {workers} workers make no pool")
        self._entry = entry
        self._limit_s = limit_s
        self._count = workers
        self._clock = clock
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> "Verifiers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """The pids of the workers that live."""
        return [worker.process.pid for worker in self._workers]

    def score(self, samples: Sequence[Sequence[Any]]) -> list[float | Failure]:
        """Returns one result for each tuple of arguments (JSON data), in their order. Never raises for what a verifier does."""
        results: dict[int, float | Failure] = {}
        texts = [json.dumps(list(arguments)).encode("utf-8") for arguments in samples]
        waiting = list(range(len(texts)))[::-1]
        self._failed_starts = 0
        while len(results) < len(texts):
            if self._failed_starts >= START_TRIES:
                reason = Failure("start", f"{START_TRIES} workers in a row could not import {self._entry}; see the log of this process")
                results |= dict.fromkeys(waiting, reason)
                waiting.clear()
                if not any(worker.sample is not None for worker in self._workers):
                    break
            self._start_workers(len(waiting))
            for worker in self._workers:
                if worker.ready and worker.sample is None and waiting:
                    self._send(worker, waiting, texts)
            self._receive_all(results)
        return [results[index] for index in range(len(texts))]

    def close(self) -> None:
        """Ends every worker; nothing of the pool is left when it returns."""
        for worker in list(self._workers):
            self._kill(worker)

    def _start_workers(self, waiting: int) -> None:
        idle = sum(worker.sample is None for worker in self._workers)
        while len(self._workers) < self._count and idle < waiting:
            ours, theirs = _spawn.Pipe()
            worker = _spawn.Process(target=_worker_main, args=(self._entry, theirs), daemon=True, name="verifier")
            worker.start()
            theirs.close()
            self._workers.append(_Worker(worker, ours, self._clock() + START_S))
            idle += 1

    def _send(self, worker: _Worker, waiting: list[int], texts: list[bytes]) -> None:
        try:
            worker.channel.send_bytes(texts[waiting[-1]])
        except OSError:  # it died while idle: the next `_receive_all` sees that
            worker.ready = False
            return
        worker.sample = waiting.pop()
        worker.deadline = self._clock() + self._limit_s

    def _receive_all(self, results: dict[int, float | Failure]) -> None:
        busy = [worker for worker in self._workers if not worker.ready or worker.sample is not None]
        if not busy:
            return
        until = max(0.0, min(worker.deadline for worker in busy) - self._clock())
        readable = set(_wait([worker.channel for worker in busy], until))
        for worker in busy:
            if worker.channel in readable:
                self._receive(worker, results)
            elif self._clock() >= worker.deadline:
                self._kill(worker)
                self._finish(worker, results, Failure("timeout", f"no score within {self._limit_s} s"))

    def _receive(self, worker: _Worker, results: dict[int, float | Failure]) -> None:
        try:
            answer = json.loads(worker.channel.recv_bytes(1 << 16))
        except (EOFError, OSError, ValueError):
            self._kill(worker)
            self._finish(worker, results, Failure("crash", f"the verifier's process ended with {worker.process.exitcode}"))
            return
        if not worker.ready:
            worker.ready = True
            self._failed_starts = 0
            return
        self._finish(worker, results, _checked(answer))

    def _finish(self, worker: _Worker, results: dict[int, float | Failure], result: float | Failure) -> None:
        if worker.sample is not None:
            results[worker.sample] = result
            worker.sample = None
        elif not worker.ready:
            self._failed_starts += 1

    def _kill(self, worker: _Worker) -> None:
        """Kills a worker at once: it holds nothing worth saving."""
        self._workers.remove(worker)
        worker.channel.close()
        worker.process.kill()
        worker.process.join()


def _checked(answer: object) -> float | Failure:
    """Returns a worker's answer as a result. The answer is not trusted: any code may have run in the worker."""
    match answer:
        case {"score": int() | float() as score} if not isinstance(score, bool):
            value = float(score) if abs(score) < 1e308 else math.inf
            return value if math.isfinite(value) else Failure("not_a_number", f"the verifier returned {score}")
        case {"kind": "error" | "not_a_number" as kind, "detail": str() as detail}:
            return Failure(kind, detail[:_DETAIL])
    return Failure("error", "the worker answered nonsense")


def _worker_main(entry: str, channel: Any) -> None:
    """Runs a worker: imports the verifier, says `"ready"`, and answers each tuple of arguments until the parent closes the channel."""
    _die_with(_parent().sentinel)
    if entry not in BUILT_IN:
        forget({str(CHECKOUT)})
    verifier = resolve(entry)
    channel.send_bytes(b'"ready"')
    while True:
        try:
            arguments = json.loads(channel.recv_bytes())
        except (EOFError, OSError):
            return
        channel.send_bytes(json.dumps(_score(verifier, arguments)).encode("utf-8"))


def _score(verifier: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
    """Calls the verifier; whatever it raises or returns becomes an answer."""
    try:
        score = float(verifier(*arguments))
    except Exception as error:
        return {"kind": "error", "detail": f"{type(error).__name__}: {error}"[:_DETAIL]}
    if not math.isfinite(score):
        return {"kind": "not_a_number", "detail": f"the verifier returned {score}"}
    return {"score": score}


def _die_with(sentinel: int) -> None:
    """Has the kernel kill this process when the parent's end of `sentinel` closes; no thread of ours needs to run for it.

    (PR_SET_PDEATHSIG follows the thread that made this process, which may end before its own process does.)
    """
    set_signal = 10  # F_SETSIG of Linux
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sentinel, set_signal, signal.SIGKILL)
    fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([sentinel], [], [], 0)[0]:  # the parent has ended already
        sys.exit(1)
