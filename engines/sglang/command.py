"""This module says how one member of an SGLang group is launched: a typed description in, command line and environment out. PURE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

import msgspec

from engines.sglang.versions import Profile

OURS: Final = (
    "--model-path", "--model", "--host", "--port", "--nccl-port", "--dist-init-addr", "--nccl-init-addr", "--nnodes", "--node-rank",
    "--tp-size", "--tp", "--tensor-parallel-size", "--ep-size", "--ep", "--expert-parallel-size", "--dp-size", "--dp",
    "--data-parallel-size", "--attn-dp-size", "--enable-dp-attention",
    "--pp-size", "--pp", "--pipeline-parallel-size", "--base-gpu-id", "--gpu-id-step", "--api-key",
    "--admin-api-key", "--config", "--weight-version", "--tokenizer-worker-num", "--skip-tokenizer-init", "--use-ray", "--grpc-mode",
    "--enable-deterministic-inference",
)  # fmt: skip
"""Flags that an operator's `args` may not set: the supervisor's own promises hang on them. (`--dp-size`: one engine is one replica.)"""
QUANTISED: Final = ("--quantization", "--quantization-param-path", "--torchao-config")
"""Flags that make an engine quantise its weights. At each load that allocates outside of what can be released (0.5.23, `process_weights_after_loading`):
a sleeper would keep more each time."""
CACHES: Final = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "SGLANG_CACHE_DIR": "sglang",
    "SGLANG_DG_CACHE_DIR": "deep_gemm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",
    "TORCH_EXTENSIONS_DIR": "extensions",
}
"""Where compiled kernels go, below `Spec.cache`: they outlive a restart (which would compile for 20 to 60 s again), and TMPDIR may be on a
file system that forbids to execute what is loaded from it (/dev/shm in containers)."""
STRIPPED: Final = (
    "PYTORCH_CUDA_ALLOC_CONF",  # expandable segments: nothing would be released
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "LD_PRELOAD",  # SGLang preloads its memory saver itself, into its schedulers only
    "TMS_*",  # a trainer's memory saver, leaked: every allocation would be unreleasable
    "SGLANG_DP_RANK",
    "RAY_*",
    "TORCHELASTIC_*",
    "NODE_RANK",
    "GROUP_RANK",
)
"""Variables that SGLang must not inherit. An operator who sets one in `env` is taken at their word."""

USUAL_MEMORY: Final = 0.9
MOST_MEMORY: Final = 0.97
SOCKET_ROOM: Final = 85
"""Bytes of a TMPDIR's path: SGLang makes Unix sockets in it, whose path may have 107."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One member to launch. `shape` is what `lifecycle.members.arguments` says; `folder` its own TMPDIR, in which `settings.yaml` holds the keys.

    `kv_tokens` is the size of the KV pool: pinned, since what SGLang would choose depends on who else is on the GPU at that moment.
    `deterministic`: samples follow their seeds; without it SGLang passes over `sampling_seed` (every version that we drive has the flag).
    `cpus` are the cores this process may use (only for `device = "cpu"`). `memory_fraction` is the share of a GPU that weights and pool may take:
    SGLang silently makes a smaller pool where its own guess says so. `libraries` are folders with CUDA's runtime in SGLang's own environment:
    its memory saver is preloaded before Python could find them. `cache` is a folder for compiled kernels, of one version and one kind of GPU.
    """

    python: str
    model: str
    shape: Sequence[str]
    device: Literal["cpu", "cuda"]
    gpus: int
    slots: int
    context: int
    kv_tokens: int
    seed: int
    folder: str
    profile: Profile
    deterministic: bool = False
    cpus: Sequence[int] = (0,)
    memory_fraction: float | None = None
    libraries: Sequence[str] = ()
    cache: str | None = None
    args: Sequence[str] = ()

    @property
    def niceness(self) -> int:
        """Return 10 on a CPU, where ranks compute and spin on every core: who watches and routes comes first, or a death is noticed late."""
        return 10 if self.device == "cpu" else 0


def settings(key: str) -> bytes:
    """Return the content of `settings.yaml`: the keys, which other users could read on a command line. JSON is YAML.

    One key for both: generation and control calls are ours alone.
    """
    return msgspec.json.encode({"api-key": key, "admin-api-key": key})


def arguments(spec: Spec) -> list[str]:
    """Return the command line. The operator's `args` come last, so that they win."""
    argv = [spec.python, "-m", "sglang.launch_server", "--config", f"{spec.folder}/settings.yaml", "--model-path", spec.model]
    argv += [*spec.shape, "--device", spec.device]
    argv += ["--max-running-requests", str(spec.slots), "--context-length", str(spec.context), "--max-total-tokens", str(spec.kv_tokens)]
    argv += ["--random-seed", str(spec.seed), "--weight-version", "0"]
    argv += ["--skip-server-warmup", "--sleep-on-idle", "--log-level-http", "warning"]
    if spec.profile.incremental:
        argv += ["--incremental-streaming-output"]
    if spec.deterministic:
        argv += ["--enable-deterministic-inference"]
    if spec.device == "cpu":
        argv += ["--attention-backend", "torch_native"]
    else:
        argv += ["--enable-memory-saver"]
        if spec.memory_fraction is not None:
            argv += ["--mem-fraction-static", f"{spec.memory_fraction:.3f}"]
        if spec.profile.prefill_graph_choice:
            argv += ["--cuda-graph-backend-prefill", "disabled"]
    return [*argv, *spec.args]


