"""The virtual meter against real processes, and NVML against the scripted driver, which behaves as published (there is none here)."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import structlog
from trainshed.virtual_gpu import memfd_name

from supervisor.host.gpus.emptiness import MIB, Usage, judge
from supervisor.host.gpus.inventory import open_meter
from supervisor.host.gpus.meter import GpusUnusable, MeasureFailed, visible
from supervisor.host.gpus.nvml import NvmlGpus, NvmlThread
from supervisor.host.gpus.residuals import Rules
from supervisor.host.gpus.virtual import VirtualGpus
from supervisor.runtime.gpu_memory import GpuMemory
from supervisor.runtime.group_lifecycle import Groups
from supervisor.scheduler.actions import Measure
from supervisor.scheduler.events import GpuHeld
from tests.harness.gpu_box import PROFILES, Box
from trainers.protocol.child_env import OUR_PATH
from trainers.protocol.ids import EngineId, GpuId, GroupId, Incarnation, PipelineId, TrainerId

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


Make = Callable[..., Box]


@pytest.fixture
def box(tmp_path: Path, nvml: Path) -> Iterator[Make]:
    """Makes a scripted box that this process asks."""
    with ExitStack() as stack:

        def make(profile: str = "h100", cards: int = 2, **changes: Any) -> Box:
            made = Box(tmp_path / "box", replace(PROFILES[profile], **changes), cards, library=nvml)
            stack.enter_context(made.here())
            return made

        yield make


@pytest.mark.parametrize("profile", PROFILES)
def test_an_idle_gpu_is_empty_whatever_its_driver_reserves(profile: str, box: Make) -> None:
    """A1: the first version of NVML's `used` contains the reserve, 330 to 900 MiB."""
    made = box(profile)
    meter = NvmlGpus.open(made.names)
    usage = anyio.run(meter.measure, [ZERO, ONE], {})
    assert usage.total == {0: 0, 1: 0}
    assert judge(ZERO, usage, {}, 0).empty
    counted = made.profile.reserved if made.profile.v2 else 0
    assert meter.gpus[0].total_bytes == (made.profile.total - counted) * MIB


