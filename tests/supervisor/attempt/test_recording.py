"""What the scheduler was told is written down whole, survives whatever happens to the file, and is decided again to the last bit."""

import gzip
import resource
import signal
from pathlib import Path

import msgspec
import pytest

from supervisor.attempt.recording import FOLDER, Changed, Closed, Decided, Heard, Opened, RecordedScheduler, read, segments
from supervisor.attempt.replay import replay
from supervisor.attempt.state_codec import plain, restored
from supervisor.cli.main import main
from supervisor.errors import UsageError
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event, MemberExited, Tick
from supervisor.scheduler.planning import planner
from supervisor.simulate.faults.simulation import Simulation
from tests.harness.boxes import BOXES, FAULTS
from tests.harness.scheduler_bench import serving
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version


def record(attempt: Path, *, seed: int = 5, segment: int = 1 << 20, kept: int = 1 << 30) -> Simulation:
    """A simulated run with faults, recorded as a real one is."""
    world = Simulation(BOXES["three"](), seed, steps=3, faults=FAULTS)
    recorded = RecordedScheduler(world.scheduler, 0.0, attempt / FOLDER, segment=segment, kept=kept)
    world.handle = recorded.handle
    try:
        world.run()
    finally:
        recorded.close()
    assert recorded.lost == 0
    return world


@pytest.mark.parametrize("seed", range(6))
def test_a_recording_is_decided_again_to_the_last_bit(tmp_path: Path, seed: int) -> None:
    world = record(tmp_path, seed=seed)
    found = replay(tmp_path)
    assert found.difference is None
    assert found.events == world.events
    assert (found.lives, found.gaps, found.cut) == (1, 0, [])


def test_another_scheduler_is_told_from_this_one_at_its_first_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path)
    monkeypatch.setattr(planner._Table, "leftovers", lambda table: None)
    monkeypatch.setattr(planner._Table, "bids", lambda table: None)
    found = replay(tmp_path)
    assert found.difference is not None
    assert found.difference.line > 1
    assert bytes(found.difference.recorded) != bytes(found.difference.replayed)


def test_it_survives_being_cut_at_every_byte_of_its_last_lines(tmp_path: Path) -> None:
    record(tmp_path)
    (path,) = segments(tmp_path / FOLDER)
    whole = path.read_bytes()
    for cut in range(len(whole) - 700, len(whole), 29):
        path.write_bytes(whole[:cut])
        found = replay(tmp_path)
        assert found.difference is None
        assert found.cut == ([] if whole[cut - 1 : cut] == b"\n" else [path.name])


def test_full_segments_are_packed_and_the_oldest_go(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    record(tmp_path, segment=40_000)
    every = segments(folder)
    assert len(every) > 3
    assert [path.suffix for path in every] == [".gz"] * (len(every) - 1) + [".jsonl"]
    assert replay(tmp_path).difference is None
    assert oct(every[0].stat().st_mode)[-3:] == oct(every[-1].stat().st_mode)[-3:] == "600"


def test_a_later_segment_goes_on_from_the_state_it_bears(tmp_path: Path) -> None:
    scheduler = Scheduler(BOXES["seed"](), 0.0)
    recorded = RecordedScheduler(scheduler, 0.0, tmp_path / FOLDER, segment=600)
    for second in range(30):
        recorded.handle(Tick(), float(second))
    recorded.close()
    every = segments(tmp_path / FOLDER)
    assert len(every) > 3
    for gone in every[:2]:
        gone.unlink()
    found = replay(tmp_path)
    assert (found.difference, found.lives, found.gaps) == (None, 1, 0)
    every[3].unlink()
    assert replay(tmp_path).gaps == 1


def test_a_resumed_run_is_a_second_life(tmp_path: Path) -> None:
    first, second = record(tmp_path, seed=1), record(tmp_path, seed=2)
    found = replay(tmp_path)
    assert (found.lives, found.difference) == (2, None)
    assert found.events == first.events + second.events


def test_a_full_disk_loses_the_recording_for_a_while_and_never_the_run(tmp_path: Path) -> None:
    scheduler = Scheduler(BOXES["seed"](), 0.0)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorded = RecordedScheduler(scheduler, 0.0, tmp_path / FOLDER)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / FOLDER / "000001.jsonl").stat().st_size + 100, hard))
        for second in range(10):
            recorded.handle(Tick(), float(second))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert recorded.lost
    for second in range(60, 130):
        recorded.handle(Tick(), float(second))
    recorded.close()
    found = replay(tmp_path)
    assert found.difference is None
    assert found.gaps == 1
    assert found.events >= 70


