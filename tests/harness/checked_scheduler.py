"""A world that answers every action at once and well."""

from supervisor.scheduler import actions as do
from supervisor.scheduler import events as ev
from trainers.protocol.ids import Version


def well(action: do.Action) -> ev.Event:
    match action:
        case do.PrepareModel():
            return ev.ModelReady(id=action.id)
        case do.StartGroup():
            return ev.GroupReady(id=action.id, version=Version(0), pids=(11, 12, 13, 14))
        case do.StartTrainer():
            return ev.TrainerStarted(id=action.id)
        case do.StartGateway():
            return ev.GatewayReady(id=action.id)
        case do.StopGroup():
            return ev.GroupGone(id=action.id, confirmed=True)
        case do.Measure():
            return ev.GpuFree(id=action.id)
        case do.Pause():
            return ev.Paused(id=action.id)
        case do.Wake(version=version) | do.LoadWeights(version=version):
            return ev.Woken(id=action.id, version=version)
        case do.AdoptSnapshot():
            return ev.SnapshotAdopted(id=action.id)
        case do.RecordCheckpoint():
            return ev.CheckpointKept(id=action.id)
        case do.TellTrainer() | do.DropSnapshot():
            return ev.Told(id=action.id)
        case _:
            return ev.Ordered(id=action.id)
