"""An operator's drain of an engine that hangs: the engine is to blame, not the gateway that waits for it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.observe.control_socket import ActRequest, Done, ask, parse_target
from tests.harness.faulty_run import Faulty


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    made = Faulty(tmp_path, target=64, tokens=40, health="drain_s = 2.0\nprogress_s = 5.0\nprobe_s = 5.0")
    for rank in range(2):
        made.script(rank, {"set": {"token_delay": 0.02}})
    yield made
    for run in made.runs:
        run.stop()


def test_the_drain_of_an_engine_that_hangs_leaves_the_gateway_alone(faulty: Faulty) -> None:
    run = faulty.start()
    view = run.when("p1", lambda view: view.engines[1].in_flight > 0, "work on the second engine")
    os.kill(view.engines[1].pids[0], signal.SIGSTOP)
    assert isinstance(ask(run.directory / "control.sock", ActRequest("drain", parse_target("p1/engine/1"))), Done)
    view = run.when("p1", lambda view: view.engines[1].in_flight == 0 and view.engines[1].state != "draining", "the end of its drain", 10)
    assert view.gateway.incarnation == 1
    assert run.end(60) == 0
    assert [line["samples"] for line in faulty.samples(run)] == [64, 64]
    assert not [record for record in run.log() if "gateway failed" in str(record["event"])]
    assert run.left_behind() == []
