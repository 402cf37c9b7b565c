"""This module says in sentences why a pipeline has the engines that it has, and why it was not given more: the planner's own reasons.

The scheduler names its rules (`supervisor.scheduler.planning.reasons`); here each rule has one sentence, for `bin/supervise why`.
"""

from typing import Final

import msgspec

from supervisor.scheduler.planning.reasons import Denied, EngineReason, Explanation, Given, Wait

GIVEN: Final = {
    Given.FIRST_ENGINE: "every pipeline with unfinished samples has one engine before any has two",
    Given.KEPT: "it was awake, and nobody with a better claim needs its GPUs",
    Given.FREE: "nobody else uses its GPUs",
    Given.TAKEN: "it takes its GPUs over from {by}, whose claim is weaker",
    Given.LEFTOVER: "its GPUs were left over when every claim had been served",
}
DENIED: Final = {
    Denied.NOTHING_UNFINISHED: "the pipeline has no unfinished samples",
    Denied.PIPELINE_ENDED: "the pipeline has ended",
    Denied.PIPELINE_PAUSED: "an operator has paused the pipeline; `bin/supervise resume` lets it go on",
    Denied.NOT_RESTORED: "the pipeline's trainer has not published its restored weights yet",
    Denied.HELD: "an operator has paused or drained the engine; `bin/supervise resume` lets it go on",
    Denied.RETIRED: "the engine has failed too often; `bin/supervise reset` gives it another chance",
    Denied.ENDING: "the engine's last life has not ended yet",
    Denied.BACK_OFF: "the engine has failed, and waits before its next start",
    Denied.TRAINING: "{by} has its GPUs",
    Denied.RESERVED: "its GPUs are reserved for {by}, whose lease is next",
    Denied.FENCED: "a GPU of it is fenced: other programs use the memory",
    Denied.WITHHELD: "its GPUs are withheld, because {by} cannot be confirmed to have ended",
    Denied.LEAVING: "{by} is leaving its GPUs",
    Denied.CAP: "the unfinished samples fill no further engine",
    Denied.OTHERS_FIRST_ENGINE: "{by} gets its first engine there",
    Denied.EARLIER_BID: "{by} has more work for each engine, and has its GPUs",
    Denied.MINIMUM_HOLD: "{by} was woken there too recently to be moved",
    Denied.MOVE_COST: "a move would cost {by} more than it brings",
    Denied.LITTLE_WORK: "too few samples are unfinished to take GPUs from {by}",
    Denied.LONGEST_SAMPLE: "the rollout would end no sooner: its longest sample decides",
    Denied.FAIR_SHARE: "the pipeline has its fair share; {by} keeps the GPUs",
    Denied.SOON_TRAINING: "{by} comes back to its GPUs in a moment",
    Denied.CHANGING: "what kept it away has just changed; the next event decides",
}
WAIT: Final = {
    Wait.GPUS: "waits until {by} has left its GPUs and they measure empty",
    Wait.PAUSING: "waits until its own memory is given back",
    Wait.STARTING_LIMIT: "waits, because as many engines are starting as may start at once",
    Wait.MODEL: "waits for the pipeline's model to be made",
    Wait.BACK_OFF: "has failed, and waits before its next start",
    Wait.CHANGING: "starts or wakes with the next event",
}


class EngineExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why one engine is in the plan, or is not. `rule` is the planner's own name of the reason, `by` the parties that it is about."""

    engine: str
    gpus: tuple[int, ...]
    awake: bool
    planned: bool
    rule: str
    by: tuple[str, ...] = ()
    text: str


class PipelineExplanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a pipeline has `awake` engines and the plan gives it `planned`, where its `unfinished` samples would fill `cap`."""

    pipeline: str
    unfinished: int
    cap: int
    awake: int
    planned: int
    engines: tuple[EngineExplanation, ...]


def explained(found: Explanation) -> PipelineExplanation:
    """Return the scheduler's explanation with a sentence for each engine."""
    return PipelineExplanation(
        pipeline=found.pipeline,
        unfinished=found.unfinished,
        cap=found.cap,
        awake=found.held,
        planned=found.given,
        engines=tuple(map(_engine, found.engines)),
    )


def _engine(reason: EngineReason) -> EngineExplanation:
    by = tuple(map(str, reason.by))
    rule = reason.waits or reason.given or reason.denied
    if reason.waits is not None:
        text = WAIT[reason.waits]
    elif reason.given is not None:
        text = GIVEN[reason.given]
    elif reason.denied is not None:
        text = DENIED[reason.denied]
        text = f"nobody needs its GPUs, so it stays awake ({text})" if reason.awake else text
    else:
        text = ""
    return EngineExplanation(
        engine=str(reason.engine),
        gpus=reason.gpus,
        awake=reason.awake,
        planned=reason.given is not None,
        rule=rule.value if rule is not None else "",
        by=by,
        text=text.format(by=" and ".join(by) or "another"),
    )
