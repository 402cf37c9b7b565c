"""Whether the ports of a file are enough: groups reserve windows of ports in a row, so that counting free ones says too little."""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from engines.lifecycle.members import WINDOW as ENGINE
from supervisor.config.schema.findings import Finding
from supervisor.config.schema.rules import Draft
from supervisor.config.schema.tables import HostTable

TRAINER: Final = 16
"""Ports that the ranks of a trainer reserve together (`supervisor.host.ports.WINDOW`)."""


def findings(host: HostTable, draft: Draft) -> Iterator[Finding]:
    low, high = host.ports
    if not 1024 <= low < high <= 65535:
        return  # a rule has said so
    ephemeral = ephemeral_ports()
    if ephemeral is not None and low <= ephemeral[1] and ephemeral[0] <= high and (beside := outside(*ephemeral)) is not None:
        problem = f"overlaps the ports that the kernel gives to outgoing connections ({ephemeral[0]} to {ephemeral[1]})"
        remedy = f"Choose a window outside, for example {list(beside)}, or change net.ipv4.ip_local_port_range."
        yield Finding("host.ports", list(host.ports), problem, remedy)
        return
    wanted = sizes(draft)
    if not wanted:
        return
    missing = unplaced(wanted, free_ports(low, min(high, low + 2 * sum(wanted)))) and unplaced(wanted, free_ports(low, high))
    if missing:
        engines, trainers = missing.count(ENGINE), missing.count(TRAINER)
        whose = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in ((engines, "engine"), (trainers, "trainer")) if count]
        problem = f"has no room for {' and '.join(whose) or 'the gateways'}: an engine needs {ENGINE} free ports in a row, a trainer {TRAINER}, a gateway 1"
        remedy = f"This file needs {sum(wanted)} ports: widen the window, or end what listens there (`ss -tlnp`)."
        yield Finding("host.ports", list(host.ports), problem, remedy)
    if host.metrics_port is not None and not low <= host.metrics_port <= high and not _can_bind(host.metrics_port, "127.0.0.1"):
        yield Finding(
            "host.metrics_port", host.metrics_port, "is taken by another program", "Name a free port (`ss -tlnp` shows who listens)."
        )


def sizes(draft: Draft) -> list[int]:
    """Windows of a file: its gateways' first, as a run reserves them, then the larger ones first."""
    engines = [pipeline.engine for pipeline in draft.pipelines if pipeline.engine is not None]
    count = sum(len(engine.gpus) // engine.tp for engine in engines)
    return [1] * len(draft.pipelines) + [ENGINE] * count + [TRAINER] * len(draft.pipelines)


def unplaced(wanted: Iterable[int], free: Iterable[int]) -> list[int]:
    """Those of the wanted sizes for which no free ports in a row are left, each placed where it first fits."""
    runs: list[tuple[int, int]] = []  # first, length
    for port in free:
        if runs and sum(runs[-1]) == port:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((port, 1))
    missing = []
    for size in wanted:
        place = next((index for index, (_, length) in enumerate(runs) if length >= size), None)
        if place is None:
            missing.append(size)
        else:
            runs[place] = (runs[place][0] + size, runs[place][1] - size)
    return missing


def free_ports(low: int, high: int) -> Iterator[int]:
    """Ports that can be bound now, on any address."""
    marked = _marked()
    return (port for port in range(low, high + 1) if port not in marked and _can_bind(port, "0.0.0.0"))


def _can_bind(port: int, address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _marked() -> frozenset[int]:
    """Ports that other supervisors on this machine have reserved (`supervisor.host.ports`)."""
    try:
        names = [
            line.rpartition("@trainshed-port-")[2] for line in Path("/proc/net/unix").read_text().splitlines() if "@trainshed-port-" in line
        ]
    except OSError:
        return frozenset()
    return frozenset(int(name) for name in names if name.isdigit())


def ephemeral_ports() -> tuple[int, int] | None:
    """The kernel's window for outgoing connections, None where it cannot be read."""
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return None


def outside(low: int, high: int) -> tuple[int, int] | None:
    """The widest window beside the kernel's. None where it has taken nearly all: then ours lies within it, and a port found taken is passed over."""
    below, above = (max(1024, low - 10000), low - 1), (high + 1, min(65535, high + 10000))
    first, last = max(below, above, key=lambda window: window[1] - window[0])
    return (first, last) if last - first >= 1000 else None
