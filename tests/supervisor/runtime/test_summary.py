"""summary.json has the keys that the documentation promises."""

import json
from pathlib import Path

from supervisor.runtime.summary import PipelineSummary, Summary, read, write

KEYS = {"steps", "samples", "first_reward", "last_reward", "weight_version", "pauses", "resumes", "restarts", "waited_s"}


def test_keys_and_round_trip(tmp_path: Path) -> None:
    summary = Summary(run="q-1", exit=0, wall_s=1.5, pipelines={"p1": PipelineSummary(steps=5)})
    write(tmp_path, summary)
    raw = json.loads((tmp_path / "summary.json").read_text())
    assert set(raw["pipelines"]["p1"]) == KEYS
    assert {"run", "exit", "wall_s"} <= set(raw)
    assert read(tmp_path) == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_what_is_no_summary(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    for broken in (b"", b"\xff", b"[]", b'{"run": 1}'):
        (tmp_path / "summary.json").write_bytes(broken)
        assert read(tmp_path) is None
