"""This module is about the start of a run: how it was asked for, why it could not begin, and when everything has started."""

import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.summary import PipelineSummary
from supervisor.errors import ExitCode, SetUpError, SupervisorError, UsageError
from supervisor.host import disk
from supervisor.host.processes.child import SpawnFailed
from supervisor.host.processes.guardian_link import Guard
from supervisor.host.processes.pool import PrewarmedPool
from supervisor.observe.logs import Console, Logs
from supervisor.observe.sanitize import one_line
from supervisor.observe.status import Status
from supervisor.runtime.driver import Observer
from supervisor.runtime.run_facts import RunFacts
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import Event
from supervisor.scheduler.records import Pipeline, TrainerState
from trainers.protocol.ids import PipelineId

# -- how it was asked for

ShowProgress = Callable[[Status, float], Sequence[str]]
"""(state, now in monotonic seconds) -> console lines that are worth printing now, often none. Given by the command line, as views stand above the runtime."""


class Exposition(Observer, Protocol):
    """Counts for `/metrics`; a view, too."""

    def page(self, scheduler: Scheduler, status: Status, longest_lag: float) -> bytes:
        """Returns the page, when somebody asks. `longest_lag` in seconds: by how much our own loop was late, at most."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of a run.

    `source`: the configuration file's bytes, for the record; none leaves the record of the attempt as it is. `file`: its path.
    `level` is the console's, in place of the configuration's.
    `detach`: somebody waits until everything has started, and lets go of the terminal then. `begun` is called once, when nothing more can
    refuse the run and before anything of it is started. Whether it goes on from checkpoints, the directory says.
    """

    console: Console = "readable"
    source: bytes = b""
    file: str = ""
    progress: ShowProgress | None = None
    metrics: Exposition | None = None
    detach: bool = False
    level: str | None = None
    begun: Callable[[], None] = lambda: None


# -- why it could not begin


def as_setup_error(error: Exception, directory: RunDirectory) -> SupervisorError | None:
    """Returns, out of whatever task groups have wrapped around it, what the machine or the operator is to blame for; None for a bug of ours."""
    for leaf in _leaves(error):
        if isinstance(leaf, SetUpError | UsageError):
            return leaf
        if isinstance(leaf, OSError | SpawnFailed) and not directory.begun:
            why = disk.reason(leaf, directory.path) if isinstance(leaf, OSError) else ""
            return SetUpError(f"the run cannot begin: {why or leaf}.")
    return None


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


# -- when everything has started


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failed` is the first pipeline that failed for good while others go on."""

    code: ExitCode
    failed: Pipeline | None = None


@dataclass(slots=True)
class Starting:
    """Tells when a run has started. A pipeline has when its trainer runs and an engine takes its requests, also if that engine gives way later.

    Engines start when they are first needed: an engine that serves means that the trainer has come so far as to ask.
    """

    seen: set[PipelineId] = field(default_factory=set)

    def look(self, pipelines: Iterable[Pipeline]) -> Verdict | None:
        """Return the verdict; None while there is something to wait for, and when the run ends anyway: then its exit code says everything."""
        pipelines = tuple(pipelines)
        for pipeline in pipelines:
            if pipeline.ended or (pipeline.routable and pipeline.trainer.state is TrainerState.RUNNING):
                self.seen.add(pipeline.id)
        if all(pipeline.ended for pipeline in pipelines):
            return None
        failed = next((pipeline for pipeline in pipelines if pipeline.failed), None)
        if failed is not None:
            return Verdict(ExitCode.PIPELINE_FAILED, failed)
        return Verdict(ExitCode.DONE) if len(self.seen) == len(pipelines) else None


class DetachedStart:
    """Observes the start of a detached run, and once it has succeeded or failed lets the command that waits for it return."""

    def __init__(self, guard: Guard, directory: Path, result_of: Callable[[Pipeline], PipelineSummary]) -> None:
        self._guard, self._directory, self._result_of = guard, directory, result_of
        self._starting: Starting | None = Starting()

    def observe(self, _event: Event, _actions: Sequence[Action], scheduler: Scheduler, _now: float) -> None:
        if self._starting is None:
            return
        verdict = self._starting.look(scheduler.pipelines.values())
        if verdict is None:
            return
        self._starting = None
        if verdict.failed is None:
            text = "everything has started; the run goes on without this terminal"
        else:
            result = self._result_of(verdict.failed)
            text = f"supervise: {verdict.failed.id} failed for good: {result.why} (see {self._directory / result.log}); the others go on"
        self._guard.ready(int(verdict.code), one_line(text))
        self._guard.leave_terminal()


# -- what is made ready for it


def allow_descriptors() -> None:
    """Allow ourselves as many descriptors as we may have: each port that is reserved for a group takes one, and each child some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def prewarmed_pool(facts: RunFacts, logs: Logs) -> PrewarmedPool:
    """Return the pool from which our own Python children are forked; its server is started with the first of them."""
    directory, environment, tag = facts.paths.directory.path, facts.environment, f"{facts.paths.directory.run_id}:prewarm:1"
    # torch asks the driver, and not CUDA, whether there is a GPU: a context that was made before the fork would be useless after it
    env = environment.complete(environment.inherited("trainer").kept, tag, ours={"PYTORCH_NVML_BASED_CUDA_CHECK": "1"})

    def replaced(pid: int, why: str) -> None:
        logs.log.warning("the prewarmed pool does not answer and is replaced; its children go on", pid=pid, why=why)

    return PrewarmedPool(env=env, tag=tag, directory=directory, log=directory / "logs" / "prewarm.log", replaced=replaced)
