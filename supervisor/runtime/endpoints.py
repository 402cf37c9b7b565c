"""Where each engine of this life listens, and the key that opens it."""

import secrets
from dataclasses import dataclass, field

from supervisor.host.ports import Window
from trainers.protocol.ids import EngineId


@dataclass(frozen=True, slots=True)
class Front:
    """One engine's HTTP endpoint. `key` is of this incarnation only, so that an answer cannot come from another life."""

    url: str
    key: str = field(repr=False)
    window: Window


class Fronts:
    def __init__(self) -> None:
        self._fronts: dict[EngineId, Front] = {}

    def open(self, engine: EngineId, window: Window) -> Front:
        front = Front(f"http://127.0.0.1:{window.first}", secrets.token_hex(24), window)
        self._fronts[engine] = front
        return front

    def of(self, engine: EngineId) -> Front:
        return self._fronts[engine]

    def close(self, engine: EngineId) -> None:
        self._fronts.pop(engine, None)
