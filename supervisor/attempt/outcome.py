"""This module says how a run has ended: for each pipeline what came of it and why, and one exit code for all."""

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from engines.lifecycle.state import EngineState
from supervisor.attempt.directory import RunDirectory
from supervisor.attempt.summary import Outcome, PipelineSummary
from supervisor.errors import ExitCode
from supervisor.host.regular_file import user_name
from supervisor.scheduler.records import Engine, Pipeline
from trainers.protocol.ids import GatewayId, PipelineId, TrainerId, log_name, model_log_name

_SIGNALS: Final = {"SIGHUP": "its terminal was closed (SIGHUP)", "SIGINT": "Ctrl-C (SIGINT)", "SIGTERM": "it was told to end (SIGTERM)"}


def stopped_by(why: str, uid: int | None) -> str:
    """Say who or what has stopped a run, in words: `why` is the name of a signal, or who asked over the control socket as the user `uid`."""
    return _SIGNALS.get(why, f"`stop`, asked by {user_name(uid)}" if uid is not None else why)


def ended_by_itself(pipeline: Pipeline) -> bool:
    """Return whether every rank of the pipeline's trainer has ended with 0, asked or not."""
    trainer = pipeline.trainer
    return len(trainer.exits) == trainer.members and not any(trainer.exits.values())


def summarise(pipeline: Pipeline, stopped: Collection[PipelineId], directory: RunDirectory) -> PipelineSummary:
    """Sum up one pipeline. `stopped` are the pipelines that the operator ended."""
    outcome = _outcome(pipeline, stopped)
    known = _figures(pipeline)
    reported = pipeline.figures.step + 1 if pipeline.figures.metrics and outcome == "done" else 0
    return msgspec.structs.replace(
        known,
        steps=max(known.steps, reported),
        of=pipeline.spec.steps,
        outcome=outcome,
        why=pipeline.failed,
        log=_log(pipeline, directory) if pipeline.failed else "",
    )


def _figures(pipeline: Pipeline) -> PipelineSummary:
    """Return what a pipeline's records count, since this start."""
    figures = pipeline.figures
    return PipelineSummary(
        steps=pipeline.trainer.steps_done,
        samples=figures.samples,
        first_reward=figures.rewards[0] if figures.rewards else None,
        last_reward=figures.rewards[-1] if figures.rewards else None,
        weight_version=pipeline.published,
        pauses=sum(engine.pauses for engine in pipeline.engines.values()),
        resumes=sum(engine.wakes for engine in pipeline.engines.values()),
        restarts=pipeline.trainer.restarts + sum(engine.restarts for engine in pipeline.engines.values()),
        waited_s=round(figures.waited, 3),
    )


def _outcome(pipeline: Pipeline, stopped: Collection[PipelineId]) -> Outcome:
    if pipeline.failed:
        return "failed"
    if not pipeline.ended:
        return "unknown"
    complete = pipeline.trainer.steps_done >= pipeline.spec.steps  # it did its last step while it was told to stop
    return "stopped" if pipeline.id in stopped and not complete else "done"


def _log(pipeline: Pipeline, directory: RunDirectory) -> str:
    """Return the file, below the attempt, that tells most about a pipeline's failure."""
    trainer = pipeline.trainer
    if not pipeline.model_ready:
        name = model_log_name(pipeline.id)
    elif trainer.budget.ended_alike or len(trainer.budget.failures) > trainer.budget.limit:
        name = log_name(TrainerId(pipeline.id), next(iter(trainer.exits), 0))  # the first rank that ended took the others along
    else:
        name = log_name(GatewayId(pipeline.id))
    log = directory.path / "logs" / name
    return f"logs/{name}" if log.is_file() and log.stat().st_size else directory.supervisor_log.name


def exit_code(pipelines: Iterable[PipelineSummary], engines: Iterable[Engine]) -> ExitCode:
    """Return the code of the worst that happened."""
    outcomes = {pipeline.outcome for pipeline in pipelines}
    if any(engine.state is EngineState.STUCK for engine in engines):
        return ExitCode.NOT_CLEAN
    if "failed" in outcomes:
        return ExitCode.PIPELINE_FAILED
    return ExitCode.STOPPED if "stopped" in outcomes else ExitCode.DONE
