"""Time to recover of an engine group, minus its own cold start, in the same run: what recovery itself costs.

    bin/bench recovery [KILLS]        (default 20 for each start time)

Scripted engines that take 0.1, 1 and 5 s to start; a random member of a serving group is killed. "recover" is from the failure, as the log
gives it, to the route of the next life; "cold start" is what that very life took from its spawn to ready, so the difference is ours:
unrouting, killing, confirming by pids, ports and memory, spawning, the weights, the route. Noticing comes before it: the last column, from
the kill. With ALL, all four groups fail at once.
What the incumbents' constants for noticing a failure would have made of it: `bin/bench constants`.
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from tests.harness.faulty_run import Faulty
from tests.harness.supervised_run import Run

CHECKOUT = Path(__file__).resolve().parents[1]

STARTS = (0.1, 1.0, 5.0)
ENGINES = 4
WIDTHS = (6, 10, 8, 4, 12, 9, 9, 9, 8, 13)


def begin(cwd: Path, start: float, members: str, tp: int) -> tuple[Faulty, Run]:
    faulty = Faulty(
        cwd, members=members, tp=tp, gpus=ENGINES * tp, steps=2, target=8000, tokens=40, trains=False, restarts=10**6,
        health="restart_window_s = 0.001\nstart_s = 30.0",
    )  # fmt: skip
    text = faulty.file.read_text().replace("[health]", "[scheduler]\nmax_starting = 4\n[health]")
    faulty.file.write_text(text)
    for rank in range(ENGINES):
        faulty.script(rank, {"set": {"start_delay": start, "token_delay": 0.02}})
    run = faulty.start()
    run.when("p1", lambda view: all(engine.state == "serving" for engine in view.engines), "everybody", 60)
    return faulty, run


def kills(run: Run, count: int, at_once: int, chance: random.Random) -> list[float]:
    """The times (of the wall clock, as the log's) at which members were killed, in order."""
    times = []
    for _ in range(count):
        view = run.when("p1", lambda view: all(engine.state == "serving" for engine in view.engines), "everybody", 60)
        for engine in chance.sample(list(view.engines), at_once):
            times.append(time.time())
            os.kill(chance.choice(engine.pids), signal.SIGKILL)
        time.sleep(0.05)
    return times


def unrouted(run: Run, times: list[float]) -> list[float]:
    """Seconds from each kill to the order that takes the route."""
    failed = [record for record in run.log() if record["event"] == "engine group failed" and record["cause"] == "exit"]
    at = sorted(datetime.fromisoformat(str(record["timestamp"])).timestamp() for record in failed)
    return [max(0.0, seen - killed) for seen, killed in zip(at, sorted(times), strict=False)]


def measured(run: Run) -> list[tuple[float, float]]:
    """(recover, cold start) of each recovery, in seconds, as the supervisor's log has them."""
    found = []
    for record in run.log():
        if record["event"] == "engine group: routed" and record["cause"] == "exit":
            recover, started, ready = (float(str(record[f"{step}_s"])) for step in ("routed", "started", "ready"))
            found.append((recover, ready - started))
    return found


def main(count: int) -> None:
    heads = ("start", "shape", "at once", "n", "recover p50", "cold p50", "ours p50", "ours p95", "allowed", "unrouted max")
    print(" ".join(f"{head:>{width}}" for head, width in zip(heads, WIDTHS, strict=True)), "  (ms)")
    late = 0
    for start in STARTS:
        for members, tp, at_once in (("one", 1, 1), ("per-gpu", 2, 1), ("one", 1, ENGINES)):
            with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
                _, run = begin(Path(folder), start, members, tp)
                try:
                    times = kills(run, max(4, count // at_once), at_once, random.Random(1))
                    run.when("p1", lambda view: all(engine.state == "serving" for engine in view.engines), "everybody", 60)
                finally:
                    run.stop()
                pairs, noticed = measured(run), sorted(unrouted(run, times))
            ours = sorted(recover - cold for recover, cold in pairs)
            p95 = ours[min(len(ours) - 1, int(0.95 * len(ours)))]
            cold = statistics.median(cold for _, cold in pairs)
            allowed = max((0.25 if at_once > 1 else 0.10) * cold, 0.15)
            late += p95 > allowed
            row = (statistics.median(recover for recover, _ in pairs), cold, statistics.median(ours), p95, allowed, noticed[-1])
            said = " ".join(f"{value * 1e3:{width}.0f}" for value, width in zip(row, WIDTHS[4:], strict=True))
            print(f"{start:6.1f} {members + str(tp):>10} {at_once:8} {len(pairs):4} {said}", flush=True)
    if late:
        sys.exit(f"{late} rows are over what is allowed")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
