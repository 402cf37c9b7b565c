"""A scripted box: GPUs as a driver of NVIDIA's publishes them, for supervisors, engines and trainers in real processes.

`Box` writes a folder; `libnvidia-ml.so.1` of `scripted_nvml.c` (compiled once a session) answers from it with NVML's own ABI, so that the real
`pynvml` is asked; `gpu_allocations.py` is how engines and trainers of the tests hold memory there. A process finds the box by `Box.env`.

The figures of `PROFILES` are published ones; where none was found the comment says *est.* What the driver reserves is `nvidia-smi -q`'s "Reserved".
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pynvml

MIB, GIB = 1 << 20, 1 << 30
SOURCES = {"libnvidia-ml.so.1": "scripted_nvml.c", "libcuda.so.1": "scripted_cuda.c"}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One kind of box. Sizes in MiB; `bandwidth` between host and device in GB/s; what a process costs is per process and card.

    `pids`: what the driver says of processes (`shown`, `hidden`, `host`, `zero`, `none`); `display`: MiB that a desktop holds, of no compute process.
    """

    name: str
    total: int
    reserved: int
    driver: str = "580.95.05"
    cuda: int = 13000
    v2: bool = True
    pids: str = "shown"
    mig: bool = False
    ecc: bool = True
    display: int = 0
    bandwidth: float = 50.0  # PCIe 5 x16, pinned: 50 to 55 (findings/gpu.md)
    late_ms: int = 0
    settle: float = 0.0
    process: Mapping[str, float] = field(default_factory=dict)


CONTEXT: Mapping[str, float] = {
    "context": 560 * MIB,  # 0.45 to 0.61 GiB of a bare CUDA 13 context (forum of PyTorch; unsloth#9362: 612 MiB)
    "workspace": (384 + 32) * MIB,  # flashinfer's integer workspace and cuBLAS', outside of the tagged regions
    "nccl": 1000 * MIB,  # sglang PR #7873: 1.0 GB at tp 2
    "graphs_one": 180 * MIB,  # so that tp 1 sleeps with 1.1 GB (sglang#2542)
    "graphs_several": 600 * MIB,  # sglang PR #7873: 0.6 GB
    "graphs_tagged": 0.005,  # shares of the card from here on, est.
    "weights": 0.2,
    "kv": 0.45,
    "training": 0.5,
}

H100 = Profile(name="NVIDIA H100 80GB HBM3", total=81559, reserved=551)  # reserved: 551 with 535.309, 516 with 525, 450 with 565.57, 328
PROFILES: Mapping[str, Profile] = {
    "h100": H100,
    "h100-small-reserve": replace(H100, reserved=328, late_ms=300),
    "h200": Profile(name="NVIDIA H200", total=143771, reserved=700, settle=0.2),  # 550.90
    "a100": Profile(  # nvml-wrapper#57: idle v1 912 MB, v2 7.8 MB
        name="NVIDIA A100-SXM4-80GB", total=81920, reserved=904, bandwidth=25.0
    ),
    "l40s": Profile(name="NVIDIA L40S", total=46068, reserved=596, bandwidth=25.0),  # reserved est.
    "rtx4090": Profile(  # reserved est.; sglang#2542 was seen on a 4090D
        name="NVIDIA GeForce RTX 4090", total=24564, reserved=347, bandwidth=25.0, ecc=False, display=412,
    ),
    "mig-3g.40gb": Profile(  # reserved est.; NVML says no bytes of a process on MIG
        name="NVIDIA H100 80GB HBM3 MIG 3g.40gb", total=40448, reserved=60, mig=True, pids="none",
    ),
    "container": replace(H100, pids="hidden"),  # nvidia-docker#1483: the list is empty
    "container-zero": replace(H100, pids="zero"),  # HAMi-core#112: "process id: 324 mem: 0"
    "container-host-pids": replace(H100, pids="host"),
    "old-driver": replace(H100, v2=False, driver="470.256.02", cuda=11040),
}  # fmt: skip


