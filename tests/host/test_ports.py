"""Windows of ports: bindable, never shared, named when taken."""

import os
import socket
from collections.abc import Iterator

import pytest

from supervisor.runtime.ports import NoPortFree, Ports, PortsUnusable, Window, can_bind, ephemeral_range


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


def test_a_group_that_has_ended_must_have_left_its_ports(ports: Ports) -> None:
    window = ports.reserve("a", 4)
    with listen(window[2]):
        assert ports.bindable("a") == window[2]
    assert ports.bindable("a") is None


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
