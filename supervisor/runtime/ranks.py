"""Rank processes of a trainer are started with torchrun's variables and a descriptor each, over which they are welcomed, told and heard."""

import socket
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from supervisor.attempt.checkpoints import Remembered
from supervisor.host.channel import Channel, ChannelFailure, FailureKind
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.group import Command, Group
from supervisor.runtime.driver import Loop
from supervisor.runtime.group_lifecycle import GroupLifecycle
from supervisor.runtime.run_facts import RunFacts
from supervisor.runtime.snapshots import TrainerOutput
from supervisor.scheduler.actions import StartTrainer, TellTrainer
from supervisor.scheduler.events import ActionFailed, PeerFailed, Told, TrainerSaid, TrainerStarted
from trainers.protocol.child_env import API_KEY, FD, OPENAI_KEY, URL
from trainers.protocol.ids import PipelineId, TrainerId
from trainers.protocol.trainer_messages import MAX_FROM_TRAINER, Hello, TrainerMessage, Welcome
from trainers.user_code import python_path, torchrun_variables


@dataclass(slots=True)
class _Rank:
    channel: "Channel[TrainerMessage]"
    welcome: Welcome
    heard: float = 0.0  # when it last said something; monotonic seconds


class Ranks:
    """Starts every trainer's ranks, sends them messages, and feeds what they say to the scheduler."""

    def __init__(self, facts: RunFacts, lifecycle: GroupLifecycle, loop: Loop, output: TrainerOutput) -> None:
        self._facts = facts
        self._lifecycle = lifecycle
        self._loop = loop
        self._output = output
        self._ranks: dict[PipelineId, list[_Rank]] = {}
        self._logged_dropped: set[tuple[str, ...]] = set()

    async def start(self, action: StartTrainer) -> TrainerStarted | ActionFailed:
        """Spawn all ranks. Raises SpawnFailed, NoPortFree."""
        pipeline, incarnation = action.pipeline, action.incarnation
        trainer = TrainerId(pipeline)
        resume = await self._output.resume_point(pipeline)
        self._lifecycle.remove_when_gone(trainer, self._output.transport(pipeline).abandon)
        window = self._lifecycle.reserve(trainer)
        commands: list[Command] = []
        theirs: list[socket.socket] = []
        try:
            ranks: list[_Rank] = []
            for rank in range(len(self._facts.pipelines.table(pipeline).trainer.gpus)):
                ours, their = socket.socketpair()
                theirs.append(their)
                ranks.append(self._rank(action, resume, rank, ours))
                commands.append(self._command(action, rank, their.fileno(), window.first))
            self._ranks[pipeline] = ranks
            self._lifecycle.when_gone(trainer, lambda: self._close(pipeline))
            for rank, record in enumerate(ranks):
                self._loop.spawn_task(record.channel.run, name=f"channel {pipeline}.{rank}")
            group = await self._lifecycle.begin(trainer, incarnation, commands, _at_once)
        finally:
            for their in theirs:
                their.close()
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        return TrainerStarted(id=action.id, pids=tuple(member.pid for member in group.members), steps_done=resume.steps_done)

    def _close(self, pipeline: PipelineId) -> None:
        for rank in self._ranks.pop(pipeline, ()):
            rank.channel.close()

    def _rank(self, action: StartTrainer, resume: Remembered, rank: int, ours: socket.socket) -> _Rank:
        pipeline, incarnation = action.pipeline, action.incarnation
        feed = self._loop.feed

        def received(message: TrainerMessage) -> None:
            record.heard = time.monotonic()
            if isinstance(message, Hello):
                record.channel.send(record.welcome)
            feed(TrainerSaid(pipeline=pipeline, incarnation=incarnation, rank=rank, message=message))

        def failed(failure: ChannelFailure) -> None:
            live = self._lifecycle.live(TrainerId(pipeline))
            if failure.kind is FailureKind.CLOSED or (live is not None and live.stopping):
                return  # its exit, watched by pidfd, says more
            feed(PeerFailed(group=TrainerId(pipeline), incarnation=incarnation, reason=f"rank {rank}: {failure}"))

        record = _Rank(Channel(ours, TrainerMessage, received, failed, max_frame=MAX_FROM_TRAINER), self._welcome(action, resume, rank))
        return record

    def _welcome(self, action: StartTrainer, resume: Remembered, rank: int) -> Welcome:
        id, paths, pipelines = action.pipeline, self._facts.paths, self._facts.pipelines
        table = pipelines.table(id)
        trainer = table.trainer
        return Welcome(
            pipeline=id,
            rank=rank,
            world_size=len(trainer.gpus),
            seed=table.seed,
            steps=trainer.steps,
            steps_done=resume.steps_done,
            model=str(paths.model(table)),
            url=pipelines.urls[id],
            weights=self._output.transport(id).inbox,
            directory=str(paths.directory.checkpoints(id)),
            gpus=visible(pipelines.select([trainer.gpus[rank]])).devices,
            roles=("init", "train", *(role for role, gpus in trainer.roles.items() if trainer.gpus[rank] in gpus)),
            checkpoint_path=resume.newest,
            version=resume.version if action.restore else 0,
            options={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in trainer.options.items()},
        )

    def _command(self, action: StartTrainer, rank: int, descriptor: int, port: int) -> Command:
        id, paths, environment = action.pipeline, self._facts.paths, self._facts.environment
        trainer = self._facts.pipelines.table(id).trainer
        chosen = environment.inherited("trainer", trainer.pass_env, trainer.env)
        key = self._facts.pipelines.keys.get(id)
        base = {
            "GLOO_SOCKET_IFNAME": "lo",  # ranks are on one host, whatever its name resolves to
            "NCCL_SOCKET_IFNAME": "lo",
            **({OPENAI_KEY: key} if key is not None else {}),  # a script that asks the real OpenAI has set its own
            **chosen.kept,
            **torchrun_variables(rank, len(trainer.gpus), port),
            "LOCAL_RANK": "0",  # each rank sees its own GPU only
        }
        env = environment.complete(
            base,
            paths.tag(TrainerId(id), action.incarnation),
            python_path=python_path(trainer.entry, trainer.cwd, trainer.env.get("PYTHONPATH")),
            gpus=visible(self._facts.pipelines.select([trainer.gpus[rank]])),
            ours={FD: str(descriptor), URL: self._facts.pipelines.urls[id], **({API_KEY: key} if key is not None else {})},
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
            pass_fds=(descriptor,),
        )

    def _log_dropped(self, action: StartTrainer, names: tuple[str, ...]) -> None:
        """Logs the variables that a trainer does not get; once, as the names are usually the same for all trainers."""
        if names not in self._logged_dropped:
            self._logged_dropped.add(names)
            self._loop.log_for(TrainerId(action.pipeline), action.incarnation).debug("environment not passed on", names=list(names))

    def heard(self, pipeline: PipelineId) -> float:
        """Returns when a rank last said something, in monotonic seconds."""
        return max((rank.heard for rank in self._ranks.get(pipeline, ())), default=0.0)

    def tell(self, action: TellTrainer) -> Told:
        """Queue the message for every rank, or for one; a rank that does not read fails by itself."""
        live = self._lifecycle.live(TrainerId(action.pipeline))
        if live is not None and live.incarnation == action.incarnation:
            for rank, record in enumerate(self._ranks.get(action.pipeline, ())):
                if action.rank in (None, rank):
                    record.channel.send(action.message)
        return Told(id=action.id)


async def _at_once(_group: Group) -> None:
    """Returns at once: a trainer has no readiness, it speaks when it has something to say."""
