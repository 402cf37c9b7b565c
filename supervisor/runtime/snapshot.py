"""What `status` shows: the state of a run at one moment, as plain data. The driver fills it; views and `status --json` print it."""

import msgspec


class _View(msgspec.Struct, frozen=True, kw_only=True):
    pass


class GpuView(_View, frozen=True, kw_only=True):
    """One GPU. `holder` and `priority` name its lease; `used_bytes` is None where memory is not measured; `fenced` says why it is withheld."""

    id: int
    name: str
    holder: str | None = None
    priority: str | None = None
    used_bytes: int | None = None
    fenced: str | None = None


class EngineView(_View, frozen=True, kw_only=True):
    """One engine. `state` is a value of `EngineState`; `version` the weights it has loaded; `restarts` those that count against the budget."""

    rank: int
    state: str
    incarnation: int
    pids: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    version: int | None = None
    in_flight: int = 0
    restarts: int = 0
    note: str = ""


class TrainerView(_View, frozen=True, kw_only=True):
    """The ranks. `holds` are the roles of the grant it has now."""

    state: str
    incarnation: int
    pids: tuple[int, ...] = ()
    holds: tuple[str, ...] = ()
    waits_for: str | None = None


class GatewayView(_View, frozen=True, kw_only=True):
    url: str
    incarnation: int
    pid: int | None = None


class PipelineView(_View, frozen=True, kw_only=True):
    """One pipeline. `step` of `steps` is under way; `samples_done` of `target` belong to the open rollout; `state` is a word for people."""

    name: str
    state: str
    step: int
    steps: int
    samples_done: int = 0
    target: int = 0
    reward: float | None = None
    first_reward: float | None = None
    weight_version: int = 0
    engines_awake: int = 0
    restarts: int = 0
    waits_for: str | None = None
    engines: tuple[EngineView, ...] = ()
    trainer: TrainerView
    gateway: GatewayView


class Snapshot(_View, frozen=True, kw_only=True):
    """A whole run. `started_at` is seconds since the epoch."""

    run: str
    started_at: float
    uptime_s: float
    stopping: bool = False
    gpus: tuple[GpuView, ...] = ()
    pipelines: tuple[PipelineView, ...] = ()
