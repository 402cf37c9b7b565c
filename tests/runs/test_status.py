"""What an operator sees of a real run: memory as it is, names in `ps`, how a gateway died, and answers that say what happens."""

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.observe.control_socket import ActRequest, Declined, Done, ExplainReply, ExplainRequest, Verb, ask
from tests.harness.supervised_run import TINY, Run
from trainers.protocol.ids import EngineId, PipelineId

P1 = PipelineId("p1")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def run(tmp_path: Path, port: int) -> Iterator[Run]:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.read_text().replace("virtual = 4", f"virtual = 4\nmetrics_port = {port}").replace("steps = 2", "steps = 4"))
    run = Run(tmp_path, file)
    yield run
    run.stop()


def done(run: Run, verb: Verb, rank: int) -> str:
    reply = ask(run.directory / "control.sock", ActRequest(verb, EngineId(P1, rank)))
    assert isinstance(reply, Done), reply
    return reply.text


def used(port: int) -> dict[str, float]:
    """`trainshed_gpu_used_bytes` by GPU."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        lines = [line for line in reply.read().decode().splitlines() if line.startswith("trainshed_gpu_used_bytes{")]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.slow
def test_what_an_operator_sees(run: Run, port: int) -> None:
    busy = run.when("p1", lambda view: view.engines[0].state == "serving" and view.engines[0].in_flight > 0, "a busy engine")
    assert Path(f"/proc/{busy.engines[0].pids[0]}/comm").read_text() == "p1/engine/0\n"
    assert [Path(f"/proc/{pid}/comm").read_text() for pid in busy.trainer.pids] == ["p1/trainer/0\n", "p1/trainer/1\n"]
    run.wait_until(
        lambda: set(used(port)) == {"0", "1", "2", "3"}, "the memory of every GPU, not only of the one that was handed over last"
    )

    def awake_and_full() -> bool:
        snapshot = run.status()
        assert snapshot is not None
        if None in [gpu.used_bytes for gpu in snapshot.gpus]:  # a machine so busy that /proc was not read in time
            return False
        serving = {f"p1/engine/{e.rank}" for e in snapshot.pipelines[0].engines if e.state == "serving"}
        return any(gpu.holder in serving and gpu.held_bytes.get(gpu.holder, 0) > 1 << 20 for gpu in snapshot.gpus)

    run.wait_until(awake_and_full, "a serving engine whose memory shows")
    assert busy.gateway.pid is not None
    os.kill(busy.gateway.pid, signal.SIGKILL)
    again = run.when("p1", lambda view: view.gateway.incarnation == 2 and view.gateway.state == "serving", "the next gateway")
    assert again.gateway.failure is not None
    assert (again.gateway.failure.reason, again.gateway.failure.over) == ("ended with signal 9: killed", True)
    found = ask(run.directory / "control.sock", ExplainRequest(P1))
    assert isinstance(found, ExplainReply), found
    assert [engine.engine for engine in found.explanation.engines] == [f"p1/engine/{rank}" for rank in range(4)]
    assert all(engine.rule and engine.text for engine in found.explanation.engines)
    refused = ask(run.directory / "control.sock", ExplainRequest(PipelineId("p9")))
    assert refused == Declined("There is no pipeline 'p9' in this run; it has p1, p2.")
    assert done(run, "resume", 3).startswith("p1/engine/3: nothing to resume: it is ")
    assert "until `resume`" in (told := done(run, "pause", 3)) or "will be paused" in told
    assert "already" in done(run, "pause", 3)
    done(run, "resume", 3)
    assert run.end() == 0, run.tail()
    records = [json.loads(line) for line in (run.directory / "supervisor.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records if record.get("group") == "gateway" and "failed" in record["event"]] == [
        "gateway failed: ended with signal 9: killed"
    ]
    assert len([record for record in records if record["event"] == "environment not passed on"]) <= 1
    assert "…" not in run.output.read_text(), "nothing is cut in a file"
