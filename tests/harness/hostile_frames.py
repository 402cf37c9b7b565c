"""Frames, bodies and files as a hostile child or client would write them, and every reader of ours that must survive them.

`Hostile(seed)` makes them: a message that is right, in which strings, numbers and structure are replaced (NUL, surrogates, bytes that are no
UTF-8, 4 kB, escape sequences, nesting, unknown fields, what does not end). `CHANNELS` has a function for each place where we read what somebody
else has written: it returns whether the text was understood, and raises only what its caller takes for the peer's failure.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from engines.gateway.routes import openai_bodies, request_bodies
from engines.gateway.routes.agents import chat_bodies, messages_api, responses_api
from engines.gateway.routes.agents.chat_bodies import Parsers
from engines.gateway.routes.body_reader import refuse_crowded
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.text import Text
from supervisor.attempt import checkpoints, gateway_keys, journal, recording
from supervisor.config.machine import model_files
from supervisor.host.processes.child import Status
from supervisor.observe import control_socket
from supervisor.observe.crash_report import crash_record
from supervisor.observe.sanitize import plain
from supervisor.runtime.perform import CHILDS_WORDS_FAULT
from tests.harness.tiny_model import make_tiny_model
from trainers import weights
from trainers.protocol.framing import HEADER, FrameError, FrameReader
from trainers.protocol.gateway_messages import Report
from trainers.protocol.ids import PipelineId
from trainers.protocol.trainer_messages import MAX_FROM_TRAINER, TrainerMessage

STRINGS: Final = (
    b"\\u0000", b"a\\u0000b", b"\\ud800", b"\\udfff\\ud800", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"x" * 4096, b"\\u0041" * 4097, b"x" * 70_000,
    b"\\u001b[2J\\u001b]0;x\\u0007", b"\x1b[2J", b"\\n\\r", b"../../etc", b"/dev/zero", b"", b"\\u202e", b"${x}", b"{{7*7}}", b"%s%n", b"\\", b'\\"',
)  # fmt: skip
VALUES: Final = (
    b"-1", b"0", b"9007199254740993", b"1e308", b"1e999", b"-0.0", b"NaN", b"Infinity", b"9" * 400, b"true", b"null", b"[]", b"{}", b'""', b"0.5",
    b"18446744073709551616", b"1" * 5000,
)  # fmt: skip
MESSAGES: Final = {
    "trainer": [
        {"type": "hello", "rank": 0},
        {"type": "open_rollout", "rollout": 3, "target": 8},
        {"type": "close_rollout", "rollout": 3},
        {"type": "request_lease", "call": 1, "roles": ["train", "critic"]},
        {"type": "exchange_lease", "call": 1, "roles": ["train"]},
        {"type": "offloaded", "call": 1},
        {"type": "publish", "call": 1, "name": "snapshot", "code": "x", "reason": "why"},
        {"type": "checkpoint", "step": 1, "path": "/tmp/x"},
        {"type": "report", "step": 1, "metrics": {"reward": 0.5, "loss": 1.0}},
    ],
    "gateway": [
        {"type": "ready"},
        {"type": "done", "order": 1, "error": "why"},
        {
            "type": "progress",
            "rollouts": [{"rollout": 1, "waiting": 1, "in_flight": 2, "done": 3}],
            "engines": [{"engine": 0, "incarnation": 1, "in_flight": 2, "tokens": 5}],
        },
    ],
    "operator": [
        {"type": "status"},
        {"type": "stop", "level": 1},
        {"type": "act", "verb": "restart", "target": {"group": "pipeline", "pipeline": "p1"}},
        {"type": "act", "verb": "restart", "target": {"group": "engine", "pipeline": "p1", "rank": 0}},
    ],
    "http": [
        {"input_ids": [1, 2, 3], "sampling_params": {"n": 2, "stop": ["a"], "max_new_tokens": 3}, "rid": "x", "stream": True},
        {"text": ["0", "1"], "sampling_params": {"logit_bias": {"5": 1.0}, "json_schema": "{}"}},
        {"samples": [{"sample": 0, "input_ids": [4], "sampling_params": {"temperature": 1.0}, "session": "s", "expected_tokens": 5}]},
        {"prompt": "0", "max_tokens": 3, "logprobs": 2, "stop": "a", "model": "m", "logit_bias": {"4": 1}},
        {"messages": [{"role": "user", "content": "01"}], "response_format": {"type": "json_object"}, "chat_template_kwargs": {"a": "b"}},
    ],
    "snapshot": [{"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}],
    "index": [{"metadata": {}, "weight_map": {"w": "model.safetensors"}}],
    "resume": [{"checkpoints": [{"step": 1, "path": "/tmp"}], "version": 3}],
    "keys": [{"p1": {"url": "http://127.0.0.1:1", "key": "k"}}],
    "journal": [
        {"time": 1.0, "what": {"entry": "began", "boot": "b", "pid": 1, "start": 2}},
        {"time": 1.0, "what": {"entry": "spawned", "group": "g", "members": [{"pid": 1, "start": 2, "tag": "t"}]}},
        {"time": 1.0, "what": {"entry": "shared", "path": "/dev/shm/trainshed-x"}},
    ],
    "recording": [
        {"line": "heard", "at": 1.0, "event": {"type": "Tick"}},
        {"line": "opened", "at": 1.0, "handled": 3},
        {"line": "decided", "actions": []},
    ],
    "config": [{"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "tie_word_embeddings": True}],
    "log": [{"line": "out of memory"}],
}  # fmt: skip


class Hostile:
    """What somebody hostile writes, by a seed."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))

    def text(self, channel: str) -> bytes:
        """Returns one text for a channel: a message of it that is spoilt in one to three ways, or not at all."""
        message = self.random.choice(MESSAGES[channel])
        text = json.dumps(self._with_holes(message, 0.25)).encode()
        text = self._fill(text)
        for _ in range(self.random.choice((0, 0, 1, 1, 2))):
            text = self._spoilt(text)
        return text

    def frame(self, channel: str) -> bytes:
        """Returns the text as a frame; now and then with a length that is not its own."""
        text = self.text(channel)
        length = len(text) if self.random.random() < 0.95 else self.random.choice((0, 1, len(text) + 1, 1 << 20, (1 << 20) + 1, 0xFFFFFFFF))
        return HEADER.pack(length) + text

    def _with_holes(self, value: object, share: float) -> object:
        """Replaces some leaves by marks, which `_fill` replaces by bytes that no encoder would write."""
        if isinstance(value, dict):
            return {("@k" if self.random.random() < share / 4 else name): self._with_holes(one, share) for name, one in value.items()}
        if isinstance(value, list):
            return [self._with_holes(one, share) for one in value]
        if self.random.random() >= share:
            return value
        return "@s" if isinstance(value, str) and self.random.random() < 0.8 else "@v"

    def _fill(self, text: bytes) -> bytes:
        for mark, fillings in ((b"@s", STRINGS), (b"@k", STRINGS), (b'"@v"', VALUES)):
            while mark in text:
                text = text.replace(mark, self.random.choice(fillings).replace(b"@", b""), 1)
        return text

    def _spoilt(self, text: bytes) -> bytes:
        chance = self.random
        match chance.randrange(7):
            case 0:  # an unknown field, as deep as one likes
                depth = chance.choice((1, 10, 500, 1500, 30_000))
                opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
                value = opening * depth + b"1" * (opening != b"[") + closing * (depth if chance.random() < 0.8 else 0)
                return text[:-1] + b',"zz":' + value + b"}"
            case 1:  # cut
                return text[: chance.randrange(len(text) + 1)]
            case 2:  # one byte is another
                at = chance.randrange(len(text) + 1)
                return text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
            case 3:  # twice, or a beginning twice
                at = chance.randrange(len(text) + 1)
                return text[:at] + text
            case 4:  # in something else
                return chance.choice((b"[%s]", b'{"type":%s}', b" %s \n", b"\xef\xbb\xbf%s", b"%s\0")).replace(b"%s", text)
            case 5:
                return chance.randbytes(chance.randrange(200))
            case _:  # many of something
                piece = chance.choice((b'"a":1,', b'"@":"\\u0000",', b'"b":[],')).replace(b"@", b"k")
                return text[:1] + piece * chance.choice((10, 200, 3000)) + text[1:]


