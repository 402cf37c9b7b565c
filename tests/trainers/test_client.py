import ast
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trainshed

from tests.harness.fake_supervisor import FakeGateway, FakeSupervisor, echo, environment, line
from trainers.protocol import trainer_messages as m
from trainers.protocol.child_env import CLIENT
from trainers.protocol.framing import FrameReader
from trainers.protocol.framing import encode as frame


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as gateway:
        yield gateway


SAID: list[Any] = [
    m.Hello(3),
    m.OpenRollout(4, 256),
    m.CloseRollout(2**53 - 1),
    m.Asked(4, 256, "0f" * 16),
    m.EndTrajectories(4, 16),
    m.Choose(0, 4, (0, 10**15 - 1, "kf")),
    m.RequestLease(0, ("train", "critic")),
    m.ExchangeLease(1, ("critic",)),
    m.Offloaded(7),
    m.Publish(2, "snapshot-2"),
    m.Checkpoint(3, "/läufe/\u202e\"'\\\n"),
    m.Report(3, {"reward": 0.1, "loss": -1e-300}),
]
TOLD: list[Any] = [
    m.Welcome(
        "p1", 1, 2, 3, 5, 0, "/m", "http://127.0.0.1:1", "/w", "/d", ("virtual:0",), None, {"täsk": msgspec.Raw(b'"\\u0000\xc3\xa4"')}
    ),
    m.RolloutOpened(1),
    m.RolloutClosed(1),
    m.AskedAlike(1),
    m.Chosen(0, (7, "kf")),
    m.LeaseGranted(1, ("train",)),
    m.LeaseEnded(1),
    m.Published(1, 2),
    m.CheckpointRecorded(1),
    m.Refused("publish", 1, "bad_snapshot", "\ud7ff\U0010ffff"),
    m.Stopping(10.0),
]


def test_every_message_is_here() -> None:
    assert {type(message) for message in SAID} == set(m.TrainerMessage.__args__)
    assert {type(message) for message in TOLD} == set(m.SupervisorMessage.__args__)


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
def test_what_the_client_says_is_a_message(message: Any) -> None:
    fields = msgspec.to_builtins(message)
    data = trainshed.encode(fields.pop("type"), **fields)
    reader: FrameReader[m.TrainerMessage] = FrameReader(m.TrainerMessage)
    assert list(reader.feed(data)) == [message]


@pytest.mark.parametrize("message", TOLD, ids=lambda message: type(message).__name__)
def test_the_client_reads_every_message_in_any_pieces(message: Any) -> None:
    data = frame(message)
    buffer = bytearray()
    seen = []
    for byte in data * 2:
        buffer.append(byte)
        seen += list(trainshed.decode(buffer))
    assert seen == [json.loads(data[4:])] * 2
    assert not buffer


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x01\xff"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  UnicodeDecodeError and JSONDecodeError are ValueErrors
        list(trainshed.decode(bytearray(data)))


def test_what_the_limit_or_json_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        trainshed.encode("checkpoint", step=0, path="x" * trainshed.MAX_FRAME)
    with pytest.raises(ValueError, match="JSON"):
        trainshed.encode("report", step=0, metrics={"loss": float("nan")})


def test_it_is_one_file_of_the_standard_library_for_python_3_9() -> None:
    tree = ast.parse(Path(trainshed.__file__).read_text("utf-8"), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) == {"trainshed"}  # trainshed.resident, where it is there


def test_a_rank_gets_one_package_and_imports_only_the_client() -> None:
    assert [entry.name for entry in CLIENT.iterdir() if entry.name != "__pycache__"] == ["trainshed"]
    code = "import sys, trainshed; print(sorted(name for name in sys.modules if name.split('.')[0] in ('trainshed', 'torch', 'trainers')))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(CLIENT)}, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "['trainshed']\n"


