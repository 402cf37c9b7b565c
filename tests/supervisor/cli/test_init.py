"""`init` and `completion`: what a new user does once."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from supervisor.cli.main import COMMANDS, main
from supervisor.config.load import load
from supervisor.config.schema.findings import GpuFact
from supervisor.errors import ConfigError
from supervisor.views.first_file import Box, text
from trainers.protocol.ids import GpuId


def test_a_first_file_is_sound_and_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("supervisor.host.gpus.inventory.NvmlGpus", None)  # a machine without a driver, whatever this one has
    monkeypatch.setattr("supervisor.cli.run.gpus", no_gpus)
    assert main(["init"]) == 0
    assert "bin/supervise check trainshed.toml" in capsys.readouterr().out
    config = load("trainshed.toml").config
    assert [pipeline.name for pipeline in config.pipeline] == ["p1", "p2"]
    (tmp_path / "trainshed.toml").write_text("mine")
    assert main(["init"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "trainshed.toml").read_text() == "mine"
    assert main(["init", "other.toml"]) == 0
    for refused in (["init", "other"], ["init", "no/where.toml"]):
        assert main(refused) == 2


def no_gpus(_host: object) -> list[GpuFact]:
    from supervisor.errors import SetUpError

    raise SetUpError("no driver")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_on_gpus_only_what_could_not_be_found_is_left_to_change(count: int, tmp_path: Path) -> None:
    gpus = [GpuFact(GpuId(number), "NVIDIA H100", 80 << 30) for number in range(count)]
    (tmp_path / "a.toml").write_text(text(Box(gpus), "a.toml"))
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "a.toml", lambda _host: gpus)
    assert {mistake.key.partition(".")[2] for mistake in error.value.mistakes} == {"engine.python", "engine.model"}
    table = tomllib.loads(text(Box(gpus, "/opt/x/bin/python", "org/name"), "a.toml"))
    assert [one["engine"]["python"] for one in table["pipeline"]] == ["/opt/x/bin/python"] * 2
    trainers = [one["trainer"]["gpus"] for one in table["pipeline"]]
    assert sorted({gpu for some in trainers for gpu in some}) == list(range(count))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_of_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [command.__name__ for command in COMMANDS if command.__name__ not in script] == []
    if shell == "bash":
        done = subprocess.run(["bash", "-c", f"{script}\ncomplete -p supervise"], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
