"""A diagnosis says whether this machine is fit for runs on GPUs: each finding is what was seen and, where it is not well, what to do.

It looks at the driver, the cards, how they are linked, what the interpreters of a configuration have of CUDA, the host's memory, and plays one
cycle of allocation and release on each card that nobody uses. `bin/supervise doctor` shows it (`supervisor.views.doctor`).
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from engines.sglang.command import USUAL_MEMORY
from engines.sglang.versions import UnknownVersion, profile
from supervisor.config.child_environment import choose
from supervisor.config.machine import interpreter
from supervisor.config.machine.host_room import memory_free, shared_memory
from supervisor.config.machine.model_files import model_size
from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.host.gpus.cycle import Cycle, measure_cycle
from supervisor.host.gpus.meter import Gpu, GpusUnusable, MeasureFailed
from supervisor.host.gpus.nvml import NvmlGpus, Wanted

MIB, GIB = 1 << 20, 1 << 30
State = Literal["ok", "warning", "bad"]
ASK_S: Final = 30.0
NVLINK: Final = 2
"""NVML's number for "these two reach each other's memory over NVLink" (NVML_P2P_CAPS_INDEX_NVLINK); answer 0 is yes."""
UNCORRECTED, SINCE_BOOT = 1, 0
SLOW_BACK_S: Final = 2.0
KEPT_BYTES: Final = 32 * MIB
RESIDUAL_BYTES: Final = 4 << 30
"""What sleepers may have of a card, where it is worked out how many tokens fit beside them."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `remedy` says what to do; it is empty where there is nothing to do."""

    area: Literal["driver", "card", "links", "libraries", "host", "fit", "cycle"]
    subject: str
    state: State
    said: str
    remedy: str = ""


class Card(msgspec.Struct, frozen=True):
    """A GPU in numbers. Memory is what processes may use, what the driver reserves, and what was used before anything of ours lived."""

    id: int
    name: str
    uuid: str
    total_mib: int
    reserved_mib: int
    baseline_mib: int
    used_mib: int
    context_mib: int | None = None
    context_s: float | None = None
    kept_mib: int | None = None
    attributed: bool | None = None
    back_s: float | None = None


class Diagnosis(msgspec.Struct, frozen=True):
    """Everything that `doctor` found. Versions are empty where they are not known."""

    driver: str
    cuda: str
    platform: str
    cards: tuple[Card, ...]
    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        return not any(finding.state == "bad" for finding in self.findings)