def test_it_works_alone(tmp_path: Path) -> None:
    """Copied away, isolated from this checkout and from site-packages."""
    (tmp_path / "shed.py").write_text(Path(trainshed.__file__).read_text("utf-8"), "utf-8")
    script = tmp_path / "script.py"
    script.write_text("import shed\np = shed.connect()\nassert shed.connect() is p\nwith p.lease('train'): pass\np.report(0, x=p.seed)\n")
    with FakeSupervisor(tmp_path, seed=7) as supervisor:
        env = environment(supervisor, 0, PYTHONPATH=str(tmp_path))
        command = [sys.executable, "-S", str(script)]
        done = subprocess.run(command, env=env, pass_fds=[supervisor.descriptor()], timeout=30, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        supervisor.handed_over()
        assert wait_until(lambda: bool(supervisor.reports))
        assert supervisor.tags() == ["hello", "request_lease", "offloaded", "report"]
        assert supervisor.reports[0].metrics == {"x": 7.0}


def test_without_a_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINSHED_FD", raising=False)
    with pytest.raises(trainshed.NotSupervised, match="TRAINSHED_FD"):
        trainshed.connect()


def test_attributes(tmp_path: Path) -> None:
    with FakeSupervisor(
        tmp_path, steps=9, steps_done=2, checkpoint_path="/c", options={"task": "dä\u0000", "lr": 0.005, "n": 3}
    ) as supervisor:
        pipeline = supervisor.connect()
        assert (pipeline.name, pipeline.rank, pipeline.world_size, pipeline.steps, pipeline.steps_done) == ("p1", 0, 1, 9, 2)
        assert pipeline.options == {"task": "dä\u0000", "lr": 0.005, "n": 3}
        assert pipeline.checkpoint_path == Path("/c")
        assert (pipeline.gpus, pipeline.device, pipeline.stopping) == (("virtual:0",), "cpu", False)
        supervisor.tell(m.Stopping(1.0))
        assert wait_until(lambda: pipeline.stopping)


def test_samples_that_will_not_come_are_not_waited_for(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        with pipeline.rollout(2) as rollout:
            rollout.start([[1], [2]], max_new_tokens=1)
            supervisor.tell(m.Stopping(1.0))
            with pytest.raises(trainshed.RolloutRefused, match="2 samples of rollout 0 will not come") as caught:
                rollout.samples()
        assert caught.value.code == "stopping"


def test_lease_order_of_both_ranks(tmp_path: Path) -> None:
    moves: list[str] = []
    with FakeSupervisor(tmp_path, world_size=2, gpus=()) as supervisor:
        first, second = supervisor.connect(0), supervisor.connect(1)
        first._residents._mover, first._residents._any = Recorder(moves, supervisor), True

        def other() -> None:
            with second.lease("init"):
                pass

        thread = threading.Thread(target=other)
        thread.start()
        with first.lease("init") as lease:
            moves.append("body")
            lease.become("train")
            assert lease.roles == ("train",)
            with pytest.raises(trainshed.NestedLease), first.lease("train"):
                raise AssertionError("not reached")
            supervisor_calls = [message.call for _, message in supervisor.said if isinstance(message, m.RequestLease | m.ExchangeLease)]
            assert supervisor_calls == [0, 1]
            # Rank 1 has not exchanged: it leaves lease 0, rank 0 leaves lease 1; here the fake ends each for those that said so.
            supervisor.mute.add("offloaded")
            supervisor.tell(m.LeaseEnded(0))
            supervisor.tell(m.LeaseEnded(1))
        thread.join(10)
        assert not thread.is_alive()
        assert moves == ["on", "body", "off before offloaded"]


def test_residents_are_where_the_lease_is(tmp_path: Path) -> None:
    """Of a lease without this rank's GPU they see nothing; an exchange that gives it up moves them off before it is asked for."""
    moves: list[str] = []
    with FakeSupervisor(tmp_path, gpus=(), roles=("init", "train")) as supervisor:
        pipeline = supervisor.connect()
        pipeline._residents._mover, pipeline._residents._any = Recorder(moves, supervisor, "exchange_lease"), True
        with pipeline.lease("critic"):
            pass
        assert moves == []
        with pipeline.lease("train") as lease:
            supervisor.refuse["exchange_lease"] = "out_of_order"
            with pytest.raises(trainshed.LeaseRefused):
                lease.become("critic")
            assert moves == ["on", "off before exchange_lease", "on"]
            supervisor.refuse.clear()
            lease.become("train", "critic")
            assert moves[3:] == []
            lease.become("critic")
            assert moves[3:] == ["off after exchange_lease"]
            lease.become("train")
        assert moves[4:] == ["on", "off after exchange_lease"]


class Recorder:
    def __init__(self, moves: list[str], supervisor: FakeSupervisor, tag: str = "offloaded") -> None:
        self.moves, self.supervisor, self.tag = moves, supervisor, tag

    def onload(self) -> None:
        self.moves.append("on")

    def offload(self) -> None:
        self.moves.append(f"off {'after' if self.tag in self.supervisor.tags() else 'before'} {self.tag}")


def test_an_exception_in_a_lease_ends_it(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        with pytest.raises(ZeroDivisionError), pipeline.lease("train"):
            _ = 1 / 0
        assert supervisor.tags()[-1] == "offloaded"
        with pipeline.lease("train"):
            pass


def test_an_exception_does_not_wait_for_ranks_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainshed, "_LEAVE_S", 0.1)
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        supervisor.mute |= {"offloaded", "close_rollout"}
        with pytest.raises(ZeroDivisionError), pipeline.lease("train"):
            _ = 1 / 0
        with pytest.raises(ZeroDivisionError), pipeline.rollout(1):
            _ = 1 / 0


def test_refusals_are_typed_and_leave_nothing_held(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        supervisor.refuse = {"request_lease": "gpu_fenced", "open_rollout": "own_gpus", "exchange_lease": "unknown_role"}
        with pytest.raises(trainshed.LeaseRefused) as lease, pipeline.lease("train"):
            raise AssertionError("not reached")
        assert lease.value.code == "gpu_fenced"
        with pytest.raises(trainshed.RolloutRefused) as rollout, pipeline.rollout(3):
            raise AssertionError("not reached")
        assert rollout.value.code == "own_gpus"
        del supervisor.refuse["request_lease"]
        with pipeline.lease("train") as held:
            with pytest.raises(trainshed.LeaseRefused, match="unknown_role"):
                held.become("critic")
            assert held.roles == ("train",)
        last = supervisor.said[-1][1]
        assert isinstance(last, m.Offloaded)
        assert last.call == 1


def test_an_answer_to_nobody_is_nothing(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        supervisor.tell(m.Published(99, 1))
        supervisor._ours[0].sendall(trainshed.encode("of_tomorrow", call=0))
        with pipeline.lease("train"):
            pass


def test_a_lost_supervisor_wakes_everyone(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(tmp_path)
    pipeline = supervisor.connect()
    supervisor.mute |= {"request_lease", "open_rollout"}
    caught: list[BaseException] = []

    def ask(enter: Callable[[], object]) -> None:
        try:
            enter()
        except trainshed.PipelineError as error:
            caught.append(error)

    threads = [threading.Thread(target=ask, args=(call,)) for call in (pipeline.lease("train").__enter__, pipeline.rollout(1).__enter__)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(supervisor.said) == 3)
    supervisor.close()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in caught] == [trainshed.SupervisorGone] * 2
    with pytest.raises(trainshed.SupervisorGone), pipeline.rollout(1):
        raise AssertionError("not reached")


def test_an_orphaned_script_ends(tmp_path: Path) -> None:
    script = "import time\nimport trainshed\ntrainshed._ORPHAN_S = 0.1\npipeline = trainshed.connect()\npipeline.report(0, x=1)\ntime.sleep(60)\n"
    supervisor = FakeSupervisor(tmp_path)
    child = subprocess.Popen([sys.executable, "-P", "-c", script], env=environment(supervisor, 0), pass_fds=[supervisor.descriptor()])
    try:
        assert wait_until(lambda: bool(supervisor.reports))
        supervisor.close()
        assert child.wait(10) == 75
    finally:
        child.kill()
        child.wait()


def test_a_forked_helper_does_not_hold_the_channel(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        number = supervisor.descriptor()
        child = os.fork()
        if child == 0:
            try:
                os.fstat(number)
                os._exit(1)
            except OSError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pipeline.lease("train"):
            pass


def test_generate_is_in_index_order_with_seeds(tmp_path: Path, gateway: FakeGateway) -> None:
    with FakeSupervisor(tmp_path, seed=5, steps_done=3, url=gateway.url) as supervisor:
        pipeline = supervisor.connect()
        with pipeline.rollout(target=3) as rollout:
            samples = rollout.generate([[1, 2], [3, 4], [5, 6]], max_new_tokens=2)
            more = rollout.generate([[7, 8]])
        assert rollout.number == 3
        assert [sample.index for sample in samples] == [0, 1, 2]
        assert [sample.output_ids for sample in samples] == [[2, 1], [4, 3], [6, 5]]
        assert samples[1].prompt_ids == [3, 4]
        assert samples[0].spans == [trainshed.Span(0, 1, 0, 0, 2)]
        assert more[0].index == 3
        with pipeline.rollout(target=1) as rollout:
            assert rollout.number == 4
        with pipeline.rollout(target=1, number=17) as rollout:
            assert rollout.number == 17
        assert supervisor.tags()[:3] == ["hello", "open_rollout", "close_rollout"]


def test_large_batches_are_asked_in_parts(tmp_path: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainshed, "_TOKENS_PER_REQUEST", 5)
    with FakeSupervisor(tmp_path, url=gateway.url) as supervisor, supervisor.connect().rollout(target=5) as rollout:
        samples = rollout.generate([[i] * 2 for i in range(4)] + [[9] * 9])
        assert [sample.output_ids for sample in samples] == [[i] * 2 for i in range(4)] + [[9] * 9]
        assert rollout.generate([]) == []
    assert sorted(indexes for _, indexes in gateway.asked) == [[0, 1], [2, 3], [4]]


def test_the_seed_is_a_documented_hash() -> None:
    assert trainshed.sample_seed(0, 0, 0) == 6436203349130839549
    seeds = {trainshed.sample_seed(seed, rollout, index) for seed in range(3) for rollout in (0, 1, 10) for index in range(50)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_reaches_the_engine(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend(requests)
        return echo(rollout, requests)

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, seed=5, url=gateway.url) as supervisor:
        with supervisor.connect().rollout(target=2, number=9) as rollout:
            rollout.generate([[1], [1]], max_new_tokens=4, temperature=0.5)
        assert [request["sampling_params"] for request in seen] == [
            {"max_new_tokens": 4, "temperature": 0.5, "sampling_seed": trainshed.sample_seed(5, 9, index)} for index in range(2)
        ]


def test_what_the_script_knows_of_length_and_session_reaches_the_gateway(tmp_path: Path) -> None:
    seen: list[tuple[Any, Any]] = []

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.extend((request["expected_tokens"], request["session"]) for request in requests)
        return echo(rollout, requests)

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        with supervisor.connect().rollout(target=2) as rollout:
            rollout.generate([[1], [1]])
            rollout.generate([[1], [1]], expected_tokens=7, session="a")
            rollout.generate([[1], [1]], expected_tokens=(3, None), session=["a", "b"])
            with pytest.raises(ValueError, match="3 values for 2 prompts"):
                rollout.start([[1], [1]], expected_tokens=[1, 2, 3])
            assert rollout.generate([[1]])[0].index == 6, "a mistake takes no index"
        assert seen == [(None, None)] * 2 + [(7, "a")] * 2 + [(3, "a"), (None, "b"), (None, None)]


def test_all_ranks_get_all_answers(tmp_path: Path, gateway: FakeGateway) -> None:
    with FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:
        results: dict[int, list[trainshed.Sample]] = {}

        def script(rank: int) -> None:
            with supervisor.connect(rank).rollout(target=4) as rollout:
                results[rank] = rollout.generate([[i, i + 1] for i in range(4)])

        threads = [threading.Thread(target=script, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert results[0] == results[1]
        assert len(results[0]) == 4
        assert [tag for tag in supervisor.tags(1) if "rollout" in tag] == []
        said = [message for _, message in supervisor.said if isinstance(message, m.Asked)]
        assert said[0] == said[1]
        assert said[0].samples == 4


def test_ranks_that_ask_for_a_share_each_are_refused(tmp_path: Path) -> None:
    """Two ranks number their samples alike: what each asks for by itself is one sample for both, or a mismatch."""

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sample": request["sample"], "error": {"code": "sample_mismatch", "message": "other prompt"}} for request in requests]

    with FakeGateway() as gateway, FakeSupervisor(tmp_path, world_size=2, url=gateway.url) as supervisor:
        first = supervisor.connect()
        with (
            pytest.raises(trainshed.RolloutRefused, match="wants 4 samples, and rank 0 asked for 2") as caught,
            first.rollout(target=4) as rollout,
        ):
            rollout.generate([[1], [2]])
        assert caught.value.code == "ranks_ask_apart"
        with first.rollout(target=9) as rollout:
            rollout.generate([[1], [2]])
        gateway.lines = answer  # type: ignore[method-assign]
        with first.rollout(target=1) as rollout, pytest.raises(trainshed.SamplesFailed, match="every rank asks for all prompts"):
            rollout.generate([[1]])


def test_a_lost_connection_and_a_replaced_gateway_lose_nothing(tmp_path: Path, gateway: FakeGateway) -> None:
    gateway.cuts = [2, 0, 3]
    with FakeSupervisor(tmp_path, url=gateway.url) as supervisor, supervisor.connect().rollout(target=8) as rollout:
        samples = rollout.generate([[i] for i in range(8)])
        assert [sample.output_ids for sample in samples] == [[i] for i in range(8)]
        assert [len(indexes) for _, indexes in gateway.asked] == [8, 6, 6, 3]
        gateway.stop()
        indexes = rollout.start([[8], [9]])
        time.sleep(0.15)
        gateway.restart()
        gateway.statuses = [(404, b'{"error": {"code": "unknown_rollout", "message": "?"}}'), (503, b"starting")]
        assert [sample.output_ids for sample in rollout.samples(indexes)] == [[8], [9]]
        assert len(rollout.samples()) == 10


def test_failures_that_pass_are_asked_again(tmp_path: Path) -> None:
    full = [{"sample": 0, "error": {"code": "full", "message": "ask again"}}]
    with FakeGateway() as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        proper = gateway.lines
        gateway.lines = lambda rollout, requests: full + proper(rollout, requests[1:]) if len(requests) > 1 else proper(rollout, requests)  # type: ignore[method-assign]
        with supervisor.connect().rollout(target=2) as rollout:
            assert [sample.output_ids for sample in rollout.generate([[1], [2]])] == [[1], [2]]


def test_failures_are_typed(tmp_path: Path) -> None:
    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line(0, [1]), {"sample": 1, "error": {"code": "too_long", "message": "\u202e no"}}]

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        pipeline = supervisor.connect()
        with pipeline.rollout(target=2) as rollout, pytest.raises(trainshed.SamplesFailed) as failed:
            rollout.generate([[1], [2]])
        assert failed.value.failures == {1: ("too_long", "\u202e no")}
        assert [sample.index for sample in failed.value.samples] == [0]
        gateway.statuses = [(503, b'{"error": {"code": "no_engine", "message": "retired"}}')]
        with pipeline.rollout(target=1) as rollout, pytest.raises(trainshed.RolloutRefused, match="retired"):
            rollout.generate([[1]])
        gateway.statuses = [(400, b"\xff")]
        with pipeline.rollout(target=1) as rollout, pytest.raises(trainshed.RolloutRefused, match="http_400"):
            rollout.generate([[1]])


@pytest.mark.parametrize("bad", [{"sample": []}, {"sample": 0}, line(0, [1], [0.1, 0.2]), {"sample": 0, "error": 3}])
def test_a_bad_line_is_an_error_not_a_hang(tmp_path: Path, bad: dict[str, Any]) -> None:
    with FakeGateway(lambda rollout, requests: [bad]) as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        gateway.lines = lambda rollout, requests: [bad]  # type: ignore[method-assign]
        with supervisor.connect().rollout(target=1) as rollout, pytest.raises(trainshed.RolloutRefused, match="bad_answer"):
            rollout.generate([[1]])


def test_start_returns_at_once_and_partials_come_after_the_close(tmp_path: Path) -> None:
    closed = threading.Event()

    def answer(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert closed.wait(10)
        return [{**line(request["sample"], [1]), "finish_reason": {"type": "abort"}} for request in requests]

    with FakeGateway(answer) as gateway, FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        with supervisor.connect().rollout(target=2) as rollout:
            assert rollout.start([[1], [2]]) == range(2)
        closed.set()
        assert [sample.finish_reason["type"] for sample in rollout.samples()] == ["abort", "abort"]
        with pytest.raises(trainshed.RolloutRefused, match="closed"):
            rollout.start([[1]])


def test_a_gateway_that_never_comes_back_is_given_up_after_the_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainshed, "_LATE_S", 0.3)
    gateway = FakeGateway()
    gateway.stop()
    with FakeSupervisor(tmp_path, url=gateway.url) as supervisor:
        with supervisor.connect().rollout(target=1) as rollout:
            rollout.start([[1]])
        with pytest.raises(trainshed.RolloutRefused, match="missing"):
            rollout.samples()


def test_a_figure_that_cannot_be_reported_is_left_out_and_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeSupervisor(tmp_path) as supervisor:
        pipeline = supervisor.connect()
        for step in range(2):
            pipeline.report(step, loss=None, note="fine", reward=0.5, **{"x" * 129: 1.0, "": 2.0})
        pipeline.report(2, **{f"m{i}": i for i in range(66)})
        assert wait_until(lambda: len(supervisor.reports) == 3)
        assert [report.metrics for report in supervisor.reports[:2]] == [{"reward": 0.5}] * 2
        assert list(supervisor.reports[2].metrics) == [f"m{i}" for i in range(64)]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 6
    assert said[0].startswith("trainshed: report leaves out 'loss': no number (TypeError: ")
    assert said[5] == "trainshed: report leaves out 'm65': a report holds at most 64 figures with names of at most 128 characters"


def test_checkpoint_and_report(tmp_path: Path) -> None:
    with FakeSupervisor(tmp_path, world_size=2) as supervisor:
        first, second = supervisor.connect(0), supervisor.connect(1)
        first.checkpoint(4, tmp_path / "c")
        second.checkpoint(4, tmp_path / "c")
        second.report(4, reward=1)
        first.report(4, reward=0.1, loss=float("nan"))
        assert wait_until(lambda: bool(supervisor.reports))
        assert supervisor.checkpoints == [m.Checkpoint(4, str(tmp_path / "c"))]
        assert supervisor.reports == [m.Report(4, {"reward": 0.1, "loss_not_finite": 1.0})]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_broken_channel_is_a_lost_supervisor() -> None:
    ours, theirs = socket.socketpair()
    threading.Thread(target=lambda: (ours.recv(100), ours.sendall(b"\xff" * 8)), daemon=True).start()
    with pytest.raises(trainshed.SupervisorGone, match="announces"):
        trainshed.Pipeline(theirs)
    ours.close()
