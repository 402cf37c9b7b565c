"""Whole runs on scripted boxes (`harness/gpu_box.py`) with default settings: what is said of real cards, as far as a CPU can prove it.

Every run ends with the trainers having checked every token, with exit code 0, and with nothing left behind. A1, A2, A3 are hazards of the desk
check (docs/gpu.md): each of these cases was seen to fail before its mend.
"""

import json
import os
import signal
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.concurrent_cases import Stage, beside, stage_of
from tests.harness.gpu_box import PROFILES, Box
from tests.harness.gpu_run import BoxRun
from tests.harness.supervised_run import Run

MIB = 1 << 20
Make = Callable[..., BoxRun]


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nvml: Path) -> Iterator[Stage]:
    def play(case: Callable[..., None], parameters: dict[str, Any], folder: Path) -> None:
        started: list[Run] = []

        def make(profile: str = "h100", changes: dict[str, Any] | None = None, **options: Any) -> BoxRun:
            box = Box(
                folder / "box", replace(PROFILES[profile], **(changes or {})), library=nvml, serial=zlib.crc32(str(folder).encode()) >> 8
            )
            made = BoxRun(folder, box, **options)
            made.started = started
            return made

        try:
            case(make, **parameters)
        finally:
            for run in started:
                run.stop()

    with stage_of(request, play, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


def finished(run: Run, restarts: int = 0) -> None:
    assert run.end(90) == 0, run.tail()
    assert {name: part["steps"] for name, part in run.summary.items()} == {"p1": 5, "p2": 5}, run.tail()
    assert sum(part["restarts"] for part in run.summary.values()) == restarts, run.tail()
    assert run.left_behind() == []


def kept(run: Run) -> dict[tuple[str, str, int], float]:
    """What each group was first seen to keep, in MiB, by pipeline, group and GPU."""
    records = (record for record in run.log() if record["event"] == "keeps memory while it has no lease")
    return {(str(r["pipeline"]), str(r.get("engine", r.get("group"))), int(str(r["gpu"]))): float(str(r["mib"])) for r in records}


@pytest.mark.parametrize("profile", PROFILES)
@beside
def test_two_pipelines_run_to_the_end_on_every_box(make: Make, profile: str) -> None:
    """A1: no idle GPU would be empty. A2: the first sleeper would be retired, and each trainer. A3: in a container nobody would be known."""
    run = make(profile).start()
    finished(run)
    learned = kept(run)
    assert learned["p1", "0", 0] == 1156, "context, workspace and a part of the graphs of an engine on one card"
    assert learned["p2", "0", 0] == 2576, "and NCCL's buffers on two"
    assert learned["p2", "0", 1] + learned["p2", "trainer", 1] in (2576 + 560, 2576 + 592), (
        "the trainer's context was made before its lease"
    )
    assert not [record for record in run.log() if record["event"] == "residual memory has grown"]


@pytest.mark.parametrize("profile", ["h100-small-reserve", "container", "mig-3g.40gb"])
@beside
def test_an_engine_that_is_killed_leaves_nothing_that_is_not_others(make: Make, profile: str) -> None:
    """Also where the driver does not say whose it is, and the trainer's context was taken for the engine's."""
    run = make(profile).start()
    run.when("p2", lambda view: view.step >= 2, "two steps")
    view = run.when("p2", lambda view: bool(view.engines[0].pids), "its engine")
    os.kill(view.engines[0].pids[0], signal.SIGKILL)
    finished(run, restarts=1)


@pytest.mark.parametrize("profile", ["h100", "container"])
@beside
def test_a_trainer_that_is_killed_in_its_lease_gives_its_card_back(make: Make, profile: str) -> None:
    run = make(profile).start()
    view = run.when("p1", lambda view: view.step >= 1 and bool(view.trainer.holds), "a lease")
    os.kill(view.trainer.pids[0], signal.SIGKILL)
    finished(run, restarts=1)


@beside
def test_a_trainer_that_does_not_give_back_is_not_taken_for_one_that_keeps_a_context(make: Make) -> None:
    """The cap on what may be learned: a quarter of the card at most."""
    run = make("rtx4090", changes={"process": {"training": 0.3, "hoards": 1}}, health="release_deadline_s = 1.0\nrestarts = 1").start()
    assert run.end(60) == 4, run.tail()
    reasons = [str(record["event"]) for record in run.log() if "still hold memory" in str(record["event"])]
    assert reasons, run.tail()


@beside
def test_an_engine_whose_pool_became_smaller_than_asked_for_does_not_serve(make: Make) -> None:
    """B8: SGLang only logs it."""
    made = make()
    (made.scripts / "p2.0.json").write_text('[{"life": 1, "set": {"pool_lacks": 300}}]')
    run = made.start()
    finished(run, restarts=1)
    said = [str(record["why"]) for record in run.log() if record["event"] == "engine group failed"]
    assert "its KV pool has room for 212 tokens, and kv_tokens = 512 were asked for" in said[0]


@beside
def test_the_first_sampled_token_is_made_before_an_engine_serves(make: Make) -> None:
    """B3: else its kernels compile in the first batch, and the engine seems to hang."""
    made = make()
    run = made.start()
    run.when("p1", lambda view: view.step >= 1 and any(engine.pids for engine in view.engines), "an engine")
    (first, *_) = sorted(made.scripts.glob("live/p1.*"))
    said = json.loads(first.read_text())
    request = urllib.request.Request(f"http://127.0.0.1:{said['port']}/script", b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=5) as reply:
        canaries = json.loads(reply.read())["canaries"]
    assert [canary["temperature"] for canary in canaries] == [0, 1.0]
    finished(run)


@beside
def test_a_card_that_falls_off_the_bus_takes_nobody_along_who_is_not_on_it(make: Make) -> None:
    """p1 goes on with its engine on the card that is left."""
    made = make(health="release_deadline_s = 1.0\nrestarts = 1")
    run = made.start()
    run.when("p1", lambda view: view.step >= 1, "a step")
    made.box.change("card.1", lost=1)
    run.when("p1", lambda view: view.step >= 5, "all steps", 60)
    run.when("p2", lambda view: "card" not in view.state, "an answer")
    run.stop()
    assert run.left_behind() == []


@beside
def test_a_neighbours_memory_fences_a_card_and_leaves_the_engines_alone(make: Make) -> None:
    made = make()
    made.box.foreign(0, 20000, pid=os.getppid())
    run = made.start()
    run.wait_until(lambda: "not of our groups" in str([gpu.fenced for gpu in status.gpus] if (status := run.status()) else ""), "the fence")
    made.box.foreign(0, 0)
    finished(run)


@beside
def test_a_neighbour_who_comes_while_an_engine_is_awake_is_not_its_fault(make: Make) -> None:
    made = make()
    run = made.start()
    run.when("p1", lambda view: view.step >= 1, "a step")
    made.box.foreign(0, 6000, pid=os.getppid())
    run.wait_until(lambda: any(gpu.fenced for gpu in status.gpus) if (status := run.status()) else False, "the fence")
    made.box.foreign(0, 0)
    finished(run)
