"""Another user of the machine really tries, on a running quickstart, what docs/security.md says that he cannot. Skipped where we are not root."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.other_user import python_as_nobody
from tests.harness.supervised_run import Run, configuration, processes_of

TRIES = r"""
import http.client, json, os, socket, sys
asked = json.loads(sys.argv[1])
said = {}
def tried(name, act):
    try: said[name] = act()
    except OSError as error: said[name] = type(error).__name__
def http_(address, method, path, headers, body=None):
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    return connection.getresponse().status
for name, address, method, path, headers in asked["http"]:
    tried(name, lambda: http_(address, method, path, headers, "{}" if method == "POST" else None))
for path in asked["paths"]:
    tried("read " + path, lambda: len(os.listdir(path)) if os.path.isdir(path) else len(open(path, "rb").read()))
    tried("write " + path, lambda: open(os.path.join(path, "x") if os.path.isdir(path) else path, "ab").write(b"x"))
def connects(path):
    with socket.socket(socket.AF_UNIX) as client: client.connect(path)
tried("control", lambda: connects(asked["control"]))
for pid in asked["pids"]:
    for what in ("environ", "fd", "maps", "mem"):
        path = f"/proc/{pid}/{what}"
        tried(f"proc {pid} {what}", lambda: len(os.listdir(path)) if what == "fd" else len(open(path, "rb").read(1)))
    tried(f"kill {pid}", lambda: os.kill(pid, 0))
print(json.dumps(said))
"""
ROUTES = (
    ("GET", "/v1/models"),
    ("GET", "/info"),
    ("GET", "/status"),
    ("GET", "/nothing"),
    ("POST", "/generate"),
    ("POST", "/rollouts/0/samples"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
)
ENGINE = (
    ("GET", "/server_info"),
    ("GET", "/model_info"),
    ("GET", "/health_generate"),
    ("POST", "/generate"),
    ("POST", "/pause_generation"),
    ("POST", "/release_memory_occupation"),
    ("POST", "/update_weights_from_disk"),
    ("POST", "/abort_request"),
)


BEARERS: dict[str, dict[str, str]] = {
    "": {},
    " wrong": {"Authorization": "Bearer wrong"},
    " empty": {"Authorization": "Bearer "},
    " basic": {"Authorization": "Basic cm9vdDpyb290"},
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Run, int]]:
    """The quickstart, in folders that everybody may enter: what keeps others out is ours."""
    python_as_nobody("pass")  # skips where nobody can be nobody
    for folder in (tmp_path, *(up for up in tmp_path.parents if up.name.startswith(("pytest-", "popen-")))):
        folder.chmod(0o755)
    metrics = free_port()
    begun = Run(tmp_path, configuration(tmp_path / "quickstart.toml", steps=200, host=f"metrics_port = {metrics}"))
    yield begun, metrics
    begun.stop()


@pytest.mark.slow
def test_another_user_gets_nothing_of_a_running_quickstart(run: tuple[Run, int]) -> None:
    on, metrics = run
    on.when("p1", lambda view: view.step >= 1 and view.state == "rolling out", "its second rollout")
    view = on.status()
    assert view is not None
    gateways = json.loads((on.directory / "gateways.json").read_text())
    keys = [entry["key"] for entry in gateways.values()]
    gateway = next(str(record["url"]) for record in on.log() if record["event"] == "gateway").removeprefix("http://")
    http = [(f"gateway {how} {path}{with_}", gateway, how, path, headers) for how, path in ROUTES for with_, headers in BEARERS.items()]
    engines = [(f"engine {engine.rank}", f"127.0.0.1:{port}") for engine in view.pipelines[0].engines for port in ports_of(engine.pids)]
    http += [
        (f"{name} {how} {path}{with_}", at, how, path, to) for name, at in engines for how, path in ENGINE for with_, to in BEARERS.items()
    ]
    http += [("health", gateway, "GET", "/health", {}), ("metrics", f"127.0.0.1:{metrics}", "GET", "/metrics", {})]
    http += [("metrics of a web page", f"127.0.0.1:{metrics}", "GET", "/metrics", {"Origin": "http://evil.example"})]
    shm = Path(f"/dev/shm/trainshed-{on.run_id}")
    paths = [on.directory, on.directory / "gateways.json", on.directory / "supervisor.jsonl", on.directory / "journal.jsonl", shm]
    paths += [
        on.directory / "logs",
        on.directory / "checkpoints",
        on.directory / "config.toml",
        *shm.rglob("*.safetensors"),
        *shm.iterdir(),
    ]
    pids = sorted({on.supervisor_pid(), *(pid for pid, _ in processes_of(on.run_id))})
    asked = {"http": http, "paths": list(map(str, paths)), "control": str(on.directory / "control.sock"), "pids": pids}
    done = python_as_nobody(TRIES, json.dumps(asked))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert engines, "no engine was asked"
    assert said.pop("health") == 200, "what a load balancer asks is open"
    assert said.pop("metrics") == 200, "as docs/security.md says: who sets metrics_port shows counts and times to every user"
    assert said.pop("metrics of a web page") == 403
    refused = {401, 403, 404, 405, "PermissionError"}
    gone = {"FileNotFoundError", "ProcessLookupError", "ConnectionRefusedError"}  # a child or a snapshot that has ended meanwhile
    assert {what: how for what, how in said.items() if how not in refused | gone} == {}
    assert {how for what, how in said.items() if what.startswith("gateway ")} == {401}
    assert sum(how == "PermissionError" for how in said.values()) > 50
    lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if os.path.exists(f"/proc/{pid}"))
    assert not any(key.encode() in lines for key in keys), "a command line is everybody's to read"
    assert on.process.poll() is None


def ports_of(pids: tuple[int, ...]) -> set[int]:
    """The ports that these processes listen on."""
    links = set()
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                links.add(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:  # closed meanwhile
                continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links}
