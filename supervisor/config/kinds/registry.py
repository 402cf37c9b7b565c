"""This table has the kinds of engines that a file may name, one row each."""

from collections.abc import Iterator

from supervisor.config.kinds import embedded, sglang
from supervisor.config.kinds.kind import EngineKindConfig
from supervisor.config.schema.findings import Finding
from supervisor.config.schema.tables import EngineTable

KINDS: dict[str, EngineKindConfig] = {"embedded": embedded, "sglang": sglang}
"""`engine.kind` may be one of these keys. An operator reads the choices in this order."""


def kind_of(engine: EngineTable) -> EngineKindConfig:
    return KINDS[engine.kind]


def findings(engine: EngineTable, path: str) -> Iterator[Finding]:
    """Yields what breaks the rules of the engine's own kind."""
    return kind_of(engine).findings(engine, path)
