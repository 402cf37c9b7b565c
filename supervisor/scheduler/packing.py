"""A first engine for as many pipelines as any assignment can serve, and with as few engines moved. Pure; GPUs are bits of an int.

Each *claim* lists the bundles it could use. Serving them all is set packing. The search keeps what is awake where it can, follows
chains of moves where it must, and is exact in how many it serves as far as `count_best` is (16 x 16); how few it moves is exact
unless `NODES` partial assignments were not enough, and then the best that was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

NODES = 4000
"""Partial assignments looked at for the fewest moves; beyond that the best one found is taken."""
STATES = 20_000
"""Sets of GPUs kept by the exact count; boxes of 16 GPUs and 16 pipelines stay below."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One pipeline: the masks of its bundles in order of preference, those of them that are awake now, and its seniority (0 the oldest)."""

    bundles: tuple[int, ...]
    awake: tuple[int, ...]
    seniority: int = 0


def serve(claims: Sequence[Claim]) -> list[int | None]:
    """For each claim the mask it gets, or None. Most claims served, then the senior ones, then fewest awake engines lost, then preference."""
    search = _Search(claims)
    unserved = [index for index, claim in enumerate(claims) if not claim.awake]
    if unserved:
        search.skip_floor = 0
        search.go(tuple(unserved), 0, {}, 0)
        if search.skipped_at_best:
            search.improve(count_best([claim.bundles for claim in claims]), tuple(unserved))
    return search.answer()


@dataclass(slots=True)
class _Search:
    claims: Sequence[Claim]
    best: tuple[int, int] | None = None  # (weight of the skipped, engines lost)
    chosen: dict[int, int] = field(default_factory=dict)
    skipped_at_best: int = 0
    nodes: int = 0
    skip_floor: int = 0
    seen: dict[tuple[tuple[int, ...], int], tuple[int, int]] = field(default_factory=dict)

    def answer(self) -> list[int | None]:
        """What each claim gets: its new bundle, or one awake that nobody took."""
        taken = 0
        for mask in self.chosen.values():
            taken |= mask
        found: list[int | None] = []
        for index, claim in enumerate(self.claims):
            kept = next((mask for mask in claim.awake if not mask & taken), None)
            found.append(self.chosen.get(index, kept))
        return found

    def go(self, agenda: tuple[int, ...], taken: int, chosen: dict[int, int], skipped: int) -> None:
        """Place the claims of the agenda around `taken`; whoever loses his last awake engine by that joins it."""
        cost = (skipped, self._lost(taken, chosen))
        if self.best is not None and max(cost, (self.skip_floor, 0)) >= self.best:
            return
        if not agenda:
            self.best, self.chosen = cost, dict(chosen)
            self.skipped_at_best = skipped
            return
        self.nodes += 1
        if self.nodes > NODES and self.best is not None:
            return
        key = (agenda, taken)
        if self.seen.get(key, (1 << 200, 0)) <= cost:
            return
        self.seen[key] = cost
        index = min(agenda, key=lambda i: (self._room(i, taken), self.claims[i].seniority, i))
        rest = tuple(i for i in agenda if i != index)
        options = [mask for mask in self.claims[index].bundles if not mask & taken]
        for mask in sorted(options, key=lambda m: self._loss(m, index, chosen)):
            after = taken | mask
            chosen[index] = mask
            homeless = tuple(
                i
                for i, claim in enumerate(self.claims)
                if claim.awake and i not in chosen and i not in rest and all(awake & after for awake in claim.awake)
            )
            self.go(rest + homeless, after, chosen, skipped)
            del chosen[index]
        self.go(rest, taken, chosen, skipped + self._weight(index))

    def improve(self, possible: list[int | None], unserved: tuple[int, ...]) -> None:
        """The count says that more can be served than was found before the nodes ran out: start from its assignment."""
        served = sum(mask is not None for mask in possible)
        mine = sum(mask is not None for mask in self.answer())
        if served > mine:
            self.chosen = {index: mask for index, mask in enumerate(possible) if mask is not None}

    def _weight(self, index: int) -> int:
        """Skipping one more is worse than anything about whom; skipping a senior is worse than any number of his juniors."""
        return (1 << 160) + (1 << max(0, 150 - 8 * min(self.claims[index].seniority, 18)))

    def _room(self, index: int, taken: int) -> int:
        return sum(not mask & taken for mask in self.claims[index].bundles)

    def _loss(self, mask: int, index: int, chosen: dict[int, int]) -> int:
        return sum(
            1 for i, claim in enumerate(self.claims) if i != index for awake in claim.awake if awake & mask and chosen.get(i) != awake
        )

    def _lost(self, taken: int, chosen: dict[int, int]) -> int:
        return sum(1 for i, claim in enumerate(self.claims) for awake in claim.awake if awake & taken and chosen.get(i) != awake)


def count_best(claims: Sequence[Sequence[int]]) -> list[int | None]:
    """An assignment that serves as many claims as any can. Wide claims by sets of GPUs reached, single GPUs by augmenting paths."""
    single = [i for i, masks in enumerate(claims) if masks and all(mask & (mask - 1) == 0 for mask in masks)]
    wide = [i for i, masks in enumerate(claims) if masks and i not in single]
    states: dict[int, dict[int, int]] = {0: {}}  # GPUs used -> which wide claim has which bundle, the most of them
    for index in sorted(wide, key=lambda i: len(claims[i])):
        grown = dict(states)
        for used, have in states.items():
            for mask in claims[index]:
                if not used & mask and len(grown.get(used | mask, {})) <= len(have):
                    grown[used | mask] = {**have, index: mask}
        if len(grown) > STATES:  # beyond what is exact: the most served on the fewest GPUs
            best = sorted(grown, key=lambda used: (used.bit_count() - 2 * len(grown[used]), used))[:STATES]
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
    """The most claims with a GPU of their own (augmenting paths)."""
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
