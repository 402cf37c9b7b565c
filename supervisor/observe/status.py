"""The status is the state of a run at one moment, as plain data. The supervisor fills it; views and `status --json` print it."""

import msgspec


class _View(msgspec.Struct, frozen=True, kw_only=True):
    pass


class FailureView(_View, frozen=True, kw_only=True):
    """The last failure of a group, `ago_s` seconds ago. `over`: the group is well again; `asked`: it was an operator's restart."""

    reason: str
    ago_s: float
    over: bool
    asked: bool = False


class GpuView(_View, frozen=True, kw_only=True):
    """One GPU. `holder` and `priority` name its lease; `fenced` says why it is withheld.

    `used_bytes` is None where memory is not measured, `held_bytes` how much of it each group of ours holds, as far as that can be told apart.
    """

    id: int
    name: str
    holder: str | None = None
    priority: str | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    held_bytes: dict[str, int] = {}
    fenced: str | None = None


class EngineView(_View, frozen=True, kw_only=True):
    """One engine. `state` is a value of `EngineState`; `version` the weights it has loaded; `restarts` those that count against the budget.

    `note` says what keeps it as it is.
    """

    rank: int
    state: str
    incarnation: int
    pids: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    version: int | None = None
    in_flight: int = 0
    restarts: int = 0
    note: str = ""
    failure: FailureView | None = None


class TrainerView(_View, frozen=True, kw_only=True):
    """The trainer's ranks. `holds` are the roles of the grant it has now, on `gpus`; `note` says what keeps it as it is."""

    state: str
    incarnation: int
    pids: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    holds: tuple[str, ...] = ()
    waits_for: str | None = None
    restarts: int = 0
    note: str = ""
    failure: FailureView | None = None


class GatewayView(_View, frozen=True, kw_only=True):
    """The gateway. `state` is serving, starting, failed (it is being replaced) or cold."""

    url: str
    incarnation: int
    pid: int | None = None
    state: str = "cold"
    failure: FailureView | None = None


class PipelineView(_View, frozen=True, kw_only=True):
    """One pipeline. `step` of `steps` is under way; `samples_done` of `target` belong to the open rollout; `state` is a word for people.

    `why` it failed for good. `waits_for` is what its trainer waits for, in words that say who has it and what to do.
    """

    name: str
    state: str
    why: str = ""
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


class Status(_View, frozen=True, kw_only=True):
    """How a run stands. `started_at` is in seconds since the epoch."""

    run: str
    started_at: float
    uptime_s: float
    stopping: bool = False
    gpus: tuple[GpuView, ...] = ()
    pipelines: tuple[PipelineView, ...] = ()
