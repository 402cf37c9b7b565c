"""`/metrics`, scraped from a real run in which an engine dies."""

import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.faulty_run import Faulty


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def faulty(tmp_path: Path, port: int) -> Iterator[Faulty]:
    faulty = Faulty(tmp_path, gpus=2, steps=2, target=48, tokens=20)
    faulty.file.write_text(faulty.file.read_text().replace("prewarm = false", f"prewarm = false\nmetrics_port = {port}"))
    for rank in range(2):
        faulty.script(rank, {"set": {"token_delay": 0.02}})
    yield faulty
    for run in faulty.runs:
        run.stop()


def scraped(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = reply.read().decode()
    families = text_string_to_metric_families(text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def test_states_leases_queues_and_the_times_of_a_recovery(faulty: Faulty, port: int) -> None:
    run = faulty.start()
    busy = run.when("p1", lambda view: view.engines[0].state == "serving" and view.engines[0].in_flight > 0, "a busy engine")
    for header in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=header), timeout=5)
    found = scraped(port)

    def value(name: str, **labels: str) -> float:
        return found[f"trainshed_{name}", frozenset(labels.items())]

    assert value("engines", pipeline="p1", state="serving") >= 1
    assert value("trainer_state", pipeline="p1", state="running") == 1
    assert value("gpu_leased", gpu="0", holder="p1/engine/0", priority="rollout") == 1
    assert value("samples_queue", pipeline="p1", where="wanted") == 48
    assert value("samples_queue", pipeline="p1", where="in flight") > 0
    assert value("engine_restarts_total", pipeline="p1", engine="0") == 0
    os.kill(busy.engines[0].pids[0], signal.SIGKILL)
    run.when("p1", lambda view: view.engines[0].incarnation == 2 and view.engines[0].state == "serving", "its next life")
    found = scraped(port)
    assert value("engine_failures_total", pipeline="p1", cause="exit") == 1
    assert value("engine_restarts_total", pipeline="p1", engine="0") == 1
    outcome = {"pipeline": "p1", "cause": "exit", "outcome": "routed"}
    assert value("engine_recovery_seconds_count", **outcome) == 1
    assert 0 < value("engine_recovery_seconds_sum", **outcome) < 10
    steps = [
        value("engine_recovery_step_seconds_sum", pipeline="p1", step=step) for step in ("gone", "empty", "started", "ready", "routed")
    ]
    assert steps == sorted(steps)
    assert run.end(30) == 0, run.tail()
    with pytest.raises(urllib.error.URLError):
        scraped(port)


def test_a_probe_that_finds_a_hang_is_a_detection_time(faulty: Faulty, port: int) -> None:
    run = faulty.start()
    busy = run.when("p1", lambda view: view.engines[0].state == "serving" and view.engines[0].in_flight > 0, "a busy engine")
    os.kill(busy.engines[0].pids[0], signal.SIGSTOP)
    run.when("p1", lambda view: view.engines[0].incarnation == 2 and view.engines[0].state == "serving", "its next life")
    found = scraped(port)
    of = frozenset({("pipeline", "p1")})
    assert found["trainshed_engine_detection_seconds_count", of] == 1
    assert 0.5 < found["trainshed_engine_detection_seconds_sum", of] < 10
    assert found["trainshed_engine_failures_total", frozenset({("pipeline", "p1"), ("cause", "probe")})] == 1
    assert run.end(30) == 0, run.tail()


def test_a_port_that_somebody_has_is_a_clear_mistake(faulty: Faulty, port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(AssertionError, match=rf"ended with 2 .*\n.*host.metrics_port = {port}: is taken"),
    ):
        faulty.start()
