"""Errors carry what is wrong as fields; a sentence is made from them, and is what people read."""

from pathlib import Path

import pytest

from engines.sglang.versions import UnknownVersion, profile
from supervisor.config.load import load
from supervisor.config.schema.findings import GpuFact
from supervisor.errors import ConfigError, ExitCode, SetUpError
from supervisor.host.gpus.meter import GpusUnusable
from supervisor.host.ports import Ports

FILE = """\
host.gpus = "auto"
[[pipeline]]
name = "p1"
engine = { model = { make = "trainers.grpo.tiny:make" }, gpus = [0] }
trainer = { gpus = [0], entry = "trainers.grpo:main" }
"""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SetUpError("no room."), "no room."),
        (SetUpError("no room", remedy="Make some"), "no room. Make some"),
        (SetUpError("does not answer", key="host.gpus"), "host.gpus: does not answer"),
        (SetUpError("is not there", key="host.gpus[1]", value=0, remedy="Look"), "host.gpus[1] = 0: is not there. Look"),
    ],
)
def test_a_text_is_made_from_the_fields(error: SetUpError, text: str) -> None:
    assert (str(error), error.exit_code) == (text, ExitCode.SET_UP)


def test_what_the_machine_refuses_is_blamed_on_it_by_type() -> None:
    with pytest.raises(SetUpError) as caught:
        Ports(80, 90)
    assert (caught.value.key, caught.value.value) == ("host.ports", [80, 90])


def test_a_full_stop_in_a_problem_does_not_end_it(tmp_path: Path) -> None:
    def refuse(host: object) -> list[GpuFact]:
        raise GpusUnusable("no NVIDIA driver here (libnvidia-ml.so. 1)", key="host.gpus", value="auto", remedy="Say `virtual = 4`")

    file = tmp_path / "run.toml"
    file.write_text(FILE)
    with pytest.raises(ConfigError) as caught:
        load(file, refuse)
    (mistake,) = caught.value.mistakes
    assert (mistake.key, mistake.problem, mistake.remedy) == (
        "host.gpus",
        "no NVIDIA driver here (libnvidia-ml.so. 1)",
        "Say `virtual = 4`.",
    )


def test_an_old_sglang_says_what_to_install() -> None:
    with pytest.raises(UnknownVersion) as caught:
        profile("0.5.8")
    assert caught.value.problem == "SGLang 0.5.8 lacks calls that we need"
    assert caught.value.remedy.startswith("install 0.5.9 or newer")
