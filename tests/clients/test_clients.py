"""Clients of others, each a program in its own environment (`bin/clients`), before a real gateway: what they do in plain use, and with tools.

Plain use is answered by the embedded engine; tools by the scripted one, since a model of random weights calls none.
"""

import asyncio
import os
from pathlib import Path

import pytest

from tests.harness.agent_model import CALL, agent_model, says
from tests.harness.gateway_box import KEY, box
from tests.harness.scripted_engine import ScriptedEngine

ENVIRONMENT = os.environ.get("TRAINSHED_CLIENTS", "")
PROGRAMS = Path(__file__).parent / "programs"
LIMIT_S = 100.0
pytestmark = [
    pytest.mark.skipif(
        not Path(ENVIRONMENT, "bin/python").exists(), reason="TRAINSHED_CLIENTS names no environment (bin/clients makes one)"
    ),
    pytest.mark.timeout(180),
]


async def run(program: str, url: str, model: Path, folder: Path, serves: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "GATEWAY": url,
        "MODEL": str(model),
        "SERVES": serves,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": KEY.replace(" ", "-"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
    }
    process = await asyncio.create_subprocess_exec(
        f"{ENVIRONMENT}/bin/python",
        str(PROGRAMS / f"{program}.py"),
        env=environment,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        out, _ = await process.communicate()
    assert out.rstrip().endswith(b"ok"), out.decode(errors="replace")[-3000:]
    assert process.returncode == 0


@pytest.mark.parametrize("program", sorted(path.stem for path in PROGRAMS.glob("*_client.py")))
def test_a_client_works_with_tools(tmp_path: Path, program: str) -> None:
    async def play() -> None:
        model = agent_model(tmp_path)
        script = says(model, CALL)
        script.sign, script.then = says(model, "[tool]").says, says(model, "It is 42.").says
        async with box(model, tmp_path, "--no-auth") as (gateway, _), ScriptedEngine(script) as engine:
            await gateway.route(engine, slots=64)
            await run(program, gateway.url, model, tmp_path, "tools")

    asyncio.run(play())
