"""An expert-parallel group of real SGLang that loses each of its processes in turn, by death and by silence, while it serves a pipeline.

Some ten minutes on two cores: seven starts of two ranks. `bin/bench groups ENV` runs the same and prints the times.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.sglang.ep_group import HANG_BUDGET_S, TARGET, WHO, EpGroup, left_in_shm
from tests.harness.sglang.served import REAL

pytestmark = [
    pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)"),
    pytest.mark.timeout(3600),
    pytest.mark.slow,
]
TICK = 0.03
"""Start times are counted in hundredths of a second, and we look every hundredth."""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[EpGroup]:
    group = EpGroup(tmp_path)
    yield group
    group.run.stop()


def test_every_process_of_an_expert_parallel_group_killed_and_stopped_in_turn(group: EpGroup) -> None:
    before = {entry.name for entry in Path("/dev/shm").iterdir()}
    group.served(2)  # the references, under both weights
    life = 1
    for number in (signal.SIGKILL, signal.SIGSTOP):
        for who in WHO:
            recovery = group.hurt(who, number, life)
            life += 1
            assert recovery.cause == ("exit" if number is signal.SIGKILL else "probe"), group.run.tail()
            limit = 0.05 if number is signal.SIGKILL else HANG_BUDGET_S + 2.0
            assert recovery.unrouted < limit * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), recovery
            assert recovery.overlap <= TICK, f"the next life began before the last was gone: {recovery}"
    complete = len(group.steps())
    steps = group.served(complete + 2)
    assert [line["step"] for line in steps] == list(range(len(steps)))
    for line in steps:
        assert line["samples"] == TARGET
        assert line["different"] == [], "what was continued elsewhere is not what an undisturbed engine says"
        assert {version for _, _, version in line["spans"]} == {line["step"]}, "only the published weights"
    assert {1, life} <= {span[1] for line in steps for span in line["spans"]}
    assert group.run.status() is not None
    group.run.process.send_signal(signal.SIGTERM)
    group.run.end(120)
    assert group.run.left_behind() == []
    assert left_in_shm(before) == []
