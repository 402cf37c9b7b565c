"""This module measures real GPUs through NVML, by UUID.

NVML runs in one thread of its own with a deadline: a driver that hangs never stops our loop, and is "unknown" until it answers again.
Inside a container NVML may not know pids; the device's own sum is what counts.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar, cast

import anyio
import pynvml
from anyio.from_thread import run_sync as in_loop
from anyio.lowlevel import EventLoopToken, current_token

from supervisor.host.gpus.emptiness import Usage
from supervisor.host.gpus.meter import Gpu, GpusUnusable, MeasureFailed
from trainers.protocol.ids import GpuId, GroupId

MEASURE_SECONDS: Final = 5.0
OPEN_SECONDS: Final = 30.0
_NO_GPU: Final = "Without a GPU say `virtual = 4` in [host]"
T = TypeVar("T")
Wanted = Literal["auto"] | Sequence[int | str]


class Library(Protocol):
    """The part of `pynvml` that we use."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...


class NvmlThread:
    """Runs calls one after the other in a daemon thread: one that never returns cannot keep us from exiting."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending = 0
        threading.Thread(target=self._serve, name="nvml", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._calls.get()()

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """Call `function` from outside the loop and return its result. Raises MeasureFailed after `seconds`, else what `function` raises."""
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._calls.put(lambda: done.put(_outcome(function)))
        try:
            result, error = done.get(timeout=seconds)
        except queue.Empty:
            raise MeasureFailed(f"NVML has not answered for {seconds:g} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    async def ask(self, function: Callable[[], T], seconds: float) -> T:
        """Call `function` from inside the loop. Raises MeasureFailed at once while an earlier call still hangs, or after `seconds`."""
        if self._pending:
            raise MeasureFailed("NVML still has not answered an earlier question")
        loop, answered = current_token(), anyio.Event()
        outcome: list[tuple[T | None, BaseException | None]] = []

        def finish() -> None:
            self._pending -= 1
            answered.set()

        def work() -> None:
            outcome.append(_outcome(function))
            _call_in(loop, finish)

        self._pending += 1
        self._calls.put(work)
        with anyio.move_on_after(seconds):
            await answered.wait()
        if not outcome:
            raise MeasureFailed(f"NVML has not answered for {seconds:g} s")
        result, error = outcome[0]
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def _outcome(function: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return function(), None
    except Exception as error:  # handed to the caller
        return None, error


def _call_in(loop: EventLoopToken, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        in_loop(function, token=loop)


class NvmlGpus:
    """Real GPUs, by position in `[host] gpus`."""

    measures_others = True

    def __init__(self, library: Library, gpus: tuple[Gpu, ...], handles: Mapping[GpuId, Any], thread: NvmlThread) -> None:
        self.gpus = gpus
        self._library, self._handles, self._thread = library, handles, thread

    @classmethod
    def open(cls, wanted: Wanted, library: Library | None = None) -> "NvmlGpus":
        """Look up the `wanted` GPUs. Raises GpusUnusable: no driver, or a GPU that is not there."""
        chosen: Library = library if library is not None else cast("Library", pynvml)
        thread = NvmlThread()
        try:
            gpus, handles = thread.call(lambda: _list(chosen, wanted), OPEN_SECONDS)
        except MeasureFailed as error:
            raise GpusUnusable(f"{error}; is the NVIDIA driver well (`nvidia-smi`)?", key="host.gpus") from error
        return cls(chosen, gpus, handles, thread)

    async def measure(self, gpus: Collection[GpuId], pids: Mapping[GroupId, Collection[int]]) -> Usage:
        return await self._thread.ask(lambda: self._measure(tuple(gpus), pids), MEASURE_SECONDS)

    def _measure(self, gpus: tuple[GpuId, ...], pids: Mapping[GroupId, Collection[int]]) -> Usage:
        library, group_of = self._library, {pid: group for group, some in pids.items() for pid in some}
        total: dict[GpuId, int] = {}
        by_pid: dict[GpuId, dict[int, int]] = {}
        by_group: dict[GpuId, dict[GroupId, int]] = {}
        for gpu in gpus:
            try:
                handle = self._handles[gpu]
                total[gpu] = int(library.nvmlDeviceGetMemoryInfo(handle).used)
                processes = library.nvmlDeviceGetComputeRunningProcesses(handle)
            except library.NVMLError as error:
                raise MeasureFailed(f"NVML cannot measure GPU {gpu}: {error}") from error
            # the driver says None where it may not tell
            by_pid[gpu] = {process.pid: process.usedGpuMemory for process in processes if process.usedGpuMemory is not None}
            groups = by_group[gpu] = {}
            for pid, held in by_pid[gpu].items():
                if pid in group_of:
                    groups[group_of[pid]] = groups.get(group_of[pid], 0) + held
        return Usage(total, by_group, by_pid)

    def close(self) -> None:
        """Do nothing: the thread is a daemon, NVML needs no shutdown, and the call for one could hang."""


def _list(library: Library, wanted: Wanted) -> tuple[tuple[Gpu, ...], dict[GpuId, Any]]:
    try:
        library.nvmlInit()
        count = library.nvmlDeviceGetCount()
    except library.NVMLError as error:
        raise GpusUnusable(f"no NVIDIA driver here ({error})", key="host.gpus", value=_shown(wanted), remedy=_NO_GPU) from error
    if wanted == "auto" and not count:
        raise GpusUnusable("the driver shows no GPU", key="host.gpus", value=_shown(wanted), remedy=_NO_GPU)
    names: Sequence[int | str] = range(count) if isinstance(wanted, str) else wanted
    gpus: list[Gpu] = []
    handles: dict[GpuId, Any] = {}
    for position, name in enumerate(names):
        key, value = f"host.gpus[{position}]", repr(name)
        try:
            handle = library.nvmlDeviceGetHandleByUUID(name) if isinstance(name, str) else library.nvmlDeviceGetHandleByIndex(name)
            uuid = library.nvmlDeviceGetUUID(handle)
            memory = int(library.nvmlDeviceGetMemoryInfo(handle).total)
        except library.NVMLError as error:
            problem = f"not there ({error}); this box has {count} GPU(s), listed by `nvidia-smi -L`"
            raise GpusUnusable(problem, key=key, value=value) from error
        if any(gpu.uuid == uuid for gpu in gpus):
            raise GpusUnusable(f"listed twice ({uuid})", key=key, value=value)
        gpu = Gpu(GpuId(position), library.nvmlDeviceGetName(handle), uuid, memory, uuid)
        gpus.append(gpu)
        handles[gpu.id] = handle
    return tuple(gpus), handles


def _shown(wanted: Wanted) -> str:
    return f'"{wanted}"' if isinstance(wanted, str) else str(list(wanted))
