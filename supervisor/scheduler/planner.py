"""Who should be awake. One pure, deterministic function of a view; what to pause and what to wake is the difference from what is.

A gap-ratio planner. Every open pipeline's *target* is the engines its unfinished samples can fill, won one by one in bids; the
rule for targets says in which order the bids are served. Where target and held differ is a gap, and a gap is closed by the
cheapest move: an engine of its own that is awake, one on GPUs nobody uses, or one that a later bid must give up. The first engine
of each pipeline comes before all bids (`packing`). A bid takes only from later bids, and from the latest first, so that closing
one gap does not open a chain of others.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from engines.ids import EngineId, GpuId, PipelineId

from .packing import Claim, serve

KEEP = 'flight'
NEED = 0.0

PLACE = -1
FILL = 0.5
"""An engine less full than this is served from leftovers only; it does not take from others."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One engine as the planner sees it. `awake`: holds its GPUs for work, or is about to. `fresh`: woken too recently to be taken."""

    rank: int
    gpus: frozenset[GpuId]
    awake: bool
    fresh: bool = False
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """One pipeline with an open rollout: `unfinished` samples, `slots` of them at once on an engine, open since `opened`.

    `home` are the GPUs it trains on. `expected` and `longest` are what is left of all its samples and of the longest of them, in
    one unit; 0 when nothing is known.
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

    @property
    def cap(self) -> int:
        """No more engines than unfinished samples can fill."""
        return min(len(self.bundles), -(-self.unfinished // self.slots))


@dataclass(frozen=True, slots=True)
class View:
    """What there is to share: GPUs that are neither a trainer's, reserved for one, nor fenced; and who wants them."""

    gpus: frozenset[GpuId]
    shares: tuple[Share, ...]
    targets: str = "oldest-first"


Plan = frozenset[EngineId]
Order = tuple[float, ...]


@dataclass(slots=True)
class _Seat:
    """A bundle as a mask."""

    rank: int
    mask: int
    awake: bool
    fresh: bool
    in_flight: int
    home: int  # how many of its GPUs its pipeline trains on


@dataclass(slots=True)
class _Bidder:
    """A share on its way through the plan. `spare` are its awake engines not granted yet; `granted` what it has won."""

    index: int
    share: Share
    seats: list[_Seat]
    age: int
    spare: list[_Seat] = field(default_factory=list)
    granted: list[_Seat] = field(default_factory=list)

    @property
    def held(self) -> int:
        return len(self.granted) + len(self.spare)


def plan(view: View) -> Plan:
    """The engines that should be awake: whole bundles, no GPU twice, at most `cap` a pipeline."""
    bidders = _bidders(view)
    if not bidders:
        return frozenset()
    table = _Table(view, bidders)
    table.first_engines()
    table.bids()
    table.leftovers()
    return frozenset(EngineId(bidder.share.pipeline, seat.rank) for bidder in bidders for seat in bidder.granted)


def _bidders(view: View) -> list[_Bidder]:
    bit = {gpu: 1 << place for place, gpu in enumerate(sorted(view.gpus))}
    found = []
    shares = sorted((s for s in view.shares if s.unfinished > 0), key=lambda s: (s.opened, s.pipeline))
    ages = {opened: age for age, opened in enumerate(sorted({s.opened for s in shares}))}
    for share in shares:
        seats = [
            _Seat(b.rank, sum(map(bit.__getitem__, b.gpus)), b.awake, b.fresh, b.in_flight, len(b.gpus & share.home))
            for b in share.bundles
            if b.gpus <= view.gpus
        ]
        if seats:
            found.append(_Bidder(len(found), share, seats, ages[share.opened]))
    return found


