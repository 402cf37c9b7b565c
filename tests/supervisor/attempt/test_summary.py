"""summary.json has the keys that the documentation promises, and counts over all starts."""

import json
from pathlib import Path

from supervisor.attempt.summary import Figures, PipelineSummary, Summary, all_together, figures, forget, read, together, write

KEYS = {
    "steps",
    "of",
    "outcome",
    "why",
    "log",
    "samples",
    "first_reward",
    "last_reward",
    "weight_version",
    "pauses",
    "resumes",
    "restarts",
    "waited_s",
}


def test_keys_and_round_trip(tmp_path: Path) -> None:
    summary = Summary(run="q-1", exit=0, wall_s=1.5, pipelines={"p1": PipelineSummary(steps=5)})
    write(tmp_path, summary)
    raw = json.loads((tmp_path / "summary.json").read_text())
    assert set(raw["pipelines"]["p1"]) == KEYS
    assert {"run", "exit", "wall_s"} <= set(raw)
    assert read(tmp_path) == summary
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    forget(tmp_path)
    forget(tmp_path)
    assert read(tmp_path) is None


def test_what_is_no_summary(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    for broken in (b"", b"\xff", b"[]", b'{"run": 1}'):
        (tmp_path / "summary.json").write_bytes(broken)
        assert read(tmp_path) is None


def test_a_resumed_run_counts_from_its_first_start() -> None:
    before = PipelineSummary(
        steps=2, samples=500, first_reward=0.1, last_reward=0.2, weight_version=3, pauses=4, resumes=5, restarts=1, waited_s=1.5
    )
    since = PipelineSummary(
        steps=5, of=5, outcome="done", samples=700, first_reward=0.3, last_reward=0.6, weight_version=6, pauses=1, resumes=1, waited_s=0.5
    )
    assert together(before, since) == PipelineSummary(
        steps=5,
        of=5,
        outcome="done",
        samples=1200,
        first_reward=0.1,
        last_reward=0.6,
        weight_version=6,
        pauses=5,
        resumes=6,
        restarts=1,
        waited_s=2.0,
    )
    nothing = PipelineSummary(steps=2)
    assert together(before, nothing).last_reward == 0.2
    assert together(before, nothing).weight_version == 3
    assert together(nothing, since).first_reward == 0.3


def test_a_pipeline_that_was_not_started_again_stays_as_it_was(tmp_path: Path) -> None:
    p1, p2 = PipelineSummary(steps=5, of=5, outcome="done", samples=10), PipelineSummary(steps=1, samples=3)
    now = all_together({"p1": p1, "p2": p2}, {"p2": PipelineSummary(steps=2, samples=4), "p3": p1})
    assert now["p1"] == p1
    assert now["p2"].samples == 7
    assert now["p3"] == p1
    write(tmp_path, Figures(starts=2, wall_s=3.0, pipelines=now))
    known = figures(tmp_path)
    assert known is not None
    assert known.pipelines == now
    assert read(tmp_path) is None, "figures are no word of an end"
