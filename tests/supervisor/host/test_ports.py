"""Windows of ports: bindable, never shared, named when taken."""

import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.host.ports import Listeners, NoPortFree, Ports, PortsUnusable, Window, can_bind, ephemeral_range, holder, listeners, marks
from tests.harness import other_user
from tests.harness.other_user import NOBODY
from tests.harness.supervised_run import CHECKOUT


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports(28000, 28031)
    yield made
    made.close()


def listen(port: int, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen()
    return sock


def test_windows_are_distinct_and_taken_in_turn(ports: Ports) -> None:
    first, second = ports.reserve("a", 8), ports.reserve("b", 8)
    assert not set(first) & set(second)
    ports.release("a")
    third = ports.reserve("c", 8)
    assert not set(third) & (set(first) | set(second)), "a port is not used again soon"
    fourth = ports.reserve("d", 8)
    assert ports.reserve("e", 8) == first, f"only {first} is left beside {fourth}"
    with pytest.raises(NoPortFree):
        ports.reserve("f", 8)


def test_two_supervisors_never_choose_the_same(ports: Ports) -> None:
    other = Ports(28000, 28031)
    try:
        taken = set(ports.reserve("a", 16)) & set(other.reserve("a", 16))
        assert not taken
    finally:
        other.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_passed_over_and_its_holder_named(ports: Ports, host: str) -> None:
    with listen(28003, host):
        assert 28003 not in ports.reserve("a", 8)
        ports.release("a")
        narrow = Ports(28000, 28007)
        with pytest.raises(NoPortFree, match=rf"port 28003 is held by pid {os.getpid()} \("):
            narrow.reserve("b", 8)
    assert narrow.reserve("b", 8) == Window(28000, 8)
    narrow.close()


def test_what_is_left_is_found_however_it_lies() -> None:
    """A gateway's one port, then windows: what comes round again starts one port askew."""
    made = Ports(28000, 28016)
    try:
        made.reserve("gateway", 1)
        first = made.reserve("a", 16)
        made.release("a")
        assert made.reserve("a", 16) == first
    finally:
        made.close()


def test_a_group_that_has_ended_must_have_left_its_ports(ports: Ports) -> None:
    window = ports.reserve("a", 4)
    with listen(window[2]):
        assert ports.blocked("a") == (window[2],)
    assert ports.blocked("a") == ()


def test_a_port_that_is_passed_over_is_told_once_with_its_holder() -> None:
    told: list[tuple[int, str]] = []
    ports = Ports(28000, 28031, passed_over=lambda port, who: told.append((port, who)))
    try:
        with listen(28003):
            for owner in range(9):
                ports.reserve(owner, 8)
                ports.release(owner)
        assert [port for port, _ in told] == [28003]
        assert told[0][1].startswith(f"pid {os.getpid()} (")
    finally:
        ports.close()


OTHER = """
import sys
sys.path.insert(0, sys.argv[1])
from supervisor.host.ports import Ports
ports = Ports(28000, 28031, run="monday")
windows = [ports.reserve(owner, 8) for owner in range(4)]
print("ready", flush=True)
sys.stdin.read()
"""


def test_windows_that_another_supervisor_has_are_told_as_that(ports: Ports) -> None:
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(CHECKOUT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(NoPortFree, match=rf"port 280\d\d is reserved by another supervisor, pid {other.pid}, run monday$"):
            ports.reserve("a", 8)
    finally:
        other.communicate(timeout=10)
    ports.reserve("a", 8)


def test_windows_that_we_have_ourselves_are_told_as_that(ports: Ports) -> None:
    for owner in range(4):
        ports.reserve(owner, 8)
    with pytest.raises(NoPortFree, match=r"in host\.ports = \[28000, 28031\]; 4 groups of this run have them$"):
        ports.reserve("a", 8)


def test_everybody_who_listens_is_seen_or_known_to_be_unseen() -> None:
    with listen(28020) as server:
        assert listeners(28020) == Listeners(frozenset({os.getpid()}), unseen=False)
        child = subprocess.Popen(["/bin/sleep", "60"], pass_fds=[server.fileno()])
        try:
            assert listeners(28020) == Listeners(frozenset({os.getpid(), child.pid}), unseen=False)
        finally:
            child.kill()
            child.wait()
    assert listeners(28020) == Listeners(frozenset(), unseen=False)
    assert holder(28020) == "nobody who listens any more"


def test_connections_that_linger_do_not_hold_a_port() -> None:
    with listen(28020) as server, socket.create_connection(("127.0.0.1", 28020)) as client:
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first waits in TIME_WAIT
        assert client.recv(1) == b""
        assert not can_bind(28020)
    assert can_bind(28020)


@pytest.mark.parametrize(("first", "last"), [(80, 2000), (3000, 2000), (60000, 70000), (ephemeral_range()[0] - 5, ephemeral_range()[0])])
def test_unusable_ranges_name_their_key(first: int, last: int) -> None:
    with pytest.raises(PortsUnusable, match=r"host\.ports = \["):
        Ports(first, last)


def test_where_the_kernel_has_taken_every_port_a_window_lies_within(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.host.ports.ephemeral_range", lambda: (1024, 65535))
    made = Ports(28000, 28031)
    assert len(list(made.reserve("a", 8))) == 8
    made.close()


SQUATTER = """
import sys, msgspec
from pathlib import Path
from supervisor.host.locked_file import enter
from supervisor.host.ports import Ports
folder = Path(sys.argv[1])
ports = Ports(28000, 28031, run="squat\\x1b[31m", folder=folder)
windows = [ports.reserve(owner, 8) for owner in range(4)]
forged = msgspec.json.encode(dict(first=28032, count=32, run="root's", pid=1, start=1, namespace=0, net=0))
kept = [enter(folder, "trainshed-ports-", forged), enter(folder, "trainshed-ports-", b"\\xff{")]
print("ready", flush=True)
sys.stdin.read()
"""


def test_another_user_cannot_keep_us_from_ports_by_marking_them(tmp_path: Path) -> None:
    """His marks are respected while there are others, and named; nobody's marks count who only says that he is somebody else."""
    python = other_user.interpreter()
    for folder in (tmp_path, *(up for up in tmp_path.parents if up.name.startswith(("pytest-", "popen-")))):
        folder.chmod(0o755)
    tmp_path.chmod(0o1777)
    squatter = subprocess.Popen(
        [*python, "-c", SQUATTER, str(tmp_path)], user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "trainers" / "client"), sysconfig.get_path("purelib")))}, cwd="/",
    )  # fmt: skip
    try:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"ready\n"
        wide, narrow = Ports(28000, 28039, folder=tmp_path), Ports(28000, 28031, folder=tmp_path)
        assert wide.reserve("a", 8) == Window(28032, 8), "the rest is marked"
        assert narrow.reserve("a", 8) == Window(28000, 8), "nothing else is left, and nobody listens there"
        assert wide.reserve("b", 8) == Window(28008, 8), "ours are kept off each other there, too"
        (theirs,) = {str(mark) for mark in marks(tmp_path) if mark.uid == NOBODY}
        assert theirs == f"pid {squatter.pid} of nobody, run squat?[31m"
        with listen(28016), listen(28024), pytest.raises(NoPortFree, match=r"port 280\d\d is (held|reserved) by"):
            narrow.reserve("b", 8)
        wide.close()
        narrow.close()
    finally:
        squatter.communicate(timeout=10)
    assert marks(tmp_path) == []
