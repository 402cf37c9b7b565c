"""Seeds of samples on real SGLang: with `deterministic` a sample is its seed's, whatever runs beside it and wherever it was interrupted."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.harness.sglang.asking import PROMPT, Asked
from tests.harness.sglang.served import Served, available, serving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]
TOKENS = 24
HOT = {"temperature": 1.0}


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if not available("sglang"):
        pytest.skip("TRAINSHED_SGLANG names no environment (bin/sglang-cpu makes one)")
    with serving("sglang", tmp_path_factory.mktemp("seeded"), deterministic=True) as served:
        yield served


async def sample(engine: Served, seed: int, prompt: list[int] = PROMPT, most: int = TOKENS, **more: float) -> list[int]:
    asked = await Asked(engine, prompt, most, **{**HOT, "sampling_seed": seed, **more}).run()
    assert asked.reason == "length", asked.end
    return asked.ids


async def test_a_sample_is_its_seeds(seeded: Served) -> None:
    alone = await sample(seeded, 7)
    assert await sample(seeded, 7) == alone
    assert await sample(seeded, 8) != alone
    assert await sample(seeded, 2**63 - 1) != alone
    rest = await sample(seeded, 7, [*PROMPT, *alone[:9]], TOKENS - 9)
    assert rest == alone[9:], "a continuation is not what the whole one was"
    beside = await asyncio.gather(*(sample(seeded, seed) for seed in (7, 100, 7, 101, 102, 103, 104, 7)))
    assert [ids for ids in beside if ids == alone] == [alone] * 3
    assert len({tuple(ids) for ids in beside}) == 6
    narrow = {"top_p": 0.9, "top_k": 20}
    assert await sample(seeded, 7, **narrow) == await sample(seeded, 7, **narrow)