def test_what_was_there_before_us_is_the_baseline_unless_it_may_be_a_neighbour(box: Make) -> None:
    made = box("rtx4090", cards=4)
    made.foreign(1, 2000, compute=False)  # more than any display takes
    made.foreign(2, 600, pid=os.getppid())  # a process that computes
    meter = NvmlGpus.open("auto")
    assert [gpu.baseline_bytes // MIB for gpu in meter.gpus] == [412, 0, 0, 412]
    usage = anyio.run(meter.measure, [gpu.id for gpu in meter.gpus], {})
    assert [used // MIB for used in usage.total.values()] == [0, 2000, 600, 0]
    made.foreign(0, 100, compute=False)  # the display has let go: nobody else may have what it had
    usage = anyio.run(meter.measure, [ZERO], {})
    made.foreign(0, 412, compute=False)
    assert anyio.run(meter.measure, [ZERO], {}).total == {0: 312 * MIB}


def test_real_gpus_are_listed_and_measured(box: Make) -> None:
    made = box()
    meter = NvmlGpus.open([made.uuids[1], made.uuids[0]])
    assert [(gpu.id, gpu.uuid, gpu.index) for gpu in meter.gpus] == [(0, "GPU-00000001", 1), (1, "GPU-00000000", 0)]
    with holder() as one, holder() as other, holder() as stranger:
        made.hold(0, 2000, one.pid)
        made.hold(0, 1000, other.pid)
        made.hold(0, 3000, stranger.pid)
        usage = anyio.run(meter.measure, [ZERO, ONE], {ENGINE: [one.pid, other.pid], TRAINER: [os.getpid()]})
    assert usage.total == {0: 0, 1: 6000 * MIB}
    assert usage.by_group == {0: {}, 1: {ENGINE: 3000 * MIB}}
    verdict = judge(ONE, usage, {}, MIB)
    assert not verdict.empty
    assert str(verdict) == "GPU 1 holds 6000.0 MiB, 1.0 MiB are allowed: p1/engine/0 3000.0 MiB, 3000.0 MiB not of our groups"


@pytest.mark.parametrize("pids", ["hidden", "zero", "host", "none"])
def test_whose_memory_it_is_is_not_said_where_the_driver_does_not_know(pids: str, box: Make) -> None:
    """A3: in containers the list of processes is empty, has the host's pids, or 0 bytes; on MIG it has none."""
    made = box(pids=pids)
    meter = NvmlGpus.open("auto")
    made.hold(0, 1100)
    usage = anyio.run(meter.measure, [ZERO], {ENGINE: [os.getpid(), os.getpid() + 4_000_000]})
    assert usage.total == {0: 1100 * MIB}
    assert usage.by_group == {0: {}}
    assert usage.unattributed == {ZERO}
    assert "(the driver does not say whose)" in str(judge(ZERO, usage, {}, 0))


def test_what_is_kept_goes_with_the_process_and_late_where_the_driver_is_late(box: Make) -> None:
    made = box(late_ms=400)
    meter = NvmlGpus.open("auto")
    with holder() as process:
        made.hold(0, 700, process.pid)
        assert anyio.run(meter.measure, [ZERO], {}).total == {0: 700 * MIB}
        os.kill(process.pid, signal.SIGKILL)
        process.process.wait()
        assert anyio.run(meter.measure, [ZERO], {}).total == {0: 700 * MIB}
        deadline = time.monotonic() + 5
        while anyio.run(meter.measure, [ZERO], {}).total[ZERO]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_card_that_falls_off_the_bus_is_not_free(box: Make) -> None:
    made = box()
    meter = NvmlGpus.open("auto")
    made.change("card.0", lost=1)
    with pytest.raises(MeasureFailed, match=r"GPU 0: GPU is lost"):
        anyio.run(meter.measure, [ZERO], {})
    assert anyio.run(meter.measure, [ONE], {}).total == {1: 0}


def test_a_driver_that_hangs_does_not_stop_the_loop(monkeypatch: pytest.MonkeyPatch, box: Make) -> None:
    monkeypatch.setattr("supervisor.host.gpus.nvml.MEASURE_SECONDS", 0.1)
    made = box()
    meter = NvmlGpus.open("auto")

    async def main() -> None:
        made.change("driver", hang_ms=300)
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
            made.change("driver", hang_ms=0)
            with anyio.fail_after(5):
                answered: list[Usage] = []
                while not answered:
                    with suppress(MeasureFailed):
                        answered.append(await meter.measure([ZERO], {}))
                    await anyio.sleep(0.01)
            assert answered[0].total == {0: 0}
            tasks.cancel_scope.cancel()

    anyio.run(main)


@pytest.mark.parametrize(
    ("wanted", "driver", "words"),
    [
        ({"virtual": 2, "gpus": "auto"}, {}, "host.gpus and host.virtual are both given"),
        ({"gpus": "auto"}, {"error": 9}, r"no NVIDIA driver here .* say `virtual = 4`"),
        ({"gpus": [0, 7]}, {}, r"host.gpus\[1\] = 7: GPU 7 is not there .* this box has 2 GPU\(s\)"),
        ({"gpus": ["GPU-00000000", "GPU-z"]}, {}, r"host.gpus\[1\] = 'GPU-z': GPU GPU-z is not there"),
        ({"gpus": ["GPU-00000000", "GPU-00000000"]}, {}, "listed twice"),
    ],
)
def test_wrong_lists_name_their_key(wanted: dict[str, Any], driver: dict[str, int], words: str, box: Make) -> None:
    box().change("driver", **driver)
    with pytest.raises(GpusUnusable, match=words):
        open_meter(**wanted)


def test_a_driver_without_a_gpu_is_named(box: Make) -> None:
    box(cards=0)
    with pytest.raises(GpusUnusable, match="the driver shows no GPU"):
        open_meter("auto")


@pytest.mark.parametrize(
    ("seen", "indices"),
    [("1", [1]), ("2,0", [2, 0]), ("GPU-00000002,GPU-00000001", [2, 1]), ("0,-1,2", [0]), (" 1 , 2", [1, 2])],
)
def test_auto_is_what_the_callers_cuda_would_see(seen: str, indices: list[int], box: Make) -> None:
    """B4: on a shared box the others are a neighbour's."""
    box(cards=3)
    assert [gpu.index for gpu in NvmlGpus.open("auto", environ={"CUDA_VISIBLE_DEVICES": seen}).gpus] == indices
    with pytest.raises(GpusUnusable, match="CUDA_VISIBLE_DEVICES= hides every GPU"):
        NvmlGpus.open("auto", environ={"CUDA_VISIBLE_DEVICES": ""})
    assert len(NvmlGpus.open("auto", environ={}).gpus) == 3


def test_a_card_that_is_divided_is_lent_by_its_instances(box: Make) -> None:
    made = box("mig-3g.40gb")
    with pytest.raises(GpusUnusable, match=r"is divided into MIG instances.* gpus = \['MIG-00000000', 'MIG-00000001'\]"):
        NvmlGpus.open("auto", environ={})
    gpus = NvmlGpus.open(made.names).gpus
    assert [(gpu.uuid, gpu.index) for gpu in gpus] == [("MIG-00000000", None), ("MIG-00000001", None)]
    assert visible(gpus).env == {"CUDA_VISIBLE_DEVICES": "MIG-00000000,MIG-00000001"}


def test_what_children_are_told(box: Make) -> None:
    """B2: SGLang's custom all-reduce reads the list as numbers; they are right in the order of the bus."""
    virtual = VirtualGpus(4).gpus
    assert visible(virtual[2:]).devices == ("virtual:2", "virtual:3")
    assert visible(virtual).env["CUDA_VISIBLE_DEVICES"] == ""
    box(cards=3)
    real = NvmlGpus.open([2, 0]).gpus
    assert visible(real[:1]).devices == ("cuda:0",)
    assert visible(real[:1]).env == {"CUDA_VISIBLE_DEVICES": "GPU-00000002"}
    assert visible(real).devices == ("cuda:0", "cuda:1")
    assert visible(real).env == {"CUDA_VISIBLE_DEVICES": "2,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_a_driver_that_hangs_at_the_start_is_named() -> None:
    thread = NvmlThread()
    with pytest.raises(MeasureFailed):
        thread.call(threading.Event().wait, 0.05)


def test_virtual_gpus_from_the_configuration() -> None:
    meter = open_meter(virtual=3)
    assert [gpu.device for gpu in meter.gpus] == ["virtual:0", "virtual:1", "virtual:2"]
    assert not meter.measures_others


@pytest.mark.parametrize(
    ("who", "pids", "strangers"),
    [
        ("stranger", "shown", (ZERO,)),
        ("child of ours", "shown", ()),  # of which group, nobody knows
        ("stranger", "host", ()),  # a driver that does not know our pids may mean others
        ("ours", "shown", ()),
    ],
)
def test_a_gpu_is_a_strangers_when_a_process_outside_of_ours_has_what_is_too_much(
    who: str, pids: str, strangers: tuple[GpuId, ...], box: Make
) -> None:
    made = box(pids=pids)
    meter = NvmlGpus.open("auto")
    with holder() as ours, holder() as child:
        made.hold(0, 100, ours.pid)
        if who == "stranger":
            made.foreign(0, 400, pid=os.getppid())
        else:
            made.hold(0, 400, child.pid)
        pids_of_ours = frozenset({ours.pid, child.pid} if who == "ours" else {ours.pid})
        nothing: Any = None

        class Ours(Groups):
            async def pids(self, but: object = None) -> dict[GroupId, frozenset[int]]:
                return {ENGINE: pids_of_ours}

            def __iter__(self) -> Iterator[Any]:
                return iter([SimpleNamespace(id=ENGINE, incarnation=1)])

        loop: Any = SimpleNamespace(log_for=lambda *_: structlog.testing.CapturingLogger())
        memory = GpuMemory(meter, Ours(nothing, nothing), loop, Rules(50 * MIB, {(ENGINE, ZERO): 100 * MIB}, {}))
        answer = anyio.run(memory.measure, Measure(id=1, holder=ENGINE, gpus=(ZERO,), within=0.0))
    assert isinstance(answer, GpuHeld)
    assert answer.strangers == strangers
    learned = {ENGINE: 100 * MIB} if strangers else {}
    assert memory.residuals.kept(ZERO, {ENGINE: Incarnation(1)}) == learned, "who has left is known, whoever has come meanwhile"
