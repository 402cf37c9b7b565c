"""This module gives an engine group its shape: which member has which GPUs and ports, and what its command line says about the others. PURE.

There is `one` process for the whole tensor/expert-parallel bundle, or one process `per-gpu`: a head and followers that meet at one rendezvous.
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
    """A member is one process of a group. `gpus` are positions within the bundle."""

    index: int
    gpus: tuple[int, ...]

    @property
    def head(self) -> bool:
        return self.index == 0


@dataclass(frozen=True, slots=True)
class Ports:
    """These are the ports of one incarnation of a group, counted from the first of its window."""

    first: int

    def http(self, member: int) -> int:
        return self.first + member

    @property
    def nccl(self) -> int:
        return self.first + _NCCL

    @property
    def rendezvous(self) -> int:
        """Return the first of the ports that SGLang derives further ones from (6, and one for each data-parallel rank): the rest is theirs."""
        return self.first + _RENDEZVOUS


def shape(members: Members, tp: int) -> tuple[Member, ...]:
    """Return the members of a group on `tp` GPUs, the head first."""
    if members == "one":
        return (Member(0, tuple(range(tp))),)
    assert tp <= MOST_MEMBERS, "a rule refuses more"
    return tuple(Member(index, (index,)) for index in range(tp))


def arguments(member: Member, count: int, ports: Ports, *, tp: int, ep: int) -> list[str]:
    """Return what SGLang's command line says about the shape. Members of one incarnation share one rendezvous, which no older one can reach."""
    argv = ["--host", "127.0.0.1", "--port", str(ports.http(member.index)), "--nccl-port", str(ports.nccl)]
    if tp > 1:
        argv += ["--tp-size", str(tp), "--dist-init-addr", f"127.0.0.1:{ports.rendezvous}"]
    if ep > 1:
        argv += ["--ep-size", str(ep)]
    if count > 1:
        argv += ["--nnodes", str(count), "--node-rank", str(member.index)]
    return argv
