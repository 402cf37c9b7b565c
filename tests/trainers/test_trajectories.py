"""Samples that are named by keys, rollouts of trajectories and of each rank, and taking answers as they come: the client's side."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trainshed

from tests.harness.fake_supervisor import FakeGateway, FakeSupervisor, echo, line
from trainers.protocol import seeds
from trainers.protocol import trainer_messages as m
from trainers.protocol.child_env import CLIENT
from trainers.protocol.ids import EVALUATIONS

KEYS: list[Any] = [
    "a",
    "ä\udc80",
    0,
    -7,
    2**70,
    1.5,
    float("inf"),
    b"\x00",
    None,
    (),
    ("game", 3),
    (("x", None), 2.0),
    "1",
    "(1,)",
    ("1",),
    (1,),
]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as gateway:
        yield gateway


def on_every_rank(ranks: int, script: Callable[[int], None]) -> None:
    failed: list[BaseException] = []

    def guarded(rank: int) -> None:
        try:
            script(rank)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]


def test_names_of_keys_are_documented_hashes() -> None:
    assert trainshed.sample_name(("game", 3)) == "kf9deb0759633dafaab89fa4f813eae91"
    assert trainshed.sample_seed(5, 2, "kf9deb0759633dafaab89fa4f813eae91") == 709355960889838543
    names = [trainshed.sample_name(key) for key in KEYS]
    assert names == [seeds.sample_name(key) for key in KEYS]
    assert len(set(names)) == len(KEYS)
    assert trainshed.sample_name((1, True)) == trainshed.sample_name((1.0, 1)), "one key of a dictionary is one sample"
    assert trainshed.sample_seed(5, 2, names[0]) == seeds.sample_seed(5, 2, names[0])
    for key in (object(), ["a"], {"a": 1}, ("a", object())):
        with pytest.raises(TypeError, match="a key is made of strings"):
            trainshed.sample_name(key)


def test_names_do_not_depend_on_the_process() -> None:
    code = "import trainshed; print(trainshed.sample_name(('game', 3, None, b'x')))"
    found = {
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={"PYTHONPATH": str(CLIENT), "PYTHONHASHSEED": seed, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {trainshed.sample_name(("game", 3, None, b"x")) + "\n"}


def test_the_seed_comes_from_the_key_whoever_asks_first(tmp_path: Path) -> None:
    """Sixteen threads that take turns in any order: each trajectory has the same seeds, sessions and answers."""

    def played(folder: Path, chance: random.Random) -> dict[Any, Any]:
        seen: dict[str, Any] = {}

        def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
            seen.update((request["sample"], (request["sampling_params"]["sampling_seed"], request["session"])) for request in requests)
            return echo(rollout, requests)

        with FakeGateway(answer) as gateway, FakeSupervisor(folder, seed=5, url=gateway.url) as supervisor:
            pipeline = supervisor.connect()

            def play(game: int) -> None:
                with rollout.trajectory(game) as trajectory:
                    ids = [game]
                    for _ in range(3):
                        threading.Event().wait(chance.random() / 100)
                        ids = [*ids, *trajectory.generate(ids, max_new_tokens=2).output_ids]
                    assert trajectory.turns == 3

            with pipeline.rollout(trajectories=16) as rollout:
                threads = [threading.Thread(target=play, args=(game,)) for game in range(16)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(10)
                samples = rollout.samples()
            assert [sample.key for sample in samples] == [(game, turn) for game in range(16) for turn in range(3)]
            assert supervisor.said[1][1] == m.OpenRollout(0, 16, trajectories=True)
            assert max(message.ended for _, message in supervisor.said if isinstance(message, m.EndTrajectories)) == 16
            assert len(seen) == 48
            return {**seen, **{sample.key: sample.output_ids for sample in samples}}

    first, second = (played(tmp_path / str(seed), random.Random(seed)) for seed in range(2))
    assert first == second
    name = trainshed.sample_name((3, 0))
    assert first[name] == (trainshed.sample_seed(5, 0, name), trainshed.sample_name(3))


def test_a_rollout_has_keys_or_indexes_and_no_key_twice(tmp_path: Path, gateway: FakeGateway) -> None:
    with FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        pipeline = supervisor.connect()
        with pipeline.rollout(target=4) as rollout:
            assert rollout.start([[1], [2]], keys=["b", "a"]) == ["b", "a"]
            for keys in (["a"], ["c", "c"]):
                with pytest.raises(ValueError, match="already"):
                    rollout.start([[1]] * len(keys), keys=keys)
            with pytest.raises(ValueError, match="either all samples have keys or none"):
                rollout.start([[1]])
            with pytest.raises(ValueError, match="2 keys for 1 prompts"):
                rollout.start([[1]], keys=["c", "d"])
            with pytest.raises(KeyError):
                rollout.samples(["c"])
            assert [(one.key, one.index, one.output_ids) for one in rollout.samples()] == [("a", 1, [2]), ("b", 0, [1])]
            assert [one.key for one in rollout.samples(["b", "a"])] == ["b", "a"]
        with pytest.raises(ValueError, match="either a target of samples or a number of trajectories"):
            pipeline.rollout()
        with pytest.raises(ValueError, match="either a target of samples or a number of trajectories"):
            pipeline.rollout(target=1, trajectories=1)


def test_ranks_with_prompts_of_their_own_get_their_own_answers(tmp_path: Path) -> None:
    """Two ranks, equal prompts: four samples with four seeds, and each rank has its two."""

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line(request["sample"], [request["sampling_params"]["sampling_seed"] % 2**31]) for request in requests]

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:
        got: dict[int, list[trainshed.Sample]] = {}

        def script(rank: int) -> None:
            with supervisor.connect(rank).rollout(target=2 + rank, per_rank=True) as rollout:
                got[rank] = rollout.generate([[1]] * (2 + rank))

        on_every_rank(2, script)
        assert [one.index for one in got[1]] == [0, 1, 2]
        assert len({tuple(one.output_ids) for samples in got.values() for one in samples}) == 5
        assert [one.output_ids[0] for one in got[1]] == [trainshed.sample_seed(0, 0, number) % 2**31 for number in (1, 3, 5)]
        for rank in range(2):
            assert wait_until(lambda rank=rank: supervisor.tags(rank) == ["hello", "open_rollout", "close_rollout"])  # type: ignore[misc]
            assert (rank, m.OpenRollout(0, 2 + rank, per_rank=True)) in supervisor.said


def test_with_keys_a_sample_is_the_same_on_any_rank(tmp_path: Path, gateway: FakeGateway) -> None:
    asked: dict[int, set[Any]] = {}
    for ranks in (1, 2):
        gateway.asked.clear()
        with FakeSupervisor(tmp_path / str(ranks), world_size=ranks, url=gateway.url) as supervisor:

            def script(rank: int, ranks: int = ranks, supervisor: FakeSupervisor = supervisor) -> None:
                with supervisor.connect(rank).rollout(target=4 // ranks, per_rank=True, number=ranks) as rollout:
                    rollout.generate([[1]] * (4 // ranks), keys=range(rank, 4, ranks))

            on_every_rank(ranks, script)
        asked[ranks] = {name for _, names in gateway.asked for name in names}
    assert len(asked[1]) == 4
    assert asked[1] == asked[2]


def test_a_rank_that_asked_for_something_else_is_refused(tmp_path: Path, gateway: FakeGateway) -> None:
    with FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:
        supervisor.mute.add("asked")
        second = supervisor.connect(1)
        closed = m.RolloutClosed(0)

        def before(rank: int, message: m.TrainerMessage) -> None:
            if isinstance(message, m.Asked):
                supervisor.tell(closed)
                supervisor.tell(m.Refused("asked", 0, "ranks_ask_apart", "as the test wants it"))

        supervisor.before = before
        supervisor.tell(m.RolloutOpened(0))
        with pytest.raises(trainshed.RolloutRefused, match="ranks_ask_apart: as the test wants it"), second.rollout(target=1) as rollout:
            rollout.generate([[1]])


def test_what_was_asked_has_one_digest_in_any_order(tmp_path: Path, gateway: FakeGateway) -> None:
    digests = []
    with FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:
        pipeline = supervisor.connect()
        for number, (keys, limit) in enumerate([("ab", 2), ("ba", 2), ("ab", 3), ("ac", 2)]):
            with pipeline.rollout(target=9, number=9) as rollout:
                for key in keys:
                    rollout.start([[1]], keys=[key], max_new_tokens=limit)
            assert number < len(supervisor.said)
        digests = [message.digest for _, message in supervisor.said if isinstance(message, m.Asked)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


class Gates:
    """Answers each sample when its gate is opened."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.open: list[Any] = []

    def pass_on(self, *samples: Any) -> None:
        with self.changed:
            self.open += samples
            self.changed.notify_all()

    def answer(self, rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (request,) = requests
        with self.changed:
            assert self.changed.wait_for(lambda: request["sample"] in self.open, 10)
        return [line(request["sample"], request["input_ids"])]


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gates, FakeGateway]]:
    """A gateway that is asked for each sample by itself."""
    monkeypatch.setattr(trainshed, "_TOKENS_PER_REQUEST", 1)
    gates = Gates()
    with FakeGateway(gates.answer) as gateway:
        gateway.lines = gates.answer  # type: ignore[method-assign]
        yield gates, gateway
        gates.pass_on(*range(100))


