"""`ui` serves the report live: to who has its token, from the loopback, and to no web page."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.attempt.recording import FOLDER, segments
from tests.harness.mutation import CHECKOUT, environment
from tests.harness.recorded_runs import record

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "three" / "attempt_1"
    record(path, steps=2, faults=None)
    (path / "run_id").write_text("three-1\n")
    return path


@pytest.fixture
def address(attempt: Path) -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "supervisor", "ui", str(attempt)],
        cwd=CHECKOUT,
        env=environment(CHECKOUT),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        os.kill(server.pid, signal.SIGINT)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait(10)


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with OPENER.open(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_page_is_live_and_for_who_has_the_token(attempt: Path, address: str) -> None:
    base, _, query = address.partition("?")
    assert base.startswith("http://127.0.0.1:")
    status, page = get(address)
    assert status == 200
    assert "connect-src 'self'" in page
    assert "three/attempt_1" in page
    status, text = get(f"{base}data?{query}")
    first = json.loads(text)
    assert (status, first["state"]) == (200, "ended")
    for refused in (
        get(base), get(f"{base}data"), get(f"{base}?token=wrong"), get(f"{base}?token=%C3%A9"),
        get(address, Host="evil.example"), get(address, Origin="http://evil.example"), get(address, Sec_Fetch_Site="cross-site"),
    ):  # fmt: skip
        assert refused[0] == 403
        assert "three" not in refused[1]
    assert get(f"{base}config.toml?{query}")[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="405"):
        OPENER.open(urllib.request.Request(address, data=b"x"), timeout=20)
    segment = segments(attempt / FOLDER)[-1]  # the run goes on: a second life of its supervisor
    assert segment.suffix == ".jsonl"
    record(attempt, seed=6, steps=1, faults=None)

    def later() -> int:
        return len(json.loads(get(f"{base}data?{query}")[1])["lives"])

    limit = time.monotonic() + 20.0  # it is read again at most once a second
    while later() != 2 and time.monotonic() < limit:
        pass
    assert later() == 2


def test_what_has_no_history_is_not_served(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "none" / "attempt_1"
    path.mkdir(parents=True)
    (path / "run_id").write_text("none-1\n")
    command = [sys.executable, "-P", "-m", "supervisor", "ui", str(path)]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment(CHECKOUT), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no history" in done.stderr
