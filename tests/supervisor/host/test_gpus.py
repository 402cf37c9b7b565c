"""The virtual meter against real processes, and NVML against a driver that misbehaves (there is none here)."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from trainshed.virtual_gpu import memfd_name

from supervisor.host.gpus.emptiness import MIB, Usage, judge
from supervisor.host.gpus.inventory import open_meter
from supervisor.host.gpus.meter import GpusUnusable, MeasureFailed, visible
from supervisor.host.gpus.nvml import NvmlGpus, NvmlThread
from supervisor.host.gpus.virtual import VirtualGpus
from supervisor.runtime.gpu_memory import GpuMemory
from supervisor.runtime.group_lifecycle import Groups
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuHeld
from trainers.protocol.child_env import OUR_PATH
from trainers.protocol.ids import EngineId, GpuId, GroupId, PipelineId, TrainerId

CHECKOUT = Path(__file__).resolve().parents[3]
P1 = PipelineId("p1")
ENGINE: GroupId = EngineId(P1, 0)
TRAINER: GroupId = TrainerId(P1)
ZERO, ONE, TEN = GpuId(0), GpuId(1), GpuId(10)
HOLDER = """
import mmap, os, sys
files = []
def hold(name, mib, touched):
    fd = os.memfd_create(name); os.ftruncate(fd, mib << 20)
    memory = mmap.mmap(fd, mib << 20)
    for page in range(0, touched << 20, 4096): memory[page] = 1
    files.append((fd, memory))
def close(index): os.close(files[index][0])
def drop(index): os.ftruncate(files[index][0], 0)
def fork():
    pid = os.fork()
    if pid == 0:
        while True: __import__("signal").pause()
    return pid
print("ready", flush=True)
for line in sys.stdin: print(eval(line), flush=True)
"""


class Holder:
    """A process that holds memory as it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.pid = process, process.pid
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, call: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(call + "\n")
        self.process.stdin.flush()
        return self._read()

    def hold(self, gpu: int, mib: int, touched: int | None = None) -> None:
        self.do(f"hold({memfd_name(gpu)!r}, {mib}, {mib if touched is None else touched})")


@contextmanager
def holder() -> Iterator[Holder]:
    line = [sys.executable, "-I", "-S", "-c", HOLDER]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield Holder(process)
        finally:
            with suppress(ProcessLookupError):  # the test may have killed it
                os.killpg(process.pid, signal.SIGKILL)


def measured(pids: dict[GroupId, list[int]], gpus: int = 11) -> dict[int, int]:
    """MiB in use by GPU, where it is not 0."""
    meter = VirtualGpus(gpus)
    usage = anyio.run(meter.measure, [gpu.id for gpu in meter.gpus], pids)
    return {gpu: round(used / MIB) for gpu, used in usage.total.items() if used}


def test_touched_memory_counts_by_gpu_and_released_memory_does_not() -> None:
    with holder() as process:
        process.hold(1, 8, 3)
        process.hold(10, 4)
        assert measured({ENGINE: [process.pid]}) == {1: 3, 10: 4}
        process.do("drop(0)")
        assert measured({ENGINE: [process.pid]}) == {10: 4}
        assert measured({ENGINE: []}) == {}
        process.do("os.memfd_create('trainshed-gpu-1x')")
        assert measured({ENGINE: [process.pid]}) == {10: 4}


def test_a_closed_descriptor_does_not_hide_a_mapping() -> None:
    with holder() as process:
        process.hold(0, 4, 2)
        # every descriptor of the file, also the one that the mmap object keeps
        process.do("[os.close(int(n)) for n in os.listdir('/proc/self/fd') if 'trainshed' in str(os.path.realpath('/proc/self/fd/' + n))]")
        left = process.do("[n for n in os.listdir('/proc/self/fd') if 'trainshed' in str(os.path.realpath('/proc/self/fd/' + n))]")
        assert left == "[]"
        used = measured({ENGINE: [process.pid]})
        assert used in ({0: 2}, {0: 4}), "exact where we may look, else the whole mapping; never nothing"


