"""What an action that a child has caused may fail with: that child's failure in words that can be written down, never our end."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisor.attempt.checkpoints import Checkpoints
from supervisor.runtime.perform import Performer
from supervisor.runtime.snapshots import SharedMemory, TrainerOutput
from supervisor.scheduler import actions as do
from supervisor.scheduler.events import ActionFailed, Event
from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version

pytestmark = pytest.mark.anyio
P1 = PipelineId("p1")
ADOPT = do.AdoptSnapshot(id=1, pipeline=P1, name="snap", version=Version(1))
RECORD = do.RecordCheckpoint(id=1, pipeline=P1, step=0, path="/tmp/x")
PREPARE = do.PrepareModel(id=1, pipeline=P1)
PAUSE = do.Pause(id=1, engine=EngineId(P1, 0), incarnation=Incarnation(1))


class Fails:
    """Stands for whoever performs an action, or for a transport: everything that is asked of it raises `error`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise self._error

        async def fail_later(*_: object) -> None:
            raise self._error

        return fail if name == "adopt" else fail_later


def performer(tmp_path: Path, **parts: Any) -> Performer:
    checkpoints = {P1: Checkpoints.open(tmp_path, 2, lambda error: None)}
    output = TrainerOutput(parts.pop("transports", {}), checkpoints)
    names = ("feed", "lifecycle", "engines", "ranks", "gateways", "models", "memory")
    return Performer(**{**dict.fromkeys(names, None), "output": output, **parts})


async def answered(by: Performer, action: do.Action) -> Event:
    work = by.begin(action)
    assert work is not None
    answer = await work()
    msgspec.json.encode(answer)  # it is recorded, and told
    return answer


ERRORS = [
    ValueError("embedded null byte"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    OverflowError("Python int too large to convert to C long"),
    OSError(5, "an error", "/snap/\udcff\udcfe"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_what_a_child_has_caused_is_its_failure(tmp_path: Path, error: Exception) -> None:
    for action, by in (
        (ADOPT, performer(tmp_path, transports={P1: Fails(error)})),
        (RECORD, performer(tmp_path, output=Fails(error))),
        (PREPARE, performer(tmp_path, models=Fails(error))),
    ):
        answer = await answered(by, action)
        assert isinstance(answer, ActionFailed)
        assert answer.reason
        assert "\udcff" not in answer.reason


@pytest.mark.parametrize("action", [ADOPT, RECORD, PREPARE], ids=lambda action: type(action).__name__)
async def test_a_bug_of_ours_is_none_of_its_failures(tmp_path: Path, action: do.Action) -> None:
    with pytest.raises(KeyError):
        await answered(performer(tmp_path, output=Fails(KeyError("ours")), models=Fails(KeyError("ours"))), action)


async def test_a_value_error_where_no_child_has_a_say_is_a_bug_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"):
        await answered(performer(tmp_path, engines=Fails(ValueError("ours"))), PAUSE)


async def test_a_checkpoint_at_a_path_that_is_none_is_not_recorded(tmp_path: Path) -> None:
    answer = await answered(performer(tmp_path), msgspec.structs.replace(RECORD, path="/tmp/\0x"))
    assert isinstance(answer, ActionFailed)
    assert "null byte" in answer.reason


def left(folder: Path, name: bytes, is_folder: bool) -> None:
    """A snapshot with such an entry."""
    folder.mkdir(parents=True)
    path = os.fsencode(folder) + b"/" + name
    if is_folder:
        os.mkdir(path)
    else:
        os.mknod(path)


@pytest.mark.parametrize("name", [b"\xff\xfe.safetensors", b"\xff\xfe", b"\x1b[2J.safetensors"])
@pytest.mark.parametrize("is_folder", [False, True])
async def test_a_name_that_is_no_text_in_a_snapshot_is_said_in_text(tmp_path: Path, name: bytes, is_folder: bool) -> None:
    left(tmp_path / "w" / "snap", name, is_folder)
    answer = await answered(performer(tmp_path, transports={P1: SharedMemory(tmp_path / "w", tmp_path / "model")}), ADOPT)
    assert isinstance(answer, ActionFailed)
    assert answer.code == "bad_snapshot"
    assert "\x1b" not in answer.reason
    assert os.listdir(tmp_path / "w") == []


async def test_a_reason_is_cut(tmp_path: Path) -> None:
    answer = await answered(performer(tmp_path, output=Fails(OSError("x" * 100_000))), RECORD)
    assert isinstance(answer, ActionFailed)
    assert len(answer.reason) < 3_000
