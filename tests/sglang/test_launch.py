"""The command line and environment of SGLang's members, and what its versions change in them."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.lifecycle import members as groups
from engines.sglang import command
from engines.sglang.versions import NEWEST, PROFILES, Release, UnknownVersion, profile, release


def spec(**changes: Any) -> command.Spec:
    members = groups.shape("one", 2)
    plain = command.Spec(
        python="/opt/sglang/bin/python",
        model="/models/m",
        shape=groups.arguments(members[0], 1, groups.Ports(20000), tp=2, ep=2),
        device="cuda",
        gpus=2,
        slots=64,
        context=4096,
        kv_tokens=131072,
        seed=5,
        folder="/dev/shm/trainshed-r/.tmp/p1.0.1",
        profile=NEWEST,
    )
    return dataclasses.replace(plain, **changes)


def option(line: list[str], name: str) -> str | None:
    return line[line.index(name) + 1] if name in line else None


def test_a_command_line_on_gpus() -> None:
    line = command.arguments(spec(args=["--schedule-policy", "lpm"]))
    assert line[:3] == ["/opt/sglang/bin/python", "-m", "sglang.launch_server"]
    assert option(line, "--model-path") == "/models/m"
    assert option(line, "--host") == "127.0.0.1"
    assert option(line, "--port") == "20000"
    assert (option(line, "--tp-size"), option(line, "--ep-size")) == ("2", "2")
    assert option(line, "--max-total-tokens") == "131072"
    assert option(line, "--max-running-requests") == "64"
    assert option(line, "--context-length") == "4096"
    assert option(line, "--cuda-graph-backend-prefill") == "disabled"
    assert {"--enable-memory-saver", "--skip-server-warmup", "--sleep-on-idle", "--incremental-streaming-output"} <= set(line)
    assert line[-2:] == ["--schedule-policy", "lpm"]


def test_samples_follow_their_seeds_where_the_file_says_so() -> None:
    flag = "--enable-deterministic-inference"
    assert flag not in command.arguments(spec())
    assert flag in command.arguments(spec(deterministic=True))
    assert command.refused([flag]) == [flag], "the gateway must know, so that it refuses what SGLang dies of then"


def test_every_port_on_it_lies_in_the_window() -> None:
    line = command.arguments(spec())
    port = int((option(line, "--dist-init-addr") or "").rpartition(":")[2])
    ports = {int(option(line, "--port") or 0), int(option(line, "--nccl-port") or 0), *range(port, port + 8)}
    assert ports <= set(range(20000, 20000 + groups.WINDOW))
    assert len(ports) == 10


def test_no_memory_saver_without_memory_to_save() -> None:
    assert (spec(device="cpu").niceness, spec().niceness) == (10, 0)
    line = command.arguments(spec(device="cpu"))
    assert "--enable-memory-saver" not in line
    assert option(line, "--device") == "cpu"
    assert option(line, "--attention-backend") == "torch_native"


def test_the_key_is_in_a_file_and_nowhere_else() -> None:
    described = spec()
    said = [*command.arguments(described), *command.environment(described, {}, {}).values()]
    assert not any("s3cret" in word for word in said)
    assert json.loads(command.settings("s3cret")) == {"api-key": "s3cret", "admin-api-key": "s3cret"}
    assert option(command.arguments(described), "--config") == f"{described.folder}/settings.yaml"


def test_what_would_break_it_is_not_inherited() -> None:
    inherited = {
        "PATH": "/usr/bin",
        "LD_PRELOAD": "tms.so",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TMS_INIT_ENABLE": "1",
        "RAY_ADDRESS": "x",
        "HF_HOME": "/hf",
        "SGLANG_CACHE": "y",
    }
    env = command.environment(spec(), inherited, {})
    assert not {"LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF", "TMS_INIT_ENABLE", "RAY_ADDRESS"} & env.keys()
    assert (env["HF_HOME"], env["SGLANG_CACHE"]) == ("/hf", "y")
    assert env["PATH"] == "/opt/sglang/bin:/usr/bin"
    assert command.environment(spec(), inherited, {"LD_PRELOAD": "mine.so"})["LD_PRELOAD"] == "mine.so"


def test_the_environment_makes_health_cheap_and_death_quick() -> None:
    env = command.environment(spec(), {}, {})
    assert env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "0"
    assert {name for name in env if name.endswith("_BEFORE_CRASH")} == {
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH",
    }
    assert env["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] == "1"
    assert env["NCCL_GRAPH_REGISTER"] == "0"
    assert env["TMPDIR"] == spec().folder
    assert "NCCL_GRAPH_REGISTER" not in command.environment(spec(gpus=1), {}, {})


def test_the_memory_saver_finds_cudas_runtime_before_python_runs() -> None:
    """A4: it is preloaded and has no path of its own; the wheels' folder comes before what the shell had."""
    wheels = "/opt/sglang/lib/python3.12/site-packages/nvidia/cu13/lib"
    assert command.environment(spec(libraries=[wheels]), {"LD_LIBRARY_PATH": "/usr/local/cuda-12/lib64"}, {})["LD_LIBRARY_PATH"] == (
        f"{wheels}:/usr/local/cuda-12/lib64"
    )
    assert command.environment(spec(libraries=[wheels]), {}, {})["LD_LIBRARY_PATH"] == wheels
    assert "LD_LIBRARY_PATH" not in command.environment(spec(), {}, {})
    assert "LD_LIBRARY_PATH" not in command.environment(spec(device="cpu", libraries=[wheels]), {}, {})