def test_memory_that_two_processes_share_counts_once() -> None:
    with holder() as process:
        process.hold(0, 4)
        child = int(process.do("fork()"))
        meter = VirtualGpus(1)
        usage = anyio.run(meter.measure, [ZERO], {ENGINE: [process.pid, child], TRAINER: [child]})
        assert round(usage.total[ZERO] / MIB) == 4
        assert {group: round(held / MIB) for group, held in usage.by_group[ZERO].items()} == {ENGINE: 4, TRAINER: 4}
        assert usage.by_pid[ZERO].keys() == {process.pid, child}


def test_death_frees_everything() -> None:
    with holder() as process:
        process.hold(0, 4)
        os.kill(process.pid, signal.SIGKILL)
        process.process.wait()
        assert measured({ENGINE: [process.pid]}) == {}


def test_the_name_is_the_one_that_our_engine_and_trainer_use() -> None:
    program = "import os; from trainshed.virtual_gpu import memfd_name\nfd = os.memfd_create(memfd_name(1))\n"
    program += "os.write(fd, b'x' * (2 << 20)); print(1, flush=True); input()"
    env = {**os.environ, "PYTHONPATH": OUR_PATH}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert measured({ENGINE: [process.pid]}) == {1: 2}
        process.kill()


def test_what_children_are_told() -> None:
    virtual = VirtualGpus(4).gpus
    assert visible(virtual[2:]).devices == ("virtual:2", "virtual:3")
    assert visible(virtual).env["CUDA_VISIBLE_DEVICES"] == ""
    real = NvmlGpus.open("auto", Driver()).gpus
    assert visible(real[1:]).devices == ("cuda:0",)
    assert visible(real[1:]).env == {"CUDA_VISIBLE_DEVICES": "GPU-b"}


class NoDriver(Exception):
    pass


