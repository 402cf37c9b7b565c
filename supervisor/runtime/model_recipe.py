"""Sees that the model of a pipeline is there: a path, or a recipe that a child of ours carries out once a run."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from supervisor.config.schema.tables import ModelRecipe
from supervisor.host.gpus.meter import visible
from supervisor.host.processes.child import SpawnFailed
from supervisor.host.processes.group import Command
from supervisor.observe.crash_report import crash_record
from supervisor.runtime.group_lifecycle import Groups
from supervisor.runtime.run_facts import RunFacts
from supervisor.scheduler.actions import PrepareModel
from supervisor.scheduler.events import MAKER_LOST, ActionFailed, ModelReady
from trainers.protocol.ids import Incarnation, PipelineId, TrainerId, model_log_name
from trainers.user_code import python_path


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a model was not made. `lost`: its maker was killed, or its end is not known, as when the prewarmed pool was killed above it."""

    reason: str
    lost: bool


class Models:
    """Answers `PrepareModel` for every pipeline."""

    def __init__(self, facts: RunFacts, groups: Groups, hide: Callable[[str], str]) -> None:
        """`hide` takes secrets out of what a recipe has written."""
        self._facts = facts
        self._groups = groups
        self._hide = hide

    async def prepare(self, action: PrepareModel) -> ModelReady | ActionFailed:
        """Make the model if it has a recipe and is not there yet, and check that it has a config.json."""
        table = self._facts.pipelines.table(action.pipeline)
        model, path = table.engine.model, self._facts.paths.model(table)
        if isinstance(model, ModelRecipe) and not path.exists():
            try:
                failure = await self._make(action.pipeline, model)
            except SpawnFailed as error:
                return ActionFailed(id=action.id, reason=str(error), code=MAKER_LOST)
            if failure is not None:
                return ActionFailed(id=action.id, reason=failure.reason, code=MAKER_LOST if failure.lost else "failed")
        if not (path / "config.json").is_file():
            return ActionFailed(id=action.id, reason=f"{path} is not a model in Hugging Face layout: it has no config.json")
        return ModelReady(id=action.id)

    async def _make(self, id: PipelineId, recipe: ModelRecipe) -> "_Failure | None":
        """Returns why it could not be made, or None. Raises SpawnFailed."""
        command = self._command(id, recipe)
        group = await self._groups.spawn([command])
        try:
            exit_ = await group.exited()
        finally:
            if not await group.kill():
                self._groups.discard(group)
        if exit_.status.code == 0:
            return None
        crash = crash_record(command.log, exit_.status, self._hide)
        said = f": {crash.last_lines[-1]}" if crash.last_lines else ""
        return _Failure(f"{recipe.make} ended with {exit_.status}: {crash.crash.value}{said}", lost=exit_.status.code is None)

    def _command(self, id: PipelineId, recipe: ModelRecipe) -> Command:
        paths, environment, table = self._facts.paths, self._facts.environment, self._facts.pipelines.table(id)
        env = environment.complete(
            environment.inherited("trainer").kept,
            paths.tag(TrainerId(id), Incarnation(0)),
            python_path=python_path(recipe.make, table.trainer.cwd),
            gpus=visible(()),
        )
        arguments = ["--make", recipe.make, str(paths.model(table)), msgspec.json.encode(recipe.options).decode()]
        folder = paths.directory.path
        return Command(argv=arguments, module="trainshed.launch", env=env, cwd=folder, log=folder / "logs" / model_log_name(id))
