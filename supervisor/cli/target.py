"""This is the one place where an operator's `p1/engine/0` becomes ids."""

import re
from typing import Final

from supervisor.errors import UsageError
from supervisor.observe.control_socket import Target, WholePipeline
from trainers.protocol.ids import EngineId, GatewayId, PipelineId, TrainerId

_FORM: Final = re.compile(r"^([a-z][a-z0-9_-]{0,31})(?:/(engine|trainer|gateway)(?:/([0-9]{1,6}))?)?\Z")


def parse(text: str) -> Target:
    """Parse `p1`, `p1/engine/0`, `p1/trainer` or `p1/gateway`. Raises UsageError."""
    match = _FORM.match(text)
    if match is not None:
        pipeline, kind, rank = PipelineId(match[1]), match[2], match[3]
        if kind is None:
            return WholePipeline(pipeline)
        if kind == "engine" and rank is not None:
            return EngineId(pipeline, int(rank))
        if kind != "engine" and rank is None:
            return TrainerId(pipeline) if kind == "trainer" else GatewayId(pipeline)
    raise UsageError(f"{text!r} names nothing to act on; write p1, p1/engine/0, p1/trainer or p1/gateway.")
