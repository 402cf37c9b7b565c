"""A lease says who holds which GPU; the book also has those that are fenced or withheld.

Leases are records of their own, never derived from the state of an engine or a trainer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from trainers.protocol.ids import GpuId, GroupId, Incarnation

from .spec import Priority


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease is one GPU held by one group, at one priority, for one of its lives."""

    gpu: GpuId
    holder: GroupId
    priority: Priority
    incarnation: Incarnation


class LeaseBook:
    """The book of all leases of the box, and of the GPUs that are lent to nobody.

    A GPU is *fenced* when something holds memory there that is not ours to end, or it was never measured: until it measures empty.
    It is *withheld* by groups whose end is not confirmed: until that is. Who has it then keeps it, and nobody comes after.
    """

    def __init__(self, gpus: Iterable[GpuId]) -> None:
        self._leases: dict[GpuId, Lease | None] = dict.fromkeys(gpus)
        self._fences: dict[GpuId, str] = {}
        self._withheld: dict[GpuId, dict[GroupId, str]] = {}
        self._held: dict[GroupId, list[GpuId]] = {}

    @property
    def gpus(self) -> tuple[GpuId, ...]:
        return tuple(self._leases)

    @property
    def leases(self) -> list[Lease]:
        return [lease for lease in self._leases.values() if lease is not None]

    @property
    def fences(self) -> dict[GpuId, str]:
        """Return the fenced GPUs, each with its reason; a measurement lifts a fence."""
        return dict(self._fences)

    @property
    def withheld(self) -> dict[GpuId, tuple[GroupId, ...]]:
        """Return the withheld GPUs, each with the groups that withhold it."""
        return {gpu: tuple(by) for gpu, by in self._withheld.items()}

    def lease(self, gpu: GpuId) -> Lease | None:
        return self._leases[gpu]

    def fenced(self, gpu: GpuId) -> str | None:
        """Return why the GPU is fenced or withheld, or None."""
        return self._fences.get(gpu) or next(iter(self._withheld.get(gpu, {}).values()), None)

    def is_free(self, gpu: GpuId) -> bool:
        return self._leases[gpu] is None and gpu not in self._fences and gpu not in self._withheld

    def all_free(self, gpus: Iterable[GpuId]) -> bool:
        return all(self.is_free(gpu) for gpu in gpus)

    def held_by(self, holder: GroupId) -> tuple[GpuId, ...]:
        return tuple(self._held.get(holder, ()))

    def grant(self, gpus: Iterable[GpuId], holder: GroupId, priority: Priority, incarnation: Incarnation) -> None:
        """Lend all of these GPUs or none. Raises AssertionError when one is held or fenced: that would be a double booking, a bug of ours."""
        wanted = tuple(gpus)
        for gpu in wanted:
            assert self.is_free(gpu), f"GPU {gpu} wanted by {holder} is held by {self._leases[gpu]} or fenced: {self.fenced(gpu)}"
        for gpu in wanted:
            self._leases[gpu] = Lease(gpu, holder, priority, incarnation)
        if wanted:
            self._held[holder] = sorted({*self._held.get(holder, ()), *wanted})

    def reassign(self, gpus: Iterable[GpuId], holder: GroupId, priority: Priority) -> None:
        """Lend them to the same holder in another role, without a gap."""
        for gpu in gpus:
            lease = self._leases[gpu]
            assert lease is not None, f"GPU {gpu} has no lease"
            assert lease.holder == holder, f"GPU {gpu} is held by {lease.holder}, not {holder}"
            self._leases[gpu] = Lease(gpu, holder, priority, lease.incarnation)

    def release(self, holder: GroupId, gpus: Iterable[GpuId] | None = None) -> None:
        """Give back what `holder` holds (of `gpus`). Raises AssertionError for what it does not hold: a bug of ours."""
        for gpu in self.held_by(holder) if gpus is None else tuple(gpus):
            lease = self._leases[gpu]
            assert lease is not None, f"{holder} gives back GPU {gpu}, which nobody holds"
            assert lease.holder == holder, f"{holder} gives back GPU {gpu}, which {lease.holder} holds"
            self._leases[gpu] = None
            self._held[holder].remove(gpu)
        if not self._held.get(holder):
            self._held.pop(holder, None)

    def fence(self, gpu: GpuId, reason: str) -> None:
        self._fences[gpu] = reason

    def clear(self, gpu: GpuId) -> None:
        self._fences.pop(gpu, None)

    def withhold(self, gpus: Iterable[GpuId], by: GroupId, reason: str) -> None:
        """Lend these to nobody from now on, also when they come back from those who have them."""
        for gpu in gpus:
            self._withheld.setdefault(gpu, {})[by] = reason

    def lift(self, by: GroupId) -> None:
        """The group is confirmed to have exited: it withholds nothing more."""
        for gpu in [gpu for gpu, groups in self._withheld.items() if groups.pop(by, None) is not None and not groups]:
            del self._withheld[gpu]
