"""`doctor`, as a process, on scripted boxes: each thing that is not well is said with what to do about it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.gpu_box import MIB, PROFILES, Box, sglang_environment
from trainers.protocol.child_env import CHECKOUT

Make = Callable[..., Box]


@pytest.fixture
def make(tmp_path: Path, nvml: Path) -> Make:
    def box(profile: str = "h100", cards: int = 2, **changes: Any) -> Box:
        return Box(tmp_path / "box", replace(PROFILES[profile], **changes), cards, library=nvml)

    return box


def doctor(box: Box | None, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(box.env if box is not None else {}), **environ}
    line = [sys.executable, "-P", "-m", "supervisor", "doctor", *arguments]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, check=False)


def said(box: Box | None, *arguments: str, **environ: str) -> tuple[int, dict[str, Any], list[dict[str, str]]]:
    """Exit code, everything, and the findings that are not well."""
    done = doctor(box, "--json", *arguments, **environ)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    for finding in found["findings"]:
        assert finding["remedy"] or finding["state"] == "ok", "whoever reads it must know what to do"
    return done.returncode, found, [finding for finding in found["findings"] if finding["state"] != "ok"]


def test_a_well_box(make: Make, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    code, found, unwell = said(make(), "--python", str(sglang_environment(tmp_path / "env")))
    assert code == 0, unwell
    assert (found["driver"], found["cuda"]) == ("580.95.05", "13.0")
    first = found["cards"][0]
    assert (first["total_mib"], first["reserved_mib"], first["context_mib"], first["kept_mib"]) == (81559 - 551, 551, 560, 0)
    assert first["attributed"] is True
    assert first["back_s"] < 5
    assert [finding["said"] for finding in found["findings"] if finding["area"] == "links"] == ["every two of them are linked by NVLink"]


def test_a_container_without_pids_is_fit(make: Make) -> None:
    _, found, _ = said(make("container"))
    assert found["cards"][0]["attributed"] is False
    assert any("told by the card's sum" in finding["said"] for finding in found["findings"])


@pytest.mark.parametrize(
    ("file", "facts", "state", "words", "remedy"),
    [
        ("card.1", {"ecc": 3}, "bad", "3 uncorrected memory errors", "nvidia-smi -r"),
        ("card.1", {"remap": 1}, "warning", "wait to be remapped", "nvidia-smi -r"),
        ("card.0", {"persistence": 0}, "warning", "persistence mode is off", "nvidia-smi -pm 1"),
        ("card.0", {"lost": 1}, "warning", "GPU 0 is not there (GPU is lost)", "virtual"),
        ("driver", {"error": 9}, "warning", "no NVIDIA driver here", "virtual"),
    ],
)
def test_what_is_not_well_is_named(make: Make, file: str, facts: dict[str, int], state: str, words: str, remedy: str) -> None:
    box = make()
    box.change(file, **facts)
    code, _, unwell = said(box)
    (finding,) = [finding for finding in unwell if words in finding["said"]]
    assert finding["state"] == state
    assert remedy in finding["remedy"]
    assert code == (3 if state == "bad" else 0)


def test_a_neighbours_card_is_left_alone(make: Make) -> None:
    box = make()
    box.foreign(0, 9000, pid=os.getppid())
    _, found, unwell = said(box)
    assert any(f"9000 MiB are in use by processes [{os.getppid()}]" in finding["said"] for finding in unwell)
    assert found["cards"][0]["context_mib"] is None, "nothing was allocated there"
    assert found["cards"][1]["context_mib"] == 560
    assert not list((box.folder / "held.1").glob("*.new"))


def test_memory_that_comes_back_late_is_seen(make: Make) -> None:
    code, found, unwell = said(make(cards=1, late_ms=2500))
    assert code == 0
    assert 2.4 < found["cards"][0]["back_s"] < 9
    assert any("nvidia-smi -pm 1" in finding["remedy"] for finding in unwell)


def test_libraries_that_do_not_fit_the_driver(make: Make, tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    code, _, unwell = said(make(driver="550.90.07", cuda=12040), "--python", str(sglang_environment(tmp_path / "env")))
    assert code == 3
    (finding,) = [finding for finding in unwell if "is built for CUDA 13" in finding["said"]]
    assert "580 or newer" in finding["remedy"]


def test_a_configuration_says_what_is_wanted_and_what_fits(make: Make, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    sizes = {
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "hidden_size": 896,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
    }
    (model / "config.json").write_text(json.dumps(sizes))
    with open(model / "model.safetensors", "wb") as weights:
        weights.truncate(1000 * MIB)
    (tmp_path / "env").mkdir()
    file = tmp_path / "a.toml"
    python = sglang_environment(tmp_path / "env")
    file.write_text(f"""
[host]
gpus = [0]
[[pipeline]]
name = "p1"
engine = {{ kind = "sglang", python = "{python}", model = "{model}", gpus = [0], slots = 64, context = 32768, kv_tokens = 9000000 }}
trainer = {{ gpus = [0], command = ["/bin/sh"] }}
""")
    box = make("rtx4090")
    code, found, unwell = said(box, str(file))
    (fit,) = [finding for finding in unwell if finding["area"] == "fit"]
    assert "weights 1.0 GiB, 12 KiB a token: room for" in fit["said"]
    assert "kv_tokens = 9000000 were asked for: lower kv_tokens" in fit["remedy"]
    assert code == 3
    assert len(found["cards"]) == 1
    box.change("driver", error=9)
    assert said(box, str(file))[0] == 3, "a run that wants GPUs needs a driver"


def test_a_machine_without_a_gpu_is_no_failure() -> None:
    done = doctor(None)
    assert done.returncode == 0, done.stderr
    assert "no NVIDIA driver here" in done.stdout
    assert "No GPU was looked at: runs on virtual GPUs" in done.stdout


def test_what_a_person_reads(make: Make) -> None:
    box = make(cards=1)
    box.change("card.0", ecc=1)
    lines = doctor(box, "--no-cycle").stdout.splitlines()
    assert lines[:3] == ["Driver", "  well  NVIDIA driver: 580.95.05, runs CUDA up to 13.0", "Cards"]
    bad = next(place for place, line in enumerate(lines) if line.startswith("  BAD "))
    assert "1 uncorrected memory errors" in lines[bad]
    assert lines[bad + 1].startswith("        > Reset it")
    assert lines[-1].startswith("1 thing must be mended")