def test_graphs_are_not_backed_up_into_new_memory_at_each_pause() -> None:
    """B9: and what a trainer's memory saver has left in the shell is not inherited."""
    env = command.environment(spec(), {"TMS_RETAIN_CPU_BACKUP": "0", "TMS_INIT_ENABLE": "1"}, {})
    assert {name: value for name, value in env.items() if name.startswith("TMS_")} == {"TMS_RETAIN_CPU_BACKUP": "1"}
    assert command.environment(spec(), {}, {"TMS_RETAIN_CPU_BACKUP": "0"})["TMS_RETAIN_CPU_BACKUP"] == "0", "an operator's word"


def test_compiled_kernels_outlive_a_restart_and_do_not_lie_in_shared_memory() -> None:
    """B1: /dev/shm of a container is 64 MiB, and nothing there may be executed."""
    env = command.environment(spec(cache="/home/u/.cache/trainshed/kernels/0.5.23-H100"), {"TRITON_CACHE_DIR": "/fast/triton"}, {})
    caches = {name: env[name] for name in command.CACHES}
    assert caches.pop("TRITON_CACHE_DIR") == "/fast/triton"
    assert all(path.startswith("/home/u/.cache/trainshed/kernels/0.5.23-H100/") for path in caches.values())
    assert len(set(caches.values())) == len(caches)
    assert not command.CACHES.keys() & command.environment(spec(device="cpu", cache="/x"), {}, {}).keys()


def test_the_share_of_memory_lets_the_pool_be_what_was_asked_for() -> None:
    """B8: SGLang's own guess (0.87 on a large card) would silently make a smaller pool."""
    gib = 1 << 30
    assert command.memory_fraction(15 * gib, 30 * gib, 80 * gib, 4 * gib) == command.USUAL_MEMORY
    needed = command.memory_fraction(15 * gib, 53 * gib, 80 * gib, 4 * gib)
    assert (15 + 53) / (80 - 4) < needed <= command.MOST_MEMORY
    assert option(command.arguments(spec(memory_fraction=needed)), "--mem-fraction-static") == f"{needed:.3f}"
    assert "--mem-fraction-static" not in command.arguments(spec(device="cpu", memory_fraction=0.9))


