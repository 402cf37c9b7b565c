"""This module is the contract of an engine kind: what the configuration asks of each, and what a kind may ask of the machine."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from supervisor.config.schema.findings import Finding, GpuFact, ModelSize
from supervisor.config.schema.rules import DraftPipeline
from supervisor.config.schema.tables import EngineTable


class ModelFiles(NamedTuple):
    """A model that lies on this machine. `context` is the tokens that it was made for, None where its config.json does not say it; `quantised`
    is how its weights are, where they are."""

    folder: str
    context: int | None
    quantised: str | None = None


class Installed(NamedTuple):
    """The version of a package that an interpreter has. Without one, `problem` says why; it is empty where nobody knows."""

    version: str | None
    problem: str = ""


class Cuda(NamedTuple):
    """CUDA on a machine with GPUs, for one interpreter: the major version that its wheels need and the newest version that the driver can run
    (13000), each None where it is not known, and why SGLang's memory saver cannot be preloaded, if it cannot."""

    needed: int | None
    driver: int | None
    preload_problem: str | None = None


class Program(NamedTuple):
    """An engine's process runs this: a command line, or a module of our own Python's."""

    text: str
    own_python: bool


class Machine(Protocol):
    """This machine, as far as a kind may look at it while a file is checked. Raises nothing."""

    def model(self, engine: EngineTable) -> ModelFiles | None:
        """Returns the model of the file, None for one that is made later, or that is not there (which is said elsewhere)."""

    def longest_shm(self) -> str | None:
        """Returns the longest path that a run's folder in shared memory may have, None where `[host]` could not be read."""

    def installed(self, python: str, package: str, called: str) -> Installed:
        """Asks an interpreter, once and in a process of its own, for the version of `package` (`sglang`; people know it as `SGLang`)."""

    def cuda(self, python: str) -> Cuda | None:
        """Returns what an interpreter needs of CUDA, and what the driver has; None on virtual GPUs, and where nobody is asked."""


class EngineKindConfig(Protocol):
    """An engine kind, as `[pipeline.engine]` knows it. A module with these names is one."""

    MEASURED_ON_VIRTUAL_GPUS: bool
    """True if the memory of its engines shows on a virtual GPU."""

    def findings(self, engine: EngineTable, path: str) -> Iterator[Finding]:
        """Yields what breaks a rule that this kind adds. `path` is that of its table (`pipeline[0].engine`)."""

    def premises(self, pipeline: DraftPipeline, engine: EngineTable, machine: Machine) -> Iterator[Finding]:
        """Yields what the machine lacks for this kind. `pipeline` is the one that `engine` belongs to."""

    def filled(self, engine: EngineTable, size: ModelSize | None, context: int | None, gpus: Sequence[GpuFact]) -> EngineTable:
        """Fills in what the table leaves out. `context` is what the model was made for; `gpus` are those of the host, empty where unknown."""

    def program(self, engine: EngineTable) -> Program:
        """Says what one engine runs."""

    def needs(self, engine: EngineTable, size: ModelSize) -> int | None:
        """Returns a lower bound of the bytes that an awake engine takes on each of its GPUs, None where it is not known."""

    def refused_parameters(self, engine: EngineTable) -> tuple[str, ...]:
        """Returns the sampling parameters that its engines do not survive, as this table configures them: the gateway refuses them."""

    def advice(self, engine: EngineTable, size: ModelSize) -> str | None:
        """Says what to change in a file whose engine does not fit its GPUs, if the kind knows it."""
