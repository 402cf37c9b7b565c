"""This module says what earlier starts of an attempt have done, and what is still to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from supervisor.attempt.checkpoints import remembered
from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.summary import Figures, PipelineSummary, Summary, figures, read, write
from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.errors import ExitCode
from supervisor.observe.status import PipelineView, Status


@dataclass(frozen=True, slots=True)
class EarlierStarts:
    """What earlier starts came to. `finished` are the pipelines that have done all their steps: they are not started again."""

    figures: Figures = field(default_factory=lambda: Figures(starts=0))
    finished: frozenset[str] = frozenset()


def earlier_starts(directory: RunDirectory, config: Config) -> EarlierStarts:
    """Return what earlier starts of a resumed attempt have done; of a new attempt, nothing."""
    if not directory.resumed:
        return EarlierStarts()
    known = figures(directory.path) or Figures()
    finished = {pipeline.name for pipeline in config.pipeline if _finished(directory, pipeline, known.pipelines)}
    return EarlierStarts(known, frozenset(finished))


def _finished(directory: RunDirectory, pipeline: PipelineTable, known: Mapping[str, PipelineSummary]) -> bool:
    """Judge by checkpoints. One that saves none (a script of requests only) has finished when it ended well and is not known to lack a step."""
    record = remembered(directory.path / "checkpoints" / pipeline.name)
    if record.checkpoints:
        return record.steps_done >= pipeline.trainer.steps
    then = known.get(pipeline.name)
    return then is not None and then.outcome == "done" and then.of >= pipeline.trainer.steps and (then.complete or then.samples > 0)


def conclude_finished(directory: RunDirectory, config: Config) -> None:
    """Write the summary of a run that was killed when all was done, before it could write it. Raises OSError."""
    if read(directory.path) is not None:
        return
    known = figures(directory.path) or Figures()
    pipelines = {}
    for pipeline in config.pipeline:
        steps = pipeline.trainer.steps
        then = known.pipelines.get(pipeline.name, PipelineSummary(steps=steps))
        pipelines[pipeline.name] = msgspec.structs.replace(then, steps=max(then.steps, steps), of=steps, outcome="done", why="", log="")
    code = int(ExitCode.DONE)
    write(directory.path, Summary(run=directory.run_id, exit=code, wall_s=known.wall_s, starts=known.starts, pipelines=pipelines))


def without(config: Config, finished: frozenset[str]) -> Config:
    """Return the configuration without these pipelines."""
    return msgspec.structs.replace(config, pipeline=[pipeline for pipeline in config.pipeline if pipeline.name not in finished])


def merge_earlier(before: EarlierStarts, now: Status) -> Status:
    """Show a resumed run as one: its first reward is that of its first start."""
    if not before.figures.pipelines:
        return now
    return msgspec.structs.replace(
        now, pipelines=tuple(_of_all_starts(view, before.figures.pipelines.get(view.name)) for view in now.pipelines)
    )


def _of_all_starts(view: PipelineView, then: PipelineSummary | None) -> PipelineView:
    if then is None or then.first_reward is None:
        return view
    return msgspec.structs.replace(view, first_reward=then.first_reward, reward=then.last_reward if view.reward is None else view.reward)