def library(folder: Path) -> Path:
    """Compile the driver there, once. Raises CalledProcessError, FileNotFoundError without a C compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        made = folder / name
        if not made.exists():
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", f"{made}.new", str(Path(__file__).with_name(source))], check=True)
            Path(f"{made}.new").rename(made)
    return folder / "libnvidia-ml.so.1"


class Box:
    """`cards` cards of a profile in `folder`; with MIG, so many instances of one card. `haste` makes copies so many times faster."""

    def __init__(self, folder: Path, profile: Profile, cards: int = 2, *, library: Path, haste: float = 20.0, serial: int = 0) -> None:
        """`serial` makes UUIDs that no other box has: supervisors of one machine claim their cards from each other."""
        self.folder, self.profile = folder, profile
        folder.mkdir(parents=True)
        self._write("driver", version=profile.driver, cuda=profile.cuda)
        shares = {**CONTEXT, **profile.process}
        self._write("process", **shares, bandwidth=profile.bandwidth * 1e9, haste=haste, settle=profile.settle)
        self.uuids: list[str] = []
        if profile.mig:
            self._card(f"GPU-{serial:06x}ff", "NVIDIA H100 80GB HBM3", mig=1)
        for index in range(cards):
            name = f"MIG-{serial:06x}{index:02x}" if profile.mig else f"GPU-{serial:06x}{index:02x}"
            self._card(name, profile.name, **({"parent": 0} if profile.mig else {}))
        self.names = self.uuids[1:] if profile.mig else self.uuids
        """What a configuration lists: not a card that is divided."""
        self.env = {"SCRIPTED_BOX": str(folder), "LD_LIBRARY_PATH": str(library.parent)}

    def _card(self, uuid: str, name: str, **more: int) -> None:
        profile, index = self.profile, len(self.uuids)
        self.uuids.append(uuid)
        (self.folder / f"held.{index}").mkdir()
        (self.folder / f"foreign.{index}").write_text(f"1 {profile.display * MIB} 0\n" if profile.display else "")
        facts: dict[str, object] = {
            "uuid": uuid, "name": name, "total": profile.total * MIB, "reserved": profile.reserved * MIB, "v2": int(profile.v2),
            "pids": profile.pids, "late_ms": profile.late_ms, **more,
        }  # fmt: skip
        if profile.ecc:
            facts |= {"ecc": 0, "remap": 0}
        self._write(f"card.{index}", **facts)

    def _write(self, file: str, **facts: object) -> None:
        path = self.folder / file
        new = path.with_suffix(path.suffix + ".new")
        new.write_text("".join(f"{name} {value}\n" for name, value in facts.items()))
        new.rename(path)

    def change(self, file: str, **facts: object) -> None:
        """Change facts of `driver` or `card.N` while everything runs: `lost=1`, `ecc=3`, `pids="hidden"`, `error=999`."""
        old = dict(line.partition(" ")[::2] for line in (self.folder / file).read_text().splitlines())
        self._write(file, **{**old, **facts})

    def foreign(self, card: int, mib: int, pid: int = 1, *, compute: bool = True) -> None:
        """Memory of somebody who is not of this test; 0 takes it away."""
        path = self.folder / f"foreign.{card}"
        new = path.with_suffix(".new")
        new.write_text(f"{pid} {mib * MIB} {int(compute)}\n" if mib else "")
        new.rename(path)

    def hold(self, card: int, mib: int, pid: int | None = None) -> None:
        """A living process (this one by default) holds so much there."""
        pid = os.getpid() if pid is None else pid
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        (self.folder / f"held.{card}" / f"{pid}.{start}").write_text(f"{mib * MIB} 0 0\n")

    @contextmanager
    def here(self) -> Iterator[None]:
        """This process asks the scripted driver for a while; others inherit `env`."""
        before, known = pynvml.nvmlLib, dict(pynvml._nvmlGetFunctionPointer_cache)
        pynvml.nvmlLib = ctypes.CDLL(f"{self.env['LD_LIBRARY_PATH']}/libnvidia-ml.so.1")
        pynvml._nvmlGetFunctionPointer_cache.clear()
        os.environ["SCRIPTED_BOX"] = self.env["SCRIPTED_BOX"]
        try:
            yield
        finally:
            del os.environ["SCRIPTED_BOX"]
            pynvml.nvmlLib = before
            pynvml._nvmlGetFunctionPointer_cache.clear()
            pynvml._nvmlGetFunctionPointer_cache.update(known)


INTERPRETER = """#!{python} -I
import sys, sysconfig
code = sys.argv[-1]
if "importlib" in code:
    print("0.5.23")
else:
    sysconfig.get_path = lambda name: "{site}"
    exec(code)
"""


def sglang_environment(folder: Path, *, runtime: str = "13", preload: bool = True) -> Path:
    """The interpreter of an environment with SGLang as its wheels lay it out: the memory saver's library needs CUDA's runtime and has no path to it."""
    site = folder / "site"
    lib = site / ("nvidia/cuda_runtime/lib" if runtime == "12" else f"nvidia/cu{runtime}/lib")
    lib.mkdir(parents=True)
    source = folder / "empty.c"
    source.write_text("int nothing;\n")
    cudart = lib / f"libcudart.so.{runtime}"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", cudart, source, f"-Wl,-soname,{cudart.name}"], check=True)
    if preload:
        saver = site / f"torch_memory_saver_hook_mode_preload_cu{runtime}.abi3.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", saver, source, cudart], check=True)
    python = folder / "python"
    python.write_text(INTERPRETER.format(python=sys.executable, site=site))
    python.chmod(0o755)
    return python