def test_samples_come_as_they_are_completed(tmp_path: Path, gated: tuple[Gates, FakeGateway]) -> None:
    gates, gateway = gated
    with FakeSupervisor(tmp_path, url=gateway.url) as supervisor, supervisor.connect().rollout(target=4) as rollout:
        rollout.start([[i] for i in range(4)])
        coming, order = rollout.as_completed(), [2, 0, 3, 1]
        for sample in order:
            gates.pass_on(sample)
            assert next(coming).index == sample
        rollout.start([[4]])
        gates.pass_on(4)
        assert [one.index for one in coming] == [4], "also what was started meanwhile"
        assert [one.index for one in rollout.as_completed([1, 3])] == [3, 1]


def test_the_first_are_taken_and_the_rest_is_ended(tmp_path: Path, gated: tuple[Gates, FakeGateway]) -> None:
    gates, gateway = gated
    with FakeSupervisor(tmp_path, url=gateway.url) as supervisor, supervisor.connect().rollout(target=2) as rollout:
        rollout.start([[i] for i in range(4)])
        with pytest.raises(ValueError, match="the first 5 of 4 samples"):
            rollout.first(5)
        gates.pass_on(3, 1)
        assert [one.index for one in rollout.first(2)] == [1, 3]
        assert gateway.cancelled[0] == (0, [0, 2])
        assert "choose" not in supervisor.tags(), "there is nobody to agree with"


