"""Text to tokens and back, and streams that stay alive: without a process."""

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest

from engines.gateway import __main__ as program
from engines.gateway.core.dispatch import Dispatch
from engines.gateway.routes import asking
from engines.gateway.routes.errors import RequestError
from engines.gateway.routes.server import Serving, application
from engines.gateway.routes.text import TextStream
from engines.gateway.shell import Shell
from engines.gateway.upstream.engine_client import EngineClient
from tests.harness.gateway_box import byte_level


def test_a_stream_sends_whole_characters_and_holds_back_what_may_be_a_stop(tmp_path: Path) -> None:
    text = byte_level(tmp_path)
    ids = text.encode("añb→END")
    assert text.decode(ids) == "añb→END"
    stream = TextStream(text, {}, [])
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) == "añb→END"
    assert all("\ufffd" not in piece for piece in pieces)
    stream = TextStream(text, {}, ["END"])
    sent = "".join(stream.push([token]) for token in ids)
    assert "E" not in sent
    assert sent + stream.finish(text.answer(ids, {"type": "stop", "matched": "END"}, {})) == "añb→"


def test_a_model_without_a_template_gets_plain_lines(tmp_path: Path) -> None:
    text = byte_level(tmp_path)
    assert text.decode(text.chat([{"role": "user", "content": "hi"}], {})) == "user: hi\nassistant:"


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no') }}", "{{ messages.__class__.__mro__ }}{{ x.y.z }}", "{{ 1 / 0 }}", "{{ messages + 1 }}"]
)
def test_a_template_cannot_do_more_than_fail(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    with pytest.raises(RequestError, match="chat template"):
        byte_level(tmp_path).chat([{"role": "user", "content": "hi"}], {})


def test_broken_model_files_are_one_line_and_exit_code_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    assert program.main(["--pipeline", "p1", "--listen-fd", "9", "--model", str(tmp_path)]) == 2
    assert json.loads(capfd.readouterr().err)["event"] == "cannot start"


def test_streams_say_something_while_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "KEEP_ALIVE_S", 0.05)

    async def play() -> None:
        shell = Shell(Dispatch(), EngineClient(), lambda *_, **__: None)
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        text = byte_level(tmp_path)
        quiet = lambda *_, **__: None  # noqa: E731
        serving = await Serving(application(shell, text, pipeline="p1", model="m", access=None, log=quiet), listener, quiet).start()
        async with aiohttp.ClientSession(base_url=url, timeout=aiohttp.ClientTimeout(total=10)) as session:
            async with session.post("/generate", json={"text": "a", "stream": True}) as response:
                assert await response.content.readline() == b": keep-alive\n"
            async with session.post("/rollouts/0/samples", json={"samples": [{"sample": 0, "input_ids": [1]}]}) as response:
                assert [await response.content.readline() for _ in range(2)] == [b"\n", b"\n"]
            async with session.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}], "stream": True}
            ) as response:
                lines = [await response.content.readline() for _ in range(3)]
                assert b'"role":"assistant"' in lines[0]
                assert lines[2] == b": keep-alive\n"
        await shell.close()
        await serving.end()
        listener.close()

    asyncio.run(play())


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 5000}))
    text = byte_level(tmp_path)
    assert len(text.encode("x" * 5000)) == 5000
    with pytest.raises(RequestError, match="cannot fit into the model's context of 5000 tokens"):
        text.encode("x" * 5001)
    assert text.encode("añb→END" * 600) == text.encode("añb→END") * 600, "a long text is encoded as a short one"
