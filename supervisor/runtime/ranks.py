"""Rank processes of a trainer are started, and their channels kept, over which they are welcomed, told and heard.

With `processes = "per-gpu"` a rank is started for each GPU, with torchrun's variables and a descriptor. With `"one"` a command is started once, sees
every GPU of the trainer, and makes the ranks by itself. Launchers close descriptors that they do not know, so these ranks connect to a socket by its
path: only our own user can, only who shows the token of this life is heard, and a rank is who torchrun's variables say it is. What was told before
a rank came is told to it then.
"""

import hmac
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import msgspec

from supervisor.attempt.checkpoints import Remembered
from supervisor.host import unix_socket
from supervisor.host.channel import Channel, ChannelFailure, FailureKind
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.group import Command, Group
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import GroupLifecycle
from supervisor.runtime.run_facts import RunFacts
from supervisor.runtime.snapshots import TrainerOutput
from supervisor.scheduler.actions import StartTrainer, TellTrainer
from supervisor.scheduler.events import ActionFailed, PeerFailed, RankLeft, Told, TrainerSaid, TrainerStarted
from trainers.protocol.child_env import API_KEY, FD, OPENAI_KEY, SOCKET, TOKEN, URL
from trainers.protocol.ids import PipelineId, TrainerId
from trainers.protocol.trainer_messages import MAX_FROM_TRAINER, Hello, Refused, SupervisorMessage, TrainerMessage, Welcome
from trainers.user_code import launcher_variables, python_path, torchrun_variables

HELLO_S: Final = 30.0
"""Who has connected and says nothing for so long is no rank."""
MOST_RANKS: Final = 1024
"""Of one launcher; connections and what is kept for ranks that have not come are bounded by it."""


@dataclass(slots=True)
class _Life:
    """One life of a trainer. Where a launcher makes its ranks: their `token`, the scope in which they are accepted, those who have connected and not
    said hello yet (`strangers`), and what ranks that have not come yet are to hear (`told`). `heard`: when a rank last said something, in monotonic
    seconds.
    """

    action: StartTrainer
    resume: Remembered
    channels: "dict[int, Channel[TrainerMessage]]" = field(default_factory=dict)
    world_size: int = 0
    token: str = ""
    accepting: anyio.CancelScope | None = None
    strangers: "set[Channel[TrainerMessage]]" = field(default_factory=set)
    told: list[tuple[int | None, SupervisorMessage]] = field(default_factory=list)
    heard: float = 0.0

    def close(self) -> None:
        if self.accepting is not None:
            self.accepting.cancel()
        for channel in (*self.channels.values(), *self.strangers):
            channel.close()


