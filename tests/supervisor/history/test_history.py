"""A run's history is what the scheduler did: the fold agrees with its records at every moment, and its times add up."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from supervisor.attempt.history import HistoryReader, read_history
from supervisor.attempt.recording import FOLDER, HISTORY_SUFFIX, RecordedScheduler, histories, segments
from supervisor.history import totals
from supervisor.history.facts import TRAINER, Party
from supervisor.history.fold import History
from supervisor.history.lanes import GPU_KINDS, PIPELINE_KINDS, Doing, Lane
from supervisor.simulate.faults.simulation import Simulation
from tests.harness.boxes import BOXES
from tests.harness.recorded_runs import EPOCH, record
from trainers.protocol.ids import EngineId

LATER = EPOCH + 1e6
RECORDINGS = Path(__file__).resolve().parents[2] / "data" / "recordings"


def lanes(history: History) -> dict[str, list[tuple[float, float, Doing]]]:
    """Every slice of every lane, with times to the microsecond."""
    every = {str(gpu): lane for gpu, lane in history.gpus.items()} | {name: one.lane for name, one in history.pipelines.items()}
    return {
        name: [(round(begin, 6), round(end, 6), doing) for begin, end, doing in lane.slices(history.until)] for name, lane in every.items()
    }


def agrees(history: History, world: Simulation) -> None:
    """What the fold says of this moment is what the scheduler's records say."""
    scheduler = world.scheduler
    for gpu in scheduler.leases.gpus:
        lease, lent = scheduler.leases.lease(gpu), history.lent[gpu]
        if lease is None:
            assert lent.pipeline == ""
            assert history.gpus[gpu].doing.kind in ("free", "withheld", "start")
            assert (gpu in history.withheld) == (scheduler.leases.fenced(gpu) is not None)
        else:
            rank = lease.holder.rank if isinstance(lease.holder, EngineId) else TRAINER
            assert (lent.pipeline, lent.rank) == (lease.holder.pipeline, rank)
            assert history.gpus[gpu].doing.who == str(lease.holder)
    for id, pipeline in scheduler.pipelines.items():
        known = history.pipelines[id]
        assert known.trainer == pipeline.trainer.state.value
        assert {rank: engine.state for rank, engine in known.engines.items()} == {
            rank: engine.state.value for rank, engine in pipeline.engines.items()
        }
        assert {what for name, what in history.open_waits if name == id} == set(pipeline.figures.waits_since)
        assert totals.waited(history, id).counted == pytest.approx(pipeline.figures.waited, abs=1e-3)
        assert known.versions[-1][1] == pipeline.published


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("seed", range(3))
def test_the_fold_agrees_with_the_scheduler_after_every_event(tmp_path: Path, box: str, seed: int) -> None:
    reader = HistoryReader(tmp_path)
    events = 0

    def look(world: Simulation, _: RecordedScheduler) -> None:
        nonlocal events
        events += 1
        if events % 7 == 0:  # a viewer looks now and then, never at a good moment
            reader.poll()
            agrees(reader.history, world)

    world = record(tmp_path, box=BOXES[box], seed=seed, look=look)
    reader.poll(LATER)
    agrees_at_end(reader.history, world)
    reader.close()


def agrees_at_end(history: History, world: Simulation) -> None:
    assert history.until == pytest.approx(world.now, abs=1e-3)
    for id, pipeline in world.scheduler.pipelines.items():
        assert totals.waited(history, id).counted == pytest.approx(pipeline.figures.waited, rel=0.01, abs=1e-3)
        assert history.pipelines[id].counts.samples[-1] == pipeline.figures.samples
    adds_up(history)


def adds_up(history: History) -> None:
    """No lane has a gap or an overlap, each covers the whole time, and splits sum up to it."""
    for name, slices in lanes(history).items():
        kinds = PIPELINE_KINDS if name in history.pipelines else GPU_KINDS
        assert slices[0][0] == 0.0
        assert slices[-1][1] == round(history.until, 6)
        for (_, end, one), (begin, _, other) in pairwise(slices):
            assert end == begin
            assert one != other
        assert {doing.kind for _, _, doing in slices} <= set(kinds)
    alive = sum(life.end - life.begin for life in history.lives)
    for split in totals.of_gpus(history).values():
        assert sum(split.by_kind.values()) == pytest.approx(alive, abs=1e-6)
        assert sum(split.share(kind) for kind in GPU_KINDS) == pytest.approx(1.0)


def test_ten_thousand_events_add_up(tmp_path: Path) -> None:
    world = record(tmp_path, box=BOXES["crowded"], seed=1, steps=60, segment=200_000)
    assert world.events > 10_000
    agrees_at_end(read_history(tmp_path, LATER), world)


