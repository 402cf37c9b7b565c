"""The client's calls to be awaited on asyncio: `import trainshed.aio`, then `pipeline = trainshed.aio.connect()`.

    async with pipeline.rollout(trajectories=1000) as rollout:
        await asyncio.gather(*(play(rollout.trajectory(game)) for game in range(1000)))
    async with pipeline.lease("train"):
        train(await rollout.samples())
        await pipeline.publish(model.state_dict)

What the calls mean, and what they raise, stands in `trainshed` itself; this module only waits differently. Whoever waits for samples costs no
thread: the client's threads wake the event loop, once for all that came meanwhile. A call that waits for the supervisor (a lease, the opening and
the close of a rollout, a publish) waits in a thread of its own, which is not one of the loop's executor. Training itself blocks the event loop
as it does in any program: while it goes on, nothing else of this process does.

The standard library alone, Python >= 3.9. `pipeline.sync` is the client that blocks, with all attributes (`pipeline.sync.steps_done` …).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import trainshed

T = TypeVar("T")


def connect() -> Pipeline:
    """Returns the pipeline of this process. Raises NotSupervised."""
    return Pipeline(trainshed.connect())


class Pipeline:
    """A pipeline as its trainer sees it, on asyncio. `sync` is the same with calls that block."""

    def __init__(self, sync: trainshed.Pipeline) -> None:
        self.sync = sync

    def rollout(self, target: int | None = None, number: int | None = None, **kind: Any) -> Rollout:
        """Demands samples for the length of an `async with`; arguments as of `trainshed.Pipeline.rollout`."""
        return Rollout(self.sync.rollout(target, number, **kind))

    def lease(self, *roles: str) -> Lease:
        """Leases the GPUs of all these roles for the length of an `async with`."""
        return Lease(self.sync.lease(*roles))

    async def publish(self, weights: Mapping[str, Any] | Callable[[], Mapping[str, Any]], *, partial: bool = False) -> int:
        """Publishes the next weight version and returns its number."""
        return await _in_thread(lambda: self.sync.publish(weights, partial=partial))

    async def restore(self, weights: Callable[[], Mapping[str, Any]], *, partial: bool = False) -> int:
        """Publishes what was restored, after a restart."""
        return await _in_thread(lambda: self.sync.restore(weights, partial=partial))

    async def checkpoint(self, step: int, path: str) -> None:
        """Says that the state after step `step` is saved at `path`."""
        await _in_thread(lambda: self.sync.checkpoint(step, path))

    def report(self, step: int, **metrics: Any) -> None:
        """Reports figures of one step; nobody waits for an answer."""
        self.sync.report(step, **metrics)


class Lease:
    """A grant of GPUs, for an `async with`."""

    def __init__(self, sync: trainshed.Lease) -> None:
        self.sync = sync

    async def __aenter__(self) -> Lease:
        await _entered(self.sync)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.shield(_in_thread(lambda: self.sync.__exit__(kind, error, trace)))

    async def become(self, *roles: str) -> None:
        """Exchanges the grant for one of these roles in one event."""
        await _in_thread(lambda: self.sync.become(*roles))


class Rollout:
    """A demand for samples, for an `async with`."""

    def __init__(self, sync: trainshed.Rollout) -> None:
        self.sync = sync
        self._channel = sync._pipeline._channel
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._called = False

    @property
    def number(self) -> int:
        """The number that seeds its samples."""
        return self.sync.number

    async def __aenter__(self) -> Rollout:
        await _entered(self.sync)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await asyncio.shield(_in_thread(lambda: self.sync.__exit__(kind, error, trace)))

    def start(self, prompts: Iterable[Sequence[int]], **how: Any) -> Sequence[Any]:
        """Asks for one sample for each prompt and returns at once, with their keys or indexes."""
        return self.sync.start(prompts, **how)

    async def samples(self, keys: Iterable[Hashable] | None = None) -> list[trainshed.Sample]:
        """Waits for these samples, by default for all that were started, and returns them in this order."""
        with self._channel.changed:
            wanted = self.sync._wanted(keys)
        await self._until(lambda: self.sync._settled(wanted))
        with self._channel.changed:
            return self.sync._take(wanted)

    async def generate(self, prompts: Iterable[Sequence[int]], **how: Any) -> list[trainshed.Sample]:
        """Starts a sample for each prompt and waits for these samples."""
        return await self.samples(self.start(prompts, **how))

    async def as_completed(self, keys: Iterable[Hashable] | None = None) -> AsyncIterator[trainshed.Sample]:
        """Yields these samples as they come, by default all, those too that are started meanwhile."""
        chosen = None if keys is None else list(keys)
        coming = self.sync.as_completed(chosen)
        results = self.sync._results
        seen = 0

        def settled() -> bool:
            return len(results) > seen or self.sync._settled(self.sync._wanted(chosen))

        while True:
            await self._until(settled)
            with self._channel.changed:
                ended = self.sync._settled(self.sync._wanted(chosen))
                names = None if chosen is None else set(self.sync._wanted(chosen).values())
                came = [one for name, one in list(results.items())[seen:] if names is None or name in names]
                seen = len(results)
            for _ in [one for one in came if isinstance(one, trainshed.Sample)]:
                yield next(coming)  # it does not wait: the sample is there
            if ended and not came:
                for sample in coming:  # nothing more comes; what is missing or has failed is raised here
                    yield sample
                return

    async def first(self, count: int, keys: Iterable[Hashable] | None = None) -> list[trainshed.Sample]:
        """Waits until `count` samples are there, ends the others early and returns the first, in order."""
        return await _in_thread(lambda: self.sync.first(count, keys))

    async def cancel(self, keys: Iterable[Hashable] | None = None) -> None:
        """Ends these samples early, by default all that are not there yet."""
        await _in_thread(lambda: self.sync.cancel(keys))

    def trajectory(self, key: Hashable) -> Trajectory:
        """Returns one trajectory, for an `async with`: its samples are named (key, 0), (key, 1) …"""
        return Trajectory(self, self.sync.trajectory(key))

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Waits until this holds; it is looked at under the client's lock whenever something has changed."""
        with self._channel.changed:
            if holds():
                return
            self._loop = asyncio.get_running_loop()
            waiter = (holds, self._loop.create_future())
            if not self._waiting:
                self._channel.listeners.append(self._wake)
            self._waiting.append(waiter)
        try:
            await waiter[1]
        finally:
            with self._channel.changed:
                self._waiting.remove(waiter)
                if not self._waiting:
                    self._channel.listeners.remove(self._wake)

    def _wake(self) -> None:
        """Is called by the client's threads, under its lock."""
        if self._called or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._look)
            self._called = True

    def _look(self) -> None:
        with self._channel.changed:
            self._called = False
            ready = [future for holds, future in self._waiting if not future.done() and holds()]
        for future in ready:
            future.set_result(None)


