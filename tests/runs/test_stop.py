"""A graceful stop: whoever can end ends at once, and nobody waits for what will not come."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.faulty_run import Faulty
from tests.harness.supervised_run import CHECKOUT, Run

GRACE_S = 20.0
SAVES = """
import sys
sys.path.insert(0, {checkout!r})
from trainshed import Refused, connect

pipeline = connect()
pipeline.restore(lambda: {{}})
try:
    with pipeline.rollout(target=8) as rollout:
        rollout.generate([[4, 5, 6]] * 8, max_new_tokens=400)
except Refused as refused:
    print(refused, flush=True)
    assert refused.code == "stopping" and pipeline.stopping
saved = pipeline.directory / "step-0"
saved.write_text("what there is")
pipeline.checkpoint(0, saved)
print("saved", flush=True)
"""
DEAF = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    made = Faulty(tmp_path, tokens=400, health=f"grace_s = {GRACE_S}")
    for rank in range(2):
        made.script(rank, {"set": {"token_delay": 0.3}})
    yield made
    for run in made.runs:
        run.stop()


def with_trainer(faulty: Faulty, text: str) -> Run:
    """A run whose trainer is this script."""
    script = faulty.cwd / "script.py"
    script.write_text(text)
    usual = str(CHECKOUT / "tests" / "harness" / "faulty_trainer.py")
    assert usual in faulty.file.read_text()
    faulty.file.write_text(faulty.file.read_text().replace(usual, str(script)))
    return faulty.start()


def stopped(run: Run) -> float:
    """Seconds from TERM to the end."""
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.end(GRACE_S + 20) == 5
    assert run.left_behind() == []
    return time.monotonic() - began


def trainer_log(run: Run) -> str:
    return "".join(path.read_text() for path in sorted((run.directory / "logs").glob("p1.trainer*.log")))


def test_a_trainer_that_waits_for_samples_hears_that_they_will_not_come(faulty: Faulty) -> None:
    run = faulty.start()
    run.when("p1", lambda view: sum(engine.in_flight for engine in view.engines) > 0, "requests under way")
    assert stopped(run) < GRACE_S / 2
    assert "stopping: the supervisor is stopping: 16 samples of rollout 0 will not come" in trainer_log(run)


def test_what_a_trainer_saves_when_it_is_told_is_where_a_resumed_run_goes_on(faulty: Faulty) -> None:
    run = with_trainer(faulty, SAVES.format(checkout=str(CHECKOUT)))
    run.when("p1", lambda view: sum(engine.in_flight for engine in view.engines) > 0, "requests under way")
    assert stopped(run) < GRACE_S / 2
    assert trainer_log(run).rstrip().endswith("saved")
    assert [record["step"] for record in run.log() if record["event"] == "checkpoint"] == [0]


def test_a_script_without_our_client_gets_its_term_at_once(faulty: Faulty) -> None:
    run = with_trainer(faulty, DEAF)
    run.wait_until(lambda: "up" in trainer_log(run), "the script is up")
    assert stopped(run) < GRACE_S / 2
