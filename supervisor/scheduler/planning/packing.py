"""This module finds a first engine for as many pipelines as any assignment can serve, with as few engines moved. GPUs are bits of an int.

Each *claim* lists the bundles it could use. Serving them all is set packing. The search keeps what is awake where it can, follows
chains of moves where it must, and is exact in how many it serves as far as `count_best` is (16 x 16); how few it moves is exact
unless `NODES` partial assignments were not enough, and then the best that was found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NODES = 1000
"""Partial assignments looked at for the fewest moves; beyond that the best one found is taken."""
STATES = 20_000
"""Sets of GPUs kept by the exact count; boxes of 16 GPUs and 16 pipelines stay below."""
SMALL = 16
"""Claims up to which the search looks at everything; larger boxes get a shorter look."""

_Cost = tuple[int, bool, int, int]  # claims skipped, the oldest among them, awake engines lost, seniority of the skipped
_WORST: _Cost = (1 << 30, False, 0, 0)
JUNIORS = 8
"""Bits of a seniority: skipping a claim costs more than skipping 2 ** 8 of the next younger seniority."""
AGES = 18
"""Seniorities that are told apart; all that are younger count alike."""
_OLDEST = 1 << JUNIORS * AGES + 6
"""What it costs to skip the oldest claim."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim of one pipeline: the masks of its bundles in order of preference, those of them that are awake now, and its seniority (0 the oldest)."""

    bundles: tuple[int, ...]
    awake: tuple[int, ...]
    seniority: int = 0


def serve(claims: Sequence[Claim]) -> list[int | None]:
    """Return for each claim the mask that it gets, or None.

    Most claims served; of those ways one that serves the oldest; then fewest awake engines lost; then the seniors; then preference.
    """
    search = _Search(claims)
    unserved = tuple(index for index, claim in enumerate(claims) if not claim.awake)
    if unserved:
        search.go(unserved, 0, 0, {}, 0, 0)
        if search.best[0]:
            search.improve(count_best([claim.bundles for claim in claims], STATES if len(claims) <= SMALL else SMALL))
    return search.answer()


