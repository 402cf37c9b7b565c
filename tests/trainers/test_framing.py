"""What the frames of every peer are: nothing that a child writes into one reaches us but as a message or as a FrameError."""

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.observe.control_socket import Request
from trainers.protocol import gateway_messages, trainer_messages
from trainers.protocol.framing import HEADER, FrameError, FrameReader

UNIONS = {
    "trainer to supervisor": trainer_messages.TrainerMessage,
    "supervisor to trainer": trainer_messages.SupervisorMessage,
    "gateway to supervisor": gateway_messages.Report,
    "supervisor to gateway": gateway_messages.Order,
    "operator to supervisor": Request,
}


def frame(body: bytes) -> bytes:
    return HEADER.pack(len(body)) + body


@pytest.mark.parametrize("union", UNIONS)
@given(depth=st.integers(1, 500_000), kind=st.sampled_from([b"[", b'{"a":']), closed=st.booleans(), last=st.booleans())
def test_an_unknown_field_of_any_depth_is_a_message_or_no_frame(union: str, depth: int, kind: bytes, closed: bool, last: bool) -> None:
    depth //= len(kind)
    deep = kind * depth + (b"0" + {b"[": b"]", b'{"a":': b"}"}[kind] * depth if closed else b"")
    body = (b'{"type":"stopping","grace_s":1,"zz":' if last else b'{"zz":') + deep + (b"}" if closed else b"")
    with suppress(FrameError):
        list(FrameReader(UNIONS[union]).feed(frame(body)))


STRINGS = [
    ("checkpoint", "path", '{"type":"checkpoint","step":0,"path":%s}'),
    ("publish", "name", '{"type":"publish","call":0,"name":%s}'),
    ("lease", "roles", '{"type":"request_lease","call":0,"roles":[%s]}'),
    ("report", "metrics", '{"type":"report","step":0,"metrics":{%s:1.0}}'),
]


@pytest.mark.parametrize("text", ['"/tmp/\\u0000x"', '"a\\ud800"', '"\\udcffa\\udcfe........"', '"a\\u0000"'])
@pytest.mark.parametrize("field", STRINGS, ids=[one[0] for one in STRINGS])
def test_a_string_that_is_no_text_or_no_path_is_no_message_of_a_trainer(field: tuple[str, str, str], text: str) -> None:
    reader: FrameReader[trainer_messages.TrainerMessage] = FrameReader(trainer_messages.TrainerMessage)
    with pytest.raises(FrameError, match="does not decode"):
        list(reader.feed(frame((field[2] % text).encode())))


@pytest.mark.parametrize("text", ["/tmp/ä", "a\nb", "\U0001f600", "x" * 128])
@pytest.mark.parametrize("field", STRINGS, ids=[one[0] for one in STRINGS])
def test_any_other_text_is(field: tuple[str, str, str], text: str) -> None:
    reader: FrameReader[trainer_messages.TrainerMessage] = FrameReader(trainer_messages.TrainerMessage)
    (message,) = reader.feed(frame((field[2] % msgspec.json.encode(text).decode()).encode()))
    assert text in str(message) or repr(text)[1:-1] in str(message)