class Trajectory:
    """Samples that follow each other, in one session, for an `async with`."""

    def __init__(self, rollout: Rollout, sync: trainshed.Trajectory) -> None:
        self.sync = sync
        self.key = sync.key
        self._rollout = rollout

    async def __aenter__(self) -> Trajectory:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sync.__exit__(kind, error, trace)

    async def generate(self, prompt: Sequence[int], **how: Any) -> trainshed.Sample:
        """Asks for its next sample and waits for it."""
        return (await self._rollout.samples([self.sync.start(prompt, **how)]))[0]


async def _in_thread(call: Callable[[], T]) -> T:
    """Returns what the call returns, which may wait long, in a thread of its own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="trainshed-aio", daemon=True).start()
    return await future


async def _entered(context: trainshed.Lease | trainshed.Rollout) -> None:
    """Enters it. Who is cancelled meanwhile leaves it again as soon as it is entered, or nobody would."""
    entering = asyncio.ensure_future(_in_thread(context.__enter__))
    try:
        await asyncio.shield(entering)
    except asyncio.CancelledError:
        entering.add_done_callback(lambda done: _leave_if_entered(context, done))
        raise


def _leave_if_entered(context: trainshed.Lease | trainshed.Rollout, entered: asyncio.Future[Any]) -> None:
    if entered.cancelled() or entered.exception() is not None:
        return
    cancelled = asyncio.CancelledError()
    threading.Thread(target=context.__exit__, args=(type(cancelled), cancelled, None), name="trainshed-aio", daemon=True).start()
