"""The shape of an engine group: which member has which GPUs and ports, and what its command line says about the others. PURE.

`one` process for the whole tensor/expert-parallel bundle, or one process `per-gpu`: a head and followers that meet at one rendezvous.
Only the head serves requests; on a follower an HTTP answer proves nothing but that its main process runs.
"""

from dataclasses import dataclass
from typing import Final, Literal

Members = Literal["one", "per-gpu"]

WINDOW: Final = 32
"""Ports reserved for one group: its members' HTTP ports first, then NCCL's, the rendezvous, and what SGLang counts on from there."""
MOST_MEMBERS: Final = 16
_NCCL: Final = 16
_RENDEZVOUS: Final = 17


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a group. `gpus` are positions within the bundle."""

    index: int
    gpus: tuple[int, ...]

    @property
    def head(self) -> bool:
        return self.index == 0


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one incarnation of a group, counted from the first of its window."""

    first: int

    def http(self, member: int) -> int:
        return self.first + member

    @property
    def nccl(self) -> int:
        return self.first + _NCCL

    @property
    def rendezvous(self) -> int:
        """SGLang derives further ports from this one upwards (6, and one for each data-parallel rank): the rest of the window is theirs."""
        return self.first + _RENDEZVOUS


def shape(members: Members, tp: int) -> tuple[Member, ...]:
    """The members of a group on `tp` GPUs, the head first."""
    if members == "one":
        return (Member(0, tuple(range(tp))),)
    assert tp <= MOST_MEMBERS, "a rule refuses more"
    return tuple(Member(index, (index,)) for index in range(tp))


def arguments(member: Member, count: int, ports: Ports, *, tp: int, ep: int) -> list[str]:
    """What SGLang's command line says about the shape. All members of one incarnation share one rendezvous, which no older one can reach."""
    said = ["--host", "127.0.0.1", "--port", str(ports.http(member.index)), "--nccl-port", str(ports.nccl)]
    if tp > 1:
        said += ["--tp-size", str(tp), "--dist-init-addr", f"127.0.0.1:{ports.rendezvous}"]
    if ep > 1:
        said += ["--ep-size", str(ep)]
    if count > 1:
        said += ["--nnodes", str(count), "--node-rank", str(member.index)]
    return said