class Driver:
    """NVML with two GPUs; `fault` raises or hangs in the next call of that name."""

    NVMLError: type[Exception] = NoDriver
    uuids = ("GPU-a", "GPU-b")

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.hang = threading.Event()
        self.used = {"GPU-a": 5 * MIB, "GPU-b": 0}
        self.processes: list[tuple[int, int | None]] = []

    def _may_fail(self, name: str) -> None:
        if self.fault == name:
            raise NoDriver("GPU is lost")
        if self.fault == f"hang {name}":
            self.hang.wait(5)

    def nvmlInit(self) -> None:
        self._may_fail("init")

    def nvmlDeviceGetCount(self) -> int:
        return 0 if self.fault == "none" else 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index >= 2:
            raise NoDriver("invalid argument")
        return self.uuids[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.uuids:
            raise NoDriver("not found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        self._may_fail("memory")
        return SimpleNamespace(total=100 * MIB, used=self.used[handle])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> Any:
        self._may_fail("processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes] if handle == "GPU-a" else []


def test_real_gpus_are_listed_and_measured() -> None:
    driver = Driver()
    meter = NvmlGpus.open(["GPU-b", "GPU-a"], driver)
    assert [(gpu.id, gpu.uuid, gpu.total_bytes) for gpu in meter.gpus] == [(0, "GPU-b", 100 * MIB), (1, "GPU-a", 100 * MIB)]
    driver.processes = [(11, 2 * MIB), (12, MIB), (99, MIB), (13, None)]
    usage = anyio.run(meter.measure, [ZERO, ONE], {ENGINE: [11, 12, 13], TRAINER: [14]})
    assert usage.total == {0: 0, 1: 5 * MIB}
    assert usage.by_group == {0: {}, 1: {ENGINE: 3 * MIB}}
    verdict = judge(ONE, usage, {}, MIB)
    assert not verdict.empty
    assert str(verdict) == "GPU 1 holds 5.0 MiB, 1.0 MiB are allowed: p1/engine/0 3.0 MiB, 2.0 MiB not of our groups"


@pytest.mark.parametrize("fault", ["memory", "processes"])
def test_an_error_is_never_free(fault: str) -> None:
    driver = Driver()
    meter = NvmlGpus.open("auto", driver)
    driver.fault = fault
    with pytest.raises(MeasureFailed, match="GPU is lost"):
        anyio.run(meter.measure, [ZERO], {})


def test_a_driver_that_hangs_does_not_stop_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.host.gpus.nvml.MEASURE_SECONDS", 0.1)
    driver = Driver()
    meter = NvmlGpus.open("auto", driver)

    async def main() -> None:
        driver.fault = "hang memory"
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await anyio.sleep(0.005)
                beats += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            with pytest.raises(MeasureFailed, match=r"not answered for 0\.1 s"):
                await meter.measure([ZERO], {})
            with pytest.raises(MeasureFailed, match="still has not answered"):
                await meter.measure([ZERO], {})
            assert beats > 5
            driver.fault = ""
            driver.hang.set()
            with anyio.fail_after(5):
                answered: list[Usage] = []
                while not answered:
                    with suppress(MeasureFailed):
                        answered.append(await meter.measure([ZERO], {}))
                    await anyio.sleep(0.01)
            assert answered[0].total == {0: 5 * MIB}
            tasks.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.parametrize(
    ("wanted", "fault", "words"),
    [
        ({"virtual": 2, "gpus": "auto"}, "", "host.gpus and host.virtual are both given"),
        ({"gpus": "auto"}, "init", r"no NVIDIA driver here .* say `virtual = 4`"),
        ({"gpus": "auto"}, "none", "the driver shows no GPU"),
        ({"gpus": [0, 7]}, "", r"host.gpus\[1\] = 7: not there .* this box has 2 GPU\(s\)"),
        ({"gpus": ["GPU-a", "GPU-z"]}, "", r"host.gpus\[1\] = 'GPU-z': not there"),
        ({"gpus": ["GPU-a", "GPU-a"]}, "", "listed twice"),
    ],
)
def test_wrong_lists_name_their_key(wanted: dict[str, Any], fault: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.host.gpus.nvml.pynvml", Driver(fault))
    with pytest.raises(GpusUnusable, match=words):
        open_meter(**wanted)


def test_a_driver_that_hangs_at_the_start_is_named() -> None:
    thread = NvmlThread()
    with pytest.raises(MeasureFailed):
        thread.call(threading.Event().wait, 0.05)


def test_virtual_gpus_from_the_configuration() -> None:
    meter = open_meter(virtual=3)
    assert [gpu.device for gpu in meter.gpus] == ["virtual:0", "virtual:1", "virtual:2"]
    assert not meter.measures_others


@pytest.mark.parametrize(
    ("who", "named", "strangers"),
    [
        ("stranger", True, (ZERO,)),
        ("child of ours", True, ()),  # of which group, nobody knows
        ("stranger", False, ()),  # a driver that has never named a process of ours may mean other pids
        ("ours", True, ()),
    ],
)
def test_a_gpu_is_a_strangers_when_a_process_outside_of_ours_has_what_is_too_much(
    who: str, named: bool, strangers: tuple[GpuId, ...]
) -> None:
    driver = Driver()
    child = subprocess.Popen(["/bin/sleep", "60"])
    try:
        pid = {"stranger": os.getppid(), "child of ours": child.pid, "ours": 11}[who]
        driver.processes = [(11 if named else 12, MIB), (pid, 4 * MIB)]
        nothing: Any = None

        class Ours(Groups):
            async def pids(self, but: object = None) -> dict[GroupId, frozenset[int]]:
                return {ENGINE: frozenset({11})}

        memory = GpuMemory(NvmlGpus.open("auto", driver), Ours(nothing, nothing), nothing, 1)
        answer = anyio.run(memory.measure, Measure(id=1, holder=ENGINE, gpus=(ZERO,), within=0.0))
    finally:
        child.kill()
        child.wait()
    assert isinstance(answer, GpuHeld)
    assert answer.strangers == strangers
