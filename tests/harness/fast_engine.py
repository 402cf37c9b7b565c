"""An engine that costs next to nothing: SGLang's dialect from prepared bytes, for measuring what stands before it.

    python tests/harness/fast_engine.py PORT PACE_S [INTERVAL]

Every request gets `max_new_tokens` tokens; one a `PACE_S` for all that run, as a batch makes them, or all at once (0). Streamed, there is an
event for the first token and then for every `INTERVAL` (1; the request's own `stream_interval` wins), incremental, as SGLang sends them with
`--incremental-streaming-output`.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from functools import cache
from typing import cast

import msgspec
import uvloop

TOKEN = 7
INTERVAL = int(sys.argv[3]) if len(sys.argv) > 3 else 1
END = b"\r\n"


class _Params(msgspec.Struct):
    max_new_tokens: int = 16
    stream_interval: int | None = None


class _Ask(msgspec.Struct):
    input_ids: list[int] = []
    sampling_params: _Params = msgspec.field(default_factory=_Params)
    stream: bool = False


_DECODER = msgspec.json.Decoder(_Ask)


def _event(first: int, count: int, limit: int) -> bytes:
    """What is told after `count` tokens, beginning with token `first`."""
    reason = {"type": "length", "length": limit} if count == limit else None
    new = count - first
    meta = {
        "id": "0" * 32, "finish_reason": reason, "prompt_tokens": 64, "weight_version": "0", "completion_tokens": count, "cached_tokens": 0,
        "weight_versions": [{"version": "0", "start": 0, "end": count}], "e2e_latency": None,
        "output_token_logprobs": [[-0.6931471824645996, TOKEN, None]] * new,
    }  # fmt: skip
    return json.dumps({"text": "", "output_ids": [TOKEN] * new, "meta_info": meta}).encode()


@cache
def _streamed(limit: int, interval: int) -> list[bytes]:
    """What is sent after each token: a chunk of HTTP, or nothing; the last also ends the answer."""
    chunks, sent = [], 0
    for count in range(1, limit + 1):
        if count not in (1, limit) and count - sent < interval:
            chunks.append(b"")
            continue
        line = b"data: " + _event(sent, count, limit) + b"\n\n" + (b"data: [DONE]\n\n" if count == limit else b"")
        chunks.append(f"{len(line):x}".encode() + END + line + END)
        sent = count
    chunks[-1] += b"0" + END + END
    return chunks


@cache
def _whole(limit: int) -> bytes:
    body = _event(0, limit, limit)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
INFO = json.dumps(
    {"model_path": "fast", "tokenizer_path": "fast", "served_model_name": "fast", "is_generation": True, "weight_version": "0", "version": "0.5.23",
     "dp_size": 1, "tp_size": 1, "max_running_requests": 4096, "internal_states": [{}]}
).encode()  # fmt: skip
OTHER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(INFO) + INFO


Answer = Iterator[bytes]
"""What is sent after each token."""


class Batch:
    """Requests that run: each gets one token a tick."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._running: dict[Connection, Answer] = {}
        self._ticks = False

    def add(self, connection: "Connection", limit: int, interval: int) -> None:
        """`interval` 0: whole."""
        if self._pace == 0.0:
            connection.transport.write(STREAM + b"".join(_streamed(limit, interval)) if interval else _whole(limit))
            return
        if not self._ticks:
            self._ticks = True
            asyncio.get_running_loop().call_later(self._pace, self._tick)
        if interval:
            connection.transport.write(STREAM)
        self._running[connection] = iter(_streamed(limit, interval) if interval else [b""] * (limit - 1) + [_whole(limit)])

    def leave(self, connection: "Connection") -> None:
        self._running.pop(connection, None)

    def _tick(self) -> None:
        ended = []
        for connection, answer in self._running.items():
            if (chunk := next(answer, None)) is None:
                ended.append(connection)
            elif chunk:
                connection.transport.write(chunk)
        for connection in ended:
            self.leave(connection)
        self._ticks = bool(self._running)
        if self._ticks:
            asyncio.get_running_loop().call_later(self._pace, self._tick)


class Connection(asyncio.Protocol):
    transport: asyncio.WriteTransport

    def __init__(self, batch: Batch) -> None:
        self._batch, self._buffer = batch, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._batch.leave(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(END, 1)[0]) if start >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            if head.startswith(b"post /generate "):
                asked = _DECODER.decode(body)
                params = asked.sampling_params
                self._batch.add(self, params.max_new_tokens, (params.stream_interval or INTERVAL) if asked.stream else 0)
            else:
                self.transport.write(OTHER)


async def main() -> None:
    batch = Batch(float(sys.argv[2]))
    server = await asyncio.get_running_loop().create_server(lambda: Connection(batch), "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
