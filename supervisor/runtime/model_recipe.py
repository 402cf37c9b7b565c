"""The model of a pipeline: a path that is there, or a recipe that a child of ours carries out once a run."""

import msgspec

from supervisor.config.child_environment import choose
from supervisor.config.schema.tables import ModelRecipe
from supervisor.host.processes.group import Command
from supervisor.observe.crash_report import exit_class
from supervisor.runtime.context import Site
from supervisor.runtime.group_lifecycle import TAIL
from supervisor.scheduler.actions import PrepareModel
from supervisor.scheduler.events import ActionFailed, ModelReady
from trainers.protocol.ids import Incarnation, PipelineId, TrainerId, model_log_name
from trainers.user_code import python_path


async def prepare(site: Site, action: PrepareModel) -> ModelReady | ActionFailed:
    """Raises SpawnFailed."""
    id = action.pipeline
    model = site.pipeline(id).engine.model
    path = site.model(id)
    if isinstance(model, ModelRecipe) and not path.exists():
        failure = await _make(site, id, model)
        if failure is not None:
            return ActionFailed(id=action.id, reason=failure)
    if not (path / "config.json").is_file():
        return ActionFailed(id=action.id, reason=f"{path} is not a model in Hugging Face layout: it has no config.json")
    return ModelReady(id=action.id)


async def _make(site: Site, id: PipelineId, recipe: ModelRecipe) -> str | None:
    """Why it could not be made."""
    log = site.directory.path / "logs" / model_log_name(id)
    tag = site.tag(TrainerId(id), Incarnation(0))
    env = {
        **choose("trainer", site.environ).kept,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": python_path(recipe.make, site.pipeline(id).trainer.cwd),
        "PYTHONUNBUFFERED": "1",
        "TRAINSHED_TAG": tag,
    }
    arguments = ["--make", recipe.make, str(site.model(id)), msgspec.json.encode(recipe.options).decode()]
    command = Command(argv=arguments, module="trainshed.launch", env=env, cwd=site.directory.path, log=log)
    group = await site.processes.spawn([command], tag=tag, record=site.journal.spawned)
    try:
        exit_ = await group.exited()
    finally:
        if not await group.kill():
            site.processes.discard(group)
            site.journal.gone(tag)
    if exit_.status.code == 0:
        return None
    crash = exit_class(log.read_bytes()[-TAIL:] if log.is_file() else b"", exit_.status)
    return f"{recipe.make} ended with {exit_.status}: {crash.crash.value}" + (f": {crash.last_lines[-1]}" if crash.last_lines else "")
