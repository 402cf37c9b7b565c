"""This module makes the page that Prometheus reads (`[host] metrics_port`): what is now, and times and counts of what has happened.

Times of a failure of an engine group are those that the log gives, too: how long it had been silent, counted when it fails, and when each
step of its recovery was done, taken when it has ended, an attempt at a time.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from engines.lifecycle.state import EngineState
from supervisor.observe.status import GpuView, Status
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event
from supervisor.scheduler.faults import Fault
from supervisor.scheduler.records import Pipeline, TrainerState

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


class Metrics:
    """Metrics `observe` every event and give the `page` when it is asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._now = _Now()
        self._registry.register(self._now)
        labels = ("pipeline", "cause")
        self._failures = Counter("trainshed_engine_failures", "Attempts of engine groups that failed", labels, registry=self._registry)
        self._detection = Histogram(
            "trainshed_engine_detection_seconds", "From the last sign of life to the verdict: failures that a probe found",
            ("pipeline",), buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._recovery = Histogram(
            "trainshed_engine_recovery_seconds", "From the first failure until it is routed or asleep, retired, stopped, or stuck at the end",
            (*labels, "outcome"), buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._steps = Histogram(
            "trainshed_engine_recovery_step_seconds", "From the failure of this attempt until a step of its recovery was done",
            ("pipeline", "step"), buckets=SECONDS, registry=self._registry,
        )  # fmt: skip

    def observe(self, _event: Event, _actions: Sequence[Action], scheduler: Scheduler, _now: float) -> None:
        """Take the faults that this event has opened or closed."""
        for word, fault in scheduler.fault_changes:
            if word == "failed":
                self._failed(fault)
            else:
                self._over(fault, word)

    def _failed(self, fault: Fault) -> None:
        """Count a failure at once: one that is stuck, or waits for a GPU, must be seen."""
        pipeline = fault.engine.pipeline
        self._failures.labels(pipeline, fault.cause.value).inc()
        if fault.silent > 0:
            self._detection.labels(pipeline).observe(fault.silent)

    def _over(self, fault: Fault, outcome: str) -> None:
        pipeline = fault.engine.pipeline
        for step, seconds in fault.seconds.items():
            self._steps.labels(pipeline, step).observe(seconds)
        if outcome != "failed again":
            last = max(fault.steps.values(), default=fault.began)
            self._recovery.labels(pipeline, fault.cause.value, outcome).observe(last - fault.began)

    def page(self, scheduler: Scheduler, status: Status, longest_lag: float) -> bytes:
        """Return the exposition, in Prometheus' text format."""
        self._now.look(scheduler, status, longest_lag)
        return generate_latest(self._registry)


class _Now(Collector):
    """This collector holds what is read at the moment at which somebody asks."""

    def __init__(self) -> None:
        self._metrics: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self._metrics

    def look(self, scheduler: Scheduler, status: Status, longest_lag: float) -> None:
        pipelines = list(scheduler.pipelines.values())
        lag = GaugeMetricFamily(
            "trainshed_longest_lag_seconds", "By how much the supervisor's own loop was late, at most", value=longest_lag
        )
        uptime = GaugeMetricFamily("trainshed_uptime_seconds", "Since the run began", value=status.uptime_s)
        run = InfoMetricFamily("trainshed_run", "Which run this is", value={"run": status.run})
        self._metrics = [run, uptime, lag, *_gpus(status.gpus), *_pipelines(pipelines), *_engines(pipelines), *_queues(pipelines)]


def _gpus(gpus: Iterable[GpuView]) -> Iterator[Metric]:
    leased = GaugeMetricFamily("trainshed_gpu_leased", "1 where somebody holds the GPU", labels=("gpu", "holder", "priority"))
    withheld = GaugeMetricFamily(
        "trainshed_gpu_fenced", "1 where nobody is given the GPU: it was not seen empty, or who is stuck there not gone", labels=("gpu",)
    )
    used = GaugeMetricFamily(
        "trainshed_gpu_used_bytes",
        "Measured for this page, or within the second before it; absent where it is not measured",
        labels=("gpu",),
    )
    for gpu in gpus:
        leased.add_metric((str(gpu.id), gpu.holder or "", gpu.priority or ""), float(gpu.holder is not None))
        withheld.add_metric((str(gpu.id),), float(gpu.fenced is not None))
        if gpu.used_bytes is not None:
            used.add_metric((str(gpu.id),), float(gpu.used_bytes))
    yield from (leased, withheld, used)


def _pipelines(pipelines: Iterable[Pipeline]) -> Iterator[Metric]:
    one = ("pipeline",)
    steps = GaugeMetricFamily("trainshed_steps_done", "Steps that a restart would not repeat", labels=one)
    step = GaugeMetricFamily("trainshed_step", "The step that the trainer has reported last", labels=one)
    reported = GaugeMetricFamily(
        "trainshed_reported", "What the trainer has reported last: reward, loss and whatever else it has named", labels=("pipeline", "name")
    )
    version = GaugeMetricFamily("trainshed_weight_version", "The published version", labels=one)
    samples = CounterMetricFamily("trainshed_samples", "Samples delivered", labels=one)
    waited = CounterMetricFamily(
        "trainshed_waited_seconds", "For which the trainer has waited for a lease or a routable engine", labels=one
    )
    state = GaugeMetricFamily("trainshed_trainer_state", "1 for the state that the trainer is in", labels=("pipeline", "state"))
    restarts = CounterMetricFamily("trainshed_trainer_restarts", "Restarts that count against the budget", labels=one)
    holds = GaugeMetricFamily("trainshed_trainer_leased_gpus", "GPUs of the trainer's grant", labels=one)
    gateway = GaugeMetricFamily("trainshed_gateway_up", "1 while the gateway answers", labels=one)
    for pipeline in pipelines:
        trainer, figures = pipeline.trainer, pipeline.figures
        of = (str(pipeline.id),)
        steps.add_metric(of, trainer.steps_done)
        step.add_metric(of, figures.step)
        for name, value in sorted(figures.metrics.items()):
            reported.add_metric((*of, name), value)
        version.add_metric(of, pipeline.published)
        samples.add_metric(of, figures.samples)
        waited.add_metric(of, figures.waited)
        for each in TrainerState:
            state.add_metric((*of, each.value), float(trainer.state is each))
        restarts.add_metric(of, trainer.restarts)
        holds.add_metric(of, len(trainer.grant.gpus) if trainer.grant is not None else 0)
        gateway.add_metric(of, float(pipeline.gateway.up))
    yield from (steps, step, reported, version, samples, waited, state, restarts, holds, gateway)


def _engines(pipelines: Iterable[Pipeline]) -> Iterator[Metric]:
    each = ("pipeline", "engine")
    states = GaugeMetricFamily("trainshed_engines", "Engines in this state", labels=("pipeline", "state"))
    recovering = GaugeMetricFamily("trainshed_engines_recovering", "Engines that failed and are not well again", labels=("pipeline",))
    in_flight = GaugeMetricFamily("trainshed_engine_in_flight", "Requests that run on it", labels=each)
    failing = GaugeMetricFamily("trainshed_engine_failures_in_a_row", "Requests that failed since one was completed", labels=each)
    tokens = GaugeMetricFamily("trainshed_engine_tokens", "Tokens of this life", labels=each)
    restarts = CounterMetricFamily("trainshed_engine_restarts", "Restarts that count against the budget", labels=each)
    resizes = CounterMetricFamily("trainshed_resizes", "Pauses and wakes", labels=("pipeline", "kind"))
    for pipeline in pipelines:
        engines = list(pipeline.engines.values())
        for state in EngineState:
            states.add_metric((pipeline.id, state.value), sum(engine.state is state for engine in engines))
        recovering.add_metric((pipeline.id,), sum(engine.fault is not None for engine in engines))
        resizes.add_metric((pipeline.id, "pause"), sum(engine.pauses for engine in engines))
        resizes.add_metric((pipeline.id, "wake"), sum(engine.wakes for engine in engines))
        for engine in engines:
            of = (str(pipeline.id), str(engine.id.rank))
            in_flight.add_metric(of, engine.in_flight)
            failing.add_metric(of, engine.failures)
            tokens.add_metric(of, engine.tokens)
            restarts.add_metric(of, engine.restarts)
    yield from (states, recovering, in_flight, failing, tokens, restarts, resizes)


def _queues(pipelines: Iterable[Pipeline]) -> Iterator[Metric]:
    rollouts = GaugeMetricFamily("trainshed_rollouts_open", "Rollouts that are open", labels=("pipeline",))
    queue = GaugeMetricFamily("trainshed_samples_queue", "Samples of open rollouts, by where they are", labels=("pipeline", "where"))
    for pipeline in pipelines:
        opened = list(pipeline.rollouts.values())
        rollouts.add_metric((pipeline.id,), len(opened))
        queue.add_metric((pipeline.id, "wanted"), sum(rollout.target for rollout in opened))
        queue.add_metric((pipeline.id, "waiting"), sum(rollout.waiting for rollout in opened))
        queue.add_metric((pipeline.id, "in flight"), sum(rollout.in_flight for rollout in opened))
        queue.add_metric((pipeline.id, "done"), sum(rollout.before + rollout.done for rollout in opened))
    yield from (rollouts, queue)