@settings(max_examples=15, deadline=None)
@given(seed=some.integers(0, 10_000), box=some.sampled_from(sorted(BOXES)), cut=some.floats(0.05, 1.0))
def test_a_killed_run_has_its_history_up_to_there(tmp_path_factory: pytest.TempPathFactory, seed: int, box: str, cut: float) -> None:
    attempt = tmp_path_factory.mktemp("killed")
    record(attempt, box=BOXES[box], seed=seed, close=False)
    (path,) = segments(attempt / FOLDER)
    whole = read_history(attempt, LATER)
    assert whole.lives[-1].how == "killed"
    data = path.read_bytes()
    path.write_bytes(data[: max(5_000, int(len(data) * cut))])  # a torn last line
    history = read_history(attempt, LATER)
    adds_up(history)
    assert history.until <= whole.until
    for name, slices in lanes(history).items():
        known = slices[:-2]  # the last one was cut short, and then nobody ran
        assert known == lanes(whole)[name][: len(known)]


def test_what_remains_of_removed_segments_is_the_same_history(tmp_path: Path) -> None:
    whole, short = tmp_path / "whole", tmp_path / "short"
    record(whole, segment=30_000)
    record(short, segment=30_000, kept=12_000)
    gone = len(segments(whole / FOLDER)) - len(segments(short / FOLDER))
    assert gone > 3
    assert sum(path.name.endswith(HISTORY_SUFFIX) for path in histories(short / FOLDER)) == gone
    assert lanes(read_history(short, LATER)) == lanes(read_history(whole, LATER))
    assert read_history(short, LATER).waits == read_history(whole, LATER).waits


def test_a_history_can_begin_at_any_segment(tmp_path: Path) -> None:
    """The first facts of a segment tell all that holds: from the second event on, the rest is folded as if nothing were missing."""
    world = record(tmp_path, segment=30_000)
    whole = read_history(tmp_path, LATER)
    first, *_ = segments(tmp_path / FOLDER)
    first.unlink()
    rest = read_history(tmp_path, LATER)
    assert rest.began_at > whole.began_at
    shift = rest.began_at - whole.began_at
    for name, slices in lanes(rest).items():
        ends = [round(end + shift, 3) for _, end, _ in slices[1:]]
        assert ends == [round(end, 3) for _, end, _ in lanes(whole)[name]][-len(ends) :]
    assert {id: one.versions[-1][1] for id, one in rest.pipelines.items()} == {
        id: one.published for id, one in world.scheduler.pipelines.items()
    }


def test_lives_follow_each_other_and_the_time_between_is_nobody_s(tmp_path: Path) -> None:
    record(tmp_path, close=False)
    first = read_history(tmp_path, LATER).until
    record(tmp_path, seed=6)  # goes on in the same attempt; its clock begins anew
    history = read_history(tmp_path, LATER)
    assert [life.how for life in history.lives] == ["killed", "ended"]
    assert history.lives[0].end == pytest.approx(first)
    assert history.lives[1].why == "every pipeline has ended"
    adds_up(history)


@pytest.mark.parametrize("name", ["quickstart_0ab2fc1", "states_0ab2fc1"])
def test_an_old_recording_has_a_history(name: str) -> None:
    history = read_history(RECORDINGS / name, LATER)
    adds_up(history)
    if name.startswith("quickstart"):
        summary = msgspec.json.decode((RECORDINGS / name / "summary.json").read_bytes())
        for id, pipeline in summary["pipelines"].items():
            assert totals.waited(history, id).counted == pytest.approx(pipeline["waited_s"], rel=0.01)
            assert history.pipelines[id].figures["reward"].values[-1] == pipeline["last_reward"]


def test_a_wait_says_for_whom(tmp_path: Path) -> None:
    record(tmp_path, box=BOXES["crowded"], seed=1, faults=None)
    history = read_history(tmp_path, LATER)
    others = [wait for wait in history.waits if wait.what == "lease" and any(party.pipeline != wait.pipeline for party in wait.whom)]
    assert others
    assert all(str(party) in wait.why for wait in others[:20] for party in wait.whom)
    assert str(Party("p1", 2)) == "p1/engine/2"
    assert str(Party("p1")) == "p1/trainer"


@given(some.lists(some.tuples(some.floats(0, 5), some.sampled_from("abc")), max_size=40))
def test_a_lane_has_neither_gaps_nor_overlaps(moves: list[tuple[float, str]]) -> None:
    lane, now = Lane(0.0), 0.0
    for seconds, kind in moves:
        now += seconds
        lane.set(now, Doing(kind))
    now += 1.0
    slices = list(lane.slices(now))
    assert slices[0].begin == 0.0
    assert slices[-1].end == now
    for one, other in pairwise(slices):
        assert one.end == other.begin
        assert one.doing != other.doing
        assert one.end > one.begin
    assert sum(lane.seconds(now).values()) == pytest.approx(now)
