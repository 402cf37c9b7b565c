"""A budget says how often a group may come back: 3 times in 10 minutes, after 0 s and then a jittered 1..60 s; then the group is retired.

A script that raises the same error at the same step in two lives in a row would raise it in a third: it does not come back.
"""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Budget:
    """The restarts of one group within a sliding window of so many seconds."""

    limit: int
    window: float
    failures: deque[float] = field(default_factory=deque)
    last_end: tuple[int, str] | None = None
    """The step and the error of the script's own that ended the last life; None when something else did."""
    ended_alike: bool = False
    """Whether the life before ended so, too."""

    def fail(self, now: float, salt: int) -> float | None:
        """Record a failure; return the seconds to wait before the next start, or None when the budget is spent.

        `salt` spreads groups that fail together; the same failure gives the same answer, as everything decided here does.
        """
        while self.failures and now - self.failures[0] > self.window:
            self.failures.popleft()
        self.failures.append(now)
        count = len(self.failures)
        if count > self.limit:
            return None
        if count == 1:
            return 0.0
        ceiling = min(60.0, 2.0 ** (count - 1))
        return 1.0 + (ceiling - 1.0) * _fraction(salt * 31 + count)

    def ended(self, step: int, error: str) -> None:
        """Record how a life has ended, and after how many steps. `error` is what the script itself raised; empty when something else is to blame."""
        end = (step, error) if error else None
        self.ended_alike = end is not None and end == self.last_end
        self.last_end = end

    def reset(self) -> None:
        self.failures.clear()
        self.last_end, self.ended_alike = None, False


def _fraction(number: int) -> float:
    """Return a fixed number in [0, 1) for a number (Knuth's multiplicative hash): jitter without randomness."""
    return (number * 2654435761 % 2**32) / 2**32
