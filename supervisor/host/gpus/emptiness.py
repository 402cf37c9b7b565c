"""This module decides whether a GPU is empty. The answer is never "probably": what could not be measured is not asked here."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainers.protocol.ids import GpuId, GroupId

MIB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """Usage is one measurement. `total` is what the device says is used (bytes, of anybody); `by_group` and `by_pid` what could be told apart.

    On GPUs in `unattributed` the driver does not say whose memory it is (containers, MIG): there `by_group` and `by_pid` are empty. `baseline`
    is what was used before anything of ours lived; it is not in `total`.
    """

    total: Mapping[GpuId, int]
    by_group: Mapping[GpuId, Mapping[GroupId, int]]
    by_pid: Mapping[GpuId, Mapping[int, int]]
    unattributed: frozenset[GpuId] = frozenset()
    baseline: Mapping[GpuId, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """A verdict says who holds a GPU. `used` and `allowed` are bytes; `holders` hold more than their residual, the largest first;
    `offenders` hold more than residual and allowance together; `unaccounted` bytes belong to no group of ours, or to nobody knows whom."""

    gpu: GpuId
    used: int
    allowed: int
    holders: tuple[tuple[GroupId, int], ...]
    unaccounted: int
    offenders: tuple[GroupId, ...] = ()
    attributed: bool = True

    @property
    def empty(self) -> bool:
        return self.used <= self.allowed

    def __str__(self) -> str:
        if self.empty:
            return f"GPU {self.gpu} is empty ({self.used / MIB:.1f} MiB used, {self.allowed / MIB:.1f} MiB allowed)"
        who = ", ".join(f"{group} {held / MIB:.1f} MiB" for group, held in self.holders)
        whose = "not of our groups" if self.attributed else "(the driver does not say whose)"
        other = f"{self.unaccounted / MIB:.1f} MiB {whose}" if self.unaccounted > 0 else ""
        return f"GPU {self.gpu} holds {self.used / MIB:.1f} MiB, {self.allowed / MIB:.1f} MiB are allowed: {', '.join(filter(None, (who, other)))}"


def judge(gpu: GpuId, usage: Usage, residuals: Mapping[GroupId, int], allowance: int) -> Verdict:
    """Compare what is used with what those who live on this GPU may keep (`residuals`, bytes) and `allowance`."""
    groups = usage.by_group.get(gpu, {})
    used = usage.total[gpu]
    over = ((group, held) for group, held in groups.items() if held > residuals.get(group, 0))
    holders = tuple(sorted(over, key=lambda holder: (-holder[1], str(holder[0]))))
    offenders = tuple(group for group, held in holders if held > residuals.get(group, 0) + allowance)
    attributed = gpu not in usage.unattributed
    return Verdict(gpu, used, sum(residuals.values()) + allowance, holders, max(0, used - sum(groups.values())), offenders, attributed)
