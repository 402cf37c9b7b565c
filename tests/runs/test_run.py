"""Whole runs in real processes: what they promise at their end, and that a fault stays where it happened."""

import json
import os
import signal
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.observe.status import PipelineView
from tests.harness.supervised_run import SEES_OURS, Run, configuration

SAMPLES = 256


class Reference:
    """The undisturbed run that the others are compared with, made once."""

    def __init__(self, cwd: Path) -> None:
        self.run = Run(cwd, configuration(cwd / "reference.toml"))
        self.code = self.run.end()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def start(tmp_path: Path, started: list[Run]) -> Callable[..., Run]:
    def begin(file: Path | None = None, *arguments: str) -> Run:
        started.append(Run(tmp_path, file or configuration(tmp_path / "tiny.toml"), *arguments))
        return started[-1]

    return begin


def finished_well(run: Run, reference: Reference, *hurt: str) -> None:
    """Everybody is done, with the same rewards, losses and weights as if nothing had happened, and nothing is left."""
    assert run.end() == 0, run.tail()
    for name, pipeline in run.summary.items():
        assert pipeline["steps"] == 2
        assert run.metrics(name) == reference.run.metrics(name), f"{name} learned something else"
        if name not in hurt:
            assert pipeline["restarts"] == 0
            assert pipeline["samples"] == 2 * SAMPLES
            assert pipeline["weight_version"] == 2
    assert run.left_behind() == []


@pytest.mark.everyday
def test_undisturbed(reference: Reference) -> None:
    finished_well(reference.run, reference)
    for pipeline in reference.run.summary.values():
        assert pipeline["last_reward"] > pipeline["first_reward"] + 0.03
        assert pipeline["pauses"] > 0


def test_an_engine_gives_way_to_the_other_pipeline_and_to_training(reference: Reference) -> None:
    log = reference.run.log()
    granted = [record for record in log if record["event"] == "lease granted" and record["roles"] == ["train"]]
    drained = [record for record in log if record["event"] == "engine is draining"]
    assert len(granted) == 4
    assert drained, "no engine ever had to give way"


def test_the_check_for_what_is_left_sees_what_is_left(start: Callable[..., Run]) -> None:
    run = start()
    run.when("p1", lambda view: view.engines_awake > 0, "an awake engine")
    left = run.left_behind()
    assert any("engines.embedded" in line or "prewarm" in line or "python" in line for line in left)
    assert any("/dev/shm/trainshed-" in line for line in left)
    assert any(line.startswith("port ") for line in left)
    run.stop()
    assert run.left_behind() == []


def rolling_out(view: PipelineView) -> bool:
    return view.state == "rolling out" and view.engines_awake > 0 and 0 < view.samples_done < view.target


def training(view: PipelineView) -> bool:
    return "train" in view.trainer.holds


def between(view: PipelineView) -> bool:
    return view.step == 1 and view.state == "running"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", [rolling_out, training, between])
def test_kill_of_a_trainer_rank(start: Callable[..., Run], reference: Reference, rank: int, phase: Callable[[PipelineView], bool]) -> None:
    run = start()
    view = run.when("p1", phase, phase.__name__)
    os.kill(view.trainer.pids[rank], signal.SIGKILL)
    run.when("p1", lambda view: view.restarts == 1, "the restart")
    finished_well(run, reference, "p1")


def test_kill_of_an_engine(start: Callable[..., Run], reference: Reference) -> None:
    run = start()
    view = run.when("p1", rolling_out, "a rollout")
    busy = max((engine for engine in view.engines if engine.state == "serving"), key=lambda engine: engine.in_flight)
    os.kill(busy.pids[0], signal.SIGKILL)
    finished_well(run, reference, "p1")
    assert run.summary["p1"]["restarts"] == 1
    assert run.summary["p1"]["samples"] == 2 * SAMPLES


def test_kill_of_a_gateway(start: Callable[..., Run], reference: Reference) -> None:
    run = start()
    view = run.when("p1", rolling_out, "a rollout")
    assert view.gateway.pid is not None
    os.kill(view.gateway.pid, signal.SIGKILL)
    again = run.when("p1", lambda view: view.gateway.incarnation == 2 and view.gateway.pid is not None, "another gateway")
    assert again.gateway.url == view.gateway.url
    finished_well(run, reference, "p1")


def test_a_stranger_cannot_poison_what_a_trainer_will_ask(start: Callable[..., Run], reference: Reference) -> None:
    """What a web page can send: it names the samples of rollouts before these are opened, with another prompt."""
    run = start()
    url = run.when("p1", lambda view: view.gateway.pid is not None, "a gateway").gateway.url
    samples = [{"sample": index, "input_ids": [4], "sampling_params": {"max_new_tokens": 1}} for index in range(SAMPLES)]
    headers = {"Content-Type": "text/plain", "Origin": "http://evil.example", "Host": "evil.example"}
    refused = []
    for sent in (headers, {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}):
        for rollout in range(2):
            request = urllib.request.Request(f"{url}/rollouts/{rollout}/samples", json.dumps({"samples": samples}).encode(), sent)
            with pytest.raises(urllib.error.HTTPError) as answer:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)
            refused.append(answer.value.code)
            answer.value.close()
    assert refused == [403, 403, 401, 401, 401, 401]
    finished_well(run, reference, "p1")
    assert run.summary["p1"]["restarts"] == 0
    key = json.loads((run.directory / "gateways.json").read_text())["p1"]["key"]
    assert stat.S_IMODE((run.directory / "gateways.json").stat().st_mode) == 0o600
    shown = [
        path for path in run.directory.rglob("*") if path.is_file() and path.name != "gateways.json" and key.encode() in path.read_bytes()
    ]
    assert shown == []


