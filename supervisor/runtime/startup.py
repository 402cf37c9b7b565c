"""Has everything started? What `run --detach` waits for. PURE."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from supervisor.errors import ExitCode
from supervisor.scheduler.records import Pipeline, TrainerState
from trainers.protocol.ids import PipelineId


@dataclass(frozen=True, slots=True)
class Verdict:
    """`failed` is the first pipeline that failed for good while others go on."""

    code: ExitCode
    failed: Pipeline | None = None


@dataclass(slots=True)
class Starting:
    """A pipeline has started when its trainer runs and an engine takes its requests; it stays started when that engine gives way.

    Engines start when they are first needed: an engine that serves means that the trainer has come so far as to ask.
    """

    seen: set[PipelineId] = field(default_factory=set)

    def look(self, pipelines: Iterable[Pipeline]) -> Verdict | None:
        """None while there is something to wait for, and when the run ends anyway: then its exit code says everything."""
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