def environment(spec: Spec, inherited: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment: what was chosen of the supervisor's (`inherited`), without what harms; ours; then the operator's `own`."""
    kept = {name: value for name, value in inherited.items() if not any(fnmatchcase(name, pattern) for pattern in STRIPPED)}
    ours = {
        "TMPDIR": spec.folder,
        "PATH": f"{spec.python.rpartition('/')[0]}:{inherited.get('PATH', '/usr/bin:/bin')}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",  # /health is a flag then: cheap, and harmless while paused
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",  # a death takes 1 s instead of up to 66
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
        "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0",  # others sleep on some of the GPUs
        "GLOO_SOCKET_IFNAME": kept.get("GLOO_SOCKET_IFNAME", "lo"),
        "NCCL_SOCKET_IFNAME": kept.get("NCCL_SOCKET_IFNAME", "lo"),
    }
    if spec.device == "cpu":
        ours |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}  # compiling costs more than it brings
        if spec.gpus > 1:
            ours["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(str(spec.cpus[rank % len(spec.cpus)]) for rank in range(spec.gpus))
    else:
        ours["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] = "1"  # else the graphs' memory stays when the engine sleeps
        ours["TMS_RETAIN_CPU_BACKUP"] = "1"  # else each pause allocates pinned memory for the graphs' copy anew, 0.3 to 0.8 GB a rank
        if spec.libraries:
            ours["LD_LIBRARY_PATH"] = ":".join([*spec.libraries, *filter(None, [kept.get("LD_LIBRARY_PATH")])])
        if spec.cache is not None:
            ours |= {name: kept.get(name, f"{spec.cache}/{folder}") for name, folder in CACHES.items()}
        if spec.gpus > 1:
            ours["NCCL_GRAPH_REGISTER"] = "0"  # a graph that NCCL has registered hangs after its memory was remapped
    return {**kept, **ours, **own}


def refused(args: Sequence[str]) -> list[str]:
    """Return those of an operator's arguments that only we may set. SGLang's parser takes the beginning of a flag for the flag."""
    return [arg for arg in args if (flag := arg.partition("=")[0]) in OURS or (len(flag) > 2 and any(one.startswith(flag) for one in OURS))]


def quantising(args: Sequence[str]) -> list[str]:
    """Return those of an operator's arguments that would quantise the weights."""
    return [arg for arg in args if len(flag := arg.partition("=")[0]) > 5 and any(one.startswith(flag) for one in QUANTISED)]


def memory_fraction(weights: int, pool: int, total: int, others: int) -> float:
    """Return the share of a GPU's memory that weights and KV pool (bytes on each GPU) are to be allowed, `others` being what sleepers may keep.

    SGLang takes it of what is free before it loads (0.5.23, kv_cache_configurator.py: free - before * (1 - fraction)). The pool's size is pinned,
    so a larger share takes nothing from anybody.
    """
    return min(MOST_MEMORY, max(USUAL_MEMORY, (weights + pool) / max(1, total - others) + 0.02))


def seed(pipeline: int, rank: int, incarnation: int) -> int:
    """Return a seed of its own for each life of each engine: two with the same one would make the same samples of the same prompt."""
    return (pipeline * 1_000_003 + rank * 1_009 + incarnation) % 2**31