def test_kill_of_the_supervisor_then_resume(start: Callable[..., Run], reference: Reference, tmp_path: Path) -> None:
    run = start()
    run.when("p1", lambda view: view.step == 1 and training(view), "the second training")
    os.kill(run.supervisor_pid(), signal.SIGKILL)
    began = time.monotonic()
    assert run.end(5) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 2.0
    assert [line for line in run.left_behind() if "control.sock" not in line] == []
    again = start(tmp_path / "tiny.toml", "--resume")
    assert again.end() == 0, again.tail()
    assert again.directory == run.directory
    for name in ("p1", "p2"):
        assert again.metrics(name) == reference.run.metrics(name)
        assert again.summary[name]["steps"] == 2
    assert again.left_behind() == []


def test_kill_of_the_guardian_stops_the_run(start: Callable[..., Run]) -> None:
    run = start()
    run.when("p1", rolling_out, "a rollout")
    supervisor = run.supervisor_pid()
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    deadline = time.monotonic() + 25
    while os.path.exists(f"/proc/{supervisor}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.left_behind() == []


def test_control_c_stops_gracefully_and_resume_goes_on(start: Callable[..., Run], reference: Reference, tmp_path: Path) -> None:
    run = start()
    run.when("p2", rolling_out, "a rollout")
    run.process.send_signal(signal.SIGINT)
    assert run.end(30) == 5
    assert run.left_behind() == []
    again = start(tmp_path / "tiny.toml", "--resume")
    assert again.end() == 0, again.tail()
    for name in ("p1", "p2"):
        assert again.metrics(name) == reference.run.metrics(name)


def test_alone_and_beside_another_is_the_same_to_the_last_bit(start: Callable[..., Run], reference: Reference, tmp_path: Path) -> None:
    run = start(configuration(tmp_path / "alone.toml", names=("p1",)))
    assert run.end() == 0, run.tail()
    assert run.metrics("p1") == reference.run.metrics("p1")


def test_probing_all_the_time_changes_nothing_that_is_learned(start: Callable[..., Run], reference: Reference, tmp_path: Path) -> None:
    probes = "probe_s = 0.05\nprobe_timeout_s = 2.0\nprogress_s = 0.1\nprogress_timeout_s = 4.0\nasleep_s = 0.1"
    run = start(configuration(tmp_path / "probed.toml", health=probes))
    finished_well(run, reference)


def test_a_trainer_that_hangs_in_its_lease_costs_only_its_own_pipeline(
    start: Callable[..., Run], reference: Reference, tmp_path: Path
) -> None:
    run = start(configuration(tmp_path / "hangs.toml", trainer="lease_limit_s = 4.0"))
    view = run.when("p1", training, "training")
    os.kill(view.trainer.pids[1], signal.SIGSTOP)
    finished_well(run, reference, "p1")
    assert any("longer than lease_limit_s" in str(record["event"]) for record in run.log())


def test_a_trainer_that_does_not_offload_costs_only_its_own_pipeline(
    start: Callable[..., Run], reference: Reference, tmp_path: Path
) -> None:
    """Where its memory is found first depends on who is measured first: when its own lease ends, or when an engine leaves those GPUs."""
    run = start(_keeps(tmp_path, gpu=0))
    finished_well(run, reference, "p1")
    failed = [record for record in run.log() if "trainer failed" in str(record["event"])]
    assert len(failed) == 1
    assert any(words in str(failed[0]["event"]) for words in ("still hold memory", "of which it has no lease"))


def test_a_trainer_that_takes_memory_on_anothers_gpu_costs_only_its_own_pipeline(
    start: Callable[..., Run], reference: Reference, tmp_path: Path
) -> None:
    run = start(_keeps(tmp_path, gpu=3, then="time.sleep(60)"))  # until it is found
    finished_well(run, reference, "p1")
    assert any("holds memory on GPU 3, of which it has no lease" in str(record["event"]) for record in run.log())


def _keeps(folder: Path, gpu: int, then: str = "pass") -> Path:
    (folder / "keeps.py").write_text(KEEPS.replace("GPU", str(gpu)).replace("THEN", then))
    return configuration(folder / "keeps.toml", entry="keeps:main", health="release_deadline_s = 2.0", trainer=SEES_OURS)


KEEPS = '''
"""The built-in trainer, but in its first life rank 0 takes a piece of a GPU that nobody lent it, and keeps it."""
import os
import time
import trainshed.virtual_gpu
from trainers.grpo import main as real_main

def main():
    if os.environ["TRAINSHED_TAG"].endswith(":1") and os.environ["RANK"] == "0":
        kept = trainshed.virtual_gpu.Pool(trainshed.virtual_gpu.parse_device("virtual:GPU"), 4 << 20)
        kept.touch()
        THEN
    real_main()
'''
