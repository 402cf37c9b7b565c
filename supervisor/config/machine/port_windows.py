"""This module checks whether the ports of a file are enough. Groups reserve windows of ports in a row, so that counting free ones says too little."""

from collections.abc import Iterable, Iterator

from engines.lifecycle.members import WINDOW as ENGINE
from supervisor.config.schema.findings import Finding
from supervisor.config.schema.rules import Draft
from supervisor.config.schema.tables import HostTable
from supervisor.host.ports import WINDOW as TRAINER
from supervisor.host.ports import can_bind, ephemeral_range, free_ports, outside


def findings(host: HostTable, draft: Draft) -> Iterator[Finding]:
    low, high = host.ports
    if not 1024 <= low < high <= 65535:
        return  # a rule has said so
    ephemeral = ephemeral_range()
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
    if host.metrics_port is not None and not low <= host.metrics_port <= high and not can_bind(host.metrics_port, "127.0.0.1"):
        yield Finding(
            "host.metrics_port", host.metrics_port, "is taken by another program", "Name a free port (`ss -tlnp` shows who listens)."
        )


def sizes(draft: Draft) -> list[int]:
    """Windows of a file: its gateways' first, as a run reserves them, then the larger ones first."""
    engines = [pipeline.engine for pipeline in draft.pipelines if pipeline.engine is not None]
    count = sum(len(engine.gpus) // engine.tp for engine in engines)
    return [1] * len(draft.pipelines) + [ENGINE] * count + [TRAINER] * len(draft.pipelines)


def unplaced(wanted: Iterable[int], free: Iterable[int]) -> list[int]:
    """Returns those of the wanted sizes for which no free ports in a row are left, each placed where it first fits."""
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
