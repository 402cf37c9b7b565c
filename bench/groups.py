"""A real expert-parallel group of SGLang on a CPU, hurt while it serves: how fast it is noticed, gone, and back.

    bin/bench groups ENV          ENV is made by bin/sglang-cpu; ten minutes on two quiet cores

A tiny mixture of experts on two ranks (tp = ep = 2); each process in turn gets KILL, then STOP. "dead": until the kernel has taken the
process apart and says so, to a bystander; "unrouted": from then (from the signal, for STOP) until the gateway says that nothing is routed
there any more; "ours": from the signal to the route, minus what the same life took to start. The trainer checks that every sample comes
once, and greedy answers against undisturbed ones.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ["TRAINSHED_SGLANG"] = sys.argv[1] if len(sys.argv) > 1 else ""

from tests.harness.sglang.ep_group import HANG_BUDGET_S, WHO, EpGroup, load
from tests.harness.sglang.served import REAL

CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> int:
    if not REAL:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory(prefix="groups-") as folder:
        group = EpGroup(Path(folder))
        try:
            group.served(2)
            print(f"load {load()}; the verdict on a hang is due after {HANG_BUDGET_S:.0f} s at the latest", flush=True)
            print(
                f"{'signal':>8} {'to':>8} {'cause':>6} {'dead ms':>8} {'unrouted ms':>12} {'gone ms':>8} {'cold s':>7} {'routed s':>9} "
                f"{'ours ms':>8} overlap ms"
            )
            life = 1
            for number in (signal.SIGKILL, signal.SIGSTOP):
                for who in WHO:
                    seen = group.hurt(who, number, life)
                    life += 1
                    ours = seen.ours - (seen.noticed if number is signal.SIGSTOP else 0.0)
                    print(
                        f"{number.name:>8} {who:>8} {seen.cause:>6} {seen.dead * 1e3:8.0f} {seen.unrouted * 1e3:12.0f} {seen.gone * 1e3:8.0f} {seen.cold:7.1f} "
                        f"{seen.routed:9.1f} {ours * 1e3:8.0f} {seen.overlap * 1e3:10.0f}",
                        flush=True,
                    )
            steps = group.served(len(group.steps()) + 2)
        finally:
            group.run.stop()
        samples, different = sum(line["samples"] for line in steps), sum(len(line["different"]) for line in steps)
        print(f"{len(steps)} rollouts, {samples} samples, each once; {different} unlike an undisturbed engine's; load {load()}")
        wrong = [line["step"] for line in steps if {version for _, _, version in line["spans"]} != {line["step"]}]
        return 1 if different or wrong or group.run.left_behind() else 0


if __name__ == "__main__":
    sys.exit(main())
