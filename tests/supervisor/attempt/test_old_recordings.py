"""Recordings of commit 0ab2fc1 are replayed bit for bit by the scheduler of today, whatever has moved or been renamed since.

`quickstart_0ab2fc1` is the attempt that `bin/supervise examples/quickstart.toml` left (without models and checkpoints); `states_0ab2fc1` is the
same run recorded in segments of 15 kB, of which pairs were kept: each pair begins with the scheduler's whole state as that commit wrote it.
"""

from pathlib import Path

import msgspec
import pytest

from supervisor.attempt import state_codec
from supervisor.attempt.recording import FOLDER, Opened, read, segments
from supervisor.attempt.replay import replay
from supervisor.attempt.summary import Summary

RECORDINGS = Path(__file__).resolve().parents[2] / "data" / "recordings"


@pytest.mark.parametrize(("name", "events", "gaps"), [("quickstart_0ab2fc1", 474, 0), ("states_0ab2fc1", 10, 4)])
def test_an_old_recording_is_decided_again(name: str, events: int, gaps: int) -> None:
    found = replay(RECORDINGS / name)
    assert found.difference is None
    assert (found.events >= events, found.gaps, found.cut) == (True, gaps, [])


@pytest.mark.parametrize("segment", segments(RECORDINGS / "states_0ab2fc1" / FOLDER), ids=lambda path: path.name)
def test_an_old_state_is_written_again_as_it_was(segment: Path) -> None:
    """The names of records and their fields are a file format: moving or renaming a class must not change them."""
    _, line = next(read(segment))
    assert isinstance(line, Opened)
    recorded = msgspec.json.decode(line.state)
    assert state_codec.plain(state_codec.restored(recorded)) == recorded


def test_an_old_attempt_can_be_read() -> None:
    summary = msgspec.json.decode((RECORDINGS / "quickstart_0ab2fc1" / "summary.json").read_bytes(), type=Summary)
    assert {name: round(part.last_reward or 0, 3) for name, part in summary.pipelines.items()} == {"p1": 0.505, "p2": 0.771}
