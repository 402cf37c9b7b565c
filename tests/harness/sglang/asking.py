"""Requests as the gateway sends them, for tests of whatever speaks SGLang's dialect."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio

from engines.gateway.core.events import End, Finished, Start, Tokens
from engines.gateway.upstream.engine_client import EngineClient
from tests.harness.sglang.served import CONTEXT, Served

PROMPT = [5, 9, 13, 21]
LONG = CONTEXT - len(PROMPT) - 4


def params(most: int, **more: Any) -> dict[str, Any]:
    return {"max_new_tokens": most, "temperature": 0.0, "ignore_eos": True, "sampling_seed": 3, **more}


def body(prompt: list[int], most: int, **more: Any) -> dict[str, Any]:
    return {"input_ids": prompt, "sampling_params": params(most, **more), "return_logprob": True, "stream": True}


class Asked:
    """One request through the gateway's own client: tokens as they come, then the end."""

    def __init__(self, engine: Served, prompt: list[int], most: int, **more: Any) -> None:
        """`more` are sampling parameters; without, it is greedy."""
        self.rid = uuid4().hex
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.end: Any = None
        self._start = Start(attempt=1, engine=0, incarnation=1, url=engine.url, key=engine.key, body=body(prompt, most, **more))

    async def run(self) -> "Asked":
        client = EngineClient()
        try:
            ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
            client.run(self._start, self.rid, self._got, ended.set_result)
            self.end = await ended
        finally:
            await client.close()
        return self

    def _got(self, tokens: Tokens) -> None:
        self.ids += tokens.ids
        self.logprobs += tokens.logprobs

    async def has(self, count: int) -> None:
        with anyio.fail_after(60):
            while len(self.ids) < count and self.end is None:  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.001)

    async def rests(self, seconds: float = 0.5) -> None:
        """Until no token has come for so long."""
        known = -1
        while known < len(self.ids):
            known = len(self.ids)
            await anyio.sleep(seconds)

    @property
    def reason(self) -> str:
        assert isinstance(self.end, Finished), self.end
        return str(self.end.reason["type"])


@asynccontextmanager
async def asking(*requests: Asked) -> AsyncIterator[None]:
    """These run meanwhile, and have ended at the end."""
    tasks = [asyncio.ensure_future(request.run()) for request in requests]
    try:
        yield
        with anyio.fail_after(60):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def greedy(engine: Served, prompt: list[int], most: int) -> list[int]:
    asked = await Asked(engine, prompt, most).run()
    assert asked.reason == "length", asked.end
    return asked.ids
