"""A kind of engine is a file and a row: what it may be told, what it needs, what it is shown as."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from supervisor.config import fit
from supervisor.config.kinds import embedded, registry
from supervisor.config.kinds.kind import Installed, Machine, Program
from supervisor.config.load import load
from supervisor.config.schema.findings import Finding, GpuFact, ModelSize
from supervisor.config.schema.rules import DraftPipeline
from supervisor.config.schema.tables import EngineTable
from supervisor.errors import ConfigError
from supervisor.views.check import look
from trainers.protocol.ids import GpuId

FILE = """\
[host]
virtual = 2
[[pipeline]]
name = "p1"
[pipeline.engine]
kind = "vllm"
model = { make = "trainers.grpo.tiny:make" }
gpus = [0, 1]
tp = 2
python = "/bin/sh"
KEYS
[pipeline.trainer]
gpus = [0]
entry = "trainers.grpo:main"
"""


class Vllm:
    """A sketch of a third kind: nothing else of the configuration knows it."""

    MEASURED_ON_VIRTUAL_GPUS = False

    def __init__(self) -> None:
        self.seen: list[Installed] = []

    def findings(self, engine: EngineTable, path: str) -> Iterator[Finding]:
        if engine.ep != 1:
            yield Finding(f"{path}.ep", engine.ep, "is not for this kind", "Remove it.")

    def premises(self, pipeline: DraftPipeline, engine: EngineTable, machine: Machine) -> Iterator[Finding]:
        assert engine.python is not None
        self.seen.append(machine.installed(engine.python, "vllm", "vLLM"))
        if self.seen[-1].problem:
            yield Finding(f"{pipeline.path}.engine.python", engine.python, self.seen[-1].problem, "Install it.")

    def filled(self, engine: EngineTable, size: ModelSize | None, context: int | None, gpus: Sequence[GpuFact]) -> EngineTable:
        return replace(engine, context=engine.context or 4096)

    def program(self, engine: EngineTable) -> Program:
        return Program(f"{engine.python} -m vllm.entrypoints.openai.api_server", own_python=False)

    def needs(self, engine: EngineTable, size: ModelSize) -> int | None:
        return size.weights // engine.tp

    def refused_parameters(self, engine: EngineTable) -> tuple[str, ...]:
        return ("top_a",)

    def advice(self, engine: EngineTable, size: ModelSize) -> str | None:
        return "ask for less."


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Vllm:
    kind = Vllm()
    monkeypatch.setitem(registry.KINDS, "vllm", kind)
    return kind


def write(tmp_path: Path, keys: str = "", kind: str = "vllm") -> Path:
    file = tmp_path / "run.toml"
    file.write_text(FILE.replace("KEYS", keys).replace("vllm", kind))
    return file


def test_a_third_kind_is_a_class_and_a_row(tmp_path: Path, vllm: Vllm) -> None:
    loaded = load(write(tmp_path))
    assert loaded.config.pipeline[0].engine.context == 4096
    assert vllm.seen == [Installed(None)], "nobody is asked unless GPUs are looked up"
    found = look(loaded)
    assert found.parts[0].program == "/bin/sh -m vllm.entrypoints.openai.api_server"
    assert any("kind vllm are unmeasured on virtual GPUs" in note for note in found.notes)


def test_its_findings_appear(tmp_path: Path, vllm: Vllm) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "ep = 2"), lambda host: [GpuFact(GpuId(gpu), "GPU", 100) for gpu in range(2)])
    assert [(mistake.key, mistake.problem.partition(" (")[0]) for mistake in caught.value.mistakes] == [
        ("pipeline[0].engine.python", "has no vLLM"),
        ("pipeline[0].engine.ep", "is not for this kind"),
    ]


def test_its_needs_and_its_advice_are_in_the_picture(tmp_path: Path, vllm: Vllm) -> None:
    loaded = load(write(tmp_path))
    box = fit.Machine(tuple(GpuFact(GpuId(gpu), "small", 100) for gpu in range(2)), None, None, {})
    found = fit.picture(loaded.config, box, {"p1": ModelSize(1000, None)})
    assert found.gpus[1].needs == 500
    assert "p1: ask for less." in found.notes


def test_a_kind_that_there_is_not_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path))
    (mistake,) = caught.value.mistakes
    assert (mistake.problem, mistake.remedy) == ("is not one of the choices", 'Give "embedded" or "sglang".')


def test_choices_of_an_added_kind_are_named(tmp_path: Path, vllm: Vllm) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, kind="vllmm"))
    (mistake,) = caught.value.mistakes
    assert (mistake.problem, mistake.remedy) == (
        'is not one of the choices (did you mean "vllm"?)',
        'Give "embedded" or "sglang" or "vllm".',
    )


@pytest.mark.parametrize("args", [["--host", "0.0.0.0", "--port", "1"], ["--gp=cpu"], ["--nonsense"]])
def test_an_embedded_engine_takes_no_arguments_by_hand(args: list[str]) -> None:
    engine = EngineTable(kind="embedded", model="/m", gpus=[0], args=args)
    assert [finding.key for finding in embedded.findings(engine, "engine")] == ["engine.args"]
