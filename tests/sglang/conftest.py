from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from engines.control import EngineControl, new_session
from tests.harness.sglang.served import KINDS, Served, available, serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One engine of each kind, for all tests that ask for it; they leave it awake and open."""
    if not available(request.param):
        pytest.skip("TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)")
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as served:
        yield served


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


@pytest.fixture
def control(engine: Served, session: aiohttp.ClientSession) -> EngineControl:
    assert engine.alive(), engine.tail()
    return EngineControl(engine.url, engine.key, session)
