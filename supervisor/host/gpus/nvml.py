"""This module measures real GPUs through NVML, by UUID.

NVML runs in one thread of its own with a deadline: a driver that hangs never stops our loop, and is "unknown" until it answers again.

Memory is asked by NVML's second version: `used` of the first contains what the driver reserves (330 to 900 MiB), so that an idle GPU would
never be empty. What else is used before anything of ours lives (a display, say) is the *baseline* of the GPU, and is not counted.
Inside a container, or on a MIG instance, NVML may not know pids, or their bytes; the device's own sum is what counts then.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar, cast

import anyio
import pynvml
from anyio.from_thread import run_sync as in_loop
from anyio.lowlevel import EventLoopToken, current_token

from supervisor.host.gpus.emptiness import MIB, Usage
from supervisor.host.gpus.meter import Gpu, GpusUnusable, MeasureFailed
from trainers.protocol.ids import GpuId, GroupId

MEASURE_SECONDS: Final = 5.0
OPEN_SECONDS: Final = 30.0
MOST_BASELINE: Final = 1 << 30
"""Bytes that a GPU without any compute process may be in use before anything of ours lives; more is somebody's who is not shown."""
SLACK: Final = 128 * MIB
"""Bytes by which the driver's sum and the sum of its processes may differ, beside a tenth, where it is believed whose memory it is."""
MEMORY_V2: Final = 0x02000028
_LACKS_V2: Final = (3, 13, 25)  # not supported, function not found, argument version mismatch: drivers before R510
_NO_GPU: Final = "Without a GPU say `virtual = 4` in [host]"
T = TypeVar("T")
Wanted = Literal["auto"] | Sequence[int | str]


