"""A rollout is the record of what a pipeline still wants to be generated. It is demand that outlives every gateway and engine that serves it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from trainers.protocol.gateway_messages import RolloutProgress


@dataclass(slots=True)
class Rollout:
    """A rollout is a batch of samples that a pipeline wants, open until it is closed, the pipeline ends, or its trainer dies.

    Counts are samples. `before` is what a gateway that has died since had delivered. Where `target` counts `trajectories`, `ended` says how many
    of each rank's are over. Of one that is `per_rank`, `target` is the sum over the ranks that have `joined`, and it ends when all have `left`.
    """

    number: int
    target: int
    opened: float
    implicit: bool = False
    known: bool = False  # the gateway of today has it
    ordered: bool = False  # the gateway has been told to open it
    announced: bool = False  # the trainer has been told that it is open
    waiting: int = 0
    in_flight: int = 0
    done: int = 0
    before: int = 0
    expected: float = 0.0  # work of all unfinished samples …
    longest: float = 0.0  # … and of the longest of them, in one unit; 0: unknown
    quiet_since: float | None = None
    trajectories: bool = False
    ended: dict[int, int] = field(default_factory=dict)
    per_rank: bool = False
    joined: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.quiet_since = self.opened

    def absorb(self, progress: RolloutProgress, now: float) -> None:
        """Take over the gateway's figures; the first moment with nothing waiting or running starts the quiet time."""
        self.waiting, self.in_flight, self.done = progress.waiting, progress.in_flight, progress.done
        self.expected, self.longest = progress.expected, progress.longest
        if self.waiting + self.in_flight > 0:
            self.quiet_since = None
        elif self.quiet_since is None:
            self.quiet_since = now

    @property
    def finished(self) -> int:
        """How much of the target is done."""
        return sum(self.ended.values()) if self.trajectories else self.before + self.done

    def gateway_lost(self, now: float) -> None:
        """The gateway died: what it had delivered counts, what it held comes again."""
        self.before += self.done
        self.done = self.waiting = self.in_flight = 0
        self.expected = self.longest = 0.0
        self.known = self.ordered = False
        if self.quiet_since is None:
            self.quiet_since = now

    def unfinished(self, now: float, quiet_after: float) -> int:
        """Return the samples still to be generated: `max(target - done, waiting + in flight)`, so never 0 while a request waits.

        A trajectory that has not ended counts as one: between two of its samples a tool runs, and engines that were taken away for so long
        would be wanted back at once. A rollout that has been quiet for `quiet_after` seconds counts as one sample, until its next request.
        """
        present = self.waiting + self.in_flight
        wanted = max(self.target - self.finished, present)
        if present == 0 and self.quiet_since is not None and now - self.quiet_since >= quiet_after:
            return min(wanted, 1)
        return wanted

    def quiet_at(self, quiet_after: float) -> float | None:
        """Return when the quiet time ends, if it runs."""
        return None if self.quiet_since is None else self.quiet_since + quiet_after


def work(rollouts: Iterable[Rollout], now: float, quiet_after: float) -> tuple[float, float]:
    """Return the work left in all unfinished samples of these, and in the longest, in the gateway's unit; (0, 0) unless it is known of each rollout.

    Samples that have not been asked for yet are taken to be like those that have.
    """
    expected = longest = 0.0
    for rollout in rollouts:
        unfinished, present = rollout.unfinished(now, quiet_after), rollout.waiting + rollout.in_flight
        if not unfinished:
            continue
        if not present or rollout.expected <= 0.0:
            return (0.0, 0.0)
        expected += rollout.expected if unfinished == present else rollout.expected * unfinished / present
        longest = max(longest, rollout.longest)
    return (expected, longest)
