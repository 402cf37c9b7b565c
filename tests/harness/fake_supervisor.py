"""A small supervisor and a small gateway for tests: real socket pairs, real HTTP, no scheduler.

`FakeSupervisor` answers every rank as `trainers.protocol.trainer_messages` says and keeps what was said. `FakeGateway` answers samples through a
function, and can lose connections, be away for a while, and be replaced on its port.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from trainshed import Pipeline

from trainers import weights
from trainers.protocol import trainer_messages as m
from trainers.protocol.child_env import OUR_PATH
from trainers.protocol.framing import FrameReader, encode


class FakeSupervisor:
    """Answers at once, unless a call's tag is in `refuse` (then with that code) or in `mute` (then never)."""

    def __init__(self, directory: Path, *, world_size: int = 1, **welcome: Any) -> None:
        self.weights = directory / "weights"
        self.weights.mkdir(parents=True, exist_ok=True)
        self.version = int(welcome.get("version", 0))
        options = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in welcome.pop("options", {}).items()}
        defaults: dict[str, Any] = {
            "pipeline": "p1", "seed": 0, "steps": 5, "steps_done": 0, "model": str(directory / "model"), "url": "http://127.0.0.1:9",
            "directory": str(directory), "gpus": ("virtual:0",),
        }  # fmt: skip
        self._welcome = {**defaults, **welcome, "world_size": world_size, "weights": str(self.weights), "options": options}
        self.said: list[tuple[int, m.TrainerMessage]] = []
        self.refuse: dict[str, str] = {}
        self.mute: set[str] = set()
        self.checkpoints: list[m.Checkpoint] = []
        self.reports: list[m.Report] = []
        self.versions: list[Path] = []
        self.before: Callable[[int, m.TrainerMessage], None] = lambda rank, message: None
        self._offloaded: dict[int, set[int]] = {}
        self._lock = threading.RLock()
        pairs = [socket.socketpair() for _ in range(world_size)]
        self._ours = [ours for ours, _ in pairs]
        self._theirs = [theirs for _, theirs in pairs]
        self._threads = [threading.Thread(target=self._serve, args=(rank,), daemon=True) for rank in range(world_size)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "FakeSupervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, rank: int = 0) -> Pipeline:
        """The client of one rank, in this process."""
        return Pipeline(self._theirs[rank], rank)

    def descriptor(self, rank: int = 0) -> int:
        """The rank's end, for `pass_fds` of a child."""
        return self._theirs[rank].fileno()

    def handed_over(self) -> None:
        """The children have their ends: close ours of them."""
        for theirs in self._theirs:
            theirs.close()

    def tell(self, message: msgspec.Struct) -> None:
        """Says it to every rank."""
        for ours in self._ours:
            try:
                ours.sendall(encode(message))
            except OSError:  # that rank has ended: others may not have
                continue

    def tags(self, rank: int = 0) -> list[str]:
        return [message.__struct_config__.tag for by, message in self.said if by == rank]

    def close(self) -> None:
        for ours in self._ours:
            with contextlib.suppress(OSError):  # that rank has ended
                ours.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for end in self._ours + self._theirs:
            end.close()

    def _serve(self, rank: int) -> None:
        reader: FrameReader[m.TrainerMessage] = FrameReader(m.TrainerMessage)
        while True:
            try:
                data = self._ours[rank].recv(1 << 16)
            except OSError:
                return
            if not data:
                return
            for message in reader.feed(data):
                self.before(rank, message)
                with self._lock:
                    self.said.append((rank, message))
                    self._answer(rank, message)

    def _answer(self, rank: int, message: m.TrainerMessage) -> None:
        tag = str(message.__struct_config__.tag)
        if tag in self.mute:
            return
        if tag in self.refuse:
            number = getattr(message, "call", getattr(message, "rollout", getattr(message, "step", 0)))
            self.tell(m.Refused(tag, number, self.refuse[tag], "as the test wants it"))
            return
        match message:
            case m.Hello():
                self._ours[rank].sendall(encode(m.Welcome(rank=rank, **self._welcome)))
            case m.OpenRollout(rollout):
                self.tell(m.RolloutOpened(rollout))
            case m.CloseRollout(rollout):
                self.tell(m.RolloutClosed(rollout))
            case m.Asked(rollout):
                self._ours[rank].sendall(encode(m.AskedAlike(rollout)))
            case m.Choose(call, _, samples):
                self.tell(m.Chosen(call, samples))
            case m.RequestLease(call, roles) | m.ExchangeLease(call, roles):
                self.tell(m.LeaseGranted(call, roles))
            case m.Offloaded(call):
                gone = self._offloaded.setdefault(call, set())
                gone.add(rank)
                if len(gone) == len(self._ours):
                    self.tell(m.LeaseEnded(call))
            case m.Publish():
                self._publish(message)
            case m.Checkpoint(step):
                self.checkpoints.append(message)
                self.tell(m.CheckpointRecorded(step))
            case m.Report():
                self.reports.append(message)

    def _publish(self, message: m.Publish) -> None:
        call = message.call
        if message.code:
            self.tell(m.Refused("publish", call, message.code, message.reason))
            return
        try:
            path = weights.adopt(self.weights, message.name, self.version + 1, weights.layout_of(Path(self._welcome["model"])))
        except weights.SnapshotError as error:
            self.tell(m.Refused("publish", call, error.code, str(error)))
            return
        self.version += 1
        self.versions.append(path)
        self.tell(m.Published(call, self.version))


Answer = Callable[[int, list[dict[str, Any]]], list[dict[str, Any]]]
"""(rollout, requests) -> lines, in the order in which they are to be sent."""


def echo(rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The prompt backwards as the answer, last sample first."""
    return [line(r["sample"], r["input_ids"][::-1], seed=r["sampling_params"]["sampling_seed"]) for r in reversed(requests)]


def line(sample: int | str, output_ids: list[int], logprobs: list[float] | None = None, text: str = "", **more: Any) -> dict[str, Any]:
    return {
        "sample": sample,
        "output_ids": output_ids,
        "logprobs": [-0.5] * len(output_ids) if logprobs is None else logprobs,
        "finish_reason": {"type": "length", "length": len(output_ids)},
        "spans": [{"engine": 0, "incarnation": 1, "version": 0, "start": 0, "end": len(output_ids)}],
        "text": text,
        **more,
    }


class FakeGateway:
    """`POST /rollouts/{n}/samples` on a fixed port, in threads; also keeps the bodies it was asked."""

    def __init__(self, answer: Answer = echo) -> None:
        self.answer = answer
        self.asked: list[tuple[int, list[int | str]]] = []
        self.cuts: list[int] = []  # the next requests' answers are cut off after so many lines
        self.statuses: list[tuple[int, bytes]] = []  # the next requests are answered so
        self.cancelled: list[tuple[int, list[int | str]]] = []
        self._stored: dict[tuple[int, int | str], dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._server = self._listen(0)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FakeGateway":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def restart(self) -> None:
        """A new one on the same port, which knows nothing of the old one's samples."""
        self._stored.clear()
        self._server = self._listen(self.port)

    def lines(self, rollout: int, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Idempotent by sample, whichever rank asks."""
        with self._lock:
            new = [request for request in requests if (rollout, request["sample"]) not in self._stored]
            made = self.answer(rollout, new)
            self._stored.update({(rollout, line["sample"]): line for line in made if "sample" in line})
            known = [self._stored[rollout, r["sample"]] for r in requests if r not in new]
            return known + made

    def _listen(self, port: int) -> ThreadingHTTPServer:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

            def do_POST(self) -> None:
                _serve_samples(gateway, self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server


def _serve_samples(gateway: FakeGateway, handler: BaseHTTPRequestHandler) -> None:
    body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
    _, name, number, kind = handler.path.split("/")
    assert (name, kind) in (("rollouts", "samples"), ("rollouts", "cancel"))
    rollout = int(number)
    if kind == "cancel":
        gateway.cancelled.append((rollout, body["samples"]))
        handler.send_response(200)
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")
        return
    gateway.asked.append((rollout, [request["sample"] for request in body["samples"]]))
    if gateway.statuses:
        status, content = gateway.statuses.pop(0)
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        return
    cut = gateway.cuts.pop(0) if gateway.cuts else None
    handler.send_response(200)
    handler.send_header("Content-Type", "application/x-ndjson")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    _chunk(handler, b"\n")  # a keep-alive
    for count, answer in enumerate(gateway.lines(rollout, body["samples"])):
        if count == cut:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        _chunk(handler, json.dumps(answer).encode() + b"\n")
    _chunk(handler, b"")


def _chunk(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def environment(supervisor: FakeSupervisor, rank: int, **more: str) -> dict[str, str]:
    """Of a child that runs our own modules as this rank."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": OUR_PATH,
        "OMP_NUM_THREADS": "1",
        "TRAINSHED_FD": str(supervisor.descriptor(rank)),
        "RANK": str(rank),
        **more,
    }
