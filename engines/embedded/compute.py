"""One thread computes. Others ask it to call a function of the core between two steps, and it delivers what samples come to."""

import asyncio
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar, cast

import torch

from engines.embedded.core import Answer, Core, Death, Refusal

T = TypeVar("T")
Call = Callable[[Core], object]

MAX_CALLS: Final = 16384
"""Calls that may wait for the thread; requests are bounded well below that by the server."""
STREAM_EVERY_S: Final = 0.02
"""Seconds between two looks at a running stream: a chunk carries what came in between, not one token."""


class Compute:
    """Runs a core in a thread of its own. `deliver` gets batches of answers on that thread: it must only pass them on."""

    def __init__(self, core: Core, deliver: Callable[[list[Answer]], None]) -> None:
        self._core = core
        self._deliver = deliver
        self._calls: queue.Queue[tuple[Call, Future[object]]] = queue.Queue(MAX_CALLS)
        self._streamed = 0.0
        threading.Thread(target=self._guarded, name="compute", daemon=True).start()

    @property
    def version(self) -> str:
        """Return the version of the weights that are loaded, as far as this thread knows."""
        return self._core.version

    async def call(self, function: Callable[[Core], T]) -> T:
        """Call `function(core)` between two steps; return its result or raise its Refusal. Raises Refusal when too much waits already."""
        return await asyncio.wrap_future(self.post(function))

    def post(self, function: Callable[[Core], T]) -> Future[T]:
        """Do as `call` does, without waiting for it."""
        future: Future[T] = Future()
        try:
            self._calls.put_nowait((function, cast("Future[object]", future)))
        except queue.Full as error:
            raise Refusal("the engine has too much to do", 503) from error
        return future

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException:  # whatever it is, an engine without its compute thread is dead: end as visibly as one
            traceback.print_exc()
            print("died: the compute thread failed", flush=True)
            os._exit(1)

    def _run(self) -> None:
        torch.set_num_threads(1)  # per thread, and it decides the order of sums
        while True:
            self._answer_calls(block=not self._core.busy)
            if self._core.busy:
                self._core.step()
                now = time.monotonic()
                if now - self._streamed >= STREAM_EVERY_S:
                    self._streamed = now
                    self._core.show_streams()
                self._empty_outbox()

    def _empty_outbox(self) -> None:
        if self._core.outbox:
            self._deliver(self._core.outbox)
            self._core.outbox = []

    def _answer_calls(self, block: bool) -> None:
        while True:
            try:
                function, future = self._calls.get(block)
            except queue.Empty:
                return
            block = False
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function(self._core)
            except Refusal as refusal:
                future.set_exception(refusal)
            except Death as death:
                print(f"died: {death}", flush=True)
                os._exit(1)
            else:
                self._empty_outbox()  # who called finds what its call has done to others done
                future.set_result(result)
