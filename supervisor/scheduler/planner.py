"""Who should be awake. One pure, deterministic function of a view; what to pause and what to wake is the difference from what is.

A gap-ratio planner in the shape of the study's "oldest rollout first, one engine each, half-empty engines last": every open
pipeline bids for as many engines as its unfinished samples can fill (its *target*); bids are served in order, and a bid prefers
the engine that costs least to give: its own awake one, then one on GPUs nobody uses, then one that somebody must give up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engines.ids import EngineId, GpuId, PipelineId

FILL = 0.5
"""An engine less full than this is served from leftovers only; it does not take from others."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One engine as the planner sees it. `awake`: holds its GPUs for work, or is about to. `fresh`: woken too recently to be taken."""

    rank: int
    gpus: frozenset[GpuId]
    awake: bool
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """One pipeline with an open rollout: `unfinished` samples, `slots` of them at once on an engine, open since `opened`."""

    pipeline: PipelineId
    unfinished: int
    slots: int
    opened: float
    bundles: tuple[Bundle, ...]
    weight: float = 1.0

    @property
    def cap(self) -> int:
        """No more engines than unfinished samples can fill."""
        return min(len(self.bundles), -(-self.unfinished // self.slots))

    @property
    def tp(self) -> int:
        return len(self.bundles[0].gpus) if self.bundles else 1


@dataclass(frozen=True, slots=True)
class View:
    """What there is to share: GPUs that are neither a trainer's, reserved for one, nor fenced; and who wants them."""

    gpus: frozenset[GpuId]
    shares: tuple[Share, ...]
    targets: str = "oldest-first"


Plan = frozenset[EngineId]


@dataclass(frozen=True, slots=True)
class _Bid:
    level: int  # 0 a first engine, 1 a well filled one, 2 leftovers
    turn: tuple[float, int]
    index: int  # which engine of the share: 0, 1, 2 …
    share: Share

    def order(self) -> tuple[int, tuple[float, int], int]:
        return (self.level, self.turn, self.index)


def plan(view: View) -> Plan:
    """The engines that should be awake: whole bundles, no GPU twice, at most `cap` a pipeline."""
    shares = [share for share in view.shares if share.unfinished > 0 and share.bundles]
    useful = frozenset(gpu for share in shares for bundle in share.bundles if bundle.awake for gpu in bundle.gpus)
    fresh = frozenset(gpu for share in shares for bundle in _kept_for_now(share) for gpu in bundle.gpus)
    wanted = _first_engines(view, shares, useful)
    taken: set[GpuId] = {gpu for bundle in wanted.values() for gpu in bundle.gpus}
    for bid in sorted(_bids(view, shares), key=_Bid.order):
        if (choice := _choose(bid, view.gpus, taken, useful, fresh, wanted)) is not None:
            wanted[EngineId(bid.share.pipeline, choice.rank)] = choice
            taken |= choice.gpus
    return frozenset(wanted)


def _first_engines(view: View, shares: list[Share], useful: frozenset[GpuId]) -> dict[EngineId, Bundle]:
    """An engine for as many pipelines as possible, oldest first, also when that needs a chain of moves (augmenting paths over bundles)."""
    chosen: dict[PipelineId, tuple[Share, Bundle]] = {}

    def place(share: Share, visited: set[tuple[PipelineId, int]], kept: frozenset[PipelineId]) -> bool:
        for bundle in sorted(share.bundles, key=lambda b: _preference(b, useful)):
            if not bundle.gpus <= view.gpus or (share.pipeline, bundle.rank) in visited:
                continue
            visited.add((share.pipeline, bundle.rank))
            rivals = [rival for rival in chosen.values() if rival[1].gpus & bundle.gpus and rival[0].pipeline != share.pipeline]
            if any(rival.pipeline in kept for rival, _ in rivals):
                continue
            before = dict(chosen)
            for rival, _ in rivals:
                del chosen[rival.pipeline]
            chosen[share.pipeline] = (share, bundle)
            if all(place(rival, visited, kept | {share.pipeline}) for rival, _ in rivals):
                return True
            chosen.clear()
            chosen.update(before)
        return False

    for share in sorted(shares, key=lambda s: (s.opened, s.pipeline)):
        place(share, set(), frozenset())
    return {EngineId(share.pipeline, bundle.rank): bundle for share, bundle in chosen.values()}


def _kept_for_now(share: Share) -> list[Bundle]:
    """Engines that the minimum hold protects; never more than the pipeline can fill."""
    return [bundle for bundle in share.bundles if bundle.awake and bundle.fresh][: share.cap]


def _bids(view: View, shares: list[Share]) -> Iterable[_Bid]:
    """One bid per engine beyond the first that a pipeline can fill."""
    for order, share in enumerate(sorted(shares, key=lambda s: (s.opened, s.pipeline))):
        for index in range(1, share.cap):
            fill = (share.unfinished - index * share.slots) / share.slots
            turn = (0.0, order)
            if view.targets == "proportional":
                # engines already counted per unit of demand: the smaller, the wider the gap
                turn = ((index + 1) / (share.unfinished * share.weight), order)
            yield _Bid(1 if fill >= FILL else 2, turn, index, share)


def _preference(bundle: Bundle, useful: frozenset[GpuId]) -> tuple[int, int, int]:
    """Cheapest first: already awake, then touching nobody's awake engine, then by how many GPUs somebody must give up."""
    contested = len(bundle.gpus & useful)
    kind = 0 if bundle.awake else 1 if contested == 0 else 2
    return (kind, contested, bundle.rank)


def _choose(
    bid: _Bid, gpus: frozenset[GpuId], taken: set[GpuId], useful: frozenset[GpuId], fresh: frozenset[GpuId], wanted: dict[EngineId, Bundle]
) -> Bundle | None:
    protected = useful if bid.level == 2 else fresh
    for bundle in sorted(bid.share.bundles, key=lambda b: _preference(b, useful)):
        if EngineId(bid.share.pipeline, bundle.rank) in wanted or not bundle.gpus <= gpus or bundle.gpus & taken:
            continue
        if not bundle.awake and bundle.gpus & protected:
            continue
        return bundle
    return None