# -- who reads it


def _framed(union: Any, limit: int) -> Callable[[bytes, Path], bool]:
    def read(frame: bytes, _: Path) -> bool:
        reader: FrameReader[msgspec.Struct] = FrameReader(union, limit)
        try:
            messages = list(reader.feed(frame))
        except FrameError as error:
            plain(str(error)).encode()  # it becomes a reason
            return False
        for message in messages:
            msgspec.json.encode(message)  # it is recorded
        return bool(messages)

    return read


@cache
def _text() -> Text:
    """The text side of a tiny model; what its libraries load is loaded once."""
    with TemporaryDirectory() as folder:
        return Text(make_tiny_model(Path(folder)))


_PARSERS: Final = Parsers("qwen25", "qwen3")


def _http(body: bytes, _: Path) -> bool:
    text = _text()
    works: tuple[Callable[[bytearray], Any], ...] = (
        lambda raw: request_bodies.generate(raw, text),
        lambda raw: request_bodies.our_samples(raw, text),
        lambda raw: openai_bodies.completion(raw, text),
        lambda raw: chat_bodies.asked_chat(raw, text, _PARSERS),
        lambda raw: chat_bodies.asked_chat(raw, text, _PARSERS, responses_api.chat_of),
        lambda raw: chat_bodies.asked_chat(raw, text, _PARSERS, messages_api.chat_of),
    )
    understood = False
    for work in works:
        try:
            refuse_crowded(body)
            work(bytearray(body))
            understood = True
        except RequestError as error:
            msgspec.json.encode(error.body())
    return understood


