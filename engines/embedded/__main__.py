"""`python -P -m engines.embedded --model DIR --port P --gpu virtual:0` runs one embedded engine until SIGTERM."""

import argparse
import asyncio
import hmac
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler
from trainshed.virtual_gpu import Device, parse_device

from engines.embedded import control_routes, server
from engines.embedded.admission import Gate, RequestRunner
from engines.embedded.architecture import UnsupportedModel
from engines.embedded.compute import Compute
from engines.embedded.core import Core
from engines.embedded.model import NotExact
from engines.embedded.server import ENGINE, MAX_BODY, Engine
from engines.embedded.snapshot import BadSnapshot
from engines.embedded.text import Text
from engines.embedded.wire import Limits
from trainers.lossy_log import tolerate_full_disk
from trainers.process_title import name_this_process
from trainers.protocol.child_env import API_KEY

OPEN = ("/health", "/ready")
"""What needs no key. SGLang answers `/health_generate` to everybody, too; it computes a token, and can find the engine unhealthy."""


def main(argv: list[str]) -> None:
    """Serve until SIGTERM or SIGINT, then end the process: status 0, or 1 and one line for what the operator must change.

    May be called in a child of a forkserver. Never returns, so that nothing waits for a thread that computes.
    """
    began = time.monotonic()
    name_this_process()
    tolerate_full_disk()
    arguments = _parser().parse_args(argv)
    try:
        device = parse_device(arguments.gpu)
        text = Text(arguments.model)
        core = Core(arguments.model, device, arguments.slots, arguments.context, arguments.weight_version, text.decode)
    except (UnsupportedModel, BadSnapshot, NotExact, ValueError, OSError, RuntimeError) as error:
        _end(f"failed: {error}", 1)
    try:
        asyncio.run(_serve(arguments, device, core, text, began))
    except OSError as error:
        _end(f"failed: {arguments.host}:{arguments.port} cannot be served: {error}", 1)
    _end("ended", 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engines.embedded", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face layout")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gpu", default="cpu", help="virtual:N, cuda:N or cpu")
    parser.add_argument("--slots", type=int, default=16, help="samples computed at once")
    parser.add_argument("--context", type=int, default=64, help="longest prompt and answer together, in tokens")
    parser.add_argument("--weight-version", default="0", help="what the weights of --model are called")
    return parser


def _end(line: str, status: int) -> NoReturn:
    print(line, flush=True)
    sys.stderr.flush()
    os._exit(status)


async def _serve(arguments: argparse.Namespace, device: Device, core: Core, text: Text, began: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    application = web.Application(client_max_size=MAX_BODY, middlewares=[_authorized, control_routes.refusals])
    application[ENGINE] = _engine(arguments, device, core, text)
    application.add_routes([*server.ROUTES, *control_routes.ROUTES])
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, arguments.host, arguments.port, backlog=1024).start()
    at = f"http://{arguments.host}:{arguments.port}"
    print(
        f"ready: {at} {arguments.model} version {arguments.weight_version} on {device} after {time.monotonic() - began:.3f} s", flush=True
    )
    await stop.wait()
    print("stopping", flush=True)


def _engine(arguments: argparse.Namespace, device: Device, core: Core, text: Text) -> Engine:
    architecture = core.architecture
    limits = Limits(architecture.vocab, min(arguments.context, architecture.positions), architecture.eos | text.eos)
    gate = Gate()
    runner = RequestRunner(gate)
    compute = Compute(core, runner.deliver)
    runner.attach(compute)
    shown = {
        "model_path": str(arguments.model),
        "host": arguments.host,
        "port": arguments.port,
        "device": str(device),
        "context_length": limits.context,
        "max_running_requests": arguments.slots,
        "enable_memory_saver": True,
        "tp_size": 1,
        "dp_size": 1,
        "pid": os.getpid(),
        "engine": "trainshed-embedded",
    }
    key = os.environ.get(API_KEY) or None
    return Engine(limits, text, gate, runner, compute, str(arguments.model), shown, key=key)


@web.middleware
async def _authorized(request: web.Request, handler: Handler) -> web.StreamResponse:
    key = request.app[ENGINE].key
    if key is not None and request.path not in OPEN:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            return web.json_response({"error": "Unauthorized"}, status=401)
    return await handler(request)


if __name__ == "__main__":
    main(sys.argv[1:])