class Library(Protocol):
    """The part of `pynvml` that we use."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlSystemGetCudaDriverVersion(self) -> int: ...
    def nvmlSystemGetDriverVersion(self) -> str: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...
    def nvmlDeviceGetName(self, handle: Any) -> str: ...
    def nvmlDeviceGetIndex(self, handle: Any) -> int: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any: ...
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...
    def nvmlDeviceGetPersistenceMode(self, handle: Any) -> int: ...
    def nvmlDeviceGetTotalEccErrors(self, handle: Any, errorType: int, counterType: int) -> int: ...
    def nvmlDeviceGetRemappedRows(self, handle: Any) -> tuple[int, int, int, int]: ...
    def nvmlDeviceGetP2PStatus(self, one: Any, other: Any, index: int) -> int: ...
    def nvmlDeviceGetMigMode(self, handle: Any) -> Sequence[int]: ...
    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int: ...
    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any: ...


class Memory(NamedTuple):
    """Bytes of a GPU. `used` is without what the driver has `reserved`, where the driver tells them apart."""

    total: int
    reserved: int
    used: int


def memory_of(library: Library, handle: Any) -> Memory:
    """Ask for the memory of a GPU. Raises NVMLError."""
    try:
        info = library.nvmlDeviceGetMemoryInfo(handle, version=MEMORY_V2)
    except library.NVMLError as error:
        if getattr(error, "value", None) not in _LACKS_V2:
            raise
        info = library.nvmlDeviceGetMemoryInfo(handle)
        return Memory(int(info.total), 0, int(info.used))
    return Memory(int(info.total), int(info.reserved), int(info.used))


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
        self._baseline = {gpu.id: gpu.baseline_bytes for gpu in gpus}

    @classmethod
    def open(cls, wanted: Wanted, library: Library | None = None, environ: Mapping[str, str] = os.environ) -> "NvmlGpus":
        """Look up the `wanted` GPUs; "auto" means those that `environ` lets CUDA see. Nothing of ours may live there yet.

        Raises GpusUnusable: no driver, a GPU that is not there, or one that is divided (MIG).
        """
        chosen: Library = library if library is not None else cast("Library", pynvml)
        thread = NvmlThread()
        try:
            gpus, handles = thread.call(lambda: _list(chosen, wanted, environ), OPEN_SECONDS)
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
        unattributed: set[GpuId] = set()
        for gpu in gpus:
            try:
                handle = self._handles[gpu]
                used = memory_of(library, handle).used
                processes = library.nvmlDeviceGetComputeRunningProcesses(handle)
            except library.NVMLError as error:
                raise MeasureFailed(f"NVML cannot measure GPU {gpu}: {error}") from error
            self._baseline[gpu] = min(self._baseline[gpu], used)  # what an earlier run had left then may have gone meanwhile
            total[gpu] = used - self._baseline[gpu]
            # the driver says None, or 0, where it may not tell
            by_pid[gpu] = {process.pid: process.usedGpuMemory for process in processes if process.usedGpuMemory}
            groups = by_group[gpu] = {}
            if not _accounts_for(by_pid[gpu], total[gpu]):
                unattributed.add(gpu)
                by_pid[gpu] = {}
            for pid, held in by_pid[gpu].items():
                if pid in group_of:
                    groups[group_of[pid]] = groups.get(group_of[pid], 0) + held
        return Usage(total, by_group, by_pid, frozenset(unattributed), {gpu: self._baseline[gpu] for gpu in gpus})

    def handle(self, gpu: GpuId) -> Any:
        """Return what the driver knows a GPU by, for questions about two of them."""
        return self._handles[gpu]

    def used(self, gpu: GpuId) -> tuple[int, dict[int, int]]:
        """Return what is used on a GPU, and by which process as far as the driver says it. From outside of a loop. Raises MeasureFailed."""
        usage = self._thread.call(lambda: self._measure((gpu,), {}), MEASURE_SECONDS)
        return usage.total[gpu], dict(usage.by_pid[gpu])

    def look(self, gpu: GpuId, question: Callable[[Library, Any], T]) -> T | None:
        """Ask the driver something about a GPU; None where it cannot say it. From outside of a loop. Raises MeasureFailed when it hangs."""

        def ask() -> T | None:
            try:
                return question(self._library, self._handles[gpu])
            except self._library.NVMLError:
                return None

        return self._thread.call(ask, MEASURE_SECONDS)

    def close(self) -> None:
        """Do nothing: the thread is a daemon, NVML needs no shutdown, and the call for one could hang."""


def _accounts_for(by_pid: Mapping[int, int], used: int) -> bool:
    """Return whether these processes are of this machine's numbering, and hold together what is used: only then is it known whose memory it is."""
    named = sum(by_pid.values())
    return abs(used - named) <= max(SLACK, used // 10) and all(os.path.exists(f"/proc/{pid}") for pid in by_pid)


def _list(library: Library, wanted: Wanted, environ: Mapping[str, str]) -> tuple[tuple[Gpu, ...], dict[GpuId, Any]]:
    try:
        library.nvmlInit()
        count = library.nvmlDeviceGetCount()
    except library.NVMLError as error:
        raise GpusUnusable(f"no NVIDIA driver here ({error})", key="host.gpus", value=_shown(wanted), remedy=_NO_GPU) from error
    names: Sequence[int | str] = _seen_by_cuda(count, environ) if isinstance(wanted, str) else wanted
    if not names:
        seen = environ.get("CUDA_VISIBLE_DEVICES")
        problem = "the driver shows no GPU" if not count else f"CUDA_VISIBLE_DEVICES={seen} hides every GPU of this box"
        raise GpusUnusable(problem, key="host.gpus", value=_shown(wanted), remedy=_NO_GPU)
    gpus: list[Gpu] = []
    handles: dict[GpuId, Any] = {}
    for position, name in enumerate(names):
        key, value = ("host.gpus", '"auto"') if isinstance(wanted, str) else (f"host.gpus[{position}]", repr(name))
        try:
            handle = library.nvmlDeviceGetHandleByUUID(name) if isinstance(name, str) else library.nvmlDeviceGetHandleByIndex(name)
            gpu = _gpu(library, handle, GpuId(position))
            if instances := _instances(library, handle):
                problem = f"GPU {name} is divided into MIG instances, which are measured and lent one by one"
                raise GpusUnusable(problem, key=key, value=value, remedy=f"List the instances: gpus = {instances}")
        except library.NVMLError as error:
            problem = f"GPU {name} is not there ({error}); this box has {count} GPU(s), listed by `nvidia-smi -L`"
            raise GpusUnusable(problem, key=key, value=value) from error
        if any(other.uuid == gpu.uuid for other in gpus):
            raise GpusUnusable(f"listed twice ({gpu.uuid})", key=key, value=value)
        gpus.append(gpu)
        handles[gpu.id] = handle
    return tuple(gpus), handles


def _seen_by_cuda(count: int, environ: Mapping[str, str]) -> list[int | str]:
    """Return the GPUs that the caller's CUDA_VISIBLE_DEVICES leaves, as CUDA reads it: up to the first name that is none."""
    if (listed := environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return list(range(count))
    names: list[int | str] = []
    for name in (part.strip() for part in listed.split(",")):
        if not (name.isdigit() or name.startswith(("GPU-", "MIG-"))):
            break
        names.append(int(name) if name.isdigit() else name)
    return names


def _gpu(library: Library, handle: Any, id: GpuId) -> Gpu:
    uuid, memory = library.nvmlDeviceGetUUID(handle), memory_of(library, handle)
    index = None if uuid.startswith("MIG-") else library.nvmlDeviceGetIndex(handle)
    strangers = memory.used > MOST_BASELINE or library.nvmlDeviceGetComputeRunningProcesses(handle)
    baseline = 0 if strangers else memory.used
    name, room, cuda = library.nvmlDeviceGetName(handle), memory.total - memory.reserved, library.nvmlSystemGetCudaDriverVersion()
    return Gpu(id, name, uuid, room, uuid, index, memory.reserved, baseline, cuda)


def _instances(library: Library, handle: Any) -> list[str]:
    """Return the MIG instances of a GPU that is divided; none for an instance, a GPU that is whole, or one that cannot be divided."""
    with contextlib.suppress(library.NVMLError):
        if library.nvmlDeviceGetMigMode(handle)[0]:
            found = []
            for index in range(library.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with contextlib.suppress(library.NVMLError):
                    found.append(library.nvmlDeviceGetUUID(library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
            return found or ["MIG-…"]
    return []


def _shown(wanted: Wanted) -> str:
    return f'"{wanted}"' if isinstance(wanted, str) else str(list(wanted))