def test_the_first_are_the_same_on_every_rank(tmp_path: Path, gated: tuple[Gates, FakeGateway]) -> None:
    gates, gateway = gated
    got: dict[int, list[int]] = {}
    with FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:

        def script(rank: int) -> None:
            with supervisor.connect(rank).rollout(target=2) as rollout:
                rollout.start([[i] for i in range(4)])
                if rank:  # this one sees all four, and may choose none
                    rollout.samples([0, 1, 2, 3])
                    assert "choose" in supervisor.tags(0)
                got[rank] = [one.index for one in rollout.first(2)]

        def before(rank: int, message: m.TrainerMessage) -> None:
            if isinstance(message, m.Choose):
                gates.pass_on(0, 3)

        supervisor.before = before
        gates.pass_on(1, 2)
        on_every_rank(2, script)
        assert got == {0: [1, 2], 1: [1, 2]}


def test_who_waits_for_a_choice_is_told_of_a_stop(tmp_path: Path, gateway: FakeGateway) -> None:
    with FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:
        second = supervisor.connect(1)
        supervisor.tell(m.RolloutOpened(0))
        rollout = second.rollout(target=1).__enter__()
        rollout.start([[1], [2]])
        supervisor.tell(m.Stopping(1.0))
        with pytest.raises(trainshed.RolloutRefused, match="stopping"):
            rollout.first(1)


def test_a_new_gateway_is_told_again_what_was_cancelled(tmp_path: Path) -> None:
    with FakeGateway() as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        with supervisor.connect().rollout(target=2) as rollout:
            gateway.stop()
            rollout.start([[1], [2]], keys=["a", "b"])
            rollout.cancel(["b"])
            gateway.restart()
            assert [one.output_ids for one in rollout.samples()] == [[1], [2]]
        assert (0, [trainshed.sample_name("b")]) in gateway.cancelled


def test_evaluations_have_numbers_and_seeds_of_their_own(tmp_path: Path, gateway: FakeGateway) -> None:
    def numbers(folder: Path, done: int, steps: int) -> list[int]:
        with FakeSupervisor(folder, steps_done=done, url=gateway.url) as supervisor:
            pipeline = supervisor.connect()
            for _ in range(done, steps):
                with pipeline.rollout(target=1) as rollout:
                    assert rollout.number < EVALUATIONS
                for _ in range(2):
                    with pipeline.rollout(target=1, evaluation=True) as rollout:
                        assert rollout.number < EVALUATIONS
            with pipeline.rollout(target=1, evaluation=True, number=7) as rollout:
                assert rollout.number == 7
            return [message.rollout for _, message in supervisor.said if isinstance(message, m.OpenRollout)]

    whole, resumed = numbers(tmp_path / "a", 0, 3), numbers(tmp_path / "b", 2, 3)
    assert [number - EVALUATIONS for number in whole if number >= EVALUATIONS] == [1000, 1001, 2000, 2001, 3000, 3001, 7]
    assert [number for number in whole if number < EVALUATIONS] == [0, 1, 2]
    assert resumed == whole[6:], "a resumed script asks for the same"


def test_what_the_engine_said_is_kept(tmp_path: Path) -> None:
    seen: list[Any] = []

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend(request.get("options") for request in requests)
        return [line(request["sample"], [1], meta_info={"cached_tokens": 3}) for request in requests]

    with (
        FakeGateway(answer) as gateway,
        FakeSupervisor(tmp_path, url=gateway.url) as supervisor,
        supervisor.connect().rollout(target=2) as rollout,
    ):
        assert rollout.generate([[1]], options={"top_logprobs_num": 2})[0].meta_info == {"cached_tokens": 3}
        rollout.generate([[1]])
    assert seen == [{"top_logprobs_num": 2}, None]
