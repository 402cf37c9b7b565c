"""A cycle of allocation and release, measured on a real card: what a bare CUDA context takes, whose the driver says it is, and how soon it is back.

This file is also the program that allocates: standard library only, through `libcuda.so.1`, so that it says something about the driver and nothing
about any framework. `python -I -S cycle.py BYTES` makes a context, allocates, frees, and tells each step; it waits for a line between them.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from supervisor.host.gpus.nvml import NvmlGpus
    from trainers.protocol.ids import GpuId

BYTES: Final = 256 << 20
STEP_S: Final = 60.0
"""Seconds for one step; the first context on a box without persistence mode takes several."""
BACK_S: Final = 10.0
NEAR: Final = 32 << 20
STEPS: Final = ("context", "allocated", "freed")


@dataclass(frozen=True)
class Cycle:
    """What was measured on one card. Bytes and seconds; None where a step was not reached. `problem` says why, empty where all went well.

    `attributed`: the driver says whose memory it is, by a pid that is ours. `kept` is what stays after the free, beside the context.
    """

    context: int | None = None
    allocated: int | None = None
    kept: int | None = None
    attributed: bool | None = None
    make_s: float | None = None
    back_s: float | None = None
    problem: str = ""


def measure_cycle(meter: "NvmlGpus", gpu: "GpuId", device: str) -> Cycle:
    """Play the cycle on a card that nobody uses. `device` is its name for CUDA_VISIBLE_DEVICES. Raises MeasureFailed."""
    before = meter.used(gpu)[0]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": device}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(BYTES)],
        env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    ) as child:  # fmt: skip
        try:
            return _follow(meter, gpu, child, before)
        finally:
            child.kill()


def _follow(meter: "NvmlGpus", gpu: "GpuId", child: "subprocess.Popen[str]", before: int) -> Cycle:
    assert child.stdin is not None
    assert child.stdout is not None
    used: dict[str, int] = {}
    attributed, began = None, time.monotonic()
    made_s = None
    for step in STEPS:
        if (said := _line(child.stdout, child)) != step:
            return Cycle(
                used.get("context"), used.get("allocated"), None, attributed, made_s, None, said or "the program ended without a word"
            )
        if step == "context":
            made_s = time.monotonic() - began
        total, by_pid = meter.used(gpu)
        used[step] = total - before
        if step == "allocated":
            attributed = by_pid.get(child.pid, 0) > BYTES // 2
        if step != STEPS[-1]:
            child.stdin.write("on\n")
            child.stdin.flush()
    child.kill()
    child.wait()
    killed = time.monotonic()
    while (back := meter.used(gpu)[0] - before) > NEAR and time.monotonic() < killed + BACK_S:
        time.sleep(0.005)
    back_s = time.monotonic() - killed if back <= NEAR else None
    problem = "" if back_s is not None else f"{back >> 20} MiB were still used {BACK_S:.0f} s after the process was killed"
    context = used["context"]
    return Cycle(context, used["allocated"] - context, used["freed"] - context, attributed, made_s, back_s, problem)


def _line(stream: IO[str], child: "subprocess.Popen[str]") -> str:
    """Read one line, and kill a program that hangs in the driver."""
    import threading

    timer = threading.Timer(STEP_S, child.kill)
    timer.start()
    try:
        return stream.readline().strip()
    finally:
        timer.cancel()


# -- the program


def steps(size: int) -> Iterator[str]:
    """Yield the name of each step when it is done. Raises OSError without a driver, RuntimeError when the driver refuses."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            raise RuntimeError(f"{name} answered {code}")

    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    yield STEPS[0]
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(size))
    yield STEPS[1]
    call("cuMemFree_v2", memory)
    call("cuCtxSynchronize")
    yield STEPS[2]


def main() -> None:
    out = Path("/dev/stdout")
    with out.open("w", encoding="utf-8") as say, contextlib.suppress(BrokenPipeError):
        try:
            for step in steps(int(sys.argv[1])):
                say.write(step + "\n")
                say.flush()
                sys.stdin.readline()
        except (OSError, RuntimeError, AttributeError) as error:
            say.write(f"{error}\n")


if __name__ == "__main__":
    main()
