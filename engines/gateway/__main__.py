"""This program is one gateway: `python -P -m engines.gateway --pipeline NAME --listen-fd N --seed S --model DIR`,
with the supervisor's channel in `TRAINSHED_FD` and the pipeline's key in `TRAINSHED_API_KEY` (or `--no-auth`).

Exit codes: 0 the supervisor is gone or a TERM came; 1 the channel brought what is no order, or a bug of ours; 2 bad arguments or model files.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from engines.gateway.control_channel import Channel
from engines.gateway.core.attempts import PATIENCE
from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.publish_policy import ON_PUBLISH, PublishPolicy
from engines.gateway.routes.access import Access
from engines.gateway.routes.agents.chat_bodies import Parsers
from engines.gateway.routes.server import Serving, application
from engines.gateway.routes.text import Text
from engines.gateway.shell import Shell
from engines.gateway.upstream.engine_client import EngineClient
from trainers.lossy_log import tolerate_full_disk
from trainers.process_title import name_this_process
from trainers.protocol.child_env import API_KEY, FD
from trainers.protocol.framing import FrameError

SWITCH_S: Final = 0.0005
"""The loop waits no longer for a thread that decodes a body: it may have to do so several times until it has answered."""
_GARBAGE: Final = (50_000, 20, 100)
"""Thresholds of the garbage collector: with Python's own (700, 10, 10) it takes a twentieth of a busy gateway's time to find nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    name_this_process()
    gc.freeze()  # what is imported stays; and of what comes, little is in cycles
    gc.set_threshold(*_GARBAGE)
    arguments = _arguments(argv)
    tolerate_full_disk(lambda lost: _lost(arguments.pipeline, lost))
    log = _log(arguments.pipeline)
    try:
        text = Text(arguments.model)
        control = socket.socket(fileno=int(os.environ[FD]))
        listener = socket.socket(fileno=arguments.listen_fd)
        access = None if arguments.no_auth else Access(os.environ[API_KEY], listener.getsockname()[0])
    except Exception as error:  # the libraries raise anything for a bad file
        log.error("cannot start", error=f"{type(error).__name__}: {error}", model=str(arguments.model))
        return 2
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(arguments, text, access, control, listener, log))


async def _run(
    arguments: argparse.Namespace, text: Text, access: Access | None, control: socket.socket, listener: socket.socket, log: Any
) -> int:
    dispatch = Dispatch(
        seed=arguments.seed,
        eos=text.eos,
        decode=text.decode_all if text.known else None,
        policy=PublishPolicy(arguments.on_publish, arguments.max_version_lag),
        prefix_slack=arguments.prefix_slack,
        abort_patience=arguments.abort_patience,
        refused=frozenset(arguments.refuse),
    )
    shell = Shell(dispatch, EngineClient(), log.info)
    app = application(
        shell,
        text,
        pipeline=arguments.pipeline,
        model=str(arguments.model),
        access=access,
        log=log.error,
        context=arguments.context,
        parsers=Parsers.of(text, arguments.tool_parser, arguments.reasoning_parser),
    )
    serving = await Serving(app, listener, log.error).start()
    channel = await Channel.on_socket(control)
    shell.on_done, shell.on_change = channel.done, channel.changed
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    waits: set[asyncio.Future[Any]] = {
        asyncio.create_task(stopped.wait()),
        asyncio.create_task(channel.run(shell.order, shell.progress)),
        shell.failed,
    }
    code = 0
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
        log.info("ends", cause="signal" if stopped.is_set() else "the supervisor is gone")
    except FrameError as error:
        log.error("ends", cause="bad frame", error=str(error))
        code = 1
    except Exception as error:
        log.error("ends", cause="bug", error=f"{type(error).__name__}: {error}", exc_info=True)
        code = 1
    finally:
        for wait in waits:
            wait.cancel()
        await shell.close()
        await serving.end()
    return code


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engines.gateway", description="The HTTP front of one pipeline.")
    parser.add_argument("--pipeline", required=True, help="the pipeline's name")
    parser.add_argument("--listen-fd", required=True, type=int, help="descriptor of the inherited listening socket")
    parser.add_argument("--seed", type=int, default=0, help="the pipeline's seed, from which samples without a seed get one")
    parser.add_argument("--model", required=True, type=Path, help="model directory: tokenizer and chat template")
    parser.add_argument("--on-publish", choices=ON_PUBLISH, default="continue", help="what becomes of samples in flight when weights come")
    parser.add_argument("--max-version-lag", type=int, default=None, help="begin anew what was begun more versions ago than this")
    parser.add_argument(
        "--prefix-slack", type=float, default=None, help="prefer engines that know a prompt's beginning, if no busier than so"
    )
    parser.add_argument("--abort-patience", type=float, default=PATIENCE, help="seconds for an engine to end what was aborted")
    parser.add_argument(
        "--refuse", action="append", default=[], metavar="NAME", help="a sampling parameter that the engines do not survive"
    )
    parser.add_argument("--context", type=int, default=None, help="tokens that engines take, prompt and answer together")
    parser.add_argument("--tool-parser", default=None, help="SGLang's parser of the model's tool calls; none: calls are not looked for")
    parser.add_argument("--reasoning-parser", default=None, help="SGLang's parser of the model's reasoning; none: it is not cut out")
    parser.add_argument("--no-auth", action="store_true", help="answer everybody: no key, and web pages too")
    return parser.parse_args(argv)


def _lost(pipeline: str, lines: int) -> str:
    """Return the record, as `_log` would write it, that so many lines were lost."""
    stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    record = {"pipeline": pipeline, "source": "gateway", "event": "log lines lost", "lines": lines, "level": "warning", "timestamp": stamp}
    return json.dumps(record)


def _log(pipeline: str) -> Any:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger().bind(pipeline=pipeline, source="gateway")


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # that there is no torch is no news
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type] # `transformers` would import it: 3 s and 200 MiB, of no use here
    sys.exit(main())
