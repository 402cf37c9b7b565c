"""The deadlines and rules of a run are made here from the tables of its file; the tables own every default.

The scheduler and the health watch are pure and know no table. Each has a type of its own for what limits it, whose fields have no defaults.
"""

from engines.lifecycle.health import Rates
from supervisor.config.schema.tables import HealthTable, SchedulerTable
from supervisor.scheduler.spec import Limits, Rules


def limits(health: HealthTable) -> Limits:
    """Returns the scheduler's deadlines (in seconds) and restart budget, from `[health]`."""
    return Limits(
        start=health.start_s,
        drain=health.drain_s,
        pause=health.pause_s,
        wake=health.wake_s,
        load=health.load_s,
        release=health.release_deadline_s,
        grace=health.grace_s,
        restarts=health.restarts,
        restart_window=health.restart_window_s,
        attempt=health.attempt_s,
    )


def rules(scheduler: SchedulerTable) -> Rules:
    """Returns the rules by which pipelines get engines, from `[scheduler]`."""
    return Rules(scheduler.targets, scheduler.minimum_hold_s, scheduler.max_starting)


def rates(health: HealthTable) -> Rates:
    """Returns how often engines are probed (in seconds) and which failures condemn one, from `[health]`."""
    return Rates(
        liveness_every=health.probe_s,
        liveness_within=health.probe_timeout_s,
        liveness_failures=health.probe_failures,
        progress_every=health.progress_s,
        progress_within=health.progress_timeout_s,
        progress_failures=health.progress_failures,
        request_failures=health.request_failures,
        silence=health.silence_s,
        canary_within=health.canary_s,
        asleep_every=health.asleep_s,
        lag=health.lag_s,
    )
