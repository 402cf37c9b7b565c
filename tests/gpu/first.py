"""The first seven minutes on a real card: nine steps, each a process with a time limit, one JSON line each, and on after a failure.

    python tests/gpu/first.py [OUT] [STEP ...]        OUT is a folder (here by default); its first.jsonl gets a line a step

It needs this checkout, its Python (`bin/setup`), and a card that nobody uses; it starts no SGLang. Without a card each step that needs one says
"no GPU", and what can be said without one is said. docs/gpu.md has what the figures mean and where to send them.
"""

import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
MIB, GIB = 1 << 20, 1 << 30
Said = dict[str, Any]
NO_GPU: Said = {"said": "no GPU"}


# -- what steps share


def driver() -> Any:
    """The driver's NVML, or None where there is no card."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError:
        return None


def on_card() -> bool:
    """Whether torch can use a card."""
    if driver() is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def used() -> int:
    """Bytes in use on the first card, without the driver's reserve."""
    nvml = driver()
    return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0), version=nvml.nvmlMemory_v2).used)


def by_pid() -> dict[int, int | None]:
    nvml = driver()
    return {process.pid: process.usedGpuMemory for process in nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(0))}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'trainers/client'}", **more}


class Child:
    """A process of this file that says a word at each stage and waits to go on."""

    def __init__(self, name: str, **env: str) -> None:
        line = [sys.executable, __file__, "--child", name]
        self.process = subprocess.Popen(line, env=environment(**env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def stages(self) -> Iterator[str]:
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        for line in self.process.stdout:
            yield line.strip()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write("on\n")
                self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def stage(name: str) -> None:
    print(name, flush=True)
    sys.stdin.readline()


def timed(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest of some times, the device's work included."""
    import torch

    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def gb_s(size: int, seconds: float) -> float:
    return round(size / seconds / 1e9, 2)


# -- 1: what NVML says, and what a process takes


def nvml() -> Said:
    library = driver()
    if library is None:
        return NO_GPU
    handle = library.nvmlDeviceGetHandleByIndex(0)
    first, second = library.nvmlDeviceGetMemoryInfo(handle), library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2)
    said: Said = {
        "card": library.nvmlDeviceGetName(handle), "driver": library.nvmlSystemGetDriverVersion(),
        "cuda": library.nvmlSystemGetCudaDriverVersion(), "v1_used_mib": first.used >> 20, "v2_used_mib": second.used >> 20,
        "reserved_mib": second.reserved >> 20, "total_mib": second.total >> 20,
    }  # fmt: skip
    for name, ask in (("persistence", library.nvmlDeviceGetPersistenceMode), ("mig", library.nvmlDeviceGetMigMode)):
        with contextlib.suppress(library.NVMLError):
            said[name] = ask(handle)
    if not on_card():
        return said | {"said": "torch sees no GPU"}
    before = used()
    child = Child("context")
    took = {}
    for name in child.stages():
        listed = by_pid()
        took[name] = {
            "device_mib": (used() - before) >> 20,
            "pid_is_ours": child.pid in listed,
            "pid_mib": (listed.get(child.pid) or 0) >> 20,
        }
        if name == "nccl":
            break
    child.kill()
    killed = time.perf_counter()
    while used() - before > 16 * MIB and time.perf_counter() < killed + 10:
        time.sleep(0.002)
    return said | {"stages": took, "back_ms_after_kill": round((time.perf_counter() - killed) * 1000)}


def child_context() -> None:
    import torch

    torch.cuda.init()
    torch.zeros(1, device="cuda")
    stage("context")
    square = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    (square @ square).sum().item()
    stage("matmul")
    del square
    torch.cuda.empty_cache()
    stage("empty_cache")
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    stage("no_workspaces")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("nccl")
    torch.distributed.all_reduce(torch.ones(1, device="cuda"))
    torch.cuda.empty_cache()
    stage("nccl")


# -- 2: shared memory


def shm() -> Said:
    from supervisor.config.machine.host_room import memory_free, shared_memory

    found = shared_memory("/dev/shm")
    said: Said = {"flags": sorted(found.flags), "total_mib": (found.total or 0) >> 20, "memory_free_mib": (memory_free() or 0) >> 20}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if compiler := shutil.which("cc"):
            source = Path(folder, "a.c")
            source.write_text("int nothing;\n")
            subprocess.run([compiler, "-shared", "-fPIC", "-o", f"{folder}/a.so", str(source)], check=True)
            try:
                ctypes.CDLL(f"{folder}/a.so")
                said["loads_from_shm"] = True
            except OSError as error:
                said["loads_from_shm"] = str(error)
        began = time.perf_counter()
        with open(f"{folder}/room", "wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, GIB)
            said["fallocate_fresh_gb_s"] = gb_s(GIB, time.perf_counter() - began)
        if not on_card():
            return said | NO_GPU
        program = "import torch; f = torch.compile(lambda a: (a.sin() + 1).sum()); print(f(torch.ones(1000, device='cuda')).item())"
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], env=environment(TMPDIR=folder), capture_output=True, text=True, check=False)
        said["inductor_with_tmpdir_there"] = done.stderr.strip()[-300:] if done.returncode else round(time.perf_counter() - began, 1)
    return said


# -- 3: the memory saver


def tms() -> Said:
    from supervisor.config.machine.interpreter import cuda_parts

    if not on_card():
        return NO_GPU
    parts = cuda_parts(sys.executable, dict(os.environ), 30)
    if parts is None or parts.preload is None:
        return {"said": "torch_memory_saver is not in this environment; nothing was tried"}
    said: Said = {"preload": Path(parts.preload).name}
    libraries = ":".join(parts.libraries)
    for name, path in (("without_library_path", ""), ("with_library_path", libraries)):
        env = environment(LD_PRELOAD=parts.preload, LD_LIBRARY_PATH=path)
        said[f"exit_{name}"] = subprocess.run([sys.executable, "-c", "pass"], env=env, capture_output=True, check=False).returncode
    for retain in ("0", "1"):
        before = used()
        child = Child("tms", LD_PRELOAD=parts.preload, LD_LIBRARY_PATH=libraries, TMS_RETAIN_CPU_BACKUP=retain)
        cycles = []
        for word in child.stages():
            name, _, figure = word.partition(" ")
            cycles.append(
                {"stage": name, "said": figure, "device_mib": (used() - before) >> 20, "pid_mib": (by_pid().get(child.pid) or 0) >> 20}
            )
        said[f"retain_{retain}"] = {"stages": cycles, "exit": child.process.wait()}
    return said


def child_tms() -> None:
    import torch
    from torch_memory_saver import torch_memory_saver as saver

    room = torch.cuda.mem_get_info()[0]
    sizes = {"weights": min(15 * GIB, room // 6), "kv_cache": min(40 * GIB, room // 3), "cuda_graph": min(GIB // 2, room // 40)}
    held = {}
    for tag, size in sizes.items():
        with saver.region(tag=tag, enable_cpu_backup=tag == "cuda_graph"):
            held[tag] = torch.full((size,), 7, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    stage("full")
    for _ in range(5):
        began = time.perf_counter()
        for tag in sizes:
            saver.pause(tag)
        torch.cuda.synchronize()
        stage(f"paused {time.perf_counter() - began:.3f} s")
        began = time.perf_counter()
        for tag in sizes:
            saver.resume(tag)
        torch.cuda.synchronize()
        stage(f"resumed {time.perf_counter() - began:.3f} s")
    stage(f"contents weights={int(held['weights'][0])} cuda_graph={int(held['cuda_graph'][0])}")


# -- 4: copies


def copies() -> Said:
    import torch

    size = 4 * GIB if on_card() else GIB // 4
    host = torch.ones(size, dtype=torch.uint8)
    other = torch.empty_like(host)
    said: Said = {"memcpy_gb_s": gb_s(size, timed(lambda: other.copy_(host))), "threads": torch.get_num_threads()}
    if not on_card():
        return said | NO_GPU
    said |= _host_and_card(host)
    for dtype in (torch.float32, torch.bfloat16):
        said[f"snapshot_{str(dtype).partition('.')[2]}"] = _snapshot(dtype)
    return said


def _host_and_card(host: Any) -> Said:
    """Both ways between this memory and the card, and from pinned memory and a registered file in shared memory."""
    import torch

    size = host.numel()
    said: Said = {}
    card = torch.empty(size, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    said["pageable"] = {"h2d": gb_s(size, timed(lambda: card.copy_(host))), "d2h": gb_s(size, timed(lambda: host.copy_(card)))}
    said["pinned"] = {
        "h2d": gb_s(size, timed(lambda: card.copy_(pinned, non_blocking=True))),
        "d2h": gb_s(size, timed(lambda: pinned.copy_(card, non_blocking=True))),
    }
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            mapped = torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8)
            began = time.perf_counter()
            code = int(torch.cuda.cudart().cudaHostRegister(mapped.data_ptr(), size, 0))
            register_s = round(time.perf_counter() - began, 2)
            h2d = gb_s(size, timed(lambda: card.copy_(mapped, non_blocking=True)))
            said["registered"] = {"code": code, "register_s": register_s, "h2d": h2d}
            torch.cuda.cudart().cudaHostUnregister(mapped.data_ptr())
        except (OSError, RuntimeError) as error:
            said["registered"] = {"failed": str(error)}
    return said


def _snapshot(dtype: Any) -> Said:
    """One gigabyte of parameters: written as the client does, and read back to the card by one thread and by eight, from one file and from eight."""
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        parts = [torch.randn(GIB // 32, device="cuda", dtype=torch.float32).to(dtype) for _ in range(8)]
        size = sum(part.numel() * part.element_size() for part in parts)
        wrote = timed(lambda: save_file({str(i): part for i, part in enumerate(parts)}, f"{folder}/one.safetensors"), 1)
        for index, part in enumerate(parts):
            save_file({str(index): part}, f"{folder}/{index}.safetensors")
        from concurrent.futures import ThreadPoolExecutor

        def all_of_them(threads: int) -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda index: load_file(f"{folder}/{index}.safetensors", device="cuda"), range(8)))

        return {
            "write_gb_s": gb_s(size, wrote),
            "one_file_gb_s": gb_s(size, timed(lambda: load_file(f"{folder}/one.safetensors", device="cuda"), 2)),
            "eight_files_one_thread_gb_s": gb_s(size, timed(lambda: all_of_them(1), 2)),
            "eight_files_eight_threads_gb_s": gb_s(size, timed(lambda: all_of_them(8), 2)),
        }


# -- 5: a trainer's residents


def resident() -> Said:
    import torch
    from trainshed.resident import Resident

    if not on_card():
        return NO_GPU
    before = used()
    model = torch.nn.Sequential(*[torch.nn.Linear(4096, 4096, bias=False) for _ in range(16)])  # 1 GiB
    optimizer = torch.optim.Adam(model.parameters())
    held = Resident("cuda:0")
    held.add(model, optimizer)
    said: Said = {"parameters_mib": sum(p.numel() * 4 for p in model.parameters()) >> 20}
    held.onload()
    model(torch.randn(8, 4096, device="cuda")).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    said["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
    said["held_mib"] = (used() - before) >> 20
    cycles = []
    for _ in range(3):
        off = timed(held.offload, 1)
        left = (used() - before) >> 20
        cycles.append({"off_s": round(off, 2), "left_mib": left, "on_s": round(timed(held.onload, 1), 2)})
    return said | {"cycles": cycles}


# -- 6: the fork server


def prewarm() -> Said:
    from supervisor.host.processes.pool import PRELOAD

    os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OMP_NUM_THREADS": "1"}  # as the supervisor sets them there
    for module in PRELOAD:
        __import__(module)
    said: Said = {"threads": len(os.listdir("/proc/self/task")), "preloaded": list(PRELOAD)}
    if driver() is not None:
        said["server_has_a_context"] = os.getpid() in by_pid()
    if not on_card():
        return said | NO_GPU
    reader, writer = os.pipe()
    if os.fork() == 0:
        import torch

        try:
            answer = {"works": float(torch.ones(2, device="cuda").sum()) == 2.0, "bad_fork": torch.cuda._is_in_bad_fork()}
        except Exception as error:  # told, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    return said | {"child": json.loads(os.read(reader, 4096))}


# -- 7 and 8: whole runs with default settings


def run_default() -> Said:
    return NO_GPU if not on_card() else _run(hurt=False)


def run_hurt() -> Said:
    return NO_GPU if not on_card() else _run(hurt=True)


def _run(hurt: bool) -> Said:
    """The quickstart on one card: two pipelines of five steps, embedded engines on it; kill -9 of an engine and of a trainer, if it is to be hurt."""
    text = (CHECKOUT / "examples" / "quickstart.toml").read_text()
    text = text.replace("virtual = 4", "gpus = [0]").replace("gpus = [0, 1, 2, 3]", "gpus = [0]")
    text = text.replace("gpus = [0, 1] ", "gpus = [0] ").replace("gpus = [2, 3]", "gpus = [0]")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "one.toml").write_text(text)
        guardian = CHECKOUT / "supervisor" / "host" / "processes" / "guardian.py"
        began = time.monotonic()
        line = [sys.executable, "-I", "-S", "-E", str(guardian), "run", "one.toml"]
        with subprocess.Popen(line, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
            killed = _hurt(Path(folder)) if hurt else []
            output, _ = run.communicate()
        said: Said = {
            "exit": run.returncode,
            "seconds": round(time.monotonic() - began, 1),
            "killed": killed,
            "last": output.splitlines()[-6:],
        }
        for log in Path(folder).glob("runs/one/attempt_1/supervisor.jsonl"):
            records = [json.loads(one) for one in log.read_text().splitlines()]
            keys = ("timestamp", "event", "pipeline", "engine", "group", "gpu", "mib", "why", "gone_s", "empty_s", "ready_s", "was")
            kept = (
                "keeps memory",
                "residual",
                "engine group",
                "fenced",
                "trainer failed",
                "engine is p",
                "engine is w",
                "engine is serving",
            )
            said["log"] = [
                {key: record[key] for key in keys if key in record} for record in records if str(record["event"]).startswith(kept)
            ][:120]
    return said


def _hurt(folder: Path) -> list[str]:
    """Kill the first engine that serves, and later the first trainer that trains."""
    killed = []
    for word, victim in (("engine is serving", "engines.embedded"), ("lease granted", "trainshed.launch")):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            logs = list(folder.glob("runs/one/attempt_1/supervisor.jsonl"))
            if logs and word in logs[0].read_text():
                break
            time.sleep(0.05)
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and os.readlink(f"/proc/{name}/cwd").startswith(str(folder)):
                    command = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                    if victim in command or (victim == "engines.embedded" and "engine/" in command):
                        os.kill(int(name), signal.SIGKILL)
                        killed.append(command.replace("\0", " ")[:80])
                        break
    return killed


# -- 9: two ranks on one card


def two_ranks() -> Said:
    if not on_card():
        return NO_GPU
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29556", "WORLD_SIZE": "2"}
    children = [Child("rank", RANK=str(rank), **env) for rank in range(2)]
    words: list[list[str]] = [[], []]
    for _ in range(4):
        for place, child in enumerate(children):
            words[place].append(next(child.stages(), "ended"))
    return {"ranks": words, "left_mib": used() >> 20, "exits": [child.process.wait() for child in children]}


def child_rank() -> None:
    import torch
    from trainshed.resident import Resident

    torch.distributed.init_process_group("gloo")
    model = torch.nn.Linear(2048, 2048)
    held = Resident("cuda:0")
    held.add(model)
    held.onload()
    model(torch.ones(1, 2048, device="cuda")).sum().backward()
    assert model.weight.grad is not None
    total = model.weight.grad.sum().cpu()
    torch.distributed.all_reduce(total)
    stage(f"sum {float(total):.0f}")
    held.offload()
    stage(f"off {held.held}")
    held.onload()
    stage(f"on {held.held}")
    held.offload()
    stage("off")


STEPS: Mapping[str, tuple[Callable[[], Said], float]] = {
    "nvml": (nvml, 60.0),
    "shm": (shm, 60.0),
    "tms": (tms, 90.0),
    "copies": (copies, 90.0),
    "resident": (resident, 60.0),
    "prewarm": (prewarm, 40.0),
    "run_default": (run_default, 120.0),
    "run_hurt": (run_hurt, 150.0),
    "two_ranks": (two_ranks, 60.0),
}
"""Steps in their order, each with the seconds that it may take."""
CHILDREN = {"context": child_context, "tms": child_tms, "rank": child_rank}


def play(name: str, limit: float) -> Said:
    """One step in a process of its own."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, __file__, "--step", name], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=limit)
            said = json.loads(out.splitlines()[-1]) if process.returncode == 0 and out else {"failed": err.strip()[-800:]}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = {"failed": f"not done within {limit:.0f} s"}
    return {"step": name, "seconds": round(time.monotonic() - began, 1), **said}


def main(words: list[str]) -> int:
    if words[:1] == ["--child"]:
        CHILDREN[words[1]]()
        return 0
    if words[:1] == ["--step"]:
        print(json.dumps(STEPS[words[1]][0]()))
        return 0
    out = Path(words[0] if words and words[0] not in STEPS else os.environ.get("OUT", "."))
    chosen = [word for word in words if word in STEPS] or list(STEPS)
    failed = 0
    with open(out / "first.jsonl", "a", encoding="utf-8") as file:
        for name in chosen:
            said = {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "python": platform.python_version(),
                **play(name, STEPS[name][1]),
            }
            failed += "failed" in said
            file.write(json.dumps(said) + "\n")
            file.flush()
            print(json.dumps(said), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