class _Search:
    """The search goes depth first, cheapest bundle first, with a bound. Awake engines are bits of an int of their own: a bundle *hits* those in its way."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.claims = claims
        self.best: _Cost = _WORST
        self.chosen: dict[int, int] = {}
        self.nodes = 0
        self.limit = NODES if len(claims) <= SMALL else NODES // len(claims)
        self.seen: dict[tuple[tuple[int, ...], int], _Cost] = {}
        engines = [mask for claim in claims for mask in claim.awake]
        self.widest = max((mask.bit_count() for mask in engines), default=1)
        self.held = 0
        self.bit: dict[int, int] = {}  # engine awake -> its bit
        at: dict[int, int] = {}  # GPU -> engine awake on it
        for number, mask in enumerate(engines):
            self.held |= mask
            self.bit[mask] = 1 << number
            at.update(dict.fromkeys(_bits(mask), mask))
        self.at = at
        self.own = [sum(self.bit[mask] for mask in claim.awake) for claim in claims]
        self.single = [_union(claim.bundles) for claim in claims]

    @property
    def tired(self) -> bool:
        """Return whether something was found, and as much as is allowed was looked at."""
        return self.nodes > self.limit and self.best is not _WORST

    def answer(self) -> list[int | None]:
        """Return what each claim gets: its new bundle, or one awake that nobody took."""
        taken = 0
        for mask in self.chosen.values():
            taken |= mask
        found: list[int | None] = []
        for index, claim in enumerate(self.claims):
            kept = next((mask for mask in claim.awake if not mask & taken), None)
            found.append(self.chosen.get(index, kept))
        return found

    def go(self, agenda: tuple[int, ...], taken: int, lost: int, chosen: dict[int, int], skipped: int, regret: int) -> None:
        """Place the claims of the agenda around `taken`; whoever loses his last awake engine by that joins it."""
        cost = (skipped, regret >= _OLDEST, lost.bit_count(), regret)
        if not agenda:
            if cost < self.best:
                self.best, self.chosen = cost, dict(chosen)
            return
        if cost >= self.best or self.tired:
            return
        room = {i: self._room(i, taken) for i in agenda[:SMALL]}
        hopeless = sum(not size for size in room.values())
        bound = (skipped + hopeless, cost[1], cost[2] + self._at_least(room, taken, lost), regret)
        if bound >= self.best:
            return
        self.nodes += 1
        key = (agenda, taken)
        if self.seen.get(key, _WORST) <= cost:
            return
        self.seen[key] = cost
        index = min(room, key=lambda i: (room[i], self.claims[i].seniority, i))
        rest = tuple(i for i in agenda if i != index)
        for hit, mask in self._cheapest_first(index, taken, lost):
            gone = lost | hit
            chosen[index] = mask
            homeless = tuple(i for i, own in enumerate(self.own) if own & hit and not own & ~gone and i not in chosen and i not in rest)
            self.go(rest + homeless, taken | mask, gone, chosen, skipped, regret)
            del chosen[index]
            if self.best <= bound or self.tired:
                return
        self.go(rest, taken, lost, chosen, skipped + 1, regret + self._regret(index))

    def _room(self, index: int, taken: int) -> int:
        """Return how many bundles the claim could still have."""
        if single := self.single[index]:
            return (single & ~taken).bit_count()
        return sum(not mask & taken for mask in self.claims[index].bundles)

    def _cheapest_first(self, index: int, taken: int, lost: int) -> list[tuple[int, int]]:
        """Return pairs of the engines hit that are not lost yet and the bundle, fewest hits first, then in order of preference."""
        found = [(self._hit(mask) & ~lost, mask) for mask in self.claims[index].bundles if not mask & taken]
        return sorted(found, key=lambda pair: pair[0].bit_count())

    def _hit(self, mask: int) -> int:
        held = mask & self.held
        if held & (held - 1) == 0:
            return self.bit[self.at[held]] if held else 0
        hit = 0
        for gpu in _bits(held):
            hit |= self.bit[self.at[gpu]]
        return hit

    def _at_least(self, room: dict[int, int], taken: int, lost: int) -> int:
        """Return how many engines must still be lost whatever is chosen: those claims can only have GPUs of an awake one, and each GPU serves one."""
        standing = self.held
        for engine, bit in self.bit.items() if lost else ():
            if bit & lost:
                standing &= ~engine
        closed = taken | standing
        gpus = 0
        for index, size in room.items():
            if single := self.single[index]:
                gpus += bool(size) and not single & ~closed
            elif size and all(mask & closed for mask in self.claims[index].bundles):
                least = min((mask & self.held).bit_count() for mask in self.claims[index].bundles if not mask & taken)
                gpus += least if self.widest > 1 else 1
        spare = self.widest * lost.bit_count() if self.widest > 1 else 0  # GPUs that lost wide engines may have left
        return max(0, -(-(gpus - spare) // self.widest))

    def improve(self, possible: list[int | None]) -> None:
        """More can be served than was found before the nodes ran out: take that assignment."""
        if sum(mask is not None for mask in possible) > sum(mask is not None for mask in self.answer()):
            self.chosen = {index: mask for index, mask in enumerate(possible) if mask is not None}

    def _regret(self, index: int) -> int:
        """Return what it costs to skip the claim: more than to skip any of those younger."""
        return _OLDEST >> JUNIORS * min(self.claims[index].seniority, AGES)


def _union(bundles: Sequence[int]) -> int:
    """Return all GPUs of the claim where each bundle is a single one, else 0."""
    union = 0
    for mask in bundles:
        if mask & (mask - 1):
            return 0
        union |= mask
    return union


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low


def count_best(claims: Sequence[Sequence[int]], limit: int = STATES) -> list[int | None]:
    """Return an assignment that serves as many claims as any can. Wide claims by sets of GPUs reached, single GPUs by augmenting paths."""
    single = [i for i, masks in enumerate(claims) if masks and all(mask & (mask - 1) == 0 for mask in masks)]
    wide = [i for i, masks in enumerate(claims) if masks and i not in single]
    states: dict[int, dict[int, int]] = {0: {}}  # GPUs used -> which wide claim has which bundle, the most of them
    for index in sorted(wide, key=lambda i: len(claims[i])):
        grown = dict(states)
        for used, have in states.items():
            for mask in claims[index]:
                if not used & mask and len(grown.get(used | mask, {})) <= len(have):
                    grown[used | mask] = {**have, index: mask}
        if len(grown) > limit:  # beyond what is exact: the most served on the fewest GPUs
            best = sorted(grown, key=lambda used: (used.bit_count() - 2 * len(grown[used]), used))[:limit]
            grown = {used: grown[used] for used in best}
        states = grown
    best_found: dict[int, int] = {}
    for used in sorted(states, key=lambda used: (-len(states[used]), used.bit_count())):
        have = states[used]
        if len(have) + len(single) <= len(best_found):
            continue
        found = {**have, **_match({i: [mask for mask in claims[i] if not mask & used] for i in single})}
        if len(found) > len(best_found):
            best_found = found
        if len(best_found) == len(single) + len(wide):
            break
    return [best_found.get(i) for i in range(len(claims))]


def _match(options: dict[int, list[int]]) -> dict[int, int]:
    """Return an assignment of GPUs to as many claims as possible (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(index: int, visited: set[int]) -> bool:
        for mask in options[index]:
            if mask not in visited:
                visited.add(mask)
                if mask not in owner or place(owner[mask], visited):
                    owner[mask] = index
                    return True
        return False

    for index in options:
        place(index, set())
    return {index: mask for mask, index in owner.items()}
