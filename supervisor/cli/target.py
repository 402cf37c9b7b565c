"""This is the one place where an operator's `p1/engine/0` becomes ids."""

from supervisor.errors import UsageError
from supervisor.observe.control_socket import Target, WholePipeline
from trainers.protocol import ids


def parse(text: str) -> Target:
    """Parse `p1`, `p1/engine/0`, `p1/trainer` or `p1/gateway`. Raises UsageError."""
    id = ids.parse(text)
    if isinstance(id, str):
        return WholePipeline(id)
    if id is not None:
        return id
    raise UsageError(f"{text!r} names nothing to act on; write p1, p1/engine/0, p1/trainer or p1/gateway.")
