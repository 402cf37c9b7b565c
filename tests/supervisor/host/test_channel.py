"""The supervisor's end of a socket pair against peers of every kind."""

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest

from supervisor.host.channel import AT_ONCE, BURST, RATE, Channel, ChannelFailure, FailureKind
from trainers.protocol.framing import HEADER, MAX_FRAME, encode
from trainers.protocol.trainer_messages import Hello, Report, RolloutOpened, TrainerMessage, Welcome

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


class Rig:
    """A channel that runs, the other end of it, and what was heard."""

    def __init__(self, owner: Callable[[TrainerMessage], None] | None = None, **limits: float) -> None:
        ours, self.peer = socket.socketpair()
        self.heard: list[TrainerMessage] = []
        self.failures: list[ChannelFailure] = []
        self.ended = anyio.Event()
        self.channel: Channel[TrainerMessage] = Channel(ours, TrainerMessage, owner or self.heard.append, self.failures.append, **limits)  # type: ignore[arg-type]

    async def run(self) -> None:
        await self.channel.run()
        self.ended.set()

    async def failed(self, seconds: float = 5) -> ChannelFailure:
        with anyio.fail_after(seconds):
            await self.ended.wait()
        assert len(self.failures) == 1, "a peer fails once"
        assert self.failures[0] == self.channel.failure
        assert not self.channel.send(RolloutOpened(1)), "a channel that is over takes nothing"
        return self.failures[0]

    async def hears(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self.heard) < count:  # noqa: ASYNC110 - the channel tells its owner, not us
                await anyio.sleep(0.001)


@asynccontextmanager
async def rig(owner: Callable[[TrainerMessage], None] | None = None, **limits: float) -> AsyncIterator[Rig]:
    made = Rig(owner, **limits)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.run)
        yield made
        tasks.cancel_scope.cancel()
    made.peer.close()


async def test_messages_arrive_in_order_however_they_are_cut() -> None:
    messages = [Hello(rank) for rank in range(50)] + [Report(1, {"reward": 0.5})]
    stream = b"".join(map(encode, messages))
    async with rig() as on:
        for start in range(0, len(stream), 7):
            on.peer.send(stream[start : start + 7])
            if start % 70 == 0:
                await anyio.lowlevel.checkpoint()
        await on.hears(len(messages))
        assert on.heard == messages


async def test_messages_are_written_in_order() -> None:
    async with rig() as on:
        sent = [RolloutOpened(number) for number in range(2000)]
        assert all(on.channel.send(message) for message in sent)
        expected = b"".join(map(encode, sent))
        got = b""
        with anyio.fail_after(5):
            while len(got) < len(expected):
                await anyio.wait_readable(on.peer)
                got += on.peer.recv(1 << 16)
        assert got == expected


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", FailureKind.MALFORMED, "announces"),
        (HEADER.pack(MAX_FRAME + 1), FailureKind.MALFORMED, "announces 1048577 bytes"),
        (HEADER.pack(0), FailureKind.MALFORMED, "does not decode"),
        (HEADER.pack(2) + b"{}", FailureKind.MALFORMED, "does not decode"),
        (HEADER.pack(2) + b"\xff\xfe", FailureKind.MALFORMED, "does not decode"),
        (encode(RolloutOpened(1)), FailureKind.MALFORMED, "does not decode"),
        (HEADER.pack(41) + b'{"type":"hello","rank":1,"unknown":true  }', FailureKind.MALFORMED, "does not decode"),
        (HEADER.pack(100_000) + b"[" * 100_000, FailureKind.MALFORMED, "does not decode"),
        (HEADER.pack(50_006) + b'{"zz":' + b"[" * 50_000, FailureKind.MALFORMED, "does not decode"),
        (HEADER.pack(425) + b'{"type":"hello","rank":1' + b"0" * 400 + b"}", FailureKind.MALFORMED, "does not decode"),
    ],
)
async def test_garbage_fails_the_peer(data: bytes, kind: FailureKind, words: str) -> None:
    async with rig() as on:
        with suppress(BlockingIOError):
            on.peer.setblocking(False)
            on.peer.sendall(encode(Hello(0)) + data)
        failure = await on.failed()
        assert failure.kind is kind
        assert words in failure.detail
        assert on.heard == [Hello(0)]


