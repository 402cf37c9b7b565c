import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers.protocol.child_env import CHECKOUT, OUR_PATH
from trainers.rewards import Failure, Verifiers

ODD = "verifiers:odd"
HARNESS = CHECKOUT / "tests" / "harness"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that is not ours is found where its user's code is."""
    monkeypatch.syspath_prepend(str(HARNESS))


def kinds(results: list[float | Failure]) -> list[float | str]:
    return [result.kind if isinstance(result, Failure) else result for result in results]


def test_scores_come_in_order_and_torch_is_not_there() -> None:
    with Verifiers(ODD, workers=2) as pool:
        assert pool.pids == []
        assert pool.score([]) == []
        assert pool.score([("value", i / 7) for i in range(50)]) == [i / 7 for i in range(50)]
        assert pool.score([("torch",)]) == [0.0]
        pids = pool.pids
        assert pool.score([("pid",)])[0] in pids
    assert all(gone(pid) for pid in pids)


def test_hung_dead_and_wrong_verifiers_cost_only_their_sample() -> None:
    whats = ["hang", "value", "hang in C", "die", "raise", "exit", "nan", "inf", "none", "value"]
    started = time.monotonic()
    with Verifiers(ODD, workers=2, limit_s=0.3) as pool:
        results = pool.score([(what, 1.0) for what in whats])
        assert kinds(results) == ["timeout", 1.0, "timeout", "crash", "error", "crash", "not_a_number", "not_a_number", "error", 1.0]
        assert all(len(result.detail) <= 500 for result in results if isinstance(result, Failure))
        assert pool.score([("value", 2.0)]) == [2.0]
        assert len(pool.pids) <= 2
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("entry", ["verifiers:nothing", "no_such_module:f", "nonsense"])
def test_a_verifier_that_is_not_there(entry: str) -> None:
    with Verifiers(entry, workers=1) as pool:
        assert kinds(pool.score([("a",), ("b",)])) == ["start", "start"]


def test_a_killed_worker_is_replaced() -> None:
    with Verifiers("verifiers:length", workers=1) as pool:
        assert pool.score([("abc",)]) == [3.0]
        (pid,) = pool.pids
        os.kill(pid, signal.SIGKILL)
        assert wait_gone(pid, reap=False)
        results = pool.score([("abc",), ("ab",)])
        assert results[-1] == 2.0
        assert kinds(results)[0] in (3.0, "crash")


@pytest.mark.parametrize("what", ["value", "hang", "hang in C"])
def test_workers_die_with_a_killed_parent(what: str) -> None:
    script = (
        "import sys, threading, time\nfrom trainers.rewards import Verifiers\n"
        f"pool = Verifiers({ODD!r}, workers=1, limit_s=100)\npool.score([('value',)])\n"
        f"threading.Thread(target=pool.score, args=([({what!r},)],), daemon=True).start()\n"
        "time.sleep(0.3)\nprint(*pool.pids, flush=True)\ntime.sleep(100)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{OUR_PATH}:{HARNESS}"}
    parent = subprocess.Popen([sys.executable, "-P", "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 1
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(wait_gone(pid) for pid in pids)


def gone(pid: int) -> bool:
    """Not there, or a zombie that someone else has to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pid: int, reap: bool = True, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return gone(pid)
