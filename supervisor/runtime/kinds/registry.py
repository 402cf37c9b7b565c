"""The kinds of engine, by the name that `[pipeline.engine] kind` gives. A new kind is a file beside this one, and a row here."""

from typing import Final

from supervisor.runtime.kinds.embedded import Embedded
from supervisor.runtime.kinds.engine_kind import EngineKind
from supervisor.runtime.kinds.sglang import NAME as SGLANG
from supervisor.runtime.kinds.sglang import Sglang

KINDS: Final[dict[str, type[EngineKind]]] = {"embedded": Embedded, SGLANG: Sglang}
