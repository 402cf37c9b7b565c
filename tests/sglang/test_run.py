"""examples/sglang-cpu.toml from the first command to the last step: two pipelines take turns with real SGLang on one virtual GPU."""

import json
import shutil
from pathlib import Path

import pytest

from tests.host.supervised import Run
from tests.sglang.served import REAL

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sglang-cpu.toml"
pytestmark = [
    pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)"),
    pytest.mark.timeout(900),
]


def test_two_pipelines_learn_with_real_sglang_on_one_virtual_gpu(tmp_path: Path) -> None:
    before = {entry.name for entry in Path("/dev/shm").iterdir()}
    file = tmp_path / "sglang-cpu.toml"
    file.write_text(EXAMPLE.read_text().replace("../.sglang-cpu/bin/python", f"{REAL}/bin/python"))
    run = Run(tmp_path, file)
    try:
        assert run.end(800) == 0, run.tail()
    finally:
        run.stop()
    log = run.log()
    for name, pipeline in run.summary.items():
        assert pipeline["steps"] == 3
        assert pipeline["samples"] == 3 * 256
        assert pipeline["weight_version"] == 3
        assert pipeline["restarts"] == 0
        assert pipeline["pauses"] >= 2, "each gives way to training at every step"
        assert pipeline["resumes"] >= 2
        assert pipeline["last_reward"] > pipeline["first_reward"] + 0.03, f"{name} has learned nothing"
        (unmeasured,) = [
            record for record in log if record.get("pipeline") == name and "unmeasured" in record["event"] and record["level"] == "warning"
        ]
        assert "no promise" in unmeasured["event"]
    assert [record for record in log if record["event"] == "weights verified"], "no checksum was taken"
    assert run.left_behind() == []
    ours = {entry.name for entry in Path("/dev/shm").iterdir()} - before
    assert not [name for name in ours if name.startswith(("sglang_", "sgl_shm_"))]
    key_files = list(run.directory.rglob("settings.yaml"))
    assert key_files == [], "keys live in shared memory, and go with it"
    assert json.loads((run.directory / "summary.json").read_text())["exit"] == 0
    shutil.rmtree(run.directory)
