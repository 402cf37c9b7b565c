"""The planner says which engines should be awake: `plan` is one deterministic function of a view. What to pause and to wake is the difference from what is.

A gap-ratio planner. Every open pipeline's *target* is the engines its unfinished samples can fill, won one by one in bids; the
rule for targets says in which order the bids are served. Where target and held differ is a gap, and a gap is closed by the
cheapest move: an engine of its own that is awake, one on GPUs nobody uses, or one that a later bid must give up. The first engine
of each pipeline comes before all bids (`packing`). A bid takes only from later bids, and from the latest first, so that closing
one gap does not open a chain of others.

`oldest-first` (the default, because it measures best): the oldest rollout bids first. It *takes* from younger ones only up to its
fair share of the GPUs; beyond that it gets what is free, and keeps what it has. `proportional`: turns by engines per unfinished
sample, the incumbent's rule made work-conserving and capped. Either way a move must pay for itself, in seconds as measured (`costs`).
docs/scheduling.md has all rules in their order, and what they are worth.
"""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from trainers.protocol.ids import EngineId, GpuId, PipelineId

from .packing import Claim, serve
from .reasons import Denied, Given, Trace

FILL, FILL_HELD = 0.5, 0.25
"""An engine less full than this is served from leftovers only; it does not take from others. For one that is awake already it
takes less: what is running stays where it is for a small gain."""
NEED, NEED_HELD = 1.25, 3.0
"""Where expectations are known: the longest sample alone takes `longest`; more than `expected / longest` places at once do not end the
rollout sooner. So many times that need may be taken from others, or kept."""

PAYS = 1.0
"""What an engine takes from others must be work for so many times the GPU time that the move costs."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle is one engine as the planner sees it. `awake`: holds its GPUs for work, or is about to. `fresh`: woken too recently to be taken.

    `cost`: seconds that its GPUs are lost by waking it and pausing it again, as measured; 0 when nothing was.
    """

    rank: int
    gpus: frozenset[GpuId]
    awake: bool
    fresh: bool = False
    in_flight: int = 0
    cost: float = 0.0
    mask: int = field(init=False)
    """Its GPUs as bits."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", _mask(self.gpus))


@dataclass(frozen=True, slots=True)
class Share:
    """A share is one pipeline with an open rollout: `unfinished` samples, `slots` of them at once on an engine, open since `opened`.

    `home` are the GPUs it trains on. Fair shares of the box are as `weight * load`, its work to the end of the run (1 for all where
    that is not known); `behind`: it has far more steps to go than any other, so the whole box will wait for it. `expected` and `longest` are
    what is left of all its samples and of the longest of them, in one unit; 0 when nothing is known. `pace` is the mean time of a
    sample in seconds; 0 when nothing is known.
    """

    pipeline: PipelineId
    unfinished: int
    slots: int
    opened: float
    bundles: tuple[Bundle, ...]
    weight: float = 1.0
    home: frozenset[GpuId] = frozenset()
    expected: float = 0.0
    longest: float = 0.0
    behind: bool = False
    load: float = 1.0
    pace: float = 0.0

    def useful(self, index: int) -> float:
        """Return the seconds until the others can do what is left without its engine number `index`, counted from 0; 0 when nobody knows."""
        return self.pace * (self.unfinished - index * self.slots) / (self.slots * (index + 1))

    @property
    def cap(self) -> int:
        """Return the tail cap: no more engines than unfinished samples can fill."""
        return min(len(self.bundles), -(-self.unfinished // self.slots))


@dataclass(frozen=True, slots=True)
class View:
    """A view is what there is to share: GPUs that are neither a trainer's, reserved for one, nor fenced; and who wants them.

    `soon`: GPUs that somebody else will want in a moment. Until then an engine wakes there only for a bid that could take from others.
    """

    gpus: frozenset[GpuId]
    shares: tuple[Share, ...]
    targets: str = "oldest-first"
    soon: frozenset[GpuId] = frozenset()


Plan = frozenset[EngineId]


class Level(IntEnum):
    """How strong a bid is. Bids of a lower level are served first."""

    TAKES = 1  # takes from later bids
    YIELDS = 2  # for an engine that is awake beyond the fair share: served after all bids within theirs
    FREE_ONLY = 3  # takes only what is free, and gives to all others


Order = tuple[float, ...]
"""When a bid is served: its level, then what the rule for targets compares, then the pipeline and the engine's number in it."""
Price = tuple[object, ...]
"""What taking a bundle costs: engines lost, whose bids come last, requests running there, GPUs not at home."""