class _Table:
    """Where the bids are served. `locked`: GPUs granted for good in this plan."""

    def __init__(self, view: View, bidders: list[_Bidder]) -> None:
        self.view = view
        self.bidders = bidders
        self.locked = 0
        self.busy = 0  # GPUs of any awake engine of a bidder, surplus ones too

    # -- first engines

    def first_engines(self) -> None:
        claims = []
        for bidder in self.bidders:
            awake = sorted((seat for seat in bidder.seats if seat.awake), key=_worth)
            cap = bidder.share.cap
            bidder.spare = awake[:cap]
            for seat in awake:
                self.busy |= seat.mask
            claims.append(bidder)
        if all(bidder.spare for bidder in claims):
            chosen: list[int | None] = [bidder.spare[0].mask for bidder in claims]
        else:
            chosen = serve([self._claim(bidder) for bidder in claims])
        for bidder, mask in zip(claims, chosen, strict=True):
            if mask is not None:
                seat = next(seat for seat in bidder.seats if seat.mask == mask)
                self._grant(bidder, seat)

    def _claim(self, bidder: _Bidder) -> Claim:
        seats = sorted(bidder.seats, key=lambda s: (not s.awake, (s.mask & self.busy).bit_count(), -s.home, s.rank))
        return Claim(tuple(s.mask for s in seats), tuple(s.mask for s in bidder.spare), bidder.age)

    def _grant(self, bidder: _Bidder, seat: _Seat) -> None:
        """Give it for good; whoever's awake engine is in the way loses it."""
        bidder.granted.append(seat)
        self.locked |= seat.mask
        for other in self.bidders:
            if other.spare:
                other.spare = [spare for spare in other.spare if not spare.mask & seat.mask]

    # -- bids for more

    def _order(self, bidder: _Bidder, index: int) -> Order:
        """When the bid for its engine number `index` is served; always later for a later engine of the same pipeline."""
        share = bidder.share
        fill = (share.unfinished - index * share.slots) / share.slots
        level = 1.0 if fill >= FILL else 2.0
        if NEED and share.longest > 0 and index >= NEED * share.expected / (share.longest * share.slots):
            level = 2.0
        if self.view.targets == "proportional":
            # engines already counted per unit of demand: the smaller, the wider the gap
            return (level, (index + 1) / (share.unfinished * share.weight), bidder.age, bidder.index, index)
        return (level, bidder.age, bidder.index, index)

    def bids(self) -> None:
        heap: list[tuple[Order, int]] = []
        for bidder in self.bidders:
            self._next(heap, bidder)
        while heap:
            order, index = heapq.heappop(heap)
            bidder = self.bidders[index]
            if bidder.spare:
                self._grant(bidder, bidder.spare[0])
            elif (seat := self._cheapest(bidder, order)) is not None:
                self._grant(bidder, seat)
            else:
                continue  # later bids of it can take even less
            self._next(heap, bidder)

    def _next(self, heap: list[tuple[Order, int]], bidder: _Bidder) -> None:
        if bidder.granted and len(bidder.granted) < bidder.share.cap:
            heapq.heappush(heap, (self._order(bidder, len(bidder.granted)), bidder.index))

    def _cheapest(self, bidder: _Bidder, order: Order) -> _Seat | None:
        """The seat whose taking costs least: nobody, then those whose bids come last."""
        best: tuple[tuple[object, ...], _Seat] | None = None
        for seat in bidder.seats:
            if seat.mask & self.locked:
                continue
            price = self._price(seat, order)
            if price is not None and (best is None or price < best[0]):
                best = (price, seat)
        return best[1] if best is not None else None

    def _price(self, seat: _Seat, order: Order) -> tuple[object, ...] | None:
        """None: it cannot be had for this bid."""
        if not seat.mask & self.busy:
            return (0, (), 0, PLACE * seat.home, seat.rank)
        lost = 0
        running = 0
        latest: Order = ()
        for other in self.bidders:
            hit = [spare for spare in other.spare if spare.mask & seat.mask]
            if hit:
                theirs = self._order(other, other.held - len(hit))
                if order[0] >= 2.0 or theirs <= order or any(spare.fresh for spare in hit):
                    return None
                lost += len(hit)
                running += sum(spare.in_flight for spare in hit)
                backwards = tuple(-part for part in theirs)
                latest = max(latest, backwards)
        return (lost, latest, running, PLACE * seat.home, seat.rank)

    # -- what is left

    def leftovers(self) -> None:
        """Work-conserving: what a lost wide engine has left free goes to whoever can use it."""
        for bidder in self.bidders:
            while len(bidder.granted) < bidder.share.cap:
                seat = next((seat for seat in bidder.seats if not seat.mask & self.locked), None)
                if seat is None:
                    break
                self._grant(bidder, seat)


def _worth(seat: _Seat) -> tuple[int, int, int]:
    """Which awake engine to keep first: the one with most under way."""
    if KEEP == "flight":
        return (-seat.in_flight, -seat.home, seat.rank)
    if KEEP == "home":
        return (-seat.home, -seat.in_flight, seat.rank)
    if KEEP == "away":
        return (seat.home, -seat.in_flight, seat.rank)
    return (-seat.in_flight, seat.home, seat.rank)


def gaps(view: View, wanted: Plan) -> dict[PipelineId, int]:
    """Target minus held, in engines, by pipeline: what the moves of a plan close."""
    return {
        share.pipeline: sum(EngineId(share.pipeline, b.rank) in wanted for b in share.bundles) - sum(b.awake for b in share.bundles)
        for share in _all(view)
    }


def _all(view: View) -> Iterable[Share]:
    return view.shares
