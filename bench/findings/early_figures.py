"""A gateway's first figures come before the supervisor has noted that it is ready: are they lost? (findings/bugs.md, row 2)

    bin/bench finding early_figures

An HTTP client asks while no rollout is open; the gateway reports eight waiting samples, once. Both orders must start an engine within an hour.
"""

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from tests.harness.scheduler_bench import FIRST, Bench, spec
from trainers.protocol.gateway_messages import Progress, RolloutProgress
from trainers.protocol.ids import PipelineId

WAITING = Progress((RolloutProgress(-1, 8, 0, 0, implicit=True),))


class SlowGateway(Bench):
    """From the beginning, the gateway's start is not answered."""

    def feed(self, *events: ev.Event) -> None:
        if not self.done:
            self.hold = lambda action: isinstance(action, do.StartGateway)
        super().feed(*events)


def engines_started(early: bool) -> int:
    """Return how many engines start within an hour."""
    bench = (SlowGateway if early else Bench)(1, spec("a", [0], [0]))
    bench.feed(ev.GatewaySaid(pipeline=PipelineId("a"), incarnation=FIRST, progress=WAITING))
    if early:
        bench.release()
    bench.wait(3600.0)
    return len(bench.asked(do.StartGroup))


if __name__ == "__main__":
    for early in (False, True):
        print(f"figures {'before' if early else 'after'} ready: {engines_started(early)} engines started within an hour", flush=True)
