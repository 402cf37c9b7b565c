"""What kills a bare engine, sent past our table of states, and how its death shows. Each case has an engine of its own.

These are the reasons why `EngineControl` refuses: `test_conformance` shows that through it the engine lives.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from engines.control import EngineControl, EngineError, EnginePoisoned, EngineUnreachable, new_session
from engines.gateway.core.events import Broken
from tests.harness.sglang.asking import LONG, Asked, asking
from tests.harness.sglang.served import KINDS, REAL, Served, available, serving
from trainers.protocol.ids import Version

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

Start = Callable[[], Served]
LETHAL = 15.0
"""Seconds within which a misused engine is gone: SGLang looks after its children once a second, then ends itself."""


@pytest.fixture(params=[kind for kind in KINDS if kind != "sglang-moe"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    if not available(request.param):
        pytest.skip("TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)")
    with serving(request.param, tmp_path) as served:
        yield served


def test_trap_1_a_resume_of_what_is_there_kills(engine: Served) -> None:
    with pytest.raises((OSError, AssertionError)):
        engine.post("/resume_memory_occupation", {"tags": ["kv_cache"]}, timeout=LETHAL)
    assert engine.dies(LETHAL) is not None


def test_trap_1_a_release_of_a_busy_engine_kills(engine: Served) -> None:
    params = {"max_new_tokens": 200, "ignore_eos": True}
    body = {"input_ids": [[5, 9, index % 32 + 4] for index in range(64)], "sampling_params": params, "stream": True}
    if engine.kind == "scripted":
        body["input_ids"] = [5, 9]
        engine.post("/script", {"token_delay": 0.05})
    request = subprocess.Popen(_curl(engine, "/generate", body), stdout=subprocess.PIPE)
    try:
        assert request.stdout is not None
        assert request.stdout.read(5) == b"data:"
        with pytest.raises((OSError, AssertionError)):
            engine.post("/release_memory_occupation", {"tags": ["kv_cache"]}, timeout=LETHAL)
        assert engine.dies(LETHAL) is not None
    finally:
        request.kill()
        request.communicate()


def _curl(engine: Served, path: str, body: object) -> list[str]:
    return [
        "curl",
        "-sN",
        "-H",
        f"Authorization: Bearer {engine.key}",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
        engine.url + path,
    ]


async def test_a_broken_snapshot_never_serves(engine: Served, tmp_path: Path) -> None:
    """A truncated file: SGLang dies of it, ours refuses. Either way this life is over (the supervisor looks at snapshots beforehand)."""
    if engine.kind == "scripted":
        pytest.skip("the scripted engine loads whatever it is told")
    broken = tmp_path / "v7"
    broken.mkdir()
    for file in engine.other.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    async with new_session() as session:
        control = EngineControl(engine.url, engine.key, session)
        with pytest.raises((EnginePoisoned, EngineUnreachable)):
            await control.load(Version(7), str(broken), 60)
        with pytest.raises(EngineError, match="unknown"):
            await control.load(Version(8), str(engine.first), 60)
    assert (engine.dies(LETHAL if engine.real else 0.5) is not None) is engine.real


@pytest.mark.skipif(not REAL, reason="TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)")
async def test_the_death_of_any_process_of_it_is_the_death_of_all(tmp_path: Path) -> None:
    """Fast, because the dumps before a crash are switched off: up to 66 s else, in which HTTP hangs."""
    with serving("sglang", tmp_path) as engine:
        everybody = psutil.Process(engine.pid).children(recursive=True)
        (detokenizer,) = [child for child in everybody if "detokenizer" in " ".join(child.cmdline())]
        asked = Asked(engine, [5, 9, 13], LONG)
        async with asking(asked):
            await asked.has(1)
            os.kill(detokenizer.pid, signal.SIGKILL)
            assert engine.dies(LETHAL) is not None
        assert isinstance(asked.end, Broken), "a stream without its end is a lost engine, not an answer"
        _, left = psutil.wait_procs(everybody, timeout=LETHAL)
        assert left == []
