"""How long it takes to fold a long run's recording into its history, and to make its report and its timeline.

    bin/bench fold [EVENTS]        (default 30000 and 1000000)

The recording is a simulated one (four pipelines on eight GPUs, no faults), repeated as successive lives of a supervisor until it has that many
events, in packed segments as a real run leaves them. Times are of one process, on one core; making the recording does not count.
"""

import gzip
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from supervisor.attempt.history import read_history
from supervisor.attempt.recording import FOLDER, segments
from supervisor.views.history.page import page
from supervisor.views.history.page_data import page_data
from supervisor.views.history.trace import trace
from tests.harness.boxes import box, pipeline
from tests.harness.recorded_runs import EPOCH, record

STEPS = 100


def four() -> object:
    """Four pipelines on eight GPUs."""
    return box(8, *(pipeline(f"p{i}", [2 * i, 2 * i + 1], list(range(8)), slots=4) for i in range(4)))


def make(attempt: Path, events: int) -> int:
    """Write a recording of at least so many events; return how many it has."""
    source = attempt.with_name(f"{attempt.name}-source")
    world = record(source, box=four, steps=STEPS, faults=None, segment=1 << 40)  # type: ignore[arg-type]
    (path,) = segments(source / FOLDER)
    opened, rest = path.read_bytes().split(b"\n", 1)
    line = msgspec.json.decode(opened)
    folder = attempt / FOLDER
    folder.mkdir(parents=True)
    lives = -(-events // world.events)
    for life in range(lives):
        line["wall"] = EPOCH + life * (world.now + 60.0)
        data = msgspec.json.encode(line) + b"\n" + rest
        (folder / f"{life + 1:06}.jsonl.gz").write_bytes(gzip.compress(data, 5))
    return lives * world.events


def report(attempt: Path) -> bytes:
    return page(page_data(read_history(attempt, EPOCH + 1e9), run="bench", directory=str(attempt)))


def timeline(attempt: Path) -> bytes:
    return trace(read_history(attempt, EPOCH + 1e9), "bench")


def main(sizes: list[int]) -> int:
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        for size in sizes:
            attempt = Path(place) / f"{size}"
            events = make(attempt, size)
            stored = sum(path.stat().st_size for path in segments(attempt / FOLDER))
            began = time.perf_counter()
            history = read_history(attempt, EPOCH + 1e9)
            folded = time.perf_counter() - began
            slices = sum(len(lane.times) for lane in history.gpus.values())
            print(f"{events:9,} events, {stored / 2**20:.1f} MiB packed, {history.facts:,} facts, {slices:,} slices of GPUs")
            print(f"{'fold':42} {folded:10.2f} s")
            for name, make_it in (("report (fold included)", report), ("timeline (fold included)", timeline)):
                began = time.perf_counter()
                size_of = len(make_it(attempt))
                print(f"{name:42} {time.perf_counter() - began:10.2f} s, {size_of / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]] or [30_000, 1_000_000]))