def diagnose(config: Config | None, environ: Mapping[str, str], *, python: str | None = None, cycle: bool = True) -> Diagnosis:
    """Look at this machine, for a configuration if one is given. `python` is an interpreter with SGLang. Takes some seconds a card. Raises nothing."""
    wanted: Wanted = "auto" if config is None or config.host.gpus is None else config.host.gpus
    needed = config is not None and config.host.gpus is not None
    findings: list[Finding] = []
    cards: list[Card] = []
    meter = None
    try:
        meter = NvmlGpus.open(wanted, environ=environ)
    except GpusUnusable as error:
        findings.append(Finding("driver", "NVIDIA driver", "bad" if needed else "warning", error.problem, _sentence(error.remedy)))
    driver = cuda = ""
    if meter is not None:
        driver, cuda = _versions(meter)
        findings.append(
            Finding("driver", "NVIDIA driver", "ok", f"{driver or 'of unknown version'}, runs CUDA up to {cuda or 'an unknown version'}")
        )
        for gpu in meter.gpus:
            card, found = _card(meter, gpu, cycle)
            findings += found
            if card is not None:
                cards.append(card)
        findings += _links(meter)
    newest = meter.gpus[0].driver_cuda if meter is not None and meter.gpus else None
    findings += _libraries(config, python, environ, newest)
    findings += _host(config, environ, several=len(cards) > 1)
    if config is not None:
        findings += [finding for pipeline in config.pipeline for finding in _fit(pipeline, cards)]
    return Diagnosis(
        driver, cuda, f"{platform.system()} {platform.release()}, Python {platform.python_version()}", tuple(cards), tuple(findings)
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text else "Install the driver, or use virtual GPUs (`virtual = 4` in [host])"


def _versions(meter: NvmlGpus) -> tuple[str, str]:
    driver = meter.look(meter.gpus[0].id, lambda library, _: library.nvmlSystemGetDriverVersion()) or ""
    cuda = meter.gpus[0].driver_cuda
    return str(driver), f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""


# -- cards


def _card(meter: NvmlGpus, gpu: Gpu, cycle: bool) -> tuple[Card | None, list[Finding]]:
    subject = f"GPU {gpu.id} ({gpu.name})"
    try:
        used, by_pid = meter.used(gpu.id)
        findings = list(_health(meter, gpu, subject))
    except MeasureFailed as error:
        remedy = (
            "`nvidia-smi` and `dmesg | grep -i xid` say more; a card that is lost comes back with a reboot, or is left out of [host] gpus"
        )
        return None, [Finding("card", subject, "bad", str(error), remedy)]
    assert gpu.uuid is not None
    assert gpu.total_bytes is not None
    card = Card(gpu.id, gpu.name, gpu.uuid, gpu.total_bytes >> 20, gpu.reserved_bytes >> 20, gpu.baseline_bytes >> 20, used >> 20)
    said = f"{card.total_mib} MiB for processes, {card.reserved_mib} MiB of the driver"
    said += f", {card.baseline_mib} MiB were in use before us and are not counted" if card.baseline_mib else ""
    findings.insert(0, Finding("card", subject, "ok", said))
    if used > 512 * MIB:
        whose = f"processes {sorted(by_pid)}" if by_pid else "processes that the driver does not show"
        remedy = "End them, or leave the card out of [host] gpus: it is lent to nobody until then"
        return card, [*findings, Finding("card", subject, "warning", f"{used >> 20} MiB are in use by {whose}", remedy)]
    if not cycle:
        return card, findings
    measured = measure_cycle(meter, gpu.id, gpu.uuid)
    card = msgspec.structs.replace(
        card,
        context_mib=_mib(measured.context), context_s=_rounded(measured.make_s), kept_mib=_mib(measured.kept), attributed=measured.attributed,
        back_s=_rounded(measured.back_s),
    )  # fmt: skip
    return card, [*findings, *_cycle(measured, subject)]


def _mib(size: int | None) -> int | None:
    return None if size is None else size >> 20


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _health(meter: NvmlGpus, gpu: Gpu, subject: str) -> Iterator[Finding]:
    if meter.look(gpu.id, lambda library, handle: library.nvmlDeviceGetPersistenceMode(handle)) == 0:
        said = "persistence mode is off: the first use after a pause of all takes seconds, and may be too late for a measurement"
        yield Finding("card", subject, "warning", said, "`sudo nvidia-smi -pm 1`")
    errors = meter.look(gpu.id, lambda library, handle: library.nvmlDeviceGetTotalEccErrors(handle, UNCORRECTED, SINCE_BOOT))
    if errors:
        said = f"{errors} uncorrected memory errors since the driver was loaded: processes on it have died, and others will"
        yield Finding(
            "card", subject, "bad", said, "Reset it (`sudo nvidia-smi -r`) while nothing runs; have it replaced when they come back"
        )
    rows = meter.look(gpu.id, lambda library, handle: library.nvmlDeviceGetRemappedRows(handle))
    if rows is not None and (rows[2] or rows[3]):
        said = "memory rows could not be remapped" if rows[3] else "memory rows wait to be remapped"
        yield Finding("card", subject, "bad" if rows[3] else "warning", said, "Reset the card (`sudo nvidia-smi -r`) while nothing runs")


def _cycle(measured: Cycle, subject: str) -> Iterator[Finding]:
    if measured.context is None:
        remedy = "`python -c 'import torch; torch.zeros(1).cuda()'` says more; `sudo nvidia-smi -r` resets a card that nobody uses"
        yield Finding("cycle", subject, "bad", f"no CUDA context could be made: {measured.problem}", remedy)
        return
    said = f"a CUDA context takes {measured.context >> 20} MiB and {measured.make_s or 0:.1f} s"
    if measured.back_s is None:
        yield Finding(
            "cycle", subject, "bad", f"{said}; {measured.problem}", "Nothing could be lent in time: `nvidia-smi` shows who holds it"
        )
        return
    slow = measured.back_s > SLOW_BACK_S
    remedy = "Each switch waits so long: is persistence mode on (`sudo nvidia-smi -pm 1`)?" if slow else ""
    kept = measured.kept or 0
    said += f"; {f'{kept >> 20} MiB of what was freed stayed' if kept > KEPT_BYTES else 'what was freed is back at once'}"
    said += f", and all of it {measured.back_s:.2f} s after a kill"
    yield Finding("cycle", subject, "warning" if slow else "ok", said, remedy)
    if not measured.attributed:
        said = "the driver does not say whose memory it is (a container, or MIG): what each process keeps is told by the card's sum"
        yield Finding("cycle", subject, "ok", said, "`docker run --pid=host` would let the driver tell; nothing needs it")


def _links(meter: NvmlGpus) -> Iterator[Finding]:
    whole = [gpu for gpu in meter.gpus if gpu.index is not None]
    if len(whole) < 2:
        return

    def linked(one: Gpu, other: Gpu) -> bool:
        target = meter.handle(other.id)
        return meter.look(one.id, lambda library, handle: library.nvmlDeviceGetP2PStatus(handle, target, NVLINK)) == 0

    pairs = [(one, other) for place, one in enumerate(whole) for other in whole[place + 1 :]]
    try:
        over = sum(linked(one, other) for one, other in pairs)
    except MeasureFailed:
        return
    if over == len(pairs):
        yield Finding("links", f"{len(whole)} GPUs", "ok", "every two of them are linked by NVLink")
    else:
        said = f"{over} of {len(pairs)} pairs are linked by NVLink; the others talk over PCIe"
        yield Finding("links", f"{len(whole)} GPUs", "ok", said, "Give engines with tp > 1 GPUs that are linked (`nvidia-smi topo -m`)")


# -- libraries


def _libraries(config: Config | None, python: str | None, environ: Mapping[str, str], newest: int | None) -> Iterator[Finding]:
    named = [pipeline.engine.python for pipeline in config.pipeline] if config is not None else []
    for one in dict.fromkeys(filter(None, [*named, python])):
        yield from _sglang(one, environ, newest)
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("libraries", "Trainshed's own Python", "warning", "has no torch", "`bin/setup` makes its environment")
        return
    subject = "Trainshed's own Python"
    if newest is not None and "+cpu" in torch:
        yield Finding("libraries", subject, "warning", f"torch {torch} sees no GPU", "TRAINSHED_TORCH=cuda bin/supervise … makes it anew")
        return
    parts = interpreter.cuda_parts(sys.executable, dict(environ), ASK_S)
    yield from _fits_driver(subject, f"torch {torch}", parts, newest, "entries of ours (`trainers.grpo:main`) and embedded engines")


def _fits_driver(subject: str, what: str, parts: interpreter.CudaParts | None, newest: int | None, who: str) -> Iterator[Finding]:
    major = parts.major if parts is not None else None
    if major is not None and newest is not None and major * 1000 > newest:
        said = (
            f"{what} is built for CUDA {major}, and the driver runs {newest // 1000}.{newest % 1000 // 10} at most: {who} cannot use a GPU"
        )
        needs = " (CUDA 13 needs 580 or newer)" if major == 13 else ""
        yield Finding("libraries", subject, "bad", said, f"Update the driver{needs}, or install torch for CUDA {newest // 1000}")
    else:
        yield Finding("libraries", subject, "ok", f"{what}{f', CUDA {major}' if major else ''}")


def _sglang(python: str, environ: Mapping[str, str], newest: int | None) -> Iterator[Finding]:
    kept = choose("engine", environ).kept
    try:
        version = interpreter.installed_version(python, "sglang", "SGLang", kept, ASK_S)
        _, warning = profile(version)
    except (interpreter.NotInstalled, UnknownVersion) as error:
        yield Finding(
            "libraries", python, "bad", str(error), "`pip install sglang` there, or name the interpreter of an environment that has it"
        )
        return
    if warning:
        yield Finding("libraries", python, "warning", warning, "It will probably do; what was tested is in docs/engines.md")
    parts = interpreter.cuda_parts(python, kept, ASK_S)
    yield from _fits_driver(python, f"SGLang {version}", parts, newest, "its engines")
    if newest is None or parts is None:
        return
    if (problem := interpreter.preload_problem(python, parts, kept, ASK_S)) is not None:
        remedy = "`pip install torch_memory_saver` there, and nvidia-cuda-runtime of the version that it names"
        yield Finding("libraries", python, "bad", f"the memory saver cannot be preloaded ({problem}): engines could not sleep", remedy)
    if (nvcc := _nvcc(parts, environ)) is None:
        remedy = "Install CUDA's toolkit and set CUDA_HOME, or `pip install nvidia-cuda-nvcc` there"
        yield Finding("libraries", python, "warning", "no nvcc: SGLang compiles some kernels with it when they are first used", remedy)
    else:
        yield Finding("libraries", python, "ok", f"kernels are compiled by {nvcc}")


def _nvcc(parts: interpreter.CudaParts, environ: Mapping[str, str]) -> str | None:
    places = [environ.get("CUDA_HOME"), environ.get("CUDA_PATH"), "/usr/local/cuda"]
    there = [f"{place}/bin/nvcc" for place in places if place and os.access(f"{place}/bin/nvcc", os.X_OK)]
    return next(iter([*there, *filter(None, [parts.nvcc, shutil.which("nvcc", path=environ.get("PATH"))])]), None)


# -- the host


def _host(config: Config | None, environ: Mapping[str, str], *, several: bool) -> Iterator[Finding]:
    free = memory_free()
    said = f"{free / GIB:.1f} GiB are left" if free is not None else "unknown"
    yield Finding("host", "memory", "ok", f"{said} for processes and shared memory, below a container's limit too")
    folder = config.host.shm if config is not None else "/dev/shm"
    shm = shared_memory(folder)
    if shm.total is None or shm.free is None:
        yield Finding("host", folder, "bad", "is not there: weights are handed over in it", "Name another folder: [host] shm")
    elif shm.total < (GIB if several else 256 * MIB):
        remedy = "In docker, `--shm-size=32g` or `--ipc=host`; or a folder on a fast disk: [host] shm (NCCL needs /dev/shm all the same)"
        yield Finding("host", folder, "bad", f"has {shm.total / MIB:.0f} MiB in all: weights, and NCCL between GPUs, need more", remedy)
    else:
        yield Finding("host", folder, "ok", f"{shm.free / GIB:.1f} of {shm.total / GIB:.1f} GiB are free")
    temporary = tempfile.gettempdir()
    if "noexec" in shared_memory(temporary).flags:
        said = f"{temporary} is mounted noexec: what compiles there cannot be loaded"
        yield Finding("host", temporary, "warning", said, "Set TMPDIR to a folder that allows it")
    home = environ.get("XDG_CACHE_HOME") or environ.get("HOME")
    if not home or not os.access(home, os.W_OK) or "noexec" in shared_memory(home).flags:
        said = "no home that can be written and executed from: each start of an engine compiles its kernels again, for a minute"
        yield Finding("host", "cache of kernels", "warning", said, "Set HOME or XDG_CACHE_HOME to a folder that lasts")


def _fit(pipeline: PipelineTable, cards: Sequence[Card]) -> Iterator[Finding]:
    """Say how many slots a model has room for, as far as its files tell it: on the smallest card of the pipeline's engines."""
    engine = pipeline.engine
    size = model_size(Path(engine.model)) if isinstance(engine.model, str) else None
    mine = [card for card in cards if card.id in engine.gpus]
    subject = f"{pipeline.name}'s engines"
    if size is None or size.kv_token is None or not mine or engine.context is None:
        if mine:
            yield Finding(
                "fit", subject, "ok", "unmeasured: the files of the model do not tell its size, or the size of a token's KV cache"
            )
        return
    room = int((min(card.total_mib for card in mine) * MIB - RESIDUAL_BYTES) * USUAL_MEMORY) * engine.tp - size.weights
    tokens = max(0, room // (size.kv_token // 2))
    said = f"weights {size.weights / GIB:.1f} GiB, {size.kv_token // 2048} KiB a token: "
    said += f"room for {tokens} tokens, {tokens // engine.context} slots of {engine.context}"
    asked = engine.kv_tokens or engine.slots * engine.context
    fits = asked <= tokens
    remedy = "" if fits else f"kv_tokens = {asked} were asked for: lower kv_tokens, slots or context, or raise tp"
    yield Finding("fit", subject, "ok" if fits else "bad", said, remedy)
