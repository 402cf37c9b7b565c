"""This module asks an engine what costs it no step of the model: how a text is parsed, what it says of itself. A paused engine answers, too."""

from typing import Any, Final

import aiohttp
import msgspec

QUESTION_S: Final = 30.0
"""An engine must answer within so many seconds: its event loop may be busy with thousands of streams."""
MAX_ANSWER: Final = 64 << 20


class Questions:
    """Asks engines; the connections of samples are others."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, url: str, key: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """POST with a body, GET without. Returns status and answer. Raises OSError (a TimeoutError is one) where there is none."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=QUESTION_S))
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        try:
            async with self._session.request("GET" if data is None else "POST", f"{url}{path}", data=data, headers=headers) as got:
                answer = await got.content.read(MAX_ANSWER)
                while not got.content.at_eof():
                    if len(answer := answer + await got.content.readany()) > MAX_ANSWER:
                        raise OSError(f"an answer of more than {MAX_ANSWER} bytes")
                return got.status, answer
        except aiohttp.ClientError as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        except TimeoutError as error:
            raise OSError(f"no answer within {QUESTION_S:g} s") from error

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
