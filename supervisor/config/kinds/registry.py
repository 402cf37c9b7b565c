"""The kinds of engines that a file may name, one row each."""

from collections.abc import Iterator

from supervisor.config.kinds import embedded, sglang
from supervisor.config.kinds.kind import EngineKindConfig
from supervisor.config.schema.findings import Finding
from supervisor.config.schema.tables import EngineTable

KINDS: dict[str, EngineKindConfig] = {"embedded": embedded, "sglang": sglang}
"""What `engine.kind` may be; the order is that in which an operator reads the choices."""


def kind_of(engine: EngineTable) -> EngineKindConfig:
    return KINDS[engine.kind]


def findings(engine: EngineTable, path: str) -> Iterator[Finding]:
    """The rules that an engine's own kind adds."""
    return kind_of(engine).findings(engine, path)
