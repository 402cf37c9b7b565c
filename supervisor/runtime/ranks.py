"""The trainer's rank processes: started with torchrun's variables and a descriptor each, welcomed, told, listened to."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import msgspec
from anyio import to_thread

from supervisor.attempt.checkpoints import Remembered
from supervisor.config.child_environment import choose
from supervisor.host.channel import Channel, ChannelFailure
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.group import Command, Group
from supervisor.runtime.context import Site
from supervisor.runtime.group_lifecycle import Life
from supervisor.scheduler.actions import StartTrainer, TellTrainer
from supervisor.scheduler.events import ActionFailed, PeerFailed, Told, TrainerSaid, TrainerStarted
from trainers.protocol.ids import PipelineId, TrainerId
from trainers.protocol.trainer_messages import Hello, TrainerMessage, Welcome
from trainers.user_code import python_path, torchrun_variables


@dataclass(slots=True)
class _Rank:
    channel: "Channel[TrainerMessage]"
    welcome: Welcome


class Ranks:
    """Every trainer's ranks."""

    def __init__(self, site: Site, life: Life) -> None:
        self._site = site
        self._life = life
        self._ranks: dict[PipelineId, list[_Rank]] = {}
        self._told_dropped: set[tuple[str, ...]] = set()

    async def start(self, action: StartTrainer) -> TrainerStarted | ActionFailed:
        """Spawn all ranks. Raises SpawnFailed, NoPortFree."""
        pipeline, incarnation = action.pipeline, action.incarnation
        trainer = self._site.pipeline(pipeline).trainer
        resume = await to_thread.run_sync(self._site.checkpoints[pipeline].usable)
        window = self._site.ports.reserve(TrainerId(pipeline))
        commands: list[Command] = []
        theirs: list[socket.socket] = []
        try:
            ranks: list[_Rank] = []
            for rank in range(len(trainer.gpus)):
                ours, their = socket.socketpair()
                theirs.append(their)
                ranks.append(self._rank(action, resume, rank, ours))
                commands.append(self._command(action, rank, their.fileno(), window.first))
            self._ranks[pipeline] = ranks
            for rank, record in enumerate(ranks):
                self._site.spawn_task(record.channel.run, name=f"channel {pipeline}.{rank}")
            group = await self._life.begin(TrainerId(pipeline), incarnation, commands, _at_once)
        finally:
            for their in theirs:
                their.close()
        if group is None:
            return ActionFailed(id=action.id, reason="stopped while it was started")
        return TrainerStarted(id=action.id, pids=tuple(member.pid for member in group.members), steps_done=resume.steps_done)

    def _rank(self, action: StartTrainer, resume: Remembered, rank: int, ours: socket.socket) -> _Rank:
        pipeline, incarnation = action.pipeline, action.incarnation
        feed = self._site.feed

        def heard(message: TrainerMessage) -> None:
            if isinstance(message, Hello):
                record.channel.send(record.welcome)
            feed(TrainerSaid(pipeline=pipeline, incarnation=incarnation, rank=rank, message=message))

        def failed(failure: ChannelFailure) -> None:
            living = self._site.living.get(TrainerId(pipeline))
            if failure.kind.name == "CLOSED" or (living is not None and living.stopping):
                return  # its exit, watched by pidfd, says more
            feed(PeerFailed(group=TrainerId(pipeline), incarnation=incarnation, reason=f"rank {rank}: {failure}"))

        record = _Rank(Channel(ours, TrainerMessage, heard, failed), self._welcome(action, resume, rank))
        return record

    def _welcome(self, action: StartTrainer, resume: Remembered, rank: int) -> Welcome:
        site, id = self._site, action.pipeline
        pipeline = site.pipeline(id)
        return Welcome(
            pipeline=id,
            rank=rank,
            world_size=len(pipeline.trainer.gpus),
            seed=pipeline.seed,
            steps=pipeline.trainer.steps,
            steps_done=resume.steps_done,
            model=str(site.model(id)),
            url=site.urls[id],
            weights=str(site.weights(id)),
            directory=str(site.directory.checkpoints(id)),
            gpus=visible(site.gpus([pipeline.trainer.gpus[rank]])).devices,
            roles=("init", "train", *(role for role, gpus in pipeline.trainer.roles.items() if pipeline.trainer.gpus[rank] in gpus)),
            checkpoint_path=resume.newest,
            version=site.published.get(id, 0) if action.restore else 0,
            options={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in pipeline.trainer.options.items()},
        )

    def _command(self, action: StartTrainer, rank: int, descriptor: int, port: int) -> Command:
        site, id = self._site, action.pipeline
        trainer = site.pipeline(id).trainer
        seen = visible(site.gpus([trainer.gpus[rank]]))
        chosen = choose("trainer", site.environ, trainer.pass_env, trainer.env)
        env = {
            **chosen.kept,
            **seen.env,
            **torchrun_variables(rank, len(trainer.gpus), port),
            "LOCAL_RANK": "0",  # each rank sees its own GPU only
            "PATH": chosen.kept.get("PATH", os.defpath),  # the caller's: `python` is theirs, and so is what it starts
            "GLOO_SOCKET_IFNAME": chosen.kept.get("GLOO_SOCKET_IFNAME", "lo"),  # ranks are on one host, whatever its name resolves to
            "NCCL_SOCKET_IFNAME": chosen.kept.get("NCCL_SOCKET_IFNAME", "lo"),
            "PYTHONPATH": python_path(trainer.entry, trainer.cwd, trainer.env.get("PYTHONPATH")),
            "PYTHONUNBUFFERED": "1",
            "TRAINSHED_FD": str(descriptor),
            "TRAINSHED_GPUS": ",".join(seen.devices),
            "TRAINSHED_RUN": str(site.directory.path),
            "TRAINSHED_TAG": site.tag(TrainerId(id), action.incarnation),
            "TRAINSHED_URL": site.urls[id],
        }
        if rank == 0 and chosen.dropped:
            log = site.group_log(TrainerId(id), action.incarnation)
            tell = log.debug if chosen.dropped in self._told_dropped else log.info  # as a rule they are the same for all
            tell("environment not passed on", names=list(chosen.dropped))
            self._told_dropped.add(chosen.dropped)
        entry = trainer.entry
        return Command(
            argv=[entry] if entry is not None else list(trainer.command or ()),
            module="trainshed.launch" if entry is not None else None,
            env=env,
            cwd=Path(trainer.cwd) if trainer.cwd is not None else Path.cwd(),
            log=site.directory.log_of(TrainerId(id), rank),
            pass_fds=(descriptor,),
        )

    def tell(self, action: TellTrainer) -> Told:
        """Queue the message for every rank; one that does not read fails by itself."""
        living = self._site.living.get(TrainerId(action.pipeline))
        if living is not None and living.incarnation == action.incarnation:
            for rank in self._ranks.get(action.pipeline, ()):
                rank.channel.send(action.message)
        return Told(id=action.id)

    def gone(self, trainer: TrainerId) -> None:
        """Nothing of this trainer's incarnation lives."""
        self._site.ports.release(trainer)
        for rank in self._ranks.pop(trainer.pipeline, ()):
            rank.channel.close()


async def _at_once(_group: Group) -> None:
    """A trainer has no readiness of its own: it speaks when it has something to say."""