@dataclass(slots=True)
class _Bidder:
    """A share on its way through the plan. `spare` are its awake engines not granted yet; `granted` what it has won."""

    index: int
    share: Share
    seats: list[Bundle]
    age: int
    home: int  # the GPUs it trains on, as bits
    had: int = 0
    spare: list[Bundle] = field(default_factory=list)
    granted: list[Bundle] = field(default_factory=list)

    @property
    def tp(self) -> int:
        return self.seats[0].mask.bit_count()

    @property
    def cost(self) -> float:
        return max(seat.cost for seat in self.seats)

    @property
    def held(self) -> int:
        return len(self.granted) + len(self.spare)


def plan(view: View, trace: Trace | None = None) -> Plan:
    """Return the engines that should be awake: whole bundles, no GPU twice, at most `cap` a pipeline. `trace` takes the reasons."""
    bidders = _bidders(view)
    if not bidders:
        return frozenset()
    table = _Table(view, bidders, trace)
    table.first_engines()
    table.bids()
    table.leftovers()
    if trace is not None:
        table.complete(trace)
    return frozenset(EngineId(bidder.share.pipeline, seat.rank) for bidder in bidders for seat in bidder.granted)


def must_leave(
    engine: EngineId, gpus: Iterable[GpuId], wanted: Plan, wanted_gpus: Mapping[GpuId, EngineId], blocked: frozenset[GpuId]
) -> bool:
    """Return whether the engine must give up its GPUs: a pause is paid only when a trainer or another engine of the plan needs one.

    `wanted_gpus` are the GPUs of the engines of the plan `wanted`, `blocked` those that are reserved for trainers.
    """
    if any(gpu in blocked for gpu in gpus):
        return True
    return engine not in wanted and any(gpu in wanted_gpus for gpu in gpus)


def _bidders(view: View) -> list[_Bidder]:
    closed = ~_mask(view.gpus)
    found: list[_Bidder] = []
    shares = sorted((s for s in view.shares if s.unfinished > 0), key=lambda s: (not s.behind, s.opened, s.pipeline))
    ages = {key: age for age, key in enumerate(sorted({(not s.behind, s.opened) for s in shares}))}
    for share in shares:
        seats = [bundle for bundle in share.bundles if not bundle.mask & closed]
        if seats:
            found.append(_Bidder(len(found), share, seats, ages[not share.behind, share.opened], _mask(share.home)))
    return found


