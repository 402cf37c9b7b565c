"""This module keeps the results of a run while it goes on, and gives them at its end: figures, who was stopped, whether the disk was full."""

import time
from collections.abc import Sequence

import msgspec

from supervisor.attempt import outcome
from supervisor.attempt import summary as records
from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.resume import EarlierStarts
from supervisor.attempt.summary import Figures, PipelineSummary, Summary
from supervisor.host import disk
from supervisor.observe.logs import Logs
from supervisor.scheduler import Scheduler
from supervisor.scheduler.actions import Action
from supervisor.scheduler.events import ActionFailed, CheckpointKept, Event, MemberExited, OperatorAsked, Stop
from supervisor.scheduler.records import Pipeline
from trainers.protocol.ids import PipelineId

DISK_S = 1.0
"""Between two looks whether the disk is full, when something fails."""


class RunResults:
    """RunResults observe a run and end none: what the disk does not take is reported at the end."""

    def __init__(self, directory: RunDirectory, logs: Logs, before: EarlierStarts) -> None:
        self._directory, self._logs, self._before = directory, logs, before
        self._began = time.monotonic()
        self._stopped: set[PipelineId] = set()  # before their end, by the operator
        self._stopped_by = ""
        self._figures = before.figures  # as they were last written down
        self._full, self._looked = "", float("-inf")

    # -- while it goes on

    def begin(self, scheduler: Scheduler) -> None:
        """Take back that the run has ended, because it goes on. Raises OSError."""
        records.forget(self._directory.path)
        self._figures = self._counted(scheduler)
        self._keep(self._figures)

    def observe(self, event: Event, _actions: Sequence[Action], scheduler: Scheduler, now: float) -> None:
        """Take in one event. `now` is in seconds of the clock of the events."""
        match event:
            case CheckpointKept():
                self._figures = self._with_checkpoints(self._counted(scheduler))
                self._keep(self._figures)
            case ActionFailed():
                self._look_at_disk(now)
            case MemberExited(code=code) if code != 0:
                self._look_at_disk(now)
            case Stop(why=why, uid=uid):
                self._stopped_by = self._stopped_by or outcome.stopped_by(why, uid)
                self._stopped |= {id for id, pipeline in scheduler.pipelines.items() if not outcome.ended_by_itself(pipeline)}
            case OperatorAsked(verb="stop", pipeline=id) if not outcome.ended_by_itself(scheduler.pipelines[id]):
                self._stopped.add(id)
            case _:
                pass

    def of(self, pipeline: Pipeline) -> PipelineSummary:
        """Return how a pipeline stands, since this start."""
        stands = outcome.summarise(pipeline, self._stopped, self._directory)
        if self._full and stands.outcome == "failed":  # its own last words did not fit on it either
            return msgspec.structs.replace(stands, why=f"{stands.why}; {self._full}")
        return stands

    def _look_at_disk(self, now: float) -> None:
        """Look whether the disk is full: then things fail that cannot say so, because their words do not fit either."""
        if now >= self._looked + DISK_S:
            self._looked = now
            self._report_disk(disk.full(self._directory.path))

    def write_failed(self, error: OSError) -> None:
        """Report that the disk has not taken a record of ours."""
        self._logs.log.warning("a record could not be written down", why=str(error))
        self._report_disk(disk.reason(error, self._directory.path))

    def _report_disk(self, full: str) -> None:
        if full and not self._full:
            self._logs.log.error(full, consequence="checkpoints, logs and records are lost until there is room again")
        self._full = self._full or full

    def _keep(self, kept: Figures | Summary) -> bool:
        """Write to the attempt; return whether the disk has taken it."""
        try:
            records.write(self._directory.path, kept)
        except OSError as error:
            self.write_failed(error)
            return False
        return True

    def _with_checkpoints(self, now: Figures) -> Figures:
        """Return each pipeline as of its last checkpoint: what it has done since would be done again, and counted again."""
        known = self._figures.pipelines
        pipelines = {name: known[name] if one.steps == known[name].steps else one for name, one in now.pipelines.items()}
        return msgspec.structs.replace(now, pipelines=pipelines)

    def _counted(self, scheduler: Scheduler) -> Figures:
        """Count what the attempt has come to, over all its starts."""
        earlier = self._before.figures
        now = {str(pipeline.id): self.of(pipeline) for pipeline in scheduler.pipelines.values()}
        return Figures(
            starts=earlier.starts + 1,
            wall_s=round(earlier.wall_s + time.monotonic() - self._began, 3),
            pipelines=records.all_together(earlier.pipelines, now),
        )

    # -- the end

    def conclude(self, scheduler: Scheduler) -> Summary:
        """Return what came of the run, written down where the disk takes it."""
        figures = self._counted(scheduler)
        code = outcome.exit_code((self.of(pipeline) for pipeline in scheduler.pipelines.values()), scheduler.engines)
        summary = Summary(
            run=self._directory.run_id,
            exit=int(code),
            wall_s=figures.wall_s,
            starts=figures.starts,
            pipelines=figures.pipelines,
            stopped_by=self._stopped_by,
            lost_log_lines=self._logs.lost,
            notes=(f"{self._full[0].upper()}{self._full[1:]}.",) if self._full else (),
        )
        self._directory.release_reserve()
        if not (self._keep(figures) and self._keep(summary)):
            note = f"What came of the run could not be written down in {self._directory.path}."
            summary = msgspec.structs.replace(summary, notes=(*summary.notes, note))
        why = {name: pipeline.why for name, pipeline in summary.pipelines.items() if pipeline.why}
        self._logs.log.info("run ends", exit=int(code), meaning=code.meaning, wall_s=summary.wall_s, **({"failed": why} if why else {}))
        return summary