class Ranks:
    """Starts every trainer's ranks, sends them messages, and feeds what they say to the scheduler."""

    def __init__(self, facts: RunFacts, lifecycle: GroupLifecycle, loop: Loop, output: TrainerOutput) -> None:
        self._facts = facts
        self._lifecycle = lifecycle
        self._loop = loop
        self._output = output
        self._lives: dict[PipelineId, _Life] = {}
        self._logged_dropped: set[tuple[str, ...]] = set()

    async def start(self, action: StartTrainer) -> TrainerStarted | ActionFailed:
        """Spawn all ranks, or what makes them. Raises SpawnFailed, NoPortFree."""
        pipeline, incarnation = action.pipeline, action.incarnation
        trainer = TrainerId(pipeline)
        resume = await self._output.resume_point(pipeline)
        self._lifecycle.remove_when_gone(trainer, self._output.transport(pipeline).abandon)
        window = self._lifecycle.reserve(trainer)
        life = self._lives[pipeline] = _Life(action, resume)
        self._lifecycle.when_gone(trainer, lambda: self._close(pipeline))
        theirs: list[socket.socket] = []
        try:
            if self._facts.pipelines.table(pipeline).trainer.processes == "one":
                commands = [self._launcher(life, window.first)]
            else:
                commands = self._ranks(life, window.first, theirs)
            group = await self._lifecycle.begin(trainer, incarnation, commands, _at_once)
        finally:
            for their in theirs:
                their.close()
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        return TrainerStarted(id=action.id, pids=tuple(member.pid for member in group.members), steps_done=resume.steps_done)

    def _close(self, pipeline: PipelineId) -> None:
        if (life := self._lives.pop(pipeline, None)) is not None:
            life.close()

    def tell(self, action: TellTrainer) -> Told:
        """Queue the message for every rank, or for one; a rank that does not read fails by itself."""
        life = self._lives.get(action.pipeline)
        live = self._lifecycle.live(TrainerId(action.pipeline))
        if life is not None and live is not None and live.incarnation == action.incarnation:
            for rank, channel in life.channels.items():
                if action.rank in (None, rank):
                    channel.send(action.message)
            if life.accepting is not None and (not life.world_size or len(life.channels) < life.world_size):
                life.told.append((action.rank, action.message))
        return Told(id=action.id)

    def heard(self, pipeline: PipelineId) -> float:
        """Returns when a rank last said something, in monotonic seconds."""
        life = self._lives.get(pipeline)
        return life.heard if life is not None else 0.0

    # -- a rank for each GPU

    def _ranks(self, life: _Life, port: int, theirs: list[socket.socket]) -> list[Command]:
        """Return the commands of all ranks; their ends of the channels, which they inherit, are added to `theirs`."""
        pipeline = life.action.pipeline
        gpus = self._facts.pipelines.table(pipeline).trainer.gpus
        life.world_size = len(gpus)
        commands = []
        for rank, gpu in enumerate(gpus):
            ours, their = socket.socketpair()
            theirs.append(their)
            self._open(life, rank, ours)
            variables = {**torchrun_variables(rank, len(gpus), port), "LOCAL_RANK": "0"}  # each rank sees its own GPU only
            number = their.fileno()
            commands.append(self._command(life.action, rank, [gpu], variables, {FD: str(number)}, (number,)))
        return commands

    def _open(self, life: _Life, rank: int, ours: socket.socket) -> None:
        def received(message: TrainerMessage) -> None:
            if isinstance(message, Hello):
                channel.send(self._welcome(life, rank))
            self._said(life, rank, message)

        channel = life.channels[rank] = Channel(
            ours, TrainerMessage, received, lambda failure: self._failed(life, rank, failure), max_frame=MAX_FROM_TRAINER
        )
        self._loop.spawn_task(channel.run, name=f"channel {life.action.pipeline}.{rank}")

    def _said(self, life: _Life, rank: int, message: TrainerMessage) -> None:
        life.heard = time.monotonic()
        if isinstance(message, Hello):
            message = msgspec.structs.replace(message, token="")  # what is fed is recorded
        self._loop.feed(TrainerSaid(pipeline=life.action.pipeline, incarnation=life.action.incarnation, rank=rank, message=message))

    def _failed(self, life: _Life, rank: int, failure: ChannelFailure) -> None:
        trainer = TrainerId(life.action.pipeline)
        live = self._lifecycle.live(trainer)
        if live is not None and live.stopping:
            return
        if failure.kind is not FailureKind.CLOSED:
            self._loop.feed(PeerFailed(group=trainer, incarnation=life.action.incarnation, reason=f"rank {rank}: {failure}"))
        elif life.accepting is not None:  # of any other its exit, watched by pidfd, says more
            self._loop.feed(RankLeft(pipeline=life.action.pipeline, incarnation=life.action.incarnation, rank=rank))

    # -- ranks that a launcher makes

    def _launcher(self, life: _Life, port: int) -> Command:
        pipeline = life.action.pipeline
        gpus = self._facts.pipelines.table(pipeline).trainer.gpus
        path = self._facts.paths.directory.rank_socket(pipeline)
        accepting = life.accepting = anyio.CancelScope()
        life.token, listener = secrets.token_hex(16), unix_socket.listen(path)

        async def accept() -> None:
            with accepting:
                await unix_socket.accept(listener, path, lambda connection: self._arrived(life, connection))

        self._loop.spawn_task(accept, name=f"ranks of {pipeline}")
        ours = {SOCKET: str(path), TOKEN: life.token}
        return self._command(life.action, 0, gpus, launcher_variables(len(gpus), port), ours, ())

    def _arrived(self, life: _Life, connection: socket.socket) -> None:
        """Somebody has connected: who says hello and shows the token is a rank."""
        if len(life.strangers) >= MOST_RANKS:
            connection.close()
            return
        rank: int | None = None

        def received(message: TrainerMessage) -> None:
            nonlocal rank
            if rank is not None:
                self._said(life, rank, message)
                return
            life.strangers.discard(channel)
            if not isinstance(message, Hello) or not hmac.compare_digest(message.token, life.token):
                channel.close()
            elif (reason := _why_no_rank(life, message)) is not None:
                channel.send(Refused("hello", 0, "no_rank", reason))
                channel.close()
            else:
                rank = message.rank
                self._join(life, message, channel)

        def failed(failure: ChannelFailure) -> None:
            life.strangers.discard(channel)
            if rank is not None:
                self._failed(life, rank, failure)

        channel: Channel[TrainerMessage] = Channel(connection, TrainerMessage, received, failed, max_frame=MAX_FROM_TRAINER)
        life.strangers.add(channel)
        self._loop.spawn_task(channel.run, name=f"channel {life.action.pipeline}")
        self._loop.spawn_task(self._close_if_silent, life, channel, name=f"hello {life.action.pipeline}")

    async def _close_if_silent(self, life: _Life, channel: "Channel[TrainerMessage]") -> None:
        await anyio.sleep(HELLO_S)
        if channel in life.strangers:
            life.strangers.discard(channel)
            channel.close()

    def _join(self, life: _Life, hello: Hello, channel: "Channel[TrainerMessage]") -> None:
        life.world_size = hello.world_size
        life.channels[hello.rank] = channel
        channel.send(self._welcome(life, hello.rank))
        for rank, message in life.told:
            if rank in (None, hello.rank):
                channel.send(message)
        if len(life.channels) == life.world_size:
            life.told.clear()
        self._said(life, hello.rank, hello)

    # -- what both are given

    def _welcome(self, life: _Life, rank: int) -> Welcome:
        id, paths, pipelines, resume = life.action.pipeline, self._facts.paths, self._facts.pipelines, life.resume
        table = pipelines.table(id)
        trainer = table.trainer
        mine = _share(trainer.gpus, rank, life.world_size)
        seen = mine if life.accepting is None else trainer.gpus
        devices = dict(zip(seen, visible(pipelines.select(seen)).devices, strict=True))
        return Welcome(
            pipeline=id,
            rank=rank,
            world_size=life.world_size,
            seed=table.seed,
            steps=trainer.steps,
            steps_done=resume.steps_done,
            model=str(paths.model(table)),
            url=pipelines.urls[id],
            weights=self._output.transport(id).inbox,
            directory=str(paths.directory.checkpoints(id)),
            gpus=tuple(devices[gpu] for gpu in mine),
            roles=("init", "train", *(role for role, gpus in trainer.roles.items() if not set(mine).isdisjoint(gpus))),
            checkpoint_path=resume.newest,
            version=resume.version if life.action.restore else 0,
            options={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in trainer.options.items()},
        )

    def _command(
        self,
        action: StartTrainer,
        rank: int,
        gpus: list[int],
        variables: Mapping[str, str],
        channel: Mapping[str, str],
        descriptors: tuple[int, ...],
    ) -> Command:
        id, paths, environment = action.pipeline, self._facts.paths, self._facts.environment
        trainer = self._facts.pipelines.table(id).trainer
        chosen = environment.inherited("trainer", trainer.pass_env, trainer.env)
        key = self._facts.pipelines.keys.get(id)
        base = {
            "GLOO_SOCKET_IFNAME": "lo",  # ranks are on one host, whatever its name resolves to
            "NCCL_SOCKET_IFNAME": "lo",
            **({OPENAI_KEY: key} if key is not None else {}),  # a script that asks the real OpenAI has set its own
            **chosen.kept,
            **variables,
        }
        env = environment.complete(
            base,
            paths.tag(TrainerId(id), action.incarnation),
            python_path=python_path(trainer.entry, trainer.cwd, trainer.env.get("PYTHONPATH")),
            gpus=visible(self._facts.pipelines.select(gpus)),
            ours={**channel, URL: self._facts.pipelines.urls[id], **({API_KEY: key} if key is not None else {})},
        )
        if rank == 0 and chosen.dropped:
            self._log_dropped(action, chosen.dropped)
        entry = trainer.entry
        return Command(
            argv=[entry] if entry is not None else list(trainer.command or ()),
            module="trainshed.launch" if entry is not None else None,
            env=env,
            cwd=Path(trainer.cwd) if trainer.cwd is not None else Path.cwd(),
            log=paths.directory.log_of(TrainerId(id), rank),
            pass_fds=descriptors,
        )

    def _log_dropped(self, action: StartTrainer, names: tuple[str, ...]) -> None:
        """Logs the variables that a trainer does not get; once, as the names are usually the same for all trainers."""
        if names not in self._logged_dropped:
            self._logged_dropped.add(names)
            self._loop.log_for(TrainerId(action.pipeline), action.incarnation).debug("environment not passed on", names=list(names))


def _why_no_rank(life: _Life, hello: Hello) -> str | None:
    """Return why who says hello cannot be a rank of this life."""
    if not 0 < hello.world_size <= MOST_RANKS or hello.rank >= hello.world_size:
        return f"rank {hello.rank} of {hello.world_size}: RANK and WORLD_SIZE are to be set as torchrun does"
    if life.world_size and hello.world_size != life.world_size:
        return f"rank {hello.rank} says that there are {hello.world_size} ranks, and another has said {life.world_size}"
    if hello.rank in life.channels:
        return (
            f"rank {hello.rank} has been here already: connect once a rank, and let the launcher restart none (torchrun --max-restarts=0),"
            " because the supervisor restarts the whole trainer"
        )
    return None


def _share(gpus: list[int], rank: int, world_size: int) -> list[int]:
    """Return the GPUs of one of so many ranks: an equal part of them in order; where there are more ranks than GPUs, one."""
    first, end = rank * len(gpus) // world_size, (rank + 1) * len(gpus) // world_size
    return gpus[first : max(end, first + 1)]


async def _at_once(_group: Group) -> None:
    """Returns at once: a trainer has no readiness, it speaks when it has something to say."""
