"""Every command line that we may write is one that SGLang's own parser takes, for each version whose differences we know.

The version on this machine really (`prepare_server_args`, which also derives what follows from the flags), the others by the parsers of their
wheels. Those are downloaded without dependencies, unpacked, and only parsed; where they cannot be had the test is skipped. What all of them said
is in tests/data/sglang_flags.json, with which every run of the tests compares (below, without SGLang).
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engines.lifecycle import members as groups
from engines.sglang import command
from engines.sglang.versions import PROFILES, Profile
from tests.harness.sglang.served import REAL

CHECKOUT = Path(__file__).resolve().parents[2]
TABLE = CHECKOUT / "tests" / "data" / "sglang_flags.json"
SHAPES = [("one", 1, 1), ("one", 2, 1), ("one", 8, 1), ("per-gpu", 2, 1), ("one", 4, 4), ("per-gpu", 4, 4)]
"""(members, tp, ep): dense on 1, 2 and 8 GPUs, and experts over four."""
VERSIONS = [str(row.since) for row in PROFILES]


def lines(row: Profile, model: str = "/models/m", folder: str = "/dev/shm/trainshed-r/.tmp/p1.0.1") -> Iterator[list[str]]:
    """Every line that a run may start members with, on GPUs and on a CPU."""
    for device in ("cuda", "cpu"):
        for members, tp, ep in SHAPES:
            shape = groups.shape(members, tp)  # type: ignore[arg-type]
            for member in shape:
                spec = command.Spec(
                    python="/opt/sglang/bin/python", model=model, shape=groups.arguments(member, len(shape), groups.Ports(20000), tp=tp, ep=ep),
                    device=device, gpus=len(member.gpus), slots=64, context=4096, kv_tokens=131072, seed=5, folder=folder, profile=row,
                    memory_fraction=0.913, libraries=["/x"], cache="/y",
                )  # type: ignore[arg-type]  # fmt: skip
                yield command.arguments(spec)[3:]


def without_config(line: list[str]) -> list[str]:
    """The parser knows `--config`, and reads the file where it is used: that is another step."""
    at = line.index("--config")
    return line[:at] + line[at + 2 :]


@cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(TABLE.read_text())
    return found


@pytest.mark.parametrize("row", PROFILES, ids=VERSIONS)
def test_each_version_knows_every_flag_that_we_give_it(row: Profile) -> None:
    known = table()[str(row.since)]
    for line in map(without_config, lines(row)):
        words = list(line)
        while words:
            flag = words.pop(0)
            assert flag in known, f"SGLang {row.since} has no {flag}"
            if known[flag]["values"]:
                value = words.pop(0)
                assert not known[flag]["choices"] or value in known[flag]["choices"], f"{flag} {value} in {row.since}"
            assert not words or words[0].startswith("--")


def test_a_flag_of_a_newer_version_is_not_given_to_an_older_one() -> None:
    """The table can tell: the row decides."""
    assert "--cuda-graph-backend-prefill" not in table()["0.5.9"]
    assert "--incremental-streaming-output" not in next(lines(PROFILES[0]))


def asked(python: str, of: list[list[str]], path: str = "") -> dict[str, Any]:
    environ = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    program = CHECKOUT / "tests" / "harness" / "sglang" / "flags.py"
    done = subprocess.run(
        [python, "-P", str(program)], input=json.dumps(of), env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def wheel(version: str, folder: Path) -> Path:
    """An unpacked wheel; skips the test where the package index does not have it."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"sglang=={version}", "-d", str(folder)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    found = list(folder.glob(f"sglang-{version}-*.whl"))
    if done.returncode or not found:
        pytest.skip(f"no wheel of SGLang {version} can be had here: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(found[0]) as archive:
        archive.extractall(folder / version, [name for name in archive.namelist() if name.startswith("sglang/")])
    return folder / version


@pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)")
@pytest.mark.parametrize("row", PROFILES, ids=VERSIONS)
def test_each_versions_own_parser_takes_them(row: Profile, tmp_path: Path) -> None:
    every = list(map(without_config, lines(row)))
    path = "" if row is PROFILES[-1] else str(wheel(str(row.since), tmp_path))
    said = asked(f"{REAL}/bin/python", every, path)
    assert [line for line in said["parsed"] if isinstance(line, str)] == []
    assert said["flags"] == table()[str(row.since)], "tests/data/sglang_flags.json says otherwise"
    for line, values in zip(every, said["parsed"], strict=True):
        tp, ep = (values.get(f"{short}_size", values.get(f"{long}_parallel_size")) for short, long in (("tp", "tensor"), ("ep", "expert")))
        assert tp == (int(line[line.index("--tp-size") + 1]) if "--tp-size" in line else 1)
        assert ep == (4 if "--ep-size" in line else 1)
        assert values["max_total_tokens"] == 131072
        assert values["skip_server_warmup"] is True
        assert values["enable_memory_saver"] is ("cuda" in line)


@pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)")
def test_what_sglang_derives_from_the_flags_leaves_ours_as_they_are(tmp_path: Path) -> None:
    """Its own start reads the file of keys, and works out the rest: nothing that the supervisor relies on may be another value afterwards."""
    dense = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 2,
             "num_key_value_heads": 8, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 8192}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(dense))
    (tmp_path / "settings.yaml").write_bytes(command.settings("k" * 16))
    every = list(lines(PROFILES[-1], str(tmp_path), str(tmp_path)))
    chosen = [line for line in every if "--ep-size" not in line and "cuda" in line]
    program = """
import json, os, sys
lines = json.load(sys.stdin)
out = os.dup(1); os.dup2(2, 1)
from sglang.srt.server_args import prepare_server_args
names = ["tp_size", "dp_size", "pp_size", "base_gpu_id", "max_total_tokens", "max_running_requests", "context_length", "mem_fraction_static",
         "enable_memory_saver", "weight_version", "api_key", "admin_api_key", "port", "nccl_port", "dist_init_addr", "random_seed", "nnodes",
         "node_rank", "skip_server_warmup", "skip_tokenizer_init", "quantization"]
os.write(out, json.dumps([{name: getattr(args, name) for name in names} for args in map(prepare_server_args, lines)]).encode())
"""
    environ = {**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [f"{REAL}/bin/python", "-P", "-c", program],
        input=json.dumps(chosen),
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for line, found in zip(chosen, json.loads(done.stdout), strict=True):
        option = {flag: value for flag, value in zip(line, [*line[1:], ""], strict=True) if flag.startswith("--")}
        assert found == {
            "tp_size": int(option.get("--tp-size", 1)), "dp_size": 1, "pp_size": 1, "base_gpu_id": 0, "max_total_tokens": 131072,
            "max_running_requests": 64, "context_length": 4096, "mem_fraction_static": 0.913, "enable_memory_saver": True, "weight_version": "0",
            "api_key": "k" * 16, "admin_api_key": "k" * 16, "port": int(option["--port"]), "nccl_port": int(option["--nccl-port"]),
            "dist_init_addr": option.get("--dist-init-addr"), "random_seed": 5, "nnodes": int(option.get("--nnodes", 1)),
            "node_rank": int(option.get("--node-rank", 0)), "skip_server_warmup": True, "skip_tokenizer_init": False, "quantization": None,
        }  # fmt: skip