class _Table:
    """The table at which the bids are served. `locked`: GPUs granted for good in this plan."""

    def __init__(self, view: View, bidders: list[_Bidder], trace: Trace | None) -> None:
        self.view = view
        self.trace = trace
        self.bidders = bidders
        self.locked = 0
        self.soon = _mask(view.soon)
        self.fair = len(view.gpus) / sum(b.share.weight * b.share.load for b in bidders)  # GPUs for a weight of 1
        self.busy = 0  # GPUs of any awake engine of a bidder, surplus ones too
        self.spare_at: dict[GpuId, tuple[_Bidder, Bundle]] = {}

    # -- first engines

    def first_engines(self) -> None:
        for bidder in self.bidders:
            awake = sorted((seat for seat in bidder.seats if seat.awake), key=lambda seat: _worth(seat, bidder.home))
            bidder.spare = awake[: bidder.share.cap]
            bidder.had = len(bidder.spare)
            for seat in awake:
                self.busy |= seat.mask
            for seat in bidder.spare:
                self.spare_at.update(dict.fromkeys(seat.gpus, (bidder, seat)))
        if all(bidder.spare for bidder in self.bidders):
            chosen: list[int | None] = [bidder.spare[0].mask for bidder in self.bidders]
        else:
            chosen = serve([self._claim(bidder) for bidder in self.bidders])
        for bidder, mask in zip(self.bidders, chosen, strict=True):
            if mask is not None:
                self._grant(bidder, next(seat for seat in bidder.seats if seat.mask == mask), Given.FIRST_ENGINE)

    def _claim(self, bidder: _Bidder) -> Claim:
        home, busy = bidder.home, self.busy
        seats = sorted(bidder.seats, key=lambda s: (not s.awake, (s.mask & busy).bit_count(), -(s.mask & home).bit_count(), s.rank))
        return Claim(tuple(s.mask for s in seats), tuple(s.mask for s in bidder.spare), bidder.age)

    def _grant(self, bidder: _Bidder, seat: Bundle, why: Given) -> None:
        """Give it for good; whoever's awake engine is in the way loses it."""
        bidder.granted.append(seat)
        if self.trace is not None:
            self.trace.given[EngineId(bidder.share.pipeline, seat.rank)] = why
        self.locked |= seat.mask
        for place in seat.gpus:
            if place in self.spare_at:
                loser, spare = self.spare_at[place]
                loser.spare.remove(spare)
                for gone in spare.gpus:
                    del self.spare_at[gone]

    # -- bids for more

    def _order(self, bidder: _Bidder, index: int) -> Order:
        """Return when the bid for its engine number `index` is served; always later for a later engine of the same pipeline."""
        share = bidder.share
        level = self._level(bidder, index)
        if self.view.targets == "proportional":
            # engines already counted per unit of demand: the smaller, the wider the gap
            return (level, (index + 1) / (share.unfinished * share.weight), bidder.index, index)
        return (level, float(bidder.age), bidder.index, index)

    def _level(self, bidder: _Bidder, index: int) -> Level:
        if self._weakness(bidder, index) is not None:
            return Level.FREE_ONLY
        if index < bidder.had and bidder.share.longest > 0.0 and self._beyond_share(bidder, index):
            return Level.YIELDS
        return Level.TAKES

    def _weakness(self, bidder: _Bidder, index: int) -> Denied | None:
        """Return the rule by which the bid takes nothing from others; None when it may."""
        share = bidder.share
        held = index < bidder.had
        if share.unfinished - index * share.slots < (FILL_HELD if held else FILL) * share.slots:
            return Denied.LITTLE_WORK
        if not held and share.pace > 0.0 and share.useful(index) < PAYS * bidder.cost:
            return Denied.MOVE_COST
        if share.longest > 0.0 and index * share.longest * share.slots >= (NEED_HELD if held else NEED) * share.expected:
            return Denied.LONGEST_SAMPLE
        if not held and self._beyond_share(bidder, index):
            return Denied.FAIR_SHARE
        return None

    def _beyond_share(self, bidder: _Bidder, index: int) -> bool:
        share = bidder.share
        return self.view.targets != "proportional" and index * bidder.tp >= self.fair * share.weight * share.load

    def bids(self) -> None:
        heap: list[tuple[Order, int]] = []
        for bidder in self.bidders:
            self._next(heap, bidder)
        while heap:
            order, index = heapq.heappop(heap)
            bidder = self.bidders[index]
            if bidder.spare:
                self._grant(bidder, bidder.spare[0], Given.KEPT)
            elif (found := self._cheapest(bidder, order)) is not None:
                price, seat = found
                self._grant(bidder, seat, Given.TAKEN if price[0] else Given.FREE)
            else:
                continue  # later bids of it can take even less
            self._next(heap, bidder)

    def _next(self, heap: list[tuple[Order, int]], bidder: _Bidder) -> None:
        if bidder.granted and len(bidder.granted) < bidder.share.cap:
            heapq.heappush(heap, (self._order(bidder, len(bidder.granted)), bidder.index))

    def _cheapest(self, bidder: _Bidder, order: Order) -> tuple[Price, Bundle] | None:
        """Return the seat that costs least, with its price: one of nobody's first, then one of those whose bids come last."""
        best: tuple[Price, Bundle] | None = None
        for seat in bidder.seats:
            if seat.mask & self.locked:
                continue
            price = self._price(bidder, seat, order)
            if isinstance(price, Denied):
                if self.trace is not None:
                    by = {self.spare_at[place][0].index for place in seat.gpus if place in self.spare_at}
                    self._deny(self.trace, bidder, seat, price, by)
            elif best is None or price < best[0]:
                best = (price, seat)
        return best

    def _price(self, bidder: _Bidder, seat: Bundle, order: Order) -> Price | Denied:
        """Return what the seat costs, or the rule by which it cannot be had for this bid."""
        home = (seat.mask & bidder.home).bit_count()
        if order[0] == Level.FREE_ONLY and seat.mask & self.soon:
            return Denied.SOON_TRAINING
        if not seat.mask & self.busy:
            return (0, (), 0, -home, seat.rank)
        losers: dict[int, tuple[_Bidder, list[Bundle]]] = {}
        for place in seat.gpus:
            if place in self.spare_at:
                loser, spare = self.spare_at[place]
                hit = losers.setdefault(loser.index, (loser, []))[1]
                if spare not in hit:
                    hit.append(spare)
        lost = running = 0
        latest: Order = ()
        for loser, hit in losers.values():
            theirs = self._order(loser, loser.held - len(hit))
            if order[0] == Level.FREE_ONLY:
                weakness = self._weakness(bidder, len(bidder.granted))
                assert weakness is not None, f"{bidder.share.pipeline} bids for what is free without a reason"
                return weakness
            if theirs[:2] <= order[:2]:
                return Denied.EARLIER_BID
            if any(spare.fresh for spare in hit):
                return Denied.MINIMUM_HOLD
            lost += len(hit)
            running += sum(spare.in_flight for spare in hit)
            latest = max(latest, tuple(-part for part in theirs))
        if losers and not self._pays(bidder, seat, [spare for _, hit in losers.values() for spare in hit]):
            return Denied.MOVE_COST
        return (lost, latest, running, -home, seat.rank)

    def _pays(self, bidder: _Bidder, seat: Bundle, hit: list[Bundle]) -> bool:
        """Return whether the work that awaits the engine is more than what its GPUs lose by the move (GPU seconds, both as far as known)."""
        work = bidder.share.useful(len(bidder.granted)) * len(seat.gpus)
        lost = sum(spare.cost * len(spare.gpus) for spare in hit) + seat.cost * len(seat.gpus)
        return bidder.share.pace == 0.0 or work >= PAYS * lost

    # -- what is left

    def leftovers(self) -> None:
        """Give what a lost wide engine has left free to whoever can use it, so that the plan is work-conserving."""
        for bidder in self.bidders:
            while len(bidder.granted) < bidder.share.cap:
                seat = next((seat for seat in bidder.seats if not seat.mask & (self.locked | self.soon)), None)
                if seat is None:
                    break
                self._grant(bidder, seat, Given.LEFTOVER)

    # -- why not

    def _deny(self, trace: Trace, bidder: _Bidder, seat: Bundle, why: Denied, by: Iterable[int]) -> None:
        parties = tuple(self.bidders[index].share.pipeline for index in sorted(by))
        trace.denied[EngineId(bidder.share.pipeline, seat.rank)] = (why, parties)

    def complete(self, trace: Trace) -> None:
        """Give a reason to every seat that was not granted: a bid has named it, or the seat was given to others for good before."""
        for bidder in self.bidders:
            for seat in bidder.seats:
                engine = EngineId(bidder.share.pipeline, seat.rank)
                if engine in trace.given:
                    trace.denied.pop(engine, None)
                elif len(bidder.granted) >= bidder.share.cap:
                    trace.denied[engine] = (Denied.CAP, ())
                elif engine not in trace.denied:
                    owners = {other.index: other for other in self.bidders if any(seat.mask & own.mask for own in other.granted)}
                    self._deny(trace, bidder, seat, self._why_lost(bidder, seat, owners.values()), owners)

    def _why_lost(self, bidder: _Bidder, seat: Bundle, owners: Collection[_Bidder]) -> Denied:
        """Return why the seat was given to others before the bidder could have it."""
        if not owners:
            return Denied.SOON_TRAINING
        if all(owner.granted[0].mask & seat.mask for owner in owners):
            return Denied.OTHERS_FIRST_ENGINE
        return self._weakness(bidder, len(bidder.granted)) or Denied.EARLIER_BID


def _worth(seat: Bundle, home: int) -> tuple[int, int, int]:
    """Return the order in which awake engines are kept: the one with most under way first."""
    return (-seat.in_flight, -(seat.mask & home).bit_count(), seat.rank)


@lru_cache(4096)
def _mask(gpus: frozenset[GpuId]) -> int:
    return sum(1 << gpu for gpu in gpus)
