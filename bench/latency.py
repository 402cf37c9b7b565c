"""Frame in, decision, frame out: how long a trainer waits for GPUs that are known to be empty, beside a raw socket-pair round trip.

    bin/bench latency [ROUNDS]

A real run (supervisor, gateways, recording, log) with two pipelines of four engines on four virtual GPUs. A rank asks for its training GPUs,
is granted them and leaves them, again and again; between its requests it sends the same bytes to a child that sends as many back.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.harness.supervised_run import Run, configuration

CHECKOUT = Path(__file__).resolve().parents[1]

WITHIN = 10.0
RANK = '''
import json, os, socket, sys, time
from trainshed import decode, encode

ROUNDS = {rounds}
sock = socket.socket(fileno=int(os.environ["TRAINSHED_FD"]))
sock.setblocking(True)
buffer, heard = bytearray(), []

def hear(kind):
    """When the next message of this kind is here."""
    while True:
        for index, message in enumerate(heard):
            if message["type"] == kind:
                del heard[index]
                return time.perf_counter()
        buffer.extend(sock.recv(1 << 16))
        heard.extend(decode(buffer))

sock.sendall(encode("hello", rank=int(os.environ["RANK"])))
hear("welcome")
if int(os.environ["RANK"]) == 0:
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close(); sock.close(); os.setsid()  # a session of its own, as the supervisor and each of its children have
        while data := theirs.recv(1 << 16):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
asked = encode("request_lease", call=100, roles=["train"])
raw, granted, measured = [], [], []
for call in range(ROUNDS):
    if int(os.environ["RANK"]) == 0:
        time.sleep(0.002)  # whatever the round before led to is over
        began = time.perf_counter(); ours.sendall(asked); ours.recv(1 << 16); raw.append(time.perf_counter() - began)
        time.sleep(0.002)
        began = time.perf_counter()
        sock.sendall(encode("request_lease", call=call, roles=["train"]))
        granted.append(hear("lease_granted") - began)
    else:
        hear("lease_granted")
    began = time.perf_counter()
    sock.sendall(encode("offloaded", call=call))
    measured.append(hear("lease_ended") - began)
if int(os.environ["RANK"]) == 0:
    with open("latency.json", "w") as file:
        json.dump({{"raw": raw, "granted": granted, "measured": measured}}, file)
'''
IDLE = "import time\nfrom trainshed import connect\nconnect()\ntime.sleep(600)\n"


def measure(rounds: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        cwd = Path(folder)
        (cwd / "rank.py").write_text(RANK.format(rounds=rounds))
        (cwd / "idle.py").write_text(IDLE)
        file = configuration(cwd / "latency.toml", entry="placeholder:main")
        text = file.read_text().replace('entry = "placeholder:main"', f'command = ["{sys.executable}", "rank.py"]')
        file.write_text(text.replace('entry = "trainers.grpo:main"', f'command = ["{sys.executable}", "idle.py"]'))
        run = Run(cwd, file)
        try:
            run.wait_until((cwd / "latency.json").exists, "the last round", 120.0)
            time.sleep(0.5)
            found: dict[str, list[float]] = json.loads((cwd / "latency.json").read_text())
            return found
        finally:
            run.stop()


def main(rounds: int) -> int:
    found = {name: sorted(1e6 * seconds for seconds in times[len(times) // 10 :]) for name, times in measure(rounds).items()}
    names = {
        "raw": "raw socket-pair round trip, same bytes",
        "granted": "lease asked for, granted: GPUs known empty",
        "measured": "lease left, ended: memory measured",
    }
    for key, name in names.items():
        times = found[key]
        print(f"{name:46} p50 {statistics.median(times):9.0f} us   p99 {times[len(times) * 99 // 100]:9.0f} us")
    ratio = statistics.median(found["granted"]) / statistics.median(found["raw"])
    print(f"granted / raw, p50: {ratio:.1f} ({'within' if ratio <= WITHIN else 'NOT within'} {WITHIN:.0f}); {len(found['raw'])} rounds")
    return 0 if ratio <= WITHIN else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500))