@pytest.mark.parametrize("args", [["--quantization", "fp8"], ["--quantization=awq"], ["--quant", "fp8"], ["--torchao-config", "int8wo"]])
def test_what_quantises_the_weights_is_told(args: list[str]) -> None:
    assert command.quantising(args) == args[:1]
    assert command.quantising(["--kv-cache-dtype", "fp8_e5m2"]) == []


def test_ranks_on_a_cpu_are_bound_to_cores_that_we_have() -> None:
    env = command.environment(spec(device="cpu", gpus=3, cpus=[4, 6]), {}, {})
    assert env["SGLANG_CPU_OMP_THREADS_BIND"] == "4|6|4"
    assert env["SGLANG_USE_CPU_ENGINE"] == "1"
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in command.environment(spec(device="cpu", gpus=1), {}, {})


@pytest.mark.parametrize(
    "args", [["--port", "1"], ["--port=1"], ["--dp-size", "2"], ["--attn-dp-size", "2"], ["--tp=2"], ["--x", "--api-key", "k"]]
)
def test_what_is_ours_to_say_is_refused(args: list[str]) -> None:
    assert command.refused(args) == [arg for arg in args if arg.partition("=")[0] in command.OURS] != []


def test_the_rest_is_the_operators() -> None:
    assert command.refused(["--dtype", "float32", "--mem-fraction-static=0.8", "--portable"]) == []


@given(st.sets(st.tuples(st.integers(0, 2**31), st.integers(0, 64), st.integers(1, 1000)), max_size=50))
def test_seeds_are_seeds(lives: set[tuple[int, int, int]]) -> None:
    assert all(0 <= command.seed(*life) < 2**31 for life in lives)


def test_lives_of_a_box_have_seeds_of_their_own() -> None:
    lives = [(pipeline, rank, life) for pipeline in range(8) for rank in range(16) for life in range(1, 20)]
    assert len({command.seed(*life) for life in lives}) == len(lives)


# -- versions


@pytest.mark.parametrize(
    ("version", "row"),
    [("0.5.9", "0.5.9"), ("0.5.11", "0.5.9"), ("0.5.12.post2", "0.5.12"), ("0.5.20", "0.5.19"), ("0.5.22", "0.5.21"), ("0.5.23", "0.5.23")],
)
def test_each_version_has_its_row(version: str, row: str) -> None:
    known, warning = profile(version)
    assert (str(known.since), warning) == (row, "")


@pytest.mark.parametrize("version", ["0.5.24", "0.6.0rc1", "1.0.0", "0.5.23.post1+g1234"])
def test_what_is_newer_is_like_the_newest_with_a_warning(version: str) -> None:
    known, warning = profile(version)
    assert known is NEWEST
    assert "newer" in warning


def test_what_is_no_version_is_like_the_newest_with_a_warning() -> None:
    assert profile("main")[0] is NEWEST
    assert "main" in profile("main")[1]


@pytest.mark.parametrize("version", ["0.4.10.post2", "0.5.8", "0.5.5.post3"])
def test_what_is_too_old_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(UnknownVersion, match=r"install 0\.5\.9 or newer"):
        profile(version)


def test_rows_grow() -> None:
    assert list(PROFILES) == sorted(PROFILES, key=lambda row: row.since)
    assert release("0.5.9.post1") == Release(0, 5, 9, 1)


def test_an_old_one_gets_no_flag_that_it_does_not_know() -> None:
    line = command.arguments(spec(profile=PROFILES[0]))
    assert "--cuda-graph-backend-prefill" not in line
    assert "--incremental-streaming-output" not in line


@given(st.text(max_size=20))
def test_any_text_is_a_version_or_none(text: str) -> None:
    try:
        known, _ = profile(text)
    except UnknownVersion:
        return
    assert known in PROFILES


@pytest.mark.parametrize("flag", ["--tp-siz", "--nnode=2", "--expert-parallel", "--mod"])
def test_the_beginning_of_a_flag_is_the_flag(flag: str) -> None:
    """SGLang's parser takes abbreviations."""
    assert command.refused([flag]) == [flag]
