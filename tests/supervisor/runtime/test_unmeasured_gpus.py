from pathlib import Path

from supervisor.config.load import load
from supervisor.runtime.gpu_memory import unmeasured_gpus, unmeasured_pipelines

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def test_other_programs_on_virtual_gpus_are_unmeasured(tmp_path: Path) -> None:
    text = (EXAMPLES / "sglang-cpu.toml").read_text().replace("../.sglang-cpu/bin/python", "/bin/sh")
    (tmp_path / "a.toml").write_text(text)
    config = load(tmp_path / "a.toml").config
    assert list(unmeasured_pipelines(config)) == ["p1", "p2"]
    assert unmeasured_gpus(config) == {0}


def test_ours_are_measured() -> None:
    config = load(EXAMPLES / "quickstart.toml").config
    assert list(unmeasured_pipelines(config)) == []
    assert unmeasured_gpus(config) == frozenset()