def _snapshot(header: bytes, folder: Path) -> bool:
    place = folder / "snapshot"
    place.mkdir()
    (place / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    return _adopted(folder)


def _index(text: bytes, folder: Path) -> bool:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    place = folder / "snapshot"
    place.mkdir()
    (place / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    (place / weights.INDEX).write_bytes(text)
    return _adopted(folder)


def _adopted(folder: Path) -> bool:
    try:
        weights.adopt(folder, "snapshot", 1, weights.Layout({"w": weights.TensorType("F32", (2,))}))
    except weights.SnapshotError as error:
        plain(str(error)).encode()
        return False
    weights.drop(folder, 1)
    return True


def _resume(text: bytes, folder: Path) -> bool:
    (folder / "resume.json").write_bytes(text)
    known = checkpoints.remembered(folder)
    msgspec.json.encode(known)
    (folder / "resume.json").unlink()
    return known.version > 0


def _checkpoint(frame: bytes, folder: Path) -> bool:
    """Returns whether the path of a checkpoint that a trainer announces was recorded."""
    record = checkpoints.Checkpoints.open(folder, 2, lambda error: None)
    try:
        messages = list(FrameReader[Any](TrainerMessage, MAX_FROM_TRAINER).feed(frame))
    except FrameError:
        return False
    for message in messages:
        if isinstance(path := getattr(message, "path", None), str):
            try:
                record.record(getattr(message, "step", 0), path)
            except CHILDS_WORDS_FAULT as error:
                plain(str(error)).encode()
    return bool(messages)


def _keys(text: bytes, folder: Path) -> bool:
    place = folder / "gateways.json"
    place.write_bytes(text)
    place.chmod(0o600)
    return gateway_keys.keep(folder, {PipelineId("p1"): "http://127.0.0.1:1"}, frozenset()) == {"p1": "k"}


def _journal(text: bytes, folder: Path) -> bool:
    place = folder / "journal.jsonl"
    place.write_bytes(text + b"\n" + text)
    lines = list(journal.read(place))
    journal.writer(lines)
    return bool(lines)


def _recording(text: bytes, folder: Path) -> bool:
    place = folder / "000001.jsonl"
    place.write_bytes(text + b"\n")
    return any(line is not None for _, line in recording.read(place))


def _config(text: bytes, folder: Path) -> bool:
    (folder / "config.json").write_bytes(text)
    weights._tied(folder / "config.json")
    model_files.model_context(folder)
    return True


def _log(text: bytes, folder: Path) -> bool:
    place = folder / "log"
    place.write_bytes(text)
    record = crash_record(place, Status(code=1), str)
    json.dumps([line.encode().decode() for line in record.last_lines])
    return True


CHANNELS: Final[dict[str, tuple[str, bool, Callable[[bytes, Path], bool]]]] = {
    "trainer": ("trainer", True, _framed(TrainerMessage, MAX_FROM_TRAINER)),
    "gateway": ("gateway", True, _framed(Report, 1 << 20)),
    "operator": ("operator", True, _framed(control_socket.Request, control_socket.MAX_REQUEST)),
    "http": ("http", False, _http),
    "snapshot": ("snapshot", False, _snapshot),
    "index": ("index", False, _index),
    "checkpoint": ("trainer", True, _checkpoint),
    "resume": ("resume", False, _resume),
    "keys": ("keys", False, _keys),
    "journal": ("journal", False, _journal),
    "recording": ("recording", False, _recording),
    "config": ("config", False, _config),
    "log": ("log", False, _log),
}
"""By name: which messages are spoilt, whether they come as frames, and who reads them. `folder` is empty and the reader's own."""


def play(channel: str, seed: object, count: int, folder: Path) -> tuple[int, int]:
    """Reads so many hostile texts. Returns how many were read, and how many of them were understood."""
    messages, framed, read = CHANNELS[channel]
    hostile = Hostile(f"{channel} {seed}")
    understood = 0
    for number in range(count):
        text = hostile.frame(messages) if framed else hostile.text(messages)
        try:
            understood += read(text, folder)
        except BaseException as error:
            error.add_note(f"{channel} {seed}, text {number}: {text[:300]!r}")
            raise
    return count, understood