def test_what_is_no_text_does_not_stop_the_run(tmp_path: Path) -> None:
    recorded = RecordedScheduler(Scheduler(BOXES["seed"](), 0.0), 0.0, tmp_path / FOLDER)
    recorded.handle(MemberExited(group=EngineId(PipelineId("p1"), 0), incarnation=Incarnation(1), member=0, code=1, note="\udc80"), 1.0)
    recorded.handle(Tick(), 2.0)
    recorded.handle(Tick(), 100.0)
    recorded.close()
    assert recorded.lost
    assert replay(tmp_path).gaps == 1


EVIL = [
    {"is": "os:system", "has": {}},
    {"is": "supervisor.scheduler.spec:IntEnum", "value": 1},
    {"is": "supervisor.scheduler.scheduler:check", "has": {}},
    {"is": "supervisor.scheduler.no_such:Desk", "has": {}},
    {"is": "supervisor.scheduler.desk:Desk"},
    {"is": "set", "of": [{"is": "list", "of": []}]},
    3,
]


@pytest.mark.parametrize("state", EVIL, ids=str)
def test_a_state_that_is_not_ours_runs_nothing(tmp_path: Path, state: object) -> None:
    (tmp_path / FOLDER).mkdir()
    line = Opened(0.0, 5, state=msgspec.Raw(msgspec.json.encode(state)))
    (tmp_path / FOLDER / "000001.jsonl").write_bytes(msgspec.json.encode(line) + b"\n")
    with pytest.raises(UsageError, match="state"):
        replay(tmp_path)


@pytest.mark.parametrize("seed", [1])
def test_a_state_comes_back_whole(seed: int) -> None:
    """At any moment: what is restored decides as the original does."""
    world = Simulation(BOXES["critics"](), seed, steps=3, faults=FAULTS)
    copy, handle = Scheduler(world.box, 0.0), world.handle

    def both(event: Event, now: float) -> list[Action]:
        nonlocal copy
        copy = restored(msgspec.json.decode(msgspec.json.encode(plain(copy))))
        actions = handle(event, now)
        assert copy.handle(event, now) == actions
        assert plain(copy) == plain(world.scheduler)
        return actions

    world.handle = both
    world.run()


def test_the_weights_that_an_engine_failed_with_come_back_too() -> None:
    engine = serving().record("a").engines[0]
    assert "failed_with" not in plain(engine)["has"], "old recordings do not have it"
    engine.failed_with = Version(3)
    assert restored(plain(engine)) == engine


def test_nothing_recorded_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recording"):
        replay(tmp_path)


def test_what_breaks_us_is_written_before_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(BOXES["seed"](), 0.0)
    recorded = RecordedScheduler(scheduler, 0.0, tmp_path / FOLDER)
    recorded.handle(Tick(), 1.0)
    monkeypatch.setattr(Scheduler, "_settle", _broken)
    with pytest.raises(AssertionError):
        recorded.handle(Tick(), 2.0)
    recorded.close()
    lines = [line for _, line in read(tmp_path / FOLDER / "000001.jsonl")]
    assert [type(line) for line in lines] == [Opened, Heard, Decided, Changed, Heard, Closed]
    monkeypatch.undo()
    assert replay(tmp_path).difference is None, "repaired"
    monkeypatch.setattr(Scheduler, "_settle", _broken)
    found = replay(tmp_path).difference
    assert found is not None
    assert found.raised == "AssertionError: a bug"


def _broken(scheduler: object) -> None:
    raise AssertionError("a bug")


def test_a_packed_segment_that_is_damaged_is_said(tmp_path: Path) -> None:
    record(tmp_path, segment=40_000)
    first = segments(tmp_path / FOLDER)[0]
    whole = gzip.decompress(first.read_bytes())
    first.write_bytes(gzip.compress(whole)[:-50])
    with pytest.raises(UsageError, match=first.name):
        replay(tmp_path)


def test_the_command_says_whether_it_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path)
    (tmp_path / "run_id").write_text("a-run\n")
    assert main(["replay", str(tmp_path)]) == 0
    assert "the same decisions" in capsys.readouterr().out
    monkeypatch.setattr(planner._Table, "bids", lambda table: None)
    monkeypatch.setattr(planner._Table, "leftovers", lambda table: None)
    assert main(["replay", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "first difference: events/000001.jsonl, line" in said
    assert "recorded" in said
    assert "replayed" in said
    (tmp_path / FOLDER / "000001.jsonl").unlink()
    assert main(["replay", str(tmp_path)]) == 2
    assert "no recording" in capsys.readouterr().err