async def test_end_of_file_between_and_within_frames() -> None:
    async with rig() as on:
        on.peer.sendall(encode(Hello(0)))
        on.peer.close()
        assert (await on.failed()).kind is FailureKind.CLOSED
        assert on.heard == [Hello(0)]
    async with rig() as on:
        on.peer.sendall(encode(Hello(0))[:-1])
        on.peer.close()
        assert (await on.failed()).kind is FailureKind.TRUNCATED


async def test_a_frame_that_does_not_end_fails_even_when_it_dribbles() -> None:
    async with rig(partial_s=0.3) as on:
        started = anyio.current_time()
        frame = encode(Report(0, {"x" * 100: 1.0}))
        for byte in frame:
            if on.failures:
                break
            with suppress(BrokenPipeError):
                on.peer.send(bytes([byte]))
            await anyio.sleep(0.01)
        assert (await on.failed()).kind is FailureKind.TRUNCATED
        assert 0.25 < anyio.current_time() - started < 1.2


async def test_a_busy_peer_with_a_frame_always_under_way_is_well() -> None:
    """Each piece ends one frame and begins the next; none is old."""
    async with rig(partial_s=0.1) as on:
        frame = encode(Hello(7))
        on.peer.send(frame[:3])
        for _ in range(30):
            await anyio.sleep(0.01)
            on.peer.send(frame[3:] + frame[:3])
        await on.hears(30)
        assert not on.failures


async def test_a_flood_does_not_starve_the_loop_and_is_read_no_faster_than_may_be() -> None:
    """Each message costs its owner some time; somebody else in the loop is never kept waiting for many of them."""
    heavy: list[float] = []

    def owner(message: TrainerMessage) -> None:
        heavy.append(time.monotonic())
        while time.monotonic() < heavy[-1] + 0.0003:
            pass

    async with rig(owner) as on:
        on.peer.setblocking(False)
        lags: list[float] = []
        stream = encode(Hello(1)) * 10_000
        until, rest = anyio.current_time() + 2.5, memoryview(stream)
        while anyio.current_time() < until:
            with suppress(BlockingIOError):
                rest = rest[on.peer.send(rest) :] or memoryview(stream)
            before = anyio.current_time()
            await anyio.sleep(0.001)
            lags.append(anyio.current_time() - before)
        assert not on.failures
        assert RATE < len(heavy) < BURST + 3 * RATE
        assert sorted(lags)[len(lags) * 9 // 10] < 0.03 + 0.001 * AT_ONCE


async def test_the_rest_of_a_flood_is_not_lost() -> None:
    async with rig() as on:
        on.peer.sendall(encode(Hello(1)) * (BURST + 100))
        await on.hears(BURST + 100)
        assert not on.failures


async def test_a_peer_that_does_not_read() -> None:
    async with rig(stalled_s=0.2) as on:
        message = Welcome("p1", 0, 1, 0, 1, 0, "m" * 100_000, "u", "w", "d", ())
        before = anyio.current_time()
        for _ in range(20):
            on.channel.send(message)
        assert anyio.current_time() - before < 0.5, "sending never waits"
        assert (await on.failed()).kind is FailureKind.NOT_READING


async def test_the_queue_has_a_limit() -> None:
    async with rig(outbox_bytes=1 << 20) as on:
        message = Welcome("p1", 0, 1, 0, 1, 0, "m" * 100_000, "u", "w", "d", ())
        assert [on.channel.send(message) for _ in range(12)].count(True) == 10
        assert (await on.failed()).kind is FailureKind.NOT_READING


async def test_an_owner_may_close() -> None:
    async with rig() as on:
        on.channel.close()
        with anyio.fail_after(5):
            await on.ended.wait()
        assert on.failures == []
        assert on.peer.recv(1) == b"", "the descriptor is given up"
