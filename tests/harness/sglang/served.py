"""Engines under test, each a process of its own behind one face: ours, the scripted one, and real SGLang as the supervisor launches it."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from engines.lifecycle import members as shapes
from engines.sglang import command as sglang
from engines.sglang.versions import NEWEST
from supervisor.host.ports import Ports
from supervisor.runtime.kinds.sglang import open_in_shm
from tests.harness.engine_process import EngineProcess
from tests.harness.sglang import models

REAL = os.environ.get("TRAINSHED_SGLANG", "")
"""An environment made by `bin/sglang-cpu`; without it nothing here runs real SGLang."""
KEY = "key-of-this-life"
SLOTS, CONTEXT = 16, models.CONTEXT
START_S = 480.0
"""Half a minute on two quiet cores; minutes on busy ones."""
KINDS = ("embedded", "scripted", "sglang", "sglang-moe")


@dataclass
class Served:
    """`first` and `other` are two models of one shape; `first` is loaded as version 0. `computes`: tokens depend on weights."""

    kind: str
    url: str
    key: str
    pid: int
    log: Path
    first: Path
    other: Path

    @property
    def real(self) -> bool:
        return self.kind.startswith("sglang")

    @property
    def computes(self) -> bool:
        return self.kind != "scripted"

    def call(self, method: str, path: str, body: Any = None, timeout: float = 30) -> tuple[int, Any]:
        """Status and body (as JSON where it is JSON). Raises OSError when the connection breaks."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                status, raw = reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read().decode()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw

    def post(self, path: str, body: Any = None, timeout: float = 30) -> Any:
        status, answer = self.call("POST", path, {} if body is None else body, timeout)
        assert status == 200, (status, answer)
        return answer

    def alive(self) -> bool:
        try:
            return bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def dies(self, within: float) -> float | None:
        """Seconds until it has ended, None if it lives."""
        began = time.monotonic()
        while self.alive():
            if time.monotonic() - began > within:
                return None
            time.sleep(0.05)
        return time.monotonic() - began

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def available(kind: str) -> bool:
    return bool(REAL) or not kind.startswith("sglang")


def make_models(kind: str, directory: Path) -> tuple[Path, Path]:
    make = models.moe if kind == "sglang-moe" else models.dense
    return make(directory / "first"), make(directory / "other", seed=1)


@contextmanager
def serving(
    kind: str, directory: Path, *, args: Sequence[str] = (), env: Mapping[str, str] = MappingProxyType({}), deterministic: bool = False
) -> Iterator[Served]:
    """One engine of this kind, answering. `args` and `env`: an operator's, for those that are launched as SGLang; `deterministic` as in the file."""
    first, other = make_models(kind, directory)
    log = directory / "engine.log"
    if kind == "embedded":
        engine = EngineProcess(first, log, slots=SLOTS, context=CONTEXT, key=KEY)
        try:
            engine.wait_ready()
            yield Served(kind, engine.url, KEY, engine.pid, log, first, other)
        finally:
            engine.process.kill()
            engine.process.join(10)
        return
    with launched(kind, directory, first, log, args, env, deterministic=deterministic) as (url, process):
        wait_for(url, process, log)
        yield Served(kind, url, KEY, process.pid, log, first, other)


@contextmanager
def launched(
    kind: str,
    directory: Path,
    model: Path,
    log: Path,
    args: Sequence[str] = (),
    env: Mapping[str, str] = MappingProxyType({}),
    occupy: Callable[[int], None] = lambda port: None,
    *,
    deterministic: bool = False,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """As the supervisor launches it: the same ports, arguments and environment. `occupy` is told the port of its HTTP beforehand."""
    tp = 2 if kind == "sglang-moe" else 1
    python = f"{REAL}/bin/python" if kind != "scripted" else str(Path(__file__).parent.parent / "faulty_python")
    folder = Path(tempfile.mkdtemp(prefix="trainshed-test-", dir="/dev/shm"))
    ports = Ports(20000, 29999)
    window = ports.reserve(str(folder), shapes.WINDOW)
    occupy(window.first)
    (folder / "settings.yaml").write_bytes(sglang.settings(KEY))
    (member,) = shapes.shape("one", tp)
    spec = sglang.Spec(
        python=python,
        model=str(model),
        shape=shapes.arguments(member, 1, shapes.Ports(window.first), tp=tp, ep=tp),
        device="cpu",
        gpus=tp,
        slots=SLOTS,
        context=CONTEXT,
        kv_tokens=SLOTS * CONTEXT,
        seed=7,
        folder=str(folder),
        profile=NEWEST,
        deterministic=deterministic,
        cpus=sorted(os.sched_getaffinity(0)),
        args=["--dtype", "float32", *args] if kind != "scripted" else [],
    )
    whole = sglang.environment(spec, {"PATH": os.environ["PATH"], "HOME": str(directory)}, {"CUDA_VISIBLE_DEVICES": "", **env})
    if kind == "scripted":
        whole |= {"TRAINSHED_TAG": "run:test/engine/0:1", "TRAINSHED_GPUS": "virtual:0"}
    with open(log, "ab") as out:
        process = subprocess.Popen(sglang.arguments(spec), env=whole, cwd=directory, stdout=out, stderr=out, start_new_session=True)
    traces: set[Path] = set()
    stop = threading.Event()
    follower = threading.Thread(target=_follow, args=(process.pid, traces, stop))
    follower.start()
    try:
        yield f"http://127.0.0.1:{window.first}", process
    finally:
        stop.set()
        follower.join()
        _kill(process)
        for trace in traces:
            trace.unlink(missing_ok=True)
        shutil.rmtree(folder)
        ports.close()


def _follow(pid: int, traces: set[Path], stop: threading.Event) -> None:
    """What it has open in /dev/shm, as the supervisor notes it."""
    while not stop.wait(1.0):
        with suppress(psutil.NoSuchProcess):
            traces |= open_in_shm(frozenset([pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]))


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    request = urllib.request.Request(url + "/model_info", headers={"Authorization": f"Bearer {KEY}"})
    while True:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.1)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Its whole session, and wait until nothing of it is left."""
    members = [child for child in psutil.process_iter(["pid"]) if _session(child.pid) == process.pid]
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    psutil.wait_procs(members, timeout=10)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1
