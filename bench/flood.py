"""How long an operator waits for `status` while one trainer, or one client of its gateway, does its worst.

    bin/bench flood [SECONDS] [KIND …]

A real run with two pipelines on four virtual GPUs. The first pipeline's rank floods in one way, or a client with its key does; meanwhile
`status` is asked 50 times a second over the control socket. Its answer needs a turn of the supervisor's loop, so it is late by as much as the
loop is; making the answer itself is in the figure (the row `nothing`). Of the gateway it is `/health` that is asked.
The goal: p99 20 ms, at most 250 ms.
"""

import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from supervisor.observe.control_socket import StatusRequest, ask
from tests.harness.supervised_run import Run, configuration

EVERY_S = 0.02
P99_MS, MOST_MS = 20.0, 250.0
RANK = """
import json, os, pathlib, socket, struct, sys, time
from trainshed import decode, encode

kind, seconds = sys.argv[1], float(sys.argv[2])
sock = socket.socket(fileno=int(os.environ["TRAINSHED_FD"]))
sock.setblocking(True)
sock.sendall(encode("hello", rank=int(os.environ["RANK"])))
buffer, welcome = bytearray(), None
while welcome is None:
    buffer.extend(sock.recv(1 << 16))
    for message in decode(buffer):
        welcome = message if message["type"] == "welcome" else welcome
weights = pathlib.Path(welcome["weights"])
if os.environ["RANK"] != "0" or kind in ("nothing", "million prompts", "4,096 samples"):
    pathlib.Path("begun").touch()
    time.sleep(600)

def shown(): pathlib.Path("begun").touch()
def snapshot(header):
    folder = weights / "flood"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
def publish(header):
    snapshot(header)
    shown()
    for call in range(10**6):
        sock.sendall(encode("publish", call=call, name="flood"))
        time.sleep(0.5)
        snapshot(header)

HUGE = {
    "header of lists": b'{"a":[' + b"[]," * 10_000_000 + b"[]]}",
    "header of numbers": b'{"a":[' + b"1," * 15_000_000 + b"1]}",
}
if kind == "header of 130,000 tensors":
    tensor = b'"tensor.%06d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    publish(b"{" + b",".join(tensor % n for n in range(130_000)) + b"}")
if kind in HUGE:
    publish(HUGE[kind])
if kind == "80,000 files":
    folder = weights / "files"
    folder.mkdir()
    for number in range(80_000):
        (folder / str(number)).touch()
    shown()
    time.sleep(1)
    os._exit(1)
shown()
if kind == "log":
    line = b"x" * 199 + b"\\n"
    while True:
        os.write(1, line * 100)
number = 0
FRAMES = {
    "reports": lambda: encode("report", step=number, metrics={"reward": 0.5}),
    "hellos": lambda: encode("hello", rank=0),
    "open rollouts": lambda: encode("open_rollout", rollout=number, target=10),
    "open and close": lambda: encode("open_rollout", rollout=number, target=10) + encode("close_rollout", rollout=number),
    "leases": lambda: encode("request_lease", call=number, roles=["train"]) + encode("offloaded", call=number),
    "publishes of nothing": lambda: encode("publish", call=number, name="nothing"),
    "checkpoints": lambda: encode("checkpoint", step=number, path="/tmp"),
    "large frames": lambda: struct.pack(">I", len(LARGE)) + LARGE,
}
LARGE = b'{"type":"report","step":1,"metrics":{' + b",".join(b'"%06d":1' % n for n in range(90_000)) + b"}}"
sock.setblocking(False)
while True:
    data = b"".join(FRAMES[kind]() for number in range(number, number + 100))
    number += 100
    while data:
        try:
            data = data[sock.send(data):]
        except BlockingIOError:
            try:
                sock.recv(1 << 20)
            except BlockingIOError:
                time.sleep(0.001)
"""
FRAMES = (
    "nothing", "reports", "hellos", "open rollouts", "open and close", "leases", "publishes of nothing", "checkpoints", "large frames",
    "header of lists", "header of numbers", "header of 130,000 tensors", "80,000 files", "log",
)  # fmt: skip
BODIES = {
    "million prompts": b'{"input_ids": [' + b"[3]," * 1_000_000 + b"[3]]}",
    "4,096 samples": b'{"input_ids": [' + b"[4]," * 4095 + b'[4]], "sampling_params": {"max_new_tokens": 1}}',
}


def measure(kind: str, seconds: float) -> list[float]:
    """Returns the waits of an honest asker, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        cwd = Path(folder)
        (cwd / "rank.py").write_text(RANK)
        (cwd / "idle.py").write_text("import time\nfrom trainshed import connect\nconnect()\ntime.sleep(600)\n")
        file = configuration(cwd / "flood.toml", entry="placeholder:main")
        command = json.dumps([sys.executable, "rank.py", kind, str(seconds)])
        text = file.read_text().replace('entry = "placeholder:main"', f"command = {command}")
        file.write_text(text.replace('entry = "trainers.grpo:main"', f'command = ["{sys.executable}", "idle.py"]'))
        run = Run(cwd, file)
        try:
            run.wait_until((cwd / "begun").exists, "the flood", 120.0)
            if kind in BODIES:
                access = json.loads((run.directory / "gateways.json").read_text())["p1"]
                return _beside_a_client(access["url"].removeprefix("http://"), access["key"], BODIES[kind], seconds)
            path = run.directory / "control.sock"
            return _waits(lambda: ask(path, StatusRequest(), 60.0), seconds)
        finally:
            run.stop()


def _waits(look: Callable[[], object], seconds: float) -> list[float]:
    waits: list[float] = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        look()
        waits.append(1e3 * (time.monotonic() - began))
        time.sleep(EVERY_S)
    return waits


def _beside_a_client(at: str, key: str, body: bytes, seconds: float) -> list[float]:
    """Asks `/health`, while a process of its own posts the body again and again and hangs up a second later."""

    def health() -> None:
        connection = http.client.HTTPConnection(at, timeout=60)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()

    client = os.fork()
    if client == 0:
        while True:
            connection = http.client.HTTPConnection(at, timeout=1)
            try:
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
                connection.request("POST", "/generate", body, headers)
                connection.getresponse().read()
            except OSError:
                pass
            connection.close()
    try:
        return _waits(health, seconds)
    finally:
        os.kill(client, 9)
        os.waitpid(client, 0)


def main(arguments: list[str]) -> int:
    seconds = float(arguments[0]) if arguments else 8.0
    kinds = arguments[1:] or [*FRAMES, *BODIES]
    kept = True
    print(f"load {os.getloadavg()[0]:.1f} at the beginning; milliseconds that an honest asker waits, of {seconds:g} s\n")
    print(f"{'one peer does':28} {'asked':>6} {'p50':>8} {'p99':>8} {'most':>8}")
    for kind in kinds:
        waits = sorted(measure(kind, seconds))
        p99, most = waits[len(waits) * 99 // 100], waits[-1]
        kept = kept and p99 <= P99_MS and most <= MOST_MS
        print(f"{kind:28} {len(waits):6} {statistics.median(waits):8.1f} {p99:8.1f} {most:8.1f}", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} at the end; p99 {P99_MS:g} ms and most {MOST_MS:g} ms {'kept' if kept else 'NOT kept'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
