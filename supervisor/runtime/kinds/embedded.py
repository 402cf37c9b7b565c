"""The embedded engine: our own program, in our own Python, with all its memory on a device that is measured. It leaves nothing behind."""

from typing import ClassVar

from supervisor.host.gpus.meter import visible
from supervisor.host.processes.child import Command
from supervisor.runtime.kinds.engine_kind import EngineLife, EngineStart, Log
from supervisor.runtime.run_facts import RunFacts
from trainers.protocol.child_env import API_KEY


class Embedded:
    """See `engines.embedded`. One process an engine; it refuses a snapshot whose tensors are not the model's."""

    measured_on_virtual_gpus: ClassVar[bool] = True

    def __init__(self, facts: RunFacts, log: Log) -> None:
        pass

    async def look(self) -> None:
        """It runs in the supervisor's own Python: there is nothing to find out."""

    def prepare(self, start: EngineStart) -> EngineLife:
        return EngineLife([_command(start)])


def _command(start: EngineStart) -> Command:
    table, paths, environment = start.table, start.facts.paths, start.facts.environment
    assert table.context is not None, "load fills it in"
    gpus = visible(start.gpus)
    argv = ["--model", str(start.model), "--slots", str(table.slots), "--context", str(table.context)]
    argv += ["--host", "127.0.0.1", "--port", str(start.endpoint.window.first), "--gpu", gpus.devices[0], *table.args]
    inherited = environment.inherited("engine", table.pass_env, table.env).kept
    env = environment.complete(inherited, start.tag, gpus=gpus, ours={API_KEY: start.endpoint.key})
    return Command(argv=argv, module="engines.embedded", env=env, cwd=paths.directory.path, log=paths.directory.log_of(start.engine))
