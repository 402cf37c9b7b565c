"""Hostile texts over real sockets: to a channel of the supervisor, to its control socket, and to a gateway process. Each must live on."""

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import aiohttp
import anyio
from tokenizers import Tokenizer, models, pre_tokenizers

from supervisor.host.channel import Channel
from supervisor.observe import control_socket
from supervisor.observe.control_socket import Declined, Reply, Request, StatusRequest, ask, serve
from tests.harness.gateway_box import box
from tests.harness.hostile_frames import Hostile
from trainers.protocol.gateway_messages import Hopeless
from trainers.protocol.trainer_messages import MAX_FROM_TRAINER, TrainerMessage

AT_ONCE: Final = 8
PATHS: Final = ("/generate", "/rollouts/0/samples", "/v1/completions", "/v1/chat/completions", "/rollouts/%00/samples", "/nothing")


async def trainers(seed: object, count: int, _: Path) -> tuple[int, int]:
    """Each frame comes over a socket pair of its own, in pieces; after it the peer hangs up, and the channel ends once."""
    hostile, heard, failures = Hostile(f"send trainer {seed}"), list[object](), list[object]()
    for _number in range(count):
        ours, theirs = socket.socketpair()
        channel: Channel[TrainerMessage] = Channel(
            ours, TrainerMessage, heard.append, failures.append, max_frame=MAX_FROM_TRAINER, partial_s=0.5
        )
        running = asyncio.create_task(channel.run())
        frame, loop = hostile.frame("trainer"), asyncio.get_running_loop()
        theirs.setblocking(False)
        cut = hostile.random.randrange(len(frame) + 1)
        try:
            for piece in (frame[:cut], frame[cut:]):
                async with asyncio.timeout(5):
                    await loop.sock_sendall(theirs, piece)
                await asyncio.sleep(0)
        except OSError:  # the channel has ended
            pass
        theirs.close()
        async with asyncio.timeout(10):
            await running
    assert len(failures) == count, "each channel fails once"
    return count, len(heard)


async def operators(seed: object, count: int, folder: Path) -> tuple[int, int]:
    """Each request comes over a connection of its own; afterwards an honest one is answered."""
    hostile, understood = Hostile(f"send operator {seed}"), 0
    path = folder / "control.sock"

    async def handler(request: Request, uid: int) -> Reply:
        return Declined(f"{uid} {request}"[:1000])

    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, path, handler)
        for _ in range(count):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                async with asyncio.timeout(control_socket.DEADLINE_S + 5):
                    writer.write(hostile.frame("operator"))
                    writer.write_eof()
                    understood += bool(await reader.read())
            except OSError:
                pass
            writer.close()
        assert isinstance(await asyncio.to_thread(ask, path, StatusRequest(), 5.0), Declined)
        tasks.cancel_scope.cancel()
    return count, understood


async def clients(seed: object, count: int, folder: Path) -> tuple[int, int]:
    """Requests with hostile bodies, names and headers, some of which hang up; the gateway answers an honest one afterwards, and ends with 0."""
    hostile, understood = Hostile(f"send http {seed}"), 0
    chance = hostile.random
    async with box(_model(folder), folder) as (gateway, session):
        await gateway.order(Hopeless, reason="no engine is meant to come")

        async def one() -> bool:
            headers = {"Content-Type": "application/json"}
            if chance.random() < 0.2:
                headers[f"X-Trainshed-{chance.choice(('Rollout', 'Sample', 'Session', 'Expected-Tokens'))}"] = chance.choice(
                    ("0", "-1", "9" * 400, "\x7f", "\udcff", "a b", "", "x" * 5000)
                )
            body = hostile.text("http")
            try:
                timeout = aiohttp.ClientTimeout(total=0.001 if chance.random() < 0.05 else 30)
                async with session.post(chance.choice(PATHS), data=body, headers=headers, timeout=timeout) as response:
                    answer = await response.read()
                    assert response.status != 500, (response.status, answer, body[:300])
                    return response.status == 503  # it was understood, and no engine comes
            except (aiohttp.ClientError, TimeoutError, ValueError):
                return False

        for _ in range(count // AT_ONCE):
            understood += sum(await asyncio.gather(*(one() for _ in range(AT_ONCE))))
        async with session.get("/v1/models") as response:
            assert response.status == 200
    return count, understood


def _model(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(["<unk>", *"abc0123456789"])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 64}))
    return folder


CHANNELS: Final[dict[str, Callable[[object, int, Path], Coroutine[None, None, tuple[int, int]]]]] = {
    "trainer": trainers,
    "operator": operators,
    "http": clients,
}
