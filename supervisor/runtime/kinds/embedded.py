"""The embedded engine is our own program, in our own Python: one process an engine, which leaves nothing behind when it ends.

All its memory is on a device that is measured (`trainshed.virtual_gpu`), and it refuses a snapshot whose tensors are not the model's.
"""

from supervisor.host.gpus.meter import visible
from supervisor.host.processes.child import Command
from supervisor.runtime.kinds.engine_kind import EngineLife, EngineStart, Log
from supervisor.runtime.run_facts import RunFacts
from trainers.protocol.child_env import API_KEY


class Embedded:
    """Starts engines of `engines.embedded`."""

    def __init__(self, facts: RunFacts, log: Log) -> None:
        """It needs neither: everything that it uses is in each start."""

    async def look(self) -> None:
        """It runs in the supervisor's own Python: there is nothing to find out."""

    def prepare(self, start: EngineStart) -> EngineLife:
        """Return the one command; there is nothing else to prepare."""
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
